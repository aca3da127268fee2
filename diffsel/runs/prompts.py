"""Other prompts on a stored run: label prompts, in any number, against the run's null prompt or another one.

    RUN/prompts/KEY/  settings.yaml    every class's text, and that of the null prompt; KEY is their hash
                      <class>-000.safetensors   row.differential and row.gap (B, h, w), or of a null prompt row.null

Images, noise and timesteps are the run's, so that maps of all prompts are paired.  Null losses are kept: a prompt
added later costs its own forwards only, as long as nothing but the differential map is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from ..data.classes import ClassInfo, read_class_file
from ..data.images import Row
from ..machine.files import write_atomically
from ..machine.formats import dump_yaml, read_unit, write_unit
from ..scoring import maps as scoring
from ..scoring.diffusion import Diffusion, check_prompts, locate
from ..scoring.draws import Picture
from ..settings.errors import ConfigError, DataError, StoreError
from ..settings.settings import fingerprint
from .run import Run, Unit
from .session import Session

Texts = Mapping[str, str]  # class folder -> prompt


@dataclass(frozen=True, eq=False)
class Part:
    """What is stored of a prompt against a null prompt, or (``prompt`` None) of a null prompt: one file a unit."""

    run: Run
    prompt: Texts | None
    null: Texts
    gap: bool  # whether the gap map is there too

    @cached_property
    def identity(self) -> dict[str, Any]:
        return {"prompt": self.prompt and dict(self.prompt), "null": dict(self.null), "gap": self.gap}

    @cached_property
    def key(self) -> str:
        return fingerprint(self.identity)

    @cached_property
    def mark(self) -> str:
        return fingerprint([self.run.mark, self.identity])

    def file(self, unit: Unit) -> Path:
        return self.run.path / "prompts" / self.key / f"{unit.name}.safetensors"

    def read(self, unit: Unit) -> dict[str, np.ndarray]:
        return read_unit(self.file(unit), self.mark)[0]

    def write(self, unit: Unit, tensors: Mapping[str, np.ndarray]) -> None:
        settings = self.file(unit).parent / "settings.yaml"
        if not settings.exists():
            write_atomically(settings, dump_yaml(self.identity))
        write_unit(self.file(unit), self.mark, tensors, {"label": unit.label})


@dataclass
class View(Session):
    """A run as one prompt sees it: every stage after scoring works on it as on any run."""

    base: Session | None = None
    part: Part | None = None  # where its maps lie; None: among the run's own

    @cached_property
    def model(self) -> Diffusion:
        assert self.base is not None
        return self.base.model

    @property
    def feature_identity(self) -> dict[str, Any]:
        own = super().feature_identity
        return {**own, "prompt": self.part.key} if self.part else own

    def maps(self, unit: Unit) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        tensors, extra = super().maps(unit)
        if self.part is None:
            return tensors, extra
        added = {name: value[None] for name, value in self.part.read(unit).items()}
        if not self.part.gap:  # not a number, so that nothing can take it for one
            added |= {f"{row}.gap": np.full_like(added[f"{row}.differential"], np.nan) for row in extra["rows"]}
        return added, extra


@dataclass(frozen=True)
class Study:
    """Prompts to compare on one run.  ``own``: position among the run's stored prompts, of those that are there."""

    session: Session
    classes: tuple[ClassInfo, ...]
    templates: tuple[str, ...]
    null: str
    gap: bool  # whether gap maps are made for prompts that are added

    def texts(self, template: str) -> dict[str, str]:
        return {info.folder: info.prompt(template) for info in self.classes}

    @cached_property
    def own_null(self) -> bool:
        own = self.session.settings.scoring
        if own.adaptive_draws:  # the run's null losses are means of other draws, image by image
            return False
        return set(self.texts(self.null).values()) == {own.null_prompt}

    @cached_property
    def own(self) -> tuple[int | None, ...]:
        stored = self.session.settings.scoring.prompts
        known = [{info.folder: info.prompt(p) for info in self.session.run.classes} for p in stored] if self.own_null else []
        return tuple(known.index(texts) if (texts := self.texts(t)) in known else None for t in self.templates)

    @cached_property
    def parts(self) -> tuple[Part | None, ...]:
        """Where each prompt's maps lie or will lie; None: among the run's own."""
        return tuple(self._part(t) if own is None else None for t, own in zip(self.templates, self.own, strict=True))

    @cached_property
    def null_part(self) -> Part:
        return Part(self.session.run, None, self.texts(self.null), False)

    def _part(self, template: str) -> Part:
        fuller = Part(self.session.run, self.texts(template), self.texts(self.null), True)
        if self.gap or all(fuller.file(unit).exists() for unit in self.session.units):
            return fuller
        return replace(fuller, gap=False)

    def missing(self, unit: Unit) -> list[Part]:
        wanted = dict.fromkeys(part for part in self.parts if part)
        if wanted and self.gap and not self.own_null:
            wanted = {self.null_part: None, **wanted}  # first, so that it is there whenever the others are
        return [part for part in wanted if not part.file(unit).exists()]

    def forwards(self) -> int:
        """U-Net samples that are still to be computed, at most."""
        draws, total = self.session.settings.scoring.draws, 0
        for unit in self.session.units:
            if missing := self.missing(unit):
                added = sum(part.prompt is not None for part in missing)
                total += len(unit.rows) * draws * (added + self.gap)
        return total

    def views(self) -> list[View]:
        """The run as each prompt sees it, in order; ``score`` must have run."""
        return [self._view(*each) for each in zip(self.templates, self.own, self.parts, strict=True)]

    def _view(self, template: str, own: int | None, part: Part | None) -> View:
        s, session = self.session.settings, self.session
        s = s.model_copy(update={"patches": s.patches.model_copy(update={"prompt": own or 0})})
        if part:
            asked = s.scoring.model_copy(update={"prompts": (template,), "null_prompt": self.null})
            s = s.model_copy(update={"scoring": asked})
        run = replace(session.run, classes=self.classes)
        data = replace(session.data, classes=self.classes)
        return View(s, data, run, session.workers, session.progress, session.counts, session.notes, True, session, part)


