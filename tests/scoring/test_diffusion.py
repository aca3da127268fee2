"""The adapter: prediction types, the stopped pass, precision, and clear refusals."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import TINY

from diffsel.data.pixels import resized_size
from diffsel.machine.device import pick_device, pick_precision
from diffsel.scoring.diffusion import GRAPHS, Diffusion
from diffsel.scoring.folder import ModelFolder, locate
from diffsel.settings.errors import ConfigError
from diffsel.settings.sections import FeatureSettings, ModelSettings
from diffsel.settings.settings import resolve

CPU = torch.device("cpu")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def inputs(model: Diffusion):
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return z, torch.tensor([50, 600]), model.embed_prompts(["a", "b"])


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_other_prediction_types_are_turned_into_noise(tiny: Diffusion, copy: Path, kind: str) -> None:
    file = copy / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "prediction_type": kind}))
    other = Diffusion.load(ModelFolder(copy), CPU, "fp32")
    z, t, words = inputs(tiny)
    output = tiny.predict_noise(z, t, words)  # epsilon: the raw output
    noise = other.predict_noise(z, t, words)
    abar = tiny.scheduler.alphas_cumprod[t][:, None, None, None]
    # Recover z_0 from the raw output, and check that noising it with our noise gives z_t back.
    z0 = abar.sqrt() * z - (1 - abar).sqrt() * output if kind == "v_prediction" else output
    torch.testing.assert_close(other.add_noise(z0, noise, t), z, rtol=1e-4, atol=1e-4)


def test_a_stopped_pass_leaves_no_hook_and_runs_no_later_block(tiny: Diffusion) -> None:
    z, t, words = inputs(tiny)
    calls = []
    handles = [block.register_forward_hook(lambda *_, i=i: calls.append(i)) for i, block in enumerate(tiny.unet.up_blocks)]
    feature = tiny.features(z, t, words, 1)
    for handle in handles:
        handle.remove()
    assert calls == [0, 1]
    assert feature.shape == (2, 24, 4, 4)
    assert not any(block._forward_hooks for block in tiny.unet.up_blocks)
    with pytest.raises(ConfigError, match="blocks 0 to 3"):
        tiny.features(z, t, words, 4)


def test_settings_that_the_model_cannot_serve_are_refused() -> None:
    with pytest.raises(ConfigError, match="blocks 0 to 3"):
        ModelFolder(Path(TINY)).point(FeatureSettings(up_block=4))
    with pytest.raises(ConfigError, match=r"has .* tokens, the model takes 77"):
        ModelFolder(Path(TINY)).check_prompts([("a " * 100, "")])
    with pytest.raises(ConfigError, match=r"compute.device = 'foo' cannot be used"):
        pick_device("foo")


def test_only_needed_parts_are_kept(tiny: Diffusion) -> None:
    assert tiny.vae.decoder is None
    assert tiny.cell == 8
    assert tiny.steps == 1000


def test_bfloat16_predictions_come_back_as_float32(tiny: Diffusion) -> None:
    model = Diffusion.load(ModelFolder(Path(TINY)), CPU, "bf16")
    z, t, words = inputs(model)
    prediction = model.predict_noise(z, t, words)
    assert prediction.dtype == torch.float32
    z, t, words = inputs(tiny)
    expected = tiny.predict_noise(z, t, words)
    assert 0 < (prediction - expected).norm() < 0.1 * expected.norm()
    for name in ("fp16", "tf32"):
        with pytest.raises(ConfigError, match=f"compute.precision = '{name}' needs a GPU"):
            pick_precision(name, CPU)


def test_fp32_is_float32_in_convolutions_too_and_tf32_is_asked_for() -> None:
    """torch allows TF32 in convolutions unless told otherwise."""
    flags = lambda: (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)  # noqa: E731
    torch.backends.cudnn.allow_tf32 = True
    for precision, allowed in (("tf32", True), ("bf16", False), ("tf32", True), ("fp32", False)):
        assert Diffusion.load(ModelFolder(Path(TINY)), CPU, precision).dtype == (
            torch.bfloat16 if precision == "bf16" else torch.float32
        )
        assert flags() == (allowed, allowed)
    assert pick_precision("tf32", torch.device("cuda")) == "tf32"
    assert [pick_precision("auto", torch.device(kind), scoring=True) for kind in ("cuda", "cpu")] == ["fp16", "fp32"]
    assert pick_precision("auto", torch.device("cuda")) == "fp32"  # of students and teachers
    assert resolve({"compute": {"precision": "tf32"}}).compute.precision == "tf32"


def test_a_compiled_unet_has_a_graph_for_every_latent_shape() -> None:
    """torch stops compiling, without a word, after 8 shapes; a class of photographs has 30 and more."""
    import torch._dynamo.config as dynamo

    sides = {resized_size(*size, 256) for side in range(256, 2049) for size in ((256, side), (side, 256))}
    shapes = {(width // 8, height // 8) for width, height in sides}
    with dynamo.patch(recompile_limit=8, accumulated_recompile_limit=256):
        Diffusion.load(ModelFolder(Path(TINY)), CPU, "fp32", compiled=True)  # compiles when it is first called
        assert dynamo.recompile_limit >= len(shapes)
        assert dynamo.accumulated_recompile_limit >= len(shapes)


def test_images_of_many_sizes_share_the_graphs_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs have some 36 shapes, and a graph takes about a minute to make.  It gives what the network itself gives."""
    graphs: list[int] = []

    def backend(graph, _inputs):
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    plain, model = (Diffusion.load(ModelFolder(Path(TINY)), CPU, "fp32", compiled=compiled) for compiled in (False, True))
    torch.compiler.reset()
    model.compile(GRAPHS + 1)
    assert model.of_all_sizes
    words, t = model.embed_prompts(["An image of cat."] * 2), torch.tensor([500, 500])
    for width in (80, 96, 112):
        images = torch.rand(2, 3, 64, width)
        latents = model.encode(images)
        assert torch.equal(latents, plain.encode(images))
        assert torch.equal(model.predict_noise(latents, t, words), plain.predict_noise(latents, t, words))
    assert len(graphs) == 1  # the VAE is not compiled
    model.compile(GRAPHS)
    with model.eager():
        model.encode(images)
    assert len(graphs) == 1
    assert torch.equal(model.encode(images), plain.encode(images))
    assert len(graphs) == 2
    torch.compiler.reset()


