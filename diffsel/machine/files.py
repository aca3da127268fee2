"""Files and folders that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import tempfile
import threading
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

from ..settings.errors import ConfigError, StoreError, Withheld
from .place import host, mark, runs
from .threads import threaded

PART = ".part-"  # beginning of the names of what is being written
NAMED = re.compile(rf"{re.escape(PART)}(?P<place>.*)-(?P<pid>\d+)-[^-]+")
ALIVE = f"{PART}alive"  # in a folder that is being filled: its time stamp is renewed
FLUSHING = 16  # threads that wait for the disk
HEARTBEAT = 5.0  # seconds between renewals
ABANDONED = 3600.0  # seconds without renewal after which the process counts as gone, where nothing else can be known
APPEARED = (errno.EEXIST, errno.ENOTEMPTY)  # a folder that another process finished first
RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])(?=\s*(\.|$))", re.I)  # no file of Windows is called so

LOG = logging.getLogger(__name__)
AsPath = str | os.PathLike[str]  # what public functions take for a file or folder


def write_atomically(path: Path, content: bytes, flush: bool = True) -> None:
    """Write beside ``path``, flush to disk, rename: whoever sees the file sees all of it.

    Without ``flush`` for the many files of a ``whole_folder``, which flushes them all at its end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_part())
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            if flush:
                os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
        if not any(part.startswith(PART) for part in path.parts):  # of a folder that is being filled only the whole is told
            LOG.info("wrote %s, %s bytes", path, f"{len(content):,}")
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(name)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None  # name the file that is wanted
        raise


def check_openable(file: Path) -> None:
    """Raises Withheld for a file that cannot be opened now: some libraries say of it that it is not there, or damaged."""
    try:
        if file.is_file():
            file.open("rb").close()
    except OSError as error:
        raise Withheld.of(file, error) from None


def existing(files: Iterable[Path]) -> set[Path]:
    """Those that exist.  Each folder is listed once: a network disk takes as long for one file as for a listing."""
    by_folder: dict[Path, dict[str, Path]] = {}
    for file in files:
        by_folder.setdefault(file.parent, {})[file.name] = file
    found: set[Path] = set()
    for folder, names in by_folder.items():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found.update(names[name] for name in os.listdir(folder) if name in names)
    return found


def write_new(path: Path, content: bytes) -> bool:
    """As ``write_atomically``, but a file that is there already stays as it is: False then."""
    part = path.with_name(f"{_part()}new")
    write_atomically(part, content)
    try:
        os.link(part, path)
        LOG.info("wrote %s", path)
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

    Where ``path`` is a link, the folder that it leads to is made.  What dead processes left beside it is removed.

    Raises OSError with an ``errno`` of APPEARED where another process was first, StoreError where the folder was taken away
    while it was filled.
    """
    target, part = Path(os.path.realpath(path)), None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(found for found in target.parent.glob(f"{PART}*") if _marked(found))
        part = Path(tempfile.mkdtemp(dir=target.parent, prefix=_part()))
        os.chmod(part, 0o777 & ~_umask())
        with _renewed(part / ALIVE):
            yield part
            for _ in threaded((file for file in part.rglob("*") if file.is_file()), _flush, FLUSHING):
                pass
        os.rename(part, target)
        LOG.info("wrote %s", path)
    except BaseException as error:
        if part:
            shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError) and error.filename:  # name what is wanted
            wanted = str(error.filename).replace(str(part), str(path))
            raise OSError(error.errno, error.strerror, str(path) if PART in wanted else wanted) from None
        raise


def _flush(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


@contextlib.contextmanager
def _renewed(stamp: Path) -> Iterator[None]:
    """A file whose time is now, again and again; it is gone after the block.

    Raises StoreError where somebody else removed it: whatever lay beside it is not whole.
    """
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                os.utime(stamp)

    stamp.touch()
    beat = threading.Thread(target=renew, daemon=True)
    beat.start()
    try:
        yield
        if not stamp.exists():
            raise StoreError(f"{stamp.parent}: removed by somebody else while it was being filled; start again")
        stamp.unlink()
    finally:
        ended.set()
        beat.join()


def sweep(folder: Path) -> None:
    """Remove what processes that are no more left half-written in ``folder`` and below it.

    Known are processes of this very boot and process namespace; of others it counts how long nothing was written.
    """
    _sweep(found for found in _below(folder) if found.name.startswith(PART))


def _below(folder: Path) -> Iterator[Path]:
    """All files and folders; one that goes away in this moment is passed over, where rglob would fail."""
    for base, folders, names in os.walk(folder):
        yield from (Path(base, name) for name in (*folders, *names))


def _sweep(parts: Iterable[Path]) -> None:
    for path in list(parts):
        if (name := NAMED.fullmatch(path.name)) and _abandoned(path, name["place"], int(name["pid"])):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _marked(part: Path) -> bool:
    """Whether its name is surely one of ours, and not of some other program's."""
    return bool(re.fullmatch(rf"{re.escape(PART)}.*\.[0-9a-f]{{12}}-\d+-[^-]+", part.name))


