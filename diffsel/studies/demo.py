"""The embedded default: compose labelled scenes whose true boxes are known, distil them, and check the patches.

OUT/train, OUT/test   class folders of scenes          OUT/truth.csv     path, top, left, height, width of each object
OUT/two_objects       scenes with a second digit       OUT/run, OUT/ipc1, OUT/ipc10   diffsel's run and sets
OUT/rded-ipc1, OUT/random-ipc1/set-0 ...   the baselines' sets     OUT/results       one JSON a student
OUT/summary.json      all figures                      OUT/demo.png      what a person looks at
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from .. import method
from ..data.images import open_data
from ..data.rows import Row
from ..evaluation.bench import Bench
from ..evaluation.cells import gather, make_cell, run_cells
from ..evaluation.results import Line, Spread, over_sets
from ..evaluation.teachers import load_teacher
from ..machine.files import write_atomically
from ..machine.formats import as_csv, dump_yaml, is_mine
from ..machine.progress import Progress, quiet
from ..machine.threads import threaded
from ..report.drawing import heat, sheet, with_boxes
from ..report.text import table
from ..runs.run import Run
from ..runs.session import Session, start
from ..scoring.batching import forwards
from ..scoring.patches import Box, best_boxes
from ..sets.baselines import judge_size, select_baseline
from ..sets.opening import open_set, read_set
from ..sets.usable import Seen
from ..settings.sections import Estimator
from ..settings.settings import Settings, resolve
from . import scenes

PATCH = 32  # pixels; a scene has 64, a digit's box at most 30 or so
HELD = 0.8  # a patch holds a digit if it covers this share of its box
IPCS = (1, 10)
EPOCHS = {1: 100, 10: 70}  # of a student, in batches of 10: as many steps as the time allows, at a higher rate than RDED's
STUDENTS = 5
RANDOM = (3, 2)  # random sets, and students of each: the interval covers the choice of the set
STUDENT = "conv4w32"  # sees an object anywhere: at 32 px only 2 x 2 places are left before its classifier
METHODS = ("diffsel", "rded", "random")
Truth = dict[str, Box]


def demo_settings(seed: int = 0, **scoring: int) -> Settings:
    """The default settings, at the scale of the embedded scenes and model."""
    return resolve(
        {
            "seed": seed,
            "data": {"image_size": scenes.SIZE},
            "model": {"model": "demo"},
            "scoring": scoring,
            "patches": {"patch_size": PATCH},
            "assembly": {"size": scenes.SIZE},
            "protocol": {"name": "demo", "size": 32, "batch_size": 10, "learning_rate": 4e-3, "flip": False},
        }
    )


def run_demo(
    out: Path, seed: int = 0, per_class: int = 64, progress: Progress = quiet, settings: Settings | None = None
) -> str:
    """The whole demo; returns what it prints.  Started again, it goes on where it was."""
    begin = time.monotonic()
    truth = compose_data(out, seed, per_class, progress)
    settings = settings or demo_settings(seed)
    one = method.make_sets(str(out / "train"), out / "run", {n: out / f"ipc{n}" for n in IPCS}, settings, progress)
    two = start(str(out / "two_objects"), out / "run_two_objects", settings, progress)
    method.score(two)
    accuracy = accuracies(one, out, progress)
    if not one.workers.is_main:
        return ""
    summary = {
        "hit_rate": hit_rates(one.run, truth, "train"),
        "hit_rate_two_objects": hit_rates(two.run, truth, "two_objects"),
        "hit_rate_selected": {str(n): _selected_rate(out / f"ipc{n}", truth) for n in IPCS},
        "patch": PATCH,
        "held_share_of_box": HELD,
        "estimator": settings.patches.estimator,
        "images": len(one.data.rows),
        "images_two_objects": len(two.data.rows),
        "forwards": forwards(len(one.data.rows), 1, settings.scoring),
        "forwards_two_objects": forwards(len(two.data.rows), 1, settings.scoring),
        "accuracy": accuracy,
        "seconds": _seconds(out) or round(time.monotonic() - begin, 1),
    }
    write_atomically(out / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    buffer = io.BytesIO()
    draw_page(one.run, two.run, truth, out).save(buffer, "PNG", optimize=True)
    write_atomically(out / "demo.png", buffer.getvalue())
    return _as_text(summary, out)


def _seconds(out: Path) -> float | None:
    """What a finished demo took; a look at it makes nothing anew."""
    file = out / "summary.json"
    return float(json.loads(file.read_text(encoding="utf-8"))["seconds"]) if file.exists() else None


def accuracies(session: Session, out: Path, progress: Progress = quiet) -> dict[str, dict[str, dict[str, float | None]]]:
    """Top-1 on the test scenes, percent, of students trained on diffsel's sets, RDED's and random ones: same protocol,
    same teacher (embedded), for each IPC.  Empty on other processes than the main one."""
    settings, workers = session.settings, session.workers
    bench, teacher = Bench.of(settings, progress), str(files("diffsel") / "assets" / "demo-teacher")
    bench.tell = lambda text: None
    folders = _set_folders(out)
    if workers.is_main:
        seen = Seen()
        judge = load_teacher(teacher, session.data.classes, judge_size(settings), bench.machine.device)
        for (name, ipc, draw), path in folders.items():
            if name != "diffsel":
                chosen = settings.selection.model_copy(update={"method": name})
                seeded = settings.model_copy(update={"selection": chosen, "seed": settings.seed + draw})
                select_baseline(session.data, ipc, path, seeded, None, judge if name == "rded" else None, seen=seen)
    workers.wait_for([path / "set.yaml" for path in folders.values()])
    test = open_data(str(out / "test"), settings.data, settings.seed)
    protocols = {n: settings.protocol.model_copy(update={"epochs": EPOCHS[n]}) for n in IPCS}
    cells = {
        key: make_cell(f"{key[0]} ipc {key[1]}", open_set(path), test, STUDENT, protocols[key[1]], teacher, bench)
        for key, path in folders.items()
    }
    lines: dict[tuple[str, int], list[Line]] = {}
    for count, wanted in (
        (STUDENTS, [key for key in cells if key[0] != "random"]),
        (RANDOM[1], [key for key in cells if key[0] == "random"]),
    ):
        trained, seeds = [cells[key] for key in wanted], range(settings.seed, settings.seed + count)
        run_cells(trained, seeds, out / "results", bench)
        if workers.is_main:
            for (name, n, _), line in zip(wanted, gather(trained, seeds, out / "results", bench.machine), strict=True):
                lines.setdefault((name, n), []).append(line)
    return {str(n): {name: _figures(over_sets(lines[name, n]).top1) for name in METHODS} for n in IPCS} if lines else {}


def _set_folders(out: Path) -> dict[tuple[str, int, int], Path]:
    """(method, ipc, draw) -> where its set lies."""
    found = {("diffsel", n, 0): out / f"ipc{n}" for n in IPCS} | {("rded", n, 0): out / f"rded-ipc{n}" for n in IPCS}
    return found | {("random", n, draw): out / f"random-ipc{n}" / f"set-{draw}" for n in IPCS for draw in range(RANDOM[0])}


def _figures(value: Spread | None) -> dict[str, float | None]:
    keys = ("mean", "std", "ci95")
    return {key: None if value is None or getattr(value, key) is None else round(getattr(value, key), 3) for key in keys}


def compose_data(out: Path, seed: int, per_class: int, progress: Progress = quiet) -> Truth:
    """Write the scenes that are not there yet; returns the labelled object's box by path.

    Raises StoreError where ``out`` holds a demo made with another seed or size.
    """
    wanted: dict[str, tuple[scenes.Split, int, int]] = {
        "train": ("train", per_class, 1),
        "test": ("test", per_class, 1),
        "two_objects": ("train", per_class // 4, 2),
    }
    described = {"seed": seed, "scenes": per_class}
    if (out / "demo.yaml").exists():
        is_mine(out, "demo.yaml", described, "a demo")
    write_atomically(out / "demo.yaml", dump_yaml(described))
    every = [
        (folder, split, label, i, objects)
        for folder, (split, count, objects) in wanted.items()
        for label in range(len(scenes.NAMES))
        for i in range(count)
    ]

    def draw(what: tuple[str, scenes.Split, int, int, int]) -> tuple[str, Box]:
        folder, split, label, i, objects = what
        scene, path = scenes.compose(split, label, i, objects, seed), f"{folder}/{scenes.NAMES[label]}/{i:04d}.png"
        if not (out / path).exists():
            buffer = io.BytesIO()
            Image.fromarray(scene.pixels).save(buffer, "PNG")
            write_atomically(out / path, buffer.getvalue())
        return path, scene.boxes[0]

    rows = list(progress(threaded(every, draw, 4), total=len(every), desc="composing scenes", unit="image"))
    write_atomically(
        out / "truth.csv", as_csv(["path", "top", "left", "height", "width"], [[path, *box] for path, box in rows])
    )
    return dict(rows)


def held(box: Box, patch: Box) -> float:
    """Share of ``box``'s area inside ``patch``."""
    overlap = [min(box[i] + box[i + 2], patch[i] + patch[i + 2]) - max(box[i], patch[i]) for i in (0, 1)]
    return max(0, overlap[0]) * max(0, overlap[1]) / (box[2] * box[3])


