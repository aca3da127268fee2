"""Where process numbers mean the same, and whether a process lives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from diffsel.machine import place
from diffsel.machine.place import lives, mark, runs

TOLD = [sys.executable, "-c", "from diffsel.machine.place import mark; print(mark())"]


def told(*before: str) -> str:
    return subprocess.run([*before, *TOLD], capture_output=True, check=True, text=True).stdout.strip()


def test_processes_that_see_each_other_have_one_mark() -> None:
    assert told() == mark()


def test_another_process_namespace_has_another_mark() -> None:
    apart = ("unshare", "--pid", "--fork")
    if subprocess.run([*apart, "--mount-proc", "true"], capture_output=True).returncode:
        pytest.skip("no namespaces here")
    assert told(*apart, "--mount-proc") != mark()
    assert len({told(*apart), told(*apart), mark()}) == 3  # its /proc is that of another one: nothing can be known


def test_where_nothing_can_be_known_every_process_is_alone(monkeypatch) -> None:
    def hidden(self: Path, **_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", hidden)
    assert len({place.mark.__wrapped__() for _ in range(3)}) == 3


def test_a_process_lives_until_it_ends_whoever_has_its_number_then(monkeypatch) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    born = psutil.Process(child.pid).create_time()
    assert runs(child.pid)
    assert lives(child.pid, born)
    assert not lives(child.pid, born - 60)
    child.kill()
    child.communicate()
    assert not runs(child.pid)
    assert not lives(child.pid, born)


def test_a_process_that_is_hidden_is_not_called_dead(monkeypatch) -> None:
    """Another user's, where /proc shows each user his own only."""

    def hidden(pid: int) -> None:
        raise psutil.NoSuchProcess(pid)

    monkeypatch.setattr(psutil, "Process", hidden)
    assert lives(os.getpid(), 1.0)
    monkeypatch.setattr(os, "kill", lambda pid, signal: (_ for _ in ()).throw(PermissionError(1, "not permitted")))
    assert runs(1)
