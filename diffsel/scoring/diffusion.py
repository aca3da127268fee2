"""Stable Diffusion behind four verbs: embed_prompts, encode, predict_noise, features.  The only import of diffusers.

Everything comes in and goes out in float32 and in this project's conventions (``images`` in [-1, 1], noise
predictions even from v-prediction models); what the networks compute in is the ``precision`` setting.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jaxtyping import Float, Int
from torch import Tensor

from ..machine.device import keep_freed_memory, set_tf32
from ..settings.errors import ConfigError
from ..settings.sections import ModelSettings

if TYPE_CHECKING:  # loaded with a model: selecting from a store needs neither
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LATENT_SHAPES = 512  # more than there are at 256 px with sides up to 1 : 8, upright or not
# Weights in the default precision only: no .bin pickles, no fp16 or non-EMA copies.
WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def allow_shapes(count: int) -> None:
    """torch.compile makes a graph for each of ``count`` shapes; beyond its limit (8) it would quietly stop compiling."""
    import torch._dynamo.config as dynamo

    dynamo.recompile_limit = max(dynamo.recompile_limit, count)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, count)


def locate(settings: ModelSettings) -> Path:
    """The local folder of a model, fetched from the hub where needed (only the parts and files that are used).

    Raises ConfigError for a folder that is not in diffusers layout, or an id that cannot be fetched.
    """
    if settings.model == "demo":
        folder = Path(str(files("diffsel") / "assets" / "demo-sd"))
    elif Path(settings.model).is_dir():
        folder = Path(settings.model)
    else:
        patterns = [
            f"{part}/{name}" for part in PARTS for name in ("*.json", "*.txt", "*model.safetensors", "*-of-*.safetensors")
        ]
        try:
            folder = Path(snapshot_download(settings.model, revision=settings.revision, allow_patterns=patterns))
        except HFValidationError:
            raise ConfigError(f"model.model = {settings.model!r}: no such folder, and not a hub id") from None
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise ConfigError(
                f"model.model = {settings.model!r}: no such folder, and not fetched from the hub: {error}"
            ) from None
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise ConfigError(
            f"model {folder}: not in diffusers layout, {', '.join(missing)} missing (single-file checkpoints: convert first)"
        )
    return folder


def content_hash(folder: Path) -> str:
    """A hash of every file that decides what the model computes, wherever it lies."""
    state = hashlib.blake2b(digest_size=16)
    for part in PARTS:
        for file in sorted((folder / part).iterdir()):
            if file.suffix in (".json", ".txt") or WEIGHTS.fullmatch(file.name):
                state.update(f"{part}/{file.name}\0".encode())
                with file.open("rb") as stream:
                    while chunk := stream.read(1 << 24):
                        state.update(chunk)
    return state.hexdigest()


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")


def check_prompts(folder: Path, prompts: Iterable[str]) -> None:
    """Raises ConfigError for a prompt beyond the text encoder's limit (77 tokens for SD), which would be cut."""
    tokenizer, positions = load_tokenizer(folder), _part_config(folder, "text_encoder")["max_position_embeddings"]
    for prompt in prompts:
        _check_prompt(tokenizer, min(tokenizer.model_max_length, positions), prompt)


def _check_prompt(tokenizer: CLIPTokenizer, limit: int, prompt: str) -> None:
    length = len(tokenizer(prompt, verbose=False)["input_ids"])
    if length > limit:
        raise ConfigError(f"prompt {prompt!r} has {length} tokens, the model takes {limit}; shorten it")


def check_up_block(folder: Path, up_block: int) -> None:
    """Raises ConfigError for an up block that the U-Net does not have."""
    count = len(_part_config(folder, "unet")["up_block_types"])
    if up_block >= count:
        raise ConfigError(f"features.up_block = {up_block}: this U-Net has blocks 0 to {count - 1}")


def _part_config(folder: Path, part: str) -> dict[str, Any]:
    try:
        return json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {folder}: {part}/config.json: {error}") from None