def hit_rates(run: Run, truth: Truth, folder: str) -> dict[str, float]:
    """Share of images whose chosen patch holds the labelled digit, by who chooses.

    ``random`` is the exact share over all patches of every image, ``centre`` the middle patch, ``diffsel`` the
    default estimator.
    """
    names: dict[str, Estimator] = {"diffsel": run.settings.patches.estimator, "differential": "differential", "gap": "gap"}
    hits: dict[str, list[float]] = {name: [] for name in (*names, "random", "centre")}
    middle = (scenes.SIZE - PATCH) // 2
    everywhere = [
        (top, left, PATCH, PATCH) for top in range(scenes.SIZE - PATCH + 1) for left in range(scenes.SIZE - PATCH + 1)
    ]
    for row, tensors, extra in ((row, *stored) for unit in run.units for stored in [run.maps(unit)] for row in unit.rows):
        box = truth[f"{folder}/{row.path}"]
        for name, estimator in names.items():
            chosen = run.settings.patches.model_copy(update={"estimator": estimator, "per_image": 1})
            seen = replace(run, settings=run.settings.model_copy(update={"patches": chosen}))
            best = best_boxes(seen.image_map(tensors, extra, row), scenes.SIZE, scenes.SIZE, chosen)
            hits[name].append(held(box, best[0][0]) >= HELD)
        hits["random"].append(float(np.mean([held(box, patch) >= HELD for patch in everywhere])))
        hits["centre"].append(held(box, (middle, middle, PATCH, PATCH)) >= HELD)
    return {name: round(float(np.mean(values)), 4) for name, values in hits.items()}


