"""What is stored beside a pass on the same images and draws: maps of other prompts, one file a unit, each kind in a folder
that is named after a hash of what it is.  They come later than the pass, and leave it as it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..machine.files import write_atomically
from ..machine.formats import dump_yaml
from ..machine.tensors import read_unit, write_unit
from ..settings.errors import ConfigError
from ..settings.settings import fingerprint
from .units import Unit, check_unit, rows_of

Texts = Mapping[str, str]  # class folder -> prompt


@dataclass(frozen=True, eq=False)
class Part(ABC):
    """Files of one kind beside RUN's own."""

    home: ClassVar[str]  # folder in RUN
    path: Path  # RUN
    base: str  # mark of its pass

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides its bytes, beside the pass."""

    @cached_property
    def key(self) -> str:
        return fingerprint(self.identity)

    @cached_property
    def mark(self) -> str:
        return fingerprint([self.base, self.identity])

    def file(self, unit: Unit) -> Path:
        return self.path / self.home / self.key / f"{unit.name}.safetensors"

    def read(self, unit: Unit) -> dict[str, np.ndarray]:
        tensors, extra = read_unit(self.file(unit), self.mark)
        check_unit(self.file(unit), unit, extra, rows_of(tensors))
        return tensors

    def write(self, unit: Unit, tensors: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
        settings = self.file(unit).parent / "settings.yaml"
        if not settings.exists():
            write_atomically(settings, dump_yaml(self.identity))
        write_unit(self.file(unit), self.mark, tensors, about)


@dataclass(frozen=True, eq=False)
class PromptPart(Part):
    """A prompt against a null prompt, or (``prompt`` None) a null prompt."""

    home = "prompts"
    prompt: Texts | None
    null: Texts
    gap: bool  # whether the gap map is there too

    @property
    def identity(self) -> dict[str, Any]:
        return {"prompt": self.prompt and dict(self.prompt), "null": dict(self.null), "gap": self.gap}


@dataclass(frozen=True, eq=False)
class RivalPart(Part):
    """Labels that each image may be taken for, against RUN's own null prompt."""

    home = "rivals"
    count: int | tuple[str, ...]  # or their names
    prompt: int  # which of RUN's prompts names them
    classes: tuple[str, ...]  # of RUN, by folder
    draws: int

    @property
    def identity(self) -> dict[str, Any]:
        return {"rivals": self.count if isinstance(self.count, int) else list(self.count), "prompt": self.prompt}

    @cached_property
    def possible(self) -> dict[str, None]:
        """Raises ConfigError as ``possible_rivals``."""
        return possible_rivals(self.count, self.classes)

    def labels(self, label: str) -> list[str]:
        """Class folders of which an image of ``label`` may be taken for one."""
        return [name for name in self.possible if name != label]

    def forwards(self, unit: Unit) -> int:
        """U-Net samples for a unit none of whose images is passed over."""
        return rival_forwards(self.count, others(self.possible, unit.label), self.draws) * len(unit.rows)


def possible_rivals(count: int | tuple[str, ...], classes: Sequence[str]) -> dict[str, None]:
    """The class folders that may be a rival of others: all, or those that are named, in their order; none for a ``count`` of 0.

    Raises ConfigError where there are fewer others than ``count``, or a name is no class.
    """
    if not count:
        return {}
    named = classes if isinstance(count, int) else count
    if len(classes) < 2:
        raise ConfigError("patches.rivals compares labels, but there is one class; it needs two or more")
    if isinstance(count, int) and count >= len(classes):
        raise ConfigError(
            f"patches.rivals = {count}: of {len(classes)} classes, an image has {len(classes) - 1} other labels at most"
        )
    if unknown := [name for name in named if name not in classes]:
        near = get_close_matches(unknown[0], classes, n=3) or classes[:8]
        raise ConfigError(f"patches.rivals names {unknown[0]!r}, which is no class; there is {', '.join(near)}")
    return dict.fromkeys(named)


def others(possible: Collection[str], label: str) -> int:
    """How many rivals an image of ``label`` may have; itself is none."""
    return len(possible) - (label in possible)


def rival_forwards(count: int | tuple[str, ...], others: int, draws: int) -> int:
    """U-Net samples for an image with so many ``others``: each by one draw, the rivals by all."""
    return others + kept_rivals(count, others) * (draws - 1)


def kept_rivals(count: int | tuple[str, ...], others: int) -> int:
    """Rivals of an image with so many ``others``; of those that are named, all."""
    return count if isinstance(count, int) else others