def plan(session: Session, templates: Sequence[str], null: str | None = None, words: Path | None = None) -> Study:
    """What a comparison needs, with everything refused that can be before anything is computed.

    ``templates`` are label prompts (none: all that RUN has; one: RUN's own first one is put before it); ``null`` is the
    null prompt, RUN's by default, and may hold a class's words as well; ``words`` is a classes.yaml with further words.

    Raises ConfigError for prompts that are equal, malformed or too long, DataError for words that a class lacks,
    StoreError where RUN has not been scored.
    """
    s = session.settings.scoring
    chosen = tuple(templates) or s.prompts
    if len(chosen) == 1 and chosen[0] != s.prompts[0]:
        chosen = (s.prompts[0], *chosen)
    classes = _with_words(session.run.classes, words)
    null = s.null_prompt if null is None else null
    for template in (*chosen, null):
        if rest := re.search(r"[{}]", re.sub(r"\{\w+\}", "", template)):
            raise ConfigError(f"prompt {template!r}: stray {rest[0]!r}; a placeholder looks like {{label}}")
    for unit in session.units:
        if not session.run.map_file(unit).exists():
            raise StoreError(f"{session.run.path}: {unit.name} is not scored yet; start `diffsel score` again")
    study = Study(session, classes, chosen, null, gap=False)
    _check_different(study)
    if session.settings.patches.estimator != "differential":
        study = replace(study, gap=True)
    elif not study.own_null and not all(study.null_part.file(unit).exists() for unit in session.units):
        study = replace(study, gap=True)  # the null prompt must be computed anyway, and then the gap map costs nothing
    if any(study.missing(unit) for unit in session.units):
        texts = [text for t in (*chosen, null) for text in study.texts(t).values()]
        check_prompts(locate(session.settings.model), dict.fromkeys(texts))
    return study


