"""A model's folder in diffusers layout: found or fetched, and checked to be what it seems before anything is computed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.classes import imagenet_names, imagenet_wnids
from ..settings.errors import ConfigError
from ..settings.sections import FeatureSettings, ModelSettings, ScoringSettings
from ..settings.yamls import no_pipe
from .classids import ClassIds
from .families import CLIP, GEMMA, T5, distilled
from .nats import unit_of
from .parts import Parts

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

MANY = 100  # words of a vocabulary that are tried
EMBEDDED = {"demo": "demo-sd", "cifar10": "cifar10-sd"}  # names of --model -> folder in assets


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
        path = _fetch(settings.model, settings.revision, fetch)
    if found := distilled([settings.model], {}, ""):
        raise ConfigError(f"model {settings.model} {found}")
    parts = ModelFolder(path).kind.parts
    if missing := [part for part in parts if not (path / part).is_dir()]:
        raise ConfigError(
            f"model {path}: not in diffusers layout, {', '.join(missing)} missing (single-file checkpoints: convert first)"
        )
    for file in (file for part in parts for file in (path / part).iterdir()):  # whose readers would wait for a pipe
        try:
            no_pipe(file)
        except OSError as error:
            raise ConfigError(f"model {path}: {error}") from None
    return ModelFolder(path, _lora(settings))


def _lora(settings: ModelSettings) -> Path | None:
    """The file of LoRA weights that is asked for, fetched where needed.  Raises ConfigError."""
    if settings.lora is None:
        return None
    found = Path(settings.lora)
    if not found.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", settings.lora):
        found = _get(settings.lora, None, True, "*.safetensors")
    held = sorted(found.glob("*.safetensors")) if found.is_dir() else [found]
    if len(held) != 1 or held[0].suffix != ".safetensors" or not held[0].is_file():
        there = ", ".join(file.name for file in held) or "none"
        raise ConfigError(
            f"model.lora = {settings.lora!r}: wanted is one .safetensors file, a folder with one, or a hub id ({there})"
        )
    return held[0]


@cache  # the hub may move on while a command is at work
def _fetch(name: str, revision: str | None, fetch: bool) -> Path:
    wanted = ("*.json", "*.txt", "*.model", "*model.safetensors", "*-of-*.safetensors")
    get = partial(_get, name, revision, fetch)
    parts = ModelFolder(get("model_index.json")).kind.parts  # refused here, before gigabytes are fetched
    return get("model_index.json", *(f"{part}/{name}" for part in parts for name in wanted))


def _get(name: str, revision: str | None, fetch: bool, *patterns: str) -> Path:
    """A hub repository's files of these names, where they lie.  Raises ConfigError."""
    from huggingface_hub import errors, snapshot_download

    asked: dict[str, Any] = {"allow_patterns": list(patterns), "ignore_patterns": ["*fp16*", "*non_ema*"]}
    try:
        return Path(str(snapshot_download(name, revision=revision, local_files_only=not fetch, **asked)))
    except errors.HFValidationError:
        why = "and not a hub id"
    except errors.LocalEntryNotFoundError:
        why = "nor fetched from the hub before"
        why += ", and the hub cannot be reached (no network, or HF_HUB_OFFLINE is set)" if fetch else ""
    except errors.GatedRepoError:
        why = "and the hub asks to accept its licence first: do so on its page, then `hf auth login`"
    except errors.RepositoryNotFoundError:
        why = "and the hub has none of this name, or it is private (`hf auth login`)"
    except errors.RevisionNotFoundError:
        why = f"and on the hub it has no revision {revision!r}"
    except (errors.HfHubHTTPError, OSError) as error:
        why = f"and not fetched from the hub: {str(error).splitlines()[0]}"
    raise ConfigError(f"model.model = {name!r}: no such folder, {why}")


