"""A study at some scale: the paper's cases, and what stands for them on this machine.  No torch, no images.

A case is one place in a table, in the paper's own terms.  A scale (configs/scales/*.yaml) says where the data lie and which
data sets, networks, images per class and settings stand for the paper's.  A case at a scale is a job: what is really run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from ..settings.errors import ConfigError
from ..settings.sections import BASELINES
from ..settings.settings import Settings, fingerprint, identity, load_settings
from ..settings.yamls import load_yaml

STRICT = ConfigDict(extra="forbid")
AXES = ("dataset", "ipc", "method", "teacher", "student")
VARIABLE = re.compile(r"\$\{?(\w+)")
SPEEDS = ("forward", "student")  # that every scale has


@dataclass(frozen=True)
class Case:
    """One place (row, column) of a table, and what the paper did for it; ``settings`` are "section.field": value."""

    row: str
    column: str
    dataset: str
    ipc: int
    method: str = "diffsel"
    teacher: str = "resnet18"
    student: str = "resnet18"
    protocol: str = "rded"
    settings: Mapping[str, Any] = field(default_factory=dict)
    classes: int | None = None  # only so many classes, chosen after the pass over all of them
    shown: str = ""  # a sheet of one class: its folder; the first class where the data lack it


@checked(frozen=True, config=STRICT)
class DataSet:
    """Where images lie; ``{out}`` is the study's folder, ``$NAME`` a variable of the environment."""

    train: str
    val: str
    images: int  # training images, for the estimate of --dry-run
    classes: int
    configs: tuple[str, ...] = ()  # settings files, seen from configs/
    settings: dict[str, Any] = Field(default_factory=dict)  # "section.field": value
    teachers: dict[str, str] = Field(default_factory=dict)  # the paper's -> what stands for it on this data set alone


@checked(frozen=True, config=STRICT)
class Scale:
    """What a study is run on.  ``stands``: axis or setting -> {the paper's value: the value here; null: left out}."""

    datasets: dict[str, DataSet]
    speed: dict[str, float]  # a second: U-Net forwards at the usual image size (`forward`), images of a network or `student`
    stands: dict[str, dict[Any, Any]] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)  # of every job
    teachers: dict[str, dict[str, Any]] = Field(default_factory=dict)  # trained where missing: settings of `training`
    students: int = 5
    scenes: int = 0  # digit scenes a class, composed into OUT/data
    random_clip: bool = False  # no CLIP weights: a small CLIP with random weights takes their place
    notes: tuple[str, ...] = ()  # under every table


@dataclass(frozen=True)
class Job:
    """A case as it is really run."""

    case: Case
    dataset: str
    source: DataSet
    ipc: int
    method: str
    teacher: str  # what load_teacher takes
    trains: bool  # whether the teacher is trained where it is missing, by settings.training
    student: str
    settings: Settings
    students: int

    stood: str = ""  # the settings that stand for the paper's, in words
    run_name: str = ""  # one for all jobs that a single scoring pass serves
    taught: Settings | None = None  # by which its teacher is trained: the scale's and data set's, none of the case's own
    vectors: str = ""  # stands for the patches and their vectors; empty where none are needed
    set_name: str = ""  # one for all jobs that share a distilled set
    trained: str = ""  # one for all jobs that train the same students

    @property
    def baseline(self) -> bool:
        return self.method in BASELINES

    @property
    def needs_teacher(self) -> bool:
        return self.method == "rded" or self.settings.protocol.labels != "hard"

    @property
    def variables(self) -> list[str]:
        """Of the environment, that its paths name."""
        paths = (self.source.train, self.source.val, self.teacher if self.needs_teacher else "")
        return [name for path in paths for name in VARIABLE.findall(path)]

    @property
    def ran_as(self) -> str:
        """What a person reads: what stood for the paper's case."""
        some = f", {self.case.classes} classes" if self.case.classes else ""
        return f"{self.dataset}, {self.method}, ipc {self.ipc}{some}{self.stood}"


