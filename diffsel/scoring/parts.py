"""A model's parts in a folder in diffusers layout: read, hashed, and checked to be what they seem."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..settings.errors import ConfigError
from ..settings.yamls import from_json, read_text
from .families import SERVED, T5, Family, distilled, family_of

LOG = logging.getLogger(__name__)
# An embedded model was laid out anew (text_model. keys, vocab.json and merges.txt): digest -> the one that runs recorded.
RENAMED = {
    "4ba023ebbf47bf4cee3ce6cd1792de35": "7cb058e48c7c4ea0eea69941a85893dd",
}
# Weights in the default precision only: no .bin pickles, no fp16 or non-EMA copies.
WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
FLOATS = ("F32", "F16", "BF16", "F64")  # of weights; as safetensors calls them
COUNTERS = ("position_ids", "num_batches_tracked")  # whole numbers beside them
WANTED = f"wanted is a text-to-image or class-conditional model: {SERVED}"
# What a text-to-image U-Net has not: setting -> what a model with it is.
FOREIGN = {
    "class_embed_type": "a class-conditioned U-Net (unCLIP, upscaler)",
    "num_class_embeds": "a class-conditioned U-Net (upscaler)",
    "encoder_hid_dim_type": "a U-Net with image or other conditions (Kandinsky, DeepFloyd, IP-Adapter)",
    "time_cond_proj_dim": "a guidance- or step-distilled model (LCM), which predicts no posterior mean",
}


def dtypes(file: Path) -> dict[str, str]:
    """Of every weight in a .safetensors file, as its head tells."""
    with safe_open(file, framework="numpy") as opened:
        return {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no setting")


def _hash(state: hashlib.blake2b, name: str, file: Path) -> None:
    state.update(f"{name}\0".encode())
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 24):
            state.update(chunk)


@dataclass(frozen=True)
class Parts:
    """A folder with the parts of a pipeline."""

    path: Path
    lora: Path | None = None  # weights on top

    def __str__(self) -> str:
        return str(self.path)

    @cached_property
    def index(self) -> dict[str, Any]:
        """model_index.json; where there is none, as of Stable Diffusion.  Raises ConfigError where it is damaged."""
        if not (self.path / "model_index.json").exists():
            return {"_class_name": "StableDiffusionPipeline"}
        return self._read("model_index.json")

    @cached_property
    def kind(self) -> Family:
        """Raises ConfigError for a model of no family, with the reason."""
        found = family_of(str(self.index.get("_class_name")))
        if isinstance(found, str):
            raise ConfigError(f"model {self} {found}")
        return found

    @property
    def family(self) -> str:
        """Which file of priors/ knows it."""
        return self.kind.name

    @cached_property
    def digest(self) -> str:
        """A hash of every file that decides what the model computes, wherever it lies."""
        state = hashlib.blake2b(digest_size=16)
        for part in self.kind.parts:
            for file in sorted((self.path / part).iterdir()):
                if file.suffix in (".json", ".txt", ".model") or WEIGHTS.fullmatch(file.name):
                    _hash(state, f"{part}/{file.name}", file)
        if "id2label" in self.index:
            state.update(json.dumps(self.index["id2label"], sort_keys=True).encode())
        if self.lora:
            _hash(state, "lora", self.lora)
        return RENAMED.get(state.hexdigest(), state.hexdigest())

    def config(self, part: str) -> dict[str, Any]:
        """Raises ConfigError where it is missing or damaged."""
        return self._read(f"{part}/scheduler_config.json" if part == "scheduler" else f"{part}/config.json")

    def size_notes(self, side: int) -> list[str]:
        """What a user should know of images of ``side`` pixels: that the network was made for smaller ones, where it tells."""
        size, blocks = self.config(self.kind.network).get("sample_size"), self.config("vae").get("block_out_channels", [0])
        own = size << (len(blocks) - 1) if isinstance(size, int) else side
        asked = f"images are scored at {side} (--image-size {own} asks for its own)"
        return [f"the model was made for images of {own} pixels; {asked}"] if own < side else []

    def warn_of_size(self, side: int) -> None:
        """Log ``size_notes``: at once, since they make a pass long."""
        for note in self.size_notes(side):
            LOG.warning("note: %s", note)

    def text_config(self, part: str) -> dict[str, Any]:
        """Of a text encoder, which may be told beside a decoder's.  Raises ConfigError as ``config`` does."""
        found = self.config(part)
        return dict(found.get("encoder", found))

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found = from_json(read_text(self.path / name), parse_constant=_no_number)
        except (OSError, ValueError) as error:
            raise ConfigError(f"model {self}: {name}: {error}") from None
        if not isinstance(found, dict):
            raise ConfigError(f"model {self}: {name} holds no settings")
        return found

    def loaded(self, part: str, load: Callable[[], Any]) -> Any:
        """What ``load`` gives; whatever the library raises on a damaged part becomes a ConfigError that names it."""
        try:
            return load()
        except Exception as error:  # diffusers, transformers and safetensors raise nearly anything on damaged files
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"model {self}: {part} does not load ({type(error).__name__}: {reason})") from None

    # ---- what kind of model it is ----------------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse, by what the folder says of itself, models that only look like one of a family.  Raises ConfigError."""
        kind = self.kind
        for part, names in ((kind.network, kind.kinds), ("vae", ("AutoencoderKL",))):
            if (found := self.config(part).get("_class_name", names[0])) not in names:
                self._refuse(part, f"is a {found}, not a {names[0]}")
        network, scheduler = self.config(kind.network), self.config("scheduler")
        named = [self.path.name, *(each for each in self.path.parts if each.startswith("models--"))]  # of the hub's cache
        named += [each.get("_name_or_path", "") for each in (self.index, network)]
        if told := distilled(named, network, str(scheduler.get("_class_name"))):
            raise ConfigError(f"model {self} {told}")
        self._check_network(network)
        if kind.texts:
            self._check_text(network)
        self._check_scheduler(scheduler)
        self._check_scale(self.config("vae"))
        for part in (kind.network, "vae", *kind.texts):
            self._check_weights(part)

    def _refuse(self, part: str, reason: str) -> None:
        raise ConfigError(f"model {self}: {part} {reason}; {WANTED}")

    def _check_network(self, network: dict[str, Any]) -> None:
        part, latent = self.kind.network, self.config("vae").get("latent_channels")
        if network.get("in_channels") != latent:
            told = f"takes {network.get('in_channels')} channels, but the VAE gives {latent}; inpainting models cannot be used"
            self._refuse(part, told)
        added, own = network.get("addition_embed_type"), ("text_time",) if self.family == "sdxl" else (None, "text")
        if part == "unet" and added not in own:
            self._refuse(part, f"takes added conditions ({added}), as SDXL does" if added else "takes no added conditions")
        for key, kind in FOREIGN.items():
            if network.get(key) is not None:
                self._refuse(part, f"has {key} = {network[key]!r}: {kind}")

    def _check_text(self, network: dict[str, Any]) -> None:
        widths = {}
        for part, (wanted, _) in self.kind.texts.items():
            text = self.text_config(part)
            kinds = text.get("architectures") or [text.get("model_type", "?")]
            if not str(kinds[0]).lower().replace("_", "").startswith(wanted.lower()):
                self._refuse(part, f"is a {kinds[0]}, not a {wanted}")
            width = "d_model" if wanted == T5 else "hidden_size"
            for key in (width, "vocab_size") if wanted == T5 else ("max_position_embeddings", width, "vocab_size"):
                if not isinstance(text.get(key), int):
                    self._refuse(part, f"says no {key} in config.json")
            widths[part] = text[width]
        gives = list(widths.values())[-1] if self.kind.flow else sum(widths.values())  # SD3: CLIP's are filled up to T5's
        if network.get(self.kind.width) != gives:
            what = "U-Net" if self.kind.network == "unet" else "transformer"
            self._refuse(part, f"gives {gives} numbers a word, but the {what} takes {network.get(self.kind.width)!r}")

    def _check_scheduler(self, scheduler: dict[str, Any]) -> None:
        name = str(scheduler.get("_class_name", "?"))
        if self.kind.flow:
            if "Flow" not in name:
                self._refuse("scheduler", f"is a {name}, not one of flow matching")
            return
        betas = scheduler.get("trained_betas") or all(key in scheduler for key in ("beta_start", "beta_end", "beta_schedule"))
        if not betas or "Flow" in name or "EDM" in name:
            self._refuse("scheduler", f"({name}) has no beta schedule: a flow-matching or EDM model")
        if (kind := scheduler.get("prediction_type", "epsilon")) not in ("epsilon", "v_prediction", "sample"):
            self._refuse("scheduler", f"has prediction_type {kind!r}; known: epsilon, v_prediction, sample")

    def _check_scale(self, vae: dict[str, Any]) -> None:
        unsaid = None if self.kind.flow or self.family == "sdxl" else 1.0  # old ones do not say it
        scale, shift = vae.get("scaling_factor", unsaid), vae.get("shift_factor") or 0.0
        numbers = [each for each in (scale, shift) if isinstance(each, int | float) and abs(each) < math.inf]
        if len(numbers) < 2 or numbers[0] <= 0:
            self._refuse("vae", f"has scaling_factor {scale!r}, shift_factor {shift!r}: no finite numbers, the first above 0")

    def _check_weights(self, part: str) -> None:
        there = sorted(file.name for file in (self.path / part).iterdir() if file.is_file())
        if not any(WEIGHTS.fullmatch(name) for name in there):
            held = ", ".join(name for name in there if name != "config.json") or "nothing"
            name = "model" if part in self.kind.texts else "diffusion_pytorch_model"
            raise ConfigError(
                f"model {self}: {part} holds no weights in full precision ({name}.safetensors); it holds {held} "
                "(fp16-only or .bin-only copies: save them again with `save_pretrained`)"
            )
        for name in (name for name in there if name.endswith(".index.json") and WEIGHTS.fullmatch(name)):
            named = self._read(f"{part}/{name}").get("weight_map")
            if odd := [each for each in (named or {}).values() if not WEIGHTS.fullmatch(str(each))]:  # ``digest`` knows no such
                self._refuse(part, f"has weights in {odd[0]}, as {name} says, not in diffusion_pytorch_model or model files")
        for file in (self.path / part / name for name in there if name.endswith(".safetensors") and WEIGHTS.fullmatch(name)):
            for name, kind in self.loaded(part, lambda file=file: dtypes(file)).items():  # type: ignore[misc]
                if kind not in FLOATS and not name.endswith(COUNTERS):
                    self._refuse(part, f"holds {name} as {kind}, not as one of {', '.join(FLOATS)}: a quantised copy")
