"""How many draws does a patch score need?  Designs of draws and estimators against the mean of many independent draws.

    python scripts/measure_draws.py --pool pool.npz          # makes the pool of draws first, where it is not there

Held-out scenes with one digit and with a second one of another class.  For each design a pool of draws is made once, and
means of n of them are compared with an independent reference of twice as many stratified draws: the share of best patches
that hold the labelled digit (percent), and Spearman's rank correlation of patch scores with the reference's, of the same
estimator.  Designs: `iid` timesteps and noise (what the method's ancestor does), `strat`ified timesteps, `anti`thetic pairs of
noise at one timestep, noise and timesteps `shared` by all images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from diffsel import scenes
from diffsel.config import ModelSettings, PatchSettings, ScoringSettings
from diffsel.demo import HELD, PATCH, held
from diffsel.diffusion import Diffusion, locate, pick_device
from diffsel.draws import as_images, differential_and_gap, keyed_generator, predict_all
from diffsel.patches import estimate, patch_scores
from diffsel.report import table

DESIGNS = ("iid", "strat", "anti", "shared")
WAYS = {
    "differential": PatchSettings(patch_size=PATCH, estimator="differential"),
    "gap": PatchSettings(patch_size=PATCH, estimator="gap"),
    "combined": PatchSettings(patch_size=PATCH),
    "no blur": PatchSettings(patch_size=PATCH, blur=0),
}
SINGLE = ScoringSettings(bins=1, draws=1)


def chosen_scenes(per_class: int) -> list[tuple[str, int, scenes.Scene]]:
    return [
        (f"{objects}/{label}/{i}", objects, scenes.compose("test", label, i, objects, 3))
        for objects in (1, 2)
        for label in range(10)
        for i in range(per_class)
    ]


def draw(design: str, key: str, d: int, count: int, shape: tuple[int, ...], steps: int) -> tuple[int, torch.Tensor]:
    """Timestep and noise number ``d`` of ``count``."""
    number = d // 2 if design == "anti" else d
    generator = keyed_generator(7, design if design == "shared" else key, design, number)
    place = torch.rand((), generator=generator, dtype=torch.float64).item()
    if design != "iid":
        place = (number + place) / (count // 2 if design == "anti" else count)
    noise = torch.randn(shape, generator=generator)
    return min(int((0.1 + 0.6 * place) * steps), steps - 1), -noise if design == "anti" and d % 2 else noise


@torch.inference_mode()
def make_pool(model: Diffusion, per_class: int, count: int) -> dict[str, np.ndarray]:
    """Per design (scenes, draws, 2, h, w): D and G of each draw; ``ref`` has twice as many."""
    drawn, pool = chosen_scenes(per_class), {}
    for design, n in (*((each, count) for each in DESIGNS), ("ref", 2 * count)):
        rows = []
        for key, _, scene in drawn:
            words = model.embed_prompts(["An image of .", f"An image of {scenes.NAMES[scene.labels[0]]}."])
            latent = model.encode(as_images([scene.pixels], model.device))
            parts = []
            for first in range(0, n, 16):
                found = [
                    draw(design, key, d, n, tuple(latent.shape[1:]), model.steps) for d in range(first, min(first + 16, n))
                ]
                t = torch.tensor([t for t, _ in found], device=model.device)
                noise = torch.stack([eps for _, eps in found]).to(model.device)
                null, label = predict_all(model, model.add_noise(latent.expand(len(t), -1, -1, -1), noise, t), t, words, 32)
                parts.append(torch.stack(differential_and_gap(noise, null, label), 1).half().cpu().numpy())
            rows.append(np.concatenate(parts))
        pool[design] = np.stack(rows)
        print(design, flush=True)
    return pool


def some(design: str, pool: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """n draws of a pool: any for iid, else one (or one pair) of each n-th part of the timesteps."""
    if design == "iid":
        return rng.choice(pool, n, replace=False)
    if design == "anti":
        pairs = [rng.integers(i * pool // n, (i + 2) * pool // n) // 2 for i in range(0, n, 2)]
        return np.array([2 * pair + side for pair in pairs for side in (0, 1)])
    return np.array([rng.integers(i * pool // n, (i + 1) * pool // n) for i in range(n)])


def scores(maps: np.ndarray, way: PatchSettings) -> np.ndarray:
    return patch_scores(estimate(maps[:1], maps[1:], way, SINGLE), scenes.SIZE, scenes.SIZE, PATCH)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--per-class", type=int, default=4)
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--draws", type=int, nargs="+", default=[4, 12, 32, 100])
    parser.add_argument("--seeds", type=int, default=3, help="subsets of the pool; the scenes stay")
    args = parser.parse_args()
    if not args.pool.exists():
        model = Diffusion.load(locate(ModelSettings(model=args.model)), pick_device("auto"), "fp32")
        np.savez(args.pool, **make_pool(model, args.per_class, args.count))
    pool = {name: np.asarray(values, np.float32) for name, values in np.load(args.pool).items() if values.ndim >= 5}
    drawn = chosen_scenes(args.per_class)
    reference = {way: [scores(m.mean(0), s) for m in pool["ref"]] for way, s in WAYS.items()}
    rows: list[list[object]] = []
    for objects in (1, 2):
        places = [i for i, (_, n, _) in enumerate(drawn) if n == objects]
        for design in DESIGNS:
            for n in args.draws:
                hits: dict[str, list[float]] = {way: [] for way in WAYS}
                ranks: dict[str, list[float]] = {way: [] for way in WAYS}
                for seed in range(args.seeds):
                    rng = np.random.default_rng(seed)
                    for i in places:
                        mean = pool[design][i][some(design, pool[design].shape[1], n, rng)].mean(0)
                        for way, settings in WAYS.items():
                            found = scores(mean, settings)
                            top, left = np.unravel_index(found.argmax(), found.shape)
                            hits[way].append(held(drawn[i][2].boxes[0], (int(top), int(left), PATCH, PATCH)) >= HELD)
                            ranks[way].append(float(spearmanr(found.ravel(), reference[way][i].ravel())[0]))
                cells = (f"{100 * np.mean(hits[way]):.0f} / {np.mean(ranks[way]):.2f}" for way in WAYS)
                rows.append([objects, design, n, *cells])
    print(table(rows, ["objects", "design", "draws", *(f"{way}: hits / rank" for way in WAYS)]))


if __name__ == "__main__":
    main()
