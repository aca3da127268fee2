"""Images -> loss maps and gap maps (paper 3.1): where in an image is its class?

With z_t the noisy latent, ``a`` the noise predicted with the null prompt and ``b`` with a label prompt,

    differential map   D = E[ mean_c (b - eps)^2 - mean_c (a - eps)^2 ]     negative where the words help
    gap map            G = E[ mean_c (a - b)^2 ]                           the same expectation as -D, far less noise

over draws (t, eps); every prompt of a draw sees the same noise.  Maps stay at latent size, averaged within each
timestep bin, so that one pass serves every patch size, timestep range, estimator and prompt comparison.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from .config import ScoringSettings
from .diffusion import Diffusion
from .pixels import Pixels


@dataclass(frozen=True)
class Maps:
    """What is kept of one image; h x w latent cells, P prompts, B timestep bins."""

    differential: Float[np.ndarray, "P B h w"]  # float16, D above: conditional minus null loss
    gap: Float[np.ndarray, "P B h w"]  # float16, G above
    null: Float[np.ndarray, "B h w"]  # float32, the null prompt's loss, so that a prompt added later needs no new one

    def tensors(self, row: int) -> dict[str, NDArray[np.generic]]:
        return {f"{row}.{name}": getattr(self, name) for name in ("differential", "gap", "null")}


def score_images(
    model: Diffusion,
    images: Sequence[tuple[str, Pixels]],
    prompts: Sequence[str],
    settings: ScoringSettings,
    seed: int,
    batch_size: int,
    apart: bool = False,
) -> Iterator[tuple[int, Maps]]:
    """Maps of each image, as (position in ``images``, Maps), size by size.

    ``images`` are (key, uint8 (H, W, 3)); the key names the image's noise, whatever batch it falls in.  Every forward
    has the same number of samples (the last is filled up), so that an image's bytes do not depend on its neighbours;
    ``apart``: no forward holds two prompts, so that they do not depend on the other prompts either.
    """
    words = _embed([settings.null_prompt, *prompts], model, apart)
    for places in _by_shape(images):
        yield from _score_bucket(model, [(i, *images[i]) for i in places], words, settings, seed, batch_size, apart)


def forwards(images: int, prompts: int, settings: ScoringSettings) -> int:
    """U-Net samples that scoring takes: each draw once with every prompt and once with the null prompt."""
    return images * settings.draws * (1 + prompts)


@torch.inference_mode()
def label_losses(
    model: Diffusion,
    images: Sequence[tuple[str, Pixels]],
    prompts: Sequence[str],
    settings: ScoringSettings,
    seed: int,
    batch_size: int,
) -> Iterator[tuple[int, Float[np.ndarray, "P B h w"]]]:
    """Losses E[mean_c (b - eps)^2] of each image under ``prompts`` alone, in float32: with a null loss that was kept,
    their difference is D, without the null prompt's forwards.  Arguments, noise and order as for ``score_images`` with
    its prompts ``apart``."""
    words = _embed(prompts, model, apart=True)
    for places in _by_shape(images):
        bucket = [(i, *images[i]) for i in places]
        sums: dict[int, NDArray[np.float32]] = {}
        for chunk, noise, predictions in _predictions(model, bucket, words, settings, seed, batch_size, apart=True):
            losses = [(b - noise).square().mean(1).cpu().numpy() for b in predictions]
            for place, (i, d) in chunk:
                h, w = noise.shape[2:]
                total = sums.setdefault(i, np.zeros((len(prompts), settings.bins, h, w), np.float32))
                for p, loss in enumerate(losses):
                    total[p, d * settings.bins // settings.draws] += loss[place] * np.float32(settings.bins / settings.draws)
                if d == settings.draws - 1:
                    yield bucket[i][0], sums.pop(i)


def _embed(prompts: Sequence[str], model: Diffusion, apart: bool) -> Float[Tensor, "prompts tokens width"]:
    return torch.cat([model.embed_prompts([prompt]) for prompt in prompts]) if apart else model.embed_prompts(list(prompts))


def _by_shape(images: Sequence[tuple[str, Pixels]]) -> Iterator[list[int]]:
    """Positions of the images of each size, smallest size first."""
    for shape in sorted({pixels.shape[:2] for _, pixels in images}):
        yield [i for i, (_, pixels) in enumerate(images) if pixels.shape[:2] == shape]


@torch.inference_mode()
def _predictions(
    model: Diffusion,
    bucket: list[tuple[int, str, Pixels]],
    words: Float[Tensor, "prompts tokens width"],
    settings: ScoringSettings,
    seed: int,
    batch_size: int,
    apart: bool,
) -> Iterator[tuple[list[tuple[int, tuple[int, int]]], Float[Tensor, "b 4 h w"], tuple[Float[Tensor, "b 4 h w"], ...]]]:
    """All draws of images of one size, batch by batch: [(place in the batch, (image, draw))], noise, and what is
    predicted with each prompt.  An image's draws come in order."""
    latents = _encode(model, bucket, settings, seed, batch_size)
    _, _, h, w = latents.shape
    # Draws run through images in turn; at most two batches' images are unfinished at any time.
    items = [(image, draw) for image in range(len(bucket)) for draw in range(settings.draws)]
    for chunk in padded(items, batch_size if apart else max(1, batch_size // len(words))):
        drawn = [draw_noise(bucket[i][1], d, (4, h, w), settings, seed, model.steps) for i, d in chunk]
        noise = torch.stack([eps for _, eps in drawn]).to(model.device)
        t = torch.tensor([t for t, _ in drawn], device=model.device)
        noisy = model.add_noise(latents[[i for i, _ in chunk]], noise, t)
        yield list(enumerate(dict.fromkeys(chunk))), noise, predict_all(model, noisy, t, words, batch_size)  # no filling


@torch.inference_mode()
def _score_bucket(
    model: Diffusion,
    bucket: list[tuple[int, str, Pixels]],
    words: Float[Tensor, "prompts tokens width"],
    settings: ScoringSettings,
    seed: int,
    batch_size: int,
    apart: bool,
) -> Iterator[tuple[int, Maps]]:
    prompts = len(words) - 1
    sums: dict[int, list[NDArray[np.float32]]] = {}
    for chunk, noise, (null, *label) in _predictions(model, bucket, words, settings, seed, batch_size, apart):
        loss = (null - noise).square().mean(1).cpu().numpy()
        maps = [[m.cpu().numpy() for m in differential_and_gap(noise, null, b)] for b in label]
        for place, (i, d) in chunk:
            total = sums.setdefault(i, _empty(prompts, settings.bins, *noise.shape[2:]))
            share, b = np.float32(settings.bins / settings.draws), d * settings.bins // settings.draws
            for p in range(prompts):
                total[0][p, b] += maps[p][0][place] * share
                total[1][p, b] += maps[p][1][place] * share
            total[2][b] += loss[place] * share
            if d == settings.draws - 1:
                differential, gap, null_loss = sums.pop(i)
                yield bucket[i][0], Maps(differential.astype(np.float16), gap.astype(np.float16), null_loss)


def _empty(prompts: int, bins: int, h: int, w: int) -> list[NDArray[np.float32]]:
    return [np.zeros(shape, np.float32) for shape in ((prompts, bins, h, w), (prompts, bins, h, w), (bins, h, w))]


def differential_and_gap(
    noise: Float[Tensor, "b 4 h w"], null: Float[Tensor, "b 4 h w"], label: Float[Tensor, "b 4 h w"]
) -> tuple[Float[Tensor, "b h w"], Float[Tensor, "b h w"]]:
    """One draw's D and G.  (b - eps)^2 - (a - eps)^2 is written as (b - a)(b + a - 2 eps): no large numbers cancel."""
    step = label - null
    return (step * (label + null - 2 * noise)).mean(1), step.square().mean(1)


def predict_all(
    model: Diffusion, noisy: Float[Tensor, "b 4 h w"], t: Tensor, words: Float[Tensor, "p tokens width"], batch_size: int
) -> tuple[Float[Tensor, "b 4 h w"], ...]:
    """Noise predicted with each prompt, null and label prompts in the same forward."""
    b, p = len(noisy), len(words)
    parts = zip(
        noisy.repeat(p, 1, 1, 1).split(batch_size),
        t.repeat(p).split(batch_size),
        words.repeat_interleave(b, 0).split(batch_size),
        strict=True,
    )
    return torch.cat([model.predict_noise(*part) for part in parts]).split(b)


def draw_noise(
    key: str, draw: int, shape: tuple[int, ...], settings: ScoringSettings, seed: int, steps: int
) -> tuple[int, Float[Tensor, "4 h w"]]:
    """Draw number ``draw`` of an image: a timestep, stratified over [t_min, t_max) (one draw in each of ``draws`` equal
    parts), and standard normal noise.  A function of (seed, key, draw) alone."""
    generator = keyed_generator(seed, key, "draw", draw)
    place = (draw + torch.rand((), generator=generator, dtype=torch.float64).item()) / settings.draws
    t = int((settings.t_min + (settings.t_max - settings.t_min) * place) * steps)
    return min(t, steps - 1), torch.randn(shape, generator=generator)


def keyed_generator(*key: object) -> torch.Generator:
    """A CPU generator seeded by a hash of ``key``: the noise of an item is the same in any batch, process or device."""
    seed = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(seed, "little") >> 1)


def as_images(pixels: Sequence[Pixels], device: torch.device) -> Float[Tensor, "b 3 height width"]:
    """uint8 HWC to float [-1, 1] BCHW."""
    return torch.from_numpy(np.stack(pixels)).to(device).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def padded(items: Sequence, size: int) -> Iterator[list]:
    """Runs of exactly ``size`` items; the last is filled up by repeating its last item."""
    for start in range(0, len(items), size):
        part = list(items[start : start + size])
        yield part + part[-1:] * (size - len(part))


def _encode(
    model: Diffusion, bucket: list[tuple[int, str, Pixels]], settings: ScoringSettings, seed: int, batch_size: int
) -> Float[Tensor, "b 4 h w"]:
    height, width = bucket[0][2].shape[:2]
    latents = []
    for chunk in padded(bucket, min(batch_size, 2)):  # photographs come in many sizes; more would mostly be filling
        noise = None
        if settings.posterior == "sample":
            shape = (4, height // model.cell, width // model.cell)
            noise = torch.stack([torch.randn(shape, generator=keyed_generator(seed, key, "posterior")) for _, key, _ in chunk])
        latents.append(model.encode(as_images([pixels for *_, pixels in chunk], model.device), noise))
    return torch.cat(latents)[: len(bucket)]
