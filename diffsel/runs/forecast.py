"""What a scoring pass will cost on this machine, told before it begins: `diffsel score --dry-run`."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..data.images import ImageData, count_images, open_data
from ..data.pixels import Pixels
from ..scoring.diffusion import Diffusion
from ..scoring.draws import Scorer, as_images, keyed_generator, latent_shape, latent_size
from ..scoring.maps import GROUP, batch_sizes, filled_forwards, forwards
from ..scoring.suiting import suited
from ..settings.errors import DataError, UnreadableImage
from ..settings.settings import Settings
from .run import UNIT_ROWS

SAMPLE = 8  # classes of which the headers of one unit's images are read, and one image is decoded


@dataclass(frozen=True)
class Plan:
    """``flop`` counts a multiply-add as 2; ``seconds`` for one process, from a probe of a few forwards."""

    classes: int
    images: int
    forwards: int
    filled: int  # forwards with what fills up the last batch of each latent shape of a unit; as the sampled classes have it
    most_forwards: int  # with adaptive draws, if every image were undecided to the end
    flop: float
    bytes: int
    seconds: float
    rate: float  # FLOP/s that the probe reached
    shape: tuple[int, ...]  # of the sampled latents in the middle
    batch_size: int

    def __str__(self) -> str:
        speed = f"{self.rate:.3g} FLOP/s in batches of {self.batch_size}"
        lines = {
            "images": f"{self.images:,} in {self.classes} classes",
            "U-Net forwards": f"{self.forwards:,} ({self.filled:,} with filling of batches)"
            + (f" to {self.most_forwards:,} (adaptive)" if self.most_forwards > self.forwards else ""),
            "FLOP": f"{self.flop:.3g}",
            "bytes to store": f"{self.bytes:,}",
            "this machine": f"{speed} (latents of {self.shape[1]} x {self.shape[2]})",
            "estimated hours": f"{self.seconds / 3600:.3g} with one process"
            + (
                f", at most {self.seconds / 3600 * self.most_forwards / self.forwards:.3g}"
                if self.most_forwards > self.forwards
                else ""
            ),
        }
        width = max(map(len, lines))
        return "\n".join(f"{key:<{width}}  {value}" for key, value in lines.items())


def forecast(source: str, settings: Settings, scorer: Scorer) -> Plan:
    """Lists the images, reads a few of them, and times a batch of each network.  Raises DataError, ConfigError."""
    model, batch_size = scorer.model, scorer.batch_size
    counts = count_images(source, settings.data)
    few = list(counts)[:: max(1, len(counts) // SAMPLE)][:SAMPLE]
    samples = {label: sample for label in few if (sample := _look(source, label, settings)) is not None}
    found = sorted((each for sample in samples.values() if (each := _first(sample)) is not None), key=lambda p: p.size)
    if not found:
        raise DataError(f"{source}: none of the images looked at can be read ({SAMPLE} classes, {UNIT_ROWS} images of each)")
    pixels = found[len(found) // 2]
    shape, s = latent_shape(model, pixels), suited(settings, model.folder).scoring
    images, prompts = sum(counts.values()), len(s.prompts)
    vae_flop, vae_seconds = _probe(lambda: model.encode(as_images([pixels], model.device)), model)
    noisy = torch.randn((batch_size, *shape), generator=keyed_generator("plan")).to(model.device)
    words = model.embed_prompts([s.null_prompt]).expand(batch_size, -1, -1)
    steps = torch.full((batch_size,), model.steps // 2, device=model.device)
    unet_flop, unet_seconds = _probe(lambda: model.predict_noise(noisy, steps, words), model)
    total = forwards(images, prompts, s)
    filled = round(total * _filling(list(samples.values()), images, settings, model, batch_size))
    flop = images * vae_flop + total * unet_flop / batch_size
    cells = shape[1] * shape[2] * s.bins
    return Plan(
        classes=len(counts),
        images=images,
        forwards=total,
        filled=filled,
        most_forwards=total // s.draws * s.rounds()[-1],
        flop=flop,
        bytes=images * (cells * (4 + prompts * 2 * 2) + settings.compute.keep_latents * 4 * math.prod(shape)),
        seconds=images * vae_seconds + filled * unet_seconds / batch_size,
        rate=unet_flop / unet_seconds,
        shape=shape,
        batch_size=batch_size,
    )


def _look(source: str, label: str, settings: Settings) -> ImageData | None:
    """As many images of a class as a unit has, with their sizes; None where none has a readable header."""
    most = min(UNIT_ROWS, settings.data.images_per_class or UNIT_ROWS)
    one = settings.data.model_copy(update={"classes": (label,), "classes_sha256": None, "images_per_class": most})
    with contextlib.suppress(DataError):
        return open_data(source, one, settings.seed, settings.compute.workers)
    return None


def _first(sample: ImageData) -> Pixels | None:
    """The first image that decodes."""
    for row in sample.rows:
        with contextlib.suppress(UnreadableImage):
            return sample.pixels(row)
    return None


def _filling(samples: Sequence[ImageData], images: int, settings: Settings, model: Diffusion, batch_size: int) -> float:
    """U-Net samples that run for each that is needed, if all ``images`` have the sizes of the samples: group by group."""
    s, side, group = settings.scoring, settings.data.image_size, GROUP * batch_size
    shapes = [latent_size(model, *sample.size(row)[::-1]) for sample in samples for row in sample.rows]
    shapes *= -(-min(images, group) // len(shapes))
    shapes, prompts = shapes[:images], len(s.prompts)
    whole: dict[tuple[int, ...], float] = {shape: count * images / len(shapes) for shape, count in Counter(shapes).items()}
    sizes = batch_sizes(whole, latent_size(model, side, side), prompts, s, batch_size)
    groups = (shapes[i : i + group] for i in range(0, len(shapes), group))
    return sum(filled_forwards(each, prompts, s, sizes) for each in groups) / forwards(len(shapes), prompts, s)


def _probe(run, model: Diffusion) -> tuple[float, float]:
    """FLOP of a call, and the seconds of a second one (of the fastest of three where they are short)."""
    from torch.utils.flop_counter import FlopCounterMode

    compiled, model.forward = model.forward, None  # FLOP are counted on the network as it is written
    with FlopCounterMode(display=False) as counter:
        run()
    model.forward = compiled
    run() if compiled else None
    times: list[float] = []
    while len(times) < 3 and sum(times) < 10:
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return float(counter.get_total_flops()), min(times)
