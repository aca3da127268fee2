"""Stable Diffusion behind four verbs: embed_prompts, encode, predict_noise, features.  The only import of diffusers.

Everything comes in and goes out in float32 and in this project's conventions (``images`` in [-1, 1], noise
predictions even from v-prediction models); what the networks compute in is the ``precision`` setting.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..machine.device import keep_freed_memory, set_tf32
from ..settings.errors import ConfigError
from .folder import ModelFolder

if TYPE_CHECKING:  # loaded with a model: selecting from a store needs neither
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LATENT_SHAPES = 512  # more than there are at 256 px with sides up to 1 : 8, upright or not


def allow_shapes(count: int) -> None:
    """torch.compile makes a graph for each of ``count`` shapes; beyond its limit (8) it would quietly stop compiling."""
    import torch._dynamo.config as dynamo

    dynamo.recompile_limit = max(dynamo.recompile_limit, count)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, count)


@dataclass
class Diffusion:
    """A frozen SD 1.x / 2.x pipeline, without safety checker and VAE decoder."""

    folder: ModelFolder
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: DDPMScheduler
    device: torch.device
    dtype: torch.dtype
    forward: Callable[..., Any] | None = None  # the U-Net compiled; features stop in the middle and need it as it is

    @classmethod
    def load(cls, folder: ModelFolder, device: torch.device, precision: str, compiled: bool = False) -> Diffusion:
        """All parts, every weight of them; ``compiled`` for torch.compile.

        Raises ConfigError for a part that does not load, or whose file lacks weights or holds others.
        """
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # ours are the bars worth seeing, and the errors below
        transformers_logging.set_verbosity_error()
        set_tf32(precision)
        folder.check()
        dtype = DTYPES[precision]
        text = _whole(folder, "text_encoder", CLIPTextModel, {"dtype": dtype})
        vae = _whole(folder, "vae", AutoencoderKL, {"torch_dtype": dtype})
        unet = _whole(folder, "unet", UNet2DConditionModel, {"torch_dtype": dtype})
        # Whatever sampler the model ships with, only its noise table and prediction type matter here.
        scheduler = folder.loaded("scheduler", lambda: DDPMScheduler.from_pretrained(folder.path, subfolder="scheduler"))
        vae.decoder = vae.post_quant_conv = None
        for module in (text, vae, unet):
            module.eval().requires_grad_(False).to(device)
        if device.type == "cpu":
            keep_freed_memory()
        if device.type == "cuda":  # tensor cores want channels last; on a CPU oneDNN picks its own layout
            vae, unet = (module.to(memory_format=torch.channels_last) for module in (vae, unet))
        model = cls(folder, folder.tokenizer, text, vae, unet, scheduler, device, dtype)
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

    @torch.inference_mode()
    def embed_prompts(self, prompts: list[str]) -> Float[Tensor, "prompts tokens width"]:
        """Last hidden states of the text encoder.  Raises ConfigError for a prompt that is too long."""
        for prompt in prompts:
            self.folder.tokens(prompt)
        tokens = self.tokenizer(prompts, padding="max_length", max_length=self.folder.positions, return_tensors="pt")
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
        output = self._unet(noisy, t, words, self.unet if self.forward is None else self.forward).float()
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


def _whole(folder: ModelFolder, part: str, kind: Any, options: dict[str, Any]) -> Any:
    """A part with every weight from its file: one that is missing would be random, one too many belongs to another network.

    Raises ConfigError naming the first of them.  A VAE's decoder is not needed, nor what else a CLIP file holds.
    """
    options = {**options, "use_safetensors": True, "low_cpu_mem_usage": True, "output_loading_info": True}
    network, told = folder.loaded(part, lambda: kind.from_pretrained(folder.path, subfolder=part, **options))
    needless = re.compile({"vae": r"decoder\.|post_quant_conv\.", "text_encoder": r".*position_ids$"}.get(part, r"(?!)"))
    missing = sorted(str(key) for key in told["missing_keys"] if not needless.match(str(key)))
    other = sorted(str(key) for key in told["unexpected_keys"] if part == "unet")
    shapes = sorted(str(key[0] if isinstance(key, tuple) else key) for key in told.get("mismatched_keys", ()))
    for what, names in (("lacks", missing), ("has other shapes of", shapes), ("holds, beside its own weights,", other)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ConfigError(
                f"model {folder}: {part} {what} {', '.join(names[:3])}{more}; its file and its config.json differ"
            )
    return network
