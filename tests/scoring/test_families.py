"""Models that are no priors are refused with the reason, before any weight is read or fetched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from conftest import TINY
from families import NEW, saved
from safetensors.torch import load_file, save_file

from diffsel.scoring import families
from diffsel.scoring.answers import check_answers
from diffsel.scoring.diffusion import Diffusion
from diffsel.scoring.families import FAMILIES, family_of
from diffsel.scoring.folder import ModelFolder, locate
from diffsel.settings.errors import ConfigError
from diffsel.settings.sections import ModelSettings


def changed(source: Path, target: Path, file: str, **values: object) -> Path:
    folder = Path(shutil.copytree(source, target))
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


@pytest.mark.parametrize(
    ("pipeline", "reason"),
    [
        ("StableDiffusionInpaintPipeline", "an inpainting model .* take the text-to-image model"),
        ("StableDiffusionUpscalePipeline", "an upscaling model"),
        ("LatentConsistencyModelPipeline", "step-distilled"),
        ("FluxPipeline", "guidance-distilled .* take Stable Diffusion 3.5"),
        ("Flux2Pipeline", "guidance-distilled .* PRX"),
        ("StableDiffusionXLControlNetPipeline", "told of a picture too"),
        ("StableDiffusionXLImg2ImgPipeline", "told of a picture too"),
        ("WanPipeline", "which diffsel does not know; it knows Stable Diffusion 1.x"),
    ],
)
def test_other_pipelines_are_refused_by_name(tmp_path: Path, pipeline: str, reason: str) -> None:
    folder = changed(Path(TINY), tmp_path / "model", "model_index.json", _class_name=pipeline)
    with pytest.raises(ConfigError, match=f"is a {pipeline}.*{reason}"):
        locate(ModelSettings(model=str(folder)))


@pytest.mark.parametrize(
    "name",
    ["sdxl-turbo", "SDXL-Lightning", "lcm-sdxl", "tiny_LCM", "Hyper-SD", "sd3.5-large-turbo", "prx-512-t2i-sft-distilled"],
)
def test_step_distilled_models_are_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="step-distilled, which predicts no posterior mean"):
        locate(ModelSettings(model=str(shutil.copytree(TINY, tmp_path / name))))


@pytest.mark.parametrize("change", ["gone", "zero"])
def test_each_of_several_text_encoders_needs_its_weights(tmp_path: Path, change: str) -> None:
    (file,) = (shutil.copytree(saved("sdxl"), tmp_path / "model") / "text_encoder_2").glob("*.safetensors")
    weights = {key: value * (change == "gone") for key, value in load_file(file).items()}
    save_file(
        {key: value for key, value in weights.items() if change == "zero" or "projection" not in key}, file, {"format": "pt"}
    )
    told = "lacks text_projection.weight" if change == "gone" else "all its weights are zero"
    with pytest.raises(ConfigError, match=f"text_encoder_2 .*{told}"):
        Diffusion.load(ModelFolder(tmp_path / "model"), torch.device("cpu"), "fp32")


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_words_of_another_kind_of_tokenizer_are_refused(tmp_path: Path, name: str) -> None:
    folder = ModelFolder(Path(shutil.copytree(saved(name), tmp_path / "model")))
    _ = folder.texts
    shutil.rmtree(folder.path / "tokenizer_2")
    shutil.copytree(saved("pixart") / "tokenizer", folder.path / "tokenizer_2")
    with pytest.raises(ConfigError, match=r"tokenizer_2 .*vocabulary and its merges differ"):
        _ = ModelFolder(folder.path).texts


@pytest.mark.parametrize("names", [["tench"], {"x": "tench"}, {"1000": "tench"}, {"-1": "tench"}, {"1": 1}])
def test_class_names_that_stand_for_no_class_are_refused(tmp_path: Path, names: object) -> None:
    folder = changed(saved("dit"), tmp_path / "model", "model_index.json", id2label=names)
    with pytest.raises(ConfigError, match=r"id2label of model_index\.json must give names to numbers below .* = 1000"):
        ModelFolder(folder).class_number("tench")


@pytest.mark.parametrize(
    ("name", "file", "setting", "told"),
    [
        ("sdxl", "vae/config.json", {"scaling_factor": None}, "vae has scaling_factor None"),
        ("sd3", "vae/config.json", {"scaling_factor": None}, "vae has scaling_factor None"),
        ("dit", "scheduler/scheduler_config.json", {"_class_name": 3}, ""),
        ("sd3", "scheduler/scheduler_config.json", {"_class_name": 3}, "is a 3, not one of flow matching"),
    ],
)
def test_settings_that_are_lost_or_of_another_kind(tmp_path: Path, name: str, file: str, setting: dict, told: str) -> None:
    folder = changed(saved(name), tmp_path / "model", file, **setting)
    if not told:  # whatever its sampler is called, its noise table counts
        return ModelFolder(folder).check()
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(ConfigError, match=told):
        ModelFolder(folder).check()


def test_a_setting_with_which_nothing_can_be_computed_is_told(tmp_path: Path) -> None:
    folder = changed(Path(TINY), tmp_path / "model", "unet/config.json", norm_eps="x")
    model = Diffusion.load(ModelFolder(folder), torch.device("cpu"), "fp32")
    with pytest.raises(ConfigError, match=r"model does not compute .*see to its config"):
        check_answers(model, "a cat", "", 64)


def test_names_that_hold_such_a_word_by_chance_are_not(tmp_path: Path) -> None:
    folder = changed(Path(TINY), tmp_path / "undistilled-turbots-calcm", "unet/config.json", _name_or_path="someone/hyperbolic")
    locate(ModelSettings(model=str(folder))).check()


@pytest.mark.parametrize(
    ("family", "file", "values", "reason"),
    [
        ("sd3", "transformer/config.json", {"guidance_embeds": True}, "guidance-distilled and has no null"),
        ("sdxl", "scheduler/scheduler_config.json", {"_class_name": "LCMScheduler"}, "comes with LCMScheduler"),
        ("sdxl", "unet/config.json", {"_name_or_path": "stabilityai/sdxl-turbo"}, "step-distilled"),
        ("sdxl", "unet/config.json", {"addition_embed_type": None}, "takes no added conditions"),
        ("sdxl", "unet/config.json", {"in_channels": 9}, "inpainting models cannot be used"),
        (
            "pixart",
            "transformer/config.json",
            {"caption_channels": 64},
            "32 numbers a word, but the transformer takes 64",
        ),
        ("sd3", "scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "not one of flow matching"),
        ("dit", "scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow-matching or EDM"),
        ("dit", "transformer/config.json", {"_class_name": "UNet2DModel"}, "is a UNet2DModel, not a DiTTransformer2DModel"),
        ("prx", "vae/config.json", {"_class_name": "AutoencoderDC"}, "vae is a AutoencoderDC, not a AutoencoderKL"),
        ("prx", "transformer/config.json", {"context_in_dim": 64}, "32 numbers a word, but the transformer takes 64"),
        ("prx", "text_encoder/config.json", {"architectures": ["T5EncoderModel"]}, "is a T5EncoderModel, not a T5Gemma"),
        ("prx", "model_index.json", {"_name_or_path": "Photoroom/prx-512-t2i-sft-distilled"}, "step-distilled"),
    ],
)
def test_models_that_only_look_like_a_family_are_refused(
    tmp_path: Path, family: str, file: str, values: dict, reason: str
) -> None:
    if family not in ("sd", *NEW):
        pytest.skip("this diffusers lacks the family")
    ModelFolder(saved(family)).check()
    with pytest.raises(ConfigError, match=reason):
        ModelFolder(changed(saved(family), tmp_path / "model", file, **values)).check()


@pytest.mark.parametrize("name", NEW)
def test_a_family_is_found_and_hashed_with_all_its_parts(tmp_path: Path, name: str) -> None:
    folder = locate(ModelSettings(model=str(saved(name))))
    assert folder.family == name
    assert {path.name for path in folder.path.iterdir() if path.is_dir()} == set(folder.kind.parts)
    shutil.copytree(folder.path, tmp_path / "copy")
    assert ModelFolder(tmp_path / "copy").digest == folder.digest
    for part in folder.kind.parts:
        file = next(file for file in sorted((tmp_path / "copy" / part).iterdir()) if file.suffix == ".json")
        before = ModelFolder(tmp_path / "copy").digest
        file.write_text(file.read_text() + " ")
        assert ModelFolder(tmp_path / "copy").digest != before, part


def test_pipelines_belong_to_one_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "version", lambda _: "1.0.0")
    for family in FAMILIES:
        assert all(family_of(pipeline) is family for pipeline in family.pipelines)


def test_a_family_that_the_installed_diffusers_lacks_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (family_of("PRXPipeline") is FAMILIES[-1]) == hasattr(diffusers, "PRXTransformer2DModel")
    folder = changed(Path(TINY), tmp_path / "model", "model_index.json", _class_name="PRXPipeline")
    monkeypatch.setattr(families, "version", lambda _: "0.35.2")
    with pytest.raises(ConfigError, match=r"needs diffusers 0\.36 or newer, here is 0\.35\.2; pip install --upgrade diffusers"):
        locate(ModelSettings(model=str(folder)))
    locate(ModelSettings(model=TINY))  # others are as they were
