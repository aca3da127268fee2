"""What a scoring pass will cost on this machine, told before it begins: `diffsel score --dry-run`."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import torch

from ..data.images import ImageData, count_images, open_data
from ..data.pixels import Pixels
from ..data.pool import LOOK
from ..data.rows import Row
from ..machine.device import device_name
from ..scoring.batching import (
    GROUP,
    Shape,
    filled_forwards,
    filled_pictures,
    forwards,
    vae_batch,
)
from ..scoring.diffusion import DTYPES, Diffusion
from ..scoring.draws import Scorer, as_images, draw_noise, keyed_generator, latent_size
from ..scoring.fitting import sizes_at_once
from ..scoring.suiting import suited
from ..settings.errors import DataError, UnreadableImage
from ..settings.sections import ScoringSettings
from ..settings.settings import Settings
from .parts import kept_rivals, others, possible_rivals, rival_forwards
from .run import UNIT_ROWS

SAMPLE = 8  # classes of which the headers of one unit's images are read, and that many images are decoded
MEASURED = 3  # latent shapes, the most frequent ones, at which the U-Net is timed
DEVICE = ("U-Net", "VAE", "compiling")  # what the device does, and what it waits for


@dataclass(frozen=True)
class Plan:
    """``flop`` counts a multiply-add as 2; ``parts`` are seconds of one process, from a probe of each."""

    classes: int
    images: int
    forwards: int
    filled: int  # forwards with what fills up the last batch of each latent shape of a group; as the sampled classes have it
    most_forwards: int  # with adaptive draws, if every image were in the race to its end; ``forwards`` then: the fewest
    rival_forwards: int  # on top of them
    flop: float
    bytes: int
    parts: Mapping[str, float]  # the networks (DEVICE), and what the host does beside them, on a GPU
    beside: bool  # whether host and device work side by side
    rate: float  # FLOP/s that the probe reached at the usual shape
    shapes: Sequence[Shape]  # of the sampled latents, the usual first; MEASURED of them were timed
    batch_size: int  # at the usual shape
    where: str  # precision and device

    @property
    def seconds(self) -> float:
        """Of one process: the slower of device and host where they work side by side."""
        device = sum(self.parts.get(name, 0) for name in DEVICE)
        host = [value for name, value in self.parts.items() if name not in DEVICE]
        return max(device, *host) if self.beside else device + sum(host)

    def __str__(self) -> str:
        usual, most = " x ".join(map(str, self.shapes[0][1:])), self.most_forwards / self.forwards
        timed = ", ".join(" x ".join(map(str, shape[1:])) for shape in self.shapes[:MEASURED])
        rest = f"; the other {len(self.shapes) - MEASURED} shapes by their area" if len(self.shapes) > MEASURED else ""
        parts = ", ".join(f"{name} {value / 3600:.3g}" for name, value in self.parts.items())
        lines = {
            "images": f"{self.images:,} in {self.classes} classes",
            "U-Net forwards": f"{self.forwards:,} ({self.filled:,} with filling of batches)"
            + (f" to {self.most_forwards:,} (adaptive)" if most > 1 else ""),
            **({"forwards of rivals": f"{self.rival_forwards:,}"} if self.rival_forwards else {}),
            "FLOP": f"{self.flop:.3g}",
            "bytes to store": f"{self.bytes:,}",
            "this machine": f"{self.rate:.3g} FLOP/s in batches of {self.batch_size} ({usual} latents, {self.where})",
            "estimated hours": f"{self.seconds / 3600:.3g} with one process"
            + (f", at most {self.seconds / 3600 * most:.3g}" if most > 1 else ""),
            "of which": f"{parts}; {'side by side' if self.beside else 'one after the other'}",
            "measured": f"here and now: all of these, the U-Net at {timed}{rest}",
        }
        width = max(map(len, lines))
        return "\n".join(f"{key:<{width}}  {value}" for key, value in lines.items())


def forecast(source: str, settings: Settings, scorer: Scorer) -> Plan:
    """Lists the images, reads a few of them, and times a batch of each network.  Raises DataError, ConfigError."""
    model, s = scorer.model, suited(settings, scorer.model.folder).scoring
    counts = count_images(source, settings.data)
    images, prompts = sum(counts.values()), len(s.prompts)
    few = list(counts)[:: max(1, len(counts) // SAMPLE)][:SAMPLE]
    samples = [sample for label in few if (sample := _look(source, label, settings)) is not None]
    reading, pixels = _reading(samples, settings.compute.workers)
    if not pixels:
        raise DataError(f"{source}: none of the images looked at can be read ({SAMPLE} classes, {UNIT_ROWS} images of each)")
    found = _shapes(samples, images, settings, model, scorer.batch_size)
    shares, sizes = found.shares, found.sizes
    if model.forward is not None:
        model.compile(found.pictures)
    shapes = sorted(shares, key=lambda shape: (-shares[shape], shape))
    probed = {shape: _unet(model, s, shape, sizes[shape]) for shape in shapes[:MEASURED]}
    flop, seconds, _ = probed[shapes[0]]
    area = sum(share * math.prod(shape) for shape, share in shares.items())  # of the mean image
    cells = {shape: share * math.prod(shape) for shape, share in shares.items() if shape in probed}
    one = sum(count * probed[shape][1] / math.prod(shape) for shape, count in cells.items()) / sum(cells.values()) * area
    once, most = forwards(images, prompts, s), s.rounds()[-1] // s.draws
    total = round(once * (1 + s.adaptive_keep * (most - 1)))  # who stays in the race gets all draws
    rivals, kept = _rivals(counts, settings, s.draws)
    size = pixels[0].shape[:2]
    batch = sizes.get((3, *size), vae_batch(model.device, *size))
    vae_flop, vae_seconds, vae_compiling = _probe(lambda: model.encode(as_images([pixels[0]] * batch, model.device)), model)
    vae_graphs = 0.0 if model.of_all_sizes else vae_compiling * found.pictures
    drawn = _noise(scorer, shapes[0], s)
    relative, maps = area / math.prod(shapes[0]), area / shapes[0][0] * s.bins
    stored = maps * (4 + prompts * 2 * 2) + settings.compute.keep_latents * 4 * area + LOOK**2 + 8  # and its row
    return Plan(
        classes=len(counts),
        images=images,
        forwards=total,
        filled=round(total * found.filled),
        most_forwards=once * most,
        rival_forwards=rivals,
        flop=images * vae_flop / batch + (total + rivals) * flop * relative,
        bytes=round(images * stored + kept * (maps * 2 + 8)),
        parts={
            "U-Net": (total * found.filled + rivals) * one,
            "VAE": images * found.encoded * vae_seconds / batch,
            "reading": images * reading,
            "noise": images * s.draws * drawn * total / once,
            **({} if model.forward is None else {"compiling": sum(first for *_, first in probed.values()) + vae_graphs}),
        },
        beside=model.device.type != "cpu",
        rate=flop / seconds,
        shapes=shapes,
        batch_size=sizes[shapes[0]],
        where=f"{_precision(settings, model)} on {device_name(model.device)}",
    )


def _rivals(counts: Mapping[str, int], settings: Settings, draws: int) -> tuple[int, int]:
    """Forwards, and maps that are kept, of all images.  Raises ConfigError where there are no such rivals."""
    asked = settings.patches.rivals
    possible = possible_rivals(asked, list(counts))
    each = [(count, others(possible, label)) for label, count in counts.items()]
    taken = sum(count * rival_forwards(asked, number, draws) for count, number in each)
    return taken, sum(count * kept_rivals(asked, number) for count, number in each)


def _precision(settings: Settings, model: Diffusion) -> str:
    asked = settings.compute.precision
    return next(name for name, dtype in DTYPES.items() if dtype == model.dtype) if asked == "auto" else asked


def _look(source: str, label: str, settings: Settings) -> ImageData | None:
    """As many images of a class as a unit has, with their sizes; None where none has a readable header."""
    most = min(UNIT_ROWS, settings.data.images_per_class or UNIT_ROWS)
    one = settings.data.model_copy(update={"classes": (label,), "classes_sha256": None, "images_per_class": most})
    with contextlib.suppress(DataError):
        return open_data(source, one, settings.seed, settings.compute.workers)
    return None


def _reading(samples: Sequence[ImageData], workers: int) -> tuple[float, list[Pixels]]:
    """Seconds an image takes, ``workers`` read at once, and the pixels of a few, those of middle size first."""

    def one(job: tuple[ImageData, Row]) -> Pixels | None:
        with contextlib.suppress(UnreadableImage):
            return job[0].pixels(job[1])
        return None

    begin, jobs = time.perf_counter(), [(sample, row) for sample in samples for row in islice(sample.rows, SAMPLE)]
    with ThreadPoolExecutor(workers) as pool:
        found = [each for each in pool.map(one, jobs) if each is not None]
    middle = sorted(each.size for each in found)[len(found) // 2] if found else 0
    seconds = (time.perf_counter() - begin) / max(1, len(jobs))
    return seconds, sorted(found, key=lambda each: abs(each.size - middle))


@dataclass(frozen=True)
class _Shapes:
    shares: dict[Shape, float]  # of each latent shape
    sizes: dict[Shape, int]  # samples in its forwards, and by (3, height, width) pictures in a batch of the VAE
    pictures: int  # sizes of images
    filled: float  # U-Net samples that run, group by group, for each that is needed
    encoded: float  # pictures that the VAE encodes for each that is needed


def _shapes(samples: Sequence[ImageData], images: int, settings: Settings, model: Diffusion, batch_size: int) -> _Shapes:
    """If all ``images`` have the sizes of the samples."""
    s, group = settings.scoring, GROUP * batch_size
    pictures = [sample.size(row)[::-1] for sample in samples for row in sample.rows]
    pictures *= -(-min(images, group) // len(pictures))
    pictures, prompts = pictures[:images], len(s.prompts)
    shapes = [latent_size(model, *picture) for picture in pictures]
    number = len(pictures)
    whole = {picture: count / number * images for picture, count in Counter(pictures).items()}
    sizes = sizes_at_once(model, whole, settings, batch_size)
    groups = [slice(begin, begin + group) for begin in range(0, number, group)]
    return _Shapes(
        {shape: count / number for shape, count in Counter(shapes).items()},
        sizes,
        len(whole),
        sum(filled_forwards(shapes[each], prompts, s, sizes) for each in groups) / forwards(number, prompts, s),
        sum(filled_pictures(pictures[each], sizes) for each in groups) / number,
    )


def _unet(model: Diffusion, s: ScoringSettings, shape: Shape, size: int) -> tuple[float, float, float]:
    """FLOP and seconds of a sample in a forward of ``size``, and what compiling took."""
    noisy = torch.randn((size, *shape), generator=keyed_generator("plan")).to(model.device)
    words = model.embed_prompts([s.null_prompt]).expand(size, -1, -1)
    steps = torch.full((size,), model.steps // 2, device=model.device)
    flop, seconds, first = _probe(lambda: model.predict_noise(noisy, steps, words), model)
    return flop / size, seconds / size, first


def _noise(scorer: Scorer, shape: Shape, s: ScoringSettings) -> float:
    """Seconds that a draw's noise takes the host."""
    begin = time.perf_counter()
    for draw in range(SAMPLE):
        draw_noise("plan", draw, shape, s, scorer.seed, scorer.model.steps, scorer.model.levels if s.log_snr else None)
    return (time.perf_counter() - begin) / SAMPLE


def _probe(run: Callable[[], object], model: Diffusion) -> tuple[float, float, float]:
    """FLOP of a call, the seconds of a later one (of the fastest of three where they are short), and what compiling took."""
    from torch.utils.flop_counter import FlopCounterMode

    def timed() -> float:
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    with FlopCounterMode(display=False) as counter, model.eager():
        run()
    first = 0.0 if model.forward is None else timed()
    times: list[float] = []
    while len(times) < 3 and sum(times) < 10:
        times.append(timed())
    return float(counter.get_total_flops()), min(times), max(0.0, first - min(times))
