"""How a student sees the images of one epoch: crops, flips and shuffled patches, then CutMix or MixUp per batch.

Every draw of an epoch comes from one generator keyed (seed, epoch), image ``i`` taking line ``i``; those of a batch
from one keyed (seed, epoch, batch).  Cropping, resizing (antialiased bilinear), mirroring and shuffling act on rows and
columns alone, so all of them together are two small matrices per image, multiplied on the device.

Draws are arrays of numpy; what is applied may be arrays too, or tensors that lie beside the images already: then nothing here
copies between host and device, so that nobody waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what every network sees: ImageNet's normalisation, as RDED
RATIO = (3 / 4, 4 / 3)  # of RandomResizedCrop
TRIES = 10  # of RandomResizedCrop, before it takes the middle
Array = np.ndarray | Tensor


@dataclass(frozen=True)
class Views:
    """How each of n images is seen in one epoch: a crop of the shuffled image, mirrored or not."""

    crop: Int[Array, "n 4"]  # top, left, height, width in pixels of the shuffled image
    flip: Bool[Array, " n"]
    rows: Int[Array, "n factor"]  # source strip of each strip, top to bottom
    cols: Int[Array, "n factor"]  # the same, left to right

    def take(self, ids: np.ndarray) -> Views:
        return Views(self.crop[ids], self.flip[ids], self.rows[ids], self.cols[ids])


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed with itself: image ``i`` with image ``partner[i]``."""

    kind: str  # cutmix, mixup or none
    partner: Int[Array, " batch"]
    lam: float  # weight of the image itself; for cutmix, what the box was drawn for
    box: tuple[int, int, int, int]  # top, left, bottom, right of what the partner gives (cutmix)

    def share(self, height: int, width: int) -> float:
        """Share of the image itself in the mixed one, as a hard label should weigh it."""
        top, left, bottom, right = self.box
        return 1 - (bottom - top) * (right - left) / (height * width) if self.kind == "cutmix" else self.lam


def epoch_generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng([seed, epoch])


# ---- drawing ---------------------------------------------------------------------------------------------------------


def draw_views(
    rng: np.random.Generator,
    n: int,
    height: int,
    width: int,
    *,
    crop: bool,
    scale: tuple[float, float],
    flip: bool,
    factor: int,
    tiles: int = 1,
) -> Views:
    """Views of n images, distributed as torchvision's RandomResizedCrop, RandomHorizontalFlip and RDED's ShufflePatches.

    ``tiles``: crops stay inside one of so many squared tiles (of the size of the smallest one).
    """
    boxes = draw_crops(rng, n, height // tiles, width // tiles, scale, RATIO)
    mirrored = np.less(rng.random(n), 0.5 if flip else 0.0)
    rows, cols = (np.argsort(rng.random((n, factor)), axis=1) for _ in range(2))
    if tiles > 1:
        which, sides = rng.integers(tiles, size=(n, 2)), np.array([height, width])
        boxes[:, :2] += which * (sides // tiles) + np.minimum(which, sides % tiles)
    if not crop:
        boxes = np.tile(np.array([0, 0, height, width]), (n, 1))
    return Views(boxes, mirrored, rows, cols)


def draw_crops(
    rng: np.random.Generator, n: int, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Int[np.ndarray, "n 4"]:
    """n boxes (top, left, height, width) as torchvision's RandomResizedCrop draws them: the first of ten that fits."""
    area = height * width * rng.uniform(*scale, (n, TRIES))
    aspect = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1]), (n, TRIES)))
    w, h = np.rint(np.sqrt(area * aspect)).astype(int), np.rint(np.sqrt(area / aspect)).astype(int)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = (np.arange(n), np.argmax(fits, axis=1))
    h, w = h[first], w[first]
    place = rng.random((n, 2))
    top, left = (place[:, 0] * (height - h + 1)).astype(int), (place[:, 1] * (width - w + 1)).astype(int)
    boxes = np.stack([top, left, h, w], axis=1)
    boxes[~fits[first]] = middle_crop(height, width, ratio)
    return boxes


