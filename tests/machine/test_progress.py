"""What is told while one waits: lines in log files, bars in terminals."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import pytest

from diffsel.machine.files import whole_folder, write_atomically
from diffsel.machine.progress import be_verbose, progress


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The bars' time, as the test sets it."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def test_a_log_file_gets_whole_lines_now_and_then(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    monkeypatch.setattr("sys.stderr", log := io.StringIO())
    with progress()(total=100, desc="scoring images", unit="image") as bar:
        for _ in range(100):
            clock[0] += 1
            bar.update()
            bar.set_postfix(loss=1)  # which asks for a line each time
    lines = log.getvalue().splitlines()
    assert [int(n) for n in re.findall(r"^scoring images: (\d+) of 100", log.getvalue(), re.M)] == [0, 30, 60, 90, 100]
    assert len(lines) == 5
    assert lines[0] == "scoring images: 0 of 100"  # how long it takes is not known yet
    assert "1.00 image/s, loss=1" in lines[-1]
    assert not set(log.getvalue()) & set("\r\x1b")
    with progress()(total=2, desc="reading cat1s/dog", unit="class") as bar:
        clock[0] += 300
        bar.update()
    assert log.getvalue().endswith("reading cat1s/dog: 1 of 2, 05:00 passed, 05:00 to go, 300.00 s/class\n")


def test_a_terminal_gets_a_bar_unless_it_cannot_move_its_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    for term, moves in (("xterm", True), ("dumb", False)):
        monkeypatch.setenv("TERM", term)
        monkeypatch.setattr("sys.stderr", screen := Screen())
        for _ in progress()(range(3), desc="reading"):
            pass
        assert ("\r" in screen.getvalue()) == moves
        assert "\x1b[3" not in screen.getvalue()  # no colours
    monkeypatch.setattr("sys.stderr", screen := Screen())
    list(progress(hidden=True)(range(3)))
    assert screen.getvalue() == ""


def test_verbose_tells_what_is_written_above_the_bars(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    logger = logging.getLogger("diffsel")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logging.WARNING)
    monkeypatch.setattr("sys.stderr", log := io.StringIO())
    monkeypatch.setenv("RANK", "1")
    write_atomically(tmp_path / "before", b"")
    be_verbose()
    write_atomically(tmp_path / "a\x1b[31m", b"four")
    with whole_folder(tmp_path / "set") as part:
        write_atomically(part / "cat" / "0.png", b"")
    one, two = log.getvalue().splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d \[1\] wrote .*/a\\x1b\[31m, 4 bytes", one)
    assert two.endswith(f"wrote {tmp_path / 'set'}")  # by the name that it has now
