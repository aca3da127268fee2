"""Images -> loss maps and gap maps (paper 3.1): where in an image is its class?

With z_t the noisy latent, ``a`` the noise predicted with the null prompt and ``b`` with a label prompt,

    differential map   D = E[ mean_c (b - eps)^2 - mean_c (a - eps)^2 ]     negative where the words help
    gap map            G = E[ mean_c (a - b)^2 ]                           the same expectation as -D, far less noise

over draws (t, eps); every prompt of a draw sees the same noise.  Maps stay at latent size, averaged within each
timestep bin, so that one pass serves every patch size, timestep range, estimator and prompt comparison.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from .config import PatchSettings, ScoringSettings
from .diffusion import Diffusion
from .pixels import Pixels
from .racing import undecided

T = TypeVar("T")
Losses = tuple[Float[np.ndarray, "P h w"], Float[np.ndarray, "P h w"], Float[np.ndarray, "h w"]]  # D, G, null


@dataclass(frozen=True)
class Maps:
    """What is kept of one image; h x w latent cells, P prompts, B timestep bins."""

    differential: Float[np.ndarray, "P B h w"]  # float16, D above: conditional minus null loss
    gap: Float[np.ndarray, "P B h w"]  # float16, G above
    null: Float[np.ndarray, "B h w"]  # float32, the null prompt's loss, so that a prompt added later needs no new one
    draws: int  # how many (timestep, noise) pairs they are the mean of

    def tensors(self, row: int) -> dict[str, NDArray[np.generic]]:
        return {f"{row}.{name}": getattr(self, name) for name in ("differential", "gap", "null")}


def score_images(
    model: Diffusion,
    images: Sequence[tuple[str, Pixels]],
    prompts: Sequence[str],
    settings: ScoringSettings,
    seed: int,
    batch_size: int,
) -> Iterator[tuple[int, Maps]]:
    """Maps of each image, as (position in ``images``, Maps), size by size.

    ``images`` are (key, uint8 (H, W, 3)); the key names the image's noise, whatever batch it falls in.  Every forward
    has the same number of samples (the last is filled up), so that an image's bytes do not depend on its neighbours.
    """
    words = model.embed_prompts([settings.null_prompt, *prompts])
    cells = [latent_shape(model, pixels) for _, pixels in images]
    for shape in sorted(set(cells)):
        bucket = [place for place, cell in enumerate(cells) if cell == shape]
        for i, maps in _score_bucket(model, [images[place] for place in bucket], words, settings, seed, batch_size):
            yield bucket[i], maps


def score_class(
    model: Diffusion,
    images: Sequence[tuple[str, Pixels]],
    prompts: Sequence[str],
    settings: ScoringSettings,
    patches: PatchSettings,
    seed: int,
    batch_size: int,
) -> Iterator[tuple[int, Maps]]:
    """Maps of images of one class: all with as many draws, or adaptively, as ``settings`` say."""
    if settings.adaptive_draws:
        return score_adaptively(model, images, prompts, settings, patches, seed, batch_size)
    return score_images(model, images, prompts, settings, seed, batch_size)


def forwards(images: int, prompts: int, settings: ScoringSettings) -> int:
    """U-Net samples that scoring takes (adaptively: at least): each draw once with every prompt and once with the null one."""
    return images * settings.draws * (1 + prompts)


def latent_shape(model: Diffusion, pixels: Pixels) -> tuple[int, int, int]:
    """(channels, h, w) of a picture's latent; each halving of the VAE rounds down."""
    height, width = pixels.shape[:2]
    return model.channels, height // model.cell, width // model.cell


