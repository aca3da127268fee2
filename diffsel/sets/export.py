"""A distilled set in the forms that other tools read.  Nothing here needs a network but ``push``.

    hf          data/train-00000-of-00001.parquet (datasets, pandas, the hub's viewer)
    webdataset  shards/train-000000.tar: 00000000.png, .cls, .json (webdataset, and plain tar)
    fiftyone    data/0000-00000.png, labels.json (FiftyOneImageClassificationDataset)
    csv         images/..., images.csv (one line a picture), tiles.csv (one line a tile)

Labels are those of the set's own metadata.jsonl everywhere: the position among its sorted class folders.  Each form has
a README.md (a card with YAML front matter) and export.yaml, which says what it was made of.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ..machine.files import whole_folder, write_atomically
from ..machine.formats import dump_yaml, read_lines, read_yaml
from ..settings.errors import DataError, StoreError

Form = Literal["hf", "webdataset", "fiftyone", "csv"]
FORMS: tuple[str, ...] = get_args(Form)
SHARD_BYTES = 256 << 20  # of pictures in one parquet file or tar shard, at most
TILE_COLUMNS = (
    "source",
    "digest",
    "row",
    "top",
    "left",
    "height",
    "width",
    "score",
    "cluster",
    "place",
    "distance",
    "rank",
    "reason",
)


@dataclass(frozen=True)
class Picture:
    """One picture of a set: its line of metadata.jsonl, and its number among its class's."""

    file: Path
    label: int
    name: str  # the class, as the source calls it
    number: int
    tiles: Sequence[Mapping[str, Any]]

    def read(self) -> bytes:
        return self.file.read_bytes()


@dataclass(frozen=True)
class SetFiles:
    """A distilled set as it lies on disk.  ``names``: class of each label."""

    path: Path
    record: Mapping[str, Any]  # set.yaml
    names: tuple[str, ...]
    pictures: tuple[Picture, ...]
    digest: str  # of metadata.jsonl and set.yaml, hence of every picture


def read_set(path: Path) -> SetFiles:
    """Raises StoreError for a folder that is no set of diffsel, DataError where a picture is missing."""
    if not (path / "set.yaml").exists() or not (path / "metadata.jsonl").exists():
        raise StoreError(
            f"{path} is not a distilled set (no set.yaml); make one with `diffsel select RUN --ipc N --out {path}`"
        )
    record = read_yaml(path / "set.yaml")
    try:
        lines = read_lines(path / "metadata.jsonl")
        names = {line["label"]: line["class"] for line in lines}
        pictures = tuple(
            Picture(path / x["file_name"], x["label"], x["class"], int(Path(x["file_name"]).stem), x["tiles"]) for x in lines
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path / 'metadata.jsonl'} is damaged ({type(error).__name__}: {error})") from None
    if lost := [picture.file for picture in pictures if not picture.file.exists()]:
        raise DataError(f"{lost[0]} is named in metadata.jsonl but is not there ({len(lost)} missing); the set is damaged")
    digest = hashlib.sha256((path / "metadata.jsonl").read_bytes() + (path / "set.yaml").read_bytes()).hexdigest()[:32]
    return SetFiles(path, record, tuple(names[label] for label in sorted(names)), pictures, digest)


def export(path: Path, form: Form, out: Path, source: str = "") -> bool:
    """SET -> OUT in one of the forms, all at once; False where it is there already.  ``source``: for the card, whose
    images these are.

    Raises StoreError where OUT holds something else or SET is none, DataError where SET is damaged.
    """
    found = read_set(path)
    record = {"format": 1, "form": form, "set": found.digest, "source": source}
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if (out / "export.yaml").exists() and read_yaml(out / "export.yaml") == record:
            return False
        raise StoreError(f"{out} exists and is not this export; give a new folder")
    write: Mapping[str, Callable[[SetFiles, Path], None]] = {
        "hf": _write_parquet,
        "webdataset": _write_shards,
        "fiftyone": _write_fiftyone,
        "csv": _write_csv,
    }
    with whole_folder(out) as part:
        write[form](found, part)
        write_atomically(part / "README.md", card(found, form, source).encode("utf-8", "backslashreplace"))
        write_atomically(part / "export.yaml", dump_yaml(record))
    return True


