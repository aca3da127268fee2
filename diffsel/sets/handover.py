"""The scores of a RUN (scores.py) in the forms that other tools read.  Nothing here needs those tools, but ``open_datalab``.

parquet     scores.parquet (pandas, polars, duckdb)
datasets    data/train-00000-of-00001.parquet with the images, where they lie, and a ClassLabel (datasets, the hub's viewer)
fiftyone    samples.json (LegacyFiftyOneDataset): boxes, heat maps and scores on the source images
cleanlab    scores.parquet of the scored images, features.npy: their vectors, in the same order
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..data.images import base_of
from ..machine.addresses import is_address
from ..machine.files import write_atomically
from ..machine.formats import dump_yaml
from ..machine.progress import Progress, quiet
from ..runs.run import Run
from ..runs.units import scored_rows
from ..settings.errors import ConfigError, DataError
from ..settings.settings import identity
from .card import hub_card
from .exported import FORMAT, hand_over
from .scores import COLUMNS, Scores

if TYPE_CHECKING:
    from cleanlab import Datalab

Form = Literal["parquet", "datasets", "fiftyone", "cleanlab"]
FORMS: tuple[str, ...] = get_args(Form)
GROUP = 1 << 16  # lines of a table that are written at a time
LOADING = {
    "parquet": 'pandas.read_parquet("scores.parquet")',
    "datasets": 'datasets.load_dataset("FOLDER", split="train")',
    "fiftyone": 'fiftyone.Dataset.from_dir("FOLDER", dataset_type=fiftyone.types.LegacyFiftyOneDataset)',
    "cleanlab": 'diffsel.open_datalab("FOLDER")',
}


def export_scores(scores: Scores, form: Form, out: Path | str, progress: Progress = quiet) -> bool:
    """Every image of a run -> OUT, all at once; False where it is there already.

    Raises StoreError where OUT holds something else or a stage has not finished, DataError where ``fiftyone`` is to show images
    that are no files.
    """
    run = scores.run
    if form == "fiftyone" and is_address(base_of(run.data.root) or "none://"):
        raise DataError(f"{run.data.root} holds no image files of this machine; FiftyOne shows files (--to parquet, datasets)")
    asked = {"selection": identity(run.settings.selection), "patches_a_class": scores.need, **run.feature_identity}
    record = {"format": FORMAT, "form": form, "run": run.mark, "vectors": scores.vectors, "nats": run.nats is not None, **asked}
    if form in ("datasets", "fiftyone"):
        record["data"] = run.data.root
    write: Mapping[str, Callable[[Scores, Iterable[pa.Table], Path], None]] = {
        "parquet": _write_parquet,
        "datasets": _write_datasets,
        "fiftyone": _write_fiftyone,
        "cleanlab": _write_cleanlab,
    }

    def fill(part: Path) -> None:
        with progress(total=len(run.classes), desc="reading scores", unit="class") as bar:
            write[form](scores, _counted(scores, bar.update), part)

    return hand_over(out, record, fill, partial(_card, run, form, record))


def _counted(tables: Iterable[pa.Table], tell: Callable[[], object]) -> Iterator[pa.Table]:
    for table in tables:
        yield table
        tell()


def _card(run: Run, form: str, record: Mapping[str, Any]) -> str:
    matter = {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}]}
    told = "\n".join(f"| `{name}` | {text} |" for name, (_, text) in COLUMNS.items())
    settings = "".join(f"    {line}\n" for line in dump_yaml(record).decode().splitlines())
    return hub_card(
        matter if form == "datasets" else {},
        f"# Scores of {len(run.data.rows)} images in {len(run.classes)} classes\n\n**Loading.** `{LOADING[form]}`\n\n"
        f"One line an image; of several patches the best.\n\n| column | |\n|---|---|\n{told}\n\n## Settings\n\n{settings}",
    )


# ---- forms -----------------------------------------------------------------------------------------------------------


def _write_parquet(scores: Scores, tables: Iterable[pa.Table], out: Path) -> None:
    _write_tables(tables, out / "scores.parquet")


def _write_tables(tables: Iterable[pa.Table], file: Path, about: Mapping[str, str] | None = None) -> None:
    """One parquet file of many tables (one at least), in groups of a size that readers like."""
    file.parent.mkdir(parents=True, exist_ok=True)
    groups = _groups(tables)
    first = next(groups)
    with pq.ParquetWriter(file, first.schema.with_metadata(about)) as writer:
        for group in chain([first], groups):
            writer.write_table(group, row_group_size=2 * GROUP)


def _groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    waiting = list[pa.Table]()
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= GROUP:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _write_datasets(scores: Scores, tables: Iterable[pa.Table], out: Path) -> None:
    """The table, classes with their names, and an image column of addresses alone: no pixel is copied."""
    base, kind = base_of(scores.run.data.root), pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {"label": {"_type": "ClassLabel", "names": [info.folder for info in scores.run.classes]}}
    if base:
        features["image"] = {"_type": "Image"}

    def with_images(table: pa.Table) -> pa.Table:
        found = [{"bytes": None, "path": f"{base}/{path}"} for path in table["path"].to_pylist()]
        return table.add_column(0, pa.field("image", kind), pa.array(found, kind)) if base else table

    about = {"huggingface": json.dumps({"info": {"features": features}}, sort_keys=True)}
    _write_tables(map(with_images, tables), out / "data" / "train-00000-of-00001.parquet", about)


def _write_cleanlab(scores: Scores, tables: Iterable[pa.Table], out: Path) -> None:
    """The images that have a vector, and the vectors."""
    scored = [table.filter(table["vector"].is_valid()) for table in tables]
    vectors = [np.stack(table["vector"].to_numpy()) for table in scored if len(table)]
    _write_tables((table.drop_columns("vector") for table in scored), out / "scores.parquet")
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate(vectors))
    write_atomically(out / "features.npy", buffer.getvalue())


def _write_fiftyone(scores: Scores, tables: Iterable[pa.Table], out: Path) -> None:
    run, base, samples = scores.run, base_of(scores.run.data.root), list[dict[str, Any]]()
    for info, table in zip(run.classes, tables, strict=True):
        heat = dict(_maps(run, info.folder))
        samples += [_sample(f"{base}/{line['path']}", line, heat.get(line["row"])) for line in table.to_pylist()]
    write_atomically(out / "samples.json", json.dumps({"samples": samples}, ensure_ascii=False).encode())


def _maps(run: Run, label: str) -> Iterator[tuple[int, np.ndarray]]:
    """The map (h, w) of every scored image of a class, by row."""
    for unit in run.of_class(label):
        tensors, extra = run.maps(unit)
        yield from ((row.row, run.image_map(tensors, extra, row)) for row in scored_rows(unit, extra))


def _sample(file: str, line: Mapping[str, Any], heat: np.ndarray | None) -> dict[str, Any]:
    """An image as FiftyOne's samples.json tells it."""
    plain = {
        name: value for name, value in line.items() if value is not None and name not in ("path", "class", "box", "region")
    }
    sample = {**plain, "filepath": file, "tags": []}
    sample["label"] = {"_cls": "Classification", "label": line["class"]}
    if line["passed_over"] is not None:
        sample["tags"].append("passed over")
    if line["statistic"] is not None and line["statistic"] < 0:
        sample["tags"].append("label raises the loss")
    if line["region"] is not None:
        box = {"_cls": "Detection", "label": line["class"], "bounding_box": line["region"], "score": line["score"]}
        sample["box"] = {"_cls": "Detections", "detections": [box]}
    if heat is not None:
        span = [float(heat.min()), float(heat.max())]
        sample["map"] = {"_cls": "Heatmap", "map": _packed(heat.astype(np.float32)), "range": span}
    return sample


