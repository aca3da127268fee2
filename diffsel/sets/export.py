"""A distilled set in the forms that other tools read.  Nothing here needs a network but ``push``.

    hf          data/train-00000-of-00001.parquet (datasets, pandas, the hub's viewer)
    webdataset  shards/train-000000.tar: 00000000.png, .cls, .json (webdataset, and plain tar)
    fiftyone    data/0000-00000.png, labels.json (FiftyOneImageClassificationDataset)
    csv         images/..., images.csv (one line a picture), tiles.csv (one line a tile)
    list        metadata.jsonl, set.yaml, B2SUMS: no pictures; `diffsel rebuild` makes them again of the source images

Labels are those of the set's own metadata.jsonl everywhere: the position among its sorted class folders.  Each form has
a README.md (a card with YAML front matter) and export.yaml, which says what it was made of.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from ..machine.files import write_atomically
from ..machine.formats import PREFIXED, as_csv
from ..settings.errors import ConfigError
from .card import card
from .exported import EXPORT, FORMAT, hand_over, listed
from .opening import DistilledSet, Picture, check_whole, read_set
from .record import LISTED, SUMS

Form = Literal["hf", "webdataset", "fiftyone", "csv", "list"]
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


def export_set(path: Path | str, form: Form, out: Path | str, source: str = "") -> bool:
    """SET -> OUT in one of the forms, all at once; False where it is there already.  ``source``: for the card, whose
    images these are.

    Raises StoreError where OUT holds something else or SET is none, DataError where SET is damaged: what it lists lies in
    its class folders, and is what it was when the set was made.
    """
    found = read_set(Path(path))
    check_whole(found)
    write: Mapping[str, Callable[[DistilledSet, Path], None]] = {
        "hf": _write_parquet,
        "webdataset": _write_shards,
        "fiftyone": _write_fiftyone,
        "csv": _write_csv,
        "list": _write_list,
    }
    record = {"format": FORMAT, "form": form, "set": found.digest, "source": source}
    return hand_over(out, record, partial(write[form], found), lambda: _card(found, form, source))


def _names(found: DistilledSet) -> tuple[str, ...]:
    """The class of each label."""
    names = {picture.label: picture.name for picture in found.pictures}
    return tuple(names[label] for label in sorted(names))


# ---- forms -----------------------------------------------------------------------------------------------------------


def _write_parquet(found: DistilledSet, out: Path) -> None:
    tile = pa.struct([(name, _column_type(name)) for name in TILE_COLUMNS])
    columns = {
        "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        "label": pa.int64(),
        "tiles": pa.list_(tile),
    }
    about = json.dumps({"info": {"features": _features(_names(found))}}, sort_keys=True)
    schema = pa.schema(columns.items(), metadata={"huggingface": about})
    shards = list(_shards(found, found.pictures))
    for number, pictures in enumerate(shards):
        rows = [
            {
                "image": {"bytes": (found.path / p.file).read_bytes(), "path": _flat_name(p)},
                "label": p.label,
                "tiles": [_plain_tile(t) for t in p.tiles],
            }
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
    return {"image": {"_type": "Image"}, "label": label, "tiles": [dtypes]}  # a list by every version of the library


def _write_shards(found: DistilledSet, out: Path) -> None:
    """Pictures are dealt class by class in turn, so that a shard holds all classes; the same set gives the same bytes."""
    dealt = sorted(found.pictures, key=lambda p: (p.number, p.label))
    place = 0
    for number, pictures in enumerate(_shards(found, dealt)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for picture in pictures:
                about = {"label": picture.label, "class": picture.name, "tiles": list(picture.tiles)}
                for suffix, content in (
                    (Path(picture.file).suffix, (found.path / picture.file).read_bytes()),
                    (".cls", str(picture.label).encode()),
                    (".json", json.dumps(about, sort_keys=True).encode()),
                ):
                    member = tarfile.TarInfo(f"{place:08d}{suffix}")  # owner and time stay 0
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                place += 1
        write_atomically(out / "shards" / f"train-{number:06d}.tar", buffer.getvalue())
    write_atomically(out / "classes.json", (json.dumps(list(_names(found)), indent=1) + "\n").encode())


def _write_fiftyone(found: DistilledSet, out: Path) -> None:
    for picture in found.pictures:
        write_atomically(out / "data" / _flat_name(picture), (found.path / picture.file).read_bytes())
    labels = {Path(_flat_name(picture)).stem: picture.label for picture in found.pictures}
    text = json.dumps({"classes": list(_names(found)), "labels": labels}, indent=1)
    write_atomically(out / "labels.json", (text + "\n").encode())


def _write_csv(found: DistilledSet, out: Path) -> None:
    pictures: list[list[Any]] = []
    tiles: list[list[Any]] = []
    for picture in found.pictures:
        path = f"images/{_flat_name(picture)}"
        write_atomically(out / path, (found.path / picture.file).read_bytes())
        pictures.append([path, picture.label, picture.name, len(picture.tiles)])
        for place, tile in enumerate(picture.tiles):
            tiles.append([path, place, *_plain_tile(tile).values()])
    write_atomically(out / "images.csv", as_csv(["path", "label", "class", "tiles"], pictures))
    write_atomically(out / "tiles.csv", as_csv(["path", "tile", *TILE_COLUMNS], tiles))


def _write_list(found: DistilledSet, out: Path) -> None:
    for name in (*LISTED, SUMS):
        if (found.path / name).exists():  # sets of the first version have no sums
            write_atomically(out / name, (found.path / name).read_bytes())


def _flat_name(picture: Picture) -> str:
    """A name that is unique in the set and harmless everywhere, whatever the class is called."""
    return f"{picture.label:04d}-{picture.number:05d}{Path(picture.file).suffix}"


def _plain_tile(tile: Mapping[str, Any]) -> dict[str, Any]:
    top, left, height, width = tile["box"]
    flat = {**tile, "top": top, "left": left, "height": height, "width": width}
    return {name: flat.get(name) for name in TILE_COLUMNS}


def _shards(found: DistilledSet, pictures: Sequence[Picture]) -> Iterator[list[Picture]]:
    """Runs of pictures of at most SHARD_BYTES together."""
    part: list[Picture] = []
    size = 0
    for picture in pictures:
        more = (found.path / picture.file).stat().st_size
        if part and size + more > SHARD_BYTES:
            yield part
            part, size = [], 0
        part.append(picture)
        size += more
    yield part


# ---- the card --------------------------------------------------------------------------------------------------------

LOADING = {
    "hf": 'datasets.load_dataset("FOLDER", split="train")',
    "webdataset": 'webdataset.WebDataset("shards/train-{{000000..{last:06d}}}.tar").decode("pil").to_tuple("{suffix}", "cls")',
    "fiftyone": 'fiftyone.Dataset.from_dir("FOLDER", dataset_type=fiftyone.types.FiftyOneImageClassificationDataset)',
    "csv": 'pandas.read_csv("images.csv")',
    "list": "diffsel rebuild FOLDER --data DATA --out SET",
}
ABOUT = {
    "csv": f"In the tables, {PREFIXED}.",
    "list": "No pictures lie here: with the source images in DATA, the command above makes them again, byte for byte.",
}


def _card(found: DistilledSet, form: Form, source: str) -> str:
    suffix = Path(found.pictures[0].file).suffix.lstrip(".")
    load = LOADING[form].format(last=len(list(_shards(found, found.pictures))) - 1, suffix=suffix)
    return card(found.record, _names(found), load, source, ABOUT.get(form, ""), front=_front_matter(found, form))


def _front_matter(found: DistilledSet, form: Form) -> dict[str, Any]:
    """What a form's card says more than others."""
    matter: dict[str, Any] = {}
    if form == "hf":
        tile = [{"name": n, "dtype": str(_column_type(n)).replace("double", "float64")} for n in TILE_COLUMNS]
        label = {"class_label": {"names": {str(i): name for i, name in enumerate(_names(found))}}}
        features = [{"name": "image", "dtype": "image"}, {"name": "label", "dtype": label}, {"name": "tiles", "list": tile}]
        size = sum((found.path / p.file).stat().st_size for p in found.pictures)
        splits = [{"name": "train", "num_bytes": size, "num_examples": len(found.pictures)}]
        matter["dataset_info"] = {"features": features, "splits": splits, "dataset_size": size}
        matter["configs"] = [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}]
    elif form == "webdataset":
        matter["configs"] = [{"config_name": "default", "data_files": [{"split": "train", "path": "shards/train-*.tar"}]}]
    return matter


