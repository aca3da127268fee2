"""How much of a selection adaptive draws keep, and what they cost, against giving every image all draws.

    python scripts/measure_adaptive.py --draws 48 --first 3 6                       # scenes of the demo, patches of them
    python scripts/measure_adaptive.py --data cifar10/train --model cifar10         # whole images of class folders

Every draw of the images of each class is made once; the rounds of an adaptive pass (diffsel/scoring/adaptive.py) are then
played with their beginnings, which are the very maps that such a pass has (tests/scoring/test_adaptive.py).  Images are
selected by the default settings, by score alone (no clusters) and by clusters; ``adaptive_keep`` is the share of the class
that this IPC's shortlist takes.  Printed: U-Net forwards in percent of all draws for all; images of the shortlist, and
source images of both selections, shared with those of all draws, percent; and how many boxes of the latter agree (90 % of
the area or more).  ``--ranking`` measures what the standing of an image costs, and nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from diffsel.data.images import open_data
from diffsel.machine.device import pick_device
from diffsel.report.text import table
from diffsel.scoring.adaptive import in_race, standing
from diffsel.scoring.diffusion import Diffusion
from diffsel.scoring.draws import Bucket, Scorer
from diffsel.scoring.features import Patch, embed_patches
from diffsel.scoring.folder import locate
from diffsel.scoring.patches import Box, best_boxes, box_mean, estimate, guided
from diffsel.sets.selection import Candidates, select_class, shortlist
from diffsel.settings.sections import (
    DataSettings,
    FeatureSettings,
    ModelSettings,
    PatchSettings,
    ScoringSettings,
    SelectionSettings,
)
from diffsel.studies import scenes
from diffsel.studies.demo import PATCH, held

Images = list[tuple[str, np.ndarray]]  # key and pixels


def of_scenes(classes: int, count: int) -> Iterator[tuple[str, str, Images]]:
    """A name, a prompt, and images with their keys, of each class: with one object, and with two."""
    for objects in (1, 2):
        for label in range(classes):
            drawn = [scenes.compose("test", label, i, objects, 11) for i in range(count)]
            images = [(f"{objects}/{label}/{i}", scene.pixels) for i, scene in enumerate(drawn)]
            yield f"{objects} of {scenes.NAMES[label]}", f"An image of {scenes.NAMES[label]}.", images


def of_folder(folder: Path, size: int, classes: int, count: int) -> Iterator[tuple[str, str, Images]]:
    data = open_data(str(folder), DataSettings(image_size=size, images_per_class=count), 0)
    for info in data.classes[:classes]:
        images = [(row.digest, data.pixels(row)) for row in data.of_class(info.folder)]
        yield info.folder, info.prompt("An image of {label}."), images


def every_draw(model: Diffusion, images: Images, prompt: str, settings: ScoringSettings, batch_size: int) -> np.ndarray:
    """(images, draws, 3, h, w): D, G and the null prompt's loss of each draw."""
    words = model.embed_prompts([settings.null_prompt, prompt])
    with torch.inference_mode():
        scorer = Scorer(model, settings, 0, batch_size)
        places = {i: i for i in range(len(images))}
        bucket = Bucket(scorer.encode(images), [key for key, _ in images], words[None], [0] * len(images), places)
        items = [(i, draw) for i in range(len(images)) for draw in range(settings.draws)]
        rows = np.stack([rows for _, rows in scorer.losses([(bucket, items)])])
    return rows.reshape(len(images), settings.draws, *rows.shape[1:])


def race(draws: np.ndarray, sizes: Sequence[tuple[int, int]], patches: PatchSettings, settings: ScoringSettings) -> list[int]:
    """How many draws each image gets in an adaptive pass."""
    counts = [settings.draws] * len(draws)
    for count in settings.rounds()[:-1]:
        seen = zip(draws, counts, sizes, strict=True)
        stands = [standing(each[:n], size, patches, settings, SelectionSettings()) for each, n, size in seen]
        counts = [2 * count if n == count and on else n for n, on in zip(counts, in_race(stands, settings), strict=True)]
    return counts


def candidates(
    model: Diffusion, images: Images, draws: np.ndarray, counts: Sequence[int], prompt: str, patches: PatchSettings
) -> Candidates:
    """What a pass with so many draws of each image would select from."""
    scoring, boxes, scores = ScoringSettings(bins=1, draws=1), list[Box](), list[float]()
    for (_, pixels), each, n in zip(images, draws, counts, strict=True):
        d, g, null = each[:n].mean(0)
        size = pixels.shape[:2]
        box, _ = best_boxes(estimate(d[None], g[None], patches, scoring, null[None], n), *size, patches)[0]
        inside = [np.array([box_mean(cells, size[0], size[1], box)]) for cells in (d, g)]
        boxes.append(box)
        scores.append(float(guided(inside[0], inside[1], SelectionSettings().guidance)[0]))
    cut = [Patch(key, pixels, box) for (key, pixels), box in zip(images, boxes, strict=True)]
    with torch.inference_mode():
        found = sorted(embed_patches(Scorer(model, ScoringSettings(), 0, 16), cut, prompt, FeatureSettings()))
    vectors = np.stack([vector for _, vector in found])
    return Candidates("class", np.arange(len(images)), np.array(boxes), np.array(scores), vectors)


