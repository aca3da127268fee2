"""Settings: all sections together, from flags and YAML files; a wrong key or value is answered with what would be right."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import Field, ValidationError, model_validator

from .errors import ConfigError
from .presets import find_preset
from .sections import (
    EXECUTION,
    AssemblySettings,
    BaselineSettings,
    ComputeSettings,
    DataSettings,
    FeatureSettings,
    ModelSettings,
    PatchSettings,
    ScoringSettings,
    Section,
    SelectionSettings,
)
from .training import ProtocolSettings, TrainingSettings
from .yamls import load_yaml


def default_patch(image_size: int) -> int:
    """7/8 of the shorter side: the paper's 224 of 256 pixels."""
    return image_size * 7 // 8


class Settings(Section):
    """All sections; what a YAML settings file may hold.  A setting whose name only one section has needs no section.

    >>> Settings(model="demo", draws=3) == Settings(model={"model": "demo"}, scoring={"draws": 3})
    True

    Raises ConfigError naming what is wrong, and what would be right.
    """

    seed: int = Field(0, ge=0, le=2**62, description="Seeds the image cap, the noise, K-means and random baselines.")
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    compute: ComputeSettings = ComputeSettings()
    scoring: ScoringSettings = ScoringSettings()
    patches: PatchSettings = PatchSettings()
    features: FeatureSettings = FeatureSettings()
    selection: SelectionSettings = SelectionSettings()
    baseline: BaselineSettings = BaselineSettings()
    assembly: AssemblySettings = AssemblySettings()
    training: TrainingSettings = TrainingSettings()
    protocol: ProtocolSettings = ProtocolSettings()

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**placed(values))
        except ValidationError as error:
            raise ConfigError("; ".join(map(_explain, error.errors()))) from error

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.patches.patch_size is None:
            sized = self.patches.model_copy(update={"patch_size": default_patch(self.data.image_size)})
            object.__setattr__(self, "patches", sized)
        elif self.patches.patch_size > self.data.image_size:
            raise ValueError(
                f"patches.patch_size ({self.patches.patch_size}) must not exceed data.image_size "
                f"({self.data.image_size}); 0 means the whole image"
            )
        if self.patches.patch_size and self.patches.patch_size < 8:
            raise ValueError(f"patches.patch_size ({self.patches.patch_size}) must be 0 or at least 8 pixels")
        if self.assembly.factor > self.assembly.size // 8:
            raise ValueError(f"assembly.factor ({self.assembly.factor}) must leave tiles of at least 8 pixels")
        if self.patches.rivals:
            self._check_rivals()
        if self.patches.prompt >= len(self.scoring.prompts):
            raise ValueError(
                f"patches.prompt is {self.patches.prompt}, but only {len(self.scoring.prompts)} prompts are scored"
            )
        return self

    def _check_rivals(self) -> None:
        if self.patches.estimator != "gated":
            raise ValueError(
                f"patches.rivals gates the gap map; it must not go with patches.estimator = {self.patches.estimator}"
            )
        if self.scoring.adaptive_draws:
            raise ValueError("patches.rivals must not go with scoring.adaptive_draws: labels are compared by the same draws")


SECTIONS: dict[str, Any] = {
    name: field.annotation for name, field in Settings.model_fields.items() if hasattr(field.annotation, "model_fields")
}


def homes(field: str) -> list[str]:
    """The sections that have a setting of this name."""
    return [name for name, section in SECTIONS.items() if field in section.model_fields]


def placed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that stand outside of their section, put into the one that has them; all others as they are."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        plain, sections = isinstance(value, Section | Mapping), homes(key)
        inside = len(sections) == 1 and not (key in SECTIONS and plain)  # model is a section and its first setting
        value = dict(value) if isinstance(value, Section) else value
        _merge(found, {sections[0]: {key: value}} if inside else {key: value})
    return found


DEFAULT = Settings()