def test_a_few_shapes_have_a_graph_each(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch, "compile", lambda network, dynamic: asked.append(dynamic) or network)
    model = Diffusion.load(ModelFolder(Path(TINY)), CPU, "fp32", compiled=True)
    assert asked == [False, False]  # network and VAE
    model.compile(GRAPHS)
    assert asked == [False] * 4
    model.compile(GRAPHS + 1)
    assert asked == [False] * 4 + [True]


def test_a_compiled_unet_is_asked_whatever_its_truth_value() -> None:
    """torch's compiled modules answer len() and so bool() with an error where the network has no length."""

    class Compiled:
        def __len__(self) -> int:
            raise TypeError("UNet2DConditionModel does not support len()")

        def __call__(self, noisy: torch.Tensor, *_rest: object, **_named: object) -> tuple[torch.Tensor]:
            return (noisy + 1,)

    model = Diffusion.load(ModelFolder(Path(TINY)), CPU, "fp32")
    model.forward = Compiled()
    noisy = torch.zeros(1, 4, 8, 8)
    predicted = model.predict_noise(noisy, torch.tensor([10]), model.embed_prompts(["x"]))
    assert torch.equal(predicted, noisy + 1)


def test_the_hash_follows_the_content_not_the_place(copy: Path) -> None:
    assert ModelFolder(copy).digest == ModelFolder(Path(TINY)).digest
    (copy / "unet" / "notes.md").write_text("not part of the model")
    assert ModelFolder(copy).digest == ModelFolder(Path(TINY)).digest
    file = copy / "scheduler" / "scheduler_config.json"
    file.write_text(file.read_text().replace("0.012", "0.013"))
    assert ModelFolder(copy).digest != ModelFolder(Path(TINY)).digest


def test_a_model_that_is_not_there_or_not_whole_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="no such folder, and not a hub id"):
        locate(ModelSettings(model="/no/such/folder"))
    shutil.rmtree(copy / "vae")
    with pytest.raises(ConfigError, match="not in diffusers layout, vae missing"):
        locate(ModelSettings(model=str(copy)))


def test_pickled_weights_are_not_loaded(copy: Path) -> None:
    for file in (copy / "unet").glob("*.safetensors"):
        state = {"anything": torch.zeros(1)}
        torch.save(state, file.with_suffix(".bin"))
        file.unlink()
    with pytest.raises(ConfigError):
        Diffusion.load(ModelFolder(copy), CPU, "fp32")
