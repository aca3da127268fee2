"""Which images of a class did a network find hard while it learned?  Whole images, best first, by a teacher's records.

el2n-easy, el2n-hard  mean length of softmax - one-hot over the first epochs    Paul et al., arXiv 2107.07075, eq. 3
forgetting            how often a right answer became wrong; never right: first Toneva et al., arXiv 1812.05159, alg. 1
ccs                   without the hardest, evenly over strata of el2n           Zheng et al., arXiv 2210.15809, alg. 1

TEACHER/records/  images.safetensors      which images, by their bytes
                  epoch-000.safetensors   of each: el2n and whether the answer was right, as they were while it learned
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from ..data.rows import Row
from ..machine.tensors import read_unit, write_unit
from ..settings.errors import ConfigError, DataError, StoreError
from ..settings.settings import fingerprint

STRATA = 50  # of CCS
RECOVER = "delete it with the teacher's state.safetensors, and `diffsel teacher --record` writes it again"


@dataclass(frozen=True)
class Records:
    """What a network thought of each image in each epoch of its training."""

    digests: Sequence[str]  # of the images' bytes
    el2n: Float[np.ndarray, "epochs n"]
    right: Bool[np.ndarray, "epochs n"]

    @cached_property
    def digest(self) -> str:
        return fingerprint([list(self.digests), self.el2n.tobytes().hex(), np.packbits(self.right).tobytes().hex()])

    @cached_property
    def _places(self) -> dict[str, int]:
        return {digest: i for i, digest in enumerate(self.digests)}

    def of(self, rows: Sequence[Row]) -> Records:
        """Those of some images, in their order.  Raises DataError for an image that the network was not trained on."""
        for row in rows:
            if row.digest not in self._places:
                raise DataError(f"{row.path} is none of the images that this teacher was trained on and has records of")
        places = [self._places[row.digest] for row in rows]
        return Records([row.digest for row in rows], self.el2n[:, places], self.right[:, places])


# ---- on disk ---------------------------------------------------------------------------------------------------------


def write_images(teacher: Path, digests: Sequence[str]) -> None:
    """Once, before the first epoch."""
    rows = np.array([list(bytes.fromhex(digest)) for digest in digests], np.uint8)
    write_unit(teacher / "records" / "images.safetensors", "records", {"digest": rows}, {})


def write_epoch(teacher: Path, epoch: int, el2n: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"]) -> None:
    found: dict[str, np.ndarray] = {"el2n": el2n.astype(np.float16), "right": right.astype(np.uint8)}
    write_unit(_file(teacher, epoch), "records", found, {"epoch": epoch})


def read_records(teacher: Path) -> Records:
    """All epochs of a finished training.

    Raises ConfigError where the teacher kept no records, StoreError where one is damaged.
    """
    folder = teacher / "records"
    if not (folder / "images.safetensors").exists():
        raise ConfigError(f"{teacher} holds no records of its images; train it with `diffsel teacher DATA --record`")
    rows = read_unit(folder / "images.safetensors", "records", RECOVER)[0].get("digest")
    if rows is None:
        raise StoreError(f"{folder / 'images.safetensors'} holds no digests of images; {RECOVER}")
    epochs = []
    for number in range(len(list(folder.glob("epoch-*.safetensors")))):
        found, extra = read_unit(_file(teacher, number), "records", RECOVER)
        if extra.get("epoch") != number or "el2n" not in found or found["el2n"].shape != (len(rows),):
            raise StoreError(f"{_file(teacher, number)} holds other images or another epoch than its name says; {RECOVER}")
        epochs.append(found)
    el2n, right = (np.stack([found[name] for found in epochs]) for name in ("el2n", "right"))
    return Records([bytes(row).hex() for row in rows], el2n.astype(np.float32), right.astype(bool))


def _file(teacher: Path, epoch: int) -> Path:
    return teacher / "records" / f"epoch-{epoch:03d}.safetensors"


# ---- orders ----------------------------------------------------------------------------------------------------------


def order(
    method: str, records: Records, count: int, early: int, cut: float, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " count"], Float[np.ndarray, " n"]]:
    """(places of ``count`` images of a class, best first; the score of each image: larger is better).

    ``early``: epochs that el2n is the mean of; ``cut``: share of the hardest that ccs leaves out.  Equals keep the order in
    which they come, which is a random one.
    """
    hard = records.el2n[:early].mean(0)
    score = {"el2n-easy": -hard, "el2n-hard": hard, "forgetting": forgotten(records.right), "ccs": -hard}[method]
    chosen = ccs(hard, count, cut, rng) if method == "ccs" else np.argsort(-score, kind="stable")[:count]
    return chosen, score


def forgotten(right: Bool[np.ndarray, "epochs n"]) -> Float[np.ndarray, " n"]:
    """How many right answers were followed by a wrong one; as many as there are epochs where none was ever right.

    >>> forgotten(np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0]], bool)).tolist()
    [1.0, 0.0, 3.0]
    """
    events = (right[:-1] & ~right[1:]).sum(0)
    return np.where(right.any(0), events, len(right)).astype(float)


def ccs(
    hard: Float[np.ndarray, " n"], count: int, cut: float, rng: np.random.Generator, strata: int = STRATA
) -> Int[np.ndarray, " count"]:
    """Coverage-centric selection: the ``cut`` hardest go; strata of equal width share ``count``, the smallest served first.

    >>> hard = np.array([0.0, 0.1, 0.2, 0.3, 1.0, 9.0])  # the last is left out; then two strata, of four and of one
    >>> sorted(ccs(hard, 2, 0.2, np.random.default_rng(0), 2).tolist())[-1]
    4
    """
    kept = np.argsort(hard, kind="stable")[: max(count, len(hard) - int(cut * len(hard)))]
    low, high = hard[kept].min(), hard[kept].max()
    stratum = np.minimum(((hard[kept] - low) / max(high - low, 1e-12) * strata).astype(int), strata - 1)
    groups = sorted((kept[stratum == s] for s in np.unique(stratum)), key=len)
    chosen = list[int]()
    for left, group in zip(range(len(groups), 0, -1), groups, strict=True):
        chosen += rng.permutation(group)[: (count - len(chosen)) // left].tolist()
    return np.array(chosen, np.int64)
