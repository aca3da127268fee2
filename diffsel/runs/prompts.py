"""Other prompts on a stored run: label prompts, in any number, against the run's null prompt or another one.

    RUN/prompts/KEY/  settings.yaml    every class's text, and that of the null prompt; KEY is their hash
                      <class>-000.safetensors   row.differential and row.gap (B, h, w), or of a null prompt row.null

Images, noise and timesteps are the run's, so that maps of all prompts are paired.  Null losses are kept: a prompt
added later costs its own forwards only, as long as nothing but the differential map is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..data.classes import ClassInfo, read_class_file, spelled
from ..data.rows import Row
from ..scoring.folder import locate
from ..scoring.maps import label_losses, score_images
from ..settings.errors import ConfigError, DataError, StoreError
from ..settings.sections import malformed
from .parts import PromptPart
from .session import Session
from .units import Unit, scored_rows


@dataclass(frozen=True)
class Comparison:
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
    def parts(self) -> tuple[PromptPart | None, ...]:
        """Where each prompt's maps lie or will lie; None: among the run's own."""
        return tuple(self._part(t) if own is None else None for t, own in zip(self.templates, self.own, strict=True))

    @cached_property
    def null_part(self) -> PromptPart:
        return PromptPart(self.session.run.path, self.session.run.mark, None, self.texts(self.null), False)

    def _part(self, template: str) -> PromptPart:
        fuller = PromptPart(self.session.run.path, self.session.run.mark, self.texts(template), self.texts(self.null), True)
        if self.gap or all(fuller.file(unit).exists() for unit in self.session.run.units):
            return fuller
        return replace(fuller, gap=False)

    def missing(self, unit: Unit) -> list[PromptPart]:
        wanted = dict.fromkeys(part for part in self.parts if part)
        if wanted and self.gap and not self.own_null:
            wanted = {self.null_part: None, **wanted}  # first, so that it is there whenever the others are
        return [part for part in wanted if not part.file(unit).exists()]

    def forwards(self) -> int:
        """U-Net samples that are still to be computed, at most."""
        draws, total = self.session.settings.scoring.draws, 0
        for unit in self.session.run.units:
            if missing := self.missing(unit):
                added = sum(part.prompt is not None for part in missing)
                total += len(unit.rows) * draws * (added + self.gap)
        return total

    def views(self) -> list[Session]:
        """The run as each prompt sees it, in order; ``score`` must have run."""
        return [self._view(*each) for each in zip(self.templates, self.own, self.parts, strict=True)]

    def _view(self, template: str, own: int | None, part: PromptPart | None) -> Session:
        run = self.session.run
        s = run.settings.model_copy(update={"patches": run.settings.patches.model_copy(update={"prompt": own or 0})})
        if part:
            asked = s.scoring.model_copy(update={"prompts": (template,), "null_prompt": self.null})
            s = s.model_copy(update={"scoring": asked})
        seen = replace(run, settings=s, classes=self.classes, data=replace(run.data, classes=self.classes), part=part)
        return self.session.seen(seen)


def plan(session: Session, templates: Sequence[str], null: str | None = None, words: Path | None = None) -> Comparison:
    """What a comparison needs, with everything refused that can be before anything is computed.

    ``templates`` are label prompts (none: all that RUN has; one: RUN's own first one is put before it); ``null`` is the
    null prompt, RUN's by default, and may hold a class's words as well; ``words`` is a classes.yaml with further words.

    Raises ConfigError for prompts that are equal, malformed or too long, DataError for words that a class lacks,
    StoreError where RUN has not been scored.
    """
    s = session.settings.scoring
    if session.settings.patches.rivals:
        raise ConfigError("prompts are compared without rivals; add --rivals 0")
    chosen = tuple(templates) or s.prompts
    if len(chosen) == 1 and chosen[0] != s.prompts[0]:
        chosen = (s.prompts[0], *chosen)
    classes = _with_words(session.run.classes, words)
    null = s.null_prompt if null is None else null
    for template in (*chosen, null):
        if wrong := malformed(template):
            raise ConfigError(f"prompt {wrong}")
    for unit in session.run.units:
        if not session.run.map_file(unit).exists():
            raise StoreError(f"{session.run.path}: {unit.name} is not scored yet; start `diffsel score` again")
    study = Comparison(session, classes, chosen, null, gap=False)
    _check_different(study)
    if session.settings.patches.estimator != "differential":
        study = replace(study, gap=True)
    elif not study.own_null and not all(study.null_part.file(unit).exists() for unit in session.run.units):
        study = replace(study, gap=True)  # the null prompt must be computed anyway, and then the gap map costs nothing
    if any(study.missing(unit) for unit in session.run.units):
        nulls = study.texts(null)
        pairs = [(text, nulls[label]) for template in chosen for label, text in study.texts(template).items()]
        locate(session.settings.model).check_prompts(dict.fromkeys(pairs))
    return study


def score(study: Comparison) -> None:
    """The maps of all prompts that are not stored yet, in one pass over the images -> RUN/prompts."""
    session = study.session
    rows = {unit.name: len(unit.rows) for unit in session.run.units}
    while last := {unit: parts[-1].file(unit) for unit in session.run.units if (parts := study.missing(unit))}:
        done = sum(rows.values()) - sum(rows[unit.name] for unit in last)
        with (  # a unit's last file stands for all of it; where a launch with other prompts made it, the rest is made next
            session.progress(total=sum(rows.values()), initial=done, desc="scoring prompts", unit="image") as bar,
            session.workers.share(list(last), last.__getitem__, lambda unit: bar.update(rows[unit.name])) as left,
        ):
            for unit in left:
                for part, values in _score_unit(study, unit, bar).items():
                    part.write(unit, values, session.about(unit))


def _score_unit(study: Comparison, unit: Unit, bar: Any) -> dict[PromptPart, dict[str, np.ndarray]]:
    session, s = study.session, study.session.settings
    kept, extra = session.run.maps(unit)
    pictures = session.pictures(unit, scored_rows(unit, extra))
    missing = study.missing(unit)
    added = [part for part in missing if part.prompt is not None]
    texts = [part.prompt[unit.label] for part in added if part.prompt is not None]
    keyed = [(row.digest, picture) for row, picture in pictures]
    found: dict[PromptPart, dict[str, np.ndarray]] = {part: {} for part in missing}
    null = study.null_part.null[unit.label]

    def make(scoring: Callable[..., Any], **how: Any) -> Iterator[tuple[Row, Any]]:
        asked = replace(session.scorer, settings=session.scorer.settings.model_copy(update={"null_prompt": null}))
        for place, value in scoring(asked, keyed, texts, **how):
            yield pictures[place][0], value
            bar.update()

    if study.gap:
        for row, maps in make(score_images, apart=True):
            for p, part in enumerate(added):
                found[part] |= {f"{row.row}.differential": maps.differential[p], f"{row.row}.gap": maps.gap[p]}
            if study.null_part in found:
                found[study.null_part][f"{row.row}.null"] = maps.null
    else:
        known = kept if study.own_null else study.null_part.read(unit)
        for row, losses in make(label_losses):
            for p, part in enumerate(added):
                found[part][f"{row.row}.differential"] = (losses[p] - known[f"{row.row}.null"]).astype(np.float16)
    for values in found.values():
        if not all(np.isfinite(value).all() for value in values.values()):
            raise ConfigError(f"{unit.name}: its loss maps of these prompts overflow, even in fp32; use other words")
    session.count("U-Net forwards", len(pictures) * s.scoring.draws * (len(texts) + study.gap))
    return found


def _with_words(classes: Sequence[ClassInfo], file: Path | None) -> tuple[ClassInfo, ...]:
    """The run's classes, those named in ``file`` with its words.  Raises DataError for a class that RUN lacks."""
    told = read_class_file(file) if file else {}
    found = spelled(told, [info.folder for info in classes])
    if unknown := [name for name, folder in zip(told, found, strict=True) if folder is None]:
        raise DataError(f"{file} names class {unknown[0]!r}, which the run does not hold")
    described = {folder: replace(info, folder=folder) for info, folder in zip(told.values(), found, strict=True) if folder}
    return tuple(described.get(info.folder, info) for info in classes)


def _check_different(study: Comparison) -> None:
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
