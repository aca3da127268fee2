"""Folders of class folders: which images lie in them, what is passed over, and folders that only look like classes."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..settings.errors import DataError
from ..settings.sections import DataSettings

FOREIGN = ("__pycache__", "__MACOSX", "@eaDir")  # folders that systems leave among images
OURS = ("run.yaml", "set.yaml", "labels.yaml", "teacher.yaml", "export.yaml")  # one of them lies in each folder that we make
BESIDE = ("results", "labels", "prompts", "hf", "webdataset", "fiftyone", "csv")  # FOLDER-results lies beside FOLDER
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # labels of the `datasets` library's imagefolder
NAMES = {"image": ("image", "img"), "label": ("label", "labels", "fine_label", "class")}  # columns called so are taken first
EXTENSIONS = set(
    ".jpg .jpeg .jpe .jfif .png .webp .avif .bmp .gif .tif .tiff .tga .ppm .pgm .pbm .pnm .jp2".split(),  # noqa: SIM905
)
SPLITS = {  # words that name a part of a data set -> which part
    **dict.fromkeys("train training trainset trainval traindata".split(), "train"),  # noqa: SIM905
    **dict.fromkeys("val valid validation valset eval evaluation dev devset".split(), "val"),  # noqa: SIM905
    **dict.fromkeys("test testing testset testdata".split(), "test"),  # noqa: SIM905
}


FILLERS = ("set", "data", "dataset", "split", "images", "image", "imgs", "img", "pictures", "photos", "files")  # beside them


@dataclass
class Found:
    """What lies below one folder, as paths relative to the root; ``ours``: folders made by diffsel, not looked into."""

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    ours: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Tree:
    """Class folders: their images and other files, as paths relative to the root, and what a user should know of them."""

    images: dict[str, list[str]]
    others: dict[str, list[str]]
    notes: tuple[str, ...]


def list_tree(root: Path, settings: DataSettings, out: Path | None = None) -> Tree:
    """The images of every class folder; of those in ``settings.classes`` only, where they are named.

    ``out`` is where results are written: no class, even where it lies in ``root``, and neither are runs and sets.
    Raises DataError for what is no folder of class folders (splits, a folder too many around it), and where a folder or link
    cannot be followed: then images would be missing without a word.
    """
    folders = class_folders(root)
    if settings.classes is None:
        _refuse_splits(root, folders, lambda folder: bool(_subfolders(root / folder)) or _labelled(root / folder))
    asked = {unicodedata.normalize("NFC", name) for name in (folders if settings.classes is None else settings.classes)}
    wanted = {folder for folder in folders if unicodedata.normalize("NFC", folder) in asked}
    found = {folder: _walk(root, folder) if folder in wanted else Found() for folder in folders}
    ours = [path for each in found.values() for path in each.ours]
    for folder, each in list(found.items()):
        if folder in wanted and _is_ours(root, folder, each, ours, out):
            ours += [] if folder in ours else [folder]
            del found[folder]
    return _tree(root, found, ours, settings)


def list_store(root: str, names: Iterable[str], settings: DataSettings) -> Tree:
    """As ``list_tree``, of the files below an address."""
    listed = [name.split("/") for name in names]
    ours = sorted({"/".join(parts[:-1]) for parts in listed if parts[-1] in OURS})
    passed, found = tuple(f"{folder}/" for folder in ours), dict[str, Found]()
    for parts in listed:
        name, hidden = "/".join(parts), any(part.startswith(".") or part in FOREIGN for part in parts)
        if len(parts) > 1 and not hidden and not name.startswith(passed):
            here, image = found.setdefault(parts[0], Found()), os.path.splitext(name)[1].lower() in EXTENSIONS
            (here.images if image else here.others).append(name)
    if settings.classes is None:
        nested = {parts[0] for parts in listed if len(parts) > 2 or (len(parts) == 2 and parts[1] in METADATA)}
        _refuse_splits(root, list(found), nested.__contains__)
    return _tree(root, found, ours, settings)


def _tree(root: Path | str, found: dict[str, Found], ours: Sequence[str], settings: DataSettings) -> Tree:
    if not found:
        raise DataError(f"{root} holds no class folders but what diffsel made; give a folder that holds one folder per class")
    images = {folder: each.images for folder, each in found.items()}
    notes = _doubts(root, found) if settings.classes is None else []
    if ours:
        notes.append(f"{root}: passed over what diffsel made itself: {', '.join(map(repr, ours))}")
    others = {folder: each.others for folder, each in found.items()}
    return Tree(images, others, tuple(notes))


def class_folders(root: Path) -> list[str]:
    """Names of the folders in ``root``, without those that systems leave.  Raises DataError where there are none."""
    folders = [name for name in _subfolders(root) if name not in FOREIGN]
    odd = [folder for folder in folders if not is_utf8(folder)]
    if odd:
        raise DataError(f"{root}: the class folder {odd[0]!a} is not valid UTF-8; rename it")
    if not folders:
        labelled = next((f"; its images seem to be labelled by {name}" for name in METADATA if (root / name).exists()), "")
        raise DataError(f"{root} holds no class folders{labelled}; give a folder that holds one folder per class")
    return folders


def of_split(files: Sequence[str], split: str) -> list[str]:
    """The shards or tables of a split, where their names tell several apart.  Raises DataError where none is of it.

    >>> of_split(["a-train-0.tar", "a-val-0.tar"], "validation")
    ['a-val-0.tar']
    """
    start = len(os.path.commonpath(map(os.path.dirname, files)))  # what lies above them tells nothing
    words = [re.split(r"[\W_\d]+", name[start:]) for name in files]
    parts = [next((SPLITS[word] for word in each if word in SPLITS), "") for each in words]
    if len(set(parts)) == 1:
        return list(files)
    wanted = SPLITS.get(split, split)
    if wanted not in parts:
        raise DataError(
            f"files of the splits {', '.join(sorted(set(parts)))}, none of {split!r}; choose one: data.split (--split)"
        )
    return [name for name, part in zip(files, parts, strict=True) if part == wanted]


def is_parquet(path: str) -> bool:
    """Whether this is a parquet file, or a pattern of such (train-*.parquet); a folder or an address may hold it."""
    return path.endswith(".parquet")


def is_utf8(name: str) -> bool:
    """Whether a file name is text; the operating system allows any bytes."""
    return name.encode("utf-8", "replace") == name.encode("utf-8", "surrogateescape")


def is_datasets_folder(root: Path) -> bool:
    """Whether a folder is a data set of the `datasets` library: saved to disk, or parquet files without images beside them."""
    if (root / "state.json").exists() or (root / "dataset_dict.json").exists():
        return True
    try:
        images = any(_walk(root, entry.name).images for entry in sorted(root.iterdir()) if entry.is_dir())
    except DataError:  # what cannot be looked into is told when it is listed
        return False
    return not images and bool(list(root.rglob("*.parquet")))


# ---- looking ---------------------------------------------------------------------------------------------------------


def _subfolders(path: Path) -> list[str]:
    try:
        entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
        folders = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise DataError(f"{error.filename or path}: {error.strerror}") from None
    for entry in entries:
        _check_link(entry)
    return folders


def _check_link(path: Path) -> None:
    """Raises DataError for a link that leads nowhere: it may stand for a folder on a disk that is not there now."""
    if path.is_symlink() and not path.exists():
        raise DataError(f"{path}: a link that leads nowhere; its images would be missing (mount the disk, or remove the link)")


def _walk(root: Path, folder: str) -> Found:
    """What lies below a folder; links are followed, loops are not.  Raises DataError where something cannot be looked into."""
    found, top = Found(), Path(os.path.realpath(root))
    seen = set(map(str, (top, *top.parents)))

    def stop(error: OSError) -> None:
        raise DataError(f"{error.filename}: {error.strerror}; its images would be missing")

    for where, subfolders, names in os.walk(root / folder, onerror=stop, followlinks=True):
        here = os.path.relpath(where, root).replace(os.sep, "/")
        real = os.path.realpath(where)
        if real in seen or any(name in names for name in OURS):
            subfolders.clear()
            found.ours += [] if real in seen else [here]
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name not in FOREIGN)
        for name in names:
            if name.startswith("."):
                continue
            if os.path.splitext(name)[1].lower() in EXTENSIONS:
                found.images.append(f"{here}/{name}")
            else:
                _check_link(Path(where, name))
                found.others.append(f"{here}/{name}")
    return found


# ---- what is no class ------------------------------------------------------------------------------------------------


def _is_ours(root: Path, folder: str, found: Found, ours: Sequence[str], out: Path | None) -> bool:
    """Whether diffsel made this folder: it is a run or set, only holds some, is called after one (SET-results), or is to be
    ``out``, of which a stopped start may have left anything."""
    if any(folder in (each, *(f"{each}-{what}" for what in BESIDE)) for each in ours):
        return True
    written = out is not None and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(root / folder))
    return not found.images and (bool(found.ours) or written)


def _labelled(folder: Path) -> bool:
    return any((folder / name).exists() for name in METADATA)


def _refuse_splits(root: Path | str, folders: Sequence[str], holds: Callable[[str], bool]) -> None:
    """Folders that differ only in a word that names a part of a data set, or that ``holds`` folders or labels of its own and
    are called by nothing else.

    Raises DataError; whoever means classes names them.
    """
    parts: dict[tuple[str, ...], dict[str, str]] = {}  # the rest of the name -> part -> folder
    for folder in folders:
        words = re.split(r"[\W_\d]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", folder).lower())
        if part := next((SPLITS[word] for word in words if word in SPLITS), None):
            rest = tuple(word for word in words if word and word not in SPLITS and word not in FILLERS)
            parts.setdefault(rest, {})[part] = folder
    alike = max(parts.values(), key=len, default={})
    only = set(folders) == set(parts.get((), {}).values()) and any(map(holds, folders))
    if only or len(alike) > 1:
        splits = [folder for folder in folders if only or folder in alike.values()]
        first = parts.get((), alike).get("train", splits[0])
        raise DataError(
            f"{root} holds splits ({', '.join(splits)}), not classes; give one of them, say {_under(root, first)} "
            "(if they are classes, name them: --classes)"
        )


def _under(root: Path | str, name: str) -> str:
    return str(root / name) if isinstance(root, Path) else f"{root}/{name}".removesuffix("/.")


def _doubts(root: Path | str, found: dict[str, Found]) -> list[str]:
    """What makes it doubtful that the folders are classes.  Raises DataError for one folder that is around them all."""
    filled = {folder: each.images for folder, each in found.items() if each.images}
    below = {folder: _below(images) for folder, images in filled.items()}
    nested = {folder: names for folder, names in below.items() if "" not in names}
    if len(found) == len(nested) == 1:
        (folder, images), *_ = filled.items()
        holders = {image.rpartition("/")[0] for image in images}
        top = Path(os.path.commonpath(holders))
        inner = _under(root, (top.parent if top.as_posix() in holders else top).as_posix())
        raise DataError(
            f"{root} holds one folder, {folder!r}, whose images all lie in subfolders: if those are the classes, give {inner} "
            f"(if it is one class, name it: --classes {folder})"
        )
    notes = []
    labelled = [name for name, each in found.items() if any(f"{name}/{file}" in each.others for file in METADATA)]
    if labelled:
        notes.append(f"{root}: the folder {labelled[0]!r} holds labels of its own (metadata.*): is it a split, and no class?")
    odd = [name for name in nested if name.lower() in SPLITS and len(nested[name]) > 1 and len(nested) < len(filled)]
    if odd:
        notes.append(f"{root}: the folder {odd[0]!r} is a class here, but holds folders, and others do not: is it a split?")
    shared = set.intersection(*nested.values()) if len(nested) > 1 and nested.keys() == filled.keys() else set()
    if len(shared) > 1:
        names = ", ".join(sorted(shared)[:5]) + (" ..." if len(shared) > 5 else "")
        notes.append(f"{root}: every class holds the same folders ({names}): are those the classes, and these are splits?")
    return notes


def _below(images: Iterable[str]) -> set[str]:
    """The folders of a class in which its images lie; "" for the class folder itself."""
    return {image.split("/")[1] if image.count("/") > 1 else "" for image in images}
