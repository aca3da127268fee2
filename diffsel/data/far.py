"""Data sets where they lie: class folders behind an address (s3://, gs://, hf:// ...), and WebDataset shards, near or far.

Shards are tar files whose members KEY.jpg and KEY.cls or KEY.json are one labelled image.  The path of such an image says
where its bytes lie, SHARD@START+LENGTH/KEY.jpg: it is read by one look into its shard, and no shard is listed again.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from ..machine.addresses import Store, is_address
from ..machine.cache import Cache, cache_folder
from ..settings.errors import DataError
from ..settings.sections import DataSettings
from ..settings.yamls import from_json, no_pipe
from .classes import Listing, kinds_of
from .pixels import digest
from .trees import EXTENSIONS, NAMES, is_parquet, list_store, of_split

BESIDE = re.compile(r"\.(t[gbx]z2?|tar\..+|zip|parquet|jpe?g|png|webp)$", re.I)  # what was surely meant to be read
LABELS = 1 << 20  # bytes of a label, at most


@dataclass(frozen=True)
class Far:
    """The one reader of such a data set; what comes over a network is kept beside, by its hash."""

    store: Store
    cache: Cache | None

    def __call__(self, name: str) -> bytes:
        place = place_in_shard(name)
        content = self.store.read(*place) if place else self.store.read(name)
        if self.cache:
            self.cache.put(digest(content), content)
        return content

    def kept(self, hashed: str) -> bytes | None:
        """The local copy of a content, if there is one and it is whole."""
        content = self.cache.get(hashed) if self.cache else None
        return content if content is not None and digest(content) == hashed else None


def is_far(path: str) -> bool:
    """Whether this is an address, a tar file, a pattern of such (train-{000..009}.tar), or a folder of tar files alone."""
    if is_address(path) or path.endswith(".tar"):
        return not is_parquet(path)
    folder = Path(path)
    return folder.is_dir() and any(folder.glob("*.tar")) and not any(each.is_dir() for each in folder.iterdir())


def far_reader(path: str, settings: DataSettings) -> Far:
    """The reader of a data set, whether or not it was listed before."""
    cache = Cache(cache_folder(), int(settings.cache_gb * 1e9)) if is_address(path) else None
    return Far(Store(_root(path)), cache)


def list_far(path: str, settings: DataSettings) -> Listing:
    """The images by class.  Raises DataError as ``list_store`` and ``list_shards``."""
    root, read = _root(path), far_reader(path, settings)
    names = braces(path.rpartition("/")[2]) if path.endswith(".tar") else read.store.files()
    if shards := [name for name in names if name.endswith(".tar") and not name.rpartition("/")[2].startswith(".")]:
        if not re.fullmatch(r"[\w-]*", settings.split):
            raise DataError(f"data.split = {settings.split!r}: shards have no slices; name one split")
        beside = [name for name in names if name not in shards and BESIDE.search(name)]
        notes = (f"{root}: files beside the shards are not read: {kinds_of(beside)}",) if beside else ()
        return list_shards(read, of_split(shards, settings.split), settings, notes)
    tree = list_store(root, names, settings)
    here = (f"{root}: its classes.yaml is not read; download it and give --class-file",) if "classes.yaml" in names else ()
    return Listing(tree.images, read, None, tree.others, (*tree.notes, *here))


def _root(path: str) -> str:
    """Where the files lie: a folder, or the address of one."""
    full = (path if is_address(path) else str(Path(path).absolute())).rstrip("/")
    return full.rpartition("/")[0] if path.endswith(".tar") else full


# ---- shards ----------------------------------------------------------------------------------------------------------


@dataclass
class Sample:
    """What members of one key hold: where its images lie, and what may be its label."""

    images: dict[str, str] = field(default_factory=dict)  # extension -> path
    labels: dict[str, bytes] = field(default_factory=dict)  # extension -> content


def braces(pattern: str) -> list[str]:
    """The names that a pattern of shards stands for.

    >>> braces("a-{08..11}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar', 'a-11.tar']
    """
    parts = re.split(r"\{(\d+)\.\.(\d+)\}", pattern)
    ranges = [range(int(low), int(high) + 1) for low, high in zip(parts[1::3], parts[2::3], strict=True)]
    widths = [len(low) for low in parts[1::3]]
    texts = parts[::3]
    return [
        texts[0] + "".join(f"{n:0{w}d}{text}" for n, w, text in zip(chosen, widths, texts[1:], strict=True))
        for chosen in product(*ranges)
    ]


def list_shards(
    read: Far, shards: Sequence[str], settings: DataSettings, notes: tuple[str, ...] = (), workers: int = 8
) -> Listing:
    """The images by label, in the order of classes.json where that lies beside the shards.

    A label is the key ``label_column`` of KEY.json where that is set, else KEY.cls, else KEY.json's `label` or the like; a
    number is a place in classes.json.  Raises DataError for an image without a label, or with one that classes.json lacks,
    for a sample of several images where ``image_column`` (jpg, png ...) does not say which, and for a shard that is not whole.
    """
    names, root = _class_names(read.store), read.store.root
    with ThreadPoolExecutor(workers) as pool:
        samples = {key: each for found in pool.map(partial(_samples, read.store), shards) for key, each in found.items()}
    if lost := [key for key, sample in samples.items() if sample.labels and not sample.images]:
        notes += (f"{root}: {len(lost)} samples have a label but no image of a known kind, such as {lost[0]}",)
    if (wanted := settings.image_column) and not any(wanted in sample.images for sample in samples.values()):
        raise DataError(f"{root}: no sample has an image {wanted!r}, as data.image_column (--image-column) says")
    images: dict[str, list[str]] = {name: [] for name in names or ()}
    for key, sample in samples.items():
        if sample.images:
            images.setdefault(_label(key, sample, names, settings), []).append(_image(key, sample, settings))
    found = {name: paths for name, paths in images.items() if paths}
    if not found:
        raise DataError(f"{root}: no image lies in {shards[0]}{' and the others' if len(shards) > 1 else ''}")
    odd = sorted(found.keys() - set(names or found))
    if 0 < len(odd) < len(found):
        raise DataError(f"{root}: the label {odd[0]!r} is not in classes.json")
    return Listing(found, read, names if not odd else None, notes=notes)


def place_in_shard(path: str) -> tuple[str, int, int] | None:
    """(shard, start, length) of an image's path; None where it is not such a path.

    >>> place_in_shard("a/train-000.tar@512+20/cat.jpg")
    ('a/train-000.tar', 512, 20)
    """
    place = re.fullmatch(r"(.+\.tar)@(\d+)\+(\d+)/[^/]+", path)
    return (place[1], int(place[2]), int(place[3])) if place else None


def _class_names(store: Store) -> list[str] | None:
    """Of classes.json, where there is one.  Raises DataError where it is not a list of names."""
    for root in (store.root, store.root.rpartition("/")[0]):
        try:
            names = from_json((store := Store(root)).read(_there(store, "classes.json")))
        except OSError as error:
            if is_address(root) or not os.path.lexists(Path(root, "classes.json")):
                continue
            raise DataError(f"{root}/classes.json: {error.strerror or error}") from None
        except ValueError:
            names = None
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            raise DataError(f'{root}/classes.json: wanted is a list of names, in the order of their numbers: ["cat", "dog"]')
        return names
    return None


def _samples(store: Store, shard: str) -> dict[str, Sample]:
    """What a shard holds, by key.  Raises DataError for what is no whole tar file, or holds a name twice."""
    found: dict[str, Sample] = {}
    try:
        with store.open(_there(store, shard)) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member, key, ending in _members(tar):
                sample = found.setdefault(f"{shard}/{key}", Sample())
                if ending in sample.images or ending in sample.labels:
                    raise DataError(f"{store.root}/{shard}: {key}.{ending} is there twice")
                if f".{ending.rpartition('.')[2]}" in EXTENSIONS:
                    name = member.name.rpartition("/")[2]
                    sample.images[ending] = f"{shard}@{member.offset_data}+{member.size}/{name}"
                elif ending in ("cls", "json") and member.size <= LABELS:
                    content = tar.extractfile(member)
                    sample.labels[ending] = content.read() if content else b""
            stream.seek(tar.offset)
            rest = stream.read(LABELS)
        if not rest or rest.strip(b"\0"):  # a damaged head ends the reading as the end does, without a word
            raise tarfile.ReadError(f"cut, joined or damaged at byte {tar.offset}")
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{store.root}/{shard}: {error}; wanted is a whole tar file, not compressed") from None
    return found


def _there(store: Store, name: str) -> str:
    """The name of a file that is no pipe, which would never end.  Raises OSError."""
    if not is_address(store.root):
        no_pipe(Path(store.root, name))
    return name


def _members(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    """Files with their key and ending, as webdataset splits a name: at the first dot behind the last slash."""
    for member in tar:
        folder, slash, name = member.name.rpartition("/")
        key, dot, ending = name.partition(".")
        if member.isfile() and key and dot:
            yield member, folder + slash + key, ending.lower()


def _image(key: str, sample: Sample, settings: DataSettings) -> str:
    wanted = settings.image_column
    if len(sample.images) > 1 and wanted not in sample.images:
        raise DataError(f"{key} has several images: {', '.join(sample.images)}; name one: data.image_column (--image-column)")
    return sample.images[wanted] if wanted in sample.images else next(iter(sample.images.values()))


def _label(key: str, sample: Sample, names: Sequence[str] | None, settings: DataSettings) -> str:
    try:
        value = _told(sample, settings)
        if value in (None, "", -1, "-1"):
            raise ValueError("no label")
        if not isinstance(value, str | int) or len(str(value).splitlines()) > 1:
            raise ValueError(f"{value!r:.40} is not one text or whole number")
        number = re.fullmatch(r"\d+", str(value))
        return names[int(value)] if names and number else str(value)
    except (ValueError, IndexError) as error:
        held = ", ".join(sample.labels) or "nothing"
        raise DataError(
            f"{key}: no label ({error}); beside the image lies {held}, wanted is {key.rpartition('/')[2]}.cls, or .json with a "
            "key that data.label_column (--label-column) names"
        ) from None


def _told(sample: Sample, settings: DataSettings) -> Any:
    if "cls" in sample.labels and not settings.label_column:
        return sample.labels["cls"].decode().strip()
    about = from_json(sample.labels.get("json", b"{}"))
    if not isinstance(about, dict):
        raise ValueError("its .json holds no keys")
    keys = (settings.label_column,) if settings.label_column else NAMES["label"]
    return next((about[key] for key in keys if key in about), None)
