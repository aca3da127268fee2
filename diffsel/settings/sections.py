"""The sections of the settings, one class each, and the errors that a user may meet.

Each field has its unit and its source.  Sections are frozen and refuse unknown keys.  A field marked ``execution``
changes only how fast a result is computed (to rounding), so it is no part of a fingerprint.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
Estimator = Literal["differential", "gap", "combined", "gated"]
Baseline = Literal["random", "rded", "el2n-easy", "el2n-hard", "forgetting", "ccs"]
Coreset = Literal["herding", "kcenter", "medoids"]
Method = Literal["diffsel", "diffsel-noclusters", Coreset, Baseline]
BASELINES = get_args(Baseline)  # need no scoring pass
CORESETS = get_args(Coreset)  # of vectors: those of a pass, or a teacher's
MOST_PIXELS = 16_384  # a side of any picture that is made: of more, one picture alone fills a memory
EXECUTION: dict[str, Any] = {"execution": True}


def added(neutral: Any) -> dict[str, Any]:
    """Marks a field that came after stored results: at ``neutral``, what was done before, fingerprints do without it."""
    return {"neutral": neutral}


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """What differs from the defaults."""
        defaults = type(self).model_fields
        yield from ((name, value) for name, value in super().__repr_args__() if name and value != defaults[name].default)


class DataSettings(Section):
    """Which images take part, and at what size the model sees them."""

    image_size: int = Field(
        256, ge=8, le=MOST_PIXELS, description="Shortest side after resizing, pixels; aspect is kept (paper A.1)."
    )
    side_multiple: int | None = Field(
        None, ge=1, description="Steps of the longer side, px; default image_size / 8; 1: any.", json_schema_extra=added(1)
    )
    classes: tuple[str, ...] | None = Field(None, description="Only these classes, in this order (folder names).")
    classes_sha256: str | None = Field(None, description="Hash of the class list, checked where given (presets).")
    class_file: str | None = Field(None, description="classes.yaml: folder -> name, wnid, words. Default: DATA's own.")
    images_per_class: int | None = Field(None, ge=1, description="Seeded cap; 300 come near the full set (Fig. 7).")
    split: str = Field("train", description="Split of a `datasets` data set, or slices: train[:50%]+test.")
    config: str | None = Field(None, description="Configuration of a `datasets` data set that has several.")
    revision: str | None = Field(None, description="Hub branch, tag or commit of a `datasets` data set.")
    image_column: str | None = Field(None, description="Column of the images; default: image, img, or the only one.")
    label_column: str | None = Field(None, description="Column of the labels; default: label, fine_label ..., or the only one.")
    cache_gb: float = Field(
        10.0, ge=0, description="GB at most of local copies of far images (in DIFFSEL_CACHE).", json_schema_extra=EXECUTION
    )
    max_pixels: int = Field(178_956_970, ge=1, description="Larger images are passed over and listed, pixels.")
    max_aspect: float = Field(8.0, ge=1, description="Images with longer side / shorter side above this are passed over.")

    @property
    def step(self) -> int:
        """``side_multiple`` in pixels."""
        return self.side_multiple or self.image_size // 8

    @model_validator(mode="after")
    def _same_list(self) -> Self:
        if self.classes_sha256 and self.classes and hash_classes(self.classes) != self.classes_sha256:
            raise ValueError(f"data.classes does not match classes_sha256 (it hashes to {hash_classes(self.classes)})")
        if self.classes and len(set(self.classes)) != len(self.classes):
            raise ValueError("data.classes names a class twice")
        return self


class ModelSettings(Section):
    """Which diffusion model predicts the noise."""

    model: str = Field(SD15, description="Hub id, a folder in diffusers layout, `demo` or `cifar10` (embedded).")
    revision: str | None = Field(None, description="Hub branch, tag or commit.")
    lora: str | None = Field(
        None, description="LoRA weights on top: a .safetensors file, or a hub id.", json_schema_extra=added(None)
    )


class ComputeSettings(Section):
    """Where and how fast; only ``precision`` changes results beyond rounding."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps ...", json_schema_extra=EXECUTION)
    precision: Literal["auto", "fp32", "tf32", "fp16", "bf16"] = Field(
        "auto", description="Of the networks; auto: fp16 to score on CUDA, else fp32; a RUN keeps its own. Losses: always fp32."
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        description="U-Net samples per forward, default 16 on a CPU, 64 on a GPU; halved when memory runs out.",
        json_schema_extra=EXECUTION,
    )
    compile: bool = Field(
        False, description="torch.compile networks: minutes to start, then faster.", json_schema_extra=EXECUTION
    )
    students_at_once: int | None = Field(
        None,
        ge=1,
        description="Students trained at a time on a CPU, a thread each; default as many as threads, if there are; 1: in turn.",
        json_schema_extra=EXECUTION,
    )
    keep_latents: bool = Field(
        False,
        description="Store latents too (16 KB an image of 256 px): prompts added later need neither images nor VAE.",
        json_schema_extra=EXECUTION,
    )
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = Field(
        "none", description="Where accelerate logs speed, losses and accuracies while they come.", json_schema_extra=EXECUTION
    )
    workers: int = Field(4, ge=1, description="Threads that read and decode images.", json_schema_extra=EXECUTION)


