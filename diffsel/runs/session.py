"""One command at work on one run: opening it, and what every stage needs of it.  The model is loaded when first asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from ..data.classes import ClassInfo
from ..data.images import ImageData, open_data
from ..data.pixels import Pixels
from ..data.rows import Row, Skipped
from ..machine.claims import Shared
from ..machine.files import AsPath, existing, sweep, write_atomically, write_new
from ..machine.formats import differences, dump_yaml, is_mine, read_yaml
from ..machine.processes import Track, Workers, out_of_memory
from ..machine.progress import Progress, quiet
from ..machine.tensors import write_unit
from ..scoring.patches import chosen_bins
from ..settings.errors import SettingsDiffer, StoreError, UnreadableImage
from ..settings.settings import DEFAULT, Settings, identity
from .index import known_images, mend_index, taken_over, write_index, write_skipped
from .record import FORMAT, read_record, versions
from .run import Run, image_identity, open_run, pass_identity
from .units import Unit

if TYPE_CHECKING:  # torch comes with the model
    from ..scoring.draws import Scorer

T = TypeVar("T")
V = TypeVar("V")


@dataclass
class Session:
    """A run at work: its place among the processes, and what was done, for the summary."""

    run: Run
    workers: Workers = field(repr=False)
    progress: Progress = field(default=quiet, repr=False)
    counts: dict[str, int] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict, init=False, repr=False)  # by this process
    begun: float = field(default_factory=time.monotonic, init=False, repr=False)
    base: Session | None = None  # whose model is used
    model_checked: bool = False  # whether the model's files, gigabytes of them, were already hashed for this run

    @property
    def settings(self) -> Settings:
        return self.run.settings

    @property
    def data(self) -> ImageData:
        return self.run.data

    @cached_property
    def scorer(self) -> Scorer:
        """The model, ready to work.  Raises StoreError where it is another one than the run's, ConfigError where this machine
        cannot compute as the run was computed."""
        if self.base:
            return self.base.scorer
        from ..scoring.draws import open_scorer
        from ..scoring.folder import locate

        s, folder = self.settings, locate(self.settings.model)
        if not self.model_checked and folder.digest != self.run.record["identity"]["model"]:
            raise StoreError(f"{self.run.path} was scored with another model than {folder} now holds; name that one (--model)")
        if found := differences({"precision": self.run.precision}, _precision(s, self.workers)):
            raise SettingsDiffer(self.run.path, found)
        return self.filled(open_scorer(s, self.workers.local))

    def filled(self, scorer: Scorer) -> Scorer:
        """With batches no larger than the run's largest unit can fill: every batch is filled up, whatever it costs."""
        s = self.settings.scoring
        most = max(len(unit.rows) for unit in self.run.units) * s.rounds()[-1] * (1 + len(s.prompts))
        return replace(scorer, batch_size=min(scorer.batch_size, 1 << (most - 1).bit_length()))

    def seen(self, run: Run) -> Session:
        """The same work on another sight of the run; the model, the summary and the notes are shared."""
        return replace(self, run=run, base=self)

    def note(self, text: str) -> None:
        """Something a user should know, shown once at the end."""
        self.notes[text] = None

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
        there = existing(map(file_of, self.run.units))
        missing = [unit for unit in self.run.units if file_of(unit) not in there]
        total, todo = (sum(len(unit.rows) for unit in units) for units in (self.run.units, missing))

        def finished(unit: Unit) -> None:
            bar.update(len(unit.rows))

        with (
            self.progress(total=total, initial=total - todo, desc=what, unit="image") as bar,
            self.workers.share(missing, file_of, finished) as shared,
        ):
            yield shared, bar

    def fitting(
        self, items: Sequence[T], make: Callable[[Scorer, list[T]], Iterator[tuple[int, V]]]
    ) -> Iterator[tuple[int, V]]:
        """(place, value) of each item, as ``make(scorer, items)`` gives them.

        Where memory runs out the batch is halved for the rest of the run, and only what is not made yet is made again.
        """
        left = list(range(len(items)))
        while left:
            made = set()
            try:
                for place, value in make(self.scorer, [items[i] for i in left]):
                    made.add(left[place])
                    yield left[place], value
            except RuntimeError as error:
                if self.scorer.batch_size == 1 or not out_of_memory(error):
                    raise
                self.scorer = self.scorer.halved()
                self.note(f"out of memory: compute.batch_size was lowered to {self.scorer.batch_size}")
            left = [i for i in left if i not in made]


def keep_latents(session: Session) -> None:
    """Images that were scored without ``compute.keep_latents`` -> RUN/latents, by the VAE alone."""
    from ..scoring.maps import encode_images

    run = session.run
    with session.left(run.latent_file, "encoding images") as (units, bar):
        for unit in units:
            scored = set(run.maps(unit)[1]["rows"])
            pictures, _ = session.read([row for row in unit.rows if row.row in scored])
            keyed = [(row.digest, pixels) for row, pixels in pictures]
            made = {str(pictures[place][0].row): latent for place, latent in session.fitting(keyed, encode_images)}
            write_unit(run.latent_file(unit), run.mark, made, {"label": unit.label})
            bar.update(len(unit.rows))


# ---- opening ---------------------------------------------------------------------------------------------------------


