"""What people can read in files: YAML records and what they say of a folder, JSON lines, CSV tables."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..settings.errors import SettingsDiffer, StoreError
from ..settings.yamls import from_json, load_yaml, read_text
from .addresses import refuse_address
from .files import PART


def differences(stored: Any, asked: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The leaves in which two nested values differ, as ``{"scoring.draws": (stored, asked)}``.

    A setting that came later is None where it is not stored; what nobody asks for is never stored, not even as None.
    """
    if isinstance(stored, dict) and isinstance(asked, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in {**stored, **asked}:
            nobody = "no such setting" if stored.get(key, 0) is None and key not in asked else None
            found |= differences(stored.get(key), asked.get(key, nobody), f"{prefix}{key}.")
        return found
    return {} if stored == asked else {prefix.rstrip("."): (stored, asked)}


ANEW = "put a whole copy back, or make its folder anew"


def read_yaml(path: Path) -> dict[str, Any]:
    """A record of ours.  Raises StoreError where it cannot be read, or is damaged."""
    try:
        value = load_yaml(path)
    except OSError as error:
        raise StoreError(f"{path}: {error}") from None
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}); {ANEW}") from None
    if not isinstance(value, dict):
        raise StoreError(f"{path} is damaged (it holds no settings); {ANEW}")
    return value


def peek(path: Path) -> dict[str, Any]:
    """A record that may be anybody's: empty where it cannot be read."""
    with contextlib.suppress(StoreError):
        return read_yaml(path)
    return {}


def dump_yaml(values: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=120).encode()


def is_unused(path: Path, besides: Collection[str] = ()) -> bool:
    """Whether work may begin in ``path``: it is not there, or a folder of nothing but ``logs``, claims, half-written files
    and what is named ``besides``."""
    if not path.is_dir():
        return not path.exists()
    passing = re.compile(rf"{re.escape(PART)}.*|\..*\.claim")
    return all(each.name in ("logs", *besides) or passing.fullmatch(each.name) for each in path.iterdir())


def is_mine(folder: Path, name: str, described: Mapping[str, Any], what: str, besides: Collection[str] = ()) -> bool:
    """Whether ``folder`` holds this very work, as its YAML record ``name`` tells; False where work may begin there.

    ``what``: what should lie there, for the message; ``besides``: files that may be there before the record is.
    Raises SettingsDiffer where the record says otherwise, StoreError where something else lies there, ConfigError for an
    address.
    """
    refuse_address(folder)
    unused = is_unused(folder, besides)  # looked at first: another process writes the record, then what belongs to it
    if (folder / name).exists():
        if found := differences(read_yaml(folder / name), json.loads(json.dumps(described))):
            raise SettingsDiffer(folder, found)
        return True
    if not unused:
        raise StoreError(f"{folder} exists and is not {what}; give a new or empty folder")
    return False


def read_lines(path: Path) -> list[Any]:
    """The entries of a JSON-lines file.  A name in it may hold characters that Python, but not JSON, takes for line ends."""
    return [from_json(line) for line in read_text(path).split("\n") if line]


FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20'")  # with which a text begins that a spreadsheet computes; our sign
NUMBER = r"[+-][0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?"
PREFIXED = (
    "a text that begins with one of = + - @ ', or a tab or line end, has a ' before it, so that no spreadsheet computes it"
)


def as_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """A table as CSV; None is an empty cell.  Texts that a spreadsheet would take for formulas begin with an apostrophe."""
    lines = [_line(header), *(_line(map(_cell, row)) for row in rows)]
    return "".join(lines).encode("utf-8", "surrogateescape")


def _line(cells: Iterable[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)  # so that both line ends are quoted within a cell
    return text.getvalue().removesuffix("\r\n") + "\n"


def from_csv(content: bytes) -> list[dict[str, str]]:
    """The lines of such a table, with the texts as they were before ``as_csv``."""
    lines = csv.DictReader(io.StringIO(content.decode("utf-8", "surrogateescape"), newline=""))
    return [{key: value.removeprefix("'") for key, value in line.items()} for line in lines]


def _cell(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(FORMULA) or re.fullmatch(NUMBER, value):
        return "" if value is None else value
    return f"'{value}"
