"""What a scoring pass will cost on this machine, told before it begins: `diffsel score --dry-run`."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass

import torch

from .config import DataError, Settings, UnreadableImage
from .data import count_images, open_data
from .diffusion import Diffusion
from .draws import as_images, keyed_generator, latent_shape
from .pixels import Pixels
from .scoring import forwards

SAMPLE, TRIES = 8, 8  # classes of which one image is looked at, and how many are tried for it


@dataclass(frozen=True)
class Plan:
    """``flop`` counts a multiply-add as 2; ``seconds`` for one process, from a probe of a few forwards."""

    classes: int
    images: int
    forwards: int
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
            "U-Net forwards": f"{self.forwards:,}"
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


def plan(source: str, settings: Settings, model: Diffusion, batch_size: int) -> Plan:
    """Lists the images, reads a few of them, and times a batch of each network.  Raises DataError, ConfigError."""
    counts = count_images(source, settings.data)
    few = list(counts)[:: max(1, len(counts) // SAMPLE)][:SAMPLE]
    found = sorted((each for label in few if (each := _look(source, label, settings)) is not None), key=lambda p: p.size)
    if not found:
        raise DataError(f"{source}: none of the images looked at can be read ({SAMPLE} classes, {TRIES} images of each)")
    pixels = found[len(found) // 2]
    shape, s = latent_shape(model, pixels), settings.scoring
    images, prompts = sum(counts.values()), len(s.prompts)
    vae_flop, vae_seconds = _probe(lambda: model.encode(as_images([pixels], model.device)), model)
    noisy = torch.randn((batch_size, *shape), generator=keyed_generator("plan")).to(model.device)
    words = model.embed_prompts([s.null_prompt]).expand(batch_size, -1, -1)
    steps = torch.full((batch_size,), model.steps // 2, device=model.device)
    unet_flop, unet_seconds = _probe(lambda: model.predict_noise(noisy, steps, words), model)
    total = forwards(images, prompts, s)
    flop = images * vae_flop + total * unet_flop / batch_size
    cells = shape[1] * shape[2] * s.bins
    return Plan(
        classes=len(counts),
        images=images,
        forwards=total,
        most_forwards=total // s.draws * s.rounds()[-1],
        flop=flop,
        bytes=images * (cells * (4 + prompts * 2 * 2) + settings.compute.keep_latents * 4 * math.prod(shape)),
        seconds=images * vae_seconds + total * unet_seconds / batch_size,
        rate=unet_flop / unet_seconds,
        shape=shape,
        batch_size=batch_size,
    )


def _look(source: str, label: str, settings: Settings) -> Pixels | None:
    """The first of a few images of a class that can be read."""
    one = settings.data.model_copy(update={"classes": (label,), "classes_sha256": None, "images_per_class": TRIES})
    with contextlib.suppress(DataError):
        sample = open_data(source, one, settings.seed, settings.compute.workers)
        for row in sample.rows:
            with contextlib.suppress(UnreadableImage):
                return sample.pixels(row)
    return None


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
