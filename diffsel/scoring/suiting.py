"""What a prior wants where the settings leave it open: its window in log-SNR, its own null, how it names a class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..data.classes import ClassInfo, refuse_shared
from ..settings.errors import ConfigError, DataError
from ..settings.sections import ScoringSettings
from ..settings.settings import Settings
from .folder import ModelFolder
from .nats import stable_diffusion

TEMPLATES = ("{prior}", "{wnid}", "{folder}", "{label}")  # a column of classes.yaml, a wnid, a folder's name, a name


def suited(settings: Settings, folder: ModelFolder, classes: Sequence[ClassInfo] = ()) -> Settings:
    """Settings with what was not given filled in for this prior; of Stable Diffusion 1.x and 2.x as they are.

    Raises ConfigError naming the classes that a class-conditional prior lacks, DataError for two that it takes for one.
    """
    s, told = settings.scoring, dict[str, Any]()
    if folder.family == "sd":
        return settings
    if s.log_snr is None:
        told["log_snr"] = (stable_diffusion(s.t_min), stable_diffusion(s.t_max))
    if "null_prompt" not in s.model_fields_set:
        told["null_prompt"] = ""
    if not folder.kind.texts and "prompts" not in s.model_fields_set and classes:
        told["prompts"] = (_template(folder, classes),)
    return settings.model_copy(update={"scoring": s.model_copy(update=told)})


def pairs(scoring: ScoringSettings, classes: Sequence[ClassInfo]) -> list[tuple[str, str]]:
    """Every label prompt, filled in, with the null prompt.

    Raises ConfigError for a null prompt with a placeholder, which nothing fills, and for a template that is one prompt for all
    of several classes; DataError for a word that a class lacks.
    """
    null, found = scoring.null_prompt, list[tuple[str, str]]()
    if placeholder := re.search(r"\{\w+\}", null):
        raise ConfigError(
            f"scoring.null_prompt = {null!r}: {placeholder[0]} is not filled in; it is one prompt for all classes"
        )
    for template in scoring.prompts:
        texts = [info.prompt(template) for info in classes]
        if len(texts) > 1 and len(set(texts)) == 1:
            way = "name them apart in classes.yaml" if "{" in template else "put {label} into it"
            raise ConfigError(f"scoring.prompts: {template!r} says the same of all {len(texts)} classes; {way}")
        found += [(text, null) for text in texts]
    return found


def _template(folder: ModelFolder, classes: Sequence[ClassInfo]) -> str:
    """The first template that tells this prior every class."""
    unknown = {template: [info.folder for info in classes if not _knows(folder, info, template)] for template in TEMPLATES}
    best = min(TEMPLATES, key=lambda template: len(unknown[template]))
    if unknown[best]:
        names = ", ".join(map(ascii, unknown[best][:10])) + (" ..." if len(unknown[best]) > 10 else "")
        raise ConfigError(
            f"model {folder} has no class for {names} ({len(unknown[best])} of {len(classes)}); name its classes in a column "
            "`prior` of classes.yaml (number, wnid or name), leave these out (--classes), or take a text-to-image model"
        )
    refuse_shared(classes, [folder.class_number(info.prompt(best)) for info in classes], f"model {folder}")
    return best


def _knows(folder: ModelFolder, info: ClassInfo, template: str) -> bool:
    try:
        text = info.prompt(template)
    except DataError:
        return False
    return bool(text) and folder.classes.find(text) is not None
