"""Maps: the formulas, and that an image's maps depend on nothing but itself and the settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pictures import SETTINGS, picture, score

from diffsel.scoring.batching import batch_sizes, evenly, filled, filled_forwards, forwards
from diffsel.scoring.diffusion import Diffusion
from diffsel.scoring.draws import Scorer, differential_and_gap, draw_noise
from diffsel.scoring.maps import Asked, Maps, label_losses, rival_losses
from diffsel.settings.errors import ConfigError
from diffsel.settings.sections import ScoringSettings


def same_bytes(a: Maps, b: Maps) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("differential", "gap", "null"))


def close(a: Maps, b: Maps) -> bool:
    return all(
        np.allclose(getattr(a, name), getattr(b, name), rtol=2e-3, atol=2e-5) for name in ("differential", "gap", "null")
    )


class Oracle:
    """A model whose predictions are known: eps + offset, where the offset is the prompt's number."""

    device, steps, cell, channels = torch.device("cpu"), 1000, 8, 4

    def embed_prompts(self, prompts):
        return torch.tensor([float(len(prompt)) for prompt in prompts])[:, None, None]

    def encode(self, images, noise=None):
        return torch.zeros(len(images), 4, images.shape[2] // 8, images.shape[3] // 8)

    def add_noise(self, latents, noise, t):
        return noise

    def predict_noise(self, noisy, t, words):
        return noisy + words[:, :1, :, None] * (t[:, None, None, None] / 1000)


def test_maps_are_the_formulas_of_the_method() -> None:
    """With a - eps = p0 t and b - eps = p1 t, D = (p1^2 - p0^2) E[t^2] and G = (p1 - p0)^2 E[t^2], bin by bin."""
    settings = ScoringSettings(null_prompt="12", draws=6, bins=3)
    maps = score(Oracle(), [("key", picture(0))], ["1234", "12345"], settings)["key"]
    t = np.array([draw_noise("key", d, (4, 8, 8), settings, 0, 1000)[0] / 1000 for d in range(6)])
    square = (t**2).reshape(2, 3).mean(0)  # draws go to the bins in turn
    for p, length in enumerate((4, 5)):
        for b in range(3):
            np.testing.assert_allclose(maps.differential[p, b], (length**2 - 4) * square[b], rtol=2e-3)
            np.testing.assert_allclose(maps.gap[p, b], (length - 2) ** 2 * square[b], rtol=2e-3)
            np.testing.assert_allclose(maps.null[b], 4 * square[b], rtol=1e-5)


def test_the_product_form_equals_the_difference_of_losses() -> None:
    eps, a, b = torch.randn(3, 2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    differential, gap = differential_and_gap(eps, a, b)
    torch.testing.assert_close(differential, (b - eps).square().mean(1) - (a - eps).square().mean(1))
    torch.testing.assert_close(gap, (a - b).square().mean(1))


def test_the_gap_has_minus_the_expectation_of_the_differential_for_a_calibrated_model() -> None:
    """eps ~ N(b, s): loss(null) - loss(label) - G = 2 (a - b).(b - eps) has mean zero, and only that term is noise."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1, 4, 4, 4, generator=generator)
    eps = b + torch.randn(20_000, 4, 4, 4, generator=generator)
    differential, gap = differential_and_gap(eps, a.expand_as(eps), b.expand_as(eps))
    error = differential.std(0) / 20_000**0.5
    assert ((-differential.mean(0) - gap[0]).abs() < 5 * error).all()
    assert gap.std(0).max() < 1e-5


def timesteps(key: str, draws: int) -> np.ndarray:
    settings = ScoringSettings(t_min=0.1, t_max=0.7, draws=draws, bins=3)
    return np.array([draw_noise(key, d, (4, 2, 2), settings, 0, 1000)[0] for d in range(draws)])


@pytest.mark.parametrize("per_bin", [1, 2, 4, 8])
def test_timesteps_are_stratified_inside_every_bin(per_bin: int) -> None:
    for key in ("a", "b", "c"):
        t = timesteps(key, 3 * per_bin).reshape(per_bin, 3)
        for b in range(3):
            assert ((t[:, b] >= 100 + 200 * b) & (t[:, b] < 300 + 200 * b)).all()
            part = 200 / per_bin
            shift = (np.sort(t[:, b]) - 100 - 200 * b) / part  # one in each equal part, at the same place within
            np.testing.assert_allclose(shift, shift[0] + np.arange(per_bin), atol=1.01 / part)


def test_a_shorter_pass_is_the_beginning_of_a_longer_one() -> None:
    assert (timesteps("a", 6) == timesteps("a", 24)[:6]).all()


def test_timesteps_are_uniform_over_images() -> None:
    t = np.concatenate([timesteps(str(key), 3) for key in range(400)])
    counts, _ = np.histogram(t, 12, (100, 700))
    assert abs(counts - 100).max() < 45  # 4.7 standard deviations


def test_noise_is_keyed_by_seed_image_and_draw() -> None:
    def noise(key: str, draw: int, seed: int = 0) -> bytes:
        return draw_noise(key, draw, (4, 2, 2), SETTINGS, seed, 1000)[1].numpy().tobytes()

    assert noise("a", 0) == noise("a", 0)
    assert len({noise("a", 0), noise("b", 0), noise("a", 1), noise("a", 0, seed=1)}) == 4
    everything = torch.cat([draw_noise(str(k), 0, (4, 16, 16), SETTINGS, 0, 1000)[1].flatten() for k in range(50)])
    assert abs(everything.mean()) < 0.02
    assert abs(everything.std() - 1) < 0.02


def test_sizes_of_one_latent_shape_share_a_forward(tiny: Diffusion, monkeypatch) -> None:
    """Photographs come in many sizes; a latent cell is 8 pixels, so that few shapes are left for the U-Net."""
    sizes: list[int] = []
    original = Diffusion.predict_noise
    monkeypatch.setattr(Diffusion, "predict_noise", lambda self, x, *a: sizes.append(len(x)) or original(self, x, *a))
    images = [(str(i), picture(i, 64, 64 + i)) for i in range(4)]
    together = score(tiny, images)
    assert sizes == [8] * 4  # 4 images x 4 draws x 2 prompts, in batches of 8
    assert all(same_bytes(together[key], score(tiny, [(key, pixels)])[key]) for key, pixels in images)


def test_maps_do_not_depend_on_neighbours_or_their_order(tiny: Diffusion) -> None:
    images = [(str(i), picture(i)) for i in range(5)] + [("wide", picture(9, 64, 88))]
    together = score(tiny, images)
    assert len(together) == 6
    shuffled = score(tiny, [images[i] for i in (4, 5, 1, 3, 0, 2)])
    alone = score(tiny, images[2:3])
    assert all(same_bytes(together[key], shuffled[key]) for key in together)
    assert same_bytes(together["2"], alone["2"])


@pytest.mark.parametrize("batch_size", [1, 2, 5, 32])
def test_other_batch_sizes_agree_to_rounding(tiny: Diffusion, batch_size: int) -> None:
    images = [("0", picture(0)), ("1", picture(1))]
    expected, other = score(tiny, images), score(tiny, images, batch_size=batch_size)
    assert all(close(expected[key], other[key]) for key in expected)


def test_prompts_of_one_pass_share_draws_and_null_losses(tiny: Diffusion) -> None:
    images, prompts = [("0", picture(0))], ["An image of cat.", "An image of dog.", "a photo"]
    together = score(tiny, images, prompts)["0"]
    for p, prompt in enumerate(prompts):
        alone = score(tiny, images, [prompt])["0"]
        np.testing.assert_allclose(together.differential[p], alone.differential[0], rtol=2e-3, atol=2e-5)
        np.testing.assert_allclose(together.gap[p], alone.gap[0], rtol=2e-3, atol=2e-5)
        np.testing.assert_allclose(together.null, alone.null, rtol=1e-4)


def test_the_null_prompt_against_itself_is_zero(tiny: Diffusion) -> None:
    maps = score(tiny, [("0", picture(0))], [SETTINGS.null_prompt])["0"]
    assert abs(maps.differential).max() < 1e-4
    assert abs(maps.gap).max() < 1e-6


def test_a_posterior_sample_is_keyed_and_differs_from_the_mean(tiny: Diffusion) -> None:
    images, sample = [("0", picture(0)), ("1", picture(1))], SETTINGS.model_copy(update={"posterior": "sample"})
    mean, first, again = (
        score(tiny, images)["0"],
        score(tiny, images, settings=sample),
        score(tiny, images[:1], settings=sample),
    )
    assert same_bytes(first["0"], again["0"])
    assert not same_bytes(first["0"], mean)


def test_a_map_and_bin_takes_2_kb_at_256_pixels() -> None:
    maps = score(Oracle(), [("key", picture(0, 256, 256))])["key"]
    assert maps.differential[0, 0].nbytes == maps.gap[0, 0].nbytes == 2048


def test_forwards_counts_calls(tiny: Diffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, original = [], Diffusion.predict_noise
    monkeypatch.setattr(Diffusion, "predict_noise", lambda self, z, t, w: seen.append(len(z)) or original(self, z, t, w))
    score(tiny, [("0", picture(0)), ("1", picture(1)), ("2", picture(2))])  # 3 images x 4 draws x 2 prompts
    assert sum(seen) == forwards(3, 1, SETTINGS) == 24


def test_batches_of_a_shape_are_equally_full_and_hold_no_more_cells_than_squares_do() -> None:
    """A panorama of four squares has a quarter of the samples; of a shape that comes once, there are its own draws."""
    settings, square, wide = ScoringSettings(draws=6), (4, 32, 32), (4, 32, 128)
    sizes = batch_sizes({square: 8, wide: 4}, square, 1, settings, 64)
    assert sizes == {square: 48, wide: 16}  # 48 draws in 2 batches, 24 in 3
    assert filled_forwards([square] * 8 + [wide] * 4, 1, settings, sizes) == forwards(12, 1, settings)
    assert batch_sizes({square: 10**6, wide: 1}, square, 1, settings, 64) == {square: 64, wide: 16}


@pytest.mark.parametrize(
    ("items", "most", "samples", "expected"),
    [
        (33, 32, 2, 12),
        (42, 32, 2, 24),
        (32, 32, 2, 32),
        (6, 32, 2, 8),
        (6, 32, 3, 8),
        (6, 5, 3, 5),
        (33, 33, 8, 33),
        (10**6, 70, 1, 64),
        (33, 2**62, 2, 36),  # at once: of absurd numbers most are useless
        (33, 10**30, 1, 40),
    ],
)
def test_items_are_spread_over_equal_batches_of_eights(items: int, most: int, samples: int, expected: int) -> None:
    assert evenly(items, most, samples) == expected


def test_filling_repeats_the_last_item() -> None:
    assert filled([1, 2], 2) == [1, 2]
    assert filled([3], 3) == [3, 3, 3]


def test_a_prompt_that_is_too_long_is_named(tiny: Diffusion) -> None:
    with pytest.raises(ConfigError, match=r"An image of very very .* has .* tokens, the model takes 77"):
        tiny.embed_prompts(["An image of " + "very " * 80])


def test_losses_of_a_prompt_alone_minus_the_kept_null_loss_are_its_differential_map(tiny: Diffusion) -> None:
    images = [("0", picture(0)), ("1", picture(1))]
    full = score(tiny, images, ["a photo", "An image of dog."])
    for batch_size in (2, 8):
        for place, losses in label_losses(Scorer(tiny, SETTINGS, 0, batch_size), images, ["An image of dog.", "a photo"]):
            maps = full[images[place][0]]
            np.testing.assert_allclose((losses - maps.null)[::-1], maps.differential, rtol=2e-3, atol=2e-5)


def test_rivals_are_the_likeliest_by_one_draw_and_no_forward_is_made_twice(tiny: Diffusion, monkeypatch) -> None:
    """Of one bin that draw is the first: the beginning of a longer pass.  Two images of other shapes, other words for each."""
    prompts = [f"An image of {name}." for name in ("cat", "fox", "owl", "dog")]
    settings = ScoringSettings(draws=4, bins=1)
    images = [("0", picture(0)), ("1", picture(1)), ("2", picture(2, 96))]
    one, all_ = (Scorer(tiny, settings.model_copy(update={"draws": n}), 0, 1) for n in (1, 4))
    order = {i: losses.mean((1, 2, 3)).argsort() for i, losses in label_losses(one, images, prompts)}
    full = dict(label_losses(all_, images, prompts))
    taken, encoded = [], []
    original, encode = Diffusion.predict_noise, Diffusion.encode
    monkeypatch.setattr(Diffusion, "predict_noise", lambda self, x, *rest: taken.append(len(x)) or original(self, x, *rest))
    monkeypatch.setattr(Diffusion, "encode", lambda self, x, *rest: encoded.append(len(x)) or encode(self, x, *rest))
    found = dict(rival_losses(all_, [Asked(key, pixels, tuple(prompts)) for key, pixels in images], 2))
    assert sum(taken) == 3 * (4 + 2 * 3)
    assert len(encoded) == 3
    alone = dict(rival_losses(one, [Asked(key, pixels, tuple(prompts)) for key, pixels in images], 2))
    for i in range(3):
        np.testing.assert_array_equal(found[i][0], order[i][:2])
        np.testing.assert_array_equal(alone[i][0], order[i][:2])
        assert alone[i][1].shape == found[i][1].shape
        np.testing.assert_allclose(found[i][1], full[i][order[i][:2]], rtol=1e-5)


def test_rivals_do_not_depend_on_the_images_beside_them(tiny: Diffusion) -> None:
    prompts = tuple(f"An image of {name}." for name in ("cat", "fox", "owl"))
    asked = [Asked(str(i), picture(i), prompts) for i in range(3)]
    scorer = Scorer(tiny, SETTINGS, 0, 8)
    together = dict(rival_losses(scorer, asked, 2))
    for i in range(3):
        ((_, (order, losses)),) = rival_losses(scorer, asked[i : i + 1], 2)
        np.testing.assert_array_equal(order, together[i][0])
        np.testing.assert_array_equal(losses, together[i][1])


def test_each_image_has_rivals_of_its_own() -> None:
    """Whose loss is least: the prompt whose length is nearest to the image's brightness (a model that knows the answer)."""

    class Knows(Oracle):
        def encode(self, images, noise=None):
            return super().encode(images) + (images.mean((1, 2, 3))[:, None, None, None] + 1) * 127.5

        def add_noise(self, latents, noise, t):
            return latents + 0 * noise

        def predict_noise(self, noisy, t, words):
            return (noisy - words[:, :1, :, None]) * 100

    prompts = tuple("x" * length for length in (50, 100, 150, 200))
    asked = [Asked(str(grey), np.full((64, 64, 3), grey, np.uint8), prompts) for grey in (60, 190, 110)]
    scorer = Scorer(Knows(), ScoringSettings(draws=4, bins=2), 0, 4)
    assert {i: order.tolist() for i, (order, _) in rival_losses(scorer, asked, 2)} == {0: [0, 1], 1: [3, 2], 2: [1, 2]}
