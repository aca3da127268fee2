"""Every knob of diffsel, with its unit and its source.

Sections are frozen and refuse unknown keys; a wrong key or value is answered with what would be right.  A field
marked ``execution`` changes only how fast a result is computed (to rounding), so it is no part of a fingerprint.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
Estimator = Literal["differential", "gap", "combined"]
EXECUTION: dict[str, Any] = {"execution": True}


class DiffselError(Exception):
    """Every foreseeable error: its message alone must tell a user what to do."""


class ConfigError(DiffselError, ValueError):
    """A setting that cannot be used; the message names it and says what would be right."""


class DataError(DiffselError, ValueError):
    """Images or classes that cannot be used; the message names the file or folder and what would be right."""


class UnreadableImage(DataError):
    """One file that is no image, or a broken one: it is listed and passed over."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class DataSettings(Section):
    """Which images take part, and at what size the model sees them."""

    image_size: int = Field(256, ge=8, description="Shortest side after resizing, pixels; aspect is kept (paper A.1).")
    classes: tuple[str, ...] | None = Field(None, description="Only these classes, in this order (folder names).")
    classes_sha256: str | None = Field(None, description="Hash of the class list, checked where given (presets).")
    class_file: str | None = Field(None, description="classes.yaml: folder -> name, wnid, words. Default: DATA's own.")
    images_per_class: int | None = Field(None, ge=1, description="Seeded cap; 300 come near the full set (Fig. 7).")
    split: str = Field("train", description="Split of a `datasets` data set.")
    max_pixels: int = Field(178_956_970, ge=1, description="Larger images are passed over and listed, pixels.")
    max_aspect: float = Field(8.0, ge=1, description="Images with longer side / shorter side above this are passed over.")

    @model_validator(mode="after")
    def _same_list(self) -> Self:
        if self.classes_sha256 and self.classes and hash_classes(self.classes) != self.classes_sha256:
            raise ValueError(f"data.classes does not match classes_sha256 (it hashes to {hash_classes(self.classes)})")
        if self.classes and len(set(self.classes)) != len(self.classes):
            raise ValueError("data.classes names a class twice")
        return self


class ModelSettings(Section):
    """Which diffusion model predicts the noise."""

    model: str = Field(SD15, description="Hub id, a folder in diffusers layout, or `demo` (the embedded checkpoint).")
    revision: str | None = Field(None, description="Hub branch, tag or commit.")