def start(source: AsPath, out: AsPath, settings: Settings = DEFAULT, progress: Progress = quiet) -> Session:
    """Open a data set and make RUN for it, or open RUN again.  Every setting that can be wrong is checked here.

    Raises ConfigError, DataError, or StoreError (SettingsDiffer where RUN holds results of other settings).
    """
    from ..scoring.draws import open_scorer
    from ..scoring.folder import locate
    from ..scoring.suiting import suited

    source, out, workers = str(source), Path(out), Workers()
    precision = _precision(settings, workers)  # a device that cannot be used is refused first
    workers.check_tracker(settings.compute.tracker)
    folder = locate(settings.model)
    chosen_bins(settings.patches, suited(settings, folder).scoring)
    folder.check()
    folder.point(settings.features)
    if not workers.is_main:  # the main process reads and hashes the images, the others take over its index
        workers.wait_for([out / "run.yaml"])
    root = str(Path(source).resolve()) if Path(source).exists() else source

    loaded: list[Scorer] = []

    def check(classes: Sequence[ClassInfo]) -> None:
        asked = suited(settings, folder, classes).scoring
        folder.check_prompts((info.prompt(text), asked.null_prompt) for text in asked.prompts for info in classes)
        if workers.is_main and not (out / "run.yaml").exists():  # weights that are not whole are told before images are read
            loaded.append(open_scorer(settings, workers.local))

    with workers.awaited(out / "run.yaml"):
        known = known_images(out, root, settings)
        data = None if workers.is_main else taken_over(out, root, settings, known)
        data = data or open_data(root, settings.data, settings.seed, settings.compute.workers, progress, known, check, out)
        settings = suited(settings, folder, data.classes)
        described = {
            **pass_identity(settings),
            **precision,
            "images": image_identity(data),
            "classes": [asdict(c) for c in data.classes],
            "model": folder.digest,
        }
        if settings.scoring.adaptive_draws:  # then patches decide which images get more draws
            described["racing"] = identity(settings.patches)
        settings = settings.model_copy(update={"model": folder.placed(settings.model)})
        if workers.is_main:
            sweep(out)
        record = create_run(out, described, settings, data, folder.unit(settings.scoring))
        if workers.is_main and data.rows.table is not known.rows.table:
            mend_index(out, data)
        if workers.is_main and record["data"] != root:  # the very images, somewhere else
            write_atomically(out / "run.yaml", dump_yaml({**record, "data": root}))
    session = Session(Run(out, record, settings, data.classes, data), workers, progress, model_checked=True)
    session.notes |= dict.fromkeys(data.notes)
    if loaded:
        session.scorer = session.filled(loaded[0])
    return session


def resume(path: AsPath, settings: Settings | None = None, progress: Progress = quiet, moved: AsPath | None = None) -> Session:
    """Open RUN for the stages after scoring; images are read, and the model is loaded, only where they are needed.

    ``settings``: by default RUN's own.  ``moved``: where the images are now, if not where they were scored.  Raises as
    ``open_run``, StoreError for a tracker that is missing."""
    run, workers = open_run(path, settings, may_be_gone=False, moved=moved), Workers()
    workers.check_tracker(run.settings.compute.tracker)
    if workers.is_main:
        sweep(run.path)
    return Session(run, workers, progress)


def _precision(settings: Settings, workers: Workers) -> dict[str, str]:
    """The precision that decides a pass's bytes.  Raises ConfigError where the device or the precision cannot be used."""
    from ..machine.device import machine_of

    return {"precision": machine_of(settings.compute, workers.local).precision}


# ---- writing ---------------------------------------------------------------------------------------------------------


def create_run(path: Path, identity: dict[str, Any], settings: Settings, data: ImageData, unit: Any = None) -> dict[str, Any]:
    """Make RUN, or open it where it exists; its record.  ``unit``: what turns its scores into nats.

    Raises SettingsDiffer where it holds results of another ``identity``, StoreError where something else lies there.
    """
    if not (path / "run.yaml").exists():
        is_mine(path, "run.yaml", {}, "a run", besides=("index.parquet", "skipped.jsonl"))  # which a killed start leaves
        write_index(path / "index.parquet", data.rows)
        write_skipped(path, data.skipped)
        record = {
            "format": FORMAT,
            "identity": dict(identity),
            "data": data.root,
            "classes": [asdict(c) for c in data.classes],
            "settings": settings.model_dump(mode="json"),
            "versions": versions(),
            "unit": unit,
        }
        write_new(path / "run.yaml", dump_yaml(record))  # last: a run.yaml that exists means a whole run folder
    record = read_record(path)
    if found := differences(record.get("identity"), dict(identity)):
        raise SettingsDiffer(path, found)
    return record


def open_features(run: Run, weights: str | None = None) -> None:
    """Make the folder of these patch and feature settings, where it is new.

    ``weights``: digest of another network than the run's.  Raises SettingsDiffer where the folder was made by others.
    """
    folder = run.feature_folder
    if not (folder / "settings.yaml").exists():
        write_atomically(folder / "settings.yaml", dump_yaml(run.feature_identity))
    if weights and not (folder / "weights.yaml").exists():
        write_atomically(folder / "weights.yaml", dump_yaml({"weights": weights}))
    if weights and (found := differences(read_yaml(folder / "weights.yaml"), {"weights": weights})):
        raise SettingsDiffer(folder, found)
