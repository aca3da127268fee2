"""What a report says of a run as a whole: which run and sets belong together, cost, settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..evaluation.results import Line, Spread
from ..machine.files import AsPath, existing
from ..machine.formats import differences, peek, read_yaml
from ..runs.parts import PromptPart
from ..runs.run import Run, open_run
from ..runs.units import devices, mixed, told_by
from ..sets.figures import Figures, mean_of
from ..sets.opening import DistilledSet, damaged_pictures, read_set
from ..sets.record import SUMS
from ..settings.errors import StoreError, short
from ..settings.settings import fingerprint, load_settings, without_execution

OURS = ("set.yaml", SUMS)  # in the folder of a set
SHARED = ("patches", "features", "selection", "assembly")  # sections that a set may have otherwise than its run


@dataclass
class Opened:
    """What a report is about: a run, its sets (the largest first), or sets alone (``run`` None)."""

    target: Path
    run: Run | None
    sets: list[DistilledSet]
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for shown in self.sets:
            for file, reason in list(damaged_pictures(shown))[:1]:
                self.notes.append(f"{shown.name} is not as it was made: {file.relative_to(shown.path)} {reason}.")

    @property
    def classes(self) -> list[str]:
        """Class folders in their order: the run's, or those that the sets name."""
        if self.run:
            return [info.folder for info in self.run.classes]
        return list(dict.fromkeys(name for shown in self.sets for name in shown.names))


def open_target(target: Path, more: Sequence[Path] = (), run: AsPath | None = None) -> Opened:
    """A RUN with its sets (in it, beside it, or named), or a SET with its run (above it, beside it, or named).

    Raises StoreError for a folder that is neither, and for a run and a set that do not belong together.
    """
    left: list[str] = []
    if (target / "run.yaml").exists():
        opened: Run | None = (found := open_run(target))
        sets = [read_set(path) for path in more]
        if not more:
            sets, left = _sets_of(found)
    elif (target / "set.yaml").exists():
        sets = [read_set(path) for path in (target, *more)]
        opened = open_run(run) if run else run_of(target, sets[0].record)
    else:
        raise StoreError(f"{target} is neither a run (run.yaml) nor a distilled set (set.yaml)")
    if not opened:
        note = "The run that scored these images was not found (--run RUN): no source images, heat maps, clusters and scores."
        return Opened(target, None, _largest_first(sets), [note])
    strangers = [shown for shown in sets if not belongs(shown.record, opened)]
    if strangers:
        why = _differs(strangers[0].record, opened)
        raise StoreError(f"{strangers[0].path} was not made from {opened.path}{why}; name its own run, or leave it out")
    sets = _largest_first(sets)
    added = any("prompt" in shown.record for shown in sets if shown.path == target)  # asked for as a prompt's set
    mine = [shown.record for shown in sets if "run" in shown.record]
    own = min(mine, key=lambda record: ("prompt" in record) != added, default={})  # the first of its kind: the largest
    seen = _as_seen(opened, own)
    if seen is None:
        what = "prompt" if "prompt" in own else "rivals"
        note = f"The maps of {sets[0].name}'s {what} are not in {opened.path} any more: no heat maps, clusters and scores."
        return Opened(target, None, sets, [note])
    return Opened(target, seen, [_compared(shown, own) for shown in sets], [*left, *_unclustered(seen)])


def _unclustered(run: Run) -> list[str]:
    """What to say of classes whose vectors are not there, though others' are."""
    there = existing(map(run.feature_file, run.units))
    lost = [info.folder for info in run.classes if not there.issuperset(map(run.feature_file, run.of_class(info.folder)))]
    way = f"`diffsel embed {run.path}` makes them"
    return (
        [f"Without clusters: {', '.join(map(repr, lost))}; their vectors are not in {run.path} ({way})."]
        if there and lost
        else []
    )


