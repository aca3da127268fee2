"""What lies on disk is whole, belongs to its settings, and stays inside its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffsel.data.classes import ClassInfo
from diffsel.data.images import ImageData, Row, Skipped
from diffsel.runs import run as store
from diffsel.runs import session
from diffsel.settings.errors import SettingsDiffer, StoreError
from diffsel.settings.sections import DataSettings
from diffsel.settings.settings import Settings


def data(count: int = 3, label: str = "cat") -> ImageData:
    rows = tuple(Row(i, f"{label}/{i}.png", label, 64, 48, f"{i:032x}") for i in range(count))
    skipped = (Skipped(f"{label}/x.png", label, "empty file"),)
    return ImageData("/data", (ClassInfo(label, label),), rows, skipped, DataSettings(), lambda name: b"")


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
