"""Items in batches that are all alike: how many at once, and what fills them up.

Every batch of a shape has the same number of samples, so that an item's bytes do not depend on its neighbours.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ..settings.sections import ScoringSettings

Shape = tuple[int, ...]  # of a latent: channels, h, w
Launched = tuple[Tensor, Callable[[], object]]  # what a batch gives, a line an item, and what waits for its arrival
Size = tuple[int, int]  # of a picture: height, width
GROUP = 16  # images that are scored together, for each sample of a forward: then filling costs about 2 %
MOST = 8192  # images that are scored together at most, whatever the batch: 1.6 GB of pixels at 256 px
EIGHT = 8  # samples, of which a forward has a multiple where it can
PAIR = 2  # pictures, of which the VAE gets a multiple
PIXELS = 2**20  # that it takes at once on a GPU
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


def vae_batch(device: torch.device, height: int, width: int) -> int:
    """Pictures of this size that the VAE takes at once, at most: an even number.

    A CPU gains nothing by more than two, which would be filling.  A GPU must have more to do than its host needs to launch it:
    by a guess some ten milliseconds, or 8 to 16 pictures of 256 x 256 (RESULTS.md, "On a GPU").
    """
    return PAIR if device.type == "cpu" else max(PAIR, PIXELS // (height * width) // PAIR * PAIR)


def forwards(images: int, prompts: int, settings: ScoringSettings) -> int:
    """U-Net samples that scoring takes (adaptively: at least): each draw once with every prompt and once with the null one."""
    return images * settings.draws * (1 + prompts)


def batch_sizes(
    images: Mapping[Shape, float], square: Shape, prompts: int, settings: ScoringSettings, batch_size: int
) -> dict[Shape, int]:
    """Samples in a forward of each latent shape, for a run that has so many ``images`` of them.

    No more latent cells than ``batch_size`` samples of a ``square`` have, so that memory is for all shapes alike; and the
    batches of a shape are equally full (``evenly``), as far as its images in a group can be foreseen.
    """
    share, found = _in_a_group(images, batch_size), {}
    for shape, count in images.items():
        most = max(1, batch_size * math.prod(square) // math.prod(shape) // (1 + prompts))  # draws, as in Scorer.losses
        found[shape] = evenly(max(1.0, count * share) * settings.rounds()[-1], most, 1 + prompts) * (1 + prompts)
    return found


def picture_sizes(pictures: Mapping[Size, float], device: torch.device, batch_size: int) -> dict[Shape, int]:
    """As ``batch_sizes``, of the VAE: pictures in a batch of each (3, height, width)."""
    share, most = _in_a_group(pictures, batch_size), max(PAIR, batch_size // PAIR * PAIR)
    return {
        (3, *size): evenly(max(1.0, count * share), min(most, vae_batch(device, *size)), multiple=PAIR)
        for size, count in pictures.items()
    }


def _in_a_group(images: Mapping[Any, float], batch_size: int) -> float:
    """The share of a run's images that are scored together."""
    return min(1.0, GROUP * batch_size / sum(images.values()))


def filled_pictures(pictures: Iterable[Size], sizes: Mapping[Shape, int]) -> int:
    """Pictures that the VAE encodes for these, scored together, with what fills up the last batch of each size."""
    return sum(math.ceil(count / sizes[(3, *size)]) * sizes[(3, *size)] for size, count in Counter(pictures).items())


def filled_forwards(shapes: Iterable[Shape], prompts: int, settings: ScoringSettings, sizes: Mapping[Shape, int]) -> int:
    """As ``forwards``, of images scored together whose latents have these ``shapes``, with what fills up the last batch of
    each shape, in batches of ``sizes`` samples."""
    total = 0
    for shape, images in Counter(shapes).items():
        size = max(1, sizes[shape] // (1 + prompts))
        total += math.ceil(images * settings.draws / size) * size * (1 + prompts)
    return total
