"""Which networks there are, what they refuse, and teachers of every layout with their classes in order."""

from __future__ import annotations

import pytest
import torch

from diffsel.evaluation import networks
from diffsel.evaluation.networks import build, canonical, check_size
from diffsel.settings.errors import ConfigError

CPU = torch.device("cpu")
SIDES = {"swin_t": 64, "swin_v2_t": 64, "vit_b_16": 32, "alexnet": 64}


@pytest.mark.parametrize("name", [*networks.NAMES, "conv3w32"])
def test_every_network_gives_a_logit_for_each_class(name: str) -> None:
    side = SIDES.get(name, 64)
    with torch.device("meta"):
        assert build(name, 7, side).eval()(torch.empty(2, 3, side, side)).shape == (2, 7)


def test_small_networks_keep_the_size_of_small_images() -> None:
    with torch.device("meta"):
        images = torch.empty(1, 3, 32, 32)
        small, usual = build("resnet18_modified", 2, 32), build("resnet18", 2, 32)
        assert small.layer1(small.maxpool(small.conv1(images))).shape[-1] == 32
        assert usual.layer1(usual.maxpool(usual.conv1(images))).shape[-1] == 8


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("ConvNet-3", "conv3"),
        ("convnet_4", "conv4"),
        ("conv3-w32", "conv3w32"),
        ("ResNet-18", "resnet18"),
        ("resnet50-small", "resnet50_modified"),
        ("EfficientNet-B0", "efficientnet_b0"),
        ("timm:resnet10t", "timm:resnet10t"),
    ],
)
def test_names_as_people_write_them(said: str, meant: str) -> None:
    assert canonical(said) == meant


def test_unknown_networks_and_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown network 'resnet19' .*; did you mean 'resnet1"):
        canonical("resnet19")
    with pytest.raises(ConfigError, match="conv6 halves images 6 times, too often for 32 x 32"):
        check_size("conv6", 32)
    with pytest.raises(ConfigError, match="alexnet cannot take images of 16 x 16 pixels"):
        check_size("alexnet", 16)
    with pytest.raises(ConfigError, match="vit_b_16 cannot take images of 33"):
        check_size("vit_b_16", 33)
    check_size("conv3", 32)


def test_timm_networks_by_name() -> None:
    pytest.importorskip("timm")
    with torch.device("meta"):
        assert build("timm:resnet10t", 7, 64).eval()(torch.empty(1, 3, 64, 64)).shape == (1, 7)
    with pytest.raises(ConfigError, match="Unknown model"):
        build("timm:resnet9000", 7, 64)


# ---- teachers --------------------------------------------------------------------------------------------------------
