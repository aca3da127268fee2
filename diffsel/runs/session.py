"""One command at work on one run: opening it, and what every stage needs of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from ..data.classes import ClassInfo
from ..data.images import ImageData, Row, Skipped, open_data, reopen
from ..data.pixels import Pixels
from ..machine.claims import Shared
from ..machine.device import pick_device, pick_precision
from ..machine.files import sweep
from ..machine.formats import differences, read_unit
from ..machine.processes import Track, Workers, out_of_memory
from ..machine.progress import Progress, quiet
from ..scoring.diffusion import Diffusion, check_prompts, check_up_block, content_hash, locate
from ..scoring.patches import Box, best_boxes, chosen_bins, estimate
from ..settings.errors import ConfigError, SettingsDiffer, StoreError, UnreadableImage
from ..settings.settings import Settings, fingerprint, identity
from . import run as store
from .run import Run, Unit

T = TypeVar("T")
V = TypeVar("V")


@dataclass
class Session:
    """An opened run: its settings, its data, its place among the processes, and the model when first asked for."""

    settings: Settings
    data: ImageData
    run: Run
    workers: Workers
    progress: Progress = quiet
    counts: dict[str, int] = field(default_factory=dict)  # what was done, for the summary
    notes: dict[str, None] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict, init=False)  # by this process
    begun: float = field(default_factory=time.monotonic, init=False)
    model_checked: bool = False  # whether the model's files, gigabytes of them, were already hashed for this run

    @cached_property
    def model(self) -> Diffusion:
        device, folder = device_of(self.settings, self.workers), locate(self.settings.model)
        if not self.model_checked and content_hash(folder) != self.run.record["identity"]["model"]:
            raise StoreError(f"{self.run.path} was scored with another model than {folder} now holds; name that one (--model)")
        compute = self.settings.compute
        return Diffusion.load(folder, device, pick_precision(compute.precision, device), compute.compile)

    @cached_property
    def units(self) -> list[Unit]:
        """The fixed list of units of this run."""
        return store.units_of(self.data)

    @cached_property
    def classes(self) -> dict[str, ClassInfo]:
        return {info.folder: info for info in self.run.classes}

    @property
    def feature_identity(self) -> dict[str, Any]:
        """The settings that decide which patches there are and what their vectors are."""
        return {"patches": identity(self.settings.patches), "features": identity(self.settings.features)}

    @property
    def feature_mark(self) -> str:
        return fingerprint([self.run.mark, self.feature_identity])

    def feature_file(self, unit: Unit) -> Path:
        return self.run.feature_folder(self.feature_identity) / f"{unit.name}.safetensors"

    def note(self, text: str) -> None:
        """Something a user should know, shown once at the end."""
        self.notes[text] = None

    def note_missing_latents(self) -> None:
        """``compute.keep_latents`` is of no use to units that are scored already: say so, and what would be."""
        if self.settings.compute.keep_latents:
            late = [u for u in self.units if self.run.map_file(u).exists() and not self.run.latent_file(u).exists()]
            if late:
                self.note(
                    f"--keep-latents came too late for {len(late)} unit(s) scored without it, such as {late[0].name}: "
                    f"score into a new folder to have theirs, or delete their files in {self.run.path / 'maps'} first"
                )

    def log(self, what: str, number: int) -> None:
        """What this process has done, and how fast, to the tracker, if there is one; the step is seconds."""
        seconds = time.monotonic() - self.begun
        self.done[what] = self.done.get(what, 0) + number
        self._track({what: self.done[what], f"{what}_per_second": self.done[what] / seconds}, round(seconds))

    @cached_property
    def _track(self) -> Track:
        described = {**self.settings.scoring.model_dump(mode="json"), "model": self.settings.model.model}
        return self.workers.tracker(self.settings.compute.tracker, self.run.path / "logs", described)

    def count(self, what: str, number: int) -> None:
        self.counts[what] = self.counts.get(what, 0) + number

    def read(self, rows: Sequence[Row]) -> tuple[list[tuple[Row, Pixels]], list[Skipped]]:
        """Pixels of rows, decoded in threads; what does not decode is passed over with its reason.

        Threads, not processes: Pillow releases the interpreter while it decodes and resizes, so they scale as processes do
        (docs/cost.md has both measured), and pixels need not be copied from one process to another.

        Raises DataError for a file that is gone or was edited: the data set is not the one that was indexed, and
        passing over it would be final.
        """

        def one(row: Row) -> Pixels | UnreadableImage:
            try:
                return self.data.pixels(row)
            except UnreadableImage as error:
                return error

        with ThreadPoolExecutor(self.settings.compute.workers) as pool:
            results = list(zip(rows, pool.map(one, rows), strict=True))
        lost = [
            Skipped(r.path, r.label, str(e).removeprefix(f"{r.path}: ")) for r, e in results if isinstance(e, UnreadableImage)
        ]
        self.count("images passed over", len(lost))
        return [(row, pixels) for row, pixels in results if not isinstance(pixels, UnreadableImage)], lost

    @contextmanager
    def left(self, file_of: Callable[[Unit], Path], what: str) -> Iterator[tuple[Shared[Unit], tqdm]]:
        """The units whose file is missing, one process each, and the bar of the whole job, whoever does it."""
        _ = self._track  # a tracker that does not open (wandb: nobody is logged in) is told before the first unit
        missing = [unit for unit in self.units if not file_of(unit).exists()]
        total, todo = (sum(len(unit.rows) for unit in units) for units in (self.units, missing))

        def finished(unit: Unit) -> None:
            bar.update(len(unit.rows))

        with (
            self.progress(total=total, initial=total - todo, desc=what, unit="image") as bar,
            self.workers.share(missing, file_of, finished) as shared,
        ):
            yield shared, bar

    def fitting(self, items: Sequence[T], make: Callable[..., Iterator[tuple[int, V]]]) -> Iterator[tuple[int, V]]:
        """(place, value) of each item, as ``make(items, batch_size=)`` gives them.

        Where memory runs out the batch is halved for the rest of the run, and only what is not made yet is made again.
        """
        left = list(range(len(items)))
        while left:
            made = set()
            try:
                for place, value in make([items[i] for i in left], batch_size=self.batch_size):
                    made.add(left[place])
                    yield left[place], value
            except RuntimeError as error:
                if self.batch_size == 1 or not out_of_memory(error):
                    raise
                self.batch_size //= 2
                self.note(f"out of memory: compute.batch_size was lowered to {self.batch_size}")
            left = [i for i in left if i not in made]

    @cached_property
    def batch_size(self) -> int:
        """U-Net samples per forward."""
        return _batch_size(self.settings, device_of(self.settings, self.workers))

    def maps(self, unit: Unit) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """A scored unit: its tensors, and which rows it holds and passed over.  Raises StoreError if it is not there."""
        file = self.run.map_file(unit)
        if not file.exists():
            raise StoreError(f"{self.run.path}: {unit.name} is not scored yet; start `diffsel score` again")
        return read_unit(file, self.run.mark)

    def boxes(self, unit: Unit) -> list[tuple[Row, Box, float]]:
        """The best patches of every scored image of a unit, with their scores."""
        tensors, extra = self.maps(unit)
        scored, found = set(extra["rows"]), []
        for row in unit.rows:
            if row.row in scored:
                width, height = self.data.size(row)
                best = best_boxes(self.image_map(tensors, row), height, width, self.settings.patches)
                found += [(row, box, score) for box, score in best]
        return found

    def image_map(self, tensors: dict[str, np.ndarray], row: Row) -> np.ndarray:
        """The latent-size map (h, w) that scores this image's patches, higher = more class-relevant."""
        s = self.settings
        differential, gap = (tensors[f"{row.row}.{name}"][s.patches.prompt] for name in ("differential", "gap"))
        return estimate(differential, gap, s.patches, s.scoring)


