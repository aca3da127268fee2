"""How many draws does a patch score need?  Designs of draws and estimators against the mean of many independent draws.

    python scripts/measure_draws.py --pool pool.npz                                   # makes the pool of draws first
    python scripts/measure_draws.py --pool cifar.npz --images cifar10/test            # any folder of class folders

Held-out scenes with one digit and with a second one of another class, or images without known boxes.  For each design a
pool of draws is made once, and means of n of them are compared with an independent reference of twice as many stratified
draws: the share of best patches that hold the labelled digit (percent), and Spearman's rank correlation of patch scores with
the reference's, of the same estimator; each with its standard error over images.  Designs: `iid` timesteps and noise (what the
method's ancestor does), `strat`ified timesteps, `anti`thetic pairs of noise at one timestep, noise and timesteps `shared`
by all images.  `per bin`: each quarter of the timesteps divided by its own deviation over the image (where draws are in order
of time).  The last table: how well right labels are told from wrong ones by n draws (AUROC over images), of the mean of -D.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from diffsel.data.images import open_data
from diffsel.machine.device import pick_device
from diffsel.machine.progress import progress
from diffsel.report.text import table
from diffsel.scoring.diffusion import Diffusion
from diffsel.scoring.draws import as_images, differential_and_gap, keyed_generator, predict_all
from diffsel.scoring.folder import locate
from diffsel.scoring.patches import Box, estimate, patch_scores
from diffsel.settings.sections import DataSettings, ModelSettings, PatchSettings, ScoringSettings
from diffsel.studies import scenes
from diffsel.studies.demo import HELD, PATCH, held

DESIGNS = ("iid", "strat", "anti", "shared")
WRONG = ("iid", "strat")  # designs that a wrong label is scored with too
WAYS = {
    "differential": PatchSettings(patch_size=PATCH, estimator="differential"),
    "gap": PatchSettings(patch_size=PATCH, estimator="gap"),
    "combined": PatchSettings(patch_size=PATCH, estimator="combined"),
    "no blur": PatchSettings(patch_size=PATCH, blur=0),
    "per bin": PatchSettings(patch_size=PATCH),
}
SINGLE, BINS = ScoringSettings(bins=1, draws=1), 4


@dataclass(frozen=True)
class Item:
    """An image, what it is and is not an image of, and where that is, if it is known."""

    key: str
    group: str
    pixels: NDArray[np.uint8]
    right: str
    wrong: str
    box: Box | None = None


def chosen_scenes(per_class: int) -> list[Item]:
    found = []
    for objects in (1, 2):
        for label, name in enumerate(scenes.NAMES):
            for i in range(per_class):
                scene = scenes.compose("test", label, i, objects, 3)
                wrong = next((label + n) % 10 for n in (3, 4) if (label + n) % 10 not in scene.labels)
                item = Item(f"{objects}/{label}/{i}", str(objects), scene.pixels, name, scenes.NAMES[wrong], scene.boxes[0])
                found.append(item)
    return found


def read_images(folder: Path, per_class: int) -> list[Item]:
    data = open_data(str(folder), DataSettings(image_size=scenes.SIZE, images_per_class=per_class), 0, progress=progress(True))
    names = [info.name for info in data.classes]
    return [
        Item(row.digest, "images", data.pixels(row), name, names[(i + 3) % len(names)])
        for i, (info, name) in enumerate(zip(data.classes, names, strict=True))
        for row in data.of_class(info.folder)
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
def make_pool(model: Diffusion, items: list[Item], count: int) -> dict[str, np.ndarray]:
    """Per design (images, draws, 3, h, w): D and G of each draw, and D of the wrong label (else zero); ``ref`` has twice
    as many draws."""
    pool = {}
    for design, n in (*((each, count) for each in DESIGNS), ("ref", 2 * count)):
        rows = []
        with progress(False)(items, desc=design, unit="image") as bar:
            for item in bar:
                texts = [item.right, item.wrong] if design in WRONG else [item.right]
                words = model.embed_prompts(["An image of .", *(f"An image of {text}." for text in texts)])
                latent = model.encode(as_images([item.pixels], model.device))
                parts = []
                for first in range(0, n, 16):
                    numbers = range(first, min(first + 16, n))
                    found = [draw(design, item.key, d, n, tuple(latent.shape[1:]), model.steps) for d in numbers]
                    t = torch.tensor([t for t, _ in found], device=model.device)
                    noise = torch.stack([eps for _, eps in found]).to(model.device)
                    noisy = model.add_noise(latent.expand(len(t), -1, -1, -1), noise, t)
                    null, right, *wrong = predict_all(
                        model, noisy, t, words[:, None].expand(-1, len(t), -1, -1), 16 * len(words)
                    )
                    d, g = differential_and_gap(noise, null, right)
                    last = differential_and_gap(noise, null, wrong[0])[0] if wrong else torch.zeros_like(d)
                    parts.append(torch.stack([d, g, last], 1).half().cpu().numpy())
                rows.append(np.concatenate(parts))
        pool[design] = np.stack(rows)
    return pool


def some(design: str, pool: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """n draws of a pool: any for iid, else one (or one pair) of each n-th part of the timesteps."""
    if design == "iid":
        return rng.choice(pool, n, replace=False)
    if design == "anti":
        pairs = [rng.integers(i * pool // n, (i + 2) * pool // n) // 2 for i in range(0, n, 2)]
        return np.array([2 * pair + side for pair in pairs for side in (0, 1)])
    return np.array([rng.integers(i * pool // n, (i + 1) * pool // n) for i in range(n)])


def scores(draws: np.ndarray, way: str) -> np.ndarray:
    """Of all patches, from (draws, 3, h, w)."""
    if way != "per bin":
        d, g, _ = draws.mean(0)
    else:
        bins = [part.mean(0) for part in np.array_split(draws, BINS)]
        d, g = (sum(part[k] / part[k].std() for part in bins) / BINS for k in (0, 1))
    cells = estimate(d[None], g[None], WAYS[way], SINGLE)
    return patch_scores(cells, scenes.SIZE, scenes.SIZE, PATCH)[0]


def cell(values: list[list[float]], form: str) -> str:
    """Mean of (images, seeds), and its standard error over images."""
    each = np.mean(values, 1)
    return f"{each.mean():{form}} ± {each.std(ddof=1) / len(each) ** 0.5:{form}}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--images", type=Path, help="folder of class folders; default: scenes")
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--per-class", type=int, default=4)
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--draws", type=int, nargs="+", default=[4, 10, 32, 100])
    parser.add_argument("--seeds", type=int, default=3, help="subsets of the pool; the images stay")
    args = parser.parse_args()
    items = read_images(args.images, args.per_class) if args.images else chosen_scenes(args.per_class)
    if not args.pool.exists():
        model = Diffusion.load(locate(ModelSettings(model=args.model)), pick_device("auto"), "fp32")
        np.savez(args.pool, **make_pool(model, items, args.count))
    pool = {name: np.asarray(values, np.float32) for name, values in np.load(args.pool).items()}
    reference = {way: [scores(draws, way) for draws in pool["ref"]] for way in WAYS}
    rows: list[list[object]] = []
    told: list[list[object]] = []
    for group in dict.fromkeys(item.group for item in items):
        places = [i for i, item in enumerate(items) if item.group == group]
        for design in DESIGNS:
            total = pool[design].shape[1]
            for n in args.draws:
                hits: dict[str, list[list[float]]] = {way: [] for way in WAYS}
                ranks: dict[str, list[list[float]]] = {way: [] for way in WAYS}
                right, wrong = np.zeros((2, args.seeds, len(places)))
                for k, i in enumerate(places):
                    chosen = [pool[design][i][some(design, total, n, np.random.default_rng([s, i]))] for s in range(args.seeds)]
                    for way in WAYS if design in ("strat", "shared") else [way for way in WAYS if way != "per bin"]:
                        found = [scores(draws, way) for draws in chosen]
                        if (box := items[i].box) is not None:
                            best = [np.unravel_index(each.argmax(), each.shape) for each in found]
                            corners = [(int(top), int(left), PATCH, PATCH) for top, left in best]
                            hits[way].append([100.0 * (held(box, corner) >= HELD) for corner in corners])
                        ranks[way].append([spearmanr(each.ravel(), reference[way][i].ravel())[0] for each in found])
                    right[:, k] = [-float(draws.mean(0)[0].mean()) for draws in chosen]
                    wrong[:, k] = [-float(draws.mean(0)[2].mean()) for draws in chosen]
                cells = []
                for way in WAYS:
                    shown = ([cell(hits[way], ".0f")] if hits[way] else []) + ([cell(ranks[way], ".2f")] if ranks[way] else [])
                    cells.append(", ".join(shown) or "–")
                rows.append([group, design, n, *cells])
                if design in WRONG:
                    truth = np.repeat([1, 0], len(places))
                    auc = [roc_auc_score(truth, np.concatenate(pair)) for pair in zip(right, wrong, strict=True)]
                    told.append([group, design, n, f"{np.mean(auc):.3f}", f"{np.std(auc, ddof=1):.3f}"])
    print(table(rows, ["images", "design", "draws", *WAYS]))
    print(table(told, ["images", "design", "draws", "AUROC right / wrong", "deviation over seeds"]))


if __name__ == "__main__":
    main()
