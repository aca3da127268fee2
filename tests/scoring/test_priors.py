"""Each family predicts what diffusers' own pipeline computes in its loop, at the same latent, time and condition."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from families import NEW, pipeline, saved
from pictures import picture
from torch import Tensor

from diffsel.scoring.diffusion import Diffusion
from diffsel.scoring.draws import as_images
from diffsel.scoring.folder import ModelFolder
from diffsel.scoring.levels import Table
from diffsel.settings.errors import ConfigError
from diffsel.settings.sections import FeatureSettings

CPU = torch.device("cpu")
PROMPT = "golden retriever"


@pytest.fixture(scope="module", params=["sd", *NEW])
def prior(request: pytest.FixtureRequest) -> Diffusion:
    return Diffusion.load(ModelFolder(saved(request.param)), CPU, "fp32")


@dataclass
class Seen:
    """Of one step of a pipeline's loop: what its network was given and gave, unconditional first or last, and how its
    scheduler moved."""

    noisy: Tensor  # as the network sees it
    t: Tensor
    output: Tensor
    moves: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)  # latent before and after, sigma after


def watched(pipe: Any, monkeypatch: pytest.MonkeyPatch, **asked: Any) -> list[Seen]:
    """The steps of a run."""
    seen: list[Seen] = []
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer

    def look(_: Any, args: tuple, named: dict, output: Any) -> None:
        noisy = args[0] if args else named["hidden_states"]
        t = args[1] if len(args) > 1 else named["timestep"]
        t = 1000 * t if network is getattr(pipe, "transformer", None) and "time_factor" in network.config else t  # PRX: a share
        seen.append(Seen(noisy, t.expand(len(noisy)), output[0]))

    step = pipe.scheduler.step

    def watch(output: Tensor, t: Tensor, sample: Tensor, **more: Any) -> Any:
        found = step(output, t, sample, **more)
        sigma = pipe.scheduler.sigmas[pipe.scheduler.step_index] if hasattr(pipe.scheduler, "sigmas") else torch.zeros(())
        seen[-1].moves.append((sample, found[0] if isinstance(found, tuple) else found.prev_sample, sigma))
        return found

    handle = network.register_forward_hook(look, with_kwargs=True)
    monkeypatch.setattr(pipe.scheduler, "step", watch)
    pipe(**asked, num_inference_steps=3, generator=torch.manual_seed(0))
    handle.remove()
    return seen


def asked(name: str, null: bool) -> dict[str, Any]:
    """A call of the pipeline whose network sees the unconditional half first (of DiT last); ``null``: an encoded empty text."""
    if name == "dit":
        return {"class_labels": [207], "guidance_scale": 3.0, "output_type": "np"}
    call: dict[str, Any] = {"prompt": PROMPT, "guidance_scale": 3.0, "output_type": "latent", "height": 64, "width": 64}
    if name in ("pixart", "prx"):
        call |= {"use_resolution_binning": False}
    if null and name in ("sdxl", "sd3"):
        return call | {"negative_prompt": ""}
    if name == "sd3":  # as it was trained: no text encoder says anything
        rows = 77 + 256
        zeros = {"negative_prompt_embeds": torch.zeros(1, rows, 32), "negative_pooled_prompt_embeds": torch.zeros(1, 32)}
        return call | zeros
    return call


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("null", [False, True], ids=["own null", "empty text"])
def test_noise_is_that_of_the_pipelines_own_loop(prior: Diffusion, null: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    name, pipe = prior.folder.family, pipeline(prior.folder.family)
    steps = watched(pipe, monkeypatch, **asked(name, null))
    words = prior.embed_prompts([" " if null and name in ("sdxl", "sd3") else "", PROMPT])
    words = words.flip(0) if name == "dit" else words
    assert len(steps) >= 3
    for seen in steps:
        t = seen.t.long() if isinstance(prior.levels, Table) else seen.t
        ours = prior.predict_noise(seen.noisy, t, words)
        torch.testing.assert_close(ours, expected(pipe, seen, prior.channels), rtol=0, atol=1e-5)
    assert not torch.allclose(ours[0], ours[1], atol=1e-3)  # so the words are heard


def expected(pipe: Any, seen: Seen, channels: int) -> Tensor:
    """Noise, both halves: the output itself, or where it is a flow, by going on to pure noise as the scheduler moves."""
    if pipe.scheduler.config.get("prediction_type", "flow") == "epsilon":
        return seen.output[:, :channels]
    s = seen.t[0] / 1000
    ((before, after, there),) = seen.moves
    guided = seen.output[0] + 3.0 * (seen.output[1] - seen.output[0])
    velocity = (after - before) / (there - s)
    torch.testing.assert_close(velocity[0], guided, rtol=1e-3, atol=1e-4)  # so the output is the velocity
    return seen.noisy + (1 - s) * seen.output


@pytest.mark.skipif("prx" not in NEW, reason="this diffusers has no PRX")
def test_prx_hears_what_its_own_pipeline_says_and_its_text_encoder_may_be_told_beside_a_decoder(tmp_path: Path) -> None:
    folder = shutil.copytree(saved("prx"), tmp_path / "model")
    config = folder / "text_encoder" / "config.json"
    alone = json.loads(config.read_text())
    config.write_text(json.dumps({"model_type": "t5gemma", "encoder": alone, "decoder": {**alone, "hidden_size": 64}}))
    prompts = ["", "An image of Golden Retriever.", " TENCH "]
    theirs, mask, *_ = pipeline("prx").encode_prompt(prompts, do_classifier_free_guidance=False)
    for each in (saved("prx"), folder):
        words = Diffusion.load(ModelFolder(each), CPU, "fp32").embed_prompts(prompts)
        assert torch.equal(words[:, :, -1].bool(), mask)
        torch.testing.assert_close(words[:, :, :-1], theirs, rtol=0, atol=1e-5)
    assert mask.sum(1).tolist()[0] == 1  # the null is heard: a first token


def test_latents_are_those_of_the_pipelines_vae(prior: Diffusion) -> None:
    pipe, images = pipeline(prior.folder.family), as_images([picture(0)], CPU)
    config = pipe.vae.config
    theirs = (pipe.vae.encode(images).latent_dist.mean - (config.shift_factor or 0)) * config.scaling_factor
    torch.testing.assert_close(prior.encode(images), theirs.detach(), rtol=1e-4, atol=1e-5)
    assert prior.encode(images).shape[1:] == (prior.channels, 64 // prior.cell, 64 // prior.cell)


def test_shapes_that_are_no_squares_and_do_not_divide_into_patches(prior: Diffusion) -> None:
    """A whole number of patches: as it is.  One more column: the others hardly change."""
    noisy = torch.randn(2, prior.channels, 8, 12, generator=torch.Generator().manual_seed(0))
    t, words = torch.full((2,), prior.time(0.5)), prior.embed_prompts(["", PROMPT])
    whole = prior.predict_noise(noisy, t, words)
    assert whole.shape == noisy.shape
    assert prior.predict_noise(noisy[..., :11], t, words).shape == (2, prior.channels, 8, 11)
    turned = prior.predict_noise(noisy.transpose(2, 3).contiguous(), t, words)
    assert turned.shape == (2, prior.channels, 12, 8)
    if prior.folder.family == "dit":  # which diffusers puts back into squares only: a square by the same way
        square, network = noisy[..., :8], prior.network
        plain = prior.predict_noise(square, t, words)
        monkey = torch.cat([square, square], 3)
        assert prior.predict_noise(monkey, t, words).shape[3] == 16
        tokens = prior.stopped(network.proj_out_2, lambda: network(square, timestep=t, class_labels=words[:, 0, 0].long()))
        cells = tokens.reshape(2, 4, 4, 2, 2, 8)
        assert torch.allclose(torch.einsum("nhwpqc->nchpwq", cells).reshape(2, 8, 8, 8)[:, :4], plain, atol=1e-6)


def test_features_come_from_a_named_point(prior: Diffusion) -> None:
    folder = prior.folder
    noisy = torch.randn(2, prior.channels, 8, 8, generator=torch.Generator().manual_seed(0))
    t, words = torch.full((2,), prior.time(0.16)), prior.embed_prompts([PROMPT, PROMPT])
    usual = {"sd": 1, "sdxl": "up.0", "dit": "block.1", "pixart": "block.1", "sd3": "block.1", "prx": "block.1"}[folder.family]
    assert prior.point(FeatureSettings()) == usual
    found = prior.features(noisy, t, words, usual)
    assert found.shape[2:] == (4, 4)
    assert found.dtype == torch.float32
    other = prior.point(FeatureSettings(point=folder.points[-1]))
    assert prior.features(noisy, t, words, other).shape != found.shape or not torch.equal(
        prior.features(noisy, t, words, other), found
    )
    with pytest.raises(ConfigError, match=r"features.point = 'block.99': this model has"):
        prior.features(noisy, t, words, "block.99")


@pytest.mark.parametrize("name", [name for name in NEW if name != "sdxl"])
def test_a_blocks_features_are_normalised_and_modulated(name: str) -> None:
    """What the block's own AdaLN gives for the tokens that come in."""
    prior = Diffusion.load(ModelFolder(saved(name)), CPU, "fp32")
    noisy, t = torch.randn(1, prior.channels, 8, 8), torch.full((1,), prior.time(0.16))
    words, block = prior.embed_prompts([PROMPT]), getattr(prior.network, prior.blocks)[1]
    given: dict[str, Any] = {}
    handle = block.register_forward_pre_hook(lambda _, a, k: given.update(k, first=a[0] if a else None), with_kwargs=True)
    with torch.inference_mode():
        prior.output(noisy, t, words, prior.network)
        handle.remove()
        tokens = given["first"] if given["first"] is not None else given["hidden_states"]
        if name == "pixart":
            six = (block.scale_shift_table[None] + given["timestep"].reshape(1, 6, -1)).chunk(6, dim=1)
            modulated = block.norm1(tokens) * (1 + six[1]) + six[0]
        elif name == "prx":
            (shift, scale, _), _ = block.modulation(given["temb"])
            modulated = (1 + scale) * block.img_pre_norm(tokens) + shift
        elif name == "sd3":
            modulated = block.norm1(tokens, emb=given["temb"])[0]
        else:
            modulated = block.norm1(tokens, given["timestep"], given["class_labels"], hidden_dtype=tokens.dtype)[0]
    theirs = modulated.reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    torch.testing.assert_close(prior.features(noisy, t, words, "block.1"), theirs, rtol=1e-5, atol=1e-5)
