"""Augmentation against torchvision's: the same boxes and pixels, the same distributions, nothing that a batch could change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as tv

from diffsel.data import views as augment
from diffsel.data.views import Views, draw_crops, draw_mix, draw_views, epoch_generator, strips, view

SCALES = [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.5, 1.0), (3 / 4, 4 / 3)), ((0.25, 1.0), (1.0, 1.0))]


@pytest.mark.parametrize(("scale", "ratio"), SCALES)
@pytest.mark.parametrize("shape", [(64, 64), (40, 90)])
def test_crops_are_distributed_as_torchvisions(scale, ratio, shape: tuple[int, int]) -> None:
    """Kolmogorov-Smirnov on each coordinate of 4,000 boxes; 1 in 1,000 would fail by chance, but the seeds are fixed."""
    torch.manual_seed(1)
    image = torch.zeros(3, *shape)
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(4000)])
    ours = draw_crops(np.random.default_rng(1), 4000, *shape, scale, ratio)
    for k in range(4):
        assert stats.ks_2samp(theirs[:, k], ours[:, k]).pvalue > 1e-3, ["top", "left", "height", "width"][k]
    assert (ours[:, 0] + ours[:, 2] <= shape[0]).all()
    assert (ours[:, 1] + ours[:, 3] <= shape[1]).all()
    assert (ours[:, 2:] > 0).all()


def test_a_crop_that_never_fits_is_the_middle() -> None:
    boxes = draw_crops(np.random.default_rng(0), 5, 100, 10, (0.99, 1.0), (1.0, 1.0))
    assert boxes.tolist() == [[45, 0, 10, 10]] * 5


@pytest.mark.parametrize("size", [16, 32, 48])
def test_cropping_and_resizing_is_torchvisions(size: int) -> None:
    """Smaller, equal and larger: antialiased bilinear, mirrored after."""
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (6, 3, 32, 40), dtype=np.uint8))
    boxes = draw_crops(rng, 6, 32, 40, (0.2, 1.0), (3 / 4, 4 / 3))
    flips = np.array([True, False] * 3)
    still = np.zeros((6, 1), np.int64)
    ours = view(pixels, Views(boxes, flips, still, still), size)
    for image, box, flip, mine in zip(pixels.float(), boxes, flips, ours, strict=True):
        theirs = tv.resized_crop(image, *map(int, box), [size, size], InterpolationMode.BILINEAR, antialias=True)
        torch.testing.assert_close(mine, theirs.flip(-1) if flip else theirs, atol=1e-3, rtol=0)


def test_shuffling_comes_before_cropping() -> None:
    rng = np.random.default_rng(3)
    pixels = torch.from_numpy(rng.integers(0, 256, (1, 3, 33, 33), dtype=np.uint8))
    rows, cols = torch.tensor([[1, 0]]), torch.tensor([[1, 0]])
    box = np.array([[3, 5, 20, 25]])
    shuffled = pixels[:, :, strips(rows, 33)[0]][:, :, :, strips(cols, 33)[0]]
    still = np.zeros((1, 1), np.int64)
    both = view(pixels, Views(box, np.array([False]), rows, cols), 24)
    torch.testing.assert_close(both, view(shuffled, Views(box, np.array([False]), still, still), 24))


def test_shuffles_and_flips_are_uniform() -> None:
    views = draw_views(np.random.default_rng(0), 6000, 32, 32, crop=False, scale=(1, 1), flip=True, factor=3)
    _, counts = np.unique(views.rows @ [9, 3, 1], return_counts=True)
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-3
    assert stats.binomtest(int(views.flip.sum()), 6000).pvalue > 1e-3
    assert abs(np.corrcoef(views.rows[:, 0], views.cols[:, 0])[0, 1]) < 0.05
    still = draw_views(np.random.default_rng(0), 10, 32, 32, crop=False, scale=(1, 1), flip=False, factor=1)
    assert not still.flip.any()
    assert (still.crop == [0, 0, 32, 32]).all()


def test_mixes_are_distributed_as_theirs() -> None:
    drawn = [draw_mix(np.random.default_rng([0, i]), 8, 32, 32, "cutmix") for i in range(3000)]
    assert stats.kstest([mix.lam for mix in drawn], "uniform").pvalue > 1e-3  # Beta(1, 1)
    mixup = [draw_mix(np.random.default_rng([1, i]), 8, 32, 32, "mixup").lam for i in range(3000)]
    assert stats.kstest(mixup, stats.beta(0.8, 0.8).cdf).pvalue > 1e-3
    assert all(sorted(mix.partner) == list(range(8)) for mix in drawn[:100])
    tops, draw = [], np.random.RandomState(0)
    for _ in range(3000):
        tops.append(augment.cut_box(32, 32, draw.beta(1, 1), (draw.randint(32), draw.randint(32))))
    for k in range(4):
        assert stats.ks_2samp([mix.box[k] for mix in drawn], [box[k] for box in tops]).pvalue > 1e-3


def test_the_share_of_a_mix_is_its_area() -> None:
    mix = draw_mix(np.random.default_rng(5), 4, 32, 32, "cutmix")
    images = torch.zeros(4, 1, 32, 32) + torch.arange(4.0)[:, None, None, None] ** 9
    kept = (augment.apply_mix(images, mix) == images).float().mean((1, 2, 3))
    moved = torch.from_numpy(mix.partner) != torch.arange(4)
    torch.testing.assert_close(kept[moved], torch.full_like(kept[moved], mix.share(32, 32)))
    assert draw_mix(np.random.default_rng(5), 4, 32, 32, "none").share(32, 32) == 1


def test_an_image_is_seen_the_same_whatever_the_batch() -> None:
    rng = epoch_generator(7, 3)
    views = draw_views(rng, 9, 32, 32, crop=True, scale=(0.25, 1), flip=True, factor=2)
    again = draw_views(epoch_generator(7, 3), 9, 32, 32, crop=True, scale=(0.25, 1), flip=True, factor=2)
    other = draw_views(epoch_generator(7, 4), 9, 32, 32, crop=True, scale=(0.25, 1), flip=True, factor=2)
    assert (views.crop == again.crop).all()
    assert not (views.crop == other.crop).all()
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (9, 3, 32, 32), dtype=np.uint8))
    together = view(pixels, views, 32)
    for ids in ([0], [3, 8], [5, 1, 7]):
        part = np.array(ids)
        torch.testing.assert_close(view(pixels[part], views.take(part), 32), together[part])


@pytest.mark.parametrize("side", [32, 33])
def test_crops_stay_inside_one_tile_and_reach_every_tile_alike(side: int) -> None:
    """A tile's crops are those of an image of its size; where tiles differ, the last row of a larger one is not seen."""
    options = {"crop": True, "scale": (0.25, 1.0), "flip": True, "factor": 1}
    views = draw_views(np.random.default_rng(0), 4000, side, side, **options, tiles=2)
    starts = np.array([0, 17 if side == 33 else 16])
    which = (views.crop[:, :2] >= starts[1]).astype(int)
    inside = views.crop[:, :2] - starts[which]
    assert (inside >= 0).all()
    assert (inside + views.crop[:, 2:] <= 16).all()
    assert np.bincount(2 * which[:, 0] + which[:, 1], minlength=4) == pytest.approx([1000] * 4, abs=110)
    small = draw_views(np.random.default_rng(0), 4000, 16, 16, **options)
    assert np.array_equal(np.concatenate([inside, views.crop[:, 2:]], axis=1), small.crop)


def test_without_tiles_the_draws_are_what_they_were() -> None:
    options = {"scale": (0.25, 1.0), "flip": True, "factor": 2}
    one, other = (draw_views(np.random.default_rng(7), 9, 20, 20, crop=crop, **options) for crop in (True, False))
    assert (other.crop == [0, 0, 20, 20]).all()
    assert np.array_equal(one.flip, other.flip)
    assert np.array_equal(one.rows, other.rows)
