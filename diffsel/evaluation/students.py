"""One student, one seed, one accuracy: train a fresh network on a distilled set and measure it on the validation images.

The recipe is RDED's: KL divergence to the teacher's softmax at temperature T, AdamW, half a cosine.  The
best epoch and the last one are both reported, always on the full validation set.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..data.albums import Pictures
from ..data.views import normalise
from ..machine.captured import Captured
from ..machine.device import Machine, compile_network, keep_freed_memory, set_tf32, to_device
from ..machine.progress import Progress, quiet
from ..settings.training import ProtocolSettings
from .batches import Batch, Source
from .networks import build, parameter_groups
from .protocols import Recipe, rate_factor

EVALUATION_BATCH = 500  # images at a time; without effect on results, up to rounding


class Diverged(Exception):
    """A loss, or what a network says, that is no number any more; ``epoch`` counts from 0."""

    def __init__(self, epoch: int, what: str = "the loss"):
        self.epoch = epoch
        super().__init__(f"{what} is not a number in epoch {epoch}")


@dataclass(frozen=True)
class Score:
    """Accuracy in percent on all validation images."""

    epoch: int
    top1: float
    top5: float
    per_class: tuple[float, ...]


def train_student(
    student: str,
    source: Source,
    validation: Pictures,
    protocol: ProtocolSettings,
    recipe: Recipe,
    seed: int,
    machine: Machine,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Train one student and measure it; returns ``best``, ``last``, the curve, and seconds.

    Raises Diverged where the loss stops being a number.
    """
    begin = time.monotonic()
    keep_freed_memory()
    set_tf32(machine.precision)
    torch.manual_seed(seed)
    network = build(student, len(validation.classes), recipe.size).to(machine.device).to(memory_format=torch.channels_last)
    if machine.compile:
        compile_network(network)
    optimizer = make_optimizer(network, protocol, recipe)
    scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.precision == "fp16")
    learn = learner(network, protocol, recipe, machine, scaler)
    scores, curve, seen = [], [], 0
    with progress(total=protocol.epochs, desc=f"student {student}, seed {seed}", unit="epoch", leave=False) as bar:
        for epoch in range(protocol.epochs):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * rate_factor(protocol, epoch)
            network.train()
            steps = list(train_epoch(network, source(epoch), optimizer, protocol, recipe, machine, scaler, learn))
            images = [step.images for step in steps]
            losses = torch.stack([step.loss for step in steps]).tolist()  # one wait an epoch, not one a step
            seen += sum(images)
            loss = sum(map(operator.mul, losses, images)) / sum(images)
            if not math.isfinite(loss):
                raise Diverged(epoch)
            curve.append(round(loss, 7))
            if epoch in recipe.evaluated:
                scores.append(measure(network, validation, machine, epoch))
            bar.update()
    best = max(scores, key=lambda score: (score.top1, -score.epoch))
    return {
        "best": _as_dict(best),
        "last": _as_dict(scores[-1]),
        "evaluations": [[score.epoch, score.top1, score.top5] for score in scores],
        "loss": curve,
        "images_seen": seen,
        "seconds": round(time.monotonic() - begin, 2),
    }


@dataclass(frozen=True)
class Step:
    """What one batch gave: its loss (over ``accumulate``), and how many images of it were classified rightly."""

    loss: Tensor
    right: Tensor
    images: int


Learn = Callable[..., Tensor]


def learner(
    network: nn.Module, protocol: ProtocolSettings, recipe: Recipe, machine: Machine, scaler: torch.amp.GradScaler
) -> Learn:
    """Forward and backward of a batch, given by its fields: its loss, and how many images were classified rightly.

    On a GPU it is captured (``Captured``), but where gradients of several batches are added up.
    """

    def learn(**fields: Any) -> Float[Tensor, " 2"]:
        batch = Batch(**fields)
        with machine.autocast():
            if protocol.double_forward:
                with torch.no_grad():
                    network(batch.images if batch.unmixed is None else batch.unmixed)
            output = network(batch.images)
        output = output.float()
        loss = batch_loss(output, batch, recipe.temperature, protocol.labels) / protocol.accumulate
        scaler.scale(loss).backward()
        return torch.stack([loss.detach(), (output.detach().argmax(1) == batch.labels).sum().float()])

    alone = machine.device.type == "cuda" and protocol.accumulate == 1
    return Captured(learn, list(network.parameters())) if alone else learn


