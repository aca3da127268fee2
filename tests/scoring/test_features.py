"""Vectors: what they are made of, and what they do not depend on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from diffsel.scoring.diffusion import Diffusion
from diffsel.scoring.draws import Scorer, as_images, keyed_generator
from diffsel.scoring.features import Patch, embed_patches
from diffsel.settings.errors import ConfigError
from diffsel.settings.sections import FeatureSettings, ScoringSettings

PROMPT = "An image of cat."


def patch(seed: int, box=(0, 8, 32, 32), height: int = 64, width: int = 64) -> Patch:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Patch(str(seed), pixels, box)


def embed(model, patches, settings=None, batch_size=8) -> np.ndarray:
    found = dict(embed_patches(Scorer(model, ScoringSettings(), 0, batch_size), patches, PROMPT, settings or FeatureSettings()))
    return np.stack([found[i] for i in range(len(patches))])


def test_a_vector_is_the_normalised_mean_activation_of_the_crop(tiny: Diffusion) -> None:
    one = patch(0)
    latents = tiny.encode(as_images([one.pixels[0:32, 8:40]], tiny.device))
    noise = torch.randn(4, 4, 4, generator=keyed_generator(0, "0", one.box, "dift", 0))
    t = torch.tensor([160])
    feature = tiny.features(tiny.add_noise(latents, noise[None], t), t, tiny.embed_prompts([PROMPT]), 1)
    expected = feature.mean((2, 3)).numpy()[0]
    (ours,) = embed(tiny, [one])
    np.testing.assert_allclose(ours, expected / np.linalg.norm(expected), atol=1e-5)
    assert ours.dtype == np.float32
    assert np.linalg.norm(ours) == pytest.approx(1, abs=1e-6)


def test_vectors_do_not_depend_on_neighbours_or_their_order(tiny: Diffusion) -> None:
    patches = [patch(i) for i in range(5)] + [patch(9, (0, 0, 40, 48))]
    together = embed(tiny, patches)
    order = [3, 5, 0, 4, 2, 1]
    assert np.array_equal(together[order], embed(tiny, [patches[i] for i in order]))
    assert np.array_equal(together[1:2], embed(tiny, patches[1:2]))
    np.testing.assert_allclose(together, embed(tiny, patches, batch_size=2), atol=1e-5)


def test_an_ensemble_averages_and_lowers_the_noise(tiny: Diffusion) -> None:
    patches = [patch(0)]
    one, many = embed(tiny, patches), embed(tiny, patches, FeatureSettings(ensemble=8))
    other = embed(tiny, [Patch("another key", patches[0].pixels, patches[0].box)], FeatureSettings(ensemble=8))
    other_one = embed(tiny, [Patch("another key", patches[0].pixels, patches[0].box)])
    assert np.linalg.norm(many - other) < np.linalg.norm(one - other_one)


def test_pooling_inside_the_box_sees_the_whole_image(tiny: Diffusion) -> None:
    box = FeatureSettings(pooling="box")
    whole = patch(0, (0, 0, 64, 64))
    np.testing.assert_allclose(embed(tiny, [patch(1, (0, 0, 64, 64))], box).shape, (1, 24))
    assert not np.allclose(embed(tiny, [patch(0)], box), embed(tiny, [patch(0)]))
    assert not np.allclose(embed(tiny, [patch(0)], box), embed(tiny, [whole], box))


def test_other_blocks_and_steps(tiny: Diffusion) -> None:
    assert embed(tiny, [patch(0)], FeatureSettings(up_block=2)).shape == (1, 16)
    assert not np.allclose(embed(tiny, [patch(0)], FeatureSettings(timestep=0.5)), embed(tiny, [patch(0)]))
    with pytest.raises(ConfigError, match=r"up_block = 7.*blocks 0 to 3"):
        embed(tiny, [patch(0)], FeatureSettings(up_block=7))


def test_clip_features_are_the_librarys(tiny: Diffusion, tmp_path: Path, monkeypatch) -> None:
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=12,
    )
    clip = CLIPVisionModelWithProjection(config).eval()
    clip.save_pretrained(tmp_path)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    one = patch(0)
    with torch.inference_mode():
        inputs = processor(images=one.pixels[0:32, 8:40], return_tensors="pt")
        expected = torch.nn.functional.normalize(clip(**inputs).image_embeds, dim=1).numpy()
    ours = embed(tiny, [one, patch(1)], FeatureSettings(kind="clip", clip_model=str(tmp_path)))
    np.testing.assert_allclose(ours[:1], expected, atol=1e-5)
    threads, original = set[int](), CLIPImageProcessor.preprocess
    seen = lambda self, *args, **how: threads.add(threading.get_ident()) or original(self, *args, **how)  # noqa: E731
    monkeypatch.setattr(CLIPImageProcessor, "preprocess", seen)
    patches = [one, *(patch(i) for i in range(1, 7))]
    several = embed(tiny, patches, FeatureSettings(kind="clip", clip_model=str(tmp_path)), batch_size=2)
    np.testing.assert_allclose(several[:2], ours, atol=1e-6)
    assert threads
    assert threading.get_ident() not in threads  # pictures are prepared while the device works
    with pytest.raises(ConfigError, match="no_such"):
        embed(tiny, [one], FeatureSettings(kind="clip", clip_model=str(tmp_path / "no_such")))


def test_vectors_are_made_without_compiled_parts(tiny: Diffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are one and the same with and without --compile, which no RUN remembers."""
    inside, encoded, encode = [0], [], Diffusion.encode

    @contextmanager
    def eager(_model: Diffusion) -> Iterator[None]:
        inside[0] += 1
        yield
        inside[0] -= 1

    monkeypatch.setattr(Diffusion, "eager", eager)
    monkeypatch.setattr(Diffusion, "encode", lambda self, *what: encoded.append(inside[0]) or encode(self, *what))
    assert len(embed(tiny, [patch(0)])) == 1
    assert set(encoded) == {1}
