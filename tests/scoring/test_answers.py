"""A prior of which a part says the same whatever it is asked is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY
from families import NEW, saved
from safetensors.torch import load_file, save_file

from diffsel.scoring.answers import check_answers
from diffsel.scoring.diffusion import Diffusion
from diffsel.scoring.folder import ModelFolder
from diffsel.settings.errors import ConfigError


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("vae", "vae says the same of two images"),
        ("text_encoder", "text_encoder says the same of 'An image of cat.' and the null prompt"),
        ("unet", "unet says the same of 'An image of cat.' and the null prompt"),
    ],
)
def test_a_part_that_says_the_same_whatever_it_is_asked_is_refused(
    tmp_path: Path, tiny: Diffusion, part: str, told: str
) -> None:
    asked = "An image of cat.", "An image of .", 64
    check_answers(tiny, *asked)
    (file,) = (shutil.copytree(TINY, tmp_path / "model") / part).glob("*.safetensors")
    save_file(
        {key: value if key.endswith("bias") else value * 0 for key, value in load_file(file).items()}, file, {"format": "pt"}
    )
    with pytest.raises(ConfigError, match=told):
        check_answers(Diffusion.load(ModelFolder(tmp_path / "model"), torch.device("cpu"), "fp32"), *asked)


@pytest.mark.parametrize("name", NEW)
def test_priors_of_every_family_are_asked(name: str) -> None:
    prior = Diffusion.load(ModelFolder(saved(name)), torch.device("cpu"), "fp32")
    label, null = ("n01440764", "") if name == "dit" else ("a cat", "")
    check_answers(prior, label, null, 64)
    with pytest.raises(ConfigError, match="says the same of"):
        check_answers(prior, label, label, 64)