class ScoringSettings(Section):
    """Loss maps and gap maps (paper 3.1)."""

    prompts: tuple[str, ...] = Field(("An image of {label}.",), min_length=1, description="Label prompt template(s).")
    null_prompt: str = Field("An image of .", description="Prompt without the label.")
    t_min: float = Field(0.1, ge=0, lt=1, description="Lower end of the timesteps, share of the training steps (A.1).")
    t_max: float = Field(0.7, gt=0, le=1, description="Upper end of the timesteps, share of the training steps (A.1).")
    log_snr: tuple[float, float] | None = Field(
        None,
        description="Window in log-SNR, highest first, of draws uniform in it; default: of Stable Diffusion 1.x and 2.x none, "
        "draws are uniform in t; of others where t_min and t_max lie in Stable Diffusion.",
        json_schema_extra=added(None),
    )
    bins: int = Field(3, ge=1, description="Equal parts of [t_min, t_max] whose maps are stored apart.")
    draws: int = Field(6, ge=1, description="(timestep, noise) pairs per image, stratified; a multiple of bins.")
    adaptive_draws: int | None = Field(
        None, ge=1, description="Draws of images that stay in the race for the best, by doubling; default: all as draws."
    )
    adaptive_keep: float = Field(
        0.25, gt=0, le=1, description="Adaptive: share of a unit (<= 256 images of a class) that selection may want."
    )
    adaptive_z: float = Field(1.0, gt=0, description="Adaptive: width of the bounds, standard errors.")
    posterior: Literal["mean", "sample"] = Field("mean", description="VAE latent: posterior mean, or a keyed sample.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.t_min >= self.t_max:
            raise ValueError(f"scoring.t_min ({self.t_min}) must lie below scoring.t_max ({self.t_max})")
        if self.log_snr and self.log_snr[0] <= self.log_snr[1]:
            raise ValueError(f"scoring.log_snr {self.log_snr} must fall: least noise first, as 2.13,-2.41")
        if self.draws % self.bins:
            near = max(self.bins, round(self.draws / self.bins) * self.bins)
            raise ValueError(f"scoring.draws ({self.draws}) must be a multiple of scoring.bins ({self.bins}), say {near}")
        if self.adaptive_draws is not None and (self.draws < 2 or not self._doubles_to(self.adaptive_draws)):
            raise ValueError(
                f"scoring.adaptive_draws ({self.adaptive_draws}) must be scoring.draws ({self.draws}, at least 2) times a "
                f"power of 2, say {max(2, self.draws) * 4}"
            )
        if len(set(self.prompts)) != len(self.prompts):
            raise ValueError("scoring.prompts names a prompt twice")
        if wrong := next(filter(None, map(malformed, (*self.prompts, self.null_prompt))), ""):
            raise ValueError(f"scoring.prompts must be well formed: {wrong}")
        return self

    def _doubles_to(self, most: int) -> bool:
        return most % self.draws == 0 and (most // self.draws).bit_count() == 1

    def rounds(self) -> list[int]:
        """Draws that an image has after each round."""
        counts = [self.draws]
        while counts[-1] < (self.adaptive_draws or self.draws):
            counts.append(2 * counts[-1])
        return counts

    def bin_edges(self) -> list[float]:
        """In t, rising; or in log-SNR, falling."""
        first, last = self.log_snr or (self.t_min, self.t_max)
        return [first + (last - first) * i / self.bins for i in range(self.bins + 1)]


class PatchSettings(Section):
    """How stored maps become patch scores and boxes; read at selection time, no U-Net needed."""

    patch_size: int | None = Field(
        None,
        ge=0,
        description="Side, pixels of the resized image; default 7/8 of image_size (224 of 256, B.2); 0: whole image.",
    )
    stride: int = Field(1, ge=1, description="Step between candidate patches, pixels; the last one is always included.")
    per_image: int = Field(1, ge=1, description="Best non-overlapping patches kept of each image.")
    estimator: Estimator = Field(
        "gated",
        description="differential: the paper's -D; gap: G; gated: G where blurred -D is surely positive; combined: "
        "(1-w) G - w blur(D).",
    )
    weight: float = Field(0.25, ge=0, le=1, description="w of the combined estimator.")
    blur: float = Field(
        0.125, ge=0, le=1, description="Blur of D for gated and combined: deviation, share of the map's shorter side."
    )
    gate: float = Field(
        0.5, gt=0, description="c of gated: G Phi(c z), z -D in deviations; rivals: of c nats.", json_schema_extra=added(0.5)
    )
    rivals: Annotated[int, Field(ge=0)] | tuple[str, ...] = Field(
        0, description="Gate against so many likeliest other labels, or these (class folders).", json_schema_extra=added(0)
    )
    prompt: int = Field(0, ge=0, description="Which of the stored prompts scores, counted from 0.")
    t_range: tuple[float, float] | None = Field(None, description="Only stored bins in here (Tab. 6); log-SNR where draws are.")


class FeatureSettings(Section):
    """The vector of a patch (paper 3.2)."""

    kind: Literal["dift", "clip"] = Field("dift", description="U-Net activation, or CLIP image features (Tab. 5).")
    timestep: float = Field(0.16, gt=0, lt=1, description="DIFT step, share of the training steps (A.1; Fig. 6).")
    up_block: int = Field(1, ge=0, description="Up block of Stable Diffusion's U-Net whose output is taken.")
    point: str | None = Field(
        None,
        description="Where in a prior's network the vector is taken: up.0 ... of U-Nets, block.0 ... of transformers; "
        "default: up_block of SD 1.x and 2.x, up.0 of SDXL, the middle block of transformers.",
        json_schema_extra=added(None),
    )
    ensemble: int = Field(1, ge=1, description="Noises averaged per patch (DIFT uses 8).")
    pooling: Literal["crop", "box"] = Field("crop", description="Crop the patch first, or pool inside the box.")
    clip_model: str = Field("openai/clip-vit-large-patch14", description="Hub id or folder, for kind = clip.")


class SelectionSettings(Section):
    """Clusters, ranks and picks (paper 3.2, B.1)."""

    method: Method = Field(
        "diffsel",
        description="diffsel with or without clusters (Tab. 5); a coreset of its vectors; or a baseline, which needs no pass.",
    )
    rank_by: Literal["estimator", "guided"] = Field(
        "guided", description="What ranks: the box's score, or the guided loss inside it.", json_schema_extra=added("estimator")
    )
    guidance: float = Field(
        5.0, ge=1, description="Scale s of rank_by = guided, -D - (s-1) G; 1 is -D itself.", json_schema_extra=added(5.0)
    )
    shortlist: float | None = Field(  # null: all
        5.0, ge=1, description="Only so many times the patches needed, the best, are clustered.", json_schema_extra=added(None)
    )
    shortlist_share: float = Field(
        0.25, gt=0, le=1, description="Most of a class in the shortlist, unless more are needed.", json_schema_extra=added(1.0)
    )
    inside: Literal["centroid", "rank"] = Field(
        "centroid", description="First in a cluster: nearest to its centroid, or best.", json_schema_extra=added("centroid")
    )
    clusters: int | None = Field(
        None, ge=1, description="K of K-means, per class (Fig. 8: 32); default: as many as patches are needed."
    )
    top_clusters: int | None = Field(
        None, ge=1, description="N best clusters that give patches (Fig. 8: 10); default: all that the IPC needs."
    )
    restarts: int = Field(4, ge=1, description="K-means starts per class; the best inertia is kept.")
    images: int | None = Field(None, ge=1, description="Choose among this many scored images a class, drawn by seed (Fig. 7).")
    alike: float = Field(
        0.97, gt=0, le=1, description="Correlation of 16 x 16 grey means that makes a near copy.", json_schema_extra=added(0.97)
    )
    drop_suspects: float | None = Field(
        None, gt=0, lt=1, description="Share of each class left out: the images whose label fits least."
    )
    drop_below: float | None = Field(None, description="Images whose suspect statistic is lower are left out (0: raised loss).")

    @property
    def clustered(self) -> bool:
        """Whether it looks at vectors."""
        return self.method in ("diffsel", *CORESETS)

    @property
    def by_chance(self) -> bool:
        """Whether another seed may choose other images of the same pass."""
        return self.images is not None or self.method in ("diffsel", "medoids", "rded", "random", "forgetting", "ccs")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.method in BASELINES and (self.drop_suspects or self.drop_below is not None):
            raise ValueError(f"selection.drop_suspects and drop_below need a scoring pass; they must not go with {self.method}")
        return self


class BaselineSettings(Section):
    """What the methods without a scoring pass choose from (RDED's synthesize/)."""

    pool: int = Field(300, ge=1, description="Images a class that are looked at, drawn with the seed (RDED's mipc).")
    crops: int = Field(5, ge=1, description="rded: random crops of each image, of which the teacher keeps the best.")
    min_scale: float = Field(0.08, gt=0, le=1, description="Smallest crop, share of the image's area.")
    whole: bool = Field(False, description="random: whole images (their middle square) instead of random crops.")
    early: int = Field(10, ge=1, description="el2n, ccs: epochs, the first; el2n is their mean.", json_schema_extra=added(10))
    cut: float = Field(0.3, ge=0, lt=1, description="ccs: the hardest share of each class goes.", json_schema_extra=added(0.3))


class AssemblySettings(Section):
    """Pictures of the distilled set (paper B.1, B.2)."""

    size: int = Field(224, ge=8, le=MOST_PIXELS, description="Side of a distilled image, pixels.")
    factor: int = Field(
        0, ge=0, description="Patches per mosaic side; 0: 2 at IPC <= 10 and for rded, else or in small classes 1."
    )
    format: Literal["png", "jpeg"] = Field("png", description="File format of the distilled images.")
    quality: int = Field(95, ge=1, le=100, description="JPEG quality, for format = jpeg.")
    resample: Literal["bicubic", "rded"] = Field(
        "bicubic", description="Antialiased bicubic once, or as RDED: bilinear crop, nearest to the tile, bytes cut off."
    )

    def factor_at(self, ipc: int, method: Method = "diffsel") -> int:
        """Tiles per side: as set; else 2 at IPC <= 10 (paper 3.2), and for RDED at any IPC, as its scripts have it."""
        return self.factor or (2 if ipc <= 10 or method == "rded" else 1)


def malformed(template: str) -> str:
    """What is wrong with a prompt template's braces, in words; empty for nothing."""
    rest = re.search(r"[{}]", re.sub(r"\{\w+\}", "", template))
    return f"{template!r}: stray {rest[0]!r}; a placeholder looks like {{label}}" if rest else ""


def hash_classes(classes: tuple[str, ...]) -> str:
    """sha256 of the folder names joined by newlines, order included."""
    return hashlib.sha256("\n".join(classes).encode()).hexdigest()