# ---- forms -----------------------------------------------------------------------------------------------------------


def _write_parquet(found: SetFiles, out: Path) -> None:
    tile = pa.struct([(name, _column_type(name)) for name in TILE_COLUMNS])
    columns = {
        "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        "label": pa.int64(),
        "tiles": pa.list_(tile),
    }
    about = json.dumps({"info": {"features": _features(found.names)}}, sort_keys=True)
    schema = pa.schema(columns.items(), metadata={"huggingface": about})
    shards = list(_shards(found.pictures))
    for number, pictures in enumerate(shards):
        rows = [
            {"image": {"bytes": p.read(), "path": _flat_name(p)}, "label": p.label, "tiles": [_plain_tile(t) for t in p.tiles]}
            for p in pictures
        ]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema), sink, row_group_size=100)
        name = f"train-{number:05d}-of-{len(shards):05d}.parquet"
        write_atomically(out / "data" / name, sink.getvalue().to_pybytes())


def _column_type(name: str) -> pa.DataType:
    if name in ("source", "digest", "reason"):
        return pa.string()
    return pa.float64() if name in ("score", "distance") else pa.int64()


def _features(names: Sequence[str]) -> dict[str, Any]:
    """The columns as the datasets library describes them."""
    dtypes = {name: {"dtype": str(_column_type(name)).replace("double", "float64"), "_type": "Value"} for name in TILE_COLUMNS}
    label = {"names": list(names), "_type": "ClassLabel"}
    return {"image": {"_type": "Image"}, "label": label, "tiles": {"feature": dtypes, "_type": "List"}}


