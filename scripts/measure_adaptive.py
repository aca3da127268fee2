"""How much of a selection adaptive draws keep, and what they cost, against giving every image all draws.

    python scripts/measure_adaptive.py --draws 256 --first 8 16 32

Scenes of each class are scored with all draws and adaptively; then the best share of each class is selected by score
(no clusters), and by clusters as in a run.  Printed: U-Net forwards, shared source images of both selections (percent), and
how many best boxes of the selected images agree (overlap of at least 90 % of their area).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import numpy as np

from diffsel import scenes
from diffsel.config import FeatureSettings, ModelSettings, PatchSettings, ScoringSettings, SelectionSettings
from diffsel.demo import PATCH, held
from diffsel.diffusion import Diffusion, locate, pick_device
from diffsel.features import Patch, embed_patches
from diffsel.patches import Box, best_boxes, estimate
from diffsel.report import table
from diffsel.scoring import Maps, score_class
from diffsel.selection import Candidates, select_class


def chosen(model: Diffusion, images, maps: Mapping[int, Maps], prompt: str, count: int, method: str) -> dict[int, Box]:
    """Source image -> box of the ``count`` selected patches."""
    patches, scoring = PatchSettings(patch_size=PATCH), ScoringSettings(bins=1, draws=1)
    cells = [estimate(maps[i].differential[0], maps[i].gap[0], patches, scoring) for i in range(len(images))]
    found = [best_boxes(each, scenes.SIZE, scenes.SIZE, patches)[0] for each in cells]
    vectors = np.zeros((len(images), 1), np.float32)
    if method == "diffsel":
        cut = [Patch(images[i][0], images[i][1], box) for i, (box, _) in enumerate(found)]
        vectors = np.stack([v for _, v in sorted(embed_patches(model, cut, prompt, FeatureSettings(), 0, 16))])
    boxes, scores = np.array([box for box, _ in found]), np.array([score for _, score in found])
    candidates = Candidates("class", np.arange(len(images)), boxes, scores, vectors)
    settings = SelectionSettings(method=method, clusters=8, top_clusters=4)  # type: ignore[arg-type]
    return {pick.row: pick.box for pick in select_class(candidates, count, 1, settings, 0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--draws", type=int, default=256)
    parser.add_argument("--first", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--per-class", type=int, default=40)
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    model = Diffusion.load(locate(ModelSettings(model=args.model)), pick_device("auto"), "fp32")
    count, rows = int(args.keep * args.per_class), []
    sums: dict[int, list[list[float]]] = {first: [] for first in (*args.first, args.draws)}
    for objects in (1, 2):
        for label in range(args.classes):
            drawn = [scenes.compose("test", label, i, objects, 11) for i in range(args.per_class)]
            images = [(f"{objects}/{label}/{i}", scene.pixels) for i, scene in enumerate(drawn)]
            prompt = f"An image of {scenes.NAMES[label]}."
            options = {"patches": PatchSettings(patch_size=PATCH), "seed": 0, "batch_size": args.batch_size}
            settings = ScoringSettings(draws=args.draws, bins=1)
            full = dict(score_class(model, images, [prompt], settings, **options))
            for first in sums:
                more = None if first == args.draws else args.draws
                settings = ScoringSettings(draws=first, bins=1, adaptive_draws=more, adaptive_keep=args.keep)
                some = full if first == args.draws else dict(score_class(model, images, [prompt], settings, **options))
                line = [float(sum(m.draws for m in some.values()))]
                for method in ("diffsel-noclusters", "diffsel"):
                    a, b = (chosen(model, images, maps, prompt, count, method) for maps in (full, some))
                    both = a.keys() & b.keys()
                    line += [100 * len(both) / count, 100 * float(np.mean([held(a[i], b[i]) >= 0.9 for i in both]))]
                sums[first].append(line)
                print(objects, label, first, np.round(line, 1), flush=True)
    everything = sum(line[0] for line in sums[args.draws])
    for first, lines in sums.items():
        mean, error = np.mean(lines, 0), np.std(lines, 0, ddof=1) / len(lines) ** 0.5
        share = 100 * sum(line[0] for line in lines) / everything
        rows.append([first, f"{share:.1f}", *(f"{m:.1f} +- {e:.1f}" for m, e in zip(mean[1:], error[1:], strict=True))])
    header = ["first draws", "forwards %", "by score: shared %", "same box %", "clusters: shared %", "same box %"]
    print(table(rows, header))


if __name__ == "__main__":
    main()
