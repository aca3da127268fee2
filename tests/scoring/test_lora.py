"""LoRA weights on top of a prior: what diffusers' own pipeline computes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from families import NEW, saved

from diffsel.scoring.diffusion import Diffusion
from diffsel.scoring.folder import ModelFolder, locate
from diffsel.settings.errors import ConfigError
from diffsel.settings.sections import ModelSettings

peft = pytest.importorskip("peft")
CPU = torch.device("cpu")


def pipeline(name: str) -> Any:
    folder = ModelFolder(saved(name))
    return getattr(diffusers, folder.index["_class_name"]).from_pretrained(folder.path)


def written(name: str, where: Path) -> Path:
    """Random weights for the attention of the network."""
    pipe = pipeline(name)
    part = ModelFolder(saved(name)).kind.network
    network = getattr(pipe, part)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    weights = peft.get_peft_model_state_dict(network)
    type(pipe).save_lora_weights(where, **{f"{part}_lora_layers": weights})
    return next(where.glob("*.safetensors"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_predictions_are_those_of_the_pipeline_with_the_weights(name: str, tmp_path: Path) -> None:
    file = written(name, tmp_path / "lora")
    settings = ModelSettings(model=str(saved(name)), lora=str(file))
    plain, ours = (Diffusion.load(ModelFolder(saved(name), lora), CPU, "fp32") for lora in (None, locate(settings).lora))
    pipe = pipeline(name)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    noisy = torch.randn(2, ours.channels, 8, 8, generator=torch.Generator().manual_seed(0))
    t, words = torch.full((2,), ours.time(0.3)), ours.embed_prompts(["", "cat"])
    with torch.inference_mode():
        theirs = ours.output(noisy, t, words, getattr(pipe, ours.folder.kind.network))
        raw = ours.output(noisy, t, words, ours.network)
    torch.testing.assert_close(raw, theirs, rtol=0, atol=1e-5)
    assert not torch.allclose(plain.predict_noise(noisy, t, words), ours.predict_noise(noisy, t, words), atol=1e-3)
    assert locate(settings).digest != ModelFolder(saved(name)).digest


def test_weights_that_are_not_there_or_fit_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"wanted is one \.safetensors file"):
        locate(ModelSettings(model=str(saved("sd")), lora=str(tmp_path / "none.safetensors")))
    file = written("sd", tmp_path / "lora")
    for name in {"dit", "pixart", "prx"} & set(NEW):  # PixArt's and PRX's pipelines have what loads LoRA, for a U-Net
        with pytest.raises(ConfigError, match=r"loads no LoRA weights into a (DiT|PixArtSigma|PRX)Pipeline"):
            Diffusion.load(ModelFolder(saved(name), file), CPU, "fp32")