def _write_shards(found: SetFiles, out: Path) -> None:
    """Pictures are dealt class by class in turn, so that a shard holds all classes; the same set gives the same bytes."""
    dealt = sorted(found.pictures, key=lambda p: (p.number, p.label))
    place = 0
    for number, pictures in enumerate(_shards(dealt)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for picture in pictures:
                about = {"label": picture.label, "class": picture.name, "tiles": list(picture.tiles)}
                for suffix, content in (
                    (picture.file.suffix, picture.read()),
                    (".cls", str(picture.label).encode()),
                    (".json", json.dumps(about, sort_keys=True).encode()),
                ):
                    member = tarfile.TarInfo(f"{place:08d}{suffix}")  # owner and time stay 0
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                place += 1
        write_atomically(out / "shards" / f"train-{number:06d}.tar", buffer.getvalue())
    write_atomically(out / "classes.json", (json.dumps(list(found.names), indent=1) + "\n").encode())


def _write_fiftyone(found: SetFiles, out: Path) -> None:
    for picture in found.pictures:
        write_atomically(out / "data" / _flat_name(picture), picture.read())
    labels = {Path(_flat_name(picture)).stem: picture.label for picture in found.pictures}
    text = json.dumps({"classes": list(found.names), "labels": labels}, indent=1)
    write_atomically(out / "labels.json", (text + "\n").encode())


def _write_csv(found: SetFiles, out: Path) -> None:
    pictures: list[list[Any]] = []
    tiles: list[list[Any]] = []
    for picture in found.pictures:
        path = f"images/{_flat_name(picture)}"
        write_atomically(out / path, picture.read())
        pictures.append([path, picture.label, picture.name, len(picture.tiles)])
        for place, tile in enumerate(picture.tiles):
            tiles.append([path, place, *_plain_tile(tile).values()])
    _write_table(out / "images.csv", ["path", "label", "class", "tiles"], pictures)
    _write_table(out / "tiles.csv", ["path", "tile", *TILE_COLUMNS], tiles)


def _write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    write_atomically(path, text.getvalue().encode("utf-8", "surrogateescape"))


def _flat_name(picture: Picture) -> str:
    """A name that is unique in the set and harmless everywhere, whatever the class is called."""
    return f"{picture.label:04d}-{picture.number:05d}{picture.file.suffix}"


def _plain_tile(tile: Mapping[str, Any]) -> dict[str, Any]:
    top, left, height, width = tile["box"]
    flat = {**tile, "top": top, "left": left, "height": height, "width": width}
    return {name: flat.get(name) for name in TILE_COLUMNS}


def _shards(pictures: Sequence[Picture]) -> Iterator[list[Picture]]:
    """Runs of pictures of at most SHARD_BYTES together."""
    part: list[Picture] = []
    size = 0
    for picture in pictures:
        more = picture.file.stat().st_size
        if part and size + more > SHARD_BYTES:
            yield part
            part, size = [], 0
        part.append(picture)
        size += more
    yield part


# ---- the card --------------------------------------------------------------------------------------------------------

METHODS = {
    "diffsel": "by the differential loss of a diffusion model, clusters of its features, and ranks within them (diffsel)",
    "diffsel-noclusters": "by the differential loss of a diffusion model alone (diffsel, without clusters)",
    "rded": "as RDED does: random crops judged by a classifier",
    "random": "at random",
}
LOADING = {
    "hf": 'datasets.load_dataset("FOLDER", split="train")',
    "webdataset": 'webdataset.WebDataset("shards/train-{{000000..{last:06d}}}.tar").decode("pil").to_tuple("{suffix}", "cls")',
    "fiftyone": 'fiftyone.Dataset.from_dir("FOLDER", dataset_type=fiftyone.types.FiftyOneImageClassificationDataset)',
    "csv": 'pandas.read_csv("images.csv")',
}


def card(found: SetFiles, form: Form, source: str) -> str:
    """README.md: front matter that the hub and the datasets library read, then words for people.  The licence is left open."""
    record = found.record
    counts = [sum(p.label == label for p in found.pictures) for label in range(len(found.names))]
    suffix = found.pictures[0].file.suffix.lstrip(".")
    load = LOADING[form].format(last=len(list(_shards(found.pictures))) - 1, suffix=suffix)
    side = record["assembly"]["size"]
    chosen = METHODS.get(record.get("selection", {}).get("method", ""), "by diffsel")
    tiles = f"{record['factor']} x {record['factor']} patches" if record["factor"] > 1 else "one patch"
    per_class = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    shown = [ascii(name)[1:-1].replace("|", "\\|") for name in found.names]
    listed = "\n".join(f"| {label} | `{name}` |" for label, name in enumerate(shown))
    settings = "".join(f"    {line}\n" for line in dump_yaml(record).decode().splitlines())
    return (
        f"---\n{yaml.safe_dump(_front_matter(found, form), sort_keys=False, allow_unicode=True)}"
        "# license: that of the source images; fill in before sharing, for example cc-by-4.0\n---\n\n"
        f"# Distilled image set: {len(found.names)} classes, {per_class} images each\n\n"
        f"{len(found.pictures)} pictures of {side} x {side} pixels, {tiles} each.\n\n"
        f"**Source.** {source or 'Real images; fill in which.'}  Every tile is cut out of one of them, none was generated.\n\n"
        f"**Method.** Selected {chosen}, at {record['ipc']} images per class, seed {record['seed']}.\n\n"
        f"**Loading.** `{load}`\n\n"
        f"**Licence.** Left to you: that of the source images.\n\n"
        f"## Labels\n\n| label | class |\n|---|---|\n{listed}\n\n## Settings\n\n{settings}"
    )


def _front_matter(found: SetFiles, form: Form) -> dict[str, Any]:
    count = len(found.pictures)
    sizes = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    matter: dict[str, Any] = {
        "task_categories": ["image-classification"],
        "tags": ["dataset-distillation", "diffsel"],
        "size_categories": [next((name for limit, name in sizes if count < limit), "n>1M")],
    }
    if form == "hf":
        tile = [{"name": n, "dtype": str(_column_type(n)).replace("double", "float64")} for n in TILE_COLUMNS]
        label = {"class_label": {"names": {str(i): name for i, name in enumerate(found.names)}}}
        features = [{"name": "image", "dtype": "image"}, {"name": "label", "dtype": label}, {"name": "tiles", "list": tile}]
        size = sum(p.file.stat().st_size for p in found.pictures)
        splits = [{"name": "train", "num_bytes": size, "num_examples": count}]
        matter["dataset_info"] = {"features": features, "splits": splits, "dataset_size": size}
        matter["configs"] = [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}]
    elif form == "webdataset":
        matter["configs"] = [{"config_name": "default", "data_files": [{"split": "train", "path": "shards/train-*.tar"}]}]
    return matter
