"""Where a process runs, and whether another one lives.  A process number means one process only within one boot of one
machine, and there within one namespace: containers and machines often share a name, and the numbers of their processes."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import uuid
from functools import cache
from pathlib import Path

import psutil


def host() -> str:
    return socket.gethostname()


@cache
def mark() -> str:
    """Twelve hex digits: the same for processes that see each other's numbers, another one for any other.

    A process that cannot know has one of its own, so that no other process judges it by its number.
    """
    try:
        if sys.platform == "linux":
            if Path("/proc/self").readlink().name != str(os.getpid()):  # /proc is of another namespace
                raise OSError
            where = [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), str(Path("/proc/self/ns/pid").readlink())]
        else:
            where = [str(uuid.getnode()), host()]
    except OSError:
        where = [uuid.uuid4().hex]
    return hashlib.sha256("/".join(where).encode()).hexdigest()[:12]


def runs(pid: int) -> bool:
    """Whether there is a process of this number here, whoever's it is."""
    if os.name != "posix":
        return psutil.pid_exists(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's; no number of a process
        return True
    return True


def lives(pid: int, born: float) -> bool:
    """Whether the process of this number and time of birth has not ended.

    A number is given to others later; the time of birth is not.  A zombie has ended, whoever may still ask how.
    """
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - born) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True
    except psutil.NoSuchProcess:  # or one that only its user sees
        return runs(pid)
