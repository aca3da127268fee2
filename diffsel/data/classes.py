"""Which class is which: folders, names and prompt words, in an order that is data and never a folder's position."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from ..settings.errors import DataError
from ..settings.sections import DataSettings
from ..settings.yamls import load_yaml


@dataclass(frozen=True)
class Listing:
    """What a data set holds, before any image is read."""

    images: Mapping[str, Sequence[str]]  # class folder -> paths of its images
    read: Callable[[str], bytes]  # the bytes of a path
    order: Sequence[str] | None = None  # of the classes, where the data set has its own
    others: Mapping[str, Sequence[str]] = field(default_factory=dict)  # class folder -> files that are not taken for images
    notes: tuple[str, ...] = ()  # what a user should know of it


@dataclass(frozen=True)
class ClassInfo:
    """A class: its folder (the identity), its name in prompts, and further prompt words."""

    folder: str
    name: str
    words: Mapping[str, str] = field(default_factory=dict)

    def prompt(self, template: str) -> str:
        """``template`` with ``{label}``, ``{folder}`` and the words filled in.  Raises DataError for an unknown word."""
        values = {"folder": self.folder, **self.words, "label": self.name}

        def fill(match: re.Match[str]) -> str:
            if match[1] not in values:
                near = get_close_matches(match[1], values, n=1) or sorted(values)
                raise DataError(
                    f"prompt {template!r} asks for {{{match[1]}}}, which class {self.folder!r} lacks; "
                    f"it has {', '.join('{' + v + '}' for v in near)} (add words in classes.yaml)"
                )
            return values[match[1]]

        return re.sub(r"\{(\w*)\}", fill, template)


def class_table(path: str, listing: Listing, settings: DataSettings) -> tuple[ClassInfo, ...]:
    """The classes in their explicit order: settings.classes, else classes.yaml, else the data set's own, else by name."""
    file = Path(settings.class_file) if settings.class_file else Path(path) / "classes.yaml"
    if settings.class_file and not file.exists():
        raise DataError(f"class file {file}: no such file")
    there = listing.images
    told = read_class_file(file) if settings.class_file or os.path.lexists(file) else {}
    described: dict[str, ClassInfo] = {}
    unknown = []
    for name, found in zip(told, spelled(told, there), strict=True):
        if found in described:
            raise DataError(f"{file} names class {name!r} twice, with its letters composed in two ways")
        described |= {found: replace(told[name], folder=found)} if found else {}
        unknown += [] if found else [name]
    if unknown and settings.classes is None:
        raise DataError(f"{file} names class {unknown[0]!r}, which {path} does not hold{_near(unknown[0], there)}")
    asked = settings.classes or [*described, *(f for f in listing.order or sorted(there) if f in there and f not in described)]
    resolved = spelled(asked, there)
    if missing := [name for name, found in zip(asked, resolved, strict=True) if found is None]:
        raise DataError(f"class {missing[0]!r} is not in {path}{_near(missing[0], there)} ({len(missing)} missing)")
    names = [found for found in resolved if found is not None]
    if len(set(names)) < len(names):
        raise DataError(f"class {Counter(names).most_common(1)[0][0]!r} of {path} is asked for twice")
    if not all(map(str.strip, names)):
        raise DataError(f"a class of {path} has an empty name")
    empty = [name for name in names if not there[name]]
    if empty:
        others = listing.others.get(empty[0], ())
        held = f", but {len(others)} other files: {kinds_of(others)}" if others else ""
        remedy = "convert them, or give them an extension that says what they are; or " if others else ""
        if others and all(name.endswith(".tar") for name in others):
            remedy = f"shards are read from their own folder: give {Path(path) / empty[0]}; or "
        raise DataError(
            f"class folder {empty[0]!r} of {path} holds no image{held}; {remedy}remove it or name the classes to use"
        )
    return tuple(described.get(name) or ClassInfo(name, _plain_name(name)) for name in names)


def spelled(names: Iterable[str], there: Iterable[str]) -> list[str | None]:
    """Each name as it is written ``there``: as it stands, or with its letters composed otherwise (é as one character or as an
    e and an accent); None where there is none, or more than one."""
    known = set(there)
    forms: dict[str, list[str]] = {}
    for each in known:
        forms.setdefault(unicodedata.normalize("NFC", each), []).append(each)

    def find(name: str) -> str | None:
        alike = forms.get(unicodedata.normalize("NFC", name), [])
        return name if name in known else alike[0] if len(alike) == 1 else None

    return [find(name) for name in names]


def kinds_of(names: Iterable[str], most: int = 8) -> str:
    """Files counted by extension, most first; an image's extension with something behind it counts as one of its own."""
    found = Counter(_extension(name) for name in names).most_common()
    shown = [f"{count} {ending}" for ending, count in sorted(found, key=lambda item: (-item[1], item[0]))]
    more = [f"and {len(shown) - most} more kinds"] if len(shown) > most else []
    return ", ".join(shown[:most] + more)


def _extension(name: str) -> str:
    last = name.rpartition("/")[2].lower()
    odd = re.search(r"\.(?:jpe?g|jfif|png|webp|avif|bmp|gif|tiff?|heic)(?=[^a-z0-9]).*$", last)
    ending = odd[0] if odd else last[last.rindex(".") :] if "." in last[1:] else ""
    text = ascii(ending)[1:-1] if len(ending) <= 12 else f"{ascii(ending[:8])[1:-1]}..."
    return (repr(text) if " " in text else text) or "no extension"


def _near(name: str, listing: Iterable[str]) -> str:
    near = get_close_matches(name, list(listing), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def read_class_file(file: Path) -> dict[str, ClassInfo]:
    """``folder: name`` or ``folder: {name: ..., wnid: ..., any word: ...}``.  Raises DataError."""
    try:
        table = load_yaml(file, texts=True)
    except (OSError, ValueError) as error:
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
        return imagenet_names()[wnids.index(folder)]
    return " ".join(folder.replace("_", " ").split()) or folder


def imagenet_wnids() -> list[str]:
    """The 1000 wnids; a class's ImageNet index is its position here (sorted)."""
    return (files("diffsel") / "assets" / "imagenet_wnids.txt").read_text().split()


def imagenet_names() -> list[str]:
    """torchvision's names of the 1000 classes, in the order of their wnids (all different since torchvision 0.13)."""
    from torchvision.models import ResNet18_Weights

    return list(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


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
