"""What people read in a terminal.  Names of files and classes may hold anything, and a terminal obeys some of it: colours,
its title, its clipboard, words that overwrite others."""

from __future__ import annotations

import contextlib
import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any, TextIO

ODD = re.compile(r"[^ -~]")
ODD_IN_LINES = re.compile(r"[^ -~\n\t]")


def shown(text: str) -> str:
    """A text on one line: characters that are not for the eye (control codes, line ends, marks that turn the direction of
    writing, bytes that are no text) as Python writes them."""
    return ODD.sub(_visible, text)


def _visible(match: re.Match[str]) -> str:
    c = match[0]
    return c if c.isprintable() or unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode()


class Terminal:
    """A stream on which no text does more than be read: what is odd is escaped, and so is what its encoding lacks."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        encoding = self.stream.encoding or "utf-8"
        plain = ODD_IN_LINES.sub(_visible, text).encode(encoding, "backslashreplace").decode(encoding)
        self.stream.write(plain)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """All that is printed in this block goes through a ``Terminal``."""
    out, err = Terminal(sys.stdout), Terminal(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):  # type: ignore[type-var]
        yield


def plain_stderr() -> TextIO:
    """The stream below: for progress bars, which move the cursor."""
    return getattr(sys.stderr, "stream", sys.stderr)
