"""What fp16, bf16 and TF32 change in maps, boxes and order, against fp32, and which parts of a network would mend it.

    python scripts/measure_precision.py                                                          # demo scenes; on any device
    python scripts/measure_precision.py --model cifar10 --images cifar10/test --size 32          # a folder of class folders
    python scripts/measure_precision.py --precision fp16 --keep head vae text                    # parts in fp32, one by one
    python scripts/measure_precision.py --model SD15 --size 256 --images photos --precision fp16 # any model

A CPU computes in fp16 and bf16 too, so that accuracy (not speed) needs no GPU.  Same images, same draws.  Rank: Spearman
correlation of an image's patch scores with fp32's, averaged over images; box: images whose best boxes share 90 % of their
area; order: correlation of the guided ranks over all images of a class, and ``picked``: images of the best quarter that fp32
picks too; nats: root mean square of the difference of -D in nats, over its deviation between images; the same for a
repetition in fp32 with other noise, which no precision can beat by much.  Hits (scenes): patches that hold 80 % of the digit.
``layout``: channels last where a device has them by default the other way.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from diffsel.data.images import open_data
from diffsel.machine.device import pick_device
from diffsel.report.text import table
from diffsel.scoring.diffusion import DTYPES, Diffusion
from diffsel.scoring.draws import Scorer
from diffsel.scoring.folder import locate
from diffsel.scoring.maps import Asked, score_all
from diffsel.scoring.nats import nats_per_unit
from diffsel.scoring.patches import Box, best_boxes, box_mean, estimate, guided, patch_scores
from diffsel.settings.sections import DataSettings, ModelSettings, PatchSettings, ScoringSettings, SelectionSettings
from diffsel.studies import scenes
from diffsel.studies.demo import PATCH, held

Found = dict[str, np.ndarray]  # of all images: patch scores, box, guided rank, -D
Truth = list[Box | None]


def scenes_of(per_class: int) -> tuple[list[Asked], Truth]:
    drawn = [(label, i, scenes.compose("test", label, i, 1 + i % 2)) for label in range(10) for i in range(per_class)]
    asked = [Asked(f"{label}/{i}", s.pixels, (f"An image of {scenes.NAMES[label]}.",), str(label)) for label, i, s in drawn]
    return asked, [scene.boxes[0] for _, _, scene in drawn]


def images_of(folder: Path, size: int, per_class: int) -> tuple[list[Asked], Truth]:
    data = open_data(str(folder), DataSettings(image_size=size, images_per_class=per_class), 0)
    prompts = {info.folder: (info.prompt("An image of {label}."),) for info in data.classes}
    return [Asked(row.digest, data.pixels(row), prompts[row.label], row.label) for row in data.rows], [None] * len(data.rows)


def look(scorer: Scorer, asked: list[Asked], patches: PatchSettings) -> Found:
    rows: dict[int, tuple] = {}
    for place, maps in score_all(scorer, asked, patches, SelectionSettings()):
        height, width = asked[place].picture.shape[:2]
        cells = estimate(maps.differential[0], maps.gap[0], patches, scorer.settings, maps.null)
        box, _ = best_boxes(cells, height, width, patches)[0]
        d, g = (m[0].astype(np.float64).mean(0) for m in (maps.differential, maps.gap))
        inside = [np.array([box_mean(each, height, width, box)]) for each in (d, g)]
        side = patches.patch_size or 0
        rows[place] = (
            patch_scores(cells, height, width, side, patches.stride)[0].ravel(),
            box,
            guided(*inside, 5.0)[0],
            -d.mean(),
        )
    return {name: [rows[i][k] for i in sorted(rows)] for k, name in enumerate(("scores", "box", "rank", "nats"))}  # type: ignore[misc]


def agreement(one: Found, other: Found, asked: list[Asked], truth: Truth, unit: float) -> list[str]:
    ranks = [spearmanr(a, b).statistic for a, b in zip(one["scores"], other["scores"], strict=True) if np.ptp(a) > 0]
    boxes = [held(a, b) >= 0.9 for a, b in zip(one["box"], other["box"], strict=True)]
    orders, shared = [], []
    for label in dict.fromkeys(each.among for each in asked):
        members = [i for i, each in enumerate(asked) if each.among == label]
        a, b = (np.array([found["rank"][i] for i in members]) for found in (one, other))
        best = max(1, len(members) // 4)
        orders.append(spearmanr(a, b).statistic)
        shared.append(len(set(np.argsort(-a)[:best]) & set(np.argsort(-b)[:best])) / best)
    a, b = (np.array(found["nats"]) * unit for found in (one, other))
    hits = [held(box, found) >= 0.8 for box, found in zip(truth, other["box"], strict=True) if box]
    cells = [f"{np.mean(ranks):.4f}", f"{100 * np.mean(boxes):.1f}", f"{np.mean(orders):.4f}", f"{100 * np.mean(shared):.0f}"]
    cells.append(f"{np.sqrt(np.mean((a - b) ** 2)):.3g} / {a.std():.3g}")
    return [*cells, f"{100 * np.mean(hits):.1f}" if hits else "-"]


def in_fp32(module: nn.Module) -> None:
    """The module computes in fp32, whatever it is given, and gives that on."""
    module.float()
    module.register_forward_pre_hook(lambda _, inputs: tuple(each.float() for each in inputs))


def keep(model: Diffusion, part: str) -> None:
    """One part in fp32, the others as they are."""
    if part == "head":  # the last norm and convolution, and so the prediction itself, are not rounded
        for module in (model.network.conv_norm_out, model.network.conv_out):
            in_fp32(module)
    elif part == "text":  # the words, before they are turned into keys and values
        model.text_encoder.float()  # type: ignore[attr-defined]
    elif part == "vae":
        full = model.vae.float()
        encode: Callable = full.encode
        full.encode = lambda images: encode(images.float())
    else:  # all attention's keys and values of words
        for name, module in model.network.named_modules():
            if name.endswith(("attn2.to_k", "attn2.to_v")):
                module.float()
                module.register_forward_pre_hook(lambda _, inputs: tuple(each.float() for each in inputs))
                module.register_forward_hook(lambda _m, _i, output, to=model.dtype: output.to(to))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--images", type=Path, help="folder of class folders; default: scenes")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--patch-size", type=int, help=f"default: {PATCH} of scenes, half of other images")
    parser.add_argument("--per-class", type=int, default=8)
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", nargs="+", default=["bf16", "fp16"], choices=DTYPES)
    parser.add_argument("--keep", nargs="*", default=[], choices=["head", "text", "vae", "words"], help="in fp32, one by one")
    parser.add_argument("--layout", action="store_true", help="both memory layouts")
    args = parser.parse_args()
    device, folder = pick_device("auto"), locate(ModelSettings(model=args.model))
    asked, truth = images_of(args.images, args.size, args.per_class) if args.images else scenes_of(args.per_class)
    side = args.patch_size or (args.size // 2 if args.images else PATCH)
    patches, settings = PatchSettings(patch_size=side), ScoringSettings(draws=args.draws)
    ways = [("fp32", "", 0), ("fp32", "other noise", 1)]
    ways += [(precision, part, 0) for precision in args.precision for part in ("", *args.keep, *["layout"] * args.layout)]
    reference, rows = None, []
    for precision, part, seed in ways:
        model = Diffusion.load(folder, device, precision)
        if part == "layout":
            layout = torch.contiguous_format if device.type == "cuda" else torch.channels_last
            model.network.to(memory_format=layout)
        elif part in args.keep:
            keep(model, part)
        begin = time.perf_counter()
        found = look(Scorer(model, settings, seed, args.batch_size), asked, patches)
        rate = len(asked) / (time.perf_counter() - begin)
        reference = reference or found
        window, cells = (
            (model.levels.log_snr(settings.t_min), model.levels.log_snr(settings.t_max)),
            (args.size // model.cell) ** 2,
        )
        unit = nats_per_unit(window, model.channels * cells)
        rows.append([precision, part, *agreement(reference, found, asked, truth, unit), f"{rate:.3g}"])
        print(rows[-1], flush=True)
    print(f"{args.model}, {len(asked)} images on {device}, {args.draws} draws, {torch.get_num_threads()} threads")
    print(
        table(rows, ["precision", "fp32 kept", "rank", "box %", "order", "picked %", "nats / deviation", "hits %", "images/s"])
    )


if __name__ == "__main__":
    main()
