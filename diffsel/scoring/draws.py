"""One draw at a time: keyed noise, noisy latents, what the model predicts, and the losses of it.

A draw is one (timestep, noise) of one image.  It depends on (seed, image, draw number) alone, never on its neighbours in a
batch, and every forward has the same number of samples, so that the bytes of its losses do not either.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..data.pixels import Pixels
from ..machine.device import device_name, machine_of, one_behind, to_device, to_host
from ..settings.sections import ScoringSettings
from ..settings.settings import Settings
from .diffusion import Diffusion
from .folder import locate
from .levels import Flow, Table
from .suiting import suited

LOG = logging.getLogger(__name__)
Picture = Pixels | Float[np.ndarray, "4 h w"]  # uint8 (H, W, 3), or the float32 latent that an earlier pass kept of it
LossRows = Callable[[Tensor, Sequence[Tensor]], list[Tensor]]  # noise (b, 4, h, w), predictions -> rows (b, h, w)


@dataclass(frozen=True)
class Scorer:
    """A model at work: all that a draw depends on, and how many samples a forward has."""

    model: Diffusion
    settings: ScoringSettings
    seed: int
    batch_size: int

    def halved(self) -> Scorer:
        return replace(self, batch_size=self.batch_size // 2)

    def encode(self, bucket: Sequence[tuple[str, Picture]]) -> Float[Tensor, "b 4 h w"]:
        """Latents of (key, picture) of one latent shape, each exact size in batches of its own; a latent is taken as it is."""
        # Photographs come in many sizes: larger batches would mostly be filling, where a batch costs more than its overhead.
        model, size = self.model, min(self.batch_size, 2 if self.model.device.type == "cpu" else 8)
        kept = {i: picture for i, (_, picture) in enumerate(bucket) if is_latent(picture)}
        found = {i: torch.from_numpy(latent).to(model.device) for i, latent in kept.items()}
        for shape in sorted({picture.shape[:2] for i, (_, picture) in enumerate(bucket) if i not in kept}):
            same = [i for i, (_, picture) in enumerate(bucket) if i not in kept and picture.shape[:2] == shape]
            for chunk in padded(same, size):
                noise = None
                if self.settings.posterior == "sample":
                    cells = latent_shape(model, bucket[chunk[0]][1])
                    keyed = [keyed_generator(self.seed, bucket[i][0], "posterior") for i in chunk]
                    noise = torch.stack([torch.randn(cells, generator=generator) for generator in keyed])
                latents = model.encode(as_images([bucket[i][1] for i in chunk], model.device), noise)
                found |= dict(zip(chunk, latents, strict=True))
        return torch.stack([found[i] for i in range(len(bucket))])

    def losses(
        self,
        latents: Float[Tensor, "images 4 h w"],
        keys: Sequence[str],
        items: Sequence[tuple[int, int]],
        words: Float[Tensor, "prompts tokens width"],
        rows_of: LossRows | None = None,
        apart: bool = False,
    ) -> Iterator[tuple[tuple[int, int], Float[np.ndarray, "rows h w"]]]:
        """``rows_of`` (by default ``all_losses``) of each (image, draw) in ``items``, in their order, in float32.

        One batch is under way on the device while the one before is taken in.
        """
        model, rows_of, shape = self.model, rows_of or all_losses, tuple(latents.shape[1:])

        def launch(chunk: Sequence[tuple[int, int]]) -> tuple[Sequence[tuple[int, int]], Tensor, Callable[[], None]]:
            levels = model.levels if self.settings.log_snr else None
            drawn = [draw_noise(keys[i], d, shape, self.settings, self.seed, model.steps, levels) for i, d in chunk]
            noise = to_device(torch.stack([eps for _, eps in drawn]), model.device)
            t = to_device(torch.tensor([t for t, _ in drawn]), model.device)
            which = to_device(torch.tensor([i for i, _ in chunk]), model.device)
            noisy = model.add_noise(latents[which], noise, t)
            predicted = predict_all(model, noisy, t, words, self.batch_size)
            return chunk, *to_host(torch.stack(rows_of(noise, predicted), 1))

        size = self.batch_size if apart else max(1, self.batch_size // len(words))
        for chunk, rows, arrived in one_behind(launch(part) for part in padded(items, size)):
            arrived()
            yield from dict(zip(chunk, rows.numpy(), strict=True)).items()  # without the filling


def open_scorer(settings: Settings, local: int = 0) -> Scorer:
    """The model of some settings, loaded where they say; ``local``: number of this process on its machine.

    Raises ConfigError for a model that does not load, or a device or precision that cannot be used.
    """
    machine = machine_of(settings.compute, local)
    folder = locate(settings.model)
    settings = suited(settings, folder)
    model = Diffusion.load(folder, machine.device, machine.precision, machine.compile)
    # Each latent shape of a unit ends in a batch that is filled up: of photographs, larger batches would be mostly filling.
    LOG.info("loaded %s on %s, %s", model.folder, device_name(machine.device), machine.precision)
    batch_size = settings.compute.batch_size or (16 if machine.device.type == "cpu" else 64)
    return Scorer(model, settings.scoring, settings.seed, batch_size)


def is_latent(picture: Picture) -> bool:
    return picture.dtype == np.float32


def latent_shape(model: Diffusion, picture: Picture) -> tuple[int, ...]:
    """(channels, h, w) of a picture's latent; each halving of the VAE rounds down."""
    if is_latent(picture):
        return picture.shape
    return latent_size(model, *picture.shape[:2])


