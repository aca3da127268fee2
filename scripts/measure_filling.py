"""U-Net forwards and VAE pictures that run for each that is needed, and what the step of the longer side changes.

    python scripts/measure_filling.py photos      # a folder of class folders; beside it a list of sizes like ImageNet's
    python scripts/measure_filling.py --hits 12   # so many wide scenes of each digit, scored at each step
    python scripts/measure_filling.py --graphs    # the graphs of --compile, for a small network of Stable Diffusion's depth

Before: batches end with each unit (256 images of a class) and latent shape, and are of one size.  Now: groups of units, a
batch size for each shape (scoring/batching.py).  The list: 1,000 classes are drawn of which 40 are counted, sides as in
ImageNet's training set (a long side of 500: 4 : 3 most of all, then 3 : 2, upright ones, and a third of any shape), seed 0.

Hits: patches of half the shorter side that hold 80 % of the digit's box, both in pixels of the original; order: rank
correlation of the images' best scores with those at step 1.  Steps are given for 256 px and taken in proportion.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr

from diffsel.data.images import open_data
from diffsel.data.pixels import resize, resized_size
from diffsel.report.text import table
from diffsel.scoring.batching import GROUP, batch_sizes, filled_forwards, filled_pictures, forwards, picture_sizes
from diffsel.scoring.diffusion import Diffusion
from diffsel.scoring.draws import Scorer
from diffsel.scoring.folder import locate
from diffsel.scoring.maps import Asked, score_all
from diffsel.scoring.patches import Box, best_boxes, estimate
from diffsel.scoring.priors.sd import Prior
from diffsel.settings.sections import DataSettings, ModelSettings, PatchSettings, ScoringSettings, SelectionSettings
from diffsel.studies import scenes
from diffsel.studies.demo import held

USUAL = ((500, 375, 36), (375, 500, 11), (500, 333, 14), (333, 500, 5), (500, 334, 2))  # width, height, percent
CELL, UNIT = 8, 256

Classes = list[list[tuple[int, int]]]  # of each image (width, height)


def like_imagenet(classes: int, each: int) -> Classes:
    rng = np.random.default_rng(0)
    shares = np.array([*(share for *_, share in USUAL), 32]) / 100

    def one() -> tuple[int, int]:
        kind = int(rng.choice(len(shares), p=shares))
        if kind < len(USUAL):
            return USUAL[kind][:2]
        aspect = float(np.clip(np.exp(rng.normal(0.15, 0.35)), 0.3, 3.3))
        return (500, round(500 / aspect)) if aspect > 1 else (round(500 * aspect), 500)

    return [[one() for _ in range(each)] for _ in range(classes)]


def photographs(folder: str) -> Classes:
    data = open_data(folder, DataSettings(), 0)
    return [[(row.width, row.height) for row in data.of_class(info.folder)] for info in data.classes]


def shapes_of(images: list[tuple[int, int]], size: int, step: int) -> list[tuple[int, ...]]:
    sides = [resized_size(*image, size, step) for image in images]
    return [(4, height // CELL, width // CELL) for width, height in sides]


def filled(classes: Classes, size: int, step: int, settings: ScoringSettings, batch: int, before: bool) -> float:
    """Forwards run / needed."""
    units = [images[i : i + UNIT] for images in classes for i in range(0, len(images), UNIT)]
    every = [image for unit in units for image in unit]
    whole, square = Counter(shapes_of(every, size, step)), (4, size // CELL, size // CELL)
    sizes = dict.fromkeys(whole, batch) if before else batch_sizes(whole, square, 1, settings, batch)
    groups: list[list[tuple[int, int]]] = [[]]
    for unit in units:
        groups[-1] += unit
        if before or len(groups[-1]) >= GROUP * batch:
            groups.append([])
    run = sum(filled_forwards(shapes_of(group, size, step), 1, settings, sizes) for group in groups)
    return run / forwards(len(every), 1, settings)


def encoded(classes: Classes, size: int, step: int, batch: int, at_once: int | None) -> tuple[float, float]:
    """Pictures that the VAE encodes, and its calls, for each image: ``at_once``, or as a GPU gets them."""
    every = [resized_size(*image, size, step)[::-1] for images in classes for image in images]
    whole = Counter(every)
    sizes = picture_sizes(whole, torch.device("cuda"), batch)
    if at_once:
        sizes = dict.fromkeys(sizes, at_once)
    groups = [every[i : i + GROUP * batch] for i in range(0, len(every), GROUP * batch)]
    calls = sum(math.ceil(count / sizes[(3, *picture)]) for group in groups for picture, count in Counter(group).items())
    return sum(filled_pictures(group, sizes) for group in groups) / len(every), calls / len(every)


def graphs(size: int, step: int, batch: int) -> tuple[int, int]:
    """Latent shapes of the list, and how many graphs they take: a compiler that only counts, a network with few channels."""
    from diffusers import UNet2DConditionModel

    small = {"block_out_channels": (32, 32, 32, 32), "attention_head_dim": 4, "cross_attention_dim": 32, "norm_num_groups": 8}
    prior, found = Prior.__new__(Prior), []
    prior.network, prior.vae, prior.encoder = UNet2DConditionModel(**small).eval(), SimpleNamespace(), torch.nn.Identity()

    def count(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable[..., object]:
        found.append(graph)
        return graph.forward

    every = [image for images in like_imagenet(40, 300) for image in images]
    shapes = Counter(shapes_of(every, size, step))
    sizes = batch_sizes(shapes, (4, size // CELL, size // CELL), 1, ScoringSettings(), batch)
    compiled, torch.compile = torch.compile, partial(torch.compile, backend=count)  # type: ignore[assignment]
    prior.compile(len(shapes))
    torch.compile = compiled  # type: ignore[assignment]
    with torch.inference_mode():
        for shape in sorted(shapes):
            many = sizes[shape]
            prior.forward(torch.zeros(many, *shape), torch.zeros(many), torch.zeros(many, 77, 32))
    return len(shapes), len(found)


def changed(classes: Classes, size: int, step: int) -> list[float]:
    """By how much each image's shape changes, percent."""
    every = [image for images in classes for image in images]
    sides = [resized_size(*image, size, step) for image in every]
    return [100 * abs(math.log(w / h * height / width)) for (w, h), (width, height) in zip(sides, every, strict=True)]


