"""Which class is which: folders, names and prompt words, in an order that is data and never a folder's position."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from ..settings.errors import DataError
from ..settings.sections import DataSettings

Listing = Mapping[str, Sequence[str]]  # class folder -> paths of its images


@dataclass(frozen=True)
class ClassInfo:
    """A class: its folder (the identity), its name in prompts, and further prompt words."""

    folder: str
    name: str
    words: Mapping[str, str] = field(default_factory=dict)

    def prompt(self, template: str) -> str:
        """``template`` with ``{label}`` and the class's words filled in.  Raises DataError for an unknown word."""
        values = {**self.words, "label": self.name}

        def fill(match: re.Match[str]) -> str:
            if match[1] not in values:
                near = get_close_matches(match[1], values, n=1) or sorted(values)
                raise DataError(
                    f"prompt {template!r} asks for {{{match[1]}}}, which class {self.folder!r} lacks; "
                    f"it has {', '.join('{' + v + '}' for v in near)} (add words in classes.yaml)"
                )
            return values[match[1]]

        return re.sub(r"\{(\w*)\}", fill, template)


def class_table(path: str, listing: Listing, order: list[str] | None, settings: DataSettings) -> tuple[ClassInfo, ...]:
    """The classes in their explicit order: settings.classes, else classes.yaml, else the data set's own, else by name."""
    file = Path(settings.class_file) if settings.class_file else Path(path) / "classes.yaml"
    if settings.class_file and not file.exists():
        raise DataError(f"class file {file}: no such file")
    described = read_class_file(file) if file.exists() else {}
    unknown = [name for name in described if name not in listing and settings.classes is None]
    if unknown:
        raise DataError(f"{file} names class {unknown[0]!r}, which {path} does not hold{_near(unknown[0], listing)}")
    names = settings.classes or [*described, *[f for f in (order or sorted(listing)) if f in listing and f not in described]]
    missing = [name for name in names if name not in listing]
    if missing:
        raise DataError(f"class {missing[0]!r} is not in {path}{_near(missing[0], listing)} ({len(missing)} missing)")
    empty = [name for name in names if not listing[name]]
    if empty:
        raise DataError(f"class folder {empty[0]!r} of {path} holds no image; remove it or name the classes to use")
    return tuple(described.get(name) or ClassInfo(name, _plain_name(name)) for name in names)


def _near(name: str, listing: Iterable[str]) -> str:
    near = get_close_matches(name, list(listing), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def read_class_file(file: Path) -> dict[str, ClassInfo]:
    """``folder: name`` or ``folder: {name: ..., wnid: ..., any word: ...}``.  Raises DataError."""
    try:
        table: Any = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # texts as they stand: "off", "007"
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{file}: {error}") from None
    if not isinstance(table, dict):
        raise DataError(f"{file}: expected lines like `folder: name`")
    classes = {}
    for folder, entry in table.items():
        words = {"name": entry} if not isinstance(entry, dict) else entry
        if not all(isinstance(k, str) and isinstance(v, str) for k, v in words.items()):
            raise DataError(f"{file}: class {folder!r}: expected a name, or words such as `name: tench`")
        texts = {k: str(v) for k, v in words.items()}
        name = texts.pop("name", None) or _plain_name(texts.get("wnid", str(folder)))
        classes[str(folder)] = ClassInfo(str(folder), name, texts)
    return classes


def _plain_name(folder: str) -> str:
    """A folder's name in words: an ImageNet wnid by torchvision's table, else underscores as spaces."""
    if re.fullmatch(r"n\d{8}", folder) and folder in (wnids := imagenet_wnids()):
        from torchvision.models import ResNet18_Weights

        return str(ResNet18_Weights.IMAGENET1K_V1.meta["categories"][wnids.index(folder)])
    return " ".join(folder.replace("_", " ").split()) or folder


def imagenet_wnids() -> list[str]:
    """The 1000 wnids; a class's ImageNet index is its position here (sorted)."""
    return (files("diffsel") / "assets" / "imagenet_wnids.txt").read_text().split()


def refuse_shared(classes: Sequence[ClassInfo], found: Sequence[str | int | None], source: str) -> None:
    """Two classes of one name (crane, the bird and the machine) must not be taken for one.  Raises DataError naming them."""
    first: dict[str | int | None, str] = {}
    for info, place in zip(classes, found, strict=True):
        if place in first:
            raise DataError(
                f"the classes {first[place]!r} and {info.folder!r} both match {place!r} of {source} by their name "
                f"{info.name!r}; give them different names, or the same folder names as there"
            )
        first[place] = info.folder