def start(source: str, out: Path, settings: Settings, progress: Progress = quiet) -> Session:
    """Open a data set and make RUN for it, or open RUN again.  Every setting that can be wrong is checked here.

    Raises ConfigError, DataError, or StoreError (SettingsDiffer where RUN holds results of other settings).
    """
    workers = Workers(cpu=settings.compute.device == "cpu")
    _pass_identity(settings, workers)  # a device or precision that cannot be used is refused before any image is read
    workers.check_tracker(settings.compute.tracker)
    chosen_bins(settings.patches, settings.scoring)
    folder = locate(settings.model)
    check_up_block(folder, settings.features.up_block)
    if not workers.is_main:  # the main process reads and hashes the images, the others take over its index
        workers.wait_for([out / "run.yaml"])
    known: list[Row | Skipped] = []
    root = str(Path(source).resolve()) if Path(source).exists() else source
    if (out / "run.yaml").exists() and _same_reading(earlier := store.open_run(out), root, settings):
        known = [*store.read_index(earlier), *store.read_skipped(out, indexed=True)]

    def check(classes: Sequence[ClassInfo]) -> None:
        templates = (settings.scoring.null_prompt, *settings.scoring.prompts)
        check_prompts(folder, [info.prompt(template) for template in templates for info in classes])

    data = open_data(root, settings.data, settings.seed, settings.compute.workers, progress, known, check)
    described = {
        **_pass_identity(settings, workers),
        "images": _images(data.rows),
        "classes": [asdict(c) for c in data.classes],
        "model": content_hash(folder),
    }
    if settings.scoring.adaptive_draws:  # then patches decide which images get more draws
        described["racing"] = identity(settings.patches)
    if Path(settings.model.model).is_dir():  # so that RUN can be taken up from another folder
        settings = settings.model_copy(update={"model": settings.model.model_copy(update={"model": str(folder.resolve())})})
    if workers.is_main:
        sweep(out)
    run = store.create_run(out, described, settings.model_dump(mode="json"), _versions(), data)
    session = Session(settings, data, run, workers, progress, model_checked=True)
    session.note_missing_latents()
    return session