def load_settings(
    files: str | Path | Sequence[str | Path] = (),
    flags: Mapping[str, Any] | None = None,
    base: Mapping[str, Any] | None = None,
) -> Settings:
    """``base``, over it YAML files or presets by name (later ones win), over them flags ``{"section.field": value}``.

    >>> load_settings("rded", {"protocol.epochs": 30}).protocol.name
    'rded'

    A run.yaml is a settings file too: what RUN was made with, apart from what belongs to its machine.
    Raises ConfigError naming the file, the key and the nearest valid one.
    """
    merged: dict[str, Any] = {}
    _merge(merged, base or {})
    for file in map(find_preset, [files] if isinstance(files, str | Path) else files):
        try:
            part = load_yaml(file) or {}
        except (OSError, ValueError) as error:
            raise ConfigError(f"settings file {file}: {error}") from None
        if not isinstance(part, dict):
            raise ConfigError(f"settings file {file}: expected sections such as `scoring:`, found {type(part).__name__}")
        if {"format", "identity", "settings"} <= part.keys():  # a run.yaml
            part = without_execution(part["settings"])
        try:
            resolve(part, alone=True)
        except ConfigError as error:
            raise ConfigError(f"settings file {file}: {error}") from None
        _merge(merged, placed(part))
    for key, value in (flags or {}).items():
        *section, field = key.split(".")
        _merge(merged, {section[0]: {field: value}} if section else {field: value})
    return resolve(merged)


def resolve(values: Mapping[str, Any], alone: bool = False) -> Settings:
    """Settings from nested values.  Raises ConfigError.

    ``alone``: one file of several, in which keys and types must be right; rules between fields wait for the others.
    """
    _refuse_switches(values)
    try:
        return Settings(**{str(key): value for key, value in values.items()})
    except ConfigError as error:
        found = error.__cause__.errors() if isinstance(error.__cause__, ValidationError) else []
        wrong = [each for each in found if not alone or each["type"] != "value_error"]
        if wrong:
            raise ConfigError("; ".join(map(_explain, wrong))) from None
        return Settings()


def _refuse_switches(values: Mapping[str, Any]) -> None:
    """YAML's `yes` and `on` are True, which would count as the number 1.  Raises ConfigError."""
    for name, section in SECTIONS.items():
        given = values.get(name)
        for key, value in given.items() if isinstance(given, Mapping) else ():
            kind = section.model_fields[key].annotation if key in section.model_fields else bool
            parts = value if isinstance(value, list | tuple) else [value]
            if bool not in (kind, *get_args(kind)) and any(isinstance(each, bool) for each in parts):
                raise ConfigError(f"{name}.{key} = {value!r}: yes, no, on, off, true and false are no value of it")


def identity(section: Section) -> dict[str, Any]:
    """A section as plain values, without the fields that change only speed, or came later and change nothing."""
    marks = {k: f.json_schema_extra for k, f in type(section).model_fields.items() if isinstance(f.json_schema_extra, dict)}
    skip = {k for k, mark in marks.items() if mark == EXECUTION or mark.get("neutral", mark) == getattr(section, k)}
    return section.model_dump(mode="json", exclude=skip)


def without_execution(values: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded settings without those that belong to the machine they were recorded on; fields that came later as they were
    before there were any."""
    return {**_as_before(values), "compute": {"precision": values["compute"]["precision"]}}


def _as_before(values: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(values)
    for name, section in Settings.model_fields.items():
        for key, field in getattr(section.annotation, "model_fields", {}).items():
            mark = field.json_schema_extra
            if isinstance(mark, dict) and "neutral" in mark and name in values:
                found[name] = {key: mark["neutral"], **found[name]}
    return found


def sizes_of(data: DataSettings) -> dict[str, int]:
    """What decides the size of every image, as identities hold it; ``side_multiple`` came later."""
    return {"image_size": data.image_size} | ({"side_multiple": data.step} if data.step > 1 else {})


def fingerprint(values: Any) -> str:
    """16 hex digits that stand for these plain values (dictionary order does not matter)."""
    canonical = json.dumps(values, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _merge(base: dict[str, Any], extra: Mapping[str, Any]) -> None:
    for key, value in extra.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = dict(value) if isinstance(value, Mapping) else value


def _explain(error: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        section = SECTIONS.get(str(error["loc"][0])) if len(error["loc"]) > 1 else None
        valid = list(section.model_fields if section else Settings.model_fields)
        known = valid if section else [*valid, *(name for each in SECTIONS.values() for name in each.model_fields)]
        if not section and (several := homes(where)):
            return f"setting {where!r} is in several sections; say which: {', '.join(f'{each}.{where}' for each in several)}"
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(valid)}"
        return f"unknown setting {where!r}; {hint}"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{where} = {error['input']!r}: {message}" if where and "must" not in message else message
