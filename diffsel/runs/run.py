"""What the passes leave on disk.  A file that exists is whole; a part made with other settings is refused.

    RUN/  run.yaml       format, settings, model and class table: replayable      index.parquet   one line per image
          maps/          <class>-000.safetensors, at most 256 images each         skipped.jsonl   what was passed over
          features/KEY/  settings.yaml and the same units, KEY = hash of the patch and feature settings
          prompts/KEY/   settings.yaml and the same units, maps of prompts added later, KEY = hash of their texts
          latents/       the same units, with compute.keep_latents

Every safetensors file carries, as metadata, the fingerprint of the settings that made it, the rows it holds, the
rows it had to pass over and a checksum of its tensors.  Nothing is ever pickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..data.classes import ClassInfo
from ..data.images import ImageData, Row, Skipped
from ..machine.files import PART, safe_name, write_atomically, write_new
from ..machine.formats import differences, dump_yaml, read_extra, read_lines, read_unit, read_yaml
from ..settings.errors import SettingsDiffer, StoreError
from ..settings.settings import fingerprint

FORMAT = 1
UNIT_ROWS = 256  # images per unit of work, at most


@dataclass(frozen=True)
class Unit:
    """At most 256 rows of one class: what one process does in one go, and one file."""

    name: str
    label: str
    rows: tuple[Row, ...]


# ---- units ---------------------------------------------------------------------------------------------------------


def units_of(data: ImageData) -> list[Unit]:
    """The fixed list of units: class by class, 256 rows at a time."""
    units = []
    for info in data.classes:
        rows = data.of_class(info.folder)
        for part in range(0, len(rows), UNIT_ROWS):
            name = f"{safe_name(info.folder)}-{part // UNIT_ROWS:03d}"
            units.append(Unit(name, info.folder, tuple(rows[part : part + UNIT_ROWS])))
    return units


# ---- runs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """An opened RUN folder."""

    path: Path
    record: Mapping[str, Any]  # run.yaml
    classes: tuple[ClassInfo, ...]

    @property
    def mark(self) -> str:
        return fingerprint(self.record["identity"])

    def map_file(self, unit: Unit) -> Path:
        return self.path / "maps" / f"{unit.name}.safetensors"

    def latent_file(self, unit: Unit) -> Path:
        return self.path / "latents" / f"{unit.name}.safetensors"

    def feature_folder(self, settings: Mapping[str, Any]) -> Path:
        return self.path / "features" / fingerprint(settings)

    def open_features(self, settings: Mapping[str, Any], weights: str | None = None) -> Path:
        """The folder of these patch and feature settings; made where it is new.

        ``weights``: digest of another network than the run's.  Raises SettingsDiffer where the folder was made by others.
        """
        folder = self.feature_folder(settings)
        if not (folder / "settings.yaml").exists():
            write_atomically(folder / "settings.yaml", dump_yaml(settings))
        if weights and not (folder / "weights.yaml").exists():
            write_atomically(folder / "weights.yaml", dump_yaml({"weights": weights}))
        if weights and (found := differences(read_yaml(folder / "weights.yaml"), {"weights": weights})):
            raise SettingsDiffer(folder, found)
        return folder


def damaged(run: Run) -> Iterator[tuple[Path, str | None]]:
    """Every unit file of a run, and what is wrong with it (None: whole): read to the last byte against its checksum."""
    marks = {run.path / "maps": run.mark, run.path / "latents": run.mark}
    for file in sorted(file for part in ("features", "prompts") for file in (run.path / part).glob("*/settings.yaml")):
        marks[file.parent] = fingerprint([run.mark, read_yaml(file)])
    for folder, mark in marks.items():
        for file in sorted(folder.glob("*.safetensors")):
            try:
                read_unit(file, mark)
                yield file, None
            except StoreError as error:
                yield file, str(error).removeprefix(f"{file} ").partition("; ")[0]


def create_run(path: Path, identity: Mapping[str, Any], settings: Mapping[str, Any], versions: Mapping[str, str],
               data: ImageData) -> Run:  # fmt: skip
    """Make RUN, or open it where it exists.

    Raises SettingsDiffer where it holds results of another ``identity``, StoreError where something else lies there.
    """
    record_file = path / "run.yaml"
    if record_file.exists():
        run = open_run(path)
        found = differences(run.record["identity"], dict(identity))
        if found:
            raise SettingsDiffer(path, found)
        return run
    begun = {"index.parquet", "skipped.jsonl"}  # what a start that was killed may have left
    others = [p for p in path.iterdir() if p.name not in begun and not p.name.startswith(PART)] if path.is_dir() else [path]
    if path.exists() and others:
        raise StoreError(f"{path} exists and is not a run; give a new or empty folder")
    write_index(path / "index.parquet", data.rows)
    write_skipped(path, data.skipped)
    record = {
        "format": FORMAT,
        "identity": dict(identity),
        "data": data.root,
        "classes": [asdict(c) for c in data.classes],
        "settings": dict(settings),
        "versions": dict(versions),
    }
    write_new(record_file, dump_yaml(record))  # last: a run.yaml that exists means a whole run folder
    run = open_run(path)
    if found := differences(run.record["identity"], dict(identity)):  # another launch was first
        raise SettingsDiffer(path, found)
    return run


def open_run(path: Path) -> Run:
    """Raises StoreError where RUN is missing, or of another format version."""
    if not (path / "run.yaml").exists():
        if (path / "set.yaml").exists():
            raise StoreError(f"{path} is a distilled set, not a run (no run.yaml); give the run it was selected from")
        if path.is_dir() and any(path.iterdir()):
            raise StoreError(f"{path} is not a run (no run.yaml); if these are images: `diffsel score {path} --out RUN` first")
        raise StoreError(f"{path} is not a run (no run.yaml); make one with `diffsel score DATA --out {path}`")
    record = read_yaml(path / "run.yaml")
    if record.get("format") != FORMAT:
        raise StoreError(f"{path} has store format {record.get('format')!r}; this version reads format {FORMAT}")
    try:
        return Run(path, record, tuple(ClassInfo(**entry) for entry in record["classes"]))
    except (KeyError, TypeError) as error:
        raise StoreError(f"{path / 'run.yaml'} is damaged ({type(error).__name__}: {error})") from None


def forwards_taken(run: Run) -> int:
    """U-Net samples that the stored units of a run's own prompts took.  Raises StoreError for a damaged unit."""
    scoring = run.record["settings"]["scoring"]
    draws = 0
    for file in sorted((run.path / "maps").glob("*.safetensors")):
        extra = read_extra(file)
        draws += sum(extra.get("draws") or [scoring["draws"]] * len(extra["rows"]))  # not recorded at first: all had as many
    return draws * (1 + len(scoring["prompts"]))


