"""What lies on disk is whole, belongs to its settings, and stays inside its folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from diffsel.data.classes import ClassInfo
from diffsel.data.images import ImageData, Row, Skipped
from diffsel.machine import files
from diffsel.machine.files import safe_name
from diffsel.machine.tensors import read_unit, write_unit
from diffsel.runs import run as store
from diffsel.runs import session
from diffsel.settings.errors import SettingsDiffer, StoreError
from diffsel.settings.sections import DataSettings
from diffsel.settings.settings import Settings

TENSORS = {"b": np.arange(6, dtype=np.float16).reshape(2, 3), "a": np.ones(3, np.float32)}


def data(count: int = 3, label: str = "cat") -> ImageData:
    rows = tuple(Row(i, f"{label}/{i}.png", label, 64, 48, f"{i:032x}") for i in range(count))
    skipped = (Skipped(f"{label}/x.png", label, "empty file"),)
    return ImageData("/data", (ClassInfo(label, label),), rows, skipped, DataSettings(), lambda name: b"")


def test_a_unit_comes_back_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "maps" / "cat-000.safetensors"
    write_unit(file, "mark", TENSORS, {"rows": [1, 2]})
    tensors, extra = read_unit(file, "mark")
    assert extra == {"rows": [1, 2]}
    assert all(np.array_equal(tensors[k], TENSORS[k]) and tensors[k].dtype == TENSORS[k].dtype for k in TENSORS)
    again = tmp_path / "again.safetensors"
    write_unit(again, "mark", dict(reversed(TENSORS.items())), {"rows": [1, 2]})
    assert again.read_bytes() == file.read_bytes()
    assert os.listdir(tmp_path / "maps") == ["cat-000.safetensors"]


@pytest.mark.parametrize("damage", ["cut", "flip", "header", "empty"])
def test_a_damaged_unit_is_named(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "cat-000.safetensors"
    write_unit(file, "mark", TENSORS, {})
    blob = bytearray(file.read_bytes())
    if damage == "cut":
        blob = blob[:-3]
    elif damage == "flip":
        blob[-1] ^= 1
    elif damage == "header":
        blob[20] ^= 255
    else:
        blob = bytearray()
    file.write_bytes(blob)
    with pytest.raises(StoreError, match=r"cat-000.safetensors is damaged.*check RUN --remove` removes it"):
        read_unit(file, "mark")


def test_a_unit_of_other_settings_is_refused(tmp_path: Path) -> None:
    write_unit(tmp_path / "u.safetensors", "mark", TENSORS, {})
    with pytest.raises(StoreError, match="other settings"):
        read_unit(tmp_path / "u.safetensors", "another")


def test_another_program_can_read_a_unit(tmp_path: Path) -> None:
    write_unit(tmp_path / "u.safetensors", "mark", TENSORS, {"rows": [0]})
    with safe_open(tmp_path / "u.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == ["a", "b"]
        assert json.loads(file.metadata()["diffsel"])["fingerprint"] == "mark"


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_atomically(tmp_path / "file", b"content")
    assert os.listdir(tmp_path) == []


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.whole_folder(tmp_path / "set") as part:
        (part / "no such folder" / "file").write_text("x")
    assert os.listdir(tmp_path) == []
    with files.whole_folder(tmp_path / "set") as part:
        (part / "whole").write_text("x")
    assert os.listdir(tmp_path / "set") == ["whole"]


def test_a_run_is_opened_again_and_other_settings_are_listed(tmp_path: Path) -> None:
    identity = {"seed": 0, "scoring": {"draws": 12, "t_min": 0.1}, "precision": "fp32"}
    record = session.create_run(tmp_path / "run", identity, Settings(), data())
    assert store.read_index(tmp_path / "run") == data().rows
    assert store.read_skipped(tmp_path / "run") == list(data().skipped)
    assert session.create_run(tmp_path / "run", identity, Settings(), data()) == record
    other = {"seed": 0, "scoring": {"draws": 10, "t_min": 0.1}, "precision": "bf16"}
    with pytest.raises(SettingsDiffer) as caught:
        session.create_run(tmp_path / "run", other, Settings(), data())
    assert caught.value.differences == {"scoring.draws": (12, 10), "precision": ("fp32", "bf16")}
    assert "scoring.draws: stored 12, asked 10" in str(caught.value)


def test_other_formats_and_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a run"):
        store.open_run(tmp_path)
    (tmp_path / "photo.jpg").write_text("mine")
    with pytest.raises(StoreError, match="exists and is not a run"):
        session.create_run(tmp_path, {}, Settings(), data())
    session.create_run(tmp_path / "run", {}, Settings(), data())
    file = tmp_path / "run" / "run.yaml"
    file.write_text(file.read_text().replace("format: 1", "format: 0"))
    with pytest.raises(StoreError, match="store format 0; this version reads format 1"):
        store.open_run(tmp_path / "run")


def test_units_hold_at_most_256_rows_of_one_class() -> None:
    units = store.Run(Path("run"), {}, Settings(), data().classes, data(600)).units
    assert [(u.name, len(u.rows)) for u in units] == [("cat-000", 256), ("cat-001", 256), ("cat-002", 88)]


NAMES = [
    *("cat", "tabby cat", "..", ".", "...", "a/b", "a%2Fb", "/etc", "-rf", " lead", "trail ", "dot."),
    *("x" * 300, "猫" * 100, "nul\0", "new\nline", "<b>", "con:", "%", "%2E", "", "\\", "~", "*?"),
]


def test_safe_names_stay_in_their_folder_and_differ(tmp_path: Path) -> None:
    safe = [safe_name(name) for name in NAMES]
    assert len(set(safe)) == len(NAMES)
    for name in safe:
        (tmp_path / f"{name}").mkdir()
        assert (tmp_path / name).resolve().parent == tmp_path.resolve()
        assert not name.startswith(("-", "."))
        assert len(name.encode()) <= 120
    assert safe_name("tabby cat") == "tabby cat"
    assert safe_name("n01440764") == "n01440764"
