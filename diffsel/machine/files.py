"""Files and folders that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psutil

PART = ".part-"  # beginning of the names of what is being written
APPEARED = (errno.EEXIST, errno.ENOTEMPTY)  # a folder that another process finished first


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside ``path``, flush to disk, rename: whoever sees the file sees all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_part())
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(name)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None  # name the file that is wanted
        raise


def write_new(path: Path, content: bytes) -> bool:
    """As ``write_atomically``, but a file that is there already stays as it is: False then."""
    part = path.with_name(f"{_part()}new")
    write_atomically(part, content)
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return True


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; it takes ``path``'s place, all at once, when the block ends well, and vanishes when it does not.

    Raises OSError with an ``errno`` of APPEARED where another process was first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=path.parent, prefix=_part()))
    try:
        os.chmod(part, 0o777 & ~_umask())
        yield part
        os.rename(part, path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def sweep(folder: Path) -> None:
    """Remove what processes of this host that are no more left half-written in ``folder`` and below it."""
    for path in folder.rglob(f"{PART}*"):
        name = re.fullmatch(rf"{PART}(.*)-(\d+)-[^-]+", path.name)
        if name and name[1] == _host() and not psutil.pid_exists(int(name[2])):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _part() -> str:
    return f"{PART}{_host()}-{os.getpid()}-"


def _host() -> str:
    return re.sub(r"[^\w.-]", "", socket.gethostname())[:60]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def safe_name(text: str) -> str:
    """A class name as one harmless file name: other than letters, digits, ``_ - .`` and spaces are percent-encoded.

    Different texts give different names; a text that is too long ends in a hash of itself.
    """
    name = "".join(c if c.isalnum() or c in "_-. " else quote(c, safe="") for c in text)
    if not name or name[0] in ".- " or name[-1] in ". ":
        name = "".join(f"%{b:02X}" for b in text[:1].encode()) + "".join(
            c if c.isalnum() or c in "_-" else quote(c, safe="") if c != "." else "%2E" for c in text[1:]
        )
    if len(name.encode()) > 120:
        name = name.encode()[:100].decode("utf-8", "ignore") + "~" + hashlib.sha256(text.encode()).hexdigest()[:12]
    return name or "%"


def named(path: Path) -> Path:
    """The same folder by a path that ends in its name, as `.` and `..` do not."""
    return path.resolve() if path.name in ("", "..") else path


def beside(path: Path, what: str) -> Path:
    """Where a folder's ``what`` is written by default: FOLDER-WHAT."""
    return named(path).with_name(f"{named(path).name}-{what}")
