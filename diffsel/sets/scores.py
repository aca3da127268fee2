"""What a RUN says of every image, class by class: score, nats, box, suspect statistic, cluster, rank, vector.

One line an image; of several patches the best by rank.  Nothing is computed by a network; the images may be gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from ..data.rows import Row
from ..runs.index import read_skipped
from ..runs.run import Run
from .candidates import kept_rows, near, patches_of
from .selection import clustered
from .suspects import suspects

COLUMNS = {  # of every image, with what each says; nothing where an image was passed over, or selection does not look at it
    "row": (pa.int64(), "number of the image in the run's index"),
    "path": (pa.string(), "of the image, in the data set"),
    "class": (pa.string(), "as the data set calls it"),
    "label": (pa.int64(), "place of the class in the run's order"),
    "image_width": (pa.int64(), "upright, original, pixels"),
    "image_height": (pa.int64(), "upright, original, pixels"),
    "digest": (pa.string(), "blake2b-128 of the file"),
    "score": (pa.float64(), "of the best patch, as selection ranks by it; higher is more class-relevant"),
    "nats": (pa.float64(), "log p(image | label) - log p(image), within the timesteps scored"),
    "box": (pa.list_(pa.int64()), "top, left, height, width of the best patch, pixels of the resized image"),
    "region": (pa.list_(pa.float64()), "the same as left, top, width, height, shares of the image"),
    "statistic": (pa.float64(), "mean of -D over the image; negative where the label raises the loss"),
    "suspect": (pa.int64(), "place in the class, 0 is the most suspect label"),
    "rank": (pa.int64(), "place in the class by score, 0 is the best"),
    "cluster": (pa.int64(), "0 is the best; -1: not among the patches that are clustered; none: a copy or suspect, left out"),
    "place": (pa.int64(), "rank inside the cluster, 0 is nearest to the centre"),
    "distance": (pa.float64(), "to the centre of the cluster"),
    "like": (pa.string(), "the earlier image that it looks nearly like, so that selection leaves it out"),
    "passed_over": (pa.string(), "why there is no score"),
}
VECTOR = pa.field("vector", pa.list_(pa.float32()))  # of the best patch, unit length


def schema(vectors: bool) -> pa.Schema:
    """The columns of the table, the vectors as asked."""
    return pa.schema([*((name, kind) for name, (kind, _) in COLUMNS.items()), *([VECTOR] if vectors else [])])


@dataclass(frozen=True, eq=False)
class Scores:
    """Every image of a run.  ``need``: patches a class of the set whose clusters are told."""

    run: Run
    need: int
    vectors: bool = False

    def __iter__(self) -> Iterator[pa.Table]:
        """The images of a class, by row, then those that the index could not take.  Raises StoreError where a stage has not
        finished."""
        for number, info in enumerate(self.run.classes):
            lines = self._of_class(info.folder)
            yield pa.Table.from_pylist([{**line, "label": number} for line in lines], schema(self.vectors))

    def _of_class(self, label: str) -> list[dict[str, Any]]:
        images, patches = self._images(label), self._patches(label)
        lines = []
        for row in self.run.data.of_class(label):
            told = {"row": row.row, "path": row.path, "class": label, "digest": row.digest}
            told |= {"image_width": row.width, "image_height": row.height}
            lines.append(told | images.get(row.row, {}) | patches.get(row.row, {}) | self._passed.get((label, row.path), {}))
        listed = {row.path for row in self.run.data.of_class(label)}
        lost = [(path, told) for (name, path), told in self._passed.items() if name == label and path not in listed]
        return lines + [{"path": path, "class": label, **told} for path, told in lost]

    @cached_property
    def _passed(self) -> dict[tuple[str, str], dict[str, str]]:
        return {(each.label, each.path): {"passed_over": each.reason} for each in read_skipped(self.run.path)}

    def _images(self, label: str) -> dict[int, dict[str, Any]]:
        """What is known of whole images, by row."""
        found = suspects(self.run, label)
        return {each.row: {"statistic": each.statistic, "suspect": each.rank, "nats": each.nats} for each in found}

    def _patches(self, label: str) -> dict[int, dict[str, Any]]:
        """What is known of the best patch of each image, by row."""
        run, s, found = self.run, self.run.settings, patches_of(self.run, label)
        like = {row: run.data.rows.numbered(first).path for row, first in near(run, label).items()}
        kept = np.isin(found.rows, list(kept_rows(run, label)))
        groups = clustered(found.at(kept), self.need, s.selection, s.seed)
        places = np.cumsum(kept) - 1  # of a patch among those kept
        by_row = {row.row: row for row in run.data.of_class(label)}
        told = {}
        for rank, i in enumerate(best_of_rows(found.rows, found.scores)):
            told[int(found.rows[i])] = line = {
                "score": float(found.scores[i]),
                "box": found.boxes[i].tolist(),
                "region": region(by_row[int(found.rows[i])], found.boxes[i], run),
                "rank": rank,
                "like": like.get(int(found.rows[i])),
            }
            if groups and kept[i]:
                at, line["cluster"] = places[i], int(groups.cluster[places[i]])
                if line["cluster"] >= 0:
                    line |= {"place": int(groups.place[at]), "distance": float(groups.distance[at])}
            if self.vectors:
                line["vector"] = found.vectors[i]
        return told


def best_of_rows(rows: Int[np.ndarray, " n"], scores: np.ndarray) -> Int[np.ndarray, " images"]:
    """Where the best patch of each image is, best image first; ties go to the lower row, and to the earlier patch."""
    order = np.argsort(-scores, kind="stable")
    _, first = np.unique(rows[order], return_index=True)
    return order[np.sort(first)]


def region(row: Row, box: np.ndarray, run: Run) -> list[float]:
    """A box as left, top, width, height in shares of its image."""
    (width, height), (top, left, down, across) = run.data.size(row), map(float, box)
    return [left / width, top / height, across / width, down / height]
