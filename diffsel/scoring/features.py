"""Patches -> vectors (paper 3.2): DIFT, the activation of a U-Net block on the noised patch, or CLIP image features."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ..data.pixels import Pixels
from ..machine.device import to_device, to_host
from ..settings.errors import ConfigError
from ..settings.sections import FeatureSettings
from .batching import Job, Launched
from .diffusion import Diffusion
from .draws import Scorer, as_images, keyed_generator, latent_size, soundly
from .patches import Box

Vector = NDArray[np.float32]
CLIP = (3, 224, 224)  # what its batches are counted by, though some see other sizes
CLIP_THREADS = 4  # that prepare its pictures


@dataclass(frozen=True)
class Patch:
    """What a vector is made from: the image's key and pixels, and the box inside it."""

    key: str
    pixels: Pixels
    box: Box


def embed_patches(
    scorer: Scorer, patches: Sequence[Patch], prompts: str | Sequence[str], settings: FeatureSettings
) -> Iterator[tuple[int, Vector]]:
    """The vector of each patch, unit length, float32, as (position in ``patches``, vector), size by size.

    ``prompts``: each patch's class's label prompt, or that of all.  A patch's noise is keyed by its image and box.
    Raises ConfigError.
    """
    texts = [prompts] * len(patches) if isinstance(prompts, str) else prompts
    asked = list(zip(patches, texts, strict=True))
    return soundly(scorer, asked, lambda by, some: _embed(by, [p for p, _ in some], [text for _, text in some], settings))


def _embed(
    scorer: Scorer, patches: Sequence[Patch], texts: Sequence[str], settings: FeatureSettings
) -> Iterator[tuple[int, Vector]]:
    if settings.kind == "clip":
        with ThreadPoolExecutor(CLIP_THREADS) as pool:
            launch = partial(_embed_clip, patches, settings, scorer.model.device, pool, {})
            found = scorer.batches([Job(list(range(len(patches))), CLIP, 1, launch)])
            yield from ((i, vector.numpy()) for i, vector in found)
        return
    whole = settings.pooling == "box"
    words = {text: scorer.model.embed_prompts([text])[0] for text in dict.fromkeys(texts)}
    make, jobs = partial(_embed_dift, scorer, patches, [words[text] for text in texts], settings), []
    for size in sorted({_view(p, whole).shape[:2] for p in patches}):
        places = [i for i, p in enumerate(patches) if _view(p, whole).shape[:2] == size]
        jobs.append(Job(places, latent_size(scorer.model, *size), 1, make))
    yield from ((i, vector.numpy()) for i, vector in scorer.batches(jobs))


def _embed_dift(
    scorer: Scorer, patches: Sequence[Patch], words: Sequence[Tensor], settings: FeatureSettings, chunk: Sequence[int]
) -> Launched:
    asked, whole = [patches[i] for i in chunk], settings.pooling == "box"
    feature = _dift(scorer.model, asked, torch.stack([words[i] for i in chunk]), settings, scorer.seed)
    return to_host(unit([pool(f, patch, whole) for f, patch in zip(feature, asked, strict=True)]))


def _view(patch: Patch, whole: bool) -> Pixels:
    top, left, height, width = patch.box
    return patch.pixels if whole else patch.pixels[top : top + height, left : left + width]


@torch.inference_mode()
def _dift(
    model: Diffusion, patches: Sequence[Patch], words: Float[Tensor, "b tokens width"], settings: FeatureSettings, seed: int
) -> Float[Tensor, "b channels fh fw"]:
    """Activations at the DIFT step, averaged over the ensemble of noises."""
    whole = settings.pooling == "box"
    with model.eager():  # vectors are the same with and without --compile
        latents = model.encode(as_images([_view(p, whole) for p in patches], model.device))
    t = torch.full((len(patches),), model.time(settings.timestep), device=model.device)
    total: Float[Tensor, "b channels fh fw"] | None = None
    for member in range(settings.ensemble):
        noise = torch.stack(
            [
                torch.randn(latents.shape[1:], generator=keyed_generator(seed, p.key, () if whole else p.box, "dift", member))
                for p in patches
            ]
        )
        noisy = model.add_noise(latents, to_device(noise, model.device), t)
        feature = model.features(noisy, t, words, model.point(settings))
        total = feature if total is None else total + feature
    assert total is not None  # ensemble >= 1
    return total / settings.ensemble


