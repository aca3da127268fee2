"""Share of best patches that hold the labelled digit, by estimator and number of draws, paired image by image.

    python scripts/measure_estimators.py --choose          # scenes to choose on: seed 100
    python scripts/measure_estimators.py                   # other scenes to confirm on: seed 200

Scenes with one digit, and with a second one of another class; held-out digits that the checkpoint was not trained on.  The
difference to ``combined``, the default of the first version, has a paired standard error: the same scenes, the same draws.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from diffsel.machine.device import pick_device
from diffsel.machine.progress import progress
from diffsel.report.text import table
from diffsel.scoring.diffusion import Diffusion
from diffsel.scoring.draws import Scorer
from diffsel.scoring.folder import locate
from diffsel.scoring.maps import Maps, score_images
from diffsel.scoring.patches import best_boxes, estimate
from diffsel.settings.sections import ModelSettings, PatchSettings, ScoringSettings
from diffsel.studies import scenes
from diffsel.studies.demo import HELD, PATCH, held


def ways(choose: bool) -> dict[str, PatchSettings]:
    found = {
        "combined": PatchSettings(patch_size=PATCH, estimator="combined"),
        "differential": PatchSettings(patch_size=PATCH, estimator="differential"),
        "gap": PatchSettings(patch_size=PATCH, estimator="gap"),
    }
    chosen = [(0.5, 0.125), (0.25, 0.125)]
    gates = [(c, blur) for c in (0.125, 0.25, 0.5, 1.0) for blur in (0.125, 0.1875, 0.25)] if choose else chosen
    gated = PatchSettings(patch_size=PATCH, estimator="gated")
    return found | {f"gated {c:g}, {b:g}": gated.model_copy(update={"gate": c, "blur": b}) for c, b in gates}


def scored(scorer: Scorer, objects: int, per_class: int, seed: int) -> Iterator[tuple[scenes.Scene, Maps]]:
    for label, name in enumerate(scenes.NAMES):
        drawn = [scenes.compose("test", label, i, objects, seed) for i in range(per_class)]
        images = [(f"{label}/{i}", scene.pixels) for i, scene in enumerate(drawn)]
        for place, maps in score_images(scorer, images, [f"An image of {name}."]):
            yield drawn[place], maps


def hit(scene: scenes.Scene, maps: Maps, way: PatchSettings, settings: ScoringSettings) -> bool:
    cells = estimate(maps.differential[0], maps.gap[0], way, settings, maps.null, maps.draws)
    return held(scene.boxes[0], best_boxes(cells, scenes.SIZE, scenes.SIZE, way)[0][0]) >= HELD


def differences(hits: np.ndarray, base: np.ndarray) -> list[str]:
    """Percent of scenes, with the paired standard error."""
    gain = hits - base
    error = gain.std(0, ddof=1) / len(gain) ** 0.5
    return [f"{100 * g:+.1f} ± {100 * e:.1f}" for g, e in zip(gain.mean(0), error, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--choose", action="store_true", help="many gates, on scenes of their own")
    parser.add_argument("--seed", type=int, help="of the scenes; default 100 to choose, 200 to confirm")
    parser.add_argument("--per-class", type=int, default=40)
    parser.add_argument("--draws", type=int, nargs="+", default=[3, 6, 12])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path, help="write the table here too")
    args = parser.parse_args()
    model = Diffusion.load(locate(ModelSettings(model=args.model)), pick_device("auto"), "fp32")
    names = ways(args.choose)
    seed = args.seed if args.seed is not None else 100 if args.choose else 200
    rows: list[list[object]] = []
    against: list[list[object]] = []
    for objects in (1, 2):
        most = np.zeros(0)  # hits of the first version's default with most draws
        for draws in sorted(args.draws, reverse=True):
            settings = ScoringSettings(draws=draws)
            scorer = Scorer(model, settings, seed, args.batch_size)
            told = progress(False)(
                scored(scorer, objects, args.per_class, seed), total=10 * args.per_class, desc=f"{objects}, {draws}"
            )
            hits = np.array([[hit(scene, maps, way, settings) for way in names.values()] for scene, maps in told], float)
            most = most if len(most) else hits[:, :1]
            rows.append([objects, draws, f"{100 * hits[:, 0].mean():.1f}", *differences(hits, hits[:, :1])[1:]])
            against.append([objects, draws, *differences(hits, most)])
            print(rows[-1], flush=True)
    text = f"{10 * args.per_class} scenes in each row; hits of combined, percent, and how many more of the others\n"
    text += table(rows, ["objects", "draws", *names])
    text += f"\n\nthe same against combined with {max(args.draws)} draws\n" + table(against, ["objects", "draws", *names])
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