def _as_seen(run: Run, own: Mapping[str, Any]) -> Run | None:
    """The run as a set saw it, by its settings and its prompt; None where the maps of that prompt, or of rivals, are gone."""
    sections = {name: own[name] for name in SHARED if name in own}
    stored = run.record["settings"]
    settings = load_settings([], None, without_execution(stored | sections))
    if "prompt" not in own:
        seen = replace(run, settings=settings)
        return None if seen.rivals and not all(seen.rivals.file(unit).exists() for unit in run.units) else seen
    settings = load_settings([], None, without_execution(stored | sections | {"scoring": own["scoring"]}))
    file = run.path / "prompts" / str(own["prompt"]) / "settings.yaml"
    if not file.exists():
        return None
    told = read_yaml(file)
    part = PromptPart(run.path, run.mark, told["prompt"], told["null"], told["gap"])
    if not all(part.file(unit).exists() for unit in run.units):
        return None
    return replace(run, settings=settings, part=part)


def _compared(shown: DistilledSet, own: Mapping[str, Any]) -> DistilledSet:
    """With what was otherwise when it was selected than for the set by whose settings the run is shown."""
    if "run" not in shown.record:
        return shown
    sections = ("scoring", *SHARED[:3])
    found = {name: differences(shown.record[name], own[name]) for name in sections}
    differs = {f"{name}.{key}": pair for name, keys in found.items() for key, pair in keys.items()}
    prompt, other = (record.get("prompt") or "the run's" for record in (shown.record, own))
    if prompt != other and not found["scoring"]:  # the same template with other words
        differs["prompt"] = prompt, other
    return replace(shown, differs=differs)


def belongs(record: Mapping[str, Any], run: Run) -> bool:
    """Whether a set was made from this run, or (baselines) from the same images at the same size."""
    return _is_of(record, run.record["identity"])


def _is_of(record: Mapping[str, Any], identity: Any) -> bool:
    """``identity``: of a run; anything else, as in a record of another program, is none."""
    try:
        if "run" in record:
            return bool(record["run"] == fingerprint(identity))
        return bool(record.get("images") == identity["images"]["digest"] and record.get("image_size") == identity["image_size"])
    except (KeyError, TypeError, ValueError):
        return False


def _differs(record: Mapping[str, Any], run: Run) -> str:
    """In which setting, or in what else, a set's run was another one."""
    own = run.record["identity"]
    parts = ("seed", "image_size", "side_multiple", "model", "scoring")
    known = {key: own[key] for key in parts if key in record and key in own}
    found = differences({key: record[key] for key in known}, known)
    told = [f"{key} was {short(old)}, is {short(new)}" for key, (old, new) in found.items()]
    return f" ({'; '.join(told) or 'its images or classes were others'})"


def _sets_of(run: Run) -> tuple[list[DistilledSet], list[str]]:
    """diffsel's own sets: in the run's folder, beside it, or in OUT/sets for OUT/runs/RUN; a note on each damaged one."""
    near = run.path.resolve().parent
    folders = [run.path, near] + [near.parent / "sets"] * (near.name == "runs")
    found = [path for where in folders for path in sorted({file.parent for name in OURS for file in where.glob(f"*/{name}")})]
    sets, left = list[DistilledSet](), list[str]()
    for path in found:
        told = peek(path / "set.yaml")
        if not told and (path / SUMS).is_file() and (path / "metadata.jsonl").is_file():
            left.append(f"{path.name} is left out: its set.yaml is lost or damaged.")
        if told.get("run") == run.mark:  # what lies beside may be anybody's
            try:
                sets.append(read_set(path))
            except StoreError as error:
                left.append(f"{path.name} is left out: {error}.")
    return sets, left


def run_of(path: Path, record: Mapping[str, Any]) -> Run | None:
    """The run of a set: the folder above it, one beside it, or one in OUT/runs for OUT/sets/SET."""
    near = path.resolve().parent
    files = [*near.glob("run.yaml"), *sorted(near.glob("*/run.yaml"))]
    files += sorted(near.parent.glob("runs/*/run.yaml")) if near.name == "sets" else []
    own = next((file.parent for file in files if _is_of(record, peek(file).get("identity"))), None)
    return open_run(own) if own else None


