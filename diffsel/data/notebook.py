"""What a notebook shows of a data set, a run or a set: some facts, and a few pictures in rows; HTML that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import islice
from pathlib import Path

from PIL import Image

ROWS, ACROSS, SIDE = 10, 8, 64  # classes, pictures of a class, pixels of a picture's longer side


def counted(number: int, what: str) -> str:
    """
    >>> counted(1, "image"), counted(3, "class")
    ('1 image', '3 classes')
    """
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{number:,} {what if number == 1 else plural}"


def facts_html(title: str, facts: Mapping[str, object]) -> str:
    """A heading and a table of two columns."""
    return f"<b>{escape(title)}</b>{_table((escape(name), escape(str(value))) for name, value in facts.items())}"


def pictures_html(files: Mapping[str, Sequence[Path]]) -> str:
    """The first pictures of the first classes, a row each, and how many classes are not shown."""
    rows = ((escape(name), "".join(map(_picture, found[:ACROSS]))) for name, found in islice(files.items(), ROWS))
    more = f"<p>and {counted(len(files) - ROWS, 'more class')}</p>" if len(files) > ROWS else ""
    return _table(rows) + more


def _table(rows: Iterable[tuple[str, str]]) -> str:
    style = "text-align:left;vertical-align:middle"
    lines = (f'<tr><th style="{style}">{name}</th><td style="{style}">{value}</td></tr>' for name, value in rows)
    return f"<table>{''.join(lines)}</table>"


def _picture(file: Path) -> str:
    with Image.open(file) as picture, io.BytesIO() as stream:
        picture.thumbnail((SIDE, SIDE))
        picture.save(stream, "PNG")
        data = base64.b64encode(stream.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(file.name)}" style="display:inline;margin:1px">'
