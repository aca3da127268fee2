"""Trained networks that label images, and the check that their classes are ours.

A teacher is torchvision's ImageNet weights by name, a checkpoint written by `diffsel teacher`, or RDED's `.pth` files.
It carries its class table, so that a 1000-class teacher serves any subset by its rows.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..data.classes import ClassInfo, imagenet_wnids, refuse_shared
from ..data.views import MEAN, STD
from ..settings.errors import ConfigError, DataError
from .networks import CONVNETS, NAMES, SMALL, Renormalised, build, canonical, check_size, convnet_shape

WRAPPERS = ("model", "state_dict", "net", "network", "model_state_dict")  # where .pth files keep the weights
LEVEL = 1e-3  # how often a good teacher may be refused by chance


@dataclass(frozen=True)
class Checkpoint:
    """Trained weights as they lie on disk: nothing is known yet of the data that they will label."""

    network: str
    state: Mapping[str, Tensor]
    classes: tuple[str, ...] | None  # class of each output; None: not recorded
    size: int | None  # side of the images it was trained on, pixels
    accuracy: float | None  # top-1 in percent as recorded
    source: str
    mean: tuple[float, ...] = MEAN  # what its images were normalised with
    std: tuple[float, ...] = STD


@dataclass(frozen=True)
class Teacher:
    """A frozen network whose outputs are the classes asked for, in their order."""

    name: str
    source: str
    network: nn.Module
    rows: Int[Tensor, " classes"]  # which outputs
    accuracy: float | None  # recorded top-1, percent
    digest: str  # of the weights

    @property
    def device(self) -> torch.device:
        return self.rows.device

    @torch.inference_mode()
    def logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Of normalised images."""
        return self.network(images)[:, self.rows].float()


def load_teacher(spec: str, classes: Sequence[ClassInfo], size: int, device: torch.device) -> Teacher:
    """The teacher ``spec`` for ``classes`` on images of ``size`` x ``size`` pixels.

    ``spec`` is a network's name (torchvision's ImageNet weights, version 1, as the sources; or timm:NAME), a folder or
    .safetensors file written by `diffsel teacher`, or a .pth file.

    Raises ConfigError for a teacher that does not load or fit the size, DataError for classes that it lacks.
    """
    found = read_checkpoint(spec)
    rows = class_rows(found, classes)
    check_size(found.network, size)
    network = build(found.network, _outputs(found), size)
    try:
        network.load_state_dict(dict(found.state))
    except RuntimeError as error:
        trained = f" (it was trained at {found.size} pixels)" if found.size else ""
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"teacher {spec} does not fit images of {size} x {size} pixels{trained}: {reason}") from None
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(found.state):
        digest.update(name.encode() + found.state[name].contiguous().cpu().numpy().tobytes())
    if (found.mean, found.std) != (MEAN, STD):
        network = Renormalised(network, found.mean, found.std)
        digest.update(repr((found.mean, found.std)).encode())
    network = network.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    chosen = torch.tensor(rows, device=device)
    return Teacher(found.network, found.source, network, chosen, found.accuracy, digest.hexdigest())


def read_checkpoint(spec: str) -> Checkpoint:
    """Weights and what is recorded with them.  Raises ConfigError."""
    path = Path(spec)
    if path.is_dir():
        path = path / "best.safetensors"
        if not path.exists():
            raise ConfigError(f"{spec} holds no best.safetensors; give a folder written by `diffsel teacher`, or a file")
    if path.suffix == ".safetensors" and path.exists():
        return _read_safetensors(path)
    if path.suffix in (".pth", ".pt") and path.exists():
        return _read_pth(path)
    if path.suffix in (".safetensors", ".pth", ".pt") or "/" in spec:
        raise ConfigError(f"teacher {spec}: no such file or folder")
    return _download(canonical(spec))


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("diffsel", "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise ConfigError(f"teacher {path} is damaged: {error}") from None
    network = canonical(about["network"]) if "network" in about else recognise(state, path)
    classes = tuple(about["classes"]) if "classes" in about else None
    return Checkpoint(network, _plain_names(state), classes, about.get("size"), about.get("accuracy"), str(path))


def _read_pth(path: Path) -> Checkpoint:
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0][:160]
        raise ConfigError(f"teacher {path} cannot be read as plain weights ({type(error).__name__}: {reason})") from None
    if not isinstance(loaded, Mapping):
        raise ConfigError(f"teacher {path} holds a {type(loaded).__name__}, not a dictionary of weights")
    accuracy = None
    while (inner := next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), None)) is not None:
        accuracy = next((float(loaded[key]) for key in ("acc1", "best_acc1", "top1") if key in loaded), accuracy)
        loaded = inner
    if not any(isinstance(value, Tensor) for value in loaded.values()):
        raise ConfigError(f"teacher {path} holds no weights; its keys are {', '.join(map(str, loaded))}")
    state = _plain_names({name: value for name, value in loaded.items() if isinstance(value, Tensor)})
    return Checkpoint(recognise(state, path), state, None, None, accuracy, str(path))