def _largest_first(sets: Iterable[DistilledSet]) -> list[DistilledSet]:
    """diffsel's own before baselines, then by images per class."""
    return sorted(sets, key=lambda shown: ("run" not in shown.record, -int(shown.record["ipc"])))


# ---- sets, cost and settings -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SetRow:
    """A set in the table of sets: its figures, means over classes, and an accuracy that may be compared with the others'."""

    set: DistilledSet
    figures: Figures | None
    best: Spread | None


def set_rows(
    sets: Sequence[DistilledSet], judged: Mapping[Path, Sequence[Figures | None]], lines: Sequence[Line]
) -> list[SetRow]:
    """``judged``: what each class of a set was found to be; ``lines``: best first, of one kind of student alone."""
    best = {line.set: line.top1 for line in reversed(lines)}
    return [SetRow(shown, mean_of(judged.get(shown.path, ())), best.get(shown.name)) for shown in sets]


@dataclass(frozen=True)
class Cost:
    """A stage: what it took.  ``seconds`` is clock time by the files' own times, pauses included, or None."""

    stage: str
    work: str
    seconds: float | None
    bytes: int
    files: int


def costs(opened: Opened, lines: Sequence[Line]) -> list[Cost]:
    found = []
    if opened.run:
        found += stages(opened.run)
    for shown in opened.sets:
        files = [file for file in shown.path.rglob("*") if file.is_file()]
        number = len(shown.pictures)
        found.append(Cost(f"set {shown.name}", f"{number:,} images", None, sum(f.stat().st_size for f in files), len(files)))
    if lines:
        students = sum(line.top1.n for line in lines if line.top1)
        found.append(Cost("students", f"{students:,} trained", sum(line.seconds for line in lines), 0, 0))
    return found


def stages(run: Run) -> list[Cost]:
    """Scoring, and embedding where it took place."""
    s = run.settings
    lost = {item.path for item in run.data.skipped}
    scored = sum(path not in lost for path in run.data.rows.texts("path"))
    draws = f"{s.scoring.draws} draws" + (f" to {s.scoring.adaptive_draws}" if s.scoring.adaptive_draws else "")
    work = f"{run.forwards_taken():,} U-Net forwards ({scored:,} images, {draws})"
    found = [_stage("scoring", work, run.path / "run.yaml", list((run.path / "maps").glob("*.safetensors")))]
    if vectors := list(run.feature_folder.glob("*.safetensors")):
        patches = f"one {s.features.kind.upper()} vector of each best patch"
        found.append(_stage("embedding", patches, run.feature_folder / "settings.yaml", vectors))
    return found


def _stage(name: str, work: str, begun: Path, files: Sequence[Path]) -> Cost:
    stats = [file.stat() for file in files]
    seconds = max(stat.st_mtime for stat in stats) - begun.stat().st_mtime if stats and begun.exists() else None
    return Cost(name, work, seconds if seconds and seconds > 0 else None, sum(stat.st_size for stat in stats), len(stats))


def settings_of(opened: Opened) -> dict[str, dict[str, Any]]:
    """Sections and their values as the report shows them, and the versions that made the run."""
    if not opened.run:
        record = opened.sets[0].record
        plain = {key: value for key, value in record.items() if not isinstance(value, Mapping) and key != "classes"}
        return {"set": plain} | {key: dict(value) for key, value in record.items() if isinstance(value, Mapping)}
    record, dumped = opened.run.record, opened.run.settings.model_dump(mode="json")
    used = ("data", "model", "scoring", *SHARED)
    head = {
        "seed": dumped["seed"],
        "images": record["data"],
        "model digest": record["identity"]["model"],
        "precision": record["identity"]["precision"],
        "devices": mixed(computed := devices(told_by(opened.run.path))) or ", ".join(computed),
        "fingerprint": opened.run.mark,
    }
    return {"run": head} | {name: dumped[name] for name in used} | {"versions": dict(record["versions"])}


def clock(seconds: float | None) -> str:
    """A duration for people: seconds, minutes, or hours."""
    if seconds is None:
        return "–"
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"
