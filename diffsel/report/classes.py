"""One class of a report: its chosen pictures, the source of every tile, its clusters, its scores, what was passed over.

Nothing is written, and no network is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float

from ..machine.progress import Progress
from ..machine.threads import cores, threaded
from ..runs.knowledge import Knowledge, stored
from ..runs.run import Run
from ..runs.units import Held, columns
from ..scoring.patches import Box
from ..sets.candidates import candidates
from ..sets.figures import Eye, Figures, judge
from ..sets.opening import DistilledSet, Picture
from ..sets.selection import Clustering, clustered, patches_needed
from ..sets.suspects import Suspect, suspects
from .charts import Histogram, Scale, evenly, one_thread_each, principal
from .drawing import CARD, MOSAIC, Painter
from .pictures import Group, Mosaic, Patch, Source

T = TypeVar("T")
IN_FULL = 100  # classes of a report, at most, that show as many pictures as the first numbers below say; of more, the second
IMAGES = 60, 10  # distilled images shown of a set and class, at most
PER_CLUSTER = 8, 2  # patches shown of a cluster at first, nearest to its centre
PATCHES = 240, 0  # of all clusters of a class, where all are opened
PASSED = 8  # patches shown of the best and of the worst that were not chosen
POINTS = 600  # of a class's map of features, at most
THREADS = 16  # at most: each holds the maps and vectors of a class
SUSPECTS = 24  # images of all classes shown whose label fits least


@dataclass
class Pool:
    """All patches of a class, as they were stored, and their clusters where they were embedded."""

    label: str
    rows: np.ndarray
    boxes: np.ndarray
    scores: Float[np.ndarray, " n"]
    vectors: Float[np.ndarray, "n channels"] | None
    clusters: Clustering | None

    @cached_property
    def place(self) -> dict[tuple[int, Box], int]:
        return {(int(row), _box(box)): i for i, (row, box) in enumerate(zip(self.rows, self.boxes, strict=True))}

    @cached_property
    def better(self) -> Float[np.ndarray, " n"]:
        """Share of the patches with a lower score."""
        return np.searchsorted(np.sort(self.scores), self.scores) / len(self.scores)


@dataclass
class ClassPart:
    """What a class's section shows."""

    number: int
    folder: str
    name: str
    prompt: str = ""
    images: int = 0
    passed_over: list[tuple[str, str]] = field(default_factory=list)  # path, reason
    patches: int = 0
    quartiles: tuple[float, ...] = ()  # of the scores: lower, median, upper
    chosen: int = 0
    sets: list[tuple[DistilledSet, list[Mosaic], int]] = field(default_factory=list)  # a set, images shown, images in all
    figures: dict[Path, Figures | None] = field(default_factory=dict)  # of each set
    sources: list[Source] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    best_left: list[Source] = field(default_factory=list)
    worst_left: list[Source] = field(default_factory=list)
    scores: Histogram | None = None
    points: list[tuple[float, float, str, Source | None]] = field(default_factory=list)  # x, y, kind, source
    spread: float = 0.0  # share of the variance of their vectors that the points show
    card: str = ""
    missing: dict[str, None] = field(default_factory=dict)  # why pictures are not shown
    known: Knowledge | None = None  # what the prior knows of it
    unit: str = ""  # of that
    brief: bool = False  # with few pictures, as one of many classes
    suspects: list[Suspect] = field(default_factory=list)  # the most suspect of its images

    @property
    def nats(self) -> str:
        """What its label tells of its images, with half of a 95 % interval."""
        assert self.known
        mean, half = (f"{value:.2f}" if self.unit else f"{value:.2g}" for value in self.known.nats)
        return f"{mean} ± {half} {self.unit}".strip()

    @property
    def anchor(self) -> str:
        return f"c{self.number}"

    @property
    def per_cluster(self) -> int:
        return PER_CLUSTER[self.brief]

    @property
    def median(self) -> float | None:
        return self.quartiles[1] if self.quartiles else None

    @property
    def words(self) -> str:
        """What the class filter searches."""
        return f"{self.name} {self.folder}".lower()


def class_by_class(names: Sequence[str], make: Callable[[str], T], progress: Progress, desc: str) -> Iterator[T]:
    """What ``make`` gives of each class, in their order, made by threads."""
    with one_thread_each(), progress(total=len(names), desc=desc, unit="class") as bar:
        for found in threaded(names, make, min(cores(), THREADS)):
            yield found
            bar.update()


