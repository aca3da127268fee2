"""What lies in files: YAML records, JSON lines, CSV tables, and checked tensors.  Nothing is ever pickled.

Every tensor file carries, as metadata, the fingerprint of the settings that made it, facts about its rows, and a checksum.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_safetensors

from ..settings.errors import SettingsDiffer, StoreError
from .files import PART, write_atomically


def differences(stored: Any, asked: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The leaves in which two nested values differ, as ``{"scoring.draws": (stored, asked)}``."""
    if isinstance(stored, dict) and isinstance(asked, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in {**stored, **asked}:
            found |= differences(stored.get(key), asked.get(key), f"{prefix}{key}.")
        return found
    return {} if stored == asked else {prefix.rstrip("."): (stored, asked)}


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise StoreError(f"{path}: not written by diffsel")
    return value


def dump_yaml(values: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=120).encode()


def is_unused(path: Path, besides: Collection[str] = ()) -> bool:
    """Whether work may begin in ``path``: it is not there, or a folder of nothing but ``logs``, half-written files and what
    is named ``besides``."""
    if not path.is_dir():
        return not path.exists()
    return all(each.name in ("logs", *besides) or each.name.startswith(PART) for each in path.iterdir())


def is_mine(folder: Path, name: str, described: Mapping[str, Any], what: str, besides: Collection[str] = ()) -> bool:
    """Whether ``folder`` holds this very work, as its YAML record ``name`` tells; False where work may begin there.

    ``what``: what should lie there, for the message; ``besides``: files that may be there before the record is.
    Raises SettingsDiffer where the record says otherwise, StoreError where something else lies there.
    """
    if (folder / name).exists():
        if found := differences(read_yaml(folder / name), json.loads(json.dumps(described))):
            raise SettingsDiffer(folder, found)
        return True
    if not is_unused(folder, besides):
        raise StoreError(f"{folder} exists and is not {what}; give a new or empty folder")
    return False


def read_lines(path: Path) -> list[Any]:
    """The entries of a JSON-lines file.  A name in it may hold characters that Python, but not JSON, takes for line ends."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def as_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """A table as CSV; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


# ---- checked tensors -------------------------------------------------------------------------------------------------


def write_unit(path: Path, mark: str, tensors: Mapping[str, np.ndarray], extra: Mapping[str, Any]) -> None:
    """One unit file: tensors, and as metadata the fingerprint ``mark``, ``extra`` (JSON) and a checksum."""
    ordered = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    about = {"fingerprint": mark, "extra": dict(extra), "checksum": _checksum(ordered, extra)}
    # One metadata key: safetensors writes several in an order that changes from process to process.
    write_atomically(path, save_safetensors(ordered, {"diffsel": json.dumps(about, sort_keys=True)}))


RECOVER = "`diffsel check RUN --remove` removes it, the next start makes it again"


def read_unit(path: Path, mark: str, recover: str = RECOVER) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and ``extra`` of a unit.

    Raises StoreError if it is damaged (``recover`` says what to do then) or made with other settings.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("diffsel", "{}"))
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (OSError, SafetensorError, ValueError) as error:
        raise StoreError(f"{path} is damaged ({error}); {recover}") from None
    if about.get("checksum") != _checksum(tensors, about.get("extra")):
        raise StoreError(f"{path} is damaged (checksum differs); {recover}")
    if about.get("fingerprint") != mark:
        raise StoreError(f"{path} was made with other settings than those recorded beside it; it does not belong here")
    return tensors, about["extra"]


def read_column(file: Path, name: str) -> np.ndarray:
    """One tensor of a unit file, unchecked: to count before the unit is read.  Raises StoreError where it is damaged."""
    try:
        with safe_open(file, framework="numpy") as opened:
            return np.asarray(opened.get_tensor(name))
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{file} is damaged ({error}); {RECOVER}") from None


def read_extra(path: Path) -> dict[str, Any]:
    """``extra`` of a unit, without reading its tensors.  Raises StoreError if the file is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            return json.loads((file.metadata() or {})["diffsel"])["extra"]
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise StoreError(f"{path} is damaged ({error}); {RECOVER}") from None


def _checksum(tensors: Mapping[str, np.ndarray], extra: Any) -> str:
    state = hashlib.blake2b(json.dumps(extra, sort_keys=True).encode(), digest_size=16)
    for name, value in tensors.items():
        state.update(f"{name} {value.dtype} {value.shape};".encode())
        state.update(value.tobytes())
    return state.hexdigest()