def write_index(path: Path, rows: Sequence[Row]) -> None:
    columns = {name: [getattr(row, name) for row in rows] for name in ("row", "path", "label", "width", "height", "digest")}
    columns["class"] = columns.pop("label")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    write_atomically(path, sink.getvalue().to_pybytes())


def read_index(run: Run) -> tuple[Row, ...]:
    try:
        table = pq.read_table(run.path / "index.parquet").to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(f"{run.path / 'index.parquet'}: {error}") from None
    return tuple(Row(r["row"], r["path"], r["class"], r["width"], r["height"], r["digest"]) for r in table)


def write_skipped(path: Path, indexed: Sequence[Skipped], decoded: Sequence[Skipped] = ()) -> None:
    """skipped.jsonl: what was passed over when the images were ``indexed``, and what later failed to decode."""
    stages = (("index", indexed), ("decode", decoded))
    lines = {json.dumps({"stage": stage, **asdict(item)}, ensure_ascii=False) for stage, items in stages for item in items}
    write_atomically(path / "skipped.jsonl", "".join(line + "\n" for line in sorted(lines)).encode())


def read_skipped(path: Path, indexed: bool = False) -> list[Skipped]:
    """What was passed over; with ``indexed`` only what the index could not take."""
    file = path / "skipped.jsonl"
    try:
        entries = read_lines(file) if file.exists() else []
        return [Skipped(e["path"], e["label"], e["reason"]) for e in entries if e["stage"] == "index" or not indexed]
    except (ValueError, KeyError) as error:
        raise StoreError(f"{file} is damaged ({type(error).__name__}: {error})") from None
