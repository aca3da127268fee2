"""Progress: bars in a terminal and in notebooks, plain lines elsewhere; and what ``--verbose`` tells."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from tqdm import tqdm

from .terminal import plain_stderr, shown

Progress = Callable[..., tqdm]  # makes a progress bar: (total=, desc=, unit=)
quiet: Progress = partial(tqdm, disable=True)
BEGUN = "{desc}: {n_fmt} of {total_fmt}"
LINE = BEGUN + ", {elapsed} passed, {remaining} to go, {rate_fmt}{postfix}"
RATE = re.compile(r"([\d?])([a-z]+/[a-z]+)(?=[],]|$)")  # 4.05image/s
EVERY = 30  # seconds between lines


class Bar(tqdm):
    """A bar whose words, such as the name of a class, are shown as they are read."""

    def __str__(self) -> str:
        return RATE.sub(r"\1 \2", shown(super().__str__()))


class Lines(Bar):
    """For log files: whole lines, the first and the last and now and then one between, and nothing that moves a cursor."""

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        return lambda text: print(text, file=file, flush=True)

    told: tuple[float, float] = (-EVERY, -1)  # when the last line was written, and what had been done then

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        now = self._time()  # type: ignore[attr-defined]
        if (now - self.told[0] >= EVERY or self.disable) and self.told[1] != self.n:
            self.told = now, self.n
            self.bar_format = LINE if self.n > self.initial else BEGUN
            self.sp(str(self))

    def clear(self, *given: Any, **told: Any) -> None:
        """A line that is written stays."""

    def close(self) -> None:
        if not self.disable:
            self.disable = True
            type(self)._decr_instances(self)  # type: ignore[attr-defined]
            self.display()


def on_main() -> bool:
    """Whether this is the main process of its launch, as far as the environment tells."""
    return os.environ.get("RANK", "0") == "0"


def progress(hidden: bool = False) -> Progress:
    """Bars on stderr, plain lines where it is no terminal, widgets in a notebook; ``hidden`` for none."""
    hidden = hidden or not on_main()
    if widget := _widget():
        return partial(widget, disable=hidden)
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return partial(Bar, disable=hidden, dynamic_ncols=True, mininterval=0.2, file=plain_stderr())
    return partial(Lines, disable=hidden, mininterval=EVERY, file=plain_stderr())


def _widget() -> type[tqdm] | None:
    """The bar of the notebook that we are in, where it can show one."""
    if "ipykernel" not in sys.modules:
        return None
    from tqdm.auto import tqdm as found
    from tqdm.notebook import tqdm_notebook

    return found if issubclass(found, tqdm_notebook) else None


def hush() -> None:
    """Bars of the hub's libraries, which move the cursor and know nothing of ``--quiet``, are not shown."""
    for library in ("HUB", "DATASETS"):
        os.environ.setdefault(f"HF_{library}_DISABLE_PROGRESS_BARS", "1")


def bars(*given: Any, **told: Any) -> tqdm:
    """A ``Progress`` that shows its bars, wherever stderr is then."""
    return progress()(*given, **told)


class Told(logging.Handler):
    """Lines of the log on stderr, above the bars."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(shown(self.format(record)), file=plain_stderr())


def be_verbose() -> None:
    """From now on, what diffsel's loggers tell is written to stderr."""
    handler, rank = Told(), os.environ.get("RANK")
    handler.setFormatter(logging.Formatter(f"%(asctime)s {f'[{rank}] ' if rank else ''}%(message)s", "%H:%M:%S"))
    logger = logging.getLogger("diffsel")
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG)
