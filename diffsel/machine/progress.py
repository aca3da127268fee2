"""Progress bars: on the main process only, and not where nobody looks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from tqdm.auto import tqdm  # a widget in notebooks that have ipywidgets

from .terminal import plain_stderr, shown

Progress = Callable[..., tqdm]  # makes a progress bar: (total=, desc=, unit=)
quiet: Progress = partial(tqdm, disable=True)


class Bar(tqdm):
    """A bar whose words, such as the name of a class, are shown as they are read."""

    def __str__(self) -> str:
        return shown(super().__str__())


def on_main() -> bool:
    """Whether this is the main process of its launch, as far as the environment tells."""
    return os.environ.get("RANK", "0") == "0"


def progress(hidden: bool = False) -> Progress:
    """Bars on stderr; ``hidden`` for none."""
    hidden = hidden or not on_main()
    every = 0.2 if sys.stderr.isatty() else 30  # seconds; a log file wants few lines
    return partial(Bar, disable=hidden, dynamic_ncols=True, mininterval=every, file=plain_stderr())


def bars(*given: Any, **told: Any) -> tqdm:
    """A ``Progress`` that shows its bars, wherever stderr is then."""
    return progress()(*given, **told)