def _selected_rate(folder: Path, truth: Truth) -> float:
    tiles = [tile for picture in read_set(folder).pictures for tile in picture.tiles]
    return round(float(np.mean([held(truth[f"train/{t['source']}"], tuple(t["box"])) >= HELD for t in tiles])), 4)


def draw_page(one: Run, two: Run, truth: Truth, out: Path) -> Image.Image:
    """Scenes with heat map, chosen box (yellow) and true box (white); then the mosaics of both sets."""
    rows: list[tuple[str, Sequence[Image.Image]]] = []
    for run, folder, text in ((one, "train", "one digit"), (two, "two_objects", "a second digit of another class")):
        pairs = []
        for unit in run.units[:6]:
            pairs += _pair(run, unit.rows[3], truth[f"{folder}/{unit.rows[3].path}"])
        rows.append((f"Scenes with {text}, and the map that scores them: chosen patch yellow, true box white", pairs))
    for n in IPCS:
        pictures = [Image.open(out / f"ipc{n}" / name / "00000.png").resize((118, 118), 0) for name in scenes.NAMES]
        rows.append(
            (f"First distilled image of each class at {n} image{'s' * (n > 1)} per class (2 x 2 patches each)", pictures)
        )
    return sheet(rows, "diffsel demo: handwritten digits on cluttered scenes")


def _pair(run: Run, row: Row, box: Box) -> list[Image.Image]:
    unit = next(u for u in run.units if row in u.rows)
    cells = run.image_map(*run.maps(unit), row)
    best = best_boxes(cells, scenes.SIZE, scenes.SIZE, run.settings.patches)[0][0]
    outlines = [(box, "#ffffff"), (best, "#ffd400")]
    pictures = (run.data.pixels(row), heat(cells, scenes.SIZE, scenes.SIZE))
    return [with_boxes(pixels, outlines, scale=2) for pixels in pictures]


def accuracy_rows(accuracy: dict) -> list[list[str]]:
    def text(value: dict) -> str:
        if value["mean"] is None:
            return "-"
        return f"{value['mean']:.1f}" + ("" if value["ci95"] is None else f" ± {value['ci95']:.1f}")

    return [[name, *(text(accuracy[str(n)][name]) for n in IPCS)] for name in METHODS]


def _as_text(summary: dict, out: Path) -> str:
    order = ("diffsel", "gap", "differential", "centre", "random")
    rows = [[name, 100 * summary["hit_rate"][name], 100 * summary["hit_rate_two_objects"][name]] for name in order]
    selected = ", ".join(f"ipc {n}: {100 * rate:.1f} %" for n, rate in summary["hit_rate_selected"].items())
    return (
        f"\nBest {PATCH} x {PATCH} patches that hold at least {HELD:.0%} of the labelled digit's box, in percent\n"
        f"(diffsel: the default estimator, {summary['estimator']}; the digits are the model's training glyphs)\n\n"
        + table(rows, ["chosen by", "one digit", "two digits"])
        + f"\n\nOf the patches in the distilled sets: {selected}\n\n"
        f"Accuracy on the test scenes of {STUDENTS} students ({STUDENT}, same protocol and teacher) in percent, mean ± 95%\n"
        f"(random: {RANDOM[0]} sets of {RANDOM[1]} students, whose interval covers the choice of the set too)\n"
        + table(accuracy_rows(summary["accuracy"]), ["selected by", *(f"ipc {n}" for n in IPCS)])
        + "\n\n"
        f"{summary['images']} + {summary['images_two_objects']} scenes, {summary['forwards']:,} + "
        f"{summary['forwards_two_objects']:,} U-Net forwards, {summary['seconds']} s\n\n"
        f"picture:  {out / 'demo.png'}\nsets:     {out / 'ipc1'}, {out / 'ipc10'}\nsummary:  {out / 'summary.json'}"
    )
