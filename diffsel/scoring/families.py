"""The families of priors: whose pipeline is whose, which parts it has, and which models are refused, with the reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any


@dataclass(frozen=True)
class Family:
    """What is known of a kind of prior before any of its weights is read."""

    name: str  # a file of priors/
    pipelines: tuple[str, ...]  # as model_index.json says it
    network: str  # folder of the network: unet or transformer
    kinds: tuple[str, ...]  # what its config.json may call it
    texts: Mapping[str, tuple[str, int]] = field(default_factory=dict)  # text encoder -> CLIP, T5 or GEMMA, and tokens at most
    width: str = ""  # what the network calls the width of a word
    blocks: str = "num_layers"  # what a transformer calls their number
    flow: bool = False  # on a straight path; else with a noise table
    middle: int = -1  # which point features come from; -1: the middle block
    since: tuple[int, ...] = ()  # the first diffusers that has it

    @property
    def tokenizers(self) -> tuple[str, ...]:
        return tuple(part.replace("text_encoder", "tokenizer") for part in self.texts)

    @property
    def parts(self) -> tuple[str, ...]:
        """Folders, in the order in which they are hashed."""
        return (self.network, "vae", *self.texts, *self.tokenizers, "scheduler")


CLIP, T5, GEMMA = "CLIPTextModel", "T5EncoderModel", "T5Gemma"
FAMILIES = (
    Family(
        "sd",
        ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),  # the same weights
        "unet",
        ("UNet2DConditionModel",),
        {"text_encoder": (CLIP, 77)},
        "cross_attention_dim",
    ),
    Family(
        "sdxl",
        ("StableDiffusionXLPipeline",),
        "unet",
        ("UNet2DConditionModel",),
        {"text_encoder": (CLIP, 77), "text_encoder_2": (CLIP, 77)},
        "cross_attention_dim",
        middle=0,  # the one at a quarter of the latent, as Stable Diffusion's second
    ),
    Family("dit", ("DiTPipeline",), "transformer", ("DiTTransformer2DModel", "Transformer2DModel")),
    Family(
        "pixart",
        ("PixArtSigmaPipeline", "PixArtAlphaPipeline"),
        "transformer",
        ("PixArtTransformer2DModel", "Transformer2DModel"),
        {"text_encoder": (T5, 300)},
        "caption_channels",
    ),
    Family(
        "sd3",
        ("StableDiffusion3Pipeline",),
        "transformer",
        ("SD3Transformer2DModel",),
        {"text_encoder": (CLIP, 77), "text_encoder_2": (CLIP, 77), "text_encoder_3": (T5, 256)},
        "joint_attention_dim",
        flow=True,
    ),
    Family(
        "prx",
        ("PRXPipeline",),
        "transformer",
        ("PRXTransformer2DModel",),
        {"text_encoder": (GEMMA, 256)},
        "context_in_dim",
        blocks="depth",
        flow=True,
        since=(0, 36),
    ),
)
SERVED = "Stable Diffusion 1.x, 2.x, XL, 3 and 3.5, PixArt, PRX, DiT (docs/priors.md)"
UNFIT = {  # what a pipeline's name says -> why it is no prior, and what to take instead
    r"Inpaint": "an inpainting model is told of a masked picture too; take the text-to-image model that it came from",
    r"Upscale|SuperRes": "an upscaling model is told of a small picture too; take a text-to-image model",
    r"Img2Img|ImageVariation|unCLIP|Pix2Pix|Kontext|Edit": "it is told of a picture too; take a text-to-image model",
    r"ControlNet|Adapter|T2IAdapter": "it is told of a picture too; take the model that it steers",
    r"LatentConsistency": "it is step-distilled, which predicts no posterior mean; take the model that it was distilled from",
    r"^Flux2?Pipeline": "FLUX is guidance-distilled (dev) or step-distilled (schnell) and has no null; "
    "take Stable Diffusion 3.5, PRX or another undistilled flow model",
}
# In the names of such models:
DISTILLED = re.compile(r"(?<![a-z])(turbo|lightning|hyper|lcm|schnell|dmd|tcd|distilled)(?![a-z])", re.I)
STEPS = "is step-distilled, which predicts no posterior mean; take the model that it was distilled from"


def family_of(pipeline: str) -> Family | str:
    """The family of a pipeline, or why there is none."""
    for family in FAMILIES:
        if pipeline in family.pipelines:
            return _missing(family) or family
    for pattern, reason in UNFIT.items():
        if re.search(pattern, pipeline):
            return f"is a {pipeline}: {reason}"
    return f"is a {pipeline}, which diffsel does not know; it knows {SERVED}"


def _missing(family: Family) -> str:
    """What the installed diffusers lacks of a family; empty for nothing."""
    here = version("diffusers")
    if tuple(map(int, re.findall(r"\d+", here)[:2])) >= family.since:
        return ""
    wanted = ".".join(map(str, family.since))
    return f"is a {family.pipelines[0]}: it needs diffusers {wanted} or newer, here is {here}; pip install --upgrade diffusers"


def distilled(names: Iterable[Any], network: Mapping[str, Any], scheduler: str) -> str:
    """Why a model has no posterior mean or no null, as its names and settings say; empty for nothing."""
    if found := next((name for name in map(str, names) if DISTILLED.search(name.rstrip("/").rpartition("/")[2])), ""):
        return f"({found}) {STEPS}"
    if network.get("guidance_embeds"):
        return "has guidance_embeds: it is guidance-distilled and has no null; take an undistilled model"
    if scheduler in ("LCMScheduler", "TCDScheduler"):
        return f"comes with {scheduler}: it {STEPS}"
    return ""
