"""A model that is not what it seems is refused by name, before any image is read; what published models look like loads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from conftest import TINY
from safetensors.torch import load_file, save_file

from diffsel.scoring.diffusion import Diffusion
from diffsel.scoring.folder import EMBEDDED, ModelFolder, locate
from diffsel.settings.errors import ConfigError
from diffsel.settings.sections import ModelSettings

CPU = torch.device("cpu")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(TINY, tmp_path / "model")


def config(folder: Path, part: str, **changes: object) -> None:
    file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in values.items() if value != "gone"}))


def weights(folder: Path, part: str, change: Callable[[dict], dict]) -> None:
    file = folder / part / ("model.safetensors" if part == "text_encoder" else "diffusion_pytorch_model.safetensors")
    save_file(change(load_file(file)), file, {"format": "pt"})


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("unet", {"addition_embed_type": "text_time"}, "unet takes added conditions .* as SDXL does"),
        ("unet", {"class_embed_type": "projection"}, "unet has class_embed_type"),
        ("unet", {"num_class_embeds": 1000}, "unet has num_class_embeds"),
        ("unet", {"time_cond_proj_dim": 256}, "unet has time_cond_proj_dim.*distilled"),
        ("unet", {"encoder_hid_dim_type": "image_proj"}, "unet has encoder_hid_dim_type"),
        ("unet", {"_class_name": "UNet3DConditionModel"}, "unet is a UNet3DConditionModel"),
        ("unet", {"in_channels": 9}, "inpainting models cannot be used"),
        ("vae", {"_class_name": "AutoencoderTiny"}, "vae is a AutoencoderTiny"),
        ("text_encoder", {"architectures": ["BertModel"]}, "text_encoder is a BertModel"),
        ("text_encoder", {"architectures": None, "model_type": "t5"}, "text_encoder is a t5"),
        ("text_encoder", {"hidden_size": 48}, "text_encoder gives 48 numbers a word, but the U-Net takes"),
        ("text_encoder", {"max_position_embeddings": "gone"}, "says no max_position_embeddings"),
        ("scheduler", {"beta_schedule": "gone"}, "scheduler .* has no beta schedule"),
        ("scheduler", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow-matching or EDM"),
        ("scheduler", {"prediction_type": "flow"}, "prediction_type 'flow'; known: epsilon"),
        ("vae", {"scaling_factor": 0}, "vae has scaling_factor 0, .* no finite numbers, the first above 0"),
        ("vae", {"scaling_factor": None}, "vae has scaling_factor None"),
        ("vae", {"scaling_factor": "0.18"}, "vae has scaling_factor '0.18'"),
        ("vae", {"shift_factor": 1e400}, "vae/config.json: Infinity is no setting"),
    ],
)
def test_other_kinds_of_models_are_refused_by_part_and_reason(copy: Path, part: str, changes: dict, message: str) -> None:
    ModelFolder(copy).check()
    config(copy, part, **changes)
    with pytest.raises(ConfigError, match=message):
        ModelFolder(copy).check()


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("text_encoder", lambda s: {k: v for k, v in s.items() if "layers.0.mlp.fc1.bias" not in k}, "lacks .*fc1.bias"),
        ("text_encoder", lambda s: {f"other.{k}": v for k, v in s.items()}, r"text_encoder lacks .* and \d+ more"),
        ("unet", lambda s: {k: v for k, v in s.items() if k != "conv_in.weight"}, "unet lacks conv_in.weight"),
        ("unet", lambda s: {**s, "adapter.weight": torch.ones(2)}, "unet holds, beside its own weights, adapter.weight"),
        ("unet", lambda s: {**s, "conv_in.bias": torch.ones(3)}, "unet"),
        ("vae", lambda s: {k: v for k, v in s.items() if k != "quant_conv.weight"}, "vae lacks quant_conv.weight"),
        ("vae", lambda s: {k: v for k, v in s.items() if not k.startswith("encoder.conv_in")}, "vae lacks encoder.conv_in"),
        ("vae", lambda s: {**s, "encoder.more": torch.ones(2)}, "vae holds, beside its own weights, encoder.more"),
        ("unet", lambda s: {**s, "conv_in.weight": s["conv_in.weight"] * torch.nan}, "unet is damaged, conv_in.weight holds"),
        ("vae", lambda s: {**s, "quant_conv.bias": (s["quant_conv.bias"] * 9).to(torch.int8)}, "quant_conv.bias as I8, not"),
    ],
)
def test_weights_that_are_not_whole_are_refused_by_name(copy: Path, part: str, change: Callable, message: str) -> None:
    weights(copy, part, change)
    with pytest.raises(ConfigError, match=message):
        Diffusion.load(ModelFolder(copy), CPU, "fp32")


def test_layers_that_the_config_leaves_out_are_refused(copy: Path) -> None:
    config(copy, "text_encoder", num_hidden_layers=1)
    with pytest.raises(ConfigError, match=r"text_encoder holds, beside its own weights, .*layers\.1\."):
        Diffusion.load(ModelFolder(copy), CPU, "fp32")


def test_weights_as_they_are_published_give_the_same(copy: Path, tiny: Diffusion) -> None:
    """Text encoders with or without a prefix, with buffers of old versions; attention of old VAEs; no VAE decoder."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(state: dict) -> dict:
        for new, before in old.items():
            state = {k.replace(f"attentions.0.{new}", f"attentions.0.{before}"): v for k, v in state.items()}
        return {k: v for k, v in state.items() if not k.startswith("decoder.")}

    weights(copy, "vae", renamed)
    if transformers.__version__ >= "5":  # what 5 writes, 4 does not read
        weights(copy, "text_encoder", lambda s: {k.removeprefix("text_model."): v for k, v in s.items()})
    plain = Diffusion.load(ModelFolder(copy), CPU, "fp32")
    image, words = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64), ["An image of cat."]
    assert torch.equal(plain.embed_prompts(words), tiny.embed_prompts(words))
    assert torch.equal(plain.encode(image), tiny.encode(image))
    ids = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    weights(copy, "text_encoder", lambda s: {**{f"text_model.{k.removeprefix('text_model.')}": v for k, v in s.items()}, **ids})
    assert torch.equal(Diffusion.load(ModelFolder(copy), CPU, "fp32").embed_prompts(words), tiny.embed_prompts(words))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ((), "tokenizer holds nothing, but no vocabulary"),
        (("tokenizer_config.json",), "tokenizer holds tokenizer_config.json, but no vocabulary"),
        (("tokenizer_config.json", "vocab.json"), "no vocabulary; wanted is tokenizer.json, or vocab.json and merges.txt"),
    ],
)
def test_a_tokenizer_without_words_is_refused(copy: Path, keep: tuple[str, ...], message: str) -> None:
    for file in (copy / "tokenizer").iterdir():
        if file.name not in keep:
            file.unlink()
    with pytest.raises(ConfigError, match=message):
        _ = ModelFolder(copy).tokenizer


