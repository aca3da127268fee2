"""The networks that learn from a distilled set, and that label it: ConvNets, torchvision's, timm's.  Their class
order and their weights are teachers.py's business."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..data.views import MEAN, STD
from ..settings.errors import ConfigError

CONVNETS = ("conv3", "conv4", "conv5", "conv6")  # 128 channels; conv4w32: of 32
SMALL = {f"resnet{depth}_modified": f"resnet{depth}" for depth in (18, 50, 101)}  # 3x3 stem, no max-pool
TORCHVISION = (
    "resnet18",
    "resnet50",
    "resnet101",
    "mobilenet_v2",
    "efficientnet_b0",
    "swin_t",
    "swin_v2_t",
    "vit_b_16",
    "vgg11",
    "alexnet",
)
NAMES = (*CONVNETS, *SMALL, *TORCHVISION)


class ConvNet(nn.Module):
    """``depth`` blocks of 3x3 convolution, batch norm, ReLU and 2x2 average pooling, then one linear layer.

    The standard network of data set distillation (Gidaris & Komodakis; golden `rded_convnet`).
    """

    def __init__(self, depth: int, classes: int, size: int, width: int = 128):
        super().__init__()
        channels = [3, *[width] * depth]
        convolutions = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(channels)]
        norms = [nn.BatchNorm2d(width) for _ in range(depth)]
        self.layers = nn.ModuleDict({"conv": nn.ModuleList(convolutions), "norm": nn.ModuleList(norms)})
        self.classifier = nn.Linear(width * (size >> depth) ** 2, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, size, size) -> (B, width * (size / 2^depth)^2)."""
        x = images
        for conv, norm in zip(self.layers["conv"], self.layers["norm"], strict=True):  # type: ignore[call-overload]
            x = nn.functional.avg_pool2d(nn.functional.relu_(norm(conv(x))), 2)
        return x.flatten(1)


def canonical(name: str) -> str:
    """The name used everywhere: ConvNet-3 -> conv3, ResNet-18 (small) -> resnet18_modified.

    Raises ConfigError for an unknown one, naming the nearest.
    """
    if name.startswith("timm:"):
        return name
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    plain = re.sub(r"^conv(?:net)?_?(\d)(?:_?w(\d+))?$", lambda m: f"conv{m[1]}" + f"w{m[2]}" * bool(m[2]), plain)
    plain = re.sub(r"^resnet_?(\d+)_?(modified|small)?$", lambda m: f"resnet{m[1]}" + "_modified" * bool(m[2]), plain)
    if plain not in NAMES and not convnet_shape(plain):
        near = get_close_matches(plain, NAMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(NAMES)} and timm:NAME"
        raise ConfigError(f"unknown network {name!r} (and no file or folder of that name); {hint}")
    return plain


def convnet_shape(name: str) -> tuple[int, int] | None:
    """Depth and width of a ConvNet by its canonical name; None for other networks."""
    found = re.fullmatch(r"conv([3-6])(?:w([1-9]\d{0,3}))?", name)
    return (int(found[1]), int(found[2] or 128)) if found else None


def build(name: str, classes: int, size: int) -> nn.Module:
    """A freshly initialised network (torch's global generator) for (B, 3, size, size) images and ``classes`` logits.

    Raises ConfigError for an unknown name.
    """
    name = canonical(name)
    if name.startswith("timm:"):
        return _timm(name, num_classes=classes)
    if shape := convnet_shape(name):
        return ConvNet(shape[0], classes, size, shape[1])
    from torchvision import models

    if name in SMALL:
        network = models.get_model(SMALL[name], weights=None, num_classes=classes)
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
        return network
    extra = {"image_size": size} if name.startswith("vit") else {}
    return models.get_model(name, weights=None, num_classes=classes, **extra)


def _timm(name: str, **options: Any) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise ConfigError(f"{name} needs the timm library: pip install 'diffsel[timm]'") from None
    plain = name.removeprefix("timm:")
    try:
        return timm.create_model(plain, **options)
    except RuntimeError as error:
        near = get_close_matches(plain, timm.list_models(), n=1)
        raise ConfigError(f"{name}: {error}" + (f"; did you mean 'timm:{near[0]}'?" if near else "")) from None


def check_size(name: str, size: int) -> None:
    """Refuse a network that is too deep for images of ``size`` pixels, by trying it without memory.  Raises ConfigError."""
    name = canonical(name)
    if (shape := convnet_shape(name)) and size >> shape[0] < 1:
        raise ConfigError(f"{name} halves images {shape[0]} times, too often for {size} x {size} pixels; take a shallower one")
    try:
        with torch.device("meta"):
            build(name, 2, size).eval()(torch.empty(1, 3, size, size))
    except ConfigError:
        raise
    except Exception as error:  # whatever the architecture's own code raises on a size it cannot take
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(
            f"{name} cannot take images of {size} x {size} pixels ({reason}); take another size or network"
        ) from None


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Decay on weights of more than one dimension, none on biases and norms (golden `rded_param_groups`)."""
    groups: tuple[list, list] = ([], [])
    for name, parameter in network.named_parameters():
        groups["weight" not in name or parameter.ndim < 2].append(parameter)
    return [{"params": groups[0], "weight_decay": weight_decay}, {"params": groups[1], "weight_decay": 0.0}]


class Renormalised(nn.Module):
    """A network that was trained with another mean and deviation of values in [0, 1], for images with ImageNet's."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.network = network
        our_mean, our_std, its_mean, its_std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD, mean, std))
        self.register_buffer("scale", our_std / its_std)
        self.register_buffer("shift", (our_mean - its_mean) / its_std)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images * self.scale + self.shift)
