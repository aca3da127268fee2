"""Who does what when several processes work on one run.  The only import of accelerate.

Results never travel between processes: each writes whole files, and the fixed list of units is dealt out by number.
A unit whose file exists is done, so any number of processes, started again any number of times, end with the same run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from .store import StoreError

T = TypeVar("T")


class Workers:
    """This process among its peers (one process unless started by ``accelerate launch``)."""

    def __init__(self, cpu: bool = False):
        from accelerate import PartialState

        self._state = PartialState(cpu=cpu)
        self._cpu = cpu

    @cached_property
    def device(self) -> str:
        return str(self._state.device)

    @property
    def count(self) -> int:
        return int(self._state.num_processes)

    @property
    def is_main(self) -> bool:
        return bool(self._state.is_main_process)

    def mine(self, items: Sequence[T]) -> list[T]:
        """Every ``count``-th item."""
        return list(items[self._state.process_index :: self.count])

    def accelerator(self, precision: str) -> Any:
        """accelerate's Accelerator, for a training that all processes share (one batch split among them)."""
        from accelerate import Accelerator
        from accelerate.utils import DataLoaderConfiguration

        mixed = "no" if precision == "fp32" else precision
        return Accelerator(cpu=self._cpu, mixed_precision=mixed, dataloader_config=DataLoaderConfiguration(split_batches=True))

    def wait_for(self, files: Sequence[Path]) -> None:
        """Wait until other processes have written these files: no collective operation, so none that can time out."""
        missing = list(files)
        while missing := [file for file in missing if not file.exists()]:
            if self.count == 1:
                raise StoreError(f"{missing[0]} is missing and no other process is there to write it")
            time.sleep(0.2)
