"""Checked tensor files: whole, of their settings, readable by others."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from diffsel.machine.tensors import has_column, read_column, read_extra, read_unit, write_unit
from diffsel.settings.errors import StoreError, Withheld

TENSORS = {"b": np.arange(6, dtype=np.float16).reshape(2, 3), "a": np.ones(3, np.float32)}


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


@pytest.mark.timeout(60)
def test_a_pipe_in_a_units_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(file := tmp_path / "cat-000.safetensors")
    for read in (
        lambda: read_unit(file, "mark"),
        lambda: read_extra(file),
        lambda: read_column(file, "a"),
        lambda: has_column(file, "a"),
    ):
        with pytest.raises(StoreError, match=r"cat-000.safetensors is damaged .*a pipe or a device"):
            read()


def test_a_unit_of_other_settings_is_refused(tmp_path: Path) -> None:
    write_unit(tmp_path / "u.safetensors", "mark", TENSORS, {})
    with pytest.raises(StoreError, match="other settings"):
        read_unit(tmp_path / "u.safetensors", "another")


def test_another_program_can_read_a_unit(tmp_path: Path) -> None:
    write_unit(tmp_path / "u.safetensors", "mark", TENSORS, {"rows": [0]})
    with safe_open(tmp_path / "u.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == ["a", "b"]
        assert json.loads(file.metadata()["diffsel"])["fingerprint"] == "mark"


def test_a_damaged_head_is_seen_without_reading_tensors(tmp_path: Path) -> None:
    file = tmp_path / "u.safetensors"
    write_unit(file, "mark", TENSORS, {"rows": [1, 2], "skipped": []})
    assert read_extra(file) == {"rows": [1, 2], "skipped": []}
    blob = file.read_bytes()
    for old, new in ((b"skipped", b"rkipped"), (b"[1, 2]", b"[1, 3]")):
        file.write_bytes(blob.replace(old, new))
        with pytest.raises(StoreError, match="is damaged"):
            read_extra(file)


@pytest.mark.parametrize("trouble", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE])
def test_what_cannot_be_opened_now_is_not_damaged(tmp_path: Path, trouble: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors says of any such file that it is not there."""
    write_unit(file := tmp_path / "cat-000.safetensors", "mark", TENSORS, {})

    def refused(*_: object, **__: object) -> None:
        raise OSError(trouble, os.strerror(trouble))

    def lost(path: Path, **_: object) -> None:
        raise FileNotFoundError(f"No such file or directory: {path}")

    monkeypatch.setattr(Path, "open", refused)
    monkeypatch.setattr("diffsel.machine.tensors.safe_open", lost)
    for read in (lambda: read_unit(file, "mark"), lambda: read_extra(file), lambda: read_column(file, "a")):
        with pytest.raises(Withheld, match=rf"cat-000\.safetensors: {os.strerror(trouble)}; nothing is known of it"):
            read()