def _download(name: str) -> Checkpoint:
    if name.startswith("timm:"):
        network = build_pretrained_timm(name)
        mean, std = timm_normalisation(network, name)
        return Checkpoint(name, network.state_dict(), tuple(imagenet_wnids()), None, None, name, mean, std)
    if convnet_shape(name) or name in SMALL:
        raise ConfigError(f"there are no public weights of {name}; train them with `diffsel teacher DATA --network {name}`")
    from torchvision import models

    weights = models.get_model_weights(name).IMAGENET1K_V1  # type: ignore[attr-defined]
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"the weights of {name} could not be fetched ({error}); give a local file") from None
    accuracy = weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    return Checkpoint(name, state, tuple(imagenet_wnids()), 224, accuracy, f"torchvision {weights}")


def build_pretrained_timm(name: str) -> nn.Module:
    """A timm network with its own weights; refused unless it has ImageNet's 1000 classes.  Raises ConfigError."""
    from .networks import _timm

    try:
        network = _timm(name, pretrained=True)
    except OSError as error:
        raise ConfigError(f"the weights of {name} could not be fetched ({error}); give a local file") from None
    if getattr(network, "num_classes", None) != 1000:
        raise ConfigError(f"{name} has {getattr(network, 'num_classes', '?')} classes; only ImageNet's 1000 are known by name")
    return network


def timm_normalisation(network: nn.Module, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that its weights were trained with, as timm records them.  Raises ConfigError where it does not."""
    recorded = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None) or {}
    mean, std = (tuple(map(float, recorded.get(key) or ())) for key in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3:
        raise ConfigError(f"{name}: timm records no mean and std of three colours for its weights; give a network with them")
    return mean, std


def _plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that DataParallel, compile and accelerate put before names."""
    return {name.replace("module.", "").replace("_orig_mod.", ""): value for name, value in state.items()}


def recognise(state: Mapping[str, Tensor], path: Path) -> str:
    """Which network these weights are, by their names and shapes.  Raises ConfigError."""
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    depth = sum(name.startswith("layers.conv.") and name.endswith(".weight") for name in shapes)
    if depth and (named := f"conv{depth}") in CONVNETS:
        width = shapes["layers.conv.0.weight"][0]
        return named if width == 128 else f"{named}w{width}"
    outputs = shapes[_head(state)][0]
    for name in (*SMALL, *(n for n in NAMES if n not in CONVNETS and n not in SMALL)):
        with torch.device("meta"):
            ours = {key: tuple(value.shape) for key, value in build(name, outputs, 224).state_dict().items()}
        if ours == shapes:
            return name
    raise ConfigError(f"teacher {path}: the weights are of no network known here ({', '.join(NAMES)})")


def _outputs(found: Checkpoint) -> int:
    return len(found.classes) if found.classes else len(found.state[_head(found.state)])


def _head(state: Mapping[str, Tensor]) -> str:
    """Name of the last linear layer's bias, as torchvision's architectures and the ConvNets call it.  Raises ConfigError."""
    biases = [name for name in state if re.fullmatch(r"(classifier|fc|head|heads)(\.\w+)*\.bias", name)]
    if not biases:
        raise ConfigError(f"these weights have no classifier known here; they hold {', '.join(list(state)[-3:])}")
    return max(biases)


# ---- classes ---------------------------------------------------------------------------------------------------------


def class_rows(found: Checkpoint, classes: Sequence[ClassInfo]) -> list[int]:
    """The output of each class, by folder, wnid or name.  A table that is not recorded is taken to be ours, in order.

    Raises DataError naming the classes that the teacher lacks, or that would share an output.
    """
    outputs = _outputs(found)
    table = found.classes or (tuple(imagenet_wnids()) if outputs == 1000 else None)
    if table is None:
        if outputs != len(classes):
            raise DataError(
                f"teacher {found.source} has {outputs} classes and no names for them, the data has {len(classes)}; "
                "give a checkpoint that records its classes, or the data that it was trained on"
            )
        return list(range(outputs))
    places = {name: i for i, name in enumerate(table)}
    by_name = _imagenet_names() if table == tuple(imagenet_wnids()) else {}
    rows = [_row(info, places, by_name) for info in classes]
    missing = [info.folder for info, row in zip(classes, rows, strict=True) if row is None]
    if missing:
        raise DataError(
            f"teacher {found.source} lacks {len(missing)} of the {len(classes)} classes: {', '.join(map(repr, missing[:5]))}; "
            f"it has {', '.join(map(repr, table[:5]))}{' ...' if len(table) > 5 else ''}"
        )
    refuse_shared(classes, rows, f"teacher {found.source}")
    return [row for row in rows if row is not None]


def _row(info: ClassInfo, places: Mapping[str, int], by_name: Mapping[str, int]) -> int | None:
    keys = (info.folder, info.words.get("wnid", ""), info.name)
    return next((table[key] for table in (places, by_name) for key in keys if key in table), None)


def _imagenet_names() -> dict[str, int]:
    """torchvision's ImageNet names -> index (all different since torchvision 0.13)."""
    from torchvision.models import ResNet18_Weights

    return {name: i for i, name in enumerate(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])}