def chosen(found: Candidates, ipc: int, method: str) -> dict[int, Box]:
    """Source image -> box of the selected patches."""
    picks = select_class(found, ipc, 1, SelectionSettings(method=method), 0)  # type: ignore[arg-type]
    return {pick.row: pick.box for pick in picks}


def compared(full: Candidates, some: Candidates, ipc: int) -> Iterator[float]:
    best = [set(shortlist(each, ipc, SelectionSettings())) for each in (full, some)]
    yield 100 * len(best[0] & best[1]) / len(best[0])
    for method in ("diffsel-noclusters", "diffsel"):
        a, b = chosen(full, ipc, method), chosen(some, ipc, method)
        both = a.keys() & b.keys()
        yield 100 * len(both) / ipc
    yield 100 * float(np.mean([held(a[i], b[i]) >= 0.9 for i in both])) if both else np.nan


def ranking() -> None:
    """Milliseconds of CPU that the standing of an image of 256 x 256 pixels takes, by draws."""
    rng, scoring, patches = np.random.default_rng(0), ScoringSettings(draws=6, adaptive_draws=48), PatchSettings(patch_size=128)
    for n in (6, 6, 12, 24):  # the first time imports
        maps = np.abs(rng.normal(size=(32, n, 3, 32, 32))).astype(np.float32) - np.float32([0.8, 0, 0])[:, None, None]
        begin = time.process_time()
        for each in maps:
            standing(each, (256, 256), patches, scoring, SelectionSettings())
        print(f"{n} draws: {(time.process_time() - begin) / len(maps) * 1e3:.2f} ms an image")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="class folders, of which whole images are taken; default: scenes of the demo")
    parser.add_argument("--image-size", type=int, default=32, help="with --data")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--draws", type=int, default=48)
    parser.add_argument("--first", type=int, nargs="+", default=[3, 6])
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--per-class", type=int, default=100)
    parser.add_argument("--ipc", type=int, nargs="+", default=[5])
    parser.add_argument("--z", type=float, nargs="+", default=[1.0, 2.0], help="standard errors of adaptive_z")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--ranking", action="store_true", help="only what the standing of an image costs")
    args = parser.parse_args()
    if args.ranking:
        return ranking()
    model = Diffusion.load(locate(ModelSettings(model=args.model)), pick_device("auto"), args.precision)
    patches = PatchSettings(patch_size=0 if args.data else PATCH)
    source = of_folder(args.data, args.image_size, args.classes, args.per_class) if args.data else None
    sums: dict[tuple[int, str], list[list[float]]] = {}
    for name, prompt, images in source or of_scenes(args.classes, args.per_class):
        draws = every_draw(model, images, prompt, ScoringSettings(draws=args.draws, bins=1), args.batch_size)
        sizes = [(pixels.shape[0], pixels.shape[1]) for _, pixels in images]
        full = candidates(model, images, draws, [args.draws] * len(images), prompt, patches)
        for ipc in args.ipc:
            keep = len(shortlist(full, ipc, SelectionSettings())) / len(images)
            plans = {f"{n} for all": [n] * len(images) for n in (*args.first, args.draws // 4, args.draws // 2)}
            for first, z in itertools.product(args.first, args.z):
                asked = {"draws": first, "bins": 1, "adaptive_draws": args.draws, "adaptive_keep": keep, "adaptive_z": z}
                plans[f"from {first}, z = {z:g}"] = race(draws, sizes, patches, ScoringSettings.model_validate(asked))
            for plan, counts in plans.items():
                some = candidates(model, images, draws, counts, prompt, patches)
                line = [100 * keep, 100 * sum(counts) / len(counts) / args.draws, *compared(full, some, ipc)]
                sums.setdefault((ipc, plan), []).append(line)
        print(name, flush=True)
    rows = []
    for (ipc, plan), lines in sums.items():
        mean, error = np.mean(lines, 0), np.std(lines, 0, ddof=1) / len(lines) ** 0.5
        rows.append(
            [f"{ipc}", plan, f"{mean[0]:.0f}", *(f"{m:.1f} ± {e:.1f}" for m, e in zip(mean[1:], error[1:], strict=True))]
        )
    print(table(rows, ["IPC", "draws", "keep %", "forwards %", "shortlist %", "by score %", "by clusters %", "same box %"]))


if __name__ == "__main__":
    main()
