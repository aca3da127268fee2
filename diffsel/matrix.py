"""A table as a product: every combination of data set, classes, method, ipc, teacher, student and protocol, each once.

OUT/  runs/DATASET/               one scoring pass a data set, for the diffsel methods
      sets/DATASET-METHOD-ipcN/   distilled sets
      results/                    one JSON a student (experiment.py)
      table.md, table.csv         what is printed
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from . import method, report
from .config import ConfigError, ProtocolSettings, Settings, load_settings
from .data import ImageData, Progress, open_data, quiet
from .distributed import Workers
from .evaluation import Machine
from .experiment import Bench, Cell, Line, gather, make_cell, run_cells
from .pictures import open_set
from .session import start
from .store import safe_name, write_atomically
from .teachers import load_teacher


def _all_classes() -> dict[str, tuple[str, ...] | None]:
    return {"all": None}


def _default_protocol() -> dict[str, dict[str, Any]]:
    return {"rded-fixed": {}}


STRICT = ConfigDict(extra="forbid")


@checked(frozen=True, config=STRICT)
class Source:
    """A data set: its training and validation images, and settings that only it needs (`data.image_size: 32`)."""

    train: str
    val: str
    settings: dict[str, Any] = Field(default_factory=dict)


@checked(frozen=True, config=STRICT)
class Matrix:
    """The axes of a table; a cell is one value of each.  A class subset is a name and its classes; none: all."""

    datasets: dict[str, Source]
    methods: tuple[str, ...]
    ipc: tuple[int, ...]
    teachers: tuple[str, ...]
    students: tuple[str, ...]
    classes: dict[str, tuple[str, ...] | None] = Field(default_factory=_all_classes)
    protocols: dict[str, dict[str, Any]] = Field(default_factory=_default_protocol)
    seeds: int = 5


@dataclass(frozen=True)
class Point:
    """One combination."""

    dataset: str
    subset: str
    method: str
    ipc: int
    teacher: str
    student: str
    protocol: str

    @property
    def set_name(self) -> str:
        """Sets of RDED depend on who judges the crops; the others do not."""
        parts = [self.dataset, self.subset, self.method, f"ipc{self.ipc}"]
        return safe_name("-".join([*parts, Path(self.teacher).name] if self.method == "rded" else parts))


def read_matrix(file: Path) -> Matrix:
    """Raises ConfigError naming the file, the key, and what would be right."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        return TypeAdapter(Matrix).validate_python(values)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        axes = ", ".join(Matrix.__dataclass_fields__)
        raise ConfigError(f"{file}: {where}: {first['msg']} (axes: {axes})") from None


def points(matrix: Matrix) -> list[Point]:
    axes = (matrix.datasets, matrix.classes, matrix.methods, matrix.ipc, matrix.teachers, matrix.students, matrix.protocols)
    return [Point(*values) for values in product(*axes)]  # type: ignore[arg-type]


def run_matrix(matrix: Matrix, out: Path, settings: Settings, machine: Machine, workers: Workers,
               progress: Progress = quiet, tell: Any = print) -> str:  # fmt: skip
    """Make the sets that are missing, train the students that are missing; returns the table."""
    bench = Bench(machine, progress, tell if workers.is_main else lambda text: None)
    protocols = {name: _protocol(name, values, settings) for name, values in matrix.protocols.items()}
    opened: dict[str, tuple[Settings, ImageData]] = {}
    for name, source in matrix.datasets.items():
        own = load_settings([], None, _merged(settings.model_dump(mode="json"), source.settings))
        opened[name] = (own, open_data(source.val, own.data, own.seed, own.compute.workers, progress))
    cells: list[Cell] = []
    for point in points(matrix):
        own, val = opened[point.dataset]
        folder = out / "sets" / point.set_name
        make_set(point, matrix, folder, out / "runs" / point.dataset, own, workers, machine, progress)
        name = f"{point.dataset} {point.subset} {point.method} ipc {point.ipc}"
        cells.append(make_cell(name, open_set(folder), val, point.student, protocols[point.protocol], point.teacher, bench))
    unique = list({(cell.name, str(cell.identity)): cell for cell in cells}.values())  # hard labels: one for all teachers
    run_cells(unique, range(settings.seed, settings.seed + matrix.seeds), out / "results", bench, workers)
    if not workers.is_main:
        return ""
    lines = gather(unique, range(settings.seed, settings.seed + matrix.seeds), out / "results", machine)
    text = report.accuracy_table(lines) + "\n"
    write_atomically(out / "table.txt", text.encode())
    write_atomically(out / "table.csv", as_csv(lines).encode())
    return text


def make_set(point: Point, matrix: Matrix, folder: Path, run: Path, s: Settings, workers: Workers, machine: Machine,
             progress: Progress) -> None:  # fmt: skip
    """The distilled set of a point, where it is missing."""
    train, names = matrix.datasets[point.dataset].train, matrix.classes[point.subset]
    s = s.model_copy(update={"selection": s.selection.model_copy(update={"method": point.method})})
    if point.method in ("random", "rded"):
        if workers.is_main:
            data = open_data(train, s.data, s.seed, s.compute.workers, progress)
            infos = [info for name in method.known_classes(data, names) for info in data.classes if info.folder == name]
            judge = load_teacher(point.teacher, infos, method.judge_size(s), machine.device) if point.method == "rded" else None
            method.select_baseline(data, point.ipc, folder, s, names, judge, progress)
    else:
        session = start(train, run, s, progress)
        method.check_set(session, point.ipc, folder, names)
        method.score(session)
        method.embed(session)
        method.select(session, point.ipc, folder, names)
    workers.wait_for([folder / "set.yaml"])


def as_csv(lines: list[Line]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["cell", "student", "protocol", "n", "top1", "std", "ci95", "top5", "best_top1", "last_top1"])
    for line in lines:
        one, values = line.cell, [line.top1, line.top5, line.best, line.last]
        means = [round(value.mean, 4) if value else "" for value in values]
        std, ci95 = (line.top1.std, line.top1.ci95) if line.top1 else ("", "")
        writer.writerow(
            [one.name, one.student, one.protocol.name, line.top1.n if line.top1 else 0, means[0], std, ci95, *means[1:]]
        )
    return text.getvalue()


def _protocol(name: str, values: Mapping[str, Any], settings: Settings) -> ProtocolSettings:
    base = settings.protocol.model_dump(mode="json")
    return load_settings([], None, {"protocol": {**base, "name": name, **values}}).protocol


def _merged(base: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """``extra`` as "section.field: value"."""
    for key, value in extra.items():
        section, _, name = key.partition(".")
        if name:
            base[section] = {**base[section], name: value}
        else:
            base[section] = value
    return base
