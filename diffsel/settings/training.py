"""The sections about networks: how a teacher is trained, how students are, and how they are measured."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .sections import MOST_PIXELS, Section, added


class TrainingSettings(Section):
    """How `diffsel teacher` trains a network (torchvision's reference recipe for ResNets by default)."""

    network: str = Field("resnet18", description="conv3 ... conv6, resnet18, resnet18_modified, ..., or timm:NAME.")
    size: int = Field(224, ge=8, le=MOST_PIXELS, description="Side of the network's input, pixels.")
    epochs: int = Field(90, ge=1, description="Passes over the images.")
    batch_size: int = Field(256, ge=2, description="Images a step, over all processes.")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="SGD with Nesterov-free momentum, or AdamW.")
    learning_rate: float = Field(0.1, gt=0, description="At the start, after the warm-up.")
    momentum: float = Field(0.9, ge=0, lt=1, description="For optimizer = sgd.")
    weight_decay: float = Field(1e-4, ge=0, description="On every parameter.")
    schedule: Literal["step", "cosine"] = Field("step", description="Divide the rate by 10 at each third, or cosine to 0.")
    warmup: int = Field(0, ge=0, description="Epochs of linear warm-up.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target spread over all classes.")
    crop: Literal["resized", "padded", "none"] = Field(
        "resized", description="RandomResizedCrop, a crop of the image padded by 1/8 (CIFAR), or the middle."
    )
    min_scale: float = Field(0.08, gt=0, le=1, description="Smallest crop for crop = resized, share of the area.")
    flip: bool = Field(True, description="Mirror half of the images; off where left and right differ (digits).")
    record: bool = Field(
        False,
        description="Write of every epoch how hard each image was, for --method el2n-easy, forgetting and such.",
        json_schema_extra=added(False),
    )
    save_every: int = Field(1, ge=1, description="Epochs between checkpoints that a stopped training goes on from.")


class ProtocolSettings(Section):
    """How a student is trained on a distilled set, and how it is measured (RDED's validation/)."""

    name: str = Field("rded-fixed", description="For tables; the settings themselves are hashed into every result.")
    labels: Literal["soft", "fixed", "hard"] = Field(
        "soft",
        description="soft: the teacher's on the mixed batch; fixed: one an image, its on the image as it is; hard: the class.",
    )
    size: int | None = Field(
        None, ge=8, le=MOST_PIXELS, description="Side of the student's input, pixels; default: that of the set's images."
    )
    epochs: int = Field(300, ge=1, description="Passes over the distilled set.")
    batch_size: int | None = Field(None, ge=2, description="Default: RDED's table by ipc and number of classes.")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, betas 0.9 and 0.999; or SGD, momentum 0.9.")
    learning_rate: float | None = Field(None, gt=0, description="Default: RDED's table by student; 0.1 for sgd.")
    weight_decay: float | None = Field(None, ge=0, description="On weights of 2 dimensions or more; default 0.01, sgd 1e-4.")
    schedule: Literal["half-cosine", "linear"] = Field(
        "half-cosine", description="0.5 (1 + cos(pi e / 2E)), which ends at half the rate; or linear to 0."
    )
    temperature: float | None = Field(None, gt=0, description="Of the softmaxes in the KL loss; default 20, for mixup 4.")
    mix: Literal["cutmix", "mixup", "none"] = Field("cutmix", description="Beta(1, 1) for cutmix, Beta(0.8, 0.8) for mixup.")
    crop: bool = Field(True, description="RandomResizedCrop, scale (1 / factor, 1).")
    flip: bool = Field(True, description="Mirror half of the images; off where left and right differ (digits).")
    shuffle: bool = Field(True, description="ShufflePatches: shuffle the columns, then the rows of a mosaic.")
    tile_crop: bool = Field(
        False,
        description="Crops stay inside one tile of a mosaic (scale: of its area), which nothing shuffles then.",
        json_schema_extra=added(False),
    )
    accumulate: int = Field(1, ge=1, description="Batches per step (gradient accumulation).")
    evaluate_every: int = Field(10, ge=1, description="Epochs between evaluations in the last fifth; the last one always.")
    report: Literal["best", "last"] = Field("last", description="Which epoch the tables show; results hold both.")
    val_images_per_class: int | None = Field(None, ge=1, description="RDED reads the first 50 files only; default: all.")
    double_forward: bool = Field(
        False, description="RDED's extra forward in train mode (for mixup of the unmixed batch), which updates BatchNorm twice."
    )
    drop_remainder: bool = Field(False, description="RDED's ShufflePatches drops what does not divide by the factor.")