@dataclass
class Diffusion:
    """A frozen SD 1.x / 2.x pipeline, without safety checker and VAE decoder."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: DDPMScheduler
    device: torch.device
    dtype: torch.dtype
    forward: Callable[..., Any] | None = None  # the U-Net compiled; features stop in the middle and need it as it is

    @classmethod
    def load(cls, folder: Path, device: torch.device, precision: str, compiled: bool = False) -> Diffusion:
        """From a folder in diffusers layout; ``compiled`` for torch.compile.  Raises ConfigError where a part does not load."""
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # ours are the bars worth seeing
        set_tf32(precision)
        dtype = DTYPES[precision]
        options = {"use_safetensors": True, "low_cpu_mem_usage": True}
        try:
            tokenizer = load_tokenizer(folder)
            text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=dtype, use_safetensors=True)
            vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=dtype, **options)
            unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype, **options)
            # Whatever sampler the model ships with, only its noise table and prediction type matter here.
            scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"model {folder}: {error}") from None
        if unet.config.in_channels != vae.config.latent_channels:
            channels = f"the U-Net takes {unet.config.in_channels} channels, the VAE gives {vae.config.latent_channels}"
            raise ConfigError(f"model {folder}: {channels}; inpainting models cannot be used")
        vae.decoder = vae.post_quant_conv = None
        for module in (text, vae, unet):
            module.eval().requires_grad_(False).to(device)
        if device.type == "cpu":
            keep_freed_memory()
        if device.type == "cuda":  # tensor cores want channels last; on a CPU oneDNN picks its own layout
            vae, unet = (module.to(memory_format=torch.channels_last) for module in (vae, unet))
        model = cls(tokenizer, text, vae, unet, scheduler, device, dtype)
        if compiled:  # a graph for each latent shape: every batch is filled up
            allow_shapes(LATENT_SHAPES)
            model.forward = torch.compile(unet, dynamic=False)
        return model

    @property
    def steps(self) -> int:
        """Length of the noise table (num_train_timesteps, 1000 for SD)."""
        return int(self.scheduler.config.num_train_timesteps)

    @property
    def cell(self) -> int:
        """Pixels per latent cell along a side (8 for SD)."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def channels(self) -> int:
        """Channels of a latent (4 for SD)."""
        return int(self.vae.config.latent_channels)

    @cached_property
    def _alphas(self) -> Float[Tensor, " steps"]:
        return self.scheduler.alphas_cumprod.to(self.device, torch.float32)

    @property
    def _positions(self) -> int:
        return min(int(self.tokenizer.model_max_length), int(self.text_encoder.config.max_position_embeddings))

    @torch.inference_mode()
    def embed_prompts(self, prompts: list[str]) -> Float[Tensor, "prompts tokens width"]:
        """Last hidden states of the text encoder.  Raises ConfigError for a prompt that is too long."""
        for prompt in prompts:
            _check_prompt(self.tokenizer, self._positions, prompt)
        tokens = self.tokenizer(prompts, padding="max_length", max_length=self._positions, return_tensors="pt")
        return self.text_encoder(tokens["input_ids"].to(self.device)).last_hidden_state

    @torch.inference_mode()
    def encode(
        self, images: Float[Tensor, "b 3 height width"], noise: Float[Tensor, "b 4 h w"] | None = None
    ) -> Float[Tensor, "b 4 h w"]:
        """Scaled VAE latents: the posterior mean, or with standard normal ``noise`` a sample."""
        posterior = self.vae.encode(images.to(self.device, self.dtype)).latent_dist
        latents = posterior.mean.float()
        if noise is not None:
            latents = latents + posterior.std.float() * noise.to(self.device)
        shift = self.vae.config.get("shift_factor") or 0.0
        return (latents - shift) * self.vae.config.scaling_factor

    def add_noise(
        self, latents: Float[Tensor, "b 4 h w"], noise: Float[Tensor, "b 4 h w"], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b 4 h w"]:
        """z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps (paper 3.1)."""
        abar = self._alphas[t][:, None, None, None]
        return abar.sqrt() * latents + (1 - abar).sqrt() * noise

    @torch.inference_mode()
    def predict_noise(
        self, noisy: Float[Tensor, "b 4 h w"], t: Int[Tensor, " b"], words: Float[Tensor, "b tokens width"]
    ) -> Float[Tensor, "b 4 h w"]:
        """eps_theta(z_t, t, words) in float32; predictions of v or of z_0 are turned into noise first."""
        output = self._unet(noisy, t, words, self.forward or self.unet).float()
        abar = self._alphas[t][:, None, None, None]
        match self.scheduler.config.prediction_type:
            case "epsilon":
                return output
            case "v_prediction":  # v = sqrt(abar) eps - sqrt(1 - abar) z_0
                return abar.sqrt() * output + (1 - abar).sqrt() * noisy
            case "sample":
                return (noisy - abar.sqrt() * output) / (1 - abar).sqrt()
            case other:
                raise ConfigError(f"model with prediction_type {other!r}; known: epsilon, v_prediction, sample")

    @torch.inference_mode()
    def features(
        self,
        noisy: Float[Tensor, "b 4 h w"],
        t: Int[Tensor, " b"],
        words: Float[Tensor, "b tokens width"],
        up_block: int,
    ) -> Float[Tensor, "b channels fh fw"]:
        """Output of ``unet.up_blocks[up_block]`` (DIFT), in float32; the pass stops there.  Raises ConfigError."""
        if up_block >= len(self.unet.up_blocks):
            raise ConfigError(f"features.up_block = {up_block}: this U-Net has blocks 0 to {len(self.unet.up_blocks) - 1}")

        def stop(_module: torch.nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            raise _Reached(output)

        handle = self.unet.up_blocks[up_block].register_forward_hook(stop)
        try:
            self._unet(noisy, t, words, self.unet)
        except _Reached as reached:
            return reached.output.float()
        finally:
            handle.remove()
        raise AssertionError("the U-Net ended before the hooked block")

    def _unet(self, noisy: Tensor, t: Tensor, words: Tensor, network: Callable[..., Any]) -> Tensor:
        return network(noisy.to(self.dtype), t, encoder_hidden_states=words.to(self.dtype), return_dict=False)[0]


class _Reached(Exception):
    """Carries a block's output out of a U-Net whose remaining blocks are not needed."""

    def __init__(self, output: Tensor):
        super().__init__()
        self.output = output
