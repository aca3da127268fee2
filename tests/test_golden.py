"""Our numbers against those of public reference code, for every case file in tests/golden."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN

from diffsel.data.pixels import resized_size
from diffsel.scoring.diffusion import Diffusion
from diffsel.scoring.draws import as_images, differential_and_gap
from diffsel.scoring.features import Patch, pool, unit
from diffsel.scoring.patches import best_boxes, patch_scores
from diffsel.sets.selection import cluster
from diffsel.settings.sections import PatchSettings, SelectionSettings

MAPS = sorted(p.stem for p in GOLDEN.glob("diffmining_*.npz") if "embedding" not in p.name and "cluster" not in p.name)
EMBEDDINGS = sorted(p.stem for p in GOLDEN.glob("diffmining_patch_embedding_*.npz"))
CLUSTERS = sorted(p.stem for p in GOLDEN.glob("diffmining_cluster_*.npz"))
DIFTS = sorted(p.stem for p in GOLDEN.glob("dift_*.npz"))


def load(case: str) -> tuple[dict[str, np.ndarray], dict]:
    file = GOLDEN / f"{case}.json"
    return dict(np.load(GOLDEN / f"{case}.npz", allow_pickle=False)), json.loads(file.read_text()) if file.exists() else {}


def test_there_is_a_case_of_every_kind() -> None:
    assert MAPS
    assert EMBEDDINGS
    assert CLUSTERS
    assert DIFTS


@pytest.mark.parametrize("case", MAPS)
def test_latents_and_text(case: str, tiny: Diffusion) -> None:
    data, facts = load(case)
    images = as_images([data["image_u8"]], tiny.device)
    sampled = tiny.encode(images, torch.from_numpy(data["posterior_noise"]))
    np.testing.assert_allclose(sampled.numpy(), data["latent"], atol=1e-4)
    mean = data["posterior_mean"] * facts["scaling_factor"]
    np.testing.assert_allclose(tiny.encode(images).numpy(), mean, atol=1e-4)
    if "latent_mode" in data:
        np.testing.assert_allclose(mean, data["latent_mode"], atol=1e-6)
    words = tiny.embed_prompts([facts["prompt"], facts["null_prompt"], ""])
    np.testing.assert_allclose(words.numpy(), data["text_embeds"], atol=1e-4)


def losses(tiny: Diffusion, data: dict[str, np.ndarray], facts: dict, latent: str):
    """Our noise predictions on the recorded draws: (noise, conditional, null)."""
    noise, t = torch.from_numpy(data["noises"]), torch.from_numpy(data["timesteps"])
    words = tiny.embed_prompts([facts["prompt"], facts["null_prompt"]])
    noisy = tiny.add_noise(torch.from_numpy(data[latent]).expand_as(noise), noise, t)
    label, null = (tiny.predict_noise(noisy, t, w.expand(len(t), -1, -1)) for w in words)
    return noise, label, null


@pytest.mark.parametrize("case", MAPS)
def test_loss_grids(case: str, tiny: Diffusion) -> None:
    data, facts = load(case)
    for latent, grid in (("latent", "loss_grid_f32"), ("latent_mode", "loss_grid_mode_f32")):
        if grid not in data:
            continue
        noise, label, null = losses(tiny, data, facts, latent)
        ours = torch.stack([(p - noise).square() for p in (label, null)], 1)
        np.testing.assert_allclose(ours.numpy(), data[grid], rtol=1e-4, atol=5e-4)
        differential, gap = differential_and_gap(noise, null, label)
        expected = data[grid].astype(np.float64).mean(2)
        np.testing.assert_allclose(differential.numpy(), expected[:, 0] - expected[:, 1], atol=5e-4)
        np.testing.assert_allclose(gap.numpy(), (label - null).square().mean(1).numpy(), atol=1e-6)


def typicality(grid: np.ndarray) -> np.ndarray:
    """Mean over draws and channels of null minus conditional loss: minus the differential map."""
    return -(grid[:, 0].astype(np.float64) - grid[:, 1].astype(np.float64)).mean((0, 1))


@pytest.mark.parametrize("case", MAPS)
def test_typicality_maps(case: str, tiny: Diffusion) -> None:
    data, facts = load(case)
    height, width = data["image_u8"].shape[:2]
    half = typicality(data["loss_grid_f32"].astype(np.float16))
    full = typicality(data["loss_grid_f32"])
    noise, label, null = losses(tiny, data, facts, "latent")
    ours = -differential_and_gap(noise, null, label)[0].double().numpy().mean(0)
    sizes = {int(m[1]): name for name in data if (m := re.fullmatch(r"typicality_k(\d+)", name))}
    assert sizes
    for size, name in {**sizes, 1: "pixel_map"}.items():
        np.testing.assert_allclose(patch_scores(half, height, width, size)[0], data[name], atol=1e-4)
        expected = data.get(f"{name}_from_f32", data[name])  # typicality itself comes from a float16 grid
        tolerance = 1e-4 if size > 1 else 5e-3  # a single pixel is not averaged: float16 rounds losses of up to 34
        np.testing.assert_allclose(patch_scores(ours, height, width, size)[0], expected, atol=tolerance)
        if f"{name}_from_f32" in data:
            np.testing.assert_allclose(patch_scores(full, height, width, size)[0], data[f"{name}_from_f32"], atol=1e-5)


@pytest.mark.parametrize("case", MAPS)
def test_boxes(case: str) -> None:
    data, _ = load(case)
    height, width = data["image_u8"].shape[:2]
    cells = typicality(data["loss_grid_f32"].astype(np.float16))
    names = [name for name in data if re.fullmatch(r"(top|bottom)_boxes_k\d+", name)]
    assert names
    for name in names:
        size, sign = int(name.rsplit("k", 1)[1]), 1 if name.startswith("top") else -1
        settings = PatchSettings(patch_size=size, per_image=len(data[name]))
        found = best_boxes(sign * cells, height, width, settings, gap=1)  # the reference lets no two boxes touch
        corners = [[top, left, top + h, left + w] for (top, left, h, w), _ in found]
        assert corners == data[name].tolist()
        values = data[name.replace("boxes", "values")]
        np.testing.assert_allclose([sign * score for _, score in found], values, atol=1e-4)


@pytest.mark.parametrize("case", DIFTS)
def test_dift(case: str, tiny: Diffusion) -> None:
    data, facts = load(case)
    words = tiny.embed_prompts([facts["prompt"]])
    np.testing.assert_allclose(words.numpy(), data["text_embeds"], atol=1e-4)
    latents, noise = torch.from_numpy(data["latent"]), torch.from_numpy(data["noise"])
    encoded = tiny.encode(
        as_images([data["image_u8"]], tiny.device).expand(len(noise), -1, -1, -1), torch.from_numpy(data["posterior_noise"])
    )
    np.testing.assert_allclose(encoded.numpy(), data["latent"], atol=1e-4)
    names = [m for name in data if (m := re.fullmatch(r"ft_t(\d+)_up(\d+)", name))]
    assert names
    for match in names:
        step, block = int(match[1]), int(match[2])
        t = torch.full((len(noise),), step)
        noisy = tiny.add_noise(latents, noise, t)
        if f"noisy_latent_t{step}" in data:
            np.testing.assert_allclose(noisy.numpy(), data[f"noisy_latent_t{step}"], atol=1e-5)
        ours = tiny.features(noisy, t, words.expand(len(noise), -1, -1), block).mean(0, keepdim=True).numpy()
        expected = data[match[0]]
        assert np.linalg.norm(ours - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("case", EMBEDDINGS)
def test_patch_embedding(case: str) -> None:
    data, _ = load(case)
    height, width = (int(side) for side in data["image_hw"])
    feature = torch.from_numpy(data["feature"][0])
    pixels = np.zeros((height, width, 3), np.uint8)
    vectors = []
    for top, left, bottom, right in data["boxes_row0_col0_row1_col1"].tolist():
        vectors.append(pool(feature, Patch("", pixels, (top, left, bottom - top, right - left)), whole=True))
    np.testing.assert_allclose(unit(vectors), data["embedding"], atol=1e-5)


@pytest.mark.parametrize("case", CLUSTERS)
def test_cluster_order(case: str) -> None:
    data, _ = load(case)
    members = data["members_median"]
    settings = SelectionSettings(clusters=len(members), restarts=10)
    found = cluster(data["X"], data["D"], settings.clusters, settings, seed=0)
    np.testing.assert_allclose(found.median, data["aggregate_median"])
    for rank, expected in enumerate(members):
        inside = np.flatnonzero(found.cluster == rank)
        listed = expected[expected >= 0]
        assert data["blob"][inside].tolist() == [data["blob_order_median"][rank]] * len(inside)
        assert inside[np.argsort(found.place[inside])][: len(listed)].tolist() == listed.tolist()


@pytest.mark.parametrize("row", json.loads((Path(GOLDEN) / "diffmining_rescale_sizes.json").read_text()), ids=str)
def test_resized_sizes(row: dict) -> None:
    shortest = min(row["cluster_resize"])
    assert list(resized_size(row["w"], row["h"], shortest)) == row["cluster_resize"]
