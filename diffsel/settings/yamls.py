"""YAML files and JSON as plain values: what is wrong with one is one line, and no key of YAML stands twice."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import yaml

Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is five times as fast
Base: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def no_pipe(file: Path) -> Path:
    """The file itself, to be opened.  Raises OSError for a pipe or a device, which would never end."""
    if file.exists() and not (file.is_file() or file.is_dir()):
        raise OSError(errno.EINVAL, "a pipe or a device, not a file", str(file))
    return file


def read_text(file: Path) -> str:
    """Raises OSError, also as ``no_pipe``; ValueError for what is no text."""
    return no_pipe(file).read_text(encoding="utf-8")


def from_json(text: str | bytes, **how: Any) -> Any:
    """Raises ValueError for what is no JSON, or too deep."""
    try:
        return json.loads(text, **how)
    except RecursionError:
        raise ValueError("nested too deep") from None


def load_yaml(file: Path, texts: bool = False) -> Any:
    """What a file holds; ``texts``: every value as it stands there ("off", "007").  Raises OSError, ValueError."""
    try:
        return yaml.load(read_text(file), Loader=_Texts if texts else _Values)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:300]) from None


class _Values(Safe):
    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        _once(node)
        return super().construct_mapping(node, deep)


class _Texts(Base):
    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        _once(node)
        return super().construct_mapping(node, deep)


def _once(node: Any) -> None:
    """YAML takes the last of two equal keys in silence."""
    seen = set[str]()
    for key, _ in node.value:
        if key.value != "<<" and str(key.value) in seen:
            raise ValueError(f"line {key.start_mark.line + 1}: {key.value!r} stands twice")
        seen.add(str(key.value))