def latent_size(model: Diffusion, height: int, width: int) -> tuple[int, int, int]:
    """As ``latent_shape``, of a picture of that many pixels."""
    return model.channels, height // model.cell, width // model.cell


def all_losses(noise: Float[Tensor, "b 4 h w"], predicted: Sequence[Float[Tensor, "b 4 h w"]]) -> list[Float[Tensor, "b h w"]]:
    """D of each label prompt, then G of each, then the null prompt's loss; the null prompt's prediction comes first."""
    null, *label = predicted
    maps = [differential_and_gap(noise, null, b) for b in label]
    return [d for d, _ in maps] + [g for _, g in maps] + [(null - noise).square().mean(1)]


def plain_losses(
    noise: Float[Tensor, "b 4 h w"], predicted: Sequence[Float[Tensor, "b 4 h w"]]
) -> list[Float[Tensor, "b h w"]]:
    """Each prompt's loss."""
    return [(b - noise).square().mean(1) for b in predicted]


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
    key: str,
    draw: int,
    shape: tuple[int, ...],
    settings: ScoringSettings,
    seed: int,
    steps: int,
    levels: Table | Flow | None = None,
) -> tuple[float, Float[Tensor, "4 h w"]]:
    """Draw number ``draw`` of an image: a time uniform in the window of t, or (with ``levels``) of log-SNR, and standard
    normal noise.

    A function of (seed, key, draw) alone: the draws of a shorter pass are the first ones of a longer.  Draws go to the
    bins in turn; inside a bin the timesteps are a van der Corput sequence with a random shift, so that the first 2, 4,
    8 ... of a bin lie one in each equal part of it (stratified at any number of draws).
    """
    bin_, turn = draw % settings.bins, draw // settings.bins
    shift = torch.rand((), generator=keyed_generator(seed, key, "t", bin_), dtype=torch.float64).item()
    place = (bin_ + (van_der_corput(turn) + shift) % 1) / settings.bins
    noise = torch.randn(shape, generator=keyed_generator(seed, key, "draw", draw))
    if levels and settings.log_snr:
        high, low = settings.log_snr
        return levels.time(high + (low - high) * place), noise
    return min(int((settings.t_min + (settings.t_max - settings.t_min) * place) * steps), steps - 1), noise


def van_der_corput(n: int) -> float:
    """The binary digits of ``n`` mirrored at the point: 0, 1/2, 1/4, 3/4, 1/8 ..."""
    return int(f"{n:b}"[::-1], 2) / 2 ** n.bit_length()


def keyed_generator(*key: object) -> torch.Generator:
    """A CPU generator seeded by a hash of ``key``: the noise of an item is the same in any batch, process or device.

    torch's CPU generator (mt19937) takes only the lower 32 bits of a seed, so among the 15 million draws of a large data
    set some 26,000 pairs share their noise.  They are draws of different images, so no map averages the same noise twice
    (two of the 12 draws of one image collide in 66 of 2**32 cases); the stored bytes depend on these seeds, so they stay.
    """
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
