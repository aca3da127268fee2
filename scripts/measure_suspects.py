"""How well stored maps find flipped labels, beside a classifier's own loss.

    python scripts/measure_suspects.py                                            # the demo's scenes and teacher
    python scripts/measure_suspects.py --images cifar10/test --teacher TEACHER --model cifar10 --side 32    # class folders

Every image is scored once with its own label and once with a wrong one (drawn with the seed), in one pass; then a share of
the labels is flipped, 500 times over, and the means of what is found are printed: AUROC, and precision (share of flipped
ones) among as many suspects of all, and of each class, as `select --drop-suspects` takes them.  The last column is
the other end: how many of the least suspect tenth of each class are flipped, as a selection that ranks by this would take them.
The demo's scenes hold digits that neither the checkpoint nor its teacher was trained on; for other data, too, give images
that the teacher was not trained on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.stats import rankdata

from diffsel.data.classes import ClassInfo
from diffsel.data.pixels import Pixels
from diffsel.data.views import normalise
from diffsel.evaluation.teachers import Teacher, load_teacher
from diffsel.machine.device import pick_device
from diffsel.report.text import table
from diffsel.scoring.diffusion import Diffusion
from diffsel.scoring.draws import Scorer
from diffsel.scoring.folder import locate
from diffsel.scoring.maps import score_images
from diffsel.scoring.patches import best_boxes, guided
from diffsel.settings.sections import ModelSettings, PatchSettings, ScoringSettings, SelectionSettings
from diffsel.studies import scenes


@dataclass(frozen=True)
class Labelled:
    """An image, its class and the wrong one that it may be flipped to (positions)."""

    key: str
    pixels: Pixels
    right: int
    wrong: int


def read(source: Path | None, per_class: int, side: int, seed: int) -> tuple[list[str], list[Labelled]]:
    """Class names, and images of ``side`` x ``side`` pixels."""
    rng = np.random.default_rng(seed)
    names = sorted(path.name for path in source.iterdir() if path.is_dir()) if source else list(scenes.NAMES)
    images = []
    for right, name in enumerate(names):
        for i in range(per_class):
            if source:
                with Image.open(sorted((source / name).iterdir())[i]) as picture:
                    pixels = np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
            else:
                pixels = scenes.compose("test", right, i, 1, seed).pixels
            wrong = int((right + rng.integers(1, len(names))) % len(names))
            images.append(Labelled(f"{right}/{i}", pixels, right, wrong))
    return names, images


def by_maps(
    images: Sequence[Labelled], names: Sequence[str], model: Diffusion, draws: int, seed: int, batch: int
) -> dict[str, np.ndarray]:
    """Suspicions (n, 2) under the right and the wrong label: minus the statistic of `diffsel suspects`, what the default
    selection ranks by (at the whole image), the gap, and minus the score of the best patch of half the side."""
    settings, side = ScoringSettings(draws=draws, bins=1), images[0].pixels.shape[0]
    patches, guidance = PatchSettings(patch_size=side // 2), SelectionSettings().guidance
    whole, rank, gap, patch = np.zeros((4, len(images), 2))
    for pair in sorted({(image.right, image.wrong) for image in images}):
        places = [i for i, image in enumerate(images) if (image.right, image.wrong) == pair]
        keyed = [(images[i].key, images[i].pixels) for i in places]
        prompts = [f"An image of {names[label]}." for label in pair]
        for place, maps in score_images(Scorer(model, settings, seed, batch), keyed, prompts):
            for p, (differential, gaps) in enumerate(zip(maps.differential, maps.gap, strict=True)):
                at = places[place], p
                whole[at], gap[at] = differential.mean(dtype=float), gaps.mean(dtype=float)
                rank[at] = -guided(-whole[at], gap[at], guidance)
                patch[at] = -best_boxes(-differential[0].astype(float), side, side, patches)[0][1]
    return {"stored maps (-D)": whole, f"guided loss, s = {guidance:g}": rank, "gap": gap, "best patch (-D)": patch}


def by_teacher(images: Sequence[Labelled], teacher: Teacher, size: int) -> np.ndarray:
    """Suspicion (n, 2): the teacher's cross-entropy of both labels."""
    small = [np.asarray(Image.fromarray(image.pixels).resize((size, size), Image.Resampling.BILINEAR)) for image in images]
    logits = teacher.logits(normalise(torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2))).log_softmax(1)
    labels = torch.tensor([[image.right, image.wrong] for image in images])
    return -logits.gather(1, labels).numpy()


def figures(suspicion: np.ndarray, images: Sequence[Labelled], share: float, seed: int, rounds: int = 500) -> list[float]:
    """Means over ``rounds`` flips of ``share`` of the labels: AUROC, precision among that share of all, and of each (given)
    class, and how many of the other end's tenth of each class are flipped."""
    rng, found = np.random.default_rng(seed), []
    labels = np.array([[image.right, image.wrong] for image in images])
    bad = round(share * len(images))
    for _ in range(rounds):
        flipped = np.zeros(len(images), bool)
        flipped[rng.choice(len(images), bad, replace=False)] = True
        value, given = (pair[np.arange(len(images)), flipped.astype(int)] for pair in (suspicion, labels))
        auroc = (rankdata(value)[flipped].sum() - bad * (bad + 1) / 2) / (bad * (len(images) - bad))
        each, best = list[int](), list[int]()
        for label in np.unique(given):
            members = np.flatnonzero(given == label)
            ordered = members[np.argsort(-value[members], kind="stable")].tolist()
            each += ordered[: int(share * len(members))]
            best += ordered[-max(1, len(members) // 10) :]
        first = np.argsort(-value, kind="stable")[:bad]
        found.append([auroc, *(flipped[chosen].mean() for chosen in (first, each, best))])
    return [float(value) for value in np.mean(found, 0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of class folders; default: the demo's scenes")
    parser.add_argument("--teacher", default=str(files("diffsel") / "assets" / "demo-teacher"))
    parser.add_argument("--model", default="demo", help="the prior")
    parser.add_argument("--side", type=int, default=scenes.SIZE, help="side of what the prior sees, pixels")
    parser.add_argument("--flipped", type=float, nargs="+", default=[0.05], help="shares of the labels")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--size", type=int, default=32, help="side of what the teacher sees, pixels")
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=18)
    args = parser.parse_args()
    names, images = read(args.images, args.per_class, args.side, args.seed)
    teacher = load_teacher(args.teacher, [ClassInfo(name, name) for name in names], args.size, pick_device("cpu"))
    model = Diffusion.load(locate(ModelSettings(model=args.model)), pick_device("auto"), args.precision)
    rivals = by_maps(images, names, model, args.draws, args.seed, args.batch_size)
    raised = [f"{share:.1%}" for share in (rivals["stored maps (-D)"] > 0).mean(0)]
    print(
        f"{len(images)} images, {args.draws} draws; the right label raises the loss of {raised[0]}, a wrong one of {raised[1]}"
    )
    rivals["teacher's loss"] = by_teacher(images, teacher, args.size)
    rows = [
        [f"{share:.0%}", name, *figures(values, images, share, args.seed)]
        for share in args.flipped
        for name, values in rivals.items()
    ]
    print(table(rows, ["flipped", "by", "AUROC", "precision", "precision, each class", "flipped in the best tenth"]))


if __name__ == "__main__":
    main()