def pool(feature: Float[Tensor, "channels fh fw"], patch: Patch, whole: bool) -> Float[Tensor, " channels"]:
    """Spatial mean of a patch's feature map; of a whole image's map, over the cells that the box covers."""
    if whole:
        (top, left, height, width), (fh, fw), (h, w) = patch.box, feature.shape[1:], patch.pixels.shape[:2]
        rows = slice(top * fh // h, max((top + height) * fh // h, top * fh // h + 1))
        cols = slice(left * fw // w, max((left + width) * fw // w, left * fw // w + 1))
        feature = feature[:, rows, cols]
    return feature.mean((1, 2))


def unit(vectors: Sequence[Float[Tensor, " channels"]]) -> Float[Tensor, "b channels"]:
    """L2-normalised, float32."""
    return torch.nn.functional.normalize(torch.stack(list(vectors)).float(), dim=1)


# ---- CLIP, the ablation's alternative (paper Tab. 5) -----------------------------------------------------------------


@cache
def _load_clip(name: str, device: torch.device):
    """In fp32, whatever the pass computes in: nothing that names stored vectors tells another precision of theirs, so half
    precision would mix with what a RUN holds.  For the paper's ViT-L/14 that is 3 ms a patch at 51 TFLOP/s (an H200), beside
    10 ms for its map."""
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    try:
        clip = CLIPVisionModelWithProjection.from_pretrained(name, use_safetensors=True)
        return clip.eval().requires_grad_(False).to(device), CLIPImageProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(f"features.clip_model = {name!r}: {error}") from None


def clip_digest(name: str) -> str:
    """A hash of the weights behind ``features.clip_model``, which a folder or a hub id may change.  Raises ConfigError."""
    state = hashlib.blake2b(digest_size=16)
    for key, tensor in _load_clip(name, torch.device("cpu"))[0].state_dict().items():
        state.update(f"{key} {tuple(tensor.shape)};".encode())
        state.update(tensor.numpy().tobytes())
    return state.hexdigest()


@torch.inference_mode()
def _embed_clip(
    patches: Sequence[Patch],
    settings: FeatureSettings,
    device: torch.device,
    pool: ThreadPoolExecutor,
    ready: dict[int, Future[Tensor]],
    chunk: Sequence[int],
) -> Launched:
    """Threads prepare pictures, two batches ahead at most: ``ready`` holds them, by place."""
    clip, prepare = _load_clip(settings.clip_model, device)

    def prepared(place: int) -> Tensor:
        view = np.ascontiguousarray(_view(patches[place], whole=False))
        return prepare(images=[view], return_tensors="pt", input_data_format="channels_last")["pixel_values"]

    for place in range(chunk[0], min(chunk[0] + 2 * len(chunk), len(patches))):
        if place not in ready:
            ready[place] = pool.submit(prepared, place)
    for place in [place for place in ready if place < chunk[0]]:
        del ready[place]
    inputs = to_device(torch.cat([ready[place].result() for place in chunk]), device)
    return to_host(unit(list(clip(pixel_values=inputs).image_embeds)))


def random_clip(folder: Path) -> None:
    """Write a small image encoder of CLIP's architecture with random weights (seed 0), for where no weights can be had.

    It shows that the ablation's path works; its vectors are those of an untrained network.
    """
    if (folder / "model.safetensors").exists():
        return
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            projection_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
        )
        network = CLIPVisionModelWithProjection(config)
    sides = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=sides).save_pretrained(folder)
    network.save_pretrained(folder)