class ComputeSettings(Section):
    """Where and how fast; only ``precision`` changes results beyond rounding."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps ...", json_schema_extra=EXECUTION)
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field(
        "auto", description="Of the networks; auto: fp32. Losses are always subtracted in fp32."
    )
    batch_size: int = Field(16, ge=1, description="U-Net samples per forward, prompts included.", json_schema_extra=EXECUTION)
    workers: int = Field(4, ge=1, description="Threads that read and decode images.", json_schema_extra=EXECUTION)


class ScoringSettings(Section):
    """Loss maps and gap maps (paper 3.1)."""

    prompts: tuple[str, ...] = Field(("An image of {label}.",), min_length=1, description="Label prompt template(s).")
    null_prompt: str = Field("An image of .", description="Prompt without the label.")
    t_min: float = Field(0.1, ge=0, lt=1, description="Lower end of the timesteps, share of the training steps (A.1).")
    t_max: float = Field(0.7, gt=0, le=1, description="Upper end of the timesteps, share of the training steps (A.1).")
    bins: int = Field(3, ge=1, description="Equal parts of [t_min, t_max] whose maps are stored apart.")
    draws: int = Field(12, ge=1, description="(timestep, noise) pairs per image, stratified; a multiple of bins.")
    posterior: Literal["mean", "sample"] = Field("mean", description="VAE latent: posterior mean, or a keyed sample.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.t_min >= self.t_max:
            raise ValueError(f"scoring.t_min ({self.t_min}) must lie below scoring.t_max ({self.t_max})")
        if self.draws % self.bins:
            near = max(self.bins, round(self.draws / self.bins) * self.bins)
            raise ValueError(f"scoring.draws ({self.draws}) must be a multiple of scoring.bins ({self.bins}), say {near}")
        if len(set(self.prompts)) != len(self.prompts):
            raise ValueError("scoring.prompts names a prompt twice")
        return self

    def bin_edges(self) -> list[float]:
        return [self.t_min + (self.t_max - self.t_min) * i / self.bins for i in range(self.bins + 1)]


class PatchSettings(Section):
    """How stored maps become patch scores and boxes; read at selection time, no U-Net needed."""

    patch_size: int | None = Field(
        None,
        ge=0,
        description="Side, pixels of the resized image; default 7/8 of image_size (224 of 256, B.2); 0: whole image.",
    )
    stride: int = Field(1, ge=1, description="Step between candidate patches, pixels; the last one is always included.")
    per_image: int = Field(1, ge=1, description="Best non-overlapping patches kept of each image.")
    estimator: Estimator = Field("combined", description="differential: the paper's -D; gap: G; combined: (1-w) G - w D.")
    weight: float = Field(0.1, ge=0, le=1, description="w of the combined estimator; 0.1: measured, see RESULTS.md.")
    prompt: int = Field(0, ge=0, description="Which of the stored prompts scores, counted from 0.")
    t_range: tuple[float, float] | None = Field(None, description="Only the stored bins inside this range (Tab. 6).")


class FeatureSettings(Section):
    """The vector of a patch (paper 3.2)."""

    kind: Literal["dift", "clip"] = Field("dift", description="U-Net activation, or CLIP image features (Tab. 5).")
    timestep: float = Field(0.16, gt=0, lt=1, description="DIFT step, share of the training steps (A.1; Fig. 6).")
    up_block: int = Field(1, ge=0, description="Up block of the U-Net whose output is taken.")
    ensemble: int = Field(1, ge=1, description="Noises averaged per patch (DIFT uses 8).")
    pooling: Literal["crop", "box"] = Field("crop", description="Crop the patch first, or pool inside the box.")
    clip_model: str = Field("openai/clip-vit-large-patch14", description="Hub id or folder, for kind = clip.")


class SelectionSettings(Section):
    """Clusters, ranks and picks (paper 3.2, B.1)."""

    method: Literal["diffsel", "diffsel-noclusters"] = Field("diffsel", description="With or without clusters (Tab. 5).")
    clusters: int = Field(32, ge=1, description="K of K-means, per class (Fig. 8).")
    top_clusters: int = Field(10, ge=1, description="N best clusters that give patches (Fig. 8).")
    restarts: int = Field(4, ge=1, description="K-means starts per class; the best inertia is kept.")


class AssemblySettings(Section):
    """Pictures of the distilled set (paper B.1, B.2)."""

    size: int = Field(224, ge=8, description="Side of a distilled image, pixels.")
    factor: int = Field(
        0, ge=0, description="Patches per mosaic side; 0: 2 at IPC <= 10, else 1 (paper 3.2), and 1 where a class is too small."
    )
    format: Literal["png", "jpeg"] = Field("png", description="File format of the distilled images.")
    quality: int = Field(95, ge=1, le=100, description="JPEG quality, for format = jpeg.")

    def factor_at(self, ipc: int) -> int:
        return self.factor or (2 if ipc <= 10 else 1)


class Settings(Section):
    """All sections; what a YAML settings file may hold."""

    seed: int = Field(0, ge=0, description="Seeds the image cap, the noise, K-means and random baselines.")
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    compute: ComputeSettings = ComputeSettings()
    scoring: ScoringSettings = ScoringSettings()
    patches: PatchSettings = PatchSettings()
    features: FeatureSettings = FeatureSettings()
    selection: SelectionSettings = SelectionSettings()
    assembly: AssemblySettings = AssemblySettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.patches.patch_size is None:
            sized = self.patches.model_copy(update={"patch_size": self.data.image_size * 7 // 8})
            object.__setattr__(self, "patches", sized)
        elif self.patches.patch_size > self.data.image_size:
            raise ValueError(
                f"patches.patch_size ({self.patches.patch_size}) must not exceed data.image_size "
                f"({self.data.image_size}); 0 means the whole image"
            )
        if self.patches.patch_size and self.patches.patch_size < 8:
            raise ValueError(f"patches.patch_size ({self.patches.patch_size}) must be 0 or at least 8 pixels")
        if self.assembly.factor > self.assembly.size // 8:
            raise ValueError(f"assembly.factor ({self.assembly.factor}) must leave tiles of at least 8 pixels")
        if self.patches.prompt >= len(self.scoring.prompts):
            raise ValueError(
                f"patches.prompt is {self.patches.prompt}, but only {len(self.scoring.prompts)} prompts are scored"
            )
        return self


def hash_classes(classes: tuple[str, ...]) -> str:
    """sha256 of the folder names joined by newlines, order included."""
    return hashlib.sha256("\n".join(classes).encode()).hexdigest()


def load_settings(files: list[Path], flags: Mapping[str, Any] | None = None, base: Mapping[str, Any] | None = None) -> Settings:
    """``base``, over it YAML files (later ones win), over them flags ``{"section.field": value}``.

    Raises ConfigError naming the file, the key and the nearest valid one.
    """
    merged: dict[str, Any] = {}
    _merge(merged, base or {})
    for file in files:
        try:
            part = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"settings file {file}: {error}") from None
        if not isinstance(part, dict):
            raise ConfigError(f"settings file {file}: expected sections such as `scoring:`, found {type(part).__name__}")
        try:
            resolve(part, alone=True)
        except ConfigError as error:
            raise ConfigError(f"settings file {file}: {error}") from None
        _merge(merged, part)
    for key, value in (flags or {}).items():
        *section, field = key.split(".")
        _merge(merged, {section[0]: {field: value}} if section else {field: value})
    return resolve(merged)


def resolve(values: Mapping[str, Any], alone: bool = False) -> Settings:
    """Settings from nested values.  Raises ConfigError.

    ``alone``: one file of several, in which keys and types must be right; rules between fields wait for the others.
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        errors = [each for each in error.errors() if not alone or each["type"] != "value_error"]
        if errors:
            raise ConfigError("; ".join(_explain(each) for each in errors)) from None
        return Settings()


def identity(section: Section) -> dict[str, Any]:
    """A section as plain values, without the fields that change only speed."""
    skip = {k for k, f in type(section).model_fields.items() if f.json_schema_extra == EXECUTION}
    return section.model_dump(mode="json", exclude=skip)


def without_execution(values: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded settings without those that belong to the machine they were recorded on."""
    return {**values, "compute": {"precision": values["compute"]["precision"]}}


def fingerprint(values: Any) -> str:
    """16 hex digits that stand for these plain values (dictionary order does not matter)."""
    canonical = json.dumps(values, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _merge(base: dict[str, Any], extra: Mapping[str, Any]) -> None:
    for key, value in extra.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = dict(value) if isinstance(value, Mapping) else value


def _explain(error: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        section = Settings.model_fields.get(str(error["loc"][0])) if len(error["loc"]) > 1 else None
        valid = list(section.annotation.model_fields if section else Settings.model_fields)  # type: ignore[union-attr]
        near = difflib.get_close_matches(str(error["loc"][-1]), valid, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(valid)}"
        return f"unknown setting {where!r}; {hint}"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{where} = {error['input']!r}: {message}" if where and "must" not in message else message
