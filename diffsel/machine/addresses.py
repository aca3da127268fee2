"""Files behind addresses (s3://, gs://, hf://, memory:// ...): listed, read, written whole.  The only import of fsspec."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ..settings.errors import ConfigError, DataError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

WHOLE = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory")  # where an object appears whole, or not at all
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # protocol -> extra that brings its library


def is_address(text: str) -> bool:
    """Whether this names a place that fsspec knows, and no path.

    >>> is_address("s3://bucket/photos"), is_address("photos/train"), is_address("C:/photos")
    (True, False, False)
    """
    return bool(re.match(r"[a-z][a-z0-9+.-]+:/", text))


@dataclass(frozen=True)
class Store:
    """All files below an address, or below a local folder; names are seen from there."""

    root: str

    @property
    def _fs(self) -> AbstractFileSystem:
        return _opened(self.root, os.getpid())[0]  # what threads of a file system do does not outlive a fork

    def _path(self, name: str) -> str:
        return f"{_opened(self.root, os.getpid())[1]}/{name}"

    def files(self) -> list[str]:
        """Every file, however deep.  Raises DataError where there is none, or the place cannot be looked into."""
        top = self._path("")
        try:
            found = [str(path) for path in self._fs.find(top)]
        except Exception as error:  # each file system has its own
            raise DataError(f"{self.root}: {_told(error)}") from None
        if not found:
            raise DataError(f"{self.root}: nothing lies there")
        return [path[len(top) :] for path in sorted(found)]

    def read(self, name: str, start: int | None = None, length: int = 0) -> bytes:
        """A file, or ``length`` bytes of it.  Raises OSError."""
        end = None if start is None else start + length
        try:
            return bytes(self._fs.cat_file(self._path(name), start=start, end=end))
        except OSError:
            raise
        except Exception as error:
            raise OSError(errno.EIO, _told(error), f"{self.root}/{name}") from None

    def open(self, name: str) -> IO[bytes]:
        """To be read from front to end.  Raises OSError."""
        return self._fs.open(self._path(name), "rb")

    def write(self, name: str, content: bytes) -> None:
        """One whole object.  Raises OSError."""
        self._fs.pipe_file(self._path(name), content)

    def upload(self, folder: Path) -> None:
        """All files of a local folder, each whole."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.write(file.relative_to(folder).as_posix(), file.read_bytes())

    def exists(self, name: str) -> bool:
        return bool(self._fs.exists(self._path(name)))


@cache
def _opened(root: str, process: int) -> tuple[AbstractFileSystem, str]:
    """The file system of an address, and the path in it.  Raises DataError where its library is missing."""
    from fsspec.core import url_to_fs

    protocol = root.partition(":")[0]
    try:
        system, path = url_to_fs(root, use_listings_cache=False) if is_address(root) else url_to_fs(f"file://{root}")
    except (ImportError, ValueError) as error:
        extra = f"; pip install 'diffsel[{EXTRAS[protocol]}]'" if protocol in EXTRAS else ""
        raise DataError(f"{root}: {_told(error)}{extra}") from None
    return system, str(path).rstrip("/")


def check_writable(address: str) -> None:
    """Raises ConfigError where a file could be seen half-written."""
    if (protocol := address.partition(":")[0]) not in WHOLE:
        raise ConfigError(f"{address}: {protocol} may show a file that is half-written; write to a local folder, and copy it")


def refuse_address(place: Path | str) -> None:
    """Raises ConfigError for an address where a folder is to be worked in."""
    if is_address(str(place)):
        raise ConfigError(
            f"{place}: work is shared by claims and renamed folders, which an address does not offer; give a folder of a disk, "
            "and copy it, or `diffsel export` it there"
        )


def check_outputs(words: Sequence[str]) -> None:
    """Refuse a command's --out that is an address; `export` alone writes there.  Raises ConfigError."""
    pairs = [*pairwise(words), *((flag, value) for flag, _, value in (word.partition("=") for word in words))]
    for flag, value in pairs:
        if flag == "--out" and words[0] != "export":
            refuse_address(value)


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
