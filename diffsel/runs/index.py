"""The images of a run, one line each, and those that were passed over: written, read, and made again where they are lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..data.images import ImageData, Row, Skipped
from ..machine.files import write_atomically
from ..machine.formats import read_lines
from ..settings.errors import StoreError
from ..settings.settings import fingerprint


def remake(data: str, path: Path) -> str:
    """What makes a lost or damaged index again."""
    return f"`diffsel score {data} --out {path}` makes it again, with the settings in run.yaml (--config {path / 'run.yaml'})"


COLUMNS = ("row", "path", "class", "width", "height", "digest")


def read_index(path: Path) -> tuple[Row, ...]:
    """The images of RUN.  Raises StoreError where the index is lost or damaged."""
    file = path / "index.parquet"
    try:
        with pq.ParquetFile(file) as opened:  # pq.read_table would load pandas
            table = opened.read()
        columns = [table[name].to_pylist() for name in COLUMNS]
        told = (table.schema.metadata or {}).get(b"diffsel")
        rows = tuple(map(Row, *columns))
    except (OSError, KeyError, ValueError, pa.ArrowInvalid) as error:
        raise StoreError(f"{file} is lost or damaged ({error}); {remake('DATA', path)}") from None
    numbered = [row.row for row in rows] == list(range(len(rows)))
    if not numbered or (told is not None and told.decode() != fingerprint(columns)):  # the first indexes had no checksum
        raise StoreError(f"{file} is damaged (checksum differs); {remake('DATA', path)}")
    return rows


def read_skipped(path: Path, indexed: bool = False) -> list[Skipped]:
    """What was passed over; with ``indexed`` only what the index could not take."""
    file = path / "skipped.jsonl"
    try:
        entries = read_lines(file) if file.exists() else []
        return [Skipped(e["path"], e["label"], e["reason"]) for e in entries if e["stage"] == "index" or not indexed]
    except (ValueError, KeyError, TypeError) as error:
        told = f"{file} is damaged ({type(error).__name__}: {error}); delete it, `diffsel score` writes it again"
        raise StoreError(told) from None


def write_index(path: Path, rows: Sequence[Row]) -> None:
    """index.parquet: one line an image, and a checksum of all of them."""
    columns = {name: [getattr(row, name) for row in rows] for name in ("row", "path", "label", "width", "height", "digest")}
    table = pa.table(dict(zip(COLUMNS, columns.values(), strict=True)))
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"diffsel": fingerprint(list(columns.values()))}), sink)
    write_atomically(path, sink.getvalue().to_pybytes())


def write_skipped(path: Path, indexed: Sequence[Skipped], decoded: Sequence[Skipped] = ()) -> None:
    """skipped.jsonl: what was passed over when the images were ``indexed``, and what later failed to decode."""
    stages = (("index", indexed), ("decode", decoded))
    lines = {json.dumps({"stage": stage, **asdict(item)}, ensure_ascii=False) for stage, items in stages for item in items}
    write_atomically(path / "skipped.jsonl", "".join(line + "\n" for line in sorted(lines)).encode())


def mend_index(path: Path, data: ImageData) -> None:
    """Write a lost or damaged index again; the images are the run's, as their digest tells."""
    try:
        whole = read_index(path) == data.rows
    except StoreError:
        whole = False
    if not whole:
        write_index(path / "index.parquet", data.rows)
        write_skipped(path, data.skipped)
