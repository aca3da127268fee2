"""What a person looks at to compare sets: t-SNE of the chosen patches among the real ones (Fig. 4), and sheets of pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from .. import method
from ..evaluation.results import spread
from ..machine.progress import Progress
from ..report.charts import tsne
from ..report.drawing import heat, sheet, with_boxes
from ..runs.run import Run
from ..runs.session import Session, start
from ..scoring.features import Patch, embed_patches
from ..scoring.patches import best_boxes
from ..sets.candidates import candidates
from ..sets.opening import DistilledSet, read_set
from ..settings.errors import ConfigError
from .cases import Job
from .tables import Place, Value

CLASSES = 10  # on a sheet, at most
ACROSS = 10  # pictures in a row of a sheet
SHOWN = 6  # classes of the t-SNE picture
Vectors = Float[np.ndarray, "n channels"]


def session_of(job: Job, out: Path, progress: Progress) -> Session:
    """The run that a job's set came from, scored (nothing is done where it is there)."""
    session = start(job.source.train, out / "runs" / job.run_name, job.settings, progress)
    method.score(session)
    return session


# ---- t-SNE (Fig. 4) --------------------------------------------------------------------------------------------------


def spreads(
    jobs: Sequence[Job], folders: Mapping[str, Path], out: Path, progress: Progress
) -> tuple[dict[Place, Value], bytes]:
    """How the patches of each set lie among those of all real images, in the features that the method clusters by.

    For each class, in percent of the mean distance of real patches to their centre: ``spread``, the mean distance of chosen
    patches to that centre (below 100: nearer to the centre than the data), and ``gap``, the mean distance of a real patch to
    the nearest chosen one.  Mean and interval are over classes.  Also the t-SNE picture, PNG.
    """
    base = next((job for job in jobs if job.vectors), None)
    if base is None:
        raise ConfigError("t-SNE needs a case of method diffsel, with clusters: its features are those of the real data")
    session = session_of(base, out, progress)
    method.embed(session)
    labels = [info.folder for info in session.data.classes]
    real = {label: candidates(session.run, label).vectors for label in labels}
    chosen = {job.case.row: _vectors(session, read_set(folders[job.set_name]), progress) for job in jobs}
    values = {}
    for job in jobs:
        figures = [_figures(real[label], chosen[job.case.row][label]) for label in labels]
        for column, numbers in zip(("spread", "gap"), zip(*figures, strict=True), strict=True):
            values[job.case.row, column] = Value.of(spread(numbers), f"{job.ran_as}, n: classes")
    return values, _scatter(real, chosen, labels[:SHOWN])


def _vectors(session: Session, found: DistilledSet, progress: Progress) -> dict[str, Vectors]:
    """DIFT vectors of a set's tiles; each is brought to the size of the run's patches first."""
    s, rows = session.settings, {row.path: row for row in session.data.rows}
    side = s.patches.patch_size or s.data.image_size
    vectors: dict[str, Vectors] = {}
    with progress(total=sum(len(picture.tiles) for picture in found.pictures), desc="embedding tiles", unit="patch") as bar:
        for label in found.images:
            patches = []
            for tile in found.tiles(label):
                top, left, height, width = tile["box"]
                cut = session.data.pixels(rows[tile["source"]])[top : top + height, left : left + width]
                pixels = np.asarray(Image.fromarray(cut).resize((side, side), Image.Resampling.BICUBIC))
                patches.append(Patch(tile["digest"], pixels, (0, 0, side, side)))
            made = dict(embed_patches(session.scorer, patches, session.run.prompt(label), s.features))
            vectors[label] = np.stack([made[i] for i in range(len(patches))])
            bar.update(len(patches))
    return vectors


def _figures(real: Vectors, chosen: Vectors) -> tuple[float, float]:
    centre = real.mean(0)
    usual = np.linalg.norm(real - centre, axis=1).mean()
    nearest = np.linalg.norm(real[:, None] - chosen[None], axis=2).min(1).mean()
    return float(100 * np.linalg.norm(chosen - centre, axis=1).mean() / usual), float(100 * nearest / usual)


