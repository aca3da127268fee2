"""Processes that help: one thread each, and none is left over."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.context import ForkProcess
from pathlib import Path

import psutil
import pytest
import torch
from conftest import forks, until

from diffsel.machine.helpers import helped

ORPHAN = """
import sys, time
from pathlib import Path
from diffsel.machine.helpers import helped

def job():
    Path(sys.argv[1]).write_text(str(__import__("os").getpid()))
    time.sleep(600)

with helped(job, 1):
    time.sleep(600)
"""


@forks
def test_helpers_have_one_thread_and_end_with_the_block(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)

    def job() -> None:
        (tmp_path / str(os.getpid())).write_text(str(torch.get_num_threads()))

    try:
        with helped(job, 2):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    said = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert set(said.values()) == {"1"}
    assert len(said) == 2
    assert str(os.getpid()) not in said
    with pytest.raises(KeyError), helped(lambda: time.sleep(600), 1):
        raise KeyError
    assert not [child for child in multiprocessing.active_children() if isinstance(child, ForkProcess)]


@forks
def test_helpers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    said = tmp_path / "pid"
    process = subprocess.Popen([sys.executable, "-c", ORPHAN, str(said)])
    try:
        until(lambda: said.exists() and said.read_text())
        helper = psutil.Process(int(said.read_text()))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    until(lambda: not runs(helper))


def runs(process: psutil.Process) -> bool:
    """A zombie, which whoever adopted it has not asked about, does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@forks
def test_no_memory_for_a_helper_means_fewer_helpers(tmp_path: Path, monkeypatch) -> None:
    real, begun = ForkProcess.start, []

    def start(self) -> None:
        begun.append(self)
        if len(begun) == 2:
            raise OSError("Cannot allocate memory")
        real(self)

    monkeypatch.setattr(ForkProcess, "start", start)
    with helped(lambda: (tmp_path / str(os.getpid())).touch(), 3):
        pass
    assert len(list(tmp_path.iterdir())) == 1