def _abandoned(part: Path, place: str, pid: int) -> bool:
    if place == _host() and not runs(pid):
        return True
    stamps = [0.0]
    for each in (part, *_below(part)):
        with contextlib.suppress(OSError):  # gone in this moment
            stamps.append(each.lstat().st_mtime)
    return time.time() - max(stamps) > ABANDONED


def check_place(path: Path) -> None:
    """Raises StoreError where ``whole_folder`` cannot put a folder, as far as it can be told before there is one."""
    target = Path(os.path.realpath(path))
    if os.path.ismount(target):
        raise StoreError(f"{path} is where a disk is mounted, which cannot be replaced at once; give a folder inside it")
    above = next(each for each in target.parents if each.exists())
    if not above.is_dir():
        raise StoreError(f"{path}: {above} is a file, and no folder can be made in it; give another folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise StoreError(f"{path}: no folder can be written in {above}; give another folder")


def check_words(words: Iterable[str]) -> None:
    """Raises ConfigError for an argument that is no text, such as a path of another encoding: it could be written, but
    libraries that read tensors and tables cannot open it; and for an empty one where a place is asked, which would be here."""
    for before, word in pairwise(["", *words]):
        if not word and not re.match("--(prompt|null|source|only|classes)", before):
            raise ConfigError("an argument is empty (a variable that is not set?); give a folder, or . for this one")
        try:
            word.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{word!a} is not valid UTF-8; give a path of another name") from None


def _part() -> str:
    return f"{PART}{_host()}-{os.getpid()}-"


def _host() -> str:
    """Where a process number means one process: the host's name, for people, and a mark of its boot and namespace."""
    name = re.sub(r"[^\w.-]", "", host())[:60]
    return f"{name}.{mark()}"


def _umask() -> int:
    """A system that does not tell it (Linux does) must be given another one for a moment, a strict one: threads see it."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("Umask:")), 8)
    mask = os.umask(0o077)
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
    if RESERVED.match(name):
        name = f"%{ord(name[0]):02X}{name[1:]}"
    if len(name.encode()) > 120:
        name = name.encode()[:100].decode("utf-8", "ignore") + _tail(text)
    return name or "%"


def apart(names: Mapping[str, str]) -> dict[str, str]:
    """File names of texts, such that no disk takes two for one: where they differ in upper and lower case alone, or in the
    Unicode form of a letter, all but the first in order end in a hash of their text."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for text in sorted(names):
        found[text] = names[text] if folded(names[text]) not in taken else names[text] + _tail(text)
        taken.add(folded(found[text]))
    return {text: found[text] for text in names}


def folded(name: str) -> str:
    """What a disk compares that ignores case and Unicode forms (macOS, Windows)."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def _tail(text: str) -> str:
    return "~" + hashlib.sha256(text.encode()).hexdigest()[:12]


def named(path: Path) -> Path:
    """The same folder by a path that ends in its name, as `.` and `..` do not."""
    return path.resolve() if path.name in ("", "..") else path


def beside(path: Path, what: str) -> Path:
    """Where a folder's ``what`` is written by default: FOLDER-WHAT."""
    return named(path).with_name(f"{named(path).name}-{what}")
