"""Every error that a user may meet.  Its message alone must tell what to do."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self


class DiffselError(Exception):
    """Every foreseeable error; the command line shows its message and nothing else."""


class ConfigError(DiffselError, ValueError):
    """A setting that cannot be used; the message names it and says what would be right."""


class DataError(DiffselError, ValueError):
    """Images or classes that cannot be used; the message names the file or folder and what would be right."""


class UnreadableImage(DataError):
    """One file that is no image, or a broken one: it is listed and passed over."""


SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # what a machine may lack for a moment


class Scarce(DataError):
    """The machine lacks file handles or memory for a moment; nothing is known of the file then."""

    @classmethod
    def check(cls, error: OSError, name: object) -> None:
        """Raises it where that is what happened to the file ``name``."""
        if error.errno in SCARCE:
            raise cls(f"{name}: {error.strerror or error}; free some and start again") from None


class Withheld(DiffselError):
    """A file that cannot be read now, for its rights or its disk: nothing is known of it, so it is not damaged."""

    @classmethod
    def of(cls, file: object, error: OSError) -> Self:
        return cls(f"{file}: {error.strerror or error}; nothing is known of it, start again when it can be read")


class StoreError(DiffselError, RuntimeError):
    """A run or set on disk that cannot be used as asked; the message names the file or the settings that differ."""


class SettingsDiffer(StoreError):
    """A store holds results of other settings; ``differences`` maps each setting to (stored, asked)."""

    def __init__(self, where: Path, differences: Mapping[str, tuple[Any, Any]]):
        self.differences = dict(differences)
        lines = "".join(f"\n  {key}: stored {short(old)}, asked {short(new)}" for key, (old, new) in self.differences.items())
        super().__init__(f"{where} was made with other settings; use another folder, or ask for the stored ones:{lines}")


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


class SelectionError(DiffselError, ValueError):
    """A class that cannot give as many images as asked; the message names it and its limit."""
