"""A diffusion prior behind four verbs: embed_prompts, encode, predict_noise, features.  What every family shares is here.

Everything comes in and goes out in float32 and in this project's conventions (``images`` in [-1, 1], noise
predictions whatever a network predicts); what the networks compute in is the ``precision`` setting.
"""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..machine.device import keep_freed_memory, set_tf32
from ..settings.errors import ConfigError
from ..settings.sections import FeatureSettings
from .folder import ModelFolder
from .levels import Flow, Table, noise_from, unsound
from .nats import stable_diffusion

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Of a part, what is not used: a decoder, and of text encoders buffers of old versions and other towers.
NEEDLESS = {
    "vae": r"decoder\.|post_quant_conv\.",
    "text": r".*position_ids$|vision_model\.|visual_projection\.|text_projection\.|logit_scale$|decoder\.|lm_head\.",
}
UNASKED = re.compile(r"decoder\.|post_quant_conv\.|.*position_ids$")  # what may be missing
GRAPHS = 3  # sizes of images that are compiled each for itself: about as many as a U-Net has graphs of all sizes
LATENT_SHAPES = 512  # more than there are at 256 px with sides up to 1 : 8, upright or not
Network = Callable[..., Any]


def allow_shapes(count: int) -> None:
    """torch.compile makes a graph for each of ``count`` shapes; beyond its limit (8) it would quietly stop compiling."""
    import torch._dynamo.config as dynamo

    dynamo.recompile_limit = max(dynamo.recompile_limit, count)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, count)


