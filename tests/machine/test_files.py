"""Files and folders are whole or not there; names stay inside their folder."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffsel.machine import files
from diffsel.machine.files import apart, existing, folded, safe_name, write_atomically
from diffsel.settings.errors import StoreError


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


def test_a_folder_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "empty").mkdir(parents=True)
    for name, target in {"full": "disk/empty", "dangling": "disk/new"}.items():
        (tmp_path / name).symlink_to(tmp_path / target)
        with files.whole_folder(tmp_path / name) as part:
            assert part.parent == tmp_path / "disk"
            (part / "whole").write_text("x")
        assert (tmp_path / name).is_symlink()
        assert os.listdir(tmp_path / target) == ["whole"]


def test_errors_of_a_folder_name_what_was_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*names: object) -> None:
        raise OSError(28, "No space left on device", str(names[0]))

    with pytest.raises(OSError, match=r"set/a/0\.png'$") as told, files.whole_folder(tmp_path / "set") as part:
        fails(part / "a" / "0.png")
    assert files.PART not in str(told.value)
    for name in ("rename", "chmod"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fails)
            with pytest.raises(OSError, match=r"set'$"), files.whole_folder(tmp_path / "set"):
                pass
    assert os.listdir(tmp_path) == []


def test_a_folder_that_was_taken_away_while_it_was_filled_is_told(tmp_path: Path) -> None:
    """Files make their folders: without a word the rest of a set would take the place of the whole."""

    def fill(part: Path) -> None:
        files.write_atomically(part / "a" / "0", b"x")
        shutil.rmtree(part)
        files.write_atomically(part / "a" / "1", b"x")

    with pytest.raises(StoreError, match="removed by somebody else"), files.whole_folder(tmp_path / "set") as part:
        fill(part)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_being_filled_says_so_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "HEARTBEAT", 0.02)
    with files.whole_folder(tmp_path / "set") as part:
        os.utime(part / files.ALIVE, (1, 1))
        begin = time.monotonic()
        while (part / files.ALIVE).stat().st_mtime == 1 and time.monotonic() - begin < 20:
            time.sleep(0.01)
        assert time.time() - (part / files.ALIVE).stat().st_mtime < 20
    assert os.listdir(tmp_path / "set") == []


@pytest.fixture
def ended() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("folder", [True, False])
def test_what_is_half_written_is_swept_where_its_process_is_known_to_be_gone(tmp_path: Path, ended: int, folder) -> None:
    here, old = files._host(), time.time() - 2 * files.ABANDONED
    kept, swept = [], []
    for name, pid, stamp in (
        (here, os.getpid(), time.time()),
        ("elsewhere", ended, time.time()),
        (socket.gethostname(), ended, time.time()),  # as an earlier version named them: perhaps of another container
        (f"{socket.gethostname()}.0123456789ab", ended, time.time()),  # another container of this name
        (here, ended, time.time()),
        ("elsewhere", ended, old),
        (f"{socket.gethostname()}.0123456789ab", ended, old),
    ):
        path = tmp_path / "maps" / f"{files.PART}{name}-{pid}-{stamp:.0f}"
        path.mkdir(parents=True) if folder else files.write_atomically(path, b"half")
        if folder:
            (path / "inside").write_text("half")
            os.utime(path / "inside", (stamp, stamp))
        os.utime(path, (stamp, stamp))
        (kept if stamp != old and (name, pid) != (here, ended) else swept).append(path)
    files.sweep(tmp_path)
    assert [path.exists() for path in kept] == [True] * 4
    assert [path.exists() for path in swept] == [False] * 3


def test_a_folder_whose_stamp_is_renewed_stays_however_old_the_rest(tmp_path: Path, ended: int) -> None:
    part = tmp_path / f"{files.PART}elsewhere-{ended}-abc"
    part.mkdir()
    (part / files.ALIVE).touch()
    os.utime(part, (1, 1))
    files.sweep(tmp_path)
    assert part.exists()


def test_the_next_folder_sweeps_what_was_left_beside_it_and_no_stranger(tmp_path: Path, ended: int) -> None:
    (tmp_path / f"{files.PART}{files._host()}-{ended}-abc" / "a").mkdir(parents=True)
    below = tmp_path / "other" / f"{files.PART}{files._host()}-{ended}-abc"
    below.mkdir(parents=True)
    stranger = tmp_path / f"{files.PART}download-1-abc"  # of some other program, and old
    stranger.touch()
    os.utime(stranger, (1, 1))
    with files.whole_folder(tmp_path / "set"):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted(["other", "set", stranger.name])
    assert below.exists()  # it may be anybody's folder, and large: what lies deeper is not looked at


def test_a_place_that_cannot_take_a_folder_is_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.check_place(tmp_path / "not" / "there" / "yet")
    with pytest.raises(StoreError, match="/proc is where a disk is mounted"):
        files.check_place(Path("/proc"))
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"below: .*file is a file, and no folder can be made in it"):
        files.check_place(tmp_path / "file" / "below")
    (tmp_path / "link").symlink_to("/proc")
    with pytest.raises(StoreError, match="link is where a disk is mounted"):
        files.check_place(tmp_path / "link")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StoreError, match=f"no folder can be written in {tmp_path}; give another folder"):
        files.check_place(tmp_path / "new" / "set")


NAMES = [
    *("cat", "tabby cat", "..", ".", "...", "a/b", "a%2Fb", "/etc", "-rf", " lead", "trail ", "dot."),
    *("CON", "con", "aux", "nul.txt", "COM1", "com1.tar.gz", "LPT9", "COM\u00b2", "prn .x", "conx", "com", "com10", "%43ON"),
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
    assert safe_name("Tench.2") == "Tench.2"
    assert safe_name("n01440764") == "n01440764"
    assert safe_name("console") == "console"
    assert not [
        name for name in safe if re.match(r"(con|prn|aux|nul|com[0-9\u00b9\u00b2\u00b3]|lpt\\d)\\s*(\\.|$)", name, re.I)
    ]


@pytest.mark.parametrize(
    "texts",
    [("Cat", "cat", "CAT"), ("caf\u00e9", "cafe\u0301", "Cafe\u0301"), ("\u212bngstrom", "\u00c5ngstrom"), ("AUX", "aux")],
)
def test_names_that_a_disk_takes_for_one_are_kept_apart(texts: tuple[str, ...]) -> None:
    names = apart({text: safe_name(text) for text in (*texts, "dog")})
    assert len({folded(name) for name in names.values()}) == len(texts) + 1
    assert names["dog"] == "dog"
    first = min(texts)
    assert names[first] == safe_name(first)
    assert names == apart({text: safe_name(text) for text in ("dog", *reversed(texts))})  # in any order


def test_files_are_looked_for_by_listing_each_folder_once(tmp_path: Path, monkeypatch) -> None:
    wanted = [tmp_path / folder / f"{i}.png" for folder in ("a", "b", "gone") for i in range(6)]
    for file in wanted[:12:2]:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    (tmp_path / "file").touch()
    listed: list[str] = []
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(str(path)) or listdir(path))
    monkeypatch.setattr(os, "stat", lambda *_, **__: pytest.fail("a file was asked for"))
    assert existing([*wanted, tmp_path / "file" / "x"]) == set(wanted[:12:2])
    assert len(listed) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell it")
def test_the_umask_is_asked_and_never_set(tmp_path: Path, monkeypatch) -> None:
    before = os.umask(0o027)
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("set"))
    try:
        write_atomically(tmp_path / "a", b"")
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_folder_that_goes_away_while_it_is_looked_at_is_not_swept_and_no_error(tmp_path: Path, monkeypatch) -> None:
    """Another launch finishes its set in this moment."""
    part = tmp_path / f"{files.PART}x.{files._host()}-{os.getpid()}-y"
    (part / "cat").mkdir(parents=True)
    real = os.scandir

    def vanish(path: object = "."):
        if Path(os.fspath(path)) == part:
            part.rename(tmp_path / "ipc1")
        return real(path)

    monkeypatch.setattr(os, "scandir", vanish)
    files._sweep([part])
    assert (tmp_path / "ipc1" / "cat").is_dir()
