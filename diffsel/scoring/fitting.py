"""A scorer for the images of a run: batches that they fill, and graphs for their sizes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

import torch

from ..machine.progress import Progress
from ..settings.settings import Settings
from .batching import Shape, Size, batch_sizes, evenly, picture_sizes
from .diffusion import Diffusion
from .draws import Bucket, Scorer, latent_size


def fitted(
    scorer: Scorer, pictures: Mapping[Size, int], settings: Settings, prompts: Sequence[str], progress: Progress
) -> Scorer:
    """With batches that so many ``pictures`` of each size fill; and compiled, if it is, for all of these sizes (with
    ``prompts`` of any class)."""
    model, s = scorer.model, settings
    sizes = sizes_at_once(model, pictures, s, scorer.batch_size)
    if side := s.patches.patch_size:
        patches = sum(pictures.values()) * s.patches.per_image
        sizes.setdefault(latent_size(model, side, side), evenly(patches, scorer.batch_size))
    ready = replace(scorer, sizes=sizes)
    if model.forward is not None:
        model.compile(len(pictures))
    if model.of_all_sizes:
        shapes = sorted({latent_size(model, *picture) for picture in pictures})
        ready = replace(ready, warm=cache(partial(_warm, ready, shapes, prompts, progress)))
    return ready


def sizes_at_once(model: Diffusion, pictures: Mapping[Size, float], settings: Settings, batch_size: int) -> dict[Shape, int]:
    """Samples in a forward of each latent shape, and pictures in a batch of the VAE of each (3, height, width), as so many
    ``pictures`` of each size fill, a group of units at a time."""
    s, images = settings, defaultdict[Shape, float](float)
    for picture, count in pictures.items():
        images[latent_size(model, *picture)] += count
    square = latent_size(model, s.data.image_size, s.data.image_size)
    found = batch_sizes(images, square, len(s.scoring.prompts), s.scoring, batch_size)
    return found | picture_sizes(pictures, model.device, batch_size)


def _warm(scorer: Scorer, shapes: Sequence[Shape], prompts: Sequence[str], progress: Progress) -> None:
    """A draw of an empty latent of each shape, in their order: a graph of all sizes is made with the first batch in view, and
    its rounding must not depend on which images this process meets first."""
    words = scorer.model.embed_prompts([scorer.settings.null_prompt, *prompts])[None]
    with progress(total=len(shapes), desc="compiling", unit="shape") as bar:
        for shape in shapes:
            latents = torch.zeros(1, *shape, device=scorer.model.device)
            list(scorer.losses([(Bucket(latents, ["empty"], words, [0], {0: 0}), [(0, 0)])]))
            bar.update()