def score(study: Study) -> None:
    """The maps of all prompts that are not stored yet, in one pass over the images -> RUN/prompts."""
    session = study.session
    rows = {unit.name: len(unit.rows) for unit in session.units}
    while last := {unit: parts[-1].file(unit) for unit in session.units if (parts := study.missing(unit))}:
        done = sum(rows.values()) - sum(rows[unit.name] for unit in last)
        with (  # a unit's last file stands for all of it; where a launch with other prompts made it, the rest is made next
            session.progress(total=sum(rows.values()), initial=done, desc="scoring prompts", unit="image") as bar,
            session.workers.share(list(last), last.__getitem__, lambda unit: bar.update(rows[unit.name])) as left,
        ):
            for unit in left:
                for part, values in _score_unit(study, unit, bar).items():
                    part.write(unit, values)


def _score_unit(study: Study, unit: Unit, bar: Any) -> dict[Part, dict[str, np.ndarray]]:
    session, s = study.session, study.session.settings
    kept, extra = session.maps(unit)
    rows = [row for row in unit.rows if row.row in set(extra["rows"])]
    pictures = _pictures(session, unit, rows)
    missing = study.missing(unit)
    added = [part for part in missing if part.prompt is not None]
    texts = [part.prompt[unit.label] for part in added if part.prompt is not None]
    settings = s.scoring.model_copy(update={"null_prompt": study.null_part.null[unit.label]})
    keyed = [(row.digest, picture) for row, picture in pictures]
    found: dict[Part, dict[str, np.ndarray]] = {part: {} for part in missing}
    how: dict[str, Any] = {"prompts": texts, "settings": settings, "seed": s.seed}
    if study.gap:
        for place, maps in session.fitting(keyed, partial(scoring.score_images, session.model, apart=True, **how)):
            row = pictures[place][0]
            for p, part in enumerate(added):
                found[part] |= {f"{row.row}.differential": maps.differential[p], f"{row.row}.gap": maps.gap[p]}
            if study.null_part in found:
                found[study.null_part][f"{row.row}.null"] = maps.null
            bar.update()
    else:
        null = kept if study.own_null else study.null_part.read(unit)
        for place, losses in session.fitting(keyed, partial(scoring.label_losses, session.model, **how)):
            row = pictures[place][0]
            for p, part in enumerate(added):
                found[part][f"{row.row}.differential"] = (losses[p] - null[f"{row.row}.null"]).astype(np.float16)
            bar.update()
    for values in found.values():
        if not all(np.isfinite(value).all() for value in values.values()):
            raise ConfigError(f"{unit.name}: loss maps overflow; the model does not work in this compute.precision, use fp32")
    session.count("U-Net forwards", len(pictures) * settings.draws * (len(texts) + study.gap))
    return found


def _pictures(session: Session, unit: Unit, rows: Sequence[Row]) -> list[tuple[Row, Picture]]:
    """The latents that were kept of these rows (compute.keep_latents), else their pixels."""
    if (file := session.run.latent_file(unit)).exists():
        latents, _ = read_unit(file, session.run.mark)
        return [(row, latents[str(row.row)]) for row in rows]
    pictures, lost = session.read(rows)
    if lost:
        raise DataError(f"{lost[0].path} was scored but cannot be read any more: {lost[0].reason}")
    return list(pictures)


def _with_words(classes: Sequence[ClassInfo], file: Path | None) -> tuple[ClassInfo, ...]:
    """The run's classes, those named in ``file`` with its words.  Raises DataError for a class that RUN lacks."""
    described = read_class_file(file) if file else {}
    unknown = [name for name in described if name not in {info.folder for info in classes}]
    if unknown:
        raise DataError(f"{file} names class {unknown[0]!r}, which the run does not hold")
    return tuple(described.get(info.folder, info) for info in classes)


def _check_different(study: Study) -> None:
    """Raises ConfigError where two prompts, or a prompt and the null prompt, say the same."""
    texts = [study.texts(template) for template in study.templates]
    null = study.texts(study.null)
    for i, template in enumerate(study.templates):
        if texts[i] in texts[:i]:
            same = study.templates[texts.index(texts[i])]
            raise ConfigError(f"prompt {template!r} says the same as {same!r} for every class; give each prompt once")
        for folder, text in texts[i].items():
            if text == null[folder]:
                raise ConfigError(f"prompt {template!r} and the null prompt are both {text!r} for class {folder!r}")
