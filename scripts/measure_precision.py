"""How far fp16, bf16 and TF32 maps agree with fp32's, and what each precision, memory layout and thread count is worth.

    python scripts/measure_precision.py                                               # demo scenes
    python scripts/measure_precision.py --images cifar10/test --per-class 8           # a folder of class folders
    python scripts/measure_precision.py --model SD15 --size 256 --images photos       # any model

Same images, same draws; each line against fp32 in the default layout.  Rank: Spearman correlation of the patch scores of an
image, averaged over images; order: of the best scores over the images of a class (what selection by score sees); box:
images whose best boxes share 90 % of their area.  Scores are those of the default estimator, of G and of -D.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from diffsel.data.images import open_data
from diffsel.machine.device import pick_device, pick_precision
from diffsel.report.text import table
from diffsel.scoring.diffusion import DTYPES, Diffusion
from diffsel.scoring.draws import Scorer
from diffsel.scoring.folder import locate
from diffsel.scoring.maps import score_images
from diffsel.scoring.patches import best_boxes, estimate, patch_scores
from diffsel.settings.sections import DataSettings, ModelSettings, PatchSettings, ScoringSettings
from diffsel.studies import scenes
from diffsel.studies.demo import PATCH, held

Pictures = dict[str, list[tuple[str, np.ndarray]]]  # prompt -> (key, pixels)


def pictures(images: Path | None, size: int, per_class: int) -> Pictures:
    if images is None:
        return {
            f"An image of {name}.": [
                (f"{label}/{i}", scenes.compose("test", label, i, 1 + i % 2).pixels) for i in range(per_class)
            ]
            for label, name in enumerate(scenes.NAMES)
        }
    data = open_data(str(images), DataSettings(image_size=size, images_per_class=per_class), 0)
    return {
        c.prompt("An image of {label}."): [(r.digest, data.pixels(r)) for r in data.of_class(c.folder)] for c in data.classes
    }


def scores(model: Diffusion, found: Pictures, draws: int, batch_size: int, side: int) -> tuple[list[list], float]:
    """Of each estimator, class and image: scores of all patches, best box and its score; and images a second."""
    settings = ScoringSettings(draws=draws)
    ways = [PatchSettings(patch_size=side, estimator=each) for each in ("combined", "gap", "differential")]  # type: ignore[arg-type]
    results: list[list] = [[] for _ in ways]
    begin, count = time.perf_counter(), 0
    for prompt, images in found.items():
        maps = dict(score_images(Scorer(model, settings, 0, batch_size), images, [prompt]))
        count += len(images)
        for way, result in zip(ways, results, strict=True):
            row = []
            for place, (_, pixels) in enumerate(images):
                cells = estimate(maps[place].differential[0], maps[place].gap[0], way, settings)
                height, width = pixels.shape[:2]
                box, best = best_boxes(cells, height, width, way)[0]
                row.append((patch_scores(cells, height, width, way.patch_size, way.stride)[0].ravel(), box, best))
            result.append(row)
    return results, count / (time.perf_counter() - begin)


def agreement(one: list, other: list) -> tuple[float, float, float]:
    ranks = [spearmanr(a[0], b[0]).statistic for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)]
    orders = [spearmanr([a[2] for a in x], [b[2] for b in y]).statistic for x, y in zip(one, other, strict=True) if len(x) > 2]
    boxes = [held(a[1], b[1]) >= 0.9 for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)]
    return float(np.nanmean(ranks)), float(np.nanmean(orders)), 100 * float(np.mean(boxes))


@contextmanager
def on_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--images", type=Path, help="folder of class folders; default: scenes")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--patch-size", type=int, default=PATCH)
    parser.add_argument("--per-class", type=int, default=8)
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=DTYPES)
    args = parser.parse_args()
    device, found = pick_device("auto"), pictures(args.images, args.size, args.per_class)
    folder, rows = locate(ModelSettings(model=args.model)), []
    threads = sorted({1, torch.get_num_threads()}) if device.type == "cpu" else [torch.get_num_threads()]
    reference: list[list] = []
    for precision in dict.fromkeys(["fp32", *args.precision]):
        for layout in ("default", "contiguous" if device.type == "cuda" else "channels last"):
            model = Diffusion.load(folder, device, pick_precision(precision, device))
            if layout != "default":
                memory = torch.contiguous_format if device.type == "cuda" else torch.channels_last
                model.unet.to(memory_format=memory)  # type: ignore[call-overload]
                model.vae.to(memory_format=memory)  # type: ignore[call-overload]
            for number in threads:
                with on_threads(number):
                    scores(model, {k: v[:1] for k, v in list(found.items())[:1]}, args.draws, args.batch_size, args.patch_size)
                    result, rate = scores(model, found, args.draws, args.batch_size, args.patch_size)
                reference = reference or result
                cells = [f"{r:.3f} {o:.3f} {b:.0f}" for r, o, b in map(agreement, reference, result)]
                rows.append([precision, layout, number, f"{rate:.4g}", *cells])
                print(rows[-1], flush=True)
    print(f"{sum(map(len, found.values()))} images on {device}, {args.draws} draws; each: rank, order, box %")
    print(table(rows, ["precision", "layout", "threads", "images/s", "combined", "gap", "differential"]))


if __name__ == "__main__":
    main()