def _same_reading(run: Run, root: str, settings: Settings) -> bool:
    """Whether the run's index was made of this data set under the same limits, so that it may be taken over."""
    stored, asked = run.record["settings"]["data"], settings.data.model_dump(mode="json")
    return run.record["data"] == root and all(stored[key] == asked[key] for key in ("max_pixels", "max_aspect"))


def resume(path: Path, settings: Settings, progress: Progress = quiet) -> Session:
    """Open RUN for the stages after scoring; the images are read again only where pixels are needed.

    Raises ConfigError, DataError, StoreError, and SettingsDiffer where settings of the scoring pass are asked otherwise.
    """
    run, workers = store.open_run(path), Workers(cpu=settings.compute.device == "cpu")
    check_data(path, settings)
    workers.check_tracker(settings.compute.tracker)
    if workers.is_main:
        sweep(path)
    chosen_bins(settings.patches, settings.scoring)
    asked = _pass_identity(settings, workers)
    if found := differences({key: run.record["identity"][key] for key in asked}, asked):
        raise SettingsDiffer(path, found)
    rows, skipped = store.read_index(run), store.read_skipped(path)
    if _images(rows) != run.record["identity"]["images"]:
        raise StoreError(f"{path / 'index.parquet'} does not belong to {path / 'run.yaml'}; score into a new folder")
    data = reopen(run.record["data"], run.classes, rows, skipped, settings.data)
    session = Session(settings, data, run, workers, progress)
    session.note_missing_latents()
    return session


def check_data(path: Path, settings: Settings) -> None:
    """Refuse settings that would choose other images or classes than RUN holds.  Raises ConfigError, StoreError."""
    stored, asked = store.open_run(path).record["settings"]["data"], settings.data.model_dump(mode="json")
    for key, instead in (("classes", "--only"), ("images_per_class", "--images"), ("class_file", "a new run")):
        if stored[key] != asked[key]:
            raise ConfigError(f"data.{key}: the images and classes of {path} were fixed when it was scored; use {instead}")


def load_model(settings: Settings) -> tuple[Diffusion, int]:
    """The model of some settings, without a run, and the batch size it would have."""
    device = device_of(settings, Workers(cpu=settings.compute.device == "cpu"))
    precision = pick_precision(settings.compute.precision, device)
    return Diffusion.load(locate(settings.model), device, precision, settings.compute.compile), _batch_size(settings, device)


def _batch_size(settings: Settings, device: torch.device) -> int:
    # Each latent shape of a unit ends in a batch that is filled up: of photographs, larger batches would be mostly filling.
    return settings.compute.batch_size or (16 if device.type == "cpu" else 64)


def look(path: Path, settings: Settings) -> Session:
    """Open RUN only to look at it, on any machine: no device is asked for, and the images may be gone.

    ``settings`` must agree with RUN's own about the scoring pass.  Raises StoreError.
    """
    run = store.open_run(path)
    rows, skipped = store.read_index(run), store.read_skipped(path)
    data = reopen(run.record["data"], run.classes, rows, skipped, settings.data, may_be_gone=True)
    return Session(settings, data, run, Workers(cpu=True))


def _pass_identity(settings: Settings, workers: Workers) -> dict[str, Any]:
    """The settings that decide the bytes of a scoring pass, apart from its images, classes and model."""
    return {
        "seed": settings.seed,
        "image_size": settings.data.image_size,
        "precision": pick_precision(settings.compute.precision, device_of(settings, workers)),
        "scoring": identity(settings.scoring),
    }


def _images(rows: Sequence[Row]) -> dict[str, Any]:
    return {"count": len(rows), "digest": fingerprint([[row.path, row.label, row.digest] for row in rows])}


def device_of(settings: Settings, workers: Workers) -> torch.device:
    name = settings.compute.device
    return pick_device(workers.device if name == "auto" else name)


def _versions() -> dict[str, str]:
    names = ("diffsel", "torch", "diffusers", "transformers", "scikit-learn", "numpy", "pillow")
    return {name: version(name) for name in names}
