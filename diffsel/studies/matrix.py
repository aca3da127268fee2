"""A table as a product: every combination of data set, classes, method, ipc, teacher, student and protocol, each once.

OUT/  runs/DATASET/               one scoring pass a data set, for the diffsel methods
      sets/DATASET+SUBSET+METHOD+ipcN[+TEACHER+HASH]/   distilled sets
      results/                    one JSON a student
      table.txt, table.csv        what is printed
      table-*.png                 accuracy by ipc, a picture for each data set, student and protocol
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from ..evaluation.bench import Bench
from ..evaluation.cells import Cell, gather, make_cell, run_cells
from ..evaluation.networks import canonical, check_size
from ..evaluation.results import Line, Nested, fairness, over_sets
from ..machine.files import safe_name, write_atomically
from ..machine.formats import as_csv
from ..report.text import accuracy_table, table
from ..sets.opening import open_set
from ..settings.errors import ConfigError
from ..settings.sections import BASELINES, Method, SelectionSettings
from ..settings.settings import Settings, default_patch, fingerprint, load_settings
from ..settings.training import ProtocolSettings
from ..settings.yamls import load_yaml
from .making import make_set
from .tables import Place, Value, picture


def _all_classes() -> dict[str, tuple[str, ...] | None]:
    return {"all": None}


def _default_protocol() -> dict[str, dict[str, Any]]:
    return {"rded-fixed": {}}


STRICT = ConfigDict(extra="forbid")
ROBUST = (
    "Robust scores by DD-Ranking's formulas, under this table's protocols: improvement over random, hard-label recovery "
    "(points), label- and augmentation-robust score (percent)\n(DD-Ranking itself searches learning rates by test accuracy, "
    "and draws whole random images anew for each student)"
)


@checked(frozen=True, config=STRICT)
class Source:
    """A data set: its training and validation images, and settings that only it needs (`data.image_size: 32`)."""

    train: str
    val: str
    settings: dict[str, Any] = Field(default_factory=dict)


@checked(frozen=True, config=STRICT)
class Matrix:
    """The axes of a table; a cell is one value of each.  A class subset is a name and its classes; none: all.

    ``methods`` are names of methods, or names of one's own with their settings: ``best: {selection.guidance: 1}``.
    """

    datasets: dict[str, Source]
    methods: tuple[Method, ...] | dict[str, dict[str, Any]]
    ipc: tuple[Annotated[int, Field(ge=1)], ...]
    teachers: tuple[str, ...]
    students: tuple[str, ...]
    classes: dict[str, tuple[str, ...] | None] = Field(default_factory=_all_classes)
    protocols: dict[str, dict[str, Any]] = Field(default_factory=_default_protocol)
    seeds: int = Field(default=5, ge=1)
    sets: int = Field(default=1, ge=1)  # of each method that leaves something to chance
    # data set -> class subset -> student -> top-1 of training on all of it with hard labels, percent (for HLR)
    full: dict[str, dict[str, dict[str, float]]] = Field(default_factory=dict)


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
    kind: str  # which of diffsel's methods its name stands for

    @property
    def name(self) -> str:
        """What a person reads."""
        return f"{self.dataset} {self.subset} {self.method} ipc {self.ipc}"

    @property
    def set_name(self) -> str:
        """Some sets depend on a teacher; the others do not.  ``+`` is in no safe name."""
        parts = [self.dataset, self.subset, self.method, f"ipc{self.ipc}"]
        if self.kind in BASELINES and self.kind != "random":
            parts += [Path(self.teacher).name, fingerprint(self.teacher)[:8]]  # many teachers are called best.safetensors
        return "+".join(map(safe_name, parts))

    def set_names(self, sets: int) -> list[str]:
        """Its sets, made alike but for chance; one where the method leaves nothing to it."""
        by_chance = SelectionSettings(method=self.kind).by_chance  # type: ignore[arg-type]
        return [self.set_name + (f"+set{draw}" if draw else "") for draw in range(sets if by_chance else 1)]


def read_matrix(file: Path) -> Matrix:
    """Raises ConfigError naming the file, the key, and what would be right."""
    try:
        values = load_yaml(file)
        return TypeAdapter(Matrix).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        axes = ", ".join(Matrix.__dataclass_fields__)
        raise ConfigError(f"{file}: {where}: {first['msg']} (axes: {axes})") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: {error}") from None


def points(matrix: Matrix) -> list[Point]:
    kinds = {name: values["selection.method"] for name, values in settings_of_methods(matrix).items()}
    axes = (matrix.datasets, matrix.classes, kinds, matrix.ipc, matrix.teachers, matrix.students, matrix.protocols)
    return [Point(*values, kinds[values[2]]) for values in product(*axes)]  # type: ignore[arg-type, call-arg]


def settings_of_methods(matrix: Matrix) -> dict[str, dict[str, Any]]:
    if isinstance(matrix.methods, dict):
        return {name: {"selection.method": "diffsel", **values} for name, values in matrix.methods.items()}
    return {name: {"selection.method": name} for name in matrix.methods}


def settings_of(settings: Settings, extra: Mapping[str, Any]) -> Settings:
    """The settings of a data set or a method: the common ones and its own.  Raises ConfigError."""
    base = settings.model_dump(mode="json")
    if settings.patches.patch_size == default_patch(settings.data.image_size):
        base["patches"]["patch_size"] = None  # it follows the data set's own image_size
    return load_settings([], None, _merged(base, extra))


def run_matrix(matrix: Matrix, out: Path, settings: Settings, bench: Bench) -> str:
    """Make the sets that are missing, train the students that are missing; returns the table."""
    images = bench.images
    protocols = {name: _protocol(name, values, settings) for name, values in matrix.protocols.items()}
    own = {name: settings_of(settings, source.settings) for name, source in matrix.datasets.items()}
    every = points(matrix)
    sides = {protocols[point.protocol].size or own[point.dataset].assembly.size for point in every}
    for student, side in product(matrix.students, sorted(sides)):
        check_size(canonical(student), side)
    val = {name: images.validation(source.val, own[name]) for name, source in matrix.datasets.items()}
    folders = {name: (point, draw) for point in every for draw, name in enumerate(point.set_names(matrix.sets))}
    for name, (point, draw) in folders.items():
        s = settings_of(own[point.dataset], settings_of_methods(matrix)[point.method])
        source, classes, run = matrix.datasets[point.dataset], matrix.classes[point.subset], out / "runs" / point.dataset
        make_set(source.train, classes, point.ipc, point.teacher, out / "sets" / name, run, s, bench, draw)
    sets = {name: open_set(out / "sets" / name) for name in folders}

    def cell_of(point: Point, name: str) -> Cell:
        protocol = protocols[point.protocol]
        return make_cell(point.name, sets[name], val[point.dataset], point.student, protocol, point.teacher, bench)

    cells = {point: [cell_of(point, name) for name in point.set_names(matrix.sets)] for point in every}
    unique = {_key(cell): cell for group in cells.values() for cell in group}  # hard labels: one for all teachers
    seeds = range(settings.seed, settings.seed + matrix.seeds)
    run_cells(list(unique.values()), seeds, out / "results", bench)
    if not bench.workers.is_main:
        return ""
    found_lines = dict(zip(unique, gather(list(unique.values()), seeds, out / "results", bench.machine), strict=True))
    groups = {point: tuple(map(_key, group)) for point, group in cells.items()}
    pooled = {keys: over_sets([found_lines[key] for key in keys]) for keys in groups.values()}
    lines, shown = {point: pooled[keys] for point, keys in groups.items()}, list(pooled.values())
    protocols_of = {point: group[0].protocol for point, group in cells.items()}
    parts = [accuracy_table(shown), *pivots(lines), scores(lines, protocols_of, matrix)]
    text = "\n\n".join(part for part in parts if part)
    write_atomically(out / "table.txt", (text + "\n").encode())
    write_atomically(out / "table.csv", _csv(shown))
    for name, page in pictures(lines).items():
        write_atomically(out / f"table-{name}.png", page)
    return text + "\n"


def _key(cell: Cell) -> tuple[str, str, str]:
    return cell.name, cell.protocol.name, str(cell.identity)


def pictures(lines: Mapping[Point, Line]) -> dict[str, bytes]:
    """Accuracy by ipc and method, a PNG for everything else that is one; none where matplotlib is missing."""
    if find_spec("matplotlib") is None:
        return {}
    groups: dict[Point, dict[Place, Value]] = {}
    for point, line in lines.items():
        key = replace(point, method="", kind="", ipc=0)
        if line.top1:
            groups.setdefault(key, {})[f"IPC {point.ipc}", point.method] = Value.of(line.top1)
    found = {}
    for point, values in groups.items():
        parts = [point.dataset, point.subset, Path(point.teacher).stem, point.student, point.protocol]
        title = f"{point.dataset}, {point.subset}: {point.student}, {point.protocol}"
        found["+".join(map(safe_name, parts))] = picture(title, "bars", list(values), values, {}, "top-1, percent")
    return found


def pivots(lines: Mapping[Point, Line]) -> list[str]:
    """Teachers down, students across (paper Tab. 3 and 8), wherever there are several of both."""
    groups: dict[Point, dict[tuple[str, str], Line]] = {}
    for point, line in lines.items():
        groups.setdefault(replace(point, teacher="", student=""), {})[point.teacher, point.student] = line
    texts = []
    for group, cells in groups.items():
        teachers, students = (list(dict.fromkeys(key[k] for key in cells)) for k in (0, 1))
        if len(teachers) > 1 and len(students) > 1:
            rows = [[Path(t).name, *(str(cells[t, s].top1 or "-") for s in students)] for t in teachers]
            protocol = next(iter(cells.values())).starred
            texts.append(f"{group.name}, {protocol}\n" + table(rows, ["teacher \\ student", *students]))
    return texts


def scores(lines: Mapping[Point, Line], protocols: Mapping[Point, ProtocolSettings], matrix: Matrix) -> str:
    """Robust scores of every soft-labelled cell, as far as the other cells of the table give them.

    All terms of a line are of the epoch (best or last) that its protocol reports.  DD-Ranking's own differ (see ``ROBUST``).
    """
    rows = []
    bases = [line.top1 for point, line in lines.items() if point.kind == "random"]
    for point, line in lines.items():
        protocol = protocols[point]
        if point.kind == "random" or protocol.labels == "hard" or _is_plain(protocol):
            continue
        others = {other.protocol: other for other in lines if replace(other, protocol=point.protocol) == point}
        hard = next((lines[one] for one in others.values() if protocols[one].labels == "hard"), None)
        plain = next((name for name, one in others.items() if _is_plain(protocols[one])), None)
        base = replace(point, method="random", kind="random")
        known = {
            "soft": line,
            "random_soft": lines.get(base),
            "hard": hard,
            "plain": lines[others[plain]] if plain else None,
            "random_plain": lines.get(replace(base, protocol=plain or "")),
        }
        tops = {name: getattr(one, protocol.report) for name, one in known.items() if one}
        means = {name: top1.mean for name, top1 in tops.items() if top1}
        if {"soft", "random_soft"} <= means.keys():
            full = matrix.full.get(point.dataset, {}).get(point.subset, {}).get(point.student)
            found = fairness(**means, full_hard=full)
            columns = [f"{found[key]:.1f}" if key in found else "-" for key in ("IOR", "HLR", "LRS", "ARS")]
            rows.append([point.name, point.student, line.starred, *columns])
    drawn = {f"{one.n} sets" if isinstance(one, Nested) else "one set" for one in bases}
    head = ROBUST + f"; random: {', '.join(sorted(drawn))}\n"
    return head + table(rows, ["set", "student", "protocol", "IOR", "HLR", "LRS", "ARS"]) if rows else ""


def _is_plain(protocol: ProtocolSettings) -> bool:
    """Soft labels without augmentation, as DD-Ranking's augmentation-robust score asks for."""
    return protocol.labels == "soft" and protocol.mix == "none" and not (protocol.crop or protocol.flip or protocol.shuffle)


def _csv(lines: list[Line]) -> bytes:
    rows = []
    for line in lines:
        means = [round(value.mean, 4) if value else None for value in (line.top1, line.top5, line.best, line.last)]
        n, std, ci95 = (line.top1.n, line.top1.std, line.top1.ci95) if line.top1 else (0, None, None)
        rows.append([line.name, line.student, line.protocol, n, means[0], std, ci95, *means[1:]])
    return as_csv(["cell", "student", "protocol", "n", "top1", "std", "ci95", "top5", "best_top1", "last_top1"], rows)


def _protocol(name: str, values: Mapping[str, Any], settings: Settings) -> ProtocolSettings:
    base = settings.protocol.model_dump(mode="json")
    return load_settings([], None, {"protocol": {**base, "name": name, **values}}).protocol


def _merged(base: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """``extra`` as "section.field: value"."""
    for key, value in extra.items():
        section, _, name = key.partition(".")
        if name:
            if not isinstance(base.get(section), dict):
                sections = ", ".join(known for known, values in base.items() if isinstance(values, dict))
                raise ConfigError(f"settings of a data set: {key!r}: {section!r} is no section (sections: {sections})")
            base[section] = {**base[section], name: value}
        else:
            base[section] = value
    return base
