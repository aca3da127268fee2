"""Pipelines and settings files, for tests of what they say."""

from __future__ import annotations

import runpy
from pathlib import Path

from conftest import ROOT

CONFIGS = ROOT / "configs"
SCALES = ("demo", "cifar10", "paper")


def load(file: Path) -> dict:
    return runpy.run_path(str(file))
