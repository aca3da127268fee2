"""Images -> loss maps and gap maps (paper 3.1): where in an image is its class?

With z_t the noisy latent, ``a`` the noise predicted with the null prompt and ``b`` with a label prompt,

    differential map   D = E[ mean_c (b - eps)^2 - mean_c (a - eps)^2 ]     negative where the words help
    gap map            G = E[ mean_c (a - b)^2 ]                           the same expectation as -D, far less noise

over draws (t, eps), which draws.py makes; every prompt of a draw sees the same noise.  Maps stay at latent size, averaged
within each timestep bin, so that one pass serves every patch size, timestep range, estimator and prompt comparison.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ..data.pixels import Pixels
from ..data.rows import Row
from ..settings.errors import ConfigError
from ..settings.sections import PatchSettings, ScoringSettings
from .adaptive import undecided
from .diffusion import Diffusion
from .draws import LossRows, Picture, Scorer, all_losses, latent_shape, plain_losses


@dataclass(frozen=True)
class Maps:
    """What is kept of one image; h x w latent cells, P prompts, B timestep bins."""

    differential: Float[np.ndarray, "P B h w"]  # float16, D above: conditional minus null loss
    gap: Float[np.ndarray, "P B h w"]  # float16, G above
    null: Float[np.ndarray, "B h w"]  # float32, the null prompt's loss, so that a prompt added later needs no new one
    draws: int  # how many (timestep, noise) pairs they are the mean of
    latent: Float[Tensor, "4 h w"]  # of the picture, on the model's device

    def tensors(self, row: Row, precision: str) -> dict[str, NDArray[np.generic]]:
        """As they are stored.  Raises ConfigError where the network overflowed: half precision ends at 65,504."""
        parts = {name: getattr(self, name) for name in ("differential", "gap", "null")}
        if not all(np.isfinite(part).all() for part in parts.values()):
            raise ConfigError(f"{row.path}: {overflow(precision)}")
        return {f"{row.row}.{name}": part for name, part in parts.items()}


def overflow(precision: str) -> str:
    """What is said of maps that hold something else than numbers."""
    way = "its weights or its noise table are not sound" if precision in ("fp32", "tf32") else "use compute.precision = fp32"
    return f"its loss maps overflow; the model does not work in {precision}: {way}"


def score_images(
    scorer: Scorer, images: Sequence[tuple[str, Picture]], prompts: Sequence[str], apart: bool = False
) -> Iterator[tuple[int, Maps]]:
    """Maps of each image, as (position in ``images``, Maps), size by size.

    >>> scorer = open_scorer(Settings(model="demo", draws=3))
    >>> grey = np.full((64, 64, 3), 128, np.uint8)
    >>> [(place, maps)] = score_images(scorer, [("grey", grey)], ["An image of three."])
    >>> maps.differential.shape  # one prompt, three bins of timesteps, latent cells
    (1, 3, 16, 16)

    ``images`` are (key, uint8 (H, W, 3)) or (key, latent); the key names the image's noise, whatever batch it falls in.
    Every forward has the same number of samples (the last is filled up), so that an image's bytes do not depend on its
    neighbours; ``apart``: no forward holds two prompts, so that they do not depend on the other prompts either.
    """
    words = _embed(scorer.model, [scorer.settings.null_prompt, *prompts], apart)
    for place, sums in _add_up(scorer, images, words, all_losses, apart):
        yield place, sums.maps()


def label_losses(
    scorer: Scorer, images: Sequence[tuple[str, Picture]], prompts: Sequence[str]
) -> Iterator[tuple[int, Float[np.ndarray, "P B h w"]]]:
    """Losses E[mean_c (b - eps)^2] of each image under ``prompts`` alone, in float32: with a null loss that was kept,
    their difference is D, without the null prompt's forwards.  Arguments, noise and order as for ``score_images`` with
    its prompts ``apart``."""
    words = _embed(scorer.model, prompts, apart=True)
    for place, sums in _add_up(scorer, images, words, plain_losses, apart=True):
        yield place, sums.mean()


def encode_images(scorer: Scorer, images: Sequence[tuple[str, Picture]]) -> Iterator[tuple[int, Float[np.ndarray, "4 h w"]]]:
    """The latent of each image, float32, as scoring has it."""
    cells = [latent_shape(scorer.model, pixels) for _, pixels in images]
    for shape in sorted(set(cells)):
        places = [place for place, cell in enumerate(cells) if cell == shape]
        latents = scorer.encode([images[place] for place in places]).float().cpu().numpy()
        yield from zip(places, latents, strict=True)


def _embed(model: Diffusion, prompts: Sequence[str], apart: bool) -> Float[Tensor, "prompts tokens width"]:
    return torch.cat([model.embed_prompts([prompt]) for prompt in prompts]) if apart else model.embed_prompts(list(prompts))


def score_class(
    scorer: Scorer, images: Sequence[tuple[str, Pixels]], prompts: Sequence[str], patches: PatchSettings
) -> Iterator[tuple[int, Maps]]:
    """Maps of images of one class: all with as many draws, or adaptively, as the settings say."""
    if scorer.settings.adaptive_draws:
        return score_adaptively(scorer, images, prompts, patches)
    return score_images(scorer, images, prompts)


def forwards(images: int, prompts: int, settings: ScoringSettings) -> int:
    """U-Net samples that scoring takes (adaptively: at least): each draw once with every prompt and once with the null one."""
    return images * settings.draws * (1 + prompts)


def filled_forwards(shapes: Iterable[tuple[int, ...]], prompts: int, settings: ScoringSettings, batch_size: int) -> int:
    """As ``forwards``, of a unit whose latents have these ``shapes``, with what fills up the last batch of each shape."""
    size = max(1, batch_size // (1 + prompts))  # draws in a batch, as in Scorer.losses
    batches = sum(math.ceil(images * settings.draws / size) for images in Counter(shapes).values())
    return batches * size * (1 + prompts)


class _Sums:
    """One image's draws, added up bin by bin in float32, in the order of the draws."""

    def __init__(self, settings: ScoringSettings, latent: Tensor):
        self.bins, self.draws, self.latent = settings.bins, 0, latent
        self.total: NDArray[np.float32] | None = None  # (rows, bins, h, w)

    def add(self, losses: Float[np.ndarray, "rows h w"]) -> None:
        if self.total is None:
            self.total = np.zeros((len(losses), self.bins, *losses.shape[1:]), np.float32)
        self.total[:, self.draws % self.bins] += losses
        self.draws += 1

    def mean(self) -> Float[np.ndarray, "rows bins h w"]:
        assert self.total is not None  # at least one draw
        return self.total / np.float32(self.draws // self.bins)

    def maps(self) -> Maps:
        """Of rows as ``all_losses`` gives them."""
        mean = self.mean()
        prompts = len(mean) // 2
        differential, gap = mean[:prompts].astype(np.float16), mean[prompts:-1].astype(np.float16)
        return Maps(differential, gap, mean[-1], self.draws, self.latent)


@torch.inference_mode()
def _add_up(
    scorer: Scorer,
    images: Sequence[tuple[str, Picture]],
    words: Float[Tensor, "prompts tokens width"],
    rows_of: LossRows,
    apart: bool,
) -> Iterator[tuple[int, _Sums]]:
    """All draws of each image, latent shape by latent shape.  Draws run through images in turn: few are unfinished."""
    settings, cells = scorer.settings, [latent_shape(scorer.model, pixels) for _, pixels in images]
    for shape in sorted(set(cells)):
        places = [place for place, cell in enumerate(cells) if cell == shape]
        bucket = [images[place] for place in places]
        latents = scorer.encode(bucket)
        items = [(image, draw) for image in range(len(bucket)) for draw in range(settings.draws)]
        keys = [key for key, _ in bucket]
        sums: dict[int, _Sums] = {}
        for (i, d), part in scorer.losses(latents, keys, items, words, rows_of, apart):
            sums.setdefault(i, _Sums(settings, latents[i])).add(part)
            if d == settings.draws - 1:
                yield places[i], sums.pop(i)


@torch.inference_mode()
def score_adaptively(
    scorer: Scorer, images: Sequence[tuple[str, Pixels]], prompts: Sequence[str], patches: PatchSettings
) -> Iterator[tuple[int, Maps]]:
    """As ``score_images``, of images of one class: round after round the undecided ones (adaptive.py) get twice the draws.

    Their draws are the first ones of a longer pass: an image that gets all has the very maps of a pass with that many.
    """
    model, settings = scorer.model, scorer.settings
    words = model.embed_prompts([settings.null_prompt, *prompts])
    cells = [latent_shape(model, pixels) for _, pixels in images]
    buckets = {shape: [i for i, cell in enumerate(cells) if cell == shape] for shape in sorted(set(cells))}
    latents = {shape: scorer.encode([images[i] for i in b]) for shape, b in buckets.items()}
    sums = [_Sums(settings, latents[cell][buckets[cell].index(i)]) for i, cell in enumerate(cells)]
    seen: list[list[np.ndarray]] = [[] for _ in images]
    left = list(range(len(images)))
    for count in settings.rounds():
        for shape, bucket in buckets.items():
            items = [(j, d) for j, i in enumerate(bucket) if i in set(left) for d in range(sums[i].draws, count)]
            keys = [images[i][0] for i in bucket]
            found = scorer.losses(latents[shape], keys, items, words)
            for (j, _), losses in found:
                sums[bucket[j]].add(losses)
                seen[bucket[j]].append(losses[[patches.prompt, len(prompts) + patches.prompt]])
        if count < settings.rounds()[-1]:
            maps = [np.stack(draws) for draws in seen]
            more = undecided(maps, [pixels.shape[:2] for _, pixels in images], patches, settings)
            yield from ((i, sums[i].maps()) for i in left if not more[i])
            left = [i for i in left if more[i]]
    yield from ((i, sums[i].maps()) for i in left)
