"""A folder for other tools: written all at once, and whole ever after?

OUT/ what a form puts there   README.md (a card, for people to write in)   export.yaml (what it was made of; digests of all)
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..data.pixels import digest
from ..machine.addresses import Store, check_writable, is_address
from ..machine.files import APPEARED, check_place, whole_folder, write_atomically
from ..machine.formats import dump_yaml, is_mine, read_yaml
from ..settings.errors import DataError, StoreError
from ..settings.settings import fingerprint
from .record import damaged_files

EXPORT = "export.yaml"
FORMAT = 2  # 1: with or without a checksum
OF_ITSELF = ("format", "checksum", "files")  # in EXPORT, beside what it was made of; ``listed`` looks at them


def hand_over(out: Path | str, record: Mapping[str, Any], write: Callable[[Path], None], card: Callable[[], str]) -> bool:
    """A folder for other tools, all at once: what ``write`` puts there, README.md, and as export.yaml the ``record`` with a
    digest of each file; False where it is there already.  Behind an address export.yaml comes last: where it is, all is.

    Raises StoreError where OUT holds something else, DataError where it is this export but damaged, ConfigError for an address
    where files may be seen half-written.
    """
    place = Store(str(out)) if is_address(str(out)) else None
    if place:
        check_writable(place.root)
    if _is_there(place, record) if place else _is_mine(Path(out), record):
        return False
    if not place:
        check_place(Path(out))
    try:
        _write(place, Path(out), record, write, card)
    except OSError as error:
        if place or error.errno not in APPEARED or not _is_mine(Path(out), record):
            raise
        return False  # another launch was first, with the same export
    return True


def _write(
    place: Store | None, out: Path, record: Mapping[str, Any], write: Callable[[Path], None], card: Callable[[], str]
) -> None:
    with tempfile.TemporaryDirectory() if place else whole_folder(out) as folder:
        part = Path(folder)
        write(part)
        written = {file.relative_to(part).as_posix(): file for file in sorted(part.rglob("[!.]*")) if file.is_file()}
        told = dump_yaml(_signed({**record, "files": {name: digest(file.read_bytes()) for name, file in written.items()}}))
        write_atomically(part / "README.md", card().encode("utf-8", "backslashreplace"))
        if place:
            place.upload(part)
            place.write(EXPORT, told)
        else:
            write_atomically(part / EXPORT, told)


def _is_there(place: Store, record: Mapping[str, Any]) -> bool:
    """As ``is_mine``, behind an address; what a broken upload left there is written over."""
    if not place.exists(EXPORT):
        return False
    with tempfile.TemporaryDirectory() as folder:
        write_atomically(file := Path(folder) / EXPORT, place.read(EXPORT))
        rest: dict[str, Any] = dict.fromkeys(OF_ITSELF)
        if {**read_yaml(file), **rest} != {**record, **rest}:
            raise StoreError(f"{place.root} holds another export; give a new address")
    return True


def _is_mine(out: Path, record: Mapping[str, Any]) -> bool:
    files, told = (listed(out), read_yaml(out / EXPORT)) if (out / EXPORT).exists() else ({}, {})
    if not is_mine(out, EXPORT, {**record, **{key: told[key] for key in OF_ITSELF if key in told}}, "this export"):
        return False
    if damaged := list(damaged_files(out, files, EXPORT)):
        file, reason = damaged[0]
        more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        raise DataError(f"{file} {reason}{more}; the export is damaged: delete {out} and make it anew")
    return True


def _signed(told: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its checksum."""
    return {"checksum": fingerprint(told), **told}


def listed(out: Path) -> dict[str, str]:
    """File and digest of an export; nothing for one of an earlier version.  Raises StoreError where its record is damaged."""
    told = read_yaml(out / EXPORT)
    checksum, files = told.pop("checksum", None), told.get("files") or {}
    if not isinstance(files, dict) or not all(isinstance(each, str) for pair in files.items() for each in pair):
        raise StoreError(f"{out / EXPORT} is damaged (files: expected names and digests); delete {out} and make it anew")
    if told.get("format") not in (1, FORMAT):
        raise StoreError(f"{out / EXPORT} has format {told.get('format')!r}; this version reads 1 and {FORMAT}")
    if checksum != fingerprint(told) and (checksum is not None or told["format"] > 1):
        raise StoreError(f"{out / EXPORT} is damaged or was edited (checksum differs); delete {out} and make it anew")
    return files
