"""Trained weights as they lie on disk or on the hub, read without running any code of theirs."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from ..data.classes import imagenet_wnids
from ..data.views import MEAN, STD
from ..machine.files import check_openable
from ..settings.errors import ConfigError
from ..settings.settings import fingerprint
from ..settings.yamls import from_json, no_pipe, read_text
from .networks import CONVNETS, NAMES, SMALL, build, canonical, convnet_shape

ANEW = "train it anew, or put a whole copy back"
WRAPPERS = ("model", "state_dict", "net", "network", "model_state_dict")  # where .pth files keep the weights


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


def read_checkpoint(spec: str) -> Checkpoint:
    """Weights and what is recorded with them.  Raises ConfigError."""
    path = Path(spec)
    if path.is_dir():
        path = path / "best.safetensors"
        if not path.exists():
            raise ConfigError(f"{spec} holds no best.safetensors; give a folder written by `diffsel teacher`, or a file")
    if path.is_file():  # whatever it is called: model_best.pth.tar, weights.ckpt, pytorch_model.bin
        return _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_pth(path)
    if path.suffix in (".safetensors", ".pth", ".pt") or "/" in spec:
        raise ConfigError(f"teacher {spec}: no such file or folder")
    return _download(canonical(spec))


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(no_pipe(path), framework="pt") as file:
            about = from_json((file.metadata() or {}).get("diffsel", "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        told = {key: value for key, value in about.items() if key != "head"}
    except (OSError, SafetensorError, ValueError, AttributeError) as error:
        check_openable(path)
        raise ConfigError(f"teacher {path} is damaged ({error}); {ANEW}") from None
    if about.get("digest", digest := weights_digest(state)) != digest:
        raise ConfigError(f"teacher {path} is damaged (its weights have another digest); {ANEW}")
    if about.get("head", head := fingerprint(told)) != head:
        raise ConfigError(f"teacher {path} is damaged (what is told of its weights has another digest); {ANEW}")
    network = canonical(about["network"]) if "network" in about else recognise(state, path)
    classes = tuple(about["classes"]) if "classes" in about else None
    return Checkpoint(network, _plain_names(state), classes, about.get("size"), about.get("accuracy"), str(path))


def as_safetensors(state: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """Weights and what is told of them, with digests of both."""
    told = {**about, "digest": weights_digest(state)}
    return save_safetensors(dict(state), {"diffsel": json.dumps({**told, "head": fingerprint(told)})})


def read_state(file: Path) -> dict[str, Tensor]:
    """Where a training stands.  Raises ConfigError where that is damaged."""
    try:
        with safe_open(no_pipe(file), framework="pt") as opened:
            about = from_json((opened.metadata() or {}).get("diffsel", "{}"))
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if "epoch" not in state or about.get("digest", digest := weights_digest(state)) != digest:
            raise ValueError("digest differs")
    except (OSError, SafetensorError, ValueError, AttributeError) as error:
        check_openable(file)
        raise ConfigError(
            f"{file} is damaged ({error}); put a whole copy back, or delete it: the training then begins anew"
        ) from None
    return state


def read_metrics(out: Path, epochs: int = 0) -> list[dict[str, Any]]:
    """What a training told of each epoch; of ``epochs`` at least.  Raises ConfigError where that is damaged."""
    file = out / "metrics.jsonl"
    try:
        lines = [from_json(line) for line in read_text(file).splitlines()] if epochs or file.exists() else []
        if [line["epoch"] for line in lines] != list(range(len(lines))) or len(lines) < epochs:
            raise ValueError(f"it does not tell of {max(epochs, len(lines))} epochs in their order")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is damaged ({error}); {ANEW}") from None
    return lines


def weights_digest(state: Mapping[str, Tensor], more: str = "") -> str:
    """A hash of all weights and their names, and of what ``more`` decides their outputs."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        digest.update(name.encode() + state[name].contiguous().cpu().numpy().tobytes())
    digest.update(more.encode())
    return digest.hexdigest()


def _read_pth(path: Path) -> Checkpoint:
    try:
        with torch.serialization.safe_globals(_harmless()):
            loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(f"teacher {path} cannot be read as plain weights ({_in_the_way(error)})") from None
    if not isinstance(loaded, Mapping):
        raise ConfigError(f"teacher {path} holds a {type(loaded).__name__}, not a dictionary of weights")
    accuracy = None
    while (inner := next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), None)) is not None:
        told = (_percent(loaded[key]) for key in ("acc1", "best_acc1", "top1") if key in loaded)
        accuracy = next((each for each in told if each is not None), accuracy)
        loaded = inner
    weights = {name: value for name, value in loaded.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not weights:
        raise ConfigError(f"teacher {path} holds no weights; its keys are {', '.join(map(str, loaded))[:200]}")
    state = _plain_names(weights)
    return Checkpoint(recognise(state, path), state, None, None, accuracy, str(path))


def _percent(told: Any) -> float | None:
    """An accuracy, where it is one."""
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        return value if 0 <= (value := float(told)) <= 100 and not isinstance(told, str) else None
    return None


def _harmless() -> list[Any]:
    """What training scripts store beside weights, and what runs no code when it is read: arguments and numpy's numbers."""
    numbers = [type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"]
    scalar = np.float64(0).__reduce__()[0]  # where numpy keeps the function has changed its name
    return [argparse.Namespace, np.dtype, np.ndarray, *numbers, (scalar, "numpy.core.multiarray.scalar"), scalar]


def _in_the_way(error: Exception) -> str:
    """Why torch does not read a file, in one plain line."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    if found := re.search(r"[Uu]nsupported (?:global: GLOBAL|class) ([\w.]+)", text):
        how = "torch.save({'state_dict': network.state_dict()}, FILE)"
        return f"it holds a {found[1]}, which could run code; save the weights alone: {how}"
    return f"{type(error).__name__}: {text[:160]}"


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
    if (named := f"conv{depth}") in CONVNETS and (width := next(iter(shapes.get("layers.conv.0.weight", ())), 0)):
        return named if width == 128 else f"{named}w{width}"
    outputs = shapes[_head(state, path)][0]
    for name in (*SMALL, *(n for n in NAMES if n not in CONVNETS and n not in SMALL)):
        with torch.device("meta"):
            ours = {key: tuple(value.shape) for key, value in build(name, outputs, 224).state_dict().items()}
        if ours == shapes:
            return name
    raise ConfigError(f"teacher {path}: the weights are of no network known here ({', '.join(NAMES)})")


def _outputs(found: Checkpoint) -> int:
    return len(found.classes) if found.classes else len(found.state[_head(found.state, found.source)])


def _head(state: Mapping[str, Tensor], source: object) -> str:
    """Name of the last linear layer's bias, as torchvision's architectures and the ConvNets call it.  Raises ConfigError."""
    known = re.compile(r"(classifier|fc|head|heads)(\.\w+)*\.bias")
    biases = [name for name, value in state.items() if known.fullmatch(name) and value.ndim == 1]
    if not biases:
        raise ConfigError(
            f"teacher {source}: the weights have no classifier known here; they hold {', '.join(list(state)[-3:])}"
        )
    return max(biases)