def train_epoch(
    network: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    protocol: ProtocolSettings,
    recipe: Recipe,
    machine: Machine,
    scaler: torch.amp.GradScaler,
    learn: Learn | None = None,
) -> Iterator[Step]:
    """One pass (golden `rded_epoch`).  A last window of fewer than ``accumulate`` batches makes no step, as in RDED.

    ``learn``: the network's ``learner``, kept from epoch to epoch.
    """
    learn = learn or learner(network, protocol, recipe, machine, scaler)
    for number, batch in enumerate(batches):
        if number % protocol.accumulate == 0:
            optimizer.zero_grad(set_to_none=True)
        loss, right = learn(**vars(batch))
        if number % protocol.accumulate == protocol.accumulate - 1:
            scaler.step(optimizer)
            scaler.update()
        yield Step(loss, right, len(batch.labels))


def batch_loss(output: Float[Tensor, "b classes"], batch: Batch, temperature: float, labels: str) -> Tensor:
    """KL(teacher || student) at a temperature, without the usual factor T^2 (golden `rded_kl`); or cross-entropy.

    Labels that were not made for the mixed image, hard and fixed ones, count by the shares of both images.
    """
    if labels == "hard":
        own, other = (F.cross_entropy(output, target) for target in (batch.labels, batch.other))
        return batch.share * own + (1 - batch.share) * other

    def divergence(logits: Tensor | None) -> Tensor:
        assert logits is not None
        student, teacher = (F.log_softmax(each / temperature, dim=1) for each in (output, logits))
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True)

    if labels == "soft":
        return divergence(batch.logits)
    return batch.share * divergence(batch.logits) + (1 - batch.share) * divergence(batch.other_logits)


def make_optimizer(network: nn.Module, protocol: ProtocolSettings, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW or SGD, weight decay on matrices alone."""
    groups = parameter_groups(network, recipe.weight_decay)
    if protocol.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9)
    fused = next(network.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.999), fused=fused)


# ---- measuring -------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def predict(network: nn.Module, pictures: Pictures, machine: Machine) -> Float[Tensor, "n classes"]:
    """Logits of all pictures, on the CPU, in float32."""
    parts = []
    for pixels in pictures.pixels.split(EVALUATION_BATCH):
        with machine.autocast():
            parts.append(network(normalise(to_device(pixels, machine.device))).float())
    return torch.cat(parts).cpu()


def measure(network: nn.Module, pictures: Pictures, machine: Machine, epoch: int = 0) -> Score:
    """Accuracy of a network on pictures (it is put in evaluation mode).  Raises Diverged where it says no numbers."""
    network.eval()
    logits, labels = predict(network, pictures, machine), pictures.labels.cpu()
    if not torch.isfinite(logits).all():  # a last step may destroy it, after a loss that was one
        raise Diverged(epoch, "its output")
    top1, top5 = accuracy(logits, labels)
    right = (logits.argmax(1) == labels).double().numpy()
    per_class = [100 * right[labels == k].mean() for k in range(len(pictures.classes))]
    return Score(epoch, top1, top5, tuple(round(float(value), 3) for value in per_class))


def accuracy(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> tuple[float, float]:
    """Top-1 and top-5 in percent (golden `rded_accuracy`); with fewer than five classes, the second is over all."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return tuple(round(100 * float(best[:, :k].any(1).double().mean()), 4) for k in (1, 5))  # type: ignore[return-value]


def confusion(network: nn.Module, rows: Tensor, pictures: Pictures, machine: Machine) -> Int[np.ndarray, "n n"]:
    """How often pictures of each class (row) are taken for each class (column) by outputs ``rows`` of a network."""
    n = len(pictures.classes)
    predicted = predict(network, pictures, machine)[:, rows.cpu()].argmax(1)
    return torch.bincount(pictures.labels.cpu() * n + predicted, minlength=n * n).reshape(n, n).numpy()


def _as_dict(score: Score) -> dict[str, Any]:
    return {"epoch": score.epoch, "top1": score.top1, "top5": score.top5, "per_class": list(score.per_class)}
