"""Share of best patches that hold the labelled digit, by estimator and number of draws, paired image by image.

    python scripts/measure_estimators.py --choose          # scenes to choose on: seed 100
    python scripts/measure_estimators.py                   # other scenes to confirm on: seed 200
    python scripts/measure_estimators.py --rivals 1 2 3 5 9 --draws 12 --seed 400     # against the likeliest other labels
    python scripts/measure_estimators.py --rivals 1 2 3 5 9 --draws 12 --seed 400 --model cifar10 --pairs cifar10/test

Scenes with one digit, and with a second one of another class; held-out digits that the checkpoint was not trained on.  Or
(--pairs) photographs, each beside one of another class: the patch should find the labelled one.  The difference to
``combined``, the default of the first version (with --rivals: to ``gated``), has a paired standard error: the same scenes,
the same draws.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffsel.data.images import ImageData, open_data
from diffsel.machine.device import pick_device
from diffsel.machine.progress import progress
from diffsel.report.text import table
from diffsel.scoring.diffusion import Diffusion
from diffsel.scoring.draws import Scorer
from diffsel.scoring.folder import locate
from diffsel.scoring.maps import Asked, Maps, rival_losses, score_images
from diffsel.scoring.nats import nats_per_unit
from diffsel.scoring.patches import best_boxes, estimate
from diffsel.settings.sections import DataSettings, ModelSettings, PatchSettings, ScoringSettings
from diffsel.studies import scenes
from diffsel.studies.demo import HELD, PATCH, held


def ways(choose: bool, rivals: Sequence[int]) -> dict[str, PatchSettings]:
    """What is compared, by name; the first is what the others are compared with."""
    gated = PatchSettings(patch_size=PATCH, estimator="gated")
    plain = {name: PatchSettings(patch_size=PATCH, estimator=name) for name in ("combined", "differential", "gap")}
    if rivals:
        counted = {f"rivals {count}": gated.model_copy(update={"rivals": count}) for count in rivals}
        return {"gated": gated, "differential": plain["differential"], **counted}
    chosen = [(0.5, 0.125), (0.25, 0.125)]
    gates = [(c, blur) for c in (0.125, 0.25, 0.5, 1.0) for blur in (0.125, 0.1875, 0.25)] if choose else chosen
    return plain | {f"gated {c:g}, {b:g}": gated.model_copy(update={"gate": c, "blur": b}) for c, b in gates}


def pair(data: ImageData, label: int, index: int, seed: int) -> scenes.Scene:
    """Photograph number ``index`` of a class beside the one of another class, in any order."""
    rng = np.random.default_rng([seed, label, index])
    labels = (label, int(label + rng.integers(1, len(data.classes))) % len(data.classes))
    pixels = [data.pixels(data.of_class(data.classes[each].folder)[index]) for each in labels]
    left = int(rng.integers(2))
    spots = (left * pixels[1].shape[1], (1 - left) * pixels[0].shape[1])
    boxes = tuple((0, spot, *each.shape[:2]) for spot, each in zip(spots, pixels, strict=True))
    return scenes.Scene(np.concatenate(pixels[::-1] if left else pixels, 1), labels, boxes)


def scored(
    scorer: Scorer, names: Sequence[str], per_class: int, compose: Callable[[int, int], scenes.Scene], rivals: int
) -> Iterator[tuple[scenes.Scene, Maps, NDArray[np.float16]]]:
    """Scenes with their maps, and the differential maps of the ``rivals`` likeliest other labels, the likeliest first."""
    prompts = [f"An image of {name}." for name in names]
    for label, prompt in enumerate(prompts):
        drawn = [compose(label, i) for i in range(per_class)]
        images = [(f"{label}/{i}", scene.pixels) for i, scene in enumerate(drawn)]
        against = {}
        if rivals:
            others = (*prompts[:label], *prompts[label + 1 :])
            asked = [Asked(key, pixels, others) for key, pixels in images]
            against = {place: losses for place, (_, losses) in rival_losses(scorer, asked, rivals)}
        for place, maps in score_images(scorer, images, [prompt]):
            yield drawn[place], maps, (against.get(place, maps.null[None]) - maps.null).astype(np.float16)


def hit(
    scene: scenes.Scene, maps: Maps, rivals: NDArray[np.float16], way: PatchSettings, settings: ScoringSettings, nats: float
) -> bool:
    """``nats``: of a latent cell."""
    those = rivals[: way.rivals] if way.rivals else None
    whole = nats * min(maps.null.shape[1:]) ** 2
    cells = estimate(maps.differential[0], maps.gap[0], way, settings, maps.null, maps.draws, those, whole)
    return held(scene.boxes[0], best_boxes(cells, *scene.pixels.shape[:2], way)[0][0]) >= HELD


def differences(hits: np.ndarray, base: np.ndarray) -> list[str]:
    """Percent of scenes, with the paired standard error."""
    gain = hits - base
    error = gain.std(0, ddof=1) / len(gain) ** 0.5
    return [f"{100 * g:+.1f} ± {100 * e:.1f}" for g, e in zip(gain.mean(0), error, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--pairs", type=Path, help="class folders of photographs, instead of scenes")
    parser.add_argument("--size", type=int, default=32, help="shorter side of a photograph")
    parser.add_argument(
        "--rivals", type=int, nargs="+", default=[], help="numbers of other labels that the label is scored against"
    )
    parser.add_argument("--choose", action="store_true", help="many gates, on scenes of their own")
    parser.add_argument("--seed", type=int, help="of the scenes; default 100 to choose, 200 to confirm")
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 2], choices=(1, 2), help="in a scene")
    parser.add_argument("--per-class", type=int, default=40)
    parser.add_argument("--draws", type=int, nargs="+", default=[3, 6, 12])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path, help="write the table here too")
    args = parser.parse_args()
    model = Diffusion.load(locate(ModelSettings(model=args.model)), pick_device("auto"), "fp32")
    names = ways(args.choose, args.rivals)
    seed = args.seed if args.seed is not None else 100 if args.choose else 200
    data = (
        open_data(str(args.pairs), DataSettings(image_size=args.size, images_per_class=args.per_class), seed)
        if args.pairs
        else None
    )
    labels = [info.name for info in data.classes] if data else scenes.NAMES
    rows: list[list[object]] = []
    against: list[list[object]] = []
    first = next(iter(names))
    for objects in (2,) if data else args.objects:
        compose = partial(pair, data, seed=seed) if data else partial(scenes.compose, "test", objects=objects, seed=seed)
        most = np.zeros(0)  # hits of the first way with most draws
        for draws in sorted(args.draws, reverse=True):
            settings = ScoringSettings(draws=draws)
            scorer = Scorer(model, settings, seed, args.batch_size)
            nats = nats_per_unit((model.levels.log_snr(settings.t_min), model.levels.log_snr(settings.t_max)), model.channels)
            found = scored(scorer, labels, args.per_class, compose, max(args.rivals, default=0))
            told = progress(False)(found, total=len(labels) * args.per_class, desc=f"{objects}, {draws}")
            hits = np.array([[hit(*each, way, settings, nats) for way in names.values()] for each in told], float)
            most = most if len(most) else hits[:, :1]
            rows.append([objects, draws, f"{100 * hits[:, 0].mean():.1f}", *differences(hits, hits[:, :1])[1:]])
            against.append([objects, draws, *differences(hits, most)])
            print(rows[-1], flush=True)
    text = f"{len(labels) * args.per_class} scenes in each row; hits of {first}, percent, and how many more of the others\n"
    text += table(rows, ["objects", "draws", *names])
    if len(args.draws) > 1:
        text += f"\n\nthe same against {first} with {max(args.draws)} draws\n" + table(against, ["objects", "draws", *names])
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
