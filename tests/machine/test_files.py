"""Files and folders are whole or not there; names stay inside their folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diffsel.machine import files
from diffsel.machine.files import safe_name


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
