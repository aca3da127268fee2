"""How much of a selection adaptive draws keep, and what they cost, against giving every image all draws.

    python scripts/measure_adaptive.py --draws 256 --first 8 16 32

Every draw of scenes of each class is made once; the rounds of an adaptive pass (diffsel/scoring/adaptive.py) are then
played with their beginnings, which are the very maps that such a pass has (tests/scoring/test_adaptive.py).  The best share
of each class is selected by score (no clusters), and by clusters as in a run.  Printed: U-Net forwards, source images that
this selection shares with that of all draws (percent), and how many of their best boxes agree (90 % of the area or more).
``--ranking`` measures what the bounds of an image cost, and nothing else.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch

from diffsel.machine.device import pick_device
from diffsel.report.text import table
from diffsel.scoring.adaptive import leader, undecided
from diffsel.scoring.diffusion import Diffusion
from diffsel.scoring.draws import Bucket, Scorer
from diffsel.scoring.features import Patch, embed_patches
from diffsel.scoring.folder import locate
from diffsel.scoring.patches import Box, best_boxes, estimate
from diffsel.sets.selection import Candidates, select_class
from diffsel.settings.sections import FeatureSettings, ModelSettings, PatchSettings, ScoringSettings, SelectionSettings
from diffsel.studies import scenes
from diffsel.studies.demo import PATCH, held


def chosen(
    model: Diffusion, images, maps: Sequence[np.ndarray], counts: Sequence[int], prompt: str, count: int, method: str
) -> dict[int, Box]:
    """Source image -> box of the ``count`` selected patches."""
    patches, scoring = PatchSettings(patch_size=PATCH), ScoringSettings(bins=1, draws=1)
    cells = [estimate(d[None], g[None], patches, scoring, null[None], n) for (d, g, null), n in zip(maps, counts, strict=True)]
    found = [best_boxes(each, scenes.SIZE, scenes.SIZE, patches)[0] for each in cells]
    vectors = np.zeros((len(images), 1), np.float32)
    if method == "diffsel":
        cut = [Patch(images[i][0], images[i][1], box) for i, (box, _) in enumerate(found)]
        vectors = np.stack(
            [v for _, v in sorted(embed_patches(Scorer(model, ScoringSettings(), 0, 16), cut, prompt, FeatureSettings()))]
        )
    boxes, scores = np.array([box for box, _ in found]), np.array([score for _, score in found])
    candidates = Candidates("class", np.arange(len(images)), boxes, scores, vectors)
    settings = SelectionSettings(method=method, clusters=8, top_clusters=4)  # type: ignore[arg-type]
    return {pick.row: pick.box for pick in select_class(candidates, count, 1, settings, 0)}


def every_draw(model: Diffusion, images, prompt: str, settings: ScoringSettings, batch_size: int) -> np.ndarray:
    """(images, draws, 3, h, w): D, G and the null prompt's loss of each draw."""
    words = model.embed_prompts([settings.null_prompt, prompt])
    with torch.inference_mode():
        scorer = Scorer(model, settings, 0, batch_size)
        bucket = Bucket(
            scorer.encode(images),
            [key for key, _ in images],
            words[None],
            [0] * len(images),
            {i: i for i in range(len(images))},
        )
        items = [(i, d) for i in range(len(images)) for d in range(settings.draws)]
        rows = np.stack([rows for _, rows in scorer.losses([(bucket, items)])])
    return rows.reshape(len(images), settings.draws, *rows.shape[1:])


def race(draws: np.ndarray, sizes: list[tuple[int, int]], settings: ScoringSettings) -> list[int]:
    """How many draws each image gets in an adaptive pass."""
    counts = [settings.draws] * len(draws)
    for count in settings.rounds()[:-1]:
        seen = zip(draws, counts, sizes, strict=True)
        leaders = [leader(each[:n], size, PatchSettings(patch_size=PATCH), settings) for each, n, size in seen]
        more = undecided(leaders, settings)
        counts = [2 * count if n == count and again else n for n, again in zip(counts, more, strict=True)]
    return counts


def ranking() -> None:
    """Milliseconds of CPU that bounds take an image of 256 x 256 pixels, by draws."""
    rng, scoring, patches = np.random.default_rng(0), ScoringSettings(draws=6, adaptive_draws=48), PatchSettings(patch_size=128)
    for n in (6, 6, 12, 24):  # the first time imports
        maps = np.abs(rng.normal(size=(32, n, 3, 32, 32))).astype(np.float32) - np.float32([0.8, 0, 0])[:, None, None]
        begin = time.process_time()
        for each in maps:
            leader(each, (256, 256), patches, scoring)
        print(f"{n} draws: {(time.process_time() - begin) / len(maps) * 1e3:.2f} ms an image")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--draws", type=int, default=256)
    parser.add_argument("--first", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--per-class", type=int, default=24)
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--z", type=float, nargs="+", default=[1.0, 2.0], help="standard errors of adaptive_z")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--ranking", action="store_true", help="only what bounds cost an image")
    args = parser.parse_args()
    if args.ranking:
        return ranking()
    model = Diffusion.load(locate(ModelSettings(model=args.model)), pick_device("auto"), "fp32")
    count = int(args.keep * args.per_class)
    sums: dict[tuple[str, int], list[list[float]]] = {}
    for objects in (1, 2):
        for label in range(args.classes):
            drawn = [scenes.compose("test", label, i, objects, 11) for i in range(args.per_class)]
            images = [(f"{objects}/{label}/{i}", scene.pixels) for i, scene in enumerate(drawn)]
            prompt = f"An image of {scenes.NAMES[label]}."
            draws = every_draw(model, images, prompt, ScoringSettings(draws=args.draws, bins=1), args.batch_size)
            sizes = [(scenes.SIZE, scenes.SIZE)] * len(images)
            plans = {("all alike", n): [n] * len(images) for n in (12, *args.first, args.draws // 2, args.draws)}
            for first in args.first:
                for z in args.z:
                    settings = ScoringSettings(
                        draws=first, bins=1, adaptive_draws=args.draws, adaptive_keep=args.keep, adaptive_z=z
                    )
                    plans[f"adaptive, z = {z:g}, from", first] = race(draws, sizes, settings)
            full = [each.mean(0) for each in draws]
            for key, counts in plans.items():
                some = [each[:n].mean(0) for each, n in zip(draws, counts, strict=True)]
                line = [sum(counts) / len(counts)]
                for method in ("diffsel-noclusters", "diffsel"):
                    a = chosen(model, images, full, [args.draws] * len(full), prompt, count, method)
                    b = chosen(model, images, some, counts, prompt, count, method)
                    both = a.keys() & b.keys()
                    line += [100 * len(both) / count, 100 * float(np.mean([held(a[i], b[i]) >= 0.9 for i in both]))]
                sums.setdefault(key, []).append(line)
            print(objects, label, flush=True)
    rows = []
    for (name, first), lines in sums.items():
        mean, error = np.mean(lines, 0), np.std(lines, 0, ddof=1) / len(lines) ** 0.5
        spread = (f"{m:.1f} +- {e:.1f}" for m, e in zip(mean[1:], error[1:], strict=True))
        rows.append([f"{name} {first}", f"{100 * mean[0] / args.draws:.1f}", *spread])
    header = ["draws", "forwards %", "by score: shared %", "same box %", "clusters: shared %", "same box %"]
    print(table(rows, header))


if __name__ == "__main__":
    main()