class Diffusion(ABC):
    """A frozen prior, without safety checker and VAE decoder.  A family (priors/) says what is told to its network, and how.

    ``t`` is always the prior's own time, one number a latent; ``words`` is all that it is told of a class, one row a prompt.
    """

    network: Any  # U-Net or transformer
    encoders: dict[str, Any]  # of text, by folder
    levels: Table | Flow
    prediction: str  # what the network's output is: a kind of levels.noise_from

    def __init__(self, folder: ModelFolder, device: torch.device, dtype: torch.dtype):
        """The VAE; a family adds its other parts."""
        from diffusers import AutoencoderKL

        self.folder, self.device, self.dtype = folder, device, dtype
        self.forward: Network | None = None  # the network compiled; features stop in the middle and need it as it is
        self.of_all_sizes = False  # whether the compiled network's graphs are
        self.vae = self.part("vae", AutoencoderKL, without=("decoder", "post_quant_conv"))
        self.encoder = self.vae.encoder  # as it is, whether the VAE's is compiled or not
        if dtype == torch.float16 and folder.family != "sd" and self.vae.config.force_upcast:
            self.vae.float()  # SDXL's overflows

    @staticmethod
    def load(folder: ModelFolder, device: torch.device, precision: str, compiled: bool = False) -> Diffusion:
        """All parts, every weight of them; ``compiled`` for torch.compile.

        Raises ConfigError for a part that does not load, or whose file lacks weights or holds others.
        """
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # ours are the bars worth seeing, and the errors below
        transformers_logging.set_verbosity_error()
        diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)
        set_tf32(precision)
        folder.check()
        model: Diffusion = import_module(f"{__package__}.priors.{folder.family}").Prior(folder, device, DTYPES[precision])
        if folder.lora:
            model.add_lora(folder.lora)
        if device.type == "cpu":
            keep_freed_memory()
        if compiled:
            model.compile()
        return model

    def compile(self, sizes: int = 1) -> None:
        """torch.compile, for a pass over images of so many ``sizes``.

        A few get a graph each (every batch is filled up), of the network and of the VAE's encoder.  More than GRAPHS share
        graphs of all sizes, since one takes minutes: of a U-Net four for ImageNet's 36 shapes (RESULTS.md, "Filling").  The
        VAE, a small part of the work, is then not compiled.
        """
        import torch.fx.experimental._config as symbols

        allow_shapes(LATENT_SHAPES)
        symbols.use_duck_shape = False  # of the whole process: a graph that was made for a square is good for others
        self.of_all_sizes = sizes > GRAPHS
        self.forward = torch.compile(self.network, dynamic=self.of_all_sizes)
        self.vae.encoder = self.encoder if self.of_all_sizes else torch.compile(self.encoder, dynamic=False)

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Nothing compiled is used: for one look, or where FLOP are counted."""
        with nullcontext() if self.forward is None else torch.compiler.set_stance("force_eager"):
            yield

    def part(self, name: str, kind: Any, without: Sequence[str] = (), **more: Any) -> Any:
        """A part of the folder on the device, frozen; ``without`` what is not needed; ``more`` for its library.

        Raises ConfigError.
        """
        library = "dtype" if kind.__module__.startswith("transformers.") else "torch_dtype"
        module = _whole(self.folder, name, kind, {library: self.dtype, **more})
        for needless in without:
            setattr(module, needless, None)
        module.eval().requires_grad_(False).to(self.device)
        weights = module.state_dict()
        told = "" if any(value.any() for value in weights.values()) else "all its weights are zero"
        for key, value in weights.items():
            if not torch.isfinite(value).all():
                told = f"{key} holds numbers that are not finite in {str(self.dtype).removeprefix('torch.')}"
        if told:
            raise ConfigError(f"model {self.folder}: {name} is damaged, {told}; take a whole copy, or another --precision")
        if self.device.type == "cuda" and name in ("vae", "unet"):  # tensor cores; on a CPU oneDNN picks its own layout
            module = module.to(memory_format=torch.channels_last)  # fp32 reaches the matrix rate too (RESULTS.md, "On a GPU")
        return module

    def add_lora(self, file: Path) -> None:
        """Adds LoRA weights to those of the network and the text encoders, by the family's own pipeline.

        Raises ConfigError where the family takes none, they do not fit, or peft is not installed.
        """
        import diffusers

        pipeline = getattr(diffusers, self.folder.index["_class_name"])
        if self.folder.kind.network not in getattr(pipeline, "_lora_loadable_modules", ()):
            raise ConfigError(f"model.lora: diffusers loads no LoRA weights into a {pipeline.__name__}")
        given = {name: getattr(self, name, None) for name in ("vae", "scheduler")} | {self.folder.kind.network: self.network}
        given |= self.encoders | {
            name: text[1] for name, text in zip(self.folder.kind.tokenizers, self.folder.texts, strict=True)
        }
        asked = inspect.signature(pipeline.__init__).parameters
        rest = {name: None for name, each in asked.items() if each.default is each.empty and name not in ("self", *given)}

        def load() -> None:
            made = pipeline(**given, **rest)
            made.load_lora_weights(str(file.parent), weight_name=file.name)
            made.fuse_lora(components=[part for part in made._lora_loadable_modules if getattr(made, part, None)])
            made.unload_lora_weights()

        self.folder.loaded(f"lora {file}", load)

    def read_table(self) -> None:
        """The levels of a discrete prior.  Whatever sampler it ships with, only noise table and prediction type matter here."""
        from diffusers import DDPMScheduler

        load = lambda: DDPMScheduler.from_pretrained(self.folder.path, subfolder="scheduler")  # noqa: E731
        self.scheduler = self.folder.loaded("scheduler", load)
        if reason := unsound(self.scheduler.alphas_cumprod):
            raise ConfigError(f"model {self.folder}: scheduler has no sound noise table: {reason}")
        self.levels = Table(self.scheduler.alphas_cumprod, self.device)
        self.prediction = self.scheduler.config.prediction_type

    def read_path(self) -> None:
        """The levels of a flow."""
        self.levels = Flow(int(self.folder.config("scheduler").get("num_train_timesteps", 1000)))
        self.prediction = "flow"

    # ---- what a family says ----------------------------------------------------------------------------------------

    @abstractmethod
    def embed_prompts(self, prompts: list[str]) -> Float[Tensor, "prompts tokens width"]:
        """All that the network is told, one row a prompt.  Raises ConfigError for a prompt that is too long."""

    @abstractmethod
    def output(self, noisy: Tensor, t: Tensor, words: Tensor, network: Network) -> Tensor:
        """What ``network`` (itself or compiled) predicts, a number for each of the latent's."""

    @abstractmethod
    def activation(self, noisy: Tensor, t: Tensor, words: Tensor, point: int | str) -> Float[Tensor, "b channels fh fw"]:
        """The feature map at ``point``; the pass stops there.  Raises ConfigError for a point that the network lacks."""

    def point(self, settings: FeatureSettings) -> int | str:
        """Which point these settings mean."""
        return self.folder.point(settings)

    def time(self, share: float) -> float:
        """The prior's own time at which it sees as much noise as Stable Diffusion at this share of its steps."""
        return self.levels.time(stable_diffusion(share))

    # ---- what all share --------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Length of the noise table (num_train_timesteps, 1000 for SD)."""
        return self.levels.steps

    @property
    def cell(self) -> int:
        """Pixels per latent cell along a side (8 for SD)."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def channels(self) -> int:
        """Channels of a latent (4 for SD)."""
        return int(self.vae.config.latent_channels)

    @torch.inference_mode()
    def encode(
        self, images: Float[Tensor, "b 3 height width"], noise: Float[Tensor, "b 4 h w"] | None = None
    ) -> Float[Tensor, "b 4 h w"]:
        """Scaled VAE latents: the posterior mean, or with standard normal ``noise`` a sample."""
        posterior = self.vae.encode(images.to(self.device, self.vae.dtype)).latent_dist
        latents = posterior.mean.float()
        if noise is not None:
            latents = latents + posterior.std.float() * noise.to(self.device)
        shift = self.vae.config.get("shift_factor") or 0.0
        return (latents - shift) * self.vae.config.scaling_factor

    def add_noise(
        self, latents: Float[Tensor, "b 4 h w"], noise: Float[Tensor, "b 4 h w"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b 4 h w"]:
        """z = alpha x + sigma eps (paper 3.1)."""
        alpha, sigma = self.levels.sides(t)
        return alpha * latents + sigma * noise

    @torch.inference_mode()
    def predict_noise(
        self, noisy: Float[Tensor, "b 4 h w"], t: Float[Tensor, " b"], words: Float[Tensor, "b tokens width"]
    ) -> Float[Tensor, "b 4 h w"]:
        """eps_theta(z, t, words) in float32, whatever the network predicts."""
        output = self.output(noisy, t, words, self.network if self.forward is None else self.forward).float()
        return noise_from(self.prediction, output, noisy, *self.levels.sides(t))

    @torch.inference_mode()
    def features(
        self, noisy: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], words: Float[Tensor, "b tokens width"], point: int | str
    ) -> Float[Tensor, "b channels fh fw"]:
        """The network's activation at ``point`` (DIFT), in float32; the pass stops there.  Raises ConfigError."""
        return self.activation(noisy, t, words, point).float()

    def stopped(self, module: torch.nn.Module, run: Callable[[], Any], inside: bool = False) -> Any:
        """What ``module`` gives in this run, or (``inside``) is given; the run ends there."""

        def stop(output: Any) -> None:
            raise _Reached(module, output)

        if inside:
            handle = module.register_forward_pre_hook(
                lambda _, args, named: stop(args[0] if args else named["hidden_states"]), with_kwargs=True
            )
        else:
            handle = module.register_forward_hook(lambda _module, _inputs, output: stop(output))
        try:
            run()
        except _Reached as reached:
            if reached.module is not module:  # one run inside another
                raise
            return reached.output
        finally:
            handle.remove()
        raise AssertionError("the network ended before the hooked block")