class _Sums:
    """One image's draws, added up bin by bin in float32, in the order of the draws."""

    def __init__(self, settings: ScoringSettings):
        self.bins, self.draws = settings.bins, 0
        self.totals: list[NDArray[np.float32]] = []

    def add(self, losses: Losses) -> None:
        self.totals = self.totals or [np.zeros((*x.shape[:-2], self.bins, *x.shape[-2:]), np.float32) for x in losses]
        for total, part in zip(self.totals, losses, strict=True):
            total[..., self.draws % self.bins, :, :] += part
        self.draws += 1

    def maps(self) -> Maps:
        differential, gap, null = (total / np.float32(self.draws // self.bins) for total in self.totals)
        return Maps(differential.astype(np.float16), gap.astype(np.float16), null, self.draws)


@torch.inference_mode()
def _score_bucket(
    model: Diffusion,
    bucket: Sequence[tuple[str, Pixels]],
    words: Float[Tensor, "prompts tokens width"],
    settings: ScoringSettings,
    seed: int,
    batch_size: int,
) -> Iterator[tuple[int, Maps]]:
    """Images of one latent shape, all with as many draws.  Draws run through images in turn, so that few are unfinished."""
    latents = encode(model, bucket, settings, seed, batch_size)
    items = [(image, draw) for image in range(len(bucket)) for draw in range(settings.draws)]
    sums: dict[int, _Sums] = {}
    for (i, d), losses in draw_losses(model, latents, [key for key, _ in bucket], items, words, settings, seed, batch_size):
        sums.setdefault(i, _Sums(settings)).add(losses)
        if d == settings.draws - 1:
            yield i, sums.pop(i).maps()


@torch.inference_mode()
def score_adaptively(
    model: Diffusion,
    images: Sequence[tuple[str, Pixels]],
    prompts: Sequence[str],
    settings: ScoringSettings,
    patches: PatchSettings,
    seed: int,
    batch_size: int,
) -> Iterator[tuple[int, Maps]]:
    """As ``score_images``, of images of one class: round after round the undecided ones (racing.py) get twice the draws.

    Their draws are the first ones of a longer pass: an image that gets all has the very maps of a pass with that many.
    """
    words = model.embed_prompts([settings.null_prompt, *prompts])
    cells = [latent_shape(model, pixels) for _, pixels in images]
    latents: dict[tuple[int, ...], Tensor] = {}
    sums, seen = [_Sums(settings) for _ in images], [[] for _ in images]  # type: ignore[var-annotated]
    left = list(range(len(images)))
    for count in settings.rounds():
        for shape in sorted({cells[i] for i in left}):
            bucket = [i for i, cell in enumerate(cells) if cell == shape]
            if shape not in latents:
                latents[shape] = encode(model, [images[i] for i in bucket], settings, seed, batch_size)
            items = [(j, d) for j, i in enumerate(bucket) if i in set(left) for d in range(sums[i].draws, count)]
            keys = [images[i][0] for i in bucket]
            for (j, _), losses in draw_losses(model, latents[shape], keys, items, words, settings, seed, batch_size):
                sums[bucket[j]].add(losses)
                seen[bucket[j]].append(np.stack([losses[0][patches.prompt], losses[1][patches.prompt]]))
        if count < settings.rounds()[-1]:
            maps = [np.stack(draws) for draws in seen]
            more = undecided(maps, [pixels.shape[:2] for _, pixels in images], patches, settings)
            yield from ((i, sums[i].maps()) for i in left if not more[i])
            left = [i for i in left if more[i]]
    yield from ((i, sums[i].maps()) for i in left)


def draw_losses(
    model: Diffusion,
    latents: Float[Tensor, "images 4 h w"],
    keys: Sequence[str],
    items: Sequence[tuple[int, int]],
    words: Float[Tensor, "prompts tokens width"],
    settings: ScoringSettings,
    seed: int,
    batch_size: int,
) -> Iterator[tuple[tuple[int, int], Losses]]:
    """D, G and the null prompt's loss of each (image, draw) in ``items``, in their order, in float32.

    One batch is under way on the device while the one before is taken in.
    """

    def launch(chunk: Sequence[tuple[int, int]]) -> tuple[Sequence[tuple[int, int]], Tensor, Callable[[], None]]:
        drawn = [draw_noise(keys[i], d, tuple(latents.shape[1:]), settings, seed, model.steps) for i, d in chunk]
        noise = to_device(torch.stack([eps for _, eps in drawn]), model.device)
        t = to_device(torch.tensor([t for t, _ in drawn]), model.device)
        which = to_device(torch.tensor([i for i, _ in chunk]), model.device)
        noisy = model.add_noise(latents[which], noise, t)
        null, *label = predict_all(model, noisy, t, words, batch_size)
        maps = [differential_and_gap(noise, null, b) for b in label]
        parts = [d for d, _ in maps] + [g for _, g in maps] + [(null - noise).square().mean(1)]
        return chunk, *to_host(torch.stack(parts, 1))

    prompts = len(words) - 1
    for chunk, losses, arrived in one_behind(launch(c) for c in padded(items, max(1, batch_size // len(words)))):
        arrived()
        for item, part in dict(zip(chunk, losses.numpy(), strict=True)).items():  # without the filling
            yield item, (part[:prompts], part[prompts:-1], part[-1])


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
    """Draw number ``draw`` of an image: a timestep in [t_min, t_max) and standard normal noise.

    A function of (seed, key, draw) alone: the draws of a shorter pass are the first ones of a longer.  Draws go to the
    bins in turn; inside a bin the timesteps are a van der Corput sequence with a random shift, so that the first 2, 4,
    8 ... of a bin lie one in each equal part of it (stratified at any number of draws).
    """
    bin_, turn = draw % settings.bins, draw // settings.bins
    shift = torch.rand((), generator=keyed_generator(seed, key, "t", bin_), dtype=torch.float64).item()
    place = (bin_ + (van_der_corput(turn) + shift) % 1) / settings.bins
    t = int((settings.t_min + (settings.t_max - settings.t_min) * place) * steps)
    return min(t, steps - 1), torch.randn(shape, generator=keyed_generator(seed, key, "draw", draw))


def van_der_corput(n: int) -> float:
    """The binary digits of ``n`` mirrored at the point: 0, 1/2, 1/4, 3/4, 1/8 ..."""
    return int(f"{n:b}"[::-1], 2) / 2 ** n.bit_length()


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


def encode(
    model: Diffusion, bucket: Sequence[tuple[str, Pixels]], settings: ScoringSettings, seed: int, batch_size: int
) -> Float[Tensor, "b 4 h w"]:
    """Latents of (key, pixels) of one latent shape, each exact size in batches of its own."""
    # Photographs come in many sizes: larger batches would mostly be filling, where a batch costs more than its overhead.
    size = min(batch_size, 2 if model.device.type == "cpu" else 8)
    found: dict[int, Tensor] = {}
    for shape in sorted({pixels.shape[:2] for _, pixels in bucket}):
        same = [i for i, (_, pixels) in enumerate(bucket) if pixels.shape[:2] == shape]
        for chunk in padded(same, size):
            noise = None
            if settings.posterior == "sample":
                keyed = [keyed_generator(seed, bucket[i][0], "posterior") for i in chunk]
                noise = torch.stack(
                    [torch.randn(latent_shape(model, bucket[i][1]), generator=g) for i, g in zip(chunk, keyed, strict=True)]
                )
            latents = model.encode(as_images([bucket[i][1] for i in chunk], model.device), noise)
            found |= dict(zip(chunk, latents, strict=True))
    return torch.stack([found[i] for i in range(len(bucket))])


# ---- to and from the device ------------------------------------------------------------------------------------------


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device; from pinned memory to a GPU, so that nobody waits for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_host(tensor: Tensor) -> tuple[Tensor, Callable[[], None]]:
    """A copy on the CPU that is under way, and what waits for its arrival."""
    if tensor.device.type != "cuda":
        return tensor.cpu(), lambda: None
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event.synchronize


def one_behind(items: Iterable[T]) -> Iterator[T]:
    """Each item after the next one was made."""
    last: list[T] = []
    for item in items:
        yield from last
        last = [item]
    yield from last