@pytest.mark.parametrize("file", ["tokenizer/tokenizer_config.json", "unet/config.json"])
def test_a_pipe_in_a_model_is_not_waited_for(copy: Path, file: str) -> None:
    (copy / file).unlink()
    os.mkfifo(copy / file)
    with pytest.raises(ConfigError, match=rf"model .*a pipe or a device, not a file: .*{file}"):
        locate(ModelSettings(model=str(copy)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda words: {word: number + 10 for word, number in words.items()}, "not those of the text encoder"),
        (lambda words: {word: -number for word, number in words.items()}, "not those of the text encoder|does not load"),
        (lambda words: dict.fromkeys(words, 5), "not those of the text encoder"),
        (lambda words: words, "makes letters of words that it has; its vocabulary and its merges differ"),
    ],
)
def test_a_vocabulary_of_another_model_is_refused(copy: Path, change: Callable, message: str) -> None:
    _ = ModelFolder(copy).tokenizer
    words = json.loads((copy / "tokenizer" / "vocab.json").read_text())
    (copy / "tokenizer" / "tokenizer.json").unlink()
    (copy / "tokenizer" / "vocab.json").write_text(json.dumps(change(words)))
    (copy / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ConfigError, match=message):
        _ = ModelFolder(copy).tokenizer


def test_a_damaged_part_is_one_line_that_names_it(copy: Path) -> None:
    (copy / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="unet does not load"):
        Diffusion.load(ModelFolder(copy), CPU, "fp32")
    (copy / "vae" / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"vae/config.json: "):
        ModelFolder(copy).check()


def test_copies_in_half_precision_or_pickles_alone_are_refused(copy: Path) -> None:
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    with pytest.raises(ConfigError, match=r"unet holds no weights in full precision .*it holds .*fp16.safetensors"):
        ModelFolder(copy).check()
    single = copy.parent / "model.safetensors"
    single.write_bytes(b"")
    with pytest.raises(ConfigError, match="is a single file; convert it"):
        locate(ModelSettings(model=str(single)))


