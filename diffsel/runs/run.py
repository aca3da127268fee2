"""A stored pass, read: RUN on disk, and what its maps and vectors say.  No torch, no device; the images may be gone.

    RUN/  run.yaml       format, settings, model and class table: replayable      index.parquet   one line per image
          maps/          <class>-000.safetensors, at most 256 images each         skipped.jsonl   what was passed over
          features/KEY/  settings.yaml and the same units, KEY = hash of the patch and feature settings
          prompts/KEY/   settings.yaml and the same units, maps of prompts added later, KEY = hash of their texts
          rivals/KEY/    settings.yaml and the same units, maps of other labels, KEY = hash of which
          latents/       the same units, with compute.keep_latents

A file that exists is whole; a part made with other settings is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..data.classes import ClassInfo
from ..data.images import ImageData, reopen
from ..data.notebook import facts_html
from ..data.rows import Row, Skipped
from ..machine.files import AsPath, apart, safe_name
from ..machine.formats import differences
from ..machine.tensors import read_extra, read_unit
from ..scoring.patches import Box, best_boxes, box_mean, chosen_bins, estimate, guided
from ..settings.errors import ConfigError, SettingsDiffer, StoreError
from ..settings.settings import Settings, fingerprint, identity, resolve, sizes_of
from .index import check_moved, read_index, read_skipped, remake
from .parts import PromptPart, RivalPart
from .record import as_scored, nats_per_pixel, read_record, recorded_settings
from .units import Held, Means, Placed, Unit, check_unit, columns, damage, image_means, named_after, scored_rows

UNIT_ROWS = 256  # images per unit of work, at most


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A RUN folder under some settings: its patches, vectors and selection may be asked otherwise than it was scored."""

    path: Path
    record: Mapping[str, Any]  # run.yaml
    settings: Settings
    classes: tuple[ClassInfo, ...]
    data: ImageData
    part: PromptPart | None = None  # the maps of a prompt that was added later, in the place of the run's own

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {self.data.summary}, scored by {self.settings.model.model})"

    def _repr_html_(self) -> str:
        scored = f"{sum(self.map_file(unit).exists() for unit in self.units)} of {len(self.units)} scored"
        return facts_html(str(self.path), {"images": self.data.summary, "model": self.settings.model.model, "units": scored})

    @cached_property
    def mark(self) -> str:
        """Stands for everything that decided the stored maps."""
        return fingerprint(self.record["identity"])

    @property
    def precision(self) -> str:
        """What its maps were computed in."""
        return str(self.record["identity"]["precision"])

    @cached_property
    def nats(self) -> float | None:
        """Nats a pixel: what a score, times its patch's pixels, is multiplied with; None where that is not known."""
        return nats_per_pixel(self.record, self.settings)

    @cached_property
    def infos(self) -> dict[str, ClassInfo]:
        """Classes by folder."""
        return {info.folder: info for info in self.classes}

    @cached_property
    def units(self) -> list[Unit]:
        """The fixed list of units: class by class, 256 rows at a time."""
        units, names = list[Unit](), apart({info.folder: safe_name(info.folder) for info in self.data.classes})
        for info in self.data.classes:
            rows = self.data.of_class(info.folder)
            for part in range(0, len(rows), UNIT_ROWS):
                units.append(Unit(f"{names[info.folder]}-{part // UNIT_ROWS:03d}", info.folder, rows[part : part + UNIT_ROWS]))
        return units

    @cached_property
    def _by_class(self) -> dict[str, list[Unit]]:
        found: dict[str, list[Unit]] = {}
        for unit in self.units:
            found.setdefault(unit.label, []).append(unit)
        return found

    def of_class(self, label: str) -> list[Unit]:
        return self._by_class.get(label, [])

    @cached_property
    def skipped_of(self) -> dict[str, list[Skipped]]:
        """What was passed over, by class."""
        found: dict[str, list[Skipped]] = {}
        for item in self.data.skipped:
            found.setdefault(item.label, []).append(item)
        return found

    def prompt(self, label: str) -> str:
        """The text that was scored against the null prompt."""
        if self.part and self.part.prompt:
            return self.part.prompt[label]
        return self.infos[label].prompt(self.settings.scoring.prompts[self.settings.patches.prompt])

    def reseeded(self, by: int) -> Run:
        """The same pass, where what selection leaves to chance follows the seed plus ``by``: another set is made of it."""
        return replace(self, settings=self.settings.model_copy(update={"seed": self.settings.seed + by}))

    # ---- maps ----------------------------------------------------------------------------------------------------

    def map_file(self, unit: Unit) -> Path:
        return self.path / "maps" / f"{unit.name}.safetensors"

    def latent_file(self, unit: Unit) -> Path:
        return self.path / "latents" / f"{unit.name}.safetensors"

    def maps(self, unit: Unit) -> Held:
        """A scored unit: its tensors, and which rows it holds and passed over.  Raises StoreError if it is not there."""
        file = self.map_file(unit)
        if not file.exists():
            raise StoreError(f"{self.path}: {unit.name} is not scored yet; start `diffsel score` again")
        tensors, extra = read_unit(file, self.mark)
        check_unit(file, unit, extra, extra.get("rows", ()), whole=len(extra.get("skipped", ())))
        if self.part is None:
            there = self.rivals and self.rivals.file(unit).exists()
            return tensors | (self.rivals.read(unit) if self.rivals and there else {}), extra
        added = {name: value[None] for name, value in self.part.read(unit).items()}
        if not self.part.gap:  # not a number, so that nothing can take it for one
            added |= {f"{row}.gap": np.full_like(added[f"{row}.differential"], np.nan) for row in extra["rows"]}
        if set(self.part.null.values()) == {self.record["settings"]["scoring"]["null_prompt"]}:
            added |= {name: value for name, value in tensors.items() if name.endswith(".null")}
        elif self._null.file(unit).exists():
            added |= self._null.read(unit)
        return added, extra

    @cached_property
    def _null(self) -> PromptPart:
        texts = self.part.null if self.part else {}
        return PromptPart(self.path, self.mark, None, texts, False)  # once: its key is a hash of all its texts

    def image_map(self, tensors: Mapping[str, np.ndarray], extra: Mapping[str, Any], row: Row) -> np.ndarray:
        """The latent-size map (h, w) that scores this image's patches, higher = more class-relevant."""
        s = self.settings
        differential, gap = (tensors[f"{row.row}.{name}"][s.patches.prompt] for name in ("differential", "gap"))
        draws = dict(zip(extra["rows"], extra.get("draws", ()), strict=False)).get(row.row)  # not recorded at first: all alike
        null = tensors.get(f"{row.row}.null")
        if not self.rivals:
            return estimate(differential, gap, s.patches, s.scoring, null, draws)
        if (rivals := tensors.get(f"{row.row}.rivals")) is None:
            again = f"`diffsel score {self.data.root} --out {self.path}` with the same --rivals"
            raise StoreError(f"{self.path}: {row.path} is not scored against its rivals yet; run {again}")
        if self.nats is None:
            raise StoreError(
                f"{self.path} was scored by a version that kept no nats, and its model is not here; --rivals needs them"
            )
        nats = self.nats * min(self.data.size(row)) ** 2
        return estimate(differential, gap, s.patches, s.scoring, null, draws, rivals, nats)

    @cached_property
    def rivals(self) -> RivalPart | None:
        """Where the maps of other labels lie or will lie, if these settings ask for any."""
        s = self.settings.patches
        told = s.rivals, s.prompt, tuple(info.folder for info in self.classes), self.settings.scoring.draws
        return RivalPart(self.path, self.mark, *told) if s.rivals else None

    def image_means(self, unit: Unit, held: Held | None = None) -> list[Means]:
        """Of every scored image of a unit, whose maps are stored, or in memory (``held``)."""
        s = self.settings
        return image_means(*(held or self.maps(unit)), unit, s.patches.prompt, chosen_bins(s.patches, s.scoring))

    def boxes(self, unit: Unit, held: Held | None = None) -> list[Placed]:
        """The best patches of every scored image of a unit, whose maps are stored, or in memory (``held``)."""
        tensors, extra = held or self.maps(unit)
        found = []
        for row in scored_rows(unit, extra):
            width, height = self.data.size(row)
            best = best_boxes(self.image_map(tensors, extra, row), height, width, self.settings.patches)
            found += [Placed(row, box, score, *self._means(tensors, row, box)) for box, score in best]
        return found

    def forwards_taken(self) -> int:
        """U-Net samples that the stored units of the run's own prompts, and its rivals, took.  Raises StoreError for a damaged
        unit."""
        scoring, draws = self.record["settings"]["scoring"], 0
        for file in sorted((self.path / "maps").glob("*.safetensors")):
            extra = read_extra(file)
            draws += sum(extra.get("draws") or [scoring["draws"]] * len(extra["rows"]))  # not recorded at first: all alike
        files = [self.rivals.file(unit) for unit in self.units] if self.rivals else []
        return draws * (1 + len(scoring["prompts"])) + sum(read_extra(file)["forwards"] for file in files if file.exists())

    # ---- vectors -------------------------------------------------------------------------------------------------

    @cached_property
    def feature_identity(self) -> dict[str, Any]:
        """The settings that decide which patches there are and what their vectors are."""
        own = {"patches": identity(self.settings.patches), "features": identity(self.settings.features)}
        return {**own, "prompt": self.part.key} if self.part else own

    @cached_property
    def feature_mark(self) -> str:
        return fingerprint([self.mark, self.feature_identity])

    @cached_property
    def feature_folder(self) -> Path:
        return self.path / "features" / fingerprint(self.feature_identity)

    def feature_file(self, unit: Unit) -> Path:
        return self.feature_folder / f"{unit.name}.safetensors"

    def patches(self, unit: Unit) -> dict[str, np.ndarray]:
        """``row`` (n,), ``box`` (n, 4), ``score`` (n,), the means of ``differential`` and ``gap`` inside the boxes (n,; the
        first versions had none), and ``vector`` (n, channels; 0 where selection takes none) of a unit's patches.

        Raises StoreError where a stage has not finished.
        """
        if not self.settings.selection.clustered:
            boxes = self.boxes(unit)
            return {**columns(boxes), "vector": np.zeros((len(boxes), 0), np.float32)}
        file = self.feature_file(unit)
        if not file.exists():
            raise StoreError(f"{self.path}: {unit.name} has no features for these settings yet; run `diffsel embed`")
        tensors, extra = read_unit(file, self.feature_mark)
        check_unit(file, unit, extra, tensors["row"].tolist())
        return tensors

    def ranks(self, unit: Unit, patches: dict[str, np.ndarray]) -> np.ndarray:
        """What ranks each of a unit's ``patches`` (n,), higher = better: its score, or ``guided`` inside its box."""
        s = self.settings.selection
        if s.rank_by == "estimator":
            return patches["score"]
        if "differential" not in patches:  # vectors of the first versions, or none: from the maps
            patches = patches | self.means(unit, patches["row"].tolist(), patches["box"].tolist())
        return guided(patches["differential"], patches["gap"], s.guidance)

    def means(self, unit: Unit, rows: Sequence[int], boxes: Sequence[Box]) -> dict[str, np.ndarray]:
        """Mean of D and of G (n,) inside boxes of a unit's images."""
        tensors, by_row = self.maps(unit)[0], {row.row: row for row in unit.rows}
        found = [self._means(tensors, by_row[row], box) for row, box in zip(rows, boxes, strict=True)]
        return dict(zip(("differential", "gap"), np.array(found, np.float64).reshape(-1, 2).T, strict=True))

    def _means(self, tensors: Mapping[str, np.ndarray], row: Row, box: Box) -> tuple[float, ...]:
        s, (width, height) = self.settings, self.data.size(row)
        parts = [tensors[f"{row.row}.{name}"][s.patches.prompt] for name in ("differential", "gap")]
        bins = chosen_bins(s.patches, s.scoring)
        return tuple(box_mean(cells[bins].mean(0, dtype=np.float64), height, width, box) for cells in parts)

    # ---- the whole -----------------------------------------------------------------------------------------------

    def damaged(self) -> Iterator[tuple[Path, str | None]]:
        """Every file of the pass, and what is wrong with it (None: whole): read to the last byte against its checksum."""
        marks = {self.path / "maps": self.mark, self.path / "latents": self.mark}
        for part in (self.path / "features", self.path / "prompts", self.path / "rivals"):
            for folder in sorted(each for each in part.iterdir() if each.is_dir()) if part.is_dir() else ():
                if (told := named_after(folder)) is not None:
                    marks[folder] = fingerprint([self.mark, told])
                else:  # what its units should be is not known then
                    yield folder / "settings.yaml", "does not say the settings that its folder is named after"
        units = {f"{unit.name}.safetensors": unit for unit in self.units}
        for folder, mark in marks.items():
            for file in sorted(folder.glob("*.safetensors")):
                yield file, damage(file, mark, units.get(file.name))


