"""Share of best patches that hold the labelled digit, by estimator and number of draws, over several seeds.

    python scripts/measure_estimators.py --seeds 3        # two CPU cores: see RESULTS.md

Scenes with one digit, and with a second one of another class; held-out digits that the checkpoint was not trained on.
``w`` is the weight of the combined estimator (1-w) G - w blur(D) (the differential's own column: no blur).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from diffsel.machine.device import pick_device
from diffsel.report.text import table
from diffsel.scoring.diffusion import Diffusion
from diffsel.scoring.draws import Scorer
from diffsel.scoring.folder import locate
from diffsel.scoring.maps import score_images
from diffsel.scoring.patches import best_boxes, estimate
from diffsel.settings.sections import ModelSettings, PatchSettings, ScoringSettings
from diffsel.studies import scenes
from diffsel.studies.demo import HELD, PATCH, held

WEIGHTS = (0.0, 0.1, 0.2, 0.25, 0.3, 0.5)
WAYS = {f"w = {w:g}": PatchSettings(patch_size=PATCH, weight=w) for w in WEIGHTS}
WAYS |= {
    "w = 0.1, no blur": PatchSettings(patch_size=PATCH, weight=0.1, blur=0),
    "w = 0.25, no blur": PatchSettings(patch_size=PATCH, weight=0.25, blur=0),
    "differential": PatchSettings(patch_size=PATCH, estimator="differential"),
}


def hits(model: Diffusion, objects: int, draws: int, per_class: int, seed: int, batch_size: int) -> list[float]:
    """Hit rate by estimator."""
    settings = ScoringSettings(draws=draws, bins=1)
    counts = np.zeros(len(WAYS))
    for label, name in enumerate(scenes.NAMES):
        drawn = [scenes.compose("test", label, i, objects, seed) for i in range(per_class)]
        images = [(f"{label}/{i}", scene.pixels) for i, scene in enumerate(drawn)]
        for place, maps in score_images(Scorer(model, settings, seed, batch_size), images, [f"An image of {name}."]):
            for k, way in enumerate(WAYS.values()):
                cells = estimate(maps.differential[0], maps.gap[0], way, settings)
                box = best_boxes(cells, scenes.SIZE, scenes.SIZE, way)[0][0]
                counts[k] += held(drawn[place].boxes[0], box) >= HELD
    return list(100 * counts / (10 * per_class))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 3, 6, 12])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path, help="write the table here too")
    args = parser.parse_args()
    model = Diffusion.load(locate(ModelSettings(model=args.model)), pick_device("auto"), "fp32")
    rows: list[list[object]] = []
    for objects in (1, 2):
        for draws in args.draws:
            rates = [hits(model, objects, draws, args.per_class, seed, args.batch_size) for seed in range(args.seeds)]
            mean, error = np.mean(rates, 0), np.std(rates, 0, ddof=1) / args.seeds**0.5
            rows.append([objects, draws, *[f"{m:.1f} +- {e:.1f}" for m, e in zip(mean, error, strict=True)]])
            print(rows[-1], flush=True)
    text = table(rows, ["objects", "draws", *WAYS])
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
