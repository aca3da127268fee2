"""How well stored maps find flipped labels, beside a classifier's own loss.

    python scripts/measure_suspects.py --out OUT                                            # the demo's scenes and teacher
    python scripts/measure_suspects.py --out OUT --images cifar10/test --teacher TEACHER    # any folder of class folders

5 % of the labels are flipped to another class, drawn with the seed.  The demo's scenes hold digits that neither the
checkpoint nor the teacher was trained on; give other images such as the teacher was not trained on, too.
AUROC over all images; precision: share of flipped ones among the 5 % most suspect of all images, and of each class.
"""

from __future__ import annotations

import argparse
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.stats import rankdata

from diffsel import method, scenes
from diffsel.config import load_settings
from diffsel.demo import demo_settings
from diffsel.diffusion import pick_device
from diffsel.evaluation import Machine, predict
from diffsel.pictures import validation_pictures
from diffsel.report import table
from diffsel.session import Session, start
from diffsel.suspects import suspects
from diffsel.teachers import load_teacher

FLIPPED = 0.05


def compose(out: Path, per_class: int, seed: int) -> None:
    """Held-out scenes of the demo, as class folders."""
    for label, name in enumerate(scenes.NAMES):
        (out / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            Image.fromarray(scenes.compose("test", label, i, 1, seed).pixels).save(out / name / f"{i:04d}.png")


def flip(source: Path, out: Path, per_class: int, seed: int) -> None:
    """Copies of the first images of each class; 5 % lie in another class's folder.  A name begins with its true class."""
    classes = sorted(path.name for path in source.iterdir() if path.is_dir())
    listed = [(name, path) for name in classes for path in sorted((source / name).iterdir())[:per_class]]
    rng = np.random.default_rng(seed)
    flipped = set(rng.choice(len(listed), round(FLIPPED * len(listed)), replace=False))
    for number, (name, path) in enumerate(listed):
        others = [other for other in classes if other != name]
        given = others[rng.integers(len(others))] if number in flipped else name
        (out / given).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, out / given / f"{name}~{path.name}")


def teacher_losses(session: Session, teacher: str, size: int) -> dict[str, float]:
    """Cross-entropy of the given label, by path."""
    judge = load_teacher(teacher, session.data.classes, size, pick_device("auto"))
    album = validation_pictures(session.data, session.data.classes, size, size)
    pictures = album.load()
    logits = predict(judge.network, pictures, Machine(pick_device("auto")))[:, judge.rows.cpu()].float()
    losses = torch.nn.functional.cross_entropy(logits, pictures.labels.cpu(), reduction="none")
    return dict(zip([row.path for row in album.rows], losses.tolist(), strict=True))


def figures(wrong: np.ndarray, labels: np.ndarray, suspicion: np.ndarray) -> tuple[float, float, float]:
    """AUROC, and precision among the 5 % most suspect: of all, of each class."""
    ranks, bad = rankdata(suspicion), int(wrong.sum())
    auroc = (ranks[wrong].sum() - bad * (bad + 1) / 2) / (bad * (len(wrong) - bad))
    everywhere = np.argsort(-suspicion, kind="stable")[: round(FLIPPED * len(wrong))]
    each = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        each += list(members[np.argsort(-suspicion[members], kind="stable")][: round(FLIPPED * len(members))])
    return float(auroc), float(wrong[everywhere].mean()), float(wrong[each].mean())


def measure(args: argparse.Namespace, seed: int) -> list[tuple[str, tuple[float, float, float]]]:
    """Both rivals on one flip of the labels."""
    out = args.out / f"seed-{seed}"
    data, source = out / "data", args.images
    if not data.exists():
        if source is None:
            source = out / "scenes"
            compose(source, args.per_class, seed)
        flip(source, out / "part", args.per_class, seed)
        (out / "part").rename(data)
    base = demo_settings(seed, draws=args.draws).model_dump(mode="json")
    session = start(str(data), out / "run", load_settings(args.config or [], {}, base))
    method.score(session)
    found = [each for info in session.data.classes for each in suspects(session, info.folder)]
    losses = teacher_losses(session, args.teacher, args.size)
    wrong = np.array([Path(each.path).name.split("~")[0] != each.label for each in found])
    labels = np.array([each.label for each in found])
    statistic = np.array([each.statistic for each in found])
    raised = [f"{(statistic[part] < 0).mean():.0%}" for part in (wrong, ~wrong)]
    print(f"seed {seed}: {len(found)} images, {wrong.sum()} flipped; the label raises the loss of {raised[0]} of the flipped "
          f"and {raised[1]} of the others", flush=True)  # fmt: skip
    rival = np.array([losses[each.path] for each in found])
    return [("stored maps", figures(wrong, labels, -statistic)), ("teacher's loss", figures(wrong, labels, rival))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="flipped data and runs; taken up again")
    parser.add_argument("--images", type=Path, help="folder of class folders; default: the demo's scenes")
    parser.add_argument("--config", type=Path, action="append", help="settings file for the scoring pass")
    parser.add_argument("--teacher", default=str(files("diffsel") / "assets" / "demo-teacher"))
    parser.add_argument("--size", type=int, default=32, help="side of what the teacher sees, pixels")
    parser.add_argument("--per-class", type=int, default=64)
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    results = [measure(args, seed) for seed in args.seeds]
    rows: list[list[object]] = []
    for place, (name, _) in enumerate(results[0]):
        values = np.array([result[place][1] for result in results])
        spread = values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else [None] * 3
        rows.append([name, *(f"{m:.3f}" + (f" +- {e:.3f}" if e is not None else "")
                             for m, e in zip(values.mean(0), spread, strict=True))])  # fmt: skip
    print(table(rows, ["by", "AUROC", "precision at 5 %", "precision at 5 % of each class"]))


if __name__ == "__main__":
    main()