class _Reached(Exception):
    """Carries what a module gives out of a network whose remaining modules are not needed."""

    def __init__(self, module: torch.nn.Module, output: Any):
        super().__init__()
        self.module, self.output = module, output


def _whole(folder: ModelFolder, part: str, kind: Any, options: dict[str, Any]) -> Any:
    """A part with every weight from its file: one that is missing would be random, one too many belongs to another network.

    Raises ConfigError naming the first of them.  A VAE's decoder is not needed, nor what else a CLIP or T5 file holds.
    """
    options = {**options, "use_safetensors": True, "low_cpu_mem_usage": True, "output_loading_info": True}
    network, told = folder.loaded(part, lambda: kind.from_pretrained(folder.path, subfolder=part, **options))
    needless = re.compile(NEEDLESS.get("vae" if part == "vae" else "text" if part in folder.kind.texts else "", r"(?!)"))
    missing, other = (
        sorted(str(key) for key in told[keys] if not known.match(str(key)))
        for keys, known in (("missing_keys", UNASKED), ("unexpected_keys", needless))
    )
    shapes = sorted(str(key[0] if isinstance(key, tuple) else key) for key in told.get("mismatched_keys", ()))
    for what, names in (("lacks", missing), ("has other shapes of", shapes), ("holds, beside its own weights,", other)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ConfigError(
                f"model {folder}: {part} {what} {', '.join(names[:3])}{more}; its file and its config.json differ"
            )
    return network
