"""Data sets of the `datasets` library (extra ``diffsel[datasets]``): a hub id, parquet files, near or far, a `save_to_disk`
folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..machine.addresses import Store
from ..settings.errors import DataError, UnreadableImage
from ..settings.sections import DataSettings
from .trees import NAMES, is_parquet, of_split

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder, DatasetDict

WANTED = {"image": "images", "label": "one label an image (a class label, a text or a whole number)"}


def split_names(path: str, settings: DataSettings) -> list[str]:
    """Of a data set that has splits.  None where there is no library or no such data set, which is told when it is opened."""
    saved = Path(path) / "dataset_dict.json"
    try:
        import datasets

        if saved.exists():
            return list(json.loads(saved.read_bytes())["splits"])
        if _is_saved(Path(path)) or is_parquet(path):
            return []
        return list(datasets.get_dataset_split_names(path, settings.config, revision=settings.revision))
    except Exception:
        return []


@dataclass(frozen=True)
class Table:
    """A split of a data set: the paths of its images by label, and what a user should know of it."""

    images: dict[str, list[str]]
    order: list[str] | None  # of the labels, where the data set has one
    cell: Callable[[str], bytes | Path]  # of a path: the image, or the file that holds it
    note: str


def list_table(path: str, settings: DataSettings) -> Table:
    """The images of a split by label.  Raises DataError for a split, configuration or column that is missing or unclear, and
    for an image without a label."""
    import datasets

    table = _load(path, settings)
    image = _column(path, table.features, "image", settings.image_column)
    label = _column(path, table.features, "label", settings.label_column)
    feature = table.features[label]
    names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    images: dict[str, list[str]] = {name: [] for name in names or []}
    split = f"{path}, split {settings.split!r}"
    for i, value in enumerate(table[label]):
        if value in (None, "", -1):
            raise DataError(f"{split}: image {i} has no label; choose a labelled split (data.split)")
        if names and not 0 <= value < len(names):
            raise DataError(f"{split}: image {i} has the label {value}, but there are names for 0 to {len(names) - 1}")
        images.setdefault(names[value] if names else str(value), []).append(f"{settings.split}/{i:09d}")
    if not len(table):
        raise DataError(f"{split} (data.split): no image lies there")
    raw = table.cast_column(image, datasets.Image(decode=False))
    note = f"{path}: images are column {image!r} and labels column {label!r} of {', '.join(table.features)}"
    return Table({name: rows for name, rows in images.items() if rows}, names, partial(_cell, raw, image), note)


def _cell(raw: Any, image: str, name: str) -> bytes | Path:
    cell = raw[int(name.rsplit("/", 1)[1])][image]
    if cell is None or (cell["bytes"] is None and not cell["path"]):
        raise UnreadableImage(f"{name}: no image in this row")
    return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"])


def _is_saved(root: Path) -> bool:
    return (root / "state.json").exists() or (root / "dataset_dict.json").exists()


def _load(path: str, settings: DataSettings) -> Dataset:
    try:
        import datasets
    except ImportError:
        raise DataError(f"{path} needs the `datasets` library: pip install 'diffsel[datasets]'") from None
    if _is_saved(Path(path)) and (settings.config or settings.revision):
        raise DataError(f"{path} was saved to disk: it has neither configurations nor revisions (data.config, data.revision)")
    try:
        if _is_saved(Path(path)):
            return _split_of(datasets.load_from_disk(path), settings.split)
        if is_parquet(path):
            files = of_split(_files_alike(datasets.load_dataset_builder("parquet", data_files=path)), _first(settings.split))
            return _split_of(datasets.load_dataset("parquet", data_files=files, split="train"), settings.split)
        if Path(path).is_dir():
            _files_alike(datasets.load_dataset_builder(path, settings.config))
        return datasets.load_dataset(path, settings.config, split=settings.split, revision=settings.revision)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:500]
        raise DataError(f"{path}, split {settings.split!r} (data.split): {type(error).__name__}: {reason}") from None


def _files_alike(builder: DatasetBuilder) -> list[str]:
    """The files of a data set.  Raises DataError where the names of a parquet file's classes differ from those of the first,
    which the library would give to its numbers."""
    import datasets
    from pyarrow import parquet

    files = [str(file) for part in (builder.config.data_files or {}).values() for file in part]
    if not files:
        raise DataError("no such file")
    told: dict[str, dict[str, list[str]]] = {}
    for file in filter(is_parquet, files):
        folder, _, name = file.rpartition("/")
        with Store(folder).open(name) as stream:
            features = datasets.Features.from_arrow_schema(parquet.read_schema(stream))
        told[file] = {key: each.names for key, each in features.items() if isinstance(each, datasets.ClassLabel)}
        if told[file] != next(iter(told.values())):
            raise DataError(f"{file} has other class names than {next(iter(told))}: the same number would mean two classes")
    return files


def _first(split: str) -> str:
    """Of the splits that are asked for."""
    return re.split(r"[\[+]", split)[0]


def _split_of(loaded: Dataset | DatasetDict, split: str) -> Dataset:
    """A split, or slices of some as the library writes them (``train[:50%]+test``).  Raises ValueError naming those there are.

    What was saved without its name is of any name.
    """
    import datasets

    splits = loaded if isinstance(loaded, dict) else {_first(split): loaded}
    if split in splits:
        return splits[split]
    parts = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(rows) for name, rows in splits.items()})
    return datasets.concatenate_datasets(
        [splits[part.splitname].select(range(len(splits[part.splitname]))[part.from_ : part.to]) for part in parts]
    )


def _column(path: str, features: Mapping[str, Any], what: str, asked: str | None) -> str:
    """The column asked for, else one that is called so, else the only one of that kind.  Raises DataError."""
    import datasets

    setting = f"data.{what}_column (--{what}-column)"
    fits: Callable[[Any], bool] = _is_label if what == "label" else lambda feature: isinstance(feature, datasets.Image)
    sure = [n for n, f in features.items() if isinstance(f, datasets.ClassLabel if what == "label" else datasets.Image)]
    called = [name for name in (*NAMES[what], *map(str.capitalize, NAMES[what])) if name in features]
    if asked and asked not in features:
        raise DataError(f"{path} has no column {asked!r}, as {setting} says; it has {', '.join(features)}")
    if not (asked or called or sure):
        raise DataError(
            f"{path}: expected an Image and a ClassLabel (or `label`) column, found {dict(features)}; name one: {setting}"
        )
    if not (asked or called) and len(sure) > 1:
        raise DataError(f"{path} has several columns of {WANTED[what]}: {', '.join(sure)}; name one: {setting}")
    found = asked or (called or sure)[0]
    if not fits(features[found]):
        raise DataError(f"{path}: column {found!r} holds {features[found]}, not {WANTED[what]}; name another: {setting}")
    return found


def _is_label(feature: Any) -> bool:
    import datasets

    whole = re.compile(r"(large_)?string|u?int\d+|bool")
    return isinstance(feature, datasets.ClassLabel) or bool(
        whole.fullmatch(str(getattr(feature, "dtype", ""))) and isinstance(feature, datasets.Value)
    )
