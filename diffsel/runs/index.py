"""The images of a run, one line each, and those that were passed over: written, read, made again where they are lost, looked
for where they were moved to, and taken over by those who open them again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..data.classes import ClassInfo
from ..data.images import NOTHING, ImageData, Known, reopen
from ..data.rows import SCHEMA, Rows, Skipped, whole
from ..machine.files import check_openable, write_atomically
from ..machine.formats import read_lines
from ..settings.errors import DataError, StoreError
from ..settings.settings import Settings, fingerprint
from ..settings.yamls import no_pipe
from .record import read_record


def remake(data: str, path: Path) -> str:
    """What makes a lost or damaged index again."""
    data, out, settings = (shlex.quote(str(each)) for each in (data, path, path / "run.yaml"))
    return f"`diffsel score {data} --out {out} --config {settings}` makes it again"


def read_index(path: Path) -> Rows:
    """The images of RUN.  Raises StoreError where the index is lost or damaged."""
    file = path / "index.parquet"
    try:
        with pq.ParquetFile(no_pipe(file), read_dictionary=["class"]) as opened:  # pq.read_table would load pandas
            table = opened.read()
        told = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        numbered = np.array_equal(table["row"].to_numpy(), np.arange(len(table)))
        rows = whole([table.replace_schema_metadata()])
        as_written = rows.checksum == told["checksum"] if "checksum" in told else _as_first_written(table, told.get("diffsel"))
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        check_openable(file)
        raise StoreError(f"{file} is lost or damaged ({error}); {remake('DATA', path)}") from None
    if not numbered or not as_written:
        raise StoreError(f"{file} is damaged (checksum differs); {remake('DATA', path)}")
    return Rows(rows.table, digest=told.get("images"))


def _as_first_written(table: pa.Table, told: str | None) -> bool:
    """Whether an index of an earlier version has its own checksum; the first ones had none."""
    columns = [table[name].to_pylist() for name in ("row", *SCHEMA.names)]
    return told is None or told == fingerprint(columns)


def read_skipped(path: Path, indexed: bool = False) -> list[Skipped]:
    """What was passed over; with ``indexed`` only what the index could not take."""
    file = path / "skipped.jsonl"
    try:
        entries = read_lines(file) if file.exists() else []
        return [Skipped(e["path"], e["label"], e["reason"]) for e in entries if e["stage"] == "index" or not indexed]
    except (ValueError, KeyError, TypeError) as error:
        told = f"{file} is damaged ({type(error).__name__}: {error}); delete it, `diffsel score` writes it again"
        raise StoreError(told) from None


def write_index(path: Path, rows: Rows) -> None:
    """index.parquet: one line an image, a checksum of all of them, and the digest that stands for the images."""
    table = rows.table.add_column(0, "row", pa.array(np.arange(len(rows))))
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"checksum": rows.checksum, "images": rows.digest}), sink)
    write_atomically(path, sink.getvalue())


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


def known_images(out: Path, root: str, settings: Settings) -> Known:
    """What an earlier opening of this data set, under the same limits, has read."""
    if not (out / "run.yaml").exists():
        return NOTHING
    try:
        record = read_record(out)
        stored, asked = record["settings"]["data"], settings.data.model_dump(mode="json")
        decisive = ("max_pixels", "max_aspect", "config", "revision", "image_column", "label_column")
        if record["data"] != root or any(stored.get(key) != asked[key] for key in decisive):
            return NOTHING
        return Known.of(read_index(out), read_skipped(out, indexed=True))
    except (StoreError, KeyError, TypeError):  # damaged: all is read again, and ``create_run`` compares
        return NOTHING


def taken_over(out: Path, root: str, settings: Settings, known: Known) -> ImageData | None:
    """The data set as the main process has opened it: nothing is listed again.  None where RUN is of other images."""
    if not known.rows or (record := read_record(out))["settings"]["data"] != settings.data.model_dump(mode="json"):
        return None
    skipped = [item for found in known.skipped.values() for item in found.values()]
    return reopen(root, [ClassInfo(**entry) for entry in record["classes"]], known.rows, skipped, settings.data)


def check_moved(data: ImageData, path: Path) -> None:
    """Raises DataError where neither the first, the middle nor the last image of RUN is where its images are said to be now."""
    rows = data.rows
    some = [rows[place].path for place in sorted({0, len(rows) // 2, len(rows) - 1})] if len(rows) else []
    for name in some:
        try:
            data.read(name)
        except (FileNotFoundError, NotADirectoryError, LookupError, ValueError, DataError):
            continue  # another fault is told where an image is read
        return
    if some:
        told = f"no {some[0]} there, the first image of {path}; give the folder of its classes"
        raise DataError(f"--data {data.root}: {told}")