def _scatter(real: Mapping[str, Vectors], chosen: Mapping[str, Mapping[str, Vectors]], labels: Sequence[str]) -> bytes:
    from matplotlib.figure import Figure

    parts = [real[label] for label in labels] + [chosen[name][label] for name in chosen for label in labels]
    points = np.concatenate(parts)
    flat = tsne(points, 0)
    if flat is None:
        raise ConfigError(f"t-SNE needs 16 different patches or more, there are {len(np.unique(points, axis=0))}")
    places = iter(np.split(flat, np.cumsum([len(part) for part in parts])[:-1]))
    grounds = [next(places) for _ in labels]
    figure = Figure(figsize=(3.4 * len(chosen), 3.7), dpi=90, layout="constrained")
    for name, axis in zip(chosen, np.atleast_1d(figure.subplots(1, len(chosen))), strict=True):
        for k, (label, ground) in enumerate(zip(labels, grounds, strict=True)):
            axis.scatter(*ground.T, s=7, color=f"C{k}", alpha=0.3, linewidths=0)
            axis.scatter(*next(places).T, s=26, color=f"C{k}", edgecolors="black", linewidths=0.8, label=label)
        axis.set_title(name, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    figure.suptitle("t-SNE of DIFT vectors: all real patches pale, chosen ones dark", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


# ---- sheets (Figs. 2, 3, 9 to 14) ------------------------------------------------------------------------------------


def sheets(
    jobs: Sequence[Job], folders: Mapping[str, Path], kinds: Mapping[Place, object], out: Path, progress: Progress
) -> tuple[dict[Place, Value], dict[str, bytes]]:
    """One page for each row (figure) of the cases, as PNG; the value at a place is how many pictures it shows.

    ``kinds``: `stages` (image, map, box and patch of an image), `set` (the set's first pictures) or `class` (all of one class).
    """
    pages: dict[str, list[tuple[str, list[Image.Image]]]] = {}
    values = {}
    for job in jobs:
        where = (job.case.row, job.case.column)
        rows = _rows(str(kinds.get(where, "set")), job, folders[job.set_name], out, progress)
        rows[0] = (f"{job.case.column} (run as {job.ran_as}): {rows[0][0]}", rows[0][1])
        pages.setdefault(job.case.row, []).extend(rows)
        values[where] = Value(sum(len(pictures) for _, pictures in rows), ran_as=job.ran_as)
    return values, {figure: _png(sheet(rows, figure)) for figure, rows in pages.items()}


def _rows(kind: str, job: Job, folder: Path, out: Path, progress: Progress) -> list[tuple[str, list[Image.Image]]]:
    match kind:
        case "stages":
            return _stages(session_of(job, out, progress).run)
        case "class":
            there = read_set(folder).images
            label = job.case.shown if job.case.shown in there else next(iter(there))
            pictures = _pictures(folder, label, job.ipc)
            return [
                (f"all {job.ipc} of {label}" if i == 0 else "", pictures[i : i + ACROSS])
                for i in range(0, len(pictures), ACROSS)
            ]
        case "set":
            labels, each = list(read_set(folder).images)[:CLASSES], min(job.ipc, ACROSS)
            groups = [labels[i : i + ACROSS // each] for i in range(0, len(labels), ACROSS // each)]
            return [(" · ".join(group), [one for label in group for one in _pictures(folder, label, each)]) for group in groups]
        case _:
            raise ConfigError(f"a sheet shows stages, set or class, not {kind!r}")


def _pictures(folder: Path, label: str, count: int) -> list[Image.Image]:
    files = [folder / picture.file for picture in read_set(folder).images[label][:count]]
    return [_shown(Image.open(path).convert("RGB")) for path in files]


def _shown(picture: Image.Image, side: int = 112) -> Image.Image:
    scale = side / min(picture.size)
    return picture.resize(
        (round(picture.width * scale), round(picture.height * scale)),
        Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS,
    )


def _stages(run: Run, count: int = 4) -> list[tuple[str, list[Image.Image]]]:
    rows = []
    for unit in list({unit.label: unit for unit in run.units}.values())[:count]:
        tensors, extra = run.maps(unit)
        row = next(row for row in unit.rows if row.row in extra["rows"])
        pixels = run.data.pixels(row)
        height, width = pixels.shape[:2]
        cells = run.image_map(tensors, extra, row)
        box, score = best_boxes(cells, height, width, run.settings.patches)[0]
        outlined = with_boxes(pixels, [(box, "#ffd400")], max(1, round(112 / min(height, width))))
        top, left, tall, wide = box
        pictures = [
            Image.fromarray(pixels),
            Image.fromarray(heat(cells, height, width)),
            outlined,
            Image.fromarray(pixels[top : top + tall, left : left + wide]),
        ]
        rows.append((f"{unit.label}: image, map, best box (score {score:+.3g}), patch", [_shown(p) for p in pictures]))
    return rows


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.quantize(192, dither=Image.Dither.FLOYDSTEINBERG).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
