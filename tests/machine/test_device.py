"""Freed memory stays: a loop that allocates and frees large tensors stops asking the system for pages."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, torch
from diffsel.machine.device import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)  # 64 MiB: more than glibc ever keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

asked = min(faults() for _ in range(6))
assert keep_freed_memory()
print(asked, min(faults() for _ in range(6)))  # the first few rounds: the heap grows
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left as they are")
def test_memory_once_touched_is_not_asked_for_again() -> None:
    out = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout
    asked, kept = map(int, out.split())
    assert asked > 50  # huge pages of 2 MiB at most: 32 a tensor
    assert kept < asked / 20
