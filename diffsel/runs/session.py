"""One command at work on one run: opening it, and what every stage needs of it.  The model is loaded when first asked for."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ..data.classes import ClassInfo
from ..data.images import ImageData, open_data
from ..data.pixels import Pixels, resized_size
from ..data.rows import Row, Skipped
from ..machine.claims import Shared, forget
from ..machine.files import AsPath, existing, sweep, write_atomically, write_new
from ..machine.formats import differences, dump_yaml, is_mine, read_yaml
from ..machine.processes import Track, Workers
from ..machine.progress import Progress, quiet
from ..machine.tensors import read_unit
from ..scoring.patches import chosen_bins
from ..settings.errors import DataError, SettingsDiffer, StoreError, UnreadableImage
from ..settings.settings import DEFAULT, Settings, identity
from .index import known_images, mend_index, taken_over, write_index, write_skipped
from .parts import possible_rivals
from .record import in_its_precision, read_record, signed, versions
from .run import Run, image_identity, open_run, pass_identity
from .units import Unit

if TYPE_CHECKING:  # torch comes with the model
    from ..scoring.draws import Picture, Scorer

Read = tuple[list[tuple[Row, Pixels]], list[Skipped]]  # of a unit


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

        s, folder = in_its_precision(self.settings, self.run.path), locate(self.settings.model)
        if not self.model_checked and folder.digest != self.run.record["identity"]["model"]:
            raise StoreError(f"{self.run.path} was scored with another model than {folder} now holds; name that one (--model)")
        if found := differences({"precision": self.run.precision}, _precision(s, self.workers)):
            raise SettingsDiffer(self.run.path, found)
        return self.filled(open_scorer(s, self.workers.local))

    def filled(self, scorer: Scorer) -> Scorer:
        """Fitted to the images of this run."""
        from ..scoring.fitting import fitted

        s, pictures = self.settings, Counter[tuple[int, int]]()
        for size, count in self.data.rows.sizes().items():
            pictures[resized_size(*size, s.data.image_size, s.data.step)[::-1]] += count
        prompts = [self.data.classes[0].prompt(template) for template in s.scoring.prompts]
        return fitted(replace(scorer, note=self.note), pictures, s, prompts, self.progress)

    def seen(self, run: Run) -> Session:
        """The same work on another sight of the run; the model, the summary and the notes are shared."""
        return replace(self, run=run, base=self)

    def note(self, text: str) -> None:
        """Something a user should know, shown once at the end."""
        self.notes[text] = None

    def about(self, unit: Unit) -> dict[str, Any]:
        """What a file of a unit says of itself: its class, and the device that computes it, whose rounding is its own."""
        from ..machine.device import device_name

        return {"label": unit.label, "device": device_name(self.scorer.model.device)}

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

    def read(self, rows: Sequence[Row]) -> Read:
        """As ``read_units``, of one unit or a part of it."""
        return self.read_units([rows])[0]

    def read_units(self, units: Sequence[Sequence[Row]]) -> list[Read]:
        """Pixels of rows, decoded in threads; what does not decode is passed over with its reason.

        Threads, not processes: Pillow releases the interpreter while it decodes and resizes, so they scale as processes do
        (docs/cost.md has both measured), and pixels need not be copied from one process to another.

        Raises DataError for a file that is gone or was edited: the data set is not the one that was indexed, and
        passing over it would be final.
        """

        def one(row: Row) -> tuple[Row, Pixels] | Skipped:
            try:
                return row, self.data.pixels(row)
            except UnreadableImage as error:
                return Skipped(row.path, row.label, str(error).removeprefix(f"{row.path}: "))

        with ThreadPoolExecutor(self.settings.compute.workers) as pool:
            results = list(pool.map(one, chain.from_iterable(units)))
        self.count("images passed over", sum(isinstance(each, Skipped) for each in results))
        found, every = [], iter(results)
        for rows in units:
            part = list(islice(every, len(rows)))
            pictures = [each for each in part if not isinstance(each, Skipped)]
            found.append((pictures, [each for each in part if isinstance(each, Skipped)]))
        return found

    def read_again(self, units: Sequence[Sequence[Row]]) -> list[list[tuple[Row, Pixels]]]:
        """Pixels of rows that were scored.  Raises DataError where one cannot be read any more, or as ``read_units``."""
        read = self.read_units(units)
        if lost := [skipped for _, part in read for skipped in part]:
            raise DataError(f"{lost[0].path} was scored but cannot be read any more: {lost[0].reason}")
        return [pictures for pictures, _ in read]

    def pictures(self, unit: Unit, rows: Sequence[Row]) -> list[tuple[Row, Picture]]:
        """Of rows that were scored: the latents that were kept of them (compute.keep_latents), else their pixels."""
        if (file := self.run.latent_file(unit)).exists():
            latents, _ = read_unit(file, self.run.mark)
            return [(row, latents[str(row.row)]) for row in rows]
        return list(self.read_again([rows])[0])

    @contextmanager
    def left(self, file_of: Callable[[Unit], Path], what: str) -> Iterator[tuple[Shared[Unit], tqdm]]:
        """The units whose file is missing, one process each, and the bar of the whole job (or shard), whoever does it.

        In groups of as many images as fill batches well.
        """
        _ = self._track  # a tracker that does not open (wandb: nobody is logged in) is told before the first unit
        mine = self.workers.own(self.run.units)
        there = existing(map(file_of, mine))
        forget(there)
        missing = [unit for unit in mine if file_of(unit) not in there]
        total, todo = (sum(len(unit.rows) for unit in units) for units in (mine, missing))

        def finished(unit: Unit) -> None:
            bar.update(len(unit.rows))

        def enough(group: list[Unit]) -> bool:
            return sum(len(unit.rows) for unit in group) >= most

        with self.progress(total=total, initial=total - todo, desc=what, unit="image") as bar:
            from ..scoring.batching import GROUP, MOST

            # Loaded here: a thread would have another current device.
            most = min(MOST, GROUP * self.scorer.batch_size) if missing else 0
            with self.workers.share(missing, file_of, finished, enough=enough, own=True) as shared:
                yield shared, bar


# ---- opening ---------------------------------------------------------------------------------------------------------


def start(source: AsPath, out: AsPath, settings: Settings = DEFAULT, progress: Progress = quiet) -> Session:
    """Open a data set and make RUN for it, or open RUN again.  Every setting that can be wrong is checked here.

    Raises ConfigError, DataError, or StoreError (SettingsDiffer where RUN holds results of other settings).
    """
    from ..scoring.answers import check_answers
    from ..scoring.draws import open_scorer
    from ..scoring.folder import locate
    from ..scoring.suiting import pairs, suited

    source, out, workers = str(source), Path(out), Workers()
    settings = in_its_precision(settings, out)
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
        asked = pairs(suited(settings, folder, classes).scoring, classes)
        folder.check_prompts(asked)
        possible_rivals(settings.patches.rivals, [info.folder for info in classes])
        if workers.is_main and not (out / "run.yaml").exists():  # weights that are not whole are told before images are read
            folder.warn_of_size(settings.data.image_size)
            loaded.append(open_scorer(settings, workers.local))
            check_answers(loaded[0].model, *asked[0], settings.data.image_size)

    with workers.awaited(out / "run.yaml"):
        known = known_images(out, root, settings)
        data = None if workers.is_main else taken_over(out, root, settings, known)
        data = data or open_data(root, settings.data, settings.seed, settings.compute.workers, progress, known, check, out)
        settings = suited(settings, folder, data.classes)
        described = {**_identity(settings, data), **precision, "model": folder.digest}
        settings = settings.model_copy(update={"model": folder.placed(settings.model)})
        record = create_run(out, described, settings, data, folder.unit(settings.scoring))
        if workers.is_main:
            sweep(out)  # now it is ours
        if workers.is_main and data.rows.table is not known.rows.table:
            mend_index(out, data)
        if workers.is_main and record["data"] != root:  # the very images, somewhere else
            write_atomically(out / "run.yaml", dump_yaml({**record, "data": root}))
    session = Session(Run(out, record, settings, data.classes, data), workers, progress, model_checked=True)
    session.notes |= dict.fromkeys(data.notes)
    if loaded:
        session.scorer = session.filled(loaded[0])
    return session


def _identity(settings: Settings, data: ImageData) -> dict[str, Any]:
    """What decides the bytes of a pass, apart from its model and its precision."""
    described = {**pass_identity(settings), "images": image_identity(data), "classes": [asdict(c) for c in data.classes]}
    if settings.scoring.adaptive_draws:  # then what ranks patches decides which images get more draws
        described["racing"] = identity(settings.patches) | settings.selection.model_dump(include={"rank_by", "guidance"})
    return described


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

    return {"precision": machine_of(settings.compute, workers.local, scoring=True).precision}


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
            "identity": dict(identity),
            "data": data.root,
            "classes": [asdict(c) for c in data.classes],
            "settings": settings.model_dump(mode="json"),
            "versions": versions(),
            "unit": unit,
        }
        write_new(path / "run.yaml", dump_yaml(signed(record)))  # last: a run.yaml that exists means a whole run folder
    record = read_record(path)
    if found := differences(record.get("identity"), dict(identity)):
        raise SettingsDiffer(path, found)
    return record


def open_features(run: Run) -> None:
    """Make the folder of these patch and feature settings, where it is new; it keeps the digest of another network than the
    run's.  Raises SettingsDiffer where the folder was made by others."""
    folder, features, weights = run.feature_folder, run.settings.features, None
    if features.kind == "clip":
        from ..scoring.features import clip_digest

        weights = clip_digest(features.clip_model)
    if not (folder / "settings.yaml").exists():
        write_atomically(folder / "settings.yaml", dump_yaml(run.feature_identity))
    if weights and not (folder / "weights.yaml").exists():
        write_atomically(folder / "weights.yaml", dump_yaml({"weights": weights}))
    if weights and (found := differences(read_yaml(folder / "weights.yaml"), {"weights": weights})):
        raise SettingsDiffer(folder, found)