def check_order(
    confusion: Int[np.ndarray, "n n"],
    names: Sequence[str],
    recorded: float | None,
    source: str,
    images: str = "validation images",
) -> tuple[float, str]:
    """A teacher's top-1 (percent) from its confusion matrix (true class, predicted class), and a doubt or nothing.

    Raises DataError where the classes seem to be in another order: accuracy hardly above chance, far under the recorded
    one, or much better with the outputs permuted.  The message names the likely permutation.  ``images`` says which.

    Few images prove little: a teacher is refused only where a good one (as good as recorded, or at least half way from
    chance to certainty; by a sign test, one that takes no class more often for another) would look so with a
    probability under LEVEL.  Otherwise the doubt is returned in words.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.stats import binom

    n, total, right = len(names), int(confusion.sum()), int(confusion.trace())
    accuracy = 100 * right / total
    true, predicted = linear_sum_assignment(-confusion)
    permuted = 100 * confusion[true, predicted].sum() / total
    moved = [(t, p) for t, p in zip(true, predicted, strict=True) if t != p and confusion[t].sum() >= 5 and confusion[t, p]]
    slips = ", ".join(f"{names[t]!r} is its {names[p]!r}" for t, p in moved[:5]) + (" ..." if len(moved) > 5 else "")
    likely = f"; with the outputs permuted it would be {permuted:.1f} % ({slips})" if moved else ""
    have = f"teacher {source} has {accuracy:.1f} % on {total} {images}"
    signs: list[tuple[str, float]] = []  # what looks wrong, and how probable that is with a good teacher
    if n > 1 and accuracy < 1.2 * 100 / n:
        signs.append((f", no better than chance for {n} classes", binom.cdf(right, total, (1 + 1 / n) / 2)))
    if recorded is not None and accuracy < recorded - 25:
        words = f", but {recorded:.1f} % is recorded: other classes, another order, or other images"
        signs.append((words, binom.cdf(right, total, recorded / 100)))
    if moved and permuted > accuracy + 10:
        signs.append((": its classes are in another order than the data's", _by_chance(confusion, moved)))
    for words, probability in signs:
        if probability < LEVEL:
            raise DataError(f"{have}{words}{likely}")
    return accuracy, f"{have}{signs[0][0]}{likely}; so few images may mislead" if signs else ""


def _by_chance(confusion: Int[np.ndarray, "n n"], moved: Sequence[tuple[int, int]]) -> float:
    """At most how probable it is that some permutation of as many classes fits so much better, though none is right.

    A sign test of the images taken for the other class against those taken for their own, times the number of such
    permutations, out of which this one was chosen.
    """
    from scipy.special import gammaln
    from scipy.stats import binom

    n, other, own = len(confusion), sum(confusion[t, p] for t, p in moved), sum(confusion[t, t] for t, _ in moved)
    choices = gammaln(n + 1) - gammaln(n - len(moved) + 1)
    return float(np.exp(min(0.0, binom.logsf(other - 1, other + own, 0.5) + choices)))
