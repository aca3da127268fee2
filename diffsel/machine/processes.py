"""Who does what when several processes work on one run.  The only import of accelerate.

Results never travel between processes: each writes whole files, and the fixed list of units is shared by claims
(claims.py).  A unit whose file exists is done, so any number of processes, in any number of launches, started again any
number of times, end with the same run.
"""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ..settings.errors import ConfigError, StoreError
from .claims import STALE, Shared, claimed_at
from .files import existing

# What libraries say beside "CUDA out of memory", which accelerate knows: CUDA itself, cuBLAS, cuDNN, Apple's Metal.
NO_MEMORY = ("cuda error: out of memory", "alloc_failed", "mps backend out of memory")
WITHDRAWN = 10.0  # seconds that a file may appear after its claim was given back (disks of several machines)
SHARD = "DIFFSEL_SHARD"  # I/N in the environment: units are dealt to N shards that never meet
T = TypeVar("T")
Track = Callable[[Mapping[str, float], int], None]  # names and values, step


class Workers:
    """This process among its peers, as `accelerate launch`, torchrun or MPI tell it in the environment; else alone.

    No process group is opened: only a teacher's training needs one (``accelerator``).
    """

    def __init__(self) -> None:
        self.index = _told("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", default=0)
        self.count = _told("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", default=1)
        self.shard = shard_of(os.environ.get(SHARD, ""))
        self.local = _told("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", default=0)  # on this machine
        self.here = _told("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", default=1)  # of them

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def share(
        self,
        items: Sequence[T],
        file_of: Callable[[T], Path],
        finished: Callable[[T], object] = lambda item: None,
        patience: float | None = None,
        enough: Callable[[list[T]], bool] = lambda group: True,
        own: bool = False,
    ) -> Shared[T]:
        """Items that make a file each, one process at a time, among all processes of all launches (``with`` block).

        ``patience`` infinite: an item is taken over only from a process that is gone.  ``enough`` are the items of a group;
        among several processes groups become smaller towards the end, so that all end together.  ``own``: items of this shard,
        which needs no claims where it is one process.
        """
        claimed = not (own and self.shard and self.count == 1)

        def full(group: list[T], left: int) -> bool:
            return enough(group) or (self.count > 1 and len(group) * 2 * self.count >= left)

        return Shared(items, file_of, finished, len(items) * self.index // self.count, patience, full, claimed)

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """The items that are this shard's: all, where there are no shards."""
        return items[self.shard[0] :: self.shard[1]] if self.shard else items

    def all_made(self, items: Sequence[T], file_of: Callable[[T], Path], tell: Callable[[str], object]) -> bool:
        """Whether every file is there: as it is, but where other shards are still at work, which is told."""
        lacking = len(items) - len(existing(map(file_of, items))) if self.shard else 0
        if lacking:
            tell(f"{lacking} of {len(items)} units are still to be made by other shards")
        return not lacking

    def accelerator(self, precision: str, cpu: bool) -> Any:
        """accelerate's Accelerator, for a training that all processes share (one batch split among them)."""
        from accelerate import Accelerator
        from accelerate.utils import DataLoaderConfiguration

        mixed = "no" if precision in ("fp32", "tf32") else precision
        loading = DataLoaderConfiguration(split_batches=True, non_blocking=True)
        return Accelerator(cpu=cpu, mixed_precision=mixed, dataloader_config=loading)

    @staticmethod
    def check_tracker(name: str) -> None:
        """Raises StoreError where the library of a tracker is not installed."""
        if name == "none":
            return
        from accelerate.tracking import get_available_trackers

        if name not in map(str, get_available_trackers()):
            raise StoreError(f"compute.tracker = {name!r}: pip install {name}")

    def tracker(self, name: str, folder: Path, config: Mapping[str, Any]) -> Track:
        """What logs numbers to one of accelerate's trackers (tensorboard, wandb, trackio), on the main process.

        Raises StoreError where its library is not installed.
        """
        if name == "none" or not self.is_main:
            return lambda values, step: None
        self.check_tracker(name)
        plain = {key: value for key, value in config.items() if isinstance(value, int | float | str | bool)}
        # Not through an Accelerator: it would open a process group, which waits for the other processes, and fix the precision.
        if name == "tensorboard":
            return _tensorboard(folder / "diffsel", plain)
        library: Any = importlib.import_module(name)
        library.init(project="diffsel", config=plain)
        return lambda values, step: library.log(dict(values), step=step)

    @contextmanager
    def awaited(self, file: Path) -> Iterator[None]:
        """Within: the main process makes ``file`` (or a folder), for which others wait; a claim beside it tells: it lives."""
        if self.count == 1 or not self.is_main or file.exists():
            yield
            return
        with self.share([file], lambda file: file) as claimed:
            next(iter(claimed), None)
            yield

    def wait_for(self, files: Sequence[Path]) -> None:
        """Wait until other processes have written these files: no collective operation, so none that can time out.

        Raises StoreError where no other process is there, or where one that was seen at work on a file has gone.
        """
        missing, seen = list(files), dict[Path, tuple[int | None, float]]()
        while missing := [file for file in missing if not file.exists()]:
            if self.count == 1:
                raise StoreError(f"{missing[0]} is missing and no other process is there to write it")
            for file in missing:
                beat, now = claimed_at(file) or claimed_at(file.parent), time.monotonic()  # which may come as a whole folder
                if beat is not None or file in seen:
                    before, since = seen.setdefault(file, (beat, now))
                    if beat != before:
                        seen[file] = beat, now
                    elif now - since > (STALE if beat else WITHDRAWN):
                        raise StoreError(
                            f"{file} is missing, and the process that was at work on it has gone: see what it said"
                        )
            time.sleep(0.2)


def shard_of(text: str) -> tuple[int, int] | None:
    """(place, count) of a shard as I/N, from 0; None for no text.  Raises ConfigError.

    >>> shard_of("3/8")
    (3, 8)
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if text and not (found and int(found[1]) < int(found[2])):
        raise ConfigError(f"--shard {text!r}: expected I/N with I from 0 to N - 1, such as 0/8 for the first of 8")
    return (int(found[1]), int(found[2])) if found else None


@contextmanager
def as_shard(text: str | None) -> Iterator[None]:
    """Within: this process is that shard; without a text, what the environment says."""
    before = os.environ.get(SHARD)
    os.environ[SHARD] = before or "" if text is None else text
    try:
        yield
    finally:
        os.environ[SHARD] = before or ""


def _tensorboard(folder: Path, config: Mapping[str, Any]) -> Track:
    try:
        library = importlib.import_module("torch.utils.tensorboard")
    except ImportError:
        library = importlib.import_module("tensorboardX")
    writer: Any = library.SummaryWriter(str(folder))
    writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in config.items()))

    def track(values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)
        writer.flush()  # a process that is killed has lost nothing

    return track


def _told(*names: str, default: int) -> int:
    """The first of these variables of the environment that holds a number."""
    return next((int(value) for name in names if (value := os.environ.get(name, "")).isdecimal()), default)


def out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch may help; the device's cache is emptied if so."""
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    text = str(error).lower()
    found = should_reduce_batch_size(error) or any(words in text for words in NO_MEMORY)
    if found:
        clear_device_cache(garbage_collection=True)
    return found