def _packed(values: np.ndarray) -> str:
    """An array as FiftyOne packs it: .npy, zlib, base64."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    return base64.b64encode(zlib.compress(buffer.getvalue())).decode()


# ---- cleanlab --------------------------------------------------------------------------------------------------------


def open_datalab(folder: Path | str) -> Datalab:
    """A ``cleanlab`` export as cleanlab's Datalab, with what the vectors tell (outliers, near duplicates ...) and the issue
    ``raised_loss``: images whose label raises the loss; its score is the share of images with a lower suspect statistic.

    Raises ConfigError where cleanlab is not installed (`pip install 'diffsel[cleanlab]'`).
    """
    try:
        from cleanlab import Datalab
        from cleanlab.datalab.internal.issue_manager import IssueManager
        from cleanlab.datalab.internal.issue_manager_factory import register
    except ImportError:
        raise ConfigError("cleanlab is missing: pip install 'diffsel[cleanlab]'") from None
    import pandas as pd

    class RaisedLoss(IssueManager):  # type: ignore[misc]
        description = "The words of the label raise the loss of the diffusion model."
        issue_name = "raised_loss"

        def find_issues(self, statistic: np.ndarray, **_: Any) -> None:
            share = np.argsort(np.argsort(statistic, kind="stable")) / max(1, len(statistic) - 1)
            self.issues = pd.DataFrame({"is_raised_loss_issue": statistic < 0, self.issue_score_key: share})
            self.summary = self.make_summary(float((statistic >= 0).mean()))

    register(RaisedLoss)
    table = pq.read_table(Path(folder) / "scores.parquet")
    lab = Datalab(table.to_pydict(), label_name="class", verbosity=0)
    lab.find_issues(features=np.load(Path(folder) / "features.npy"))
    lab.find_issues(issue_types={"raised_loss": {"statistic": table["statistic"].to_numpy()}})
    return lab