def read_scale(name: str, configs: Path, model: str | None = None, students: int | None = None) -> Scale:
    """A scale by name (configs/scales/NAME.yaml) or by its YAML file; ``model`` and ``students`` win over it.

    Raises ConfigError naming the file and the key, or the scales that there are.
    """
    file = Path(name) if name.endswith((".yaml", ".yml")) else configs / "scales" / f"{name}.yaml"
    if not file.exists():
        known = ", ".join(sorted(path.stem for path in (configs / "scales").glob("*.yaml")))
        raise ConfigError(f"--scale {name}: there is {known}, or a YAML file of your own")
    try:
        values = load_yaml(file)
        scale = TypeAdapter(Scale).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        keys = ", ".join(Scale.__dataclass_fields__)
        raise ConfigError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']} (keys: {keys})") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: {error}") from None
    if wrong := [key for key in scale.stands if key not in AXES and not _is_setting(key)]:
        raise ConfigError(
            f"{file}: stands.{wrong[0]}: neither one of {', '.join(AXES)} nor a setting such as selection.clusters"
        )
    if slow := [key for key in (*SPEEDS, *scale.speed) if not scale.speed.get(key, 0) > 0]:
        raise ConfigError(f"{file}: speed.{slow[0]}: must be there and above 0, such as speed: {{forward: 150, student: 280}}")
    settings = {**scale.settings, **({"model.model": model} if model else {})}
    return replace(scale, settings=settings, students=students or scale.students)


def plan(cases: Iterable[Case], scale: Scale, configs: Path, once: bool = True) -> list[Job]:
    """The jobs of a study.  A case that is left out at this scale is dropped; with ``once``, so is one whose students are
    those of an earlier case.

    Raises ConfigError for a data set or protocol that is not there, or settings that cannot be.
    """
    jobs: dict[str, Job] = {}
    for number, case in enumerate(cases):
        job = _job(case, scale, configs)
        if job:
            jobs.setdefault(job.trained if once else str(number), job)
    return list(jobs.values())


def _job(case: Case, scale: Scale, configs: Path) -> Job | None:
    axes = {name: _stand(scale, name, getattr(case, name)) for name in AXES}
    if axes["dataset"] in scale.datasets:
        axes["teacher"] = scale.datasets[axes["dataset"]].teachers.get(case.teacher, axes["teacher"])
    settings = {key: _stand(scale, key, value) for key, value in case.settings.items()}
    left_out = [key for key, value in case.settings.items() if settings[key] is None and str(value) in _table(scale, key)]
    if None in axes.values() or left_out:
        return None
    if axes["dataset"] not in scale.datasets:
        raise ConfigError(f"data set {axes['dataset']!r} is not in this scale; it has {', '.join(scale.datasets)}")
    source = scale.datasets[axes["dataset"]]
    training = scale.teachers.get(axes["teacher"])
    trained = {f"training.{key}": value for key, value in (training or {}).items()}
    files, common = [configs / name for name in source.configs], {**scale.settings, **source.settings, **trained}
    chosen = load_settings(files, {**common, **settings, **_protocol(case.protocol, configs)})
    chosen = chosen.model_copy(update={"selection": chosen.selection.model_copy(update={"method": axes["method"]})})
    stood = "".join(f", {key.split('.')[1]} {value}" for key, value in settings.items() if value != case.settings[key])
    teacher = f"{{out}}/teachers/{axes['dataset']}-{axes['teacher']}" if training is not None else axes["teacher"]
    return _named(
        Job(
            case,
            axes["dataset"],
            source,
            axes["ipc"],
            axes["method"],
            teacher.replace("{dataset}", axes["dataset"]),
            training is not None,
            axes["student"],
            chosen,
            scale.students,
            stood,
            taught=load_settings(files, common) if trained else None,
        )
    )