def wide_scenes(per_class: int) -> list[tuple[str, np.ndarray, Box]]:
    """(prompt, pixels, box of the digit): a scene with a part of another one beside it, between 1 : 1 and 1.8 : 1."""
    rng, found = np.random.default_rng(0), []
    for label, name in enumerate(scenes.NAMES):
        for i in range(per_class):
            scene, other = (scenes.compose("test", label, 2 * i + k, 1, 5) for k in (0, 1))
            beside = np.repeat(other.pixels[:, -1:], int(rng.integers(1, 52)), axis=1)  # without another digit
            found.append((f"An image of {name}.", np.concatenate([scene.pixels, beside], 1), scene.boxes[0]))
    return found


def hits(per_class: int, steps: list[int], draws: int) -> list[list[object]]:
    model, settings = (
        Diffusion.load(locate(ModelSettings(model="demo")), torch.device("cpu"), "fp32"),
        ScoringSettings(draws=draws),
    )
    patches, found = PatchSettings(patch_size=scenes.SIZE // 2), wide_scenes(per_class)
    results: dict[int, tuple[list[bool], list[float]]] = {}
    for step in steps:
        seen = [resize(Image.fromarray(pixels), scenes.SIZE, max(1, step * scenes.SIZE // 256)) for _, pixels, _ in found]
        asked = [Asked(str(i), np.asarray(each), (found[i][0],)) for i, each in enumerate(seen)]
        inside, scores = [False] * len(found), [0.0] * len(found)
        for i, maps in score_all(Scorer(model, settings, 0, 16), asked, patches, SelectionSettings()):
            cells = estimate(maps.differential[0], maps.gap[0], patches, settings, maps.null)
            (box, scores[i]), across = best_boxes(cells, *seen[i].size[::-1], patches)[0], found[i][1].shape[1] / seen[i].width
            inside[i] = held(found[i][2], (box[0], round(box[1] * across), box[2], round(box[3] * across))) >= 0.8
        results[step] = inside, scores
    base = results[steps[0]]
    return [
        [
            step,
            f"{100 * np.mean(inside):.1f}",
            int(sum(map(bool.__ne__, inside, base[0]))),
            f"{spearmanr(scores, base[1])[0]:.3f}",
        ]
        for step, (inside, scores) in results.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="?", help="a folder of class folders")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 16, 32, 64])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--graphs", action="store_true", help="count the graphs of --compile instead")
    parser.add_argument("--hits", type=int, help="score so many wide scenes of each digit instead")
    args = parser.parse_args()
    if args.hits:
        print(f"{10 * args.hits} scenes, {args.draws} draws")
        return print(table(hits(args.hits, args.steps, args.draws), ["step", "hits %", "that differ", "order"]))
    if args.graphs:
        rows = [[step, *graphs(args.size, step, args.batch_sizes[0])] for step in args.steps]
        return print(table(rows, ["step", "shapes", "graphs"]))
    sets = {"like ImageNet, 300 a class": like_imagenet(40, 300), "like ImageNet, 1,300 a class": like_imagenet(10, 1300)}
    if args.images:
        sets = {args.images: photographs(args.images)} | sets
    settings, rows = ScoringSettings(draws=args.draws), []
    for name, classes in sets.items():
        for step in args.steps:
            shapes = Counter(shape for images in classes for shape in shapes_of(images, args.size, step))
            change = changed(classes, args.size, step)
            told = [len(shapes), f"{np.mean(change):.1f}", f"{max(change):.1f}"]
            ways = [(batch, before) for batch in args.batch_sizes for before in (True, False)]
            rows.append([name, step, *told, *(f"{filled(classes, args.size, step, settings, *way):.3f}" for way in ways)])
    heads = [f"batch {batch}, {when}" for batch in args.batch_sizes for when in ("before", "now")]
    print(table(rows, ["images", "step", "shapes", "change, mean %", "most %", *heads]))
    ways = [(batch, at_once) for batch in args.batch_sizes for at_once in (4, 16, None)]
    rows = [
        [name, step, *("{:.3f}, {:.3f}".format(*encoded(classes, args.size, step, *way)) for way in ways)]
        for name, classes in sets.items()
        for step in args.steps
    ]
    heads = [f"batch {batch}, {f'{at_once} at once' if at_once else 'now'}" for batch, at_once in ways]
    print("pictures that the VAE encodes, and its calls, for each image:")
    return print(table(rows, ["images", "step", *heads]))


if __name__ == "__main__":
    main()
