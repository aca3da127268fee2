"""run.yaml: what a run was made with."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..machine.formats import ANEW, read_yaml
from ..scoring.folder import ModelFolder, locate
from ..scoring.patches import chosen_bins
from ..settings.errors import ConfigError, StoreError
from ..settings.sections import ScoringSettings
from ..settings.settings import Settings, fingerprint, without_execution

FORMAT = 1


def read_record(path: Path) -> dict[str, Any]:
    """run.yaml.  Raises StoreError where RUN is missing, or of another format version."""
    if not (path / "run.yaml").exists():
        if (path / "set.yaml").exists():
            raise StoreError(f"{path} is a distilled set, not a run (no run.yaml); give the run it was selected from")
        if some := sorted(path.glob("*/set.yaml")):
            raise StoreError(f"{path} is not a run (no run.yaml); it holds sets, such as {some[0].parent}")
        if path.is_dir() and any(path.iterdir()):
            raise StoreError(f"{path} is not a run (no run.yaml); if these are images: `diffsel score {path} --out RUN` first")
        there = "is empty" if path.is_dir() else "does not exist"
        raise StoreError(f"{path} is not a run: it {there}; `diffsel score DATA --out {path}` makes one")
    record = read_yaml(path / "run.yaml")
    if record.get("format") != FORMAT:
        raise StoreError(f"{path} has store format {record.get('format')!r}; this version reads format {FORMAT}")
    shapes = {"identity": dict, "settings": dict, "classes": list, "data": str}
    lost = [key for key, kind in shapes.items() if not isinstance(record.get(key), kind)]
    lost += [f"settings.{key}" for key in Settings.model_fields if key not in record.get("settings", {key: 0})]
    if lost:
        raise StoreError(f"{path / 'run.yaml'} is damaged: {', '.join(lost)} missing; {ANEW}")
    if record.get("checksum", told := checksum(record)) != told:
        raise StoreError(f"{path / 'run.yaml'} is damaged or was edited (checksum differs); {ANEW}; flags change settings")
    return record


def signed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its checksum, which stands early: nothing behind it can be lost unseen."""
    return {"format": FORMAT, "checksum": checksum(record), **record}


def checksum(record: Mapping[str, Any]) -> str:
    """Of all but where the images lie, each of which has a hash of its own."""
    try:
        return fingerprint({key: value for key, value in record.items() if key not in ("format", "checksum", "data")})
    except (TypeError, ValueError):  # YAML knows dates, and numbers that are none
        return "none"


def recorded_settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was made with, apart from what belongs to its machine."""
    return without_execution(record["settings"])


def nats_per_pixel(record: Mapping[str, Any], settings: Settings) -> float | None:
    """What a score, times the pixels of its patch, is multiplied with to be nats (scoring/nats.py), in the chosen bins.

    Of a run of a version that did not record it, where its model is still here; else None.
    """
    try:
        told: Any = record.get("unit") or _of_model(record, locate(settings.model, fetch=False), settings)
    except ConfigError:
        return None
    if not told:
        return None
    width = sum(told["log_snr"][i] - told["log_snr"][i + 1] for i in chosen_bins(settings.patches, settings.scoring))
    return float(told["elements"] * width / 2)


def _of_model(record: Mapping[str, Any], folder: ModelFolder, settings: Settings) -> Any:
    return folder.unit(settings.scoring) if folder.digest == record["identity"]["model"] else None


def as_scored(settings: Settings, record: Mapping[str, Any]) -> Settings:
    """With what was left open, and was filled in for the prior (scoring/suiting.py), as it was when RUN was scored."""
    stored = record["settings"]["scoring"]
    if stored.get("log_snr") is None:
        return settings
    given = settings.scoring.model_dump(mode="json", exclude_unset=True)
    filled = {key: stored[key] for key in ("log_snr", "null_prompt", "prompts")} | given
    return settings.model_copy(update={"scoring": ScoringSettings.model_validate(filled)})


def in_its_precision(settings: Settings, run: Path) -> Settings:
    """Where the precision is ``auto``: the one that RUN was scored in, since another version or device may choose another."""
    if settings.compute.precision != "auto" or not (run / "run.yaml").exists():
        return settings
    compute = settings.compute.model_copy(update={"precision": read_record(run)["identity"].get("precision", "auto")})
    return settings.model_copy(update={"compute": compute})


def versions() -> dict[str, str]:
    """Of what decides the bytes of a run."""
    names = ("diffsel", "torch", "diffusers", "transformers", "scikit-learn", "numpy", "pillow")
    return {name: version(name) for name in names}
