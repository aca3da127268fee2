"""Memory that a process frees and soon asks for again stays with the process.

Every step of a training allocates and frees tensors of many megabytes.  glibc gives such blocks back to the system at
once, and gets them again page by page, each filled with zeros: on a CPU that took a quarter to a half of a step.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST = 2**30  # bytes; larger blocks still come from the system, and go back to it


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep what is freed (mallopt(3)), in this process from now on; whether it did.

    Without effect on results.  Other allocators (macOS, Windows, musl) are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