def middle_crop(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """RandomResizedCrop's last resort: the largest box in the middle whose aspect is allowed."""
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def draw_mix(rng: np.random.Generator, batch: int, height: int, width: int, kind: str) -> Mix:
    """CutMix with Beta(1, 1), MixUp with Beta(0.8, 0.8), or nothing."""
    partner = rng.permutation(batch) if kind != "none" else np.arange(batch)
    alpha = {"cutmix": 1.0, "mixup": 0.8, "none": None}[kind]
    lam = float(rng.beta(alpha, alpha)) if alpha else 1.0
    centre = int(rng.integers(height)), int(rng.integers(width))
    return Mix(kind, partner, lam, cut_box(height, width, lam, centre) if kind == "cutmix" else (0, 0, 0, 0))


def cut_box(height: int, width: int, lam: float, centre: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of a box of 1 - ``lam`` of the area around ``centre``, clipped (golden `rded_cutmix`)."""
    share = np.sqrt(1 - lam)
    spans = []
    for size, middle in ((height, centre[0]), (width, centre[1])):
        half = int(size * share) // 2
        spans.append((min(max(middle - half, 0), size), min(max(middle + half, 0), size)))
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]


# ---- applying --------------------------------------------------------------------------------------------------------


def view(pixels: UInt8[Tensor, "b 3 h w"], views: Views, size: int, drop_remainder: bool = False) -> Float[Tensor, "b 3 s s"]:
    """The images as ``views`` has them, at ``size`` x ``size`` pixels, values in [0, 255]."""
    height, width = pixels.shape[2:]
    crop, flip, rows, cols = (
        torch.as_tensor(each, device=pixels.device) for each in (views.crop, views.flip, views.rows, views.cols)
    )
    top, left, h, w = crop.unbind(1)
    down = _axis(top, h, size, strips(rows, height, drop_remainder), height)
    across = _axis(left, w, size, strips(cols, width, drop_remainder), width)
    across = torch.where(flip[:, None, None], across.flip(1), across)
    return down[:, None] @ pixels.float() @ across[:, None].mT


def strips(order: Int[Tensor, "n factor"], size: int, drop_remainder: bool = False) -> Int[Tensor, "n length"]:
    """Source position of every position along a side whose strips come in ``order``.

    Strips are as wide as a mosaic's tiles, the first ones a pixel wider where ``size`` does not divide; with
    ``drop_remainder`` (RDED) all are equal and what is left over is dropped.
    """
    width, left = divmod(size, order.shape[1])
    left = 0 if drop_remainder else left
    widths, starts = width + (order < left), width * order + order.clamp(max=left)
    ends = widths.cumsum(1)
    place = torch.arange(width * order.shape[1] + left, device=order.device).repeat(len(order), 1)
    strip = torch.searchsorted(ends, place, right=True)
    return place + (starts - ends + widths).gather(1, strip)


def _axis(start: Tensor, length: Tensor, size: int, source: Tensor, full: int) -> Float[Tensor, "b size full"]:
    """Weights of ``full`` source positions in each of ``size`` resampled ones: antialiased bilinear, as torch resizes.

    The window is ``length`` positions from ``start`` on, of the line that ``source`` made.
    """
    device, span = start.device, source.shape[1]
    scale = (length.float() / size)[:, None, None]
    centre = scale * (torch.arange(size, device=device)[:, None] + 0.5)
    position = torch.arange(span, device=device) - start[:, None, None]
    weight = (1 - ((position + 0.5 - centre) / scale.clamp(min=1)).abs()).clamp(min=0)
    weight = weight * ((position >= 0) & (position < length[:, None, None]))
    weight = weight / weight.sum(2, keepdim=True)
    where = source[:, None].expand(-1, size, -1)
    return torch.zeros(len(start), size, full, device=device).scatter_(2, where, weight)


def apply_mix(images: Float[Tensor, "b 3 h w"], mix: Mix) -> Float[Tensor, "b 3 h w"]:
    """The mixed batch; ``images`` are left as they are."""
    if mix.kind == "none":
        return images
    other = images[torch.as_tensor(mix.partner, device=images.device)]
    if mix.kind == "mixup":
        return mix.lam * images + (1 - mix.lam) * other
    top, left, bottom, right = mix.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
    return mixed


def normalise(images: Tensor) -> Tensor:
    """Values in [0, 255] (B, 3, H, W), any dtype -> float32 with ImageNet's mean 0 and deviation 1.

    Channels come last in memory: convolutions are nearly twice as fast so, on CPUs and GPUs alike.
    """
    mean, std = mean_and_deviation(images.device)
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


@cache
def mean_and_deviation(device: torch.device) -> Float[Tensor, "2 3 1 1"]:
    """Kept on the device: a copy there would make the host wait in every step."""
    return torch.tensor([MEAN, STD], device=device)[:, :, None, None]