def scale_of(run: Run, scores: Float[np.ndarray, " n"]) -> Scale:
    """Scores in nats of a patch (of whole images: of a square of ``image_size``), where that is known."""
    side = run.settings.patches.patch_size or run.settings.data.image_size
    return Scale.of(scores, run.nats and run.nats * side**2)


def measure(run: Run) -> str:
    """What scores are, in a sentence."""
    s, patches = run.settings.selection, run.settings.patches
    by = f"the {patches.estimator} map's mean inside a patch"
    if s.rank_by == "guided":
        by = f"how much a prediction guided at scale {s.guidance:g} lowers a patch's loss"
    side = patches.patch_size or run.settings.data.image_size
    return f"A score is {by}, in {'nats of' if run.nats else 'units of the loss, a cell of'} {side} × {side} pixels."


def class_part(
    run: Run | None, sets: Sequence[DistilledSet], number: int, label: str, eye: Eye | None = None, brief: bool = False
) -> tuple[ClassPart, Pool | None]:
    """Everything about one class but the chart of its scores; without a run, only what the sets themselves tell.

    ``eye``: who judges how the sets cover it.  ``brief``: with few pictures, as one of many classes.
    Raises StoreError where a map that should be there is missing or damaged.
    """
    part = ClassPart(number, label, label, brief=brief)
    painter = Painter(run, label)
    made = [(shown.record["ipc"], shown.factor) for shown in sets if "ipc" in shown.record]
    pool = _pool(run, label, patches_needed(run.settings, made), painter.held) if run else None
    if run and pool:
        _describe(part, run, pool, painter.held)
    sources: dict[tuple[int, Box], Source] = {}
    for shown in sets:
        entries = shown.images.get(label, ())
        mosaics = [_mosaic(shown, entry, part, sources, painter, pool) for entry in entries[: IMAGES[brief]]]
        if entries:
            part.sets.append((shown, mosaics, len(entries)))
    if part.sets and part.sets[0][1]:
        part.card = painter.of_set(part.sets[0][0].path, part.sets[0][1][0].file, CARD)
    if run and pool and len(pool.scores):
        picked = picked_of(pool, sets)
        part.chosen = int(picked.sum())
        _leave_out(part, pool, picked, sources, painter)
        if pool.clusters:
            most = max(part.per_cluster, PATCHES[brief] // len(pool.clusters.median))
            part.groups = _groups(pool, pool.clusters, picked, sources, painter, most)
            _lay_out(part, pool, pool.clusters, picked, sources, run.settings.seed)
    painter.load(row for row, _ in sources)
    for (row, _), source in sources.items():
        source.picture, source.heat = painter.source(row), painter.heat(row)
    part.sources, part.missing = list(sources.values()), painter.missing
    if run and eye:
        part.figures = judge(run, [shown for shown, _, _ in part.sets], label, eye)
    return part, pool


def _describe(part: ClassPart, run: Run, pool: Pool, held: Sequence[Held]) -> None:
    """What needs no picture."""
    label = part.folder
    means = [each for unit, maps in zip(run.of_class(label), held, strict=True) for each in run.image_means(unit, maps)]
    part.known, part.unit = stored(run, label, means), "nats" * bool(run.nats)
    part.suspects = suspects(run, label, means)[:SUSPECTS]
    part.name, part.prompt = run.infos[label].name, run.prompt(label)
    part.images, part.patches = len({int(row) for row in pool.rows}), len(pool.scores)
    part.passed_over = [(item.path, item.reason) for item in run.skipped_of.get(label, ())]
    part.quartiles = tuple(float(q) for q in np.quantile(pool.scores, (0.25, 0.5, 0.75))) if len(pool.scores) else ()


def _mosaic(
    shown: DistilledSet,
    picture: Picture,
    part: ClassPart,
    sources: dict[tuple[int, Box], Source],
    painter: Painter,
    pool: Pool | None,
) -> Mosaic:
    tiles = []
    for number, tile in enumerate(picture.tiles):
        key = (int(tile["row"]), _box(tile["box"]))
        source = sources.get(key) or _source(key, tile["source"], part, len(sources), painter, pool)
        source.size = painter.size(key[0], as_it_is="run" not in shown.record)
        sources[key] = source
        if source.score is None and tile["reason"] != "random":
            source.score, source.judge = tile["score"], "teacher's score" if tile["reason"] == "loss" else "score"
        if source.cluster is None:
            source.cluster, source.place = tile["cluster"], tile["place"]
        source.uses.append((shown.name, picture.file, number, tile["rank"], tile["reason"]))
        tiles.append(source)
    shrunk = painter.of_set(shown.path, picture.file, MOSAIC)
    return Mosaic(picture.file, shrunk, shown.factor, tuple(tiles))


def _source(key: tuple[int, Box], path: str, part: ClassPart, number: int, painter: Painter, pool: Pool | None) -> Source:
    source = Source(f"{part.anchor}-{number}", path, key[1], painter.size(key[0]))
    place = pool.place.get(key) if pool else None
    if pool and place is not None:
        source.score, source.better = float(pool.scores[place]), float(pool.better[place])
        if pool.clusters:
            inside = pool.clusters.cluster[place] >= 0
            source.cluster = int(pool.clusters.cluster[place]) if inside else None
            source.place = int(pool.clusters.place[place]) if inside else None
    return source


def _pool(run: Run, label: str, need: int, held: Sequence[Held]) -> Pool:
    """From the features where all are there, else from the maps alone, and then without clusters."""
    s, units = run.settings, run.of_class(label)
    if s.selection.method == "diffsel" and all(run.feature_file(unit).exists() for unit in units):
        pool = candidates(run, label)
        groups = clustered(pool, need, s.selection, s.seed)
        return Pool(label, pool.rows, pool.boxes, pool.scores, pool.vectors, groups)
    found = columns([item for unit, maps in zip(units, held, strict=True) for item in run.boxes(unit, maps)])
    return Pool(label, found["row"], found["box"], run.ranks(units[0], found), None, None)


def picked_of(pool: Pool, sets: Sequence[DistilledSet]) -> Bool[np.ndarray, " n"]:
    """Which patches are in one of these sets."""
    tiles = (tile for shown in sets for tile in shown.tiles(pool.label))
    picked = np.zeros(len(pool.scores), bool)
    picked[[i for tile in tiles if (i := pool.place.get((int(tile["row"]), _box(tile["box"])))) is not None]] = True
    return picked


def _leave_out(
    part: ClassPart, pool: Pool, picked: Bool[np.ndarray, " n"], sources: dict[tuple[int, Box], Source], painter: Painter
) -> None:
    """The best and the worst patches that were not chosen, as sources too."""
    keys = list(pool.place)
    left = [keys[i] for i in np.argsort(-pool.scores, kind="stable") if not picked[i]]
    best, worst = left[:PASSED], left[PASSED:][-PASSED:]
    for key in (*best, *worst):
        if key not in sources:
            sources[key] = _source(key, painter.rows[key[0]].path, part, len(sources), painter, pool)
    part.best_left, part.worst_left = [sources[key] for key in best], [sources[key] for key in worst]


def _groups(
    pool: Pool,
    found: Clustering,
    picked: Bool[np.ndarray, " n"],
    sources: dict[tuple[int, Box], Source],
    painter: Painter,
    most: int,
) -> list[Group]:
    """Clusters, best first, with ``most`` patches each."""
    keys, groups = list(pool.place), list[Group]()
    members = [np.flatnonzero(found.cluster == rank) for rank in range(len(found.median))]
    nearest = [inside[np.argsort(found.place[inside])][:most] for inside in members]
    painter.load((row for row, _ in sources), (keys[i] for shown in nearest for i in shown))
    for rank, (inside, shown) in enumerate(zip(members, nearest, strict=True)):
        patches = tuple(
            Patch(painter.patch(*keys[i]), sources.get(keys[i]), painter.rows[keys[i][0]].path, float(pool.scores[i]), place)
            for place, i in enumerate(shown)
        )
        groups.append(Group(rank, float(found.median[rank]), len(inside), int(picked[inside].sum()), patches))
    return groups


def _lay_out(
    part: ClassPart,
    pool: Pool,
    found: Clustering,
    picked: Bool[np.ndarray, " n"],
    sources: dict[tuple[int, Box], Source],
    seed: int,
) -> None:
    """The map of features: chosen patches last, over the others."""
    chosen = evenly(len(picked), POINTS, [int(i) for i in np.flatnonzero(picked)])
    laid = None if pool.vectors is None else principal(pool.vectors[chosen], seed)
    if laid is None:
        return
    places, part.spread = laid
    keys, cluster = list(pool.place), found.cluster[chosen]
    top = (cluster >= 0) & (cluster <= max([group.rank for group in part.groups if group.picked], default=-1))
    kinds = np.where(picked[chosen], "picked", np.where(top, "top", "left"))
    points = [
        (float(x), float(y), str(kind), sources.get(keys[i])) for (x, y), kind, i in zip(places, kinds, chosen, strict=True)
    ]
    part.points = sorted(points, key=lambda point: point[2] == "picked")


def _box(values: Iterable[int]) -> Box:
    top, left, height, width = (int(v) for v in values)
    return top, left, height, width
