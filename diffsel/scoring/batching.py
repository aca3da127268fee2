"""Items in batches that are all alike.

Every batch of a shape has the same number of samples, so that an item's bytes do not depend on its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

Shape = tuple[int, ...]  # of a latent: channels, h, w
Launched = tuple[Tensor, Callable[[], object]]  # what a batch gives, a line an item, and what waits for its arrival
EIGHT = 8  # samples, of which a forward has a multiple where it can
T = TypeVar("T")


@dataclass(frozen=True)
class Job(Generic[T]):
    """Items of one shape, of which each takes so many ``samples`` of a forward, and what launches a batch of them."""

    items: Sequence[T]
    shape: Shape
    samples: int
    launch: Callable[[Sequence[T]], Launched]
    most: int | None = None  # items in a batch, if not as many as fill a forward

    def count(self, size: int) -> int:
        """Items in a batch, where a forward has ``size`` samples."""
        return min(max(1, size // self.samples), self.most or size)


def filled(items: Sequence[T], count: int) -> list[T]:
    """So many items: the last one is repeated."""
    return [*items, *[items[-1]] * (count - len(items))]


def evenly(items: float, most: int, samples: int = 1, multiple: int = EIGHT) -> int:
    """Items of so many ``samples`` in a batch, at most ``most``, so that ``items`` fill equal batches: 33 fill three of 12,
    where 32 and 1 would leave 31 places.  A batch more counts as one sample more (RESULTS.md, "Filling").

    Batches hold a ``multiple`` of eight samples where they can: of other numbers, a sample's bytes depend on its neighbours (a
    CPU multiplies the last rows of a matrix another way).
    """
    step = multiple // math.gcd(multiple, samples)
    most = min(most, max(1, math.ceil(items / step)) * step)  # one that all items fit into: of absurd numbers most are useless
    sizes = range(step, most + 1, step) or range(most, most + 1)
    return min(sizes, key=lambda size: (math.ceil(items / size) * (size + 1 / samples), -size))