def test_weights_behind_an_index_are_files_that_the_models_digest_knows(copy: Path) -> None:
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(file), file.name)}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps(index))
    ModelFolder(copy).check()
    shutil.copy(file, file.with_name("other.safetensors"))
    index["weight_map"] = dict.fromkeys(load_file(file), "other.safetensors")
    file.with_name(f"{file.name}.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"unet has weights in other.safetensors, as .*index.json says"):
        ModelFolder(copy).check()


def test_a_prompt_that_says_nothing_of_the_class_is_refused() -> None:
    folder = ModelFolder(Path(TINY))
    folder.check_prompts([("An image of cat.", "An image of .")])
    with pytest.raises(ConfigError, match="says the same as the null prompt"):
        folder.check_prompts([("An image of .", "An image of .")])
    with pytest.raises(ConfigError, match="has the very tokens of the null prompt"):
        folder.check_prompts([("an  image of .", "An image of .")])  # the tokenizer knows no case and one space


def test_a_model_that_is_not_whole_costs_no_image(copy: Path, folder: Callable[..., Path], tmp_path: Path, diffsel) -> None:
    weights(copy, "unet", lambda s: {k: v for k, v in s.items() if k != "conv_out.weight"})
    source = folder(cat=3)
    words = ("score", source, "--out", tmp_path / "run", "--model", copy, "--image-size", 64, "--draws", 3, "--device", "cpu")
    code, _, err = diffsel(*words)
    assert code == 2
    assert "unet lacks conv_out.weight" in err
    assert "indexing" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_priors_are_whole_small_and_hear_words(name: str) -> None:
    """Every weight is there, 13 MiB are not passed, and each class has words of its own."""
    from diffsel.studies import scenes

    folder = locate(ModelSettings(model=name))
    folder.check()
    files = [file for file in folder.path.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 13 * 2**20
    assert not any(file.stat().st_mode & 0o444 != 0o444 for file in files)  # readable by everybody who installs it
    model = Diffusion.load(folder, torch.device("cpu"), "fp32")
    cifar = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    words = scenes.NAMES if name == "demo" else cifar
    prompts = model.embed_prompts(["An image of .", *(f"An image of {word}." for word in words)])
    noisy = torch.randn(1, model.channels, 16, 16, generator=torch.Generator().manual_seed(0))
    predicted = model.predict_noise(noisy.expand(11, -1, -1, -1), torch.full((11,), 500), prompts)
    apart = (predicted[:, None] - predicted[None]).square().mean((2, 3, 4))[~torch.eye(11, dtype=torch.bool)]
    assert apart.min() > 1e-6


# What is shipped: digest, tokens, and noise predictions by transformers and diffusers themselves (of cifar10 before it got the
# layout of published models).
BEFORE = {
    "demo": (
        "be82db5a1169a0e86e20402c2b303e9d",
        "589 320 66 64 339 267 274 77 64 127 107 85 324 278 268 75 321 67 78 70 338 262 158 246 225 269 590",
        [-1.52058, -0.78263, 0.91636, -0.27243],
    ),
    "cifar10": (
        "7cb058e48c7c4ea0eea69941a85893dd",
        "600 320 593 267 274 77 64 127 107 85 324 278 268 75 321 594 70 338 262 158 246 225 269 601",
        [-1.3281, 0.14978, -1.28741, -0.84723],
    ),
}


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_priors_are_laid_out_as_published_and_say_what_they_said(name: str) -> None:
    folder, (digest, tokens, expected) = locate(ModelSettings(model=name)), BEFORE[name]
    assert all(key.startswith("text_model.") for key in load_file(folder.path / "text_encoder" / "model.safetensors"))
    assert {file.name for file in (folder.path / "tokenizer").iterdir()} == {
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
    }
    words = ["An image of .", "a cat, 3 naïve 7-lb dogs' ☃."]
    assert folder.tokens(words[1]) == [int(token) for token in tokens.split()]
    assert folder.digest == digest  # runs stored before stay valid
    model = Diffusion.load(folder, CPU, "fp32")
    noisy = torch.linspace(-2, 2, model.channels * 256).reshape(1, -1, 16, 16).expand(2, -1, -1, -1)
    predicted = model.predict_noise(noisy, torch.tensor([100, 600]), model.embed_prompts(words))
    assert predicted[:, :, 3, 7].flatten()[:4].tolist() == pytest.approx(expected, abs=1e-4)
