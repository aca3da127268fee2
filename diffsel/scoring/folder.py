"""A model's folder in diffusers layout: found or fetched, and checked to be what it seems before anything is computed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..settings.errors import ConfigError
from ..settings.sections import ModelSettings
from .nats import unit_of

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
EMBEDDED = {"demo": "demo-sd", "cifar10": "cifar10-sd"}  # names of --model -> folder in assets
# The embedded models were laid out anew (text_model. keys, vocab.json and merges.txt): digest -> the one that runs recorded.
RENAMED = {
    "8d83e31b1091d3055a6097a0df4350fc": "d08c3a38800e9167d38f08da06272c5f",
    "4ba023ebbf47bf4cee3ce6cd1792de35": "7cb058e48c7c4ea0eea69941a85893dd",
}
# Weights in the default precision only: no .bin pickles, no fp16 or non-EMA copies.
WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
WANTED = "wanted is a Stable Diffusion 1.x or 2.x text-to-image model"
# What an SD 1.x / 2.x U-Net has not: setting -> what a model with it is.
FOREIGN = {
    "class_embed_type": "a class-conditioned U-Net (unCLIP, upscaler)",
    "num_class_embeds": "a class-conditioned U-Net (upscaler)",
    "encoder_hid_dim_type": "a U-Net with image or other conditions (Kandinsky, DeepFloyd, IP-Adapter)",
    "time_cond_proj_dim": "a guidance- or step-distilled model (LCM), which predicts no posterior mean",
}
DISTILLED = re.compile(r"(?<![a-z])(turbo|lightning|hyper|lcm)(?![a-z])", re.I)  # in the names of such models


def locate(settings: ModelSettings, fetch: bool = True) -> ModelFolder:
    """The local folder of a model, fetched from the hub where needed (only the parts and files that are used), if at all.

    Raises ConfigError for a folder that is not in diffusers layout, or an id that cannot be fetched.
    """
    if settings.model in EMBEDDED:
        path = Path(str(files("diffsel") / "assets" / EMBEDDED[settings.model]))
    elif Path(settings.model).is_file():
        raise ConfigError(
            f"model.model = {settings.model!r} is a single file; convert it to a folder in diffusers layout first"
        )
    elif Path(settings.model).is_dir():
        path = Path(settings.model)
    else:
        path = _fetch(settings, fetch)
    if missing := [part for part in PARTS if not (path / part).is_dir()]:
        raise ConfigError(
            f"model {path}: not in diffusers layout, {', '.join(missing)} missing (single-file checkpoints: convert first)"
        )
    return ModelFolder(path)


def _fetch(settings: ModelSettings, fetch: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ("*.json", "*.txt", "*model.safetensors", "*-of-*.safetensors")
    try:
        patterns = [f"{part}/{name}" for part in PARTS for name in wanted]
        return Path(
            snapshot_download(settings.model, revision=settings.revision, allow_patterns=patterns, local_files_only=not fetch)
        )
    except HFValidationError:
        raise ConfigError(f"model.model = {settings.model!r}: no such folder, and not a hub id") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(f"model.model = {settings.model!r}: no such folder, and not fetched from the hub: {error}") from None


@dataclass(frozen=True)
class ModelFolder:
    """A folder with the five parts of a pipeline."""

    path: Path

    family = "sd"  # which file of priors/ knows it

    def __str__(self) -> str:
        return str(self.path)

    @cached_property
    def digest(self) -> str:
        """A hash of every file that decides what the model computes, wherever it lies."""
        state = hashlib.blake2b(digest_size=16)
        for part in PARTS:
            for file in sorted((self.path / part).iterdir()):
                if file.suffix in (".json", ".txt") or WEIGHTS.fullmatch(file.name):
                    state.update(f"{part}/{file.name}\0".encode())
                    with file.open("rb") as stream:
                        while chunk := stream.read(1 << 24):
                            state.update(chunk)
        return RENAMED.get(state.hexdigest(), state.hexdigest())

    def config(self, part: str) -> dict[str, Any]:
        """Raises ConfigError where it is missing or damaged."""
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        try:
            found = json.loads((self.path / part / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"model {self}: {part}/{name}: {error}") from None
        if not isinstance(found, dict):
            raise ConfigError(f"model {self}: {part}/{name} holds no settings")
        return found

    # ---- what kind of model it is ----------------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse, by what the folder says of itself, models that only look like SD 1.x / 2.x.  Raises ConfigError."""
        for part, name in CLASSES.items():
            if (found := self.config(part).get("_class_name", name)) != name:
                self._refuse(part, f"is a {found}, not a {name}")
        self._check_unet(self.config("unet"))
        self._check_text(self.config("text_encoder"), self.config("unet"))
        self._check_scheduler(self.config("scheduler"))
        for part in ("unet", "vae", "text_encoder"):
            self._check_weights(part)

    def _refuse(self, part: str, reason: str) -> None:
        raise ConfigError(f"model {self}: {part} {reason}; {WANTED}")

    def _check_unet(self, unet: dict[str, Any]) -> None:
        latent = self.config("vae").get("latent_channels")
        if unet.get("in_channels") != latent:
            told = f"takes {unet.get('in_channels')} channels, but the VAE gives {latent}; inpainting models cannot be used"
            self._refuse("unet", told)
        if (added := unet.get("addition_embed_type")) not in (None, "text"):
            self._refuse("unet", f"takes added conditions ({added}), as SDXL does")
        for key, kind in FOREIGN.items():
            if unet.get(key) is not None:
                self._refuse("unet", f"has {key} = {unet[key]!r}: {kind}")

    def _check_text(self, text: dict[str, Any], unet: dict[str, Any]) -> None:
        kinds = text.get("architectures") or [text.get("model_type", "?")]
        if not str(kinds[0]).lower().replace("_", "").startswith("cliptextmodel"):
            self._refuse("text_encoder", f"is a {kinds[0]}, not a CLIPTextModel")
        for key in ("max_position_embeddings", "hidden_size", "vocab_size"):
            if not isinstance(text.get(key), int):
                self._refuse("text_encoder", f"says no {key} in config.json")
        if unet.get("cross_attention_dim") != text["hidden_size"]:
            told = f"gives {text['hidden_size']} numbers a word, but the U-Net takes {unet.get('cross_attention_dim')}"
            self._refuse("text_encoder", told)

    def _check_scheduler(self, scheduler: dict[str, Any]) -> None:
        betas = scheduler.get("trained_betas") or all(key in scheduler for key in ("beta_start", "beta_end", "beta_schedule"))
        if not betas or "Flow" in scheduler.get("_class_name", "") or "EDM" in scheduler.get("_class_name", ""):
            told = f"({scheduler.get('_class_name', '?')}) has no beta schedule: a flow-matching or EDM model"
            self._refuse("scheduler", told)
        if (kind := scheduler.get("prediction_type", "epsilon")) not in ("epsilon", "v_prediction", "sample"):
            self._refuse("scheduler", f"has prediction_type {kind!r}; known: epsilon, v_prediction, sample")

    def _check_weights(self, part: str) -> None:
        there = sorted(file.name for file in (self.path / part).iterdir())
        if not any(WEIGHTS.fullmatch(name) for name in there):
            held = ", ".join(name for name in there if name != "config.json") or "nothing"
            name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
            raise ConfigError(
                f"model {self}: {part} holds no weights in full precision ({name}.safetensors); it holds {held} "
                "(fp16-only or .bin-only copies: save them again with `save_pretrained`)"
            )

    @property
    def distilled(self) -> str:
        """Why this seems to be a step-distilled model, which predicts no posterior mean; empty where nothing says so."""
        kind = self.config("scheduler").get("_class_name", "")
        if kind in ("LCMScheduler", "TCDScheduler"):
            return f"its scheduler is a {kind}"
        cached = [part for part in self.path.parts if part.startswith("models--")]  # of the hub's cache
        names = [str(self.config("unet").get("_name_or_path", "")), self.path.name, *cached]
        found = next(filter(None, map(DISTILLED.search, names)), None)
        return f"its name says {found[0]!r}" if found else ""

    def unit(self, edges: Sequence[float]) -> dict[str, float | list[float]] | None:
        """What turns its scores into nats, where that can be told (nats.py); ``edges`` of the stored bins."""
        return unit_of(self.config("scheduler"), self.config("vae"), edges)

    # ---- words -----------------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """Raises ConfigError for one without a vocabulary, or with more words than the text encoder knows."""
        from transformers import CLIPTokenizer

        there = {file.name for file in (self.path / "tokenizer").iterdir()}
        if not ("tokenizer.json" in there or {"vocab.json", "merges.txt"} <= there):
            held = ", ".join(sorted(there)) or "nothing"
            wanted = "tokenizer.json, or vocab.json and merges.txt"
            raise ConfigError(f"model {self}: tokenizer holds {held}, but no vocabulary; wanted is {wanted}")
        found = self.loaded("tokenizer", lambda: CLIPTokenizer.from_pretrained(self.path, subfolder="tokenizer"))
        known = int(self.config("text_encoder")["vocab_size"])
        if len(found) > known or found("cat", verbose=False)["input_ids"] == found("dog", verbose=False)["input_ids"]:
            raise ConfigError(
                f"model {self}: tokenizer has {len(found)} words, which are not those of the text encoder ({known} words)"
            )
        return found

    def loaded(self, part: str, load: Callable[[], Any]) -> Any:
        """What ``load`` gives; whatever the library raises on a damaged part becomes a ConfigError that names it."""
        try:
            return load()
        except Exception as error:  # diffusers, transformers and safetensors raise nearly anything on damaged files
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"model {self}: {part} does not load ({type(error).__name__}: {reason})") from None

    @property
    def positions(self) -> int:
        """Longest prompt, tokens: 77 for SD."""
        return min(int(self.tokenizer.model_max_length), int(self.config("text_encoder")["max_position_embeddings"]))

    def check_prompts(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Refuse (label prompt, null prompt) pairs that cannot tell a class.

        Raises ConfigError for a prompt beyond the text encoder's limit, which would be cut, and for a label prompt that is
        the null prompt, or the same tokens.
        """
        for label, null in pairs:
            tokens = {text: self.tokens(text) for text in (label, null)}
            if tokens[label] == tokens[null]:
                alike = "says the same as" if label == null else "has the very tokens of"
                raise ConfigError(
                    f"prompt {label!r} {alike} the null prompt {null!r}; put {{label}} or another word of the class into it"
                )

    def tokens(self, prompt: str) -> list[int]:
        """Raises ConfigError for a prompt that is too long."""
        found = list(self.tokenizer(prompt, verbose=False)["input_ids"])
        if len(found) > self.positions:
            raise ConfigError(f"prompt {prompt!r} has {len(found)} tokens, the model takes {self.positions}; shorten it")
        return found

    def check_up_block(self, up_block: int) -> None:
        """Raises ConfigError for an up block that the U-Net does not have."""
        count = len(self.config("unet")["up_block_types"])
        if up_block >= count:
            raise ConfigError(f"features.up_block = {up_block}: this U-Net has blocks 0 to {count - 1}")
