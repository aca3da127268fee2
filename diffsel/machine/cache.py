"""Local copies of what came from far away, by the hash of their content, of bounded size: least recently used go first.

By content, so that a copy is never stale, and serves every run and data set.  Processes may share one folder.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SHARE = 0.05  # of the limit that a process may write before it looks how large the folder is


def cache_folder() -> Path:
    """DIFFSEL_CACHE, or `diffsel` in the user's cache folder."""
    place = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("DIFFSEL_CACHE") or Path(place) / "diffsel")


@dataclass
class Cache:
    """``limit`` in bytes; each process may go beyond it by SHARE.  0: nothing is kept."""

    folder: Path
    limit: int
    _unlooked: int = field(default=1 << 62, init=False)  # bytes written since the last look
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__ |= {**state, "_lock": threading.Lock()}

    def get(self, digest: str) -> bytes | None:
        """None where it is not there, or cannot be read."""
        file = self._file(digest)
        with contextlib.suppress(OSError):
            content = file.read_bytes()
            os.utime(file)
            return content
        return None

    def put(self, digest: str, content: bytes) -> None:
        """A cache that cannot be written (a full disk, another user's) costs nothing but time."""
        if len(content) > SHARE * self.limit:
            return
        file = self._file(digest)
        part = file.with_name(f".{digest}-{os.getpid()}-{threading.get_ident()}")
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(content)  # nothing is flushed to disk: who reads a copy compares its hash
            part.replace(file)
            with self._lock:
                self._unlooked += len(content)
                if self._unlooked > SHARE * self.limit:
                    self._unlooked = 0
                    self._shrink()

    def _file(self, digest: str) -> Path:
        return self.folder / digest[:2] / digest

    def _shrink(self) -> None:
        found = sorted(self._files())
        over = sum(size for _, size, _ in found) - self.limit
        for _, size, path in found:
            if over <= 0:
                break
            with contextlib.suppress(OSError):  # another process was first
                os.unlink(path)
            over -= size

    def _files(self) -> Iterator[tuple[int, int, str]]:
        """(last use, bytes, path) of every copy."""
        for folder in os.scandir(self.folder):
            for entry in os.scandir(folder.path):
                with contextlib.suppress(OSError):
                    stat = entry.stat()
                    yield stat.st_mtime_ns, stat.st_size, entry.path