@dataclass(frozen=True)
class ModelFolder(Parts):
    """A folder with the parts of a pipeline, and what its prior can be told and asked."""

    def placed(self, settings: ModelSettings) -> ModelSettings:
        """With whole paths, so that a run can be taken up from another folder."""
        found = {"model": str(self.path.resolve())} if Path(settings.model).is_dir() else {}
        return settings.model_copy(update=found | ({"lora": str(self.lora.resolve())} if self.lora else {}))

    def unit(self, scoring: ScoringSettings) -> dict[str, float | list[float]] | None:
        """What turns the scores of a pass into nats, where that can be told (nats.py)."""
        edges = scoring.bin_edges()
        return unit_of(self.config("scheduler"), self.config("vae"), edges, in_log_snr=scoring.log_snr is not None)

    # ---- words -----------------------------------------------------------------------------------------------------

    @cached_property
    def texts(self) -> list[tuple[str, Any, int]]:
        """Each text encoder: its folder, its tokenizer, and how many tokens it takes."""
        found = []
        for (part, (kind, most)), name in zip(self.kind.texts.items(), self.kind.tokenizers, strict=True):
            tokenizer = self._tokenizer(name, part, kind)
            found.append((part, tokenizer, self._most(tokenizer, part, kind, most)))
        return found

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The first text encoder's."""
        return self.texts[0][1]

    def _tokenizer(self, part: str, encoder: str, kind: str) -> Any:
        """Raises ConfigError for one without a vocabulary, or with more words than the text encoder knows."""
        from transformers import CLIPTokenizer, GemmaTokenizerFast, T5TokenizerFast

        there = {file.name for file in (self.path / part).iterdir()}
        own = {CLIP: {"vocab.json", "merges.txt"}, T5: {"spiece.model"}, GEMMA: {"tokenizer.model"}}[kind]
        if not ("tokenizer.json" in there or own <= there):
            held = ", ".join(sorted(there)) or "nothing"
            wanted = f"tokenizer.json, or {' and '.join(sorted(own, reverse=True))}"
            raise ConfigError(f"model {self}: {part} holds {held}, but no vocabulary; wanted is {wanted}")
        reader: Any = {CLIP: CLIPTokenizer, T5: T5TokenizerFast, GEMMA: GemmaTokenizerFast}[kind]
        found = self.loaded(part, lambda: reader.from_pretrained(self.path, subfolder=part))
        known, numbers = int(self.text_config(encoder)["vocab_size"]), found.get_vocab()
        alike = self.loaded(part, lambda: len({tuple(found(text, verbose=False)["input_ids"]) for text in ("cat", "dog")}) < 2)
        if alike or not 0 <= min(numbers.values()) <= max(numbers.values()) < known or len(found) > known:
            raise ConfigError(
                f"model {self}: {part} has {len(found)} words, which are not those of the text encoder ({known} words)"
            )
        words = [word for word in numbers if re.fullmatch("[a-z]{3,}</w>", word)][:MANY]  # of CLIP, each of which merges make
        whole = sum(numbers[word] in found(word.removesuffix("</w>"), verbose=False)["input_ids"] for word in words)
        if 2 * whole < len(words) or (kind == CLIP and not any(word.endswith("</w>") for word in numbers)):
            raise ConfigError(f"model {self}: {part} makes letters of words that it has; its vocabulary and its merges differ")
        return found

    def _most(self, tokenizer: Any, encoder: str, kind: str, most: int) -> int:
        if kind == T5:
            return 120 if self.index.get("_class_name") == "PixArtAlphaPipeline" else most
        return min(int(tokenizer.model_max_length), int(self.text_config(encoder)["max_position_embeddings"]))

    @property
    def positions(self) -> int:
        """Longest prompt, tokens: 77 for SD."""
        return min(most for _, _, most in self.texts)

    def check_prompts(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Refuse (label prompt, null prompt) pairs that cannot tell a class.

        Raises ConfigError for a class that a class-conditional prior lacks, for a prompt beyond the text encoder's limit,
        which would be cut, and for a label prompt that is the null prompt, or the same tokens.
        """
        for label, null in pairs:
            tokens = {text: self.tokens(text) for text in (label, null)}
            if tokens[label] == tokens[null]:
                alike = "says the same as" if label == null else "has the very tokens of"
                raise ConfigError(
                    f"prompt {label!r} {alike} the null prompt {null!r}; put {{label}} or another word of the class into it"
                )

    def tokens(self, prompt: str) -> list[int]:
        """Of the first text encoder; or the number of a class.  Raises ConfigError for a prompt that is too long."""
        if not self.kind.texts:
            return [self.class_number(prompt)]
        for _, tokenizer, most in self.texts:
            found = list(tokenizer(prompt, verbose=False)["input_ids"])
            if len(found) > most:
                raise ConfigError(f"prompt {prompt!r} has {len(found)} tokens, the model takes {most}; shorten it")
        return list(self.tokenizer(prompt, verbose=False)["input_ids"])

    def check_lengths(self, prompts: Iterable[str]) -> None:
        """Raises ConfigError for a prompt that is too long."""
        for prompt in prompts:
            self.tokens(prompt)

    # ---- classes ---------------------------------------------------------------------------------------------------

    @cached_property
    def classes(self) -> ClassIds:
        """Of a class-conditional prior; a thousand are ImageNet's.  Raises ConfigError for names of no such class."""
        names, told = self.index.get("id2label"), self.config("transformer").get("num_embeds_ada_norm")
        try:
            count = int(told)  # type: ignore[arg-type]
            if count != 1000:
                return ClassIds(names or {}, count)
            return ClassIds(names or {str(n): name for n, name in enumerate(imagenet_names())}, count, imagenet_wnids())
        except (AttributeError, TypeError, ValueError):
            raise ConfigError(
                f"model {self}: id2label of model_index.json must give names to numbers below num_embeds_ada_norm = {told!r}"
            ) from None

    def class_number(self, text: str) -> int:
        """The class that is meant, or the null.  Raises ConfigError where the prior lacks it."""
        if (found := self.classes.find(text)) is None:
            raise ConfigError(f"model {self} has no class {text!r}, or several; name it by its wnid, a name or a number")
        return found

    # ---- features --------------------------------------------------------------------------------------------------

    @property
    def points(self) -> list[str]:
        """Names of the points that features can be taken from, in the order of a pass."""
        network = self.config(self.kind.network)
        if self.kind.network == "unet":
            return [f"up.{n}" for n in range(len(network["up_block_types"]))]
        return [f"block.{n}" for n in range(int(network[self.kind.blocks]))]

    def check_point(self, point: int | str) -> int:
        """The number of a point, named or counted.  Raises ConfigError for one that the network does not have."""
        points = self.points
        if isinstance(point, str):
            if point not in points:
                raise ConfigError(f"features.point = {point!r}: this model has {points[0]} to {points[-1]}")
            return points.index(point)
        if point >= len(points):
            raise ConfigError(f"features.up_block = {point}: this U-Net has blocks 0 to {len(points) - 1}")
        return point

    def point(self, settings: FeatureSettings) -> int | str:
        """Which point these settings mean.  Raises ConfigError for one that the network does not have."""
        usual = self.points[self.kind.middle if self.kind.middle >= 0 else len(self.points) // 2]
        if self.family != "sd" and settings.up_block != FeatureSettings().up_block:
            raise ConfigError("features.up_block is of Stable Diffusion 1.x and 2.x; of this model give features.point")
        chosen = settings.point or (settings.up_block if self.family == "sd" else usual)
        self.check_point(chosen)
        return chosen