# ---- opening ---------------------------------------------------------------------------------------------------------


def open_run(path: AsPath, settings: Settings | None = None, may_be_gone: bool = True, moved: AsPath | None = None) -> Run:
    """Open RUN to look at it, on any machine; ``settings`` (default: its own) must agree with it about the scoring pass.

    ``may_be_gone``: missing images are told only where one is read.  ``moved``: where they are now, if not where they were.
    Raises StoreError for what is no run or damaged, DataError where the images are not in ``moved``, ConfigError and
    SettingsDiffer for settings of another pass.
    """
    record = read_record(path := Path(path))
    try:
        classes = tuple(ClassInfo(**entry) for entry in record["classes"])
        settings = as_scored(settings, record) if settings else resolve(recorded_settings(record))
        check_asked(path, record, settings)
        if record["classes"] != record["identity"]["classes"]:
            raise StoreError(f"{path / 'run.yaml'} is damaged: its classes are not those that were scored")
        where, identified = str(moved or record["data"]), record["identity"]["images"]
    except (KeyError, TypeError) as error:
        raise StoreError(f"{path / 'run.yaml'} is damaged ({type(error).__name__}: {error})") from None
    data = reopen(where, classes, read_index(path), read_skipped(path), settings.data, may_be_gone)
    if moved:
        check_moved(data, path)
    if image_identity(data) != identified:
        raise StoreError(f"{path / 'index.parquet'} does not belong to {path / 'run.yaml'}; {remake(where, path)}")
    return Run(path, record, settings, classes, data)


def check_asked(path: Path, record: Mapping[str, Any], settings: Settings) -> None:
    """Refuse settings that would choose other images, classes or maps than RUN holds.  Raises ConfigError, SettingsDiffer."""
    stored, asked = record["settings"]["data"], settings.data.model_dump(mode="json")
    for key, instead in (("classes", "--only"), ("images_per_class", "--images"), ("class_file", "a new run")):
        if stored[key] != asked[key]:
            raise ConfigError(f"data.{key}: the images and classes of {path} were fixed when it was scored; use {instead}")
    chosen_bins(settings.patches, settings.scoring)
    wanted, told = pass_identity(settings), record["identity"]
    if found := differences({key: told[key] for key in (*wanted, "side_multiple") if key in told}, wanted):
        raise SettingsDiffer(path, found)


def pass_identity(settings: Settings) -> dict[str, Any]:
    """The settings that decide the bytes of a scoring pass, apart from its images, classes, model and precision."""
    return {"seed": settings.seed, **sizes_of(settings.data), "scoring": identity(settings.scoring)}


def image_identity(data: ImageData) -> dict[str, Any]:
    return {"count": len(data.rows), "digest": data.digest}