# ---- the hub -----------------------------------------------------------------------------------------------------------


def check_login(hub_id: str) -> str:
    """Who is logged in to the hub, asked before anything is written.

    Raises ConfigError for an id that cannot be one, or where nobody is logged in or the hub does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(hub_id)
        return str(HfApi().whoami()["name"])
    except HFValidationError as error:
        raise ConfigError(f"--push {hub_id!r}: not a hub id such as NAME/SET ({error})") from None
    except LocalTokenNotFoundError:
        raise ConfigError(f"--push {hub_id}: nobody is logged in to the hub; run `hf auth login` or set HF_TOKEN") from None
    except Exception as error:  # without a network, errors come from the client library below, whichever that is
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--push {hub_id}: the hub did not accept the login, or did not answer: {reason}") from None


def push_to_hub(folder: Path | str, hub_id: str, private: bool = True) -> str:
    """Upload an exported folder as a data set repository, made where it is missing; its address.  What else lies in the folder
    stays here.

    Raises ConfigError where the hub refuses; started again, only what is missing there is uploaded.
    """
    from huggingface_hub import HfApi

    ours = ["README.md", EXPORT, *listed(Path(folder))]
    try:
        api = HfApi()
        repo = api.create_repo(hub_id, repo_type="dataset", private=private, exist_ok=True)
        said = "Upload a distilled set (diffsel)"
        api.upload_folder(
            folder_path=folder, repo_id=repo.repo_id, repo_type="dataset", commit_message=said, allow_patterns=ours
        )
        return str(repo)
    except Exception as error:
        raise ConfigError(f"--push {hub_id}: {str(error).splitlines()[0]} (the export itself is whole: {folder})") from None
