"""Checked tensors: what a pass leaves on disk.  Nothing is ever pickled.

Every file carries, as metadata, the fingerprint of the settings that made it, facts about its rows, and a checksum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_safetensors

from ..settings.errors import StoreError
from ..settings.yamls import from_json, no_pipe
from .files import check_openable, write_atomically


def write_unit(path: Path, mark: str, tensors: Mapping[str, np.ndarray], extra: Mapping[str, Any]) -> None:
    """One unit file: tensors, and as metadata the fingerprint ``mark``, ``extra`` (JSON) and a checksum."""
    ordered = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    about = {"fingerprint": mark, "extra": dict(extra), "checksum": _checksum(ordered, extra), "head": _checksum({}, extra)}
    # One metadata key: safetensors writes several in an order that changes from process to process.
    write_atomically(path, save_safetensors(ordered, {"diffsel": json.dumps(about, sort_keys=True)}))


RECOVER = "`diffsel check RUN --remove` removes it, the next start makes it again"


@contextmanager
def _opened(path: Path, recover: str = RECOVER) -> Iterator[Any]:
    """A unit file, while it is read.  Raises StoreError where it is damaged, Withheld where it cannot be opened now."""
    try:
        with safe_open(no_pipe(path), framework="numpy") as file:
            yield file
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        check_openable(path)
        raise StoreError(f"{path} is damaged ({error}); {recover}") from None


def read_unit(path: Path, mark: str, recover: str = RECOVER) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and ``extra`` of a unit.

    Raises StoreError if it is damaged (``recover`` says what to do then) or made with other settings.
    """
    with _opened(path, recover) as file:
        about = from_json((file.metadata() or {}).get("diffsel", "{}"))
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    if not isinstance(about, dict) or about.get("checksum") != _checksum(tensors, about.get("extra")):
        raise StoreError(f"{path} is damaged (checksum differs); {recover}")
    if about.get("fingerprint") != mark:
        raise StoreError(f"{path} was made with other settings than those recorded beside it; it does not belong here")
    return tensors, about["extra"]


def read_column(file: Path, name: str) -> np.ndarray:
    """One tensor of a unit file, unchecked: to count before the unit is read.  Raises StoreError where it is damaged."""
    with _opened(file) as opened:
        return np.asarray(opened.get_tensor(name))


def has_column(file: Path, name: str) -> bool:
    """Raises StoreError where the file is damaged."""
    with _opened(file) as opened:
        return name in opened.keys()  # noqa: SIM118


def read_extra(path: Path) -> dict[str, Any]:
    """``extra`` of a unit, without reading its tensors.  Raises StoreError if the file's head is damaged."""
    with _opened(path) as file:
        about = from_json((file.metadata() or {})["diffsel"])
        extra = about["extra"]
        whole = about.get("head", _checksum({}, extra)) == _checksum({}, extra)  # the first files had no sum of their heads
    if not whole or not isinstance(extra, dict):
        raise StoreError(f"{path} is damaged (checksum differs); {RECOVER}")
    return extra


def _checksum(tensors: Mapping[str, np.ndarray], extra: Any) -> str:
    state = hashlib.blake2b(json.dumps(extra, sort_keys=True).encode(), digest_size=16)
    for name, value in tensors.items():
        state.update(f"{name} {value.dtype} {value.shape};".encode())
        state.update(value.tobytes())
    return state.hexdigest()
