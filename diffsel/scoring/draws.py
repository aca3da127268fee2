"""One draw at a time: keyed noise, noisy latents, what the model predicts, and the losses of it.

A draw is one (timestep, noise) of one image.  It depends on (seed, image, draw number) alone, never on its neighbours in a
batch, and every forward has the same number of samples, so that the bytes of its losses do not either.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ..data.pixels import Pixels
from ..machine.device import device_name, machine_of, to_device, to_host
from ..machine.processes import out_of_memory
from ..settings.errors import ConfigError
from ..settings.sections import ScoringSettings
from ..settings.settings import Settings
from .batching import EIGHT, Job, Launched, Shape, filled, vae_batch
from .diffusion import Diffusion
from .folder import locate
from .levels import Flow, Table
from .suiting import suited

LOG = logging.getLogger(__name__)
Picture = Pixels | Float[np.ndarray, "4 h w"]  # uint8 (H, W, 3), or the float32 latent that an earlier pass kept of it
T = TypeVar("T")
V = TypeVar("V")
LossRows = Callable[[Tensor, Sequence[Tensor]], list[Tensor]]  # noise (b, 4, h, w), predictions -> rows (b, h, w)


@dataclass(frozen=True)
class Bucket:
    """Images of one latent shape, ready for draws: what they are keyed by, and which prompts each is asked about."""

    latents: Float[Tensor, "images 4 h w"]
    keys: Sequence[str]
    words: Float[Tensor, "kinds prompts tokens width"]
    kinds: Sequence[int]  # of each image, its line of ``words``
    places: Mapping[int, int]  # of each image's number, its line of ``latents``


@dataclass(frozen=True)
class Scorer:
    """A model at work: all that a draw depends on, and how many samples a forward has."""

    model: Diffusion
    settings: ScoringSettings
    seed: int
    batch_size: int
    sizes: dict[Shape, int] = field(default_factory=dict)  # samples in a forward of a latent shape, if not ``batch_size``
    note: Callable[[str], object] = lambda text: None  # is told where memory ran out
    exact: Callable[[], Scorer] | None = None  # the same in fp32, for what overflows in half precision
    warm: Callable[[], object] = lambda: None  # is called before losses are made

    def encode(self, bucket: Sequence[tuple[str, Picture]]) -> Float[Tensor, "b 4 h w"]:
        """Latents of (key, picture) of one latent shape, each exact size in batches of its own; a latent is taken as it is."""
        model = self.model
        kept = {i: picture for i, (_, picture) in enumerate(bucket) if is_latent(picture)}
        found = {i: to_device(torch.from_numpy(latent), model.device) for i, latent in kept.items()}
        jobs = []
        for size in sorted({picture.shape[:2] for i, (_, picture) in enumerate(bucket) if i not in kept}):
            same = [i for i, (_, picture) in enumerate(bucket) if i not in kept and picture.shape[:2] == size]
            encode, most = partial(self._encode, bucket, latent_size(model, *size)), vae_batch(model.device, *size)
            jobs.append(Job(same, (3, *size), 1, encode, most))  # a shape of its own: less memory says nothing of forwards
        found |= dict(self.batches(jobs))
        return torch.stack([found[i] for i in range(len(bucket))])

    def _encode(self, bucket: Sequence[tuple[str, Picture]], shape: Shape, chunk: Sequence[int]) -> Launched:
        noise = None
        if self.settings.posterior == "sample":
            keyed = [keyed_generator(self.seed, bucket[i][0], "posterior") for i in chunk]
            noise = to_device(torch.stack([torch.randn(shape, generator=generator) for generator in keyed]), self.model.device)
        latents = self.model.encode(as_images([bucket[i][1] for i in chunk], self.model.device), noise)
        return latents, lambda: None

    def losses(
        self,
        asked: Iterable[tuple[Bucket, Sequence[tuple[int, int]]]],
        rows_of: LossRows | None = None,
        apart: bool = False,
    ) -> Iterator[tuple[tuple[int, int], Float[np.ndarray, "rows h w"]]]:
        """``rows_of`` (by default ``all_losses``) of each (image, draw) asked of each bucket, in their order, in float32.

        A bucket is made while the last batch of the one before is under way.
        """
        self.warm()

        def jobs() -> Iterator[Job[tuple[int, int]]]:
            for bucket, items in asked:
                shape, samples = tuple(bucket.latents.shape[1:]), 1 if apart else bucket.words.shape[1]
                yield Job(items, shape, samples, partial(self._draw, bucket, rows_of or all_losses, shape))

        return ((item, rows.numpy()) for item, rows in self.batches(jobs()))

    def _draw(self, bucket: Bucket, rows_of: LossRows, shape: Shape, chunk: Sequence[tuple[int, int]]) -> Launched:
        model, device = self.model, self.model.device
        levels = model.levels if self.settings.log_snr else None
        places = [bucket.places[image] for image, _ in chunk]
        keyed = [(bucket.keys[i], d) for i, (_, d) in zip(places, chunk, strict=True)]
        drawn = [draw_noise(key, d, shape, self.settings, self.seed, model.steps, levels) for key, d in keyed]
        noise = to_device(torch.stack([eps for _, eps in drawn]), device)
        t = to_device(torch.tensor([t for t, _ in drawn]), device)
        which, kind = to_device(torch.tensor([(i, bucket.kinds[i]) for i in places]).T.contiguous(), device)
        noisy = model.add_noise(bucket.latents[which], noise, t)
        predicted = predict_all(model, noisy, t, bucket.words[kind].transpose(0, 1), self.size(shape))
        return to_host(torch.stack(rows_of(noise, predicted), 1))

    def size(self, shape: Shape) -> int:
        """Samples in a forward of latents of this ``shape``."""
        return self.sizes.get(shape, self.batch_size)

    def batches(self, jobs: Iterable[Job[T]]) -> Iterator[tuple[T, Tensor]]:
        """Each item with what its batch gives for it, in order; one batch is under way while the next one is launched.

        Where memory runs out, batches of that shape alone are halved from then on, and the batch is made again.
        """
        waiting: list[tuple[Job[T], Sequence[T], Launched]] = []
        for job in jobs:
            begun = 0
            while begun < len(job.items):
                count = job.count(self.size(job.shape))
                chunk = job.items[begun : begun + count]
                try:
                    launched = job.launch(filled(chunk, count))
                except RuntimeError as error:
                    self._halve(job, error)
                    continue
                begun += len(chunk)
                for before in waiting:
                    yield from self._taken(*before)
                waiting = [(job, chunk, launched)]
        for before in waiting:
            yield from self._taken(*before)

    def _taken(self, job: Job[T], chunk: Sequence[T], launched: Launched) -> Iterator[tuple[T, Tensor]]:
        made, arrived = launched
        try:
            arrived()
        except RuntimeError as error:
            self._halve(job, error)
            yield from self.batches([replace(job, items=chunk)])
        else:
            yield from zip(chunk, made, strict=False)  # without the filling

    def _halve(self, job: Job[Any], error: RuntimeError) -> None:
        """For the batches of a shape; raises the error where memory is not what is missing, or nothing is left to halve."""
        shape, samples = job.shape, job.samples
        half, whole = min(self.size(shape), job.count(self.size(shape)) * samples) // 2, math.lcm(EIGHT, samples)
        if not half or not out_of_memory(error):
            raise error
        self.sizes[shape] = half // whole * whole or half // samples * samples or half
        what = "pictures" if shape[0] == 3 else "latents"
        self.note(f"out of memory: batches of {what} of {shape[1]} x {shape[2]} were lowered to {self.sizes[shape]}")


def open_scorer(settings: Settings, local: int = 0) -> Scorer:
    """The model of some settings, loaded where they say; ``local``: number of this process on its machine.

    Raises ConfigError for a model that does not load, or a device or precision that cannot be used.
    """
    machine = machine_of(settings.compute, local, scoring=True)
    folder = locate(settings.model)
    settings = suited(settings, folder)
    model = Diffusion.load(folder, machine.device, machine.precision, machine.compile)
    LOG.info("loaded %s on %s, %s", model.folder, device_name(machine.device), machine.precision)
    batch_size = settings.compute.batch_size or (16 if machine.device.type == "cpu" else 64)
    careful = settings.compute.model_copy(update={"precision": "fp32", "batch_size": EIGHT, "compile": False})
    exact = partial(open_scorer, settings.model_copy(update={"compute": careful}), local)
    half = model.dtype in (torch.float16, torch.bfloat16)
    return Scorer(model, settings.scoring, settings.seed, batch_size, exact=cache(exact) if half else None)


def is_sound(value: NDArray[np.floating]) -> bool:
    """Whether it holds numbers alone; half precision ends at 65,504."""
    return bool(np.isfinite(value).all())


def soundly(
    scorer: Scorer,
    items: Sequence[T],
    make: Callable[[Scorer, Sequence[T]], Iterator[tuple[int, V]]],
    sound: Callable[[V], bool] = is_sound,  # type: ignore[assignment]
) -> Iterator[tuple[int, V]]:
    """What ``make`` gives of each item; what is not ``sound`` in half precision is made again in fp32, after the others.

    What is not in fp32 either is given as it is.  Raises ConfigError where most items are not: then it is not they that are
    unusual.
    """
    lost: dict[int, V] = {}
    for place, value in make(scorer, items):
        if sound(value):
            yield place, value
        else:
            lost[place] = value
    if 1 < len(lost) > len(items) / 2:
        way = "use compute.precision = fp32" if scorer.exact else "its weights or its noise table are not sound"
        kind = str(scorer.model.dtype).removeprefix("torch.")
        raise ConfigError(f"{len(lost)} of {len(items)} images overflow; the model does not work in {kind}: {way}")
    if lost and scorer.exact:
        careful, places = replace(scorer.exact(), settings=scorer.settings, note=scorer.note), list(lost)
        lost = {places[i]: value for i, value in make(careful, [items[place] for place in places])}
    yield from lost.items()


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
    model: Diffusion, noisy: Float[Tensor, "b 4 h w"], t: Tensor, words: Float[Tensor, "p b tokens width"], batch_size: int
) -> tuple[Float[Tensor, "b 4 h w"], ...]:
    """Noise predicted with each prompt, null and label prompts in the same forward."""
    p, b = words.shape[:2]
    parts = zip(
        noisy.repeat(p, 1, 1, 1).split(batch_size),
        t.repeat(p).split(batch_size),
        words.flatten(0, 1).split(batch_size),
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
    return to_device(torch.from_numpy(np.stack(pixels)), device).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
