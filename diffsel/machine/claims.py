"""Who makes which file, among any number of processes and launches that share a folder, without talking to each other.

Whoever is about to make FILE first creates ``.FILE.claim`` beside it; creation is atomic, so one process wins, and the
others go on to the next file.  A claim is an economy and never a lock: two processes that make the same unit of a run
write the same bytes, and each write replaces the file whole.  So a claim is taken over when

- its process is gone (of this boot and process namespace: no such process; of others, or where that cannot be known: its
  time stamp, renewed every few seconds, stood still), or it is no file at all (a link, a pipe), which no process claimed,
- or (``patience``, where the bytes are the same) whoever waits for it has waited far longer than the longest file of its
  own took: its owner is slow or hangs.

It is replaced, never written into: what a link leads to stays as it is.  One that cannot be replaced (another user's, in a
folder that protects it) stays, and the file is made without a claim.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Generic, Self, TypeVar

import psutil

from ..settings.yamls import from_json
from .files import HEARTBEAT, existing, write_atomically
from .place import host, lives, mark

STALE = 60.0  # seconds without renewal, by the watcher's own clock, after which a claim's process counts as gone
PATIENCE = 3.0  # times the longest own item, and at least STALE seconds, that a process waits for a slow one
UNKNOWN = 600.0  # seconds that one waits which has made nothing itself, and so cannot tell what is slow
LOOK = 5.0  # seconds between looks at what the others have finished, at least
SHARE = 20  # times as long as a look takes one waits for the next: of 70,000 files on a network disk it takes seconds

T = TypeVar("T")
U = TypeVar("U")


class Shared(Generic[T]):
    """Items, of which each makes one file.  Iterating gives those to be made here, until every file is there; ``groups``
    gives several at a time.

    ``finished`` is told of each item that was there already or that another process made.  Use it in a ``with`` block:
    claims are renewed by a thread, and given back at its end.  ``claimed`` false: nobody else makes these items, so nothing is
    claimed, and no folder is looked at.
    """

    def __init__(
        self,
        items: Sequence[T],
        file_of: Callable[[T], Path],
        finished: Callable[[T], object] = lambda item: None,
        first: int = 0,
        patience: float | None = None,
        enough: Callable[[list[T], int], bool] = lambda group, left: True,
        claimed: bool = True,
    ):
        self._enough, self._claimed = enough, claimed
        turned = [*items[first:], *items[:first]]  # processes begin at different places and so seldom meet
        self._open = {file_of(item): item for item in turned}
        self._finished = finished
        self._mine: dict[Path, float] = {}  # file -> when it was begun here, monotonic seconds
        self._watched: dict[Path, tuple[int, float]] = {}  # claim -> its time stamp, and since when it stands still
        self._patience = PATIENCE if patience is None else patience
        self._longest = 0.0
        self._looked, self._between = -math.inf, LOOK
        self._troubled = (0.0, -math.inf)  # since when a network disk has lost its handles, and when it last did
        self._stop = threading.Event()
        self._beat = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Self:
        self._beat.start()
        return self

    def give_up(self) -> None:
        """Ends the waiting for others: whoever iterates has stopped."""
        self._stop.set()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._beat.join()
        for file in list(self._mine):
            self._drop(file)

    def __iter__(self) -> Iterator[T]:
        return chain.from_iterable(self._groups(lambda group, left: True))

    def groups(self) -> Iterator[list[T]]:
        """Items to be made here together: as many as are ``enough(items, how many files are missing)``, or all there are."""
        return self._groups(self._enough)

    def _groups(self, enough: Callable[[list[T], int], bool]) -> Iterator[list[T]]:
        waiting_since = time.monotonic()
        queue = deque(self._open)
        while self._open:
            self._settle()
            group: list[T] = []
            while queue and not (group and enough(group, len(self._open))):
                file = queue.popleft()
                if file in self._open and file not in self._mine and self._take(file, waiting_since):
                    waiting_since = time.monotonic()
                    group.append(self._open[file])
            if group:
                yield group
            elif self._open:
                if self._mine.keys() >= self._open.keys():
                    return  # what is left is in work here: the caller reads ahead
                if self._stop.wait(0.1):
                    return
                self._between = min(self._between, 0.5)  # nothing else to do: look often
                queue.extend(file for file in self._open if file not in self._mine)

    def _settle(self) -> None:
        """Drop what is finished: what was made here at once, what others made at a look every few seconds."""
        now = time.monotonic()
        for file, begun in list(self._mine.items()):
            if self._look(file.exists, False):
                self._longest = max(self._longest, now - begun)
                del self._open[file]
                self._drop(file)
        if not self._claimed or now - self._looked < self._between:
            return
        for folder in {file.parent for file in self._open}:
            there: set[str] = self._look(partial(_names, folder), set())
            for file in [file for file in self._open if file.parent == folder and file.name in there]:
                if file not in self._mine:
                    if _claim(file).name in there:  # its process ended, or is ending, between the file and its claim
                        _remove(_claim(file))
                    self._finished(self._open.pop(file))
        self._looked = time.monotonic()
        self._between = max(LOOK, SHARE * (self._looked - now))

    def _look(self, look: Callable[..., U], otherwise: U) -> U:
        """What ``look`` tells.  A network disk says ESTALE of what another machine replaces in this moment: ``otherwise`` then,
        for the next look tells more.  Raises OSError where it goes on saying so."""
        try:
            return look()
        except OSError as error:
            now = time.monotonic()
            first, last = self._troubled
            self._troubled = first if now - last < 2 * LOOK else now, now
            if error.errno != errno.ESTALE or now - self._troubled[0] > STALE:
                raise
            return otherwise

    # ---- one claim -----------------------------------------------------------------------------------------------

    def _take(self, file: Path, waiting_since: float) -> bool:
        if self._look(file.exists, False):  # made since the last look
            self._finished(self._open.pop(file))
            return False
        if not self._claimed:
            self._mine[file] = time.monotonic()
            return True
        claim, me = _claim(file), json.dumps(_me())
        try:
            if not self._look(partial(_create, claim, me), False):
                return False
        except FileExistsError:
            waited, bearable = time.monotonic() - waiting_since, max(STALE, self._patience * self._longest)
            if not self._gone(claim) and waited < (bearable if self._longest else self._patience * UNKNOWN):
                return False
            with contextlib.suppress(OSError):
                write_atomically(claim, me.encode())
        self._mine[file] = time.monotonic()
        if self._look(file.exists, False):  # made, and its claim given back, between the first look and this claim
            self._drop(file)
            self._finished(self._open.pop(file))
            return False
        return True

    def _gone(self, claim: Path) -> bool:
        """Whether the process that claimed is no more."""
        try:
            found = self._look(partial(_seen, claim), None)
        except FileNotFoundError:  # given back in this moment
            return False
        if found is None:
            return False
        mode, stamp, text = found
        if not stat.S_ISREG(mode):
            return True
        with contextlib.suppress(ValueError, KeyError, TypeError):  # being written in this moment; another user's; damaged
            owner = from_json(text)
            if (owner["host"], owner.get("place")) == (host(), mark()) and not lives(owner["pid"], owner["born"]):
                return True
        before, since = self._watched.setdefault(claim, (stamp, time.monotonic()))
        if stamp != before:
            self._watched[claim] = (stamp, time.monotonic())
        return stamp == before and time.monotonic() - since > STALE

    def _drop(self, file: Path) -> None:
        del self._mine[file]
        _remove(_claim(file))

    def _renew(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            for file in list(self._mine):
                with contextlib.suppress(OSError):  # taken over by one that lost patience
                    os.utime(_claim(file), follow_symlinks=False)


def ahead(items: Shared[T], load: Callable[[list[T]], U]) -> Iterator[tuple[list[T], U]]:
    """Each group of items with what ``load`` makes of it, in a thread and one group ahead of whoever iterates."""
    waiting = items.groups()

    def step() -> tuple[list[T], U] | None:
        return next(((group, load(group)) for group in waiting), None)

    with ThreadPoolExecutor(1) as pool:
        try:
            future = pool.submit(step)
            while (found := future.result()) is not None:
                future = pool.submit(step)
                yield found
        finally:
            items.give_up()  # after an error the step that is under way may be waiting for another process


def give_back(file: Path) -> None:
    """The claim of a file that is there, while others of its group are still in work."""
    _remove(_claim(file))


def claimed_at(file: Path) -> int | None:
    """When whoever makes ``file`` last renewed its claim, nanoseconds on its own clock; None: nobody claims it."""
    with contextlib.suppress(OSError):
        return _seen(_claim(file))[1]
    return None


def forget(files: Iterable[Path]) -> None:
    """Removes the claims beside files that are there: whoever made them was killed between the two."""
    for claim in existing(map(_claim, files)):
        _remove(claim)


def _seen(claim: Path) -> tuple[int, int, str]:
    """Mode, time stamp (nanoseconds) and text of a claim; a link is not followed.

    It is opened, and asked then: only of a file that it opens does a network disk ask the server how old it is.
    """
    found, text = claim.lstat(), ""
    if stat.S_ISREG(found.st_mode):
        with contextlib.suppress(PermissionError), claim.open(errors="replace") as stream:  # another user's tells nothing more
            found, text = os.fstat(stream.fileno()), stream.read()
    return found.st_mode, found.st_mtime_ns, text


def _claim(file: Path) -> Path:
    return file.with_name(f".{file.name}.claim")


def _names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _create(claim: Path, text: str) -> bool:
    """Raises FileExistsError where it is there: a link, wherever it leads, is not followed."""
    claim.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(claim, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
    except OSError as error:  # a full disk: a claim that tells nothing would be waited for
        _remove(claim)
        raise OSError(error.errno, error.strerror, str(claim)) from None
    return True


def _remove(claim: Path) -> None:
    """Another user's may stay, and so may a folder that somebody put there."""
    with contextlib.suppress(OSError):
        claim.unlink()


def _me() -> dict[str, object]:
    return {"host": host(), "place": mark(), "pid": os.getpid(), "born": psutil.Process().create_time()}
