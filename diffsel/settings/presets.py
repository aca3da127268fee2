"""Settings files by name: `--config rded` finds configs/protocols/rded.yaml, in a checkout and in an installed package."""

from __future__ import annotations

import difflib
import shutil
from pathlib import Path

from .errors import ConfigError

KINDS = ("datasets", "methods", "protocols")  # folders of configs/ that hold settings
PACKAGED = Path(__file__).parent.parent / "assets" / "configs"  # where a wheel has them
CHECKOUT = Path(__file__).parent.parent.parent / "configs"


def root() -> Path:
    """The folder configs/, wherever it lies."""
    return PACKAGED if PACKAGED.is_dir() else CHECKOUT


def presets() -> dict[str, Path]:
    """Name -> file, kind by kind in order of name."""
    return {file.stem: file for kind in KINDS for file in sorted((root() / kind).glob("*.yaml"))}


def copy_configs(out: Path) -> None:
    """All of configs/, launches and experiments too, into a new folder.  Raises ConfigError where something is there."""
    if out.exists():
        raise ConfigError(f"--out {out} exists; give a new folder, say configs")
    shutil.copytree(root(), out)


def find_preset(name: str | Path) -> Path:
    """The file that ``name`` is, or that is called so.  Raises ConfigError naming the nearest names.

    >>> find_preset("rded").name
    'rded.yaml'
    """
    path, known = Path(name), presets()
    if path.exists() or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path
    if str(name) not in known:
        near = difflib.get_close_matches(str(name), known, n=2) or list(known)
        raise ConfigError(f"settings {str(name)!r}: no such file, and no preset of that name; there is {', '.join(near)}")
    return known[str(name)]


def about(file: Path) -> str:
    """The first comment of a preset: what it is for."""
    return file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