def _named(job: Job) -> Job:
    """With the names of what is shared: hashes of the settings that decide it, before any path is made real."""
    from ..machine.files import safe_name

    s, folder = job.settings, safe_name(job.dataset)
    images = [job.source.train, s.seed, identity(s.data)]
    run = (
        f"{folder}-{s.data.image_size}px-"
        + fingerprint([images, identity(s.model), identity(s.scoring), s.compute.precision])[:8]
    )
    unclustered = job.baseline or s.selection.method == "diffsel-noclusters"
    vectors = "" if unclustered else fingerprint([run, identity(s.patches), identity(s.features)])
    judge = [job.teacher, s.protocol.size] if job.baseline and job.method != "random" else None
    chosen = [identity(s.baseline), judge] if job.baseline else [run, identity(s.patches), vectors, identity(s.selection)]
    name = f"{folder}-{job.method}-ipc{job.ipc}-{fingerprint([images, identity(s.assembly), chosen, job.case.classes])[:8]}"
    soft = job.teacher if s.protocol.labels != "hard" else None
    trained = fingerprint([name, job.student, soft, identity(s.protocol), job.source.val])
    return replace(job, run_name=run, vectors=vectors, set_name=name, trained=trained)


def _is_setting(key: str) -> bool:
    section, _, name = key.partition(".")
    found = Settings.model_fields.get(section)
    return found is not None and name in getattr(found.annotation, "model_fields", {})


def _stand(scale: Scale, axis: str, value: Any) -> Any:
    return _table(scale, axis).get(str(value), value)


def _table(scale: Scale, axis: str) -> dict[str, Any]:
    return {str(key): stand for key, stand in scale.stands.get(axis, {}).items()}


def _protocol(name: str, configs: Path) -> dict[str, Any]:
    file = configs / "protocols" / f"{name}.yaml"
    if not file.exists():
        raise ConfigError(f"protocol {name!r}: {file} is missing")
    return {f"protocol.{key}": value for key, value in load_yaml(file)["protocol"].items()}


def place(text: str, out: Path) -> str:
    """A path or name of a scale made real.  Raises ConfigError for a variable that the environment lacks."""
    assets = str(files("diffsel") / "assets")
    found = os.path.expandvars(text.replace("{out}", str(out)).replace("{assets}", assets))
    if missing := VARIABLE.search(found):
        raise ConfigError(f"{text}: set the environment variable {missing[1]} to the folder that is meant")
    return found


# ---- what it will cost -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a job adds to those before it: whole U-Net ``forwards``, ``vectors`` (half a forward), student ``images``."""

    forwards: int
    vectors: int
    images: int
    scoring: float  # seconds of the U-Net
    training: float  # seconds of students

    @property
    def seconds(self) -> float:
        return self.scoring + self.training


def costs(jobs: Sequence[Job], scale: Scale) -> list[Cost]:
    """Of each job, from nothing; what jobs share is counted once, at the first of them."""
    seen: set[str] = set()

    def new(key: str) -> bool:
        known = key in seen
        seen.add(key)
        return bool(key) and not known

    found, usual = [], scale.settings.get("data.image_size", Settings().data.image_size)
    for job in jobs:
        s, cap = job.settings, job.settings.data.images_per_class
        images = min(job.source.images, cap * job.source.classes if cap else job.source.images)
        forwards = images * s.scoring.draws * (1 + len(s.scoring.prompts)) if not job.baseline and new(job.run_name) else 0
        vectors = images * s.patches.per_image * s.features.ensemble if new(job.vectors) else 0
        seen_images = job.ipc * job.source.classes * s.protocol.epochs * job.students if new(job.trained) else 0
        speed = scale.speed.get(job.student, scale.speed["student"])
        area = (s.data.image_size / usual) ** 2
        scoring = area * (forwards + vectors / 2) / scale.speed["forward"]
        found.append(Cost(forwards, vectors, seen_images, scoring, seen_images / speed))
    return found
