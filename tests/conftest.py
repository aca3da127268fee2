"""Small data and models that the tests share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffsel.cli import app as cli
from diffsel.machine.helpers import can_fork
from diffsel.scoring.diffusion import Diffusion
from diffsel.scoring.folder import ModelFolder
from diffsel.settings.settings import Settings, resolve

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
TINY = str(GOLDEN / "tiny-sd")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests run side by side on few cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> Diffusion:
    return Diffusion.load(ModelFolder(Path(TINY)), torch.device("cpu"), "fp32")


# accelerate starts several processes on one machine with its GPU launcher only, whether there is a GPU or not:
# `--cpu --num_processes 2` starts one.
TWO_PROCESSES = (
    *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
)


forks = pytest.mark.skipif(not can_fork("cpu"), reason="helpers are forks of a process without a GPU")


def until(condition: Callable[[], object]) -> None:
    """Waits for what another process does; a minute at most."""
    give_up = time.monotonic() + 60
    while not condition() and time.monotonic() < give_up:
        time.sleep(0.05)
    assert condition()


def draw(path: Path, seed: int, width: int = 64, height: int = 64) -> Path:
    """A picture of a few random rectangles."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), rng.integers(0, 256, 3), np.uint8)
    for _ in range(5):
        top, left = rng.integers(0, height), rng.integers(0, width)
        pixels[top : top + rng.integers(4, 40), left : left + rng.integers(4, 40)] = rng.integers(0, 256, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of class folders: ``folder(cat=3, dog=2)``."""

    def make(where: str = "data", size: tuple[int, int] = (64, 64), **classes: int) -> Path:
        for number, (name, count) in enumerate(classes.items()):
            for i in range(count):
                draw(tmp_path / where / name / f"{i}.png", 100 * number + i, *size)
        return tmp_path / where

    return make


@pytest.fixture
def small() -> Settings:
    """Settings under which the tiny pipeline takes milliseconds an image."""
    return resolve(small_values())


def small_values() -> dict:
    return {
        "data": {"image_size": 64},
        "model": {"model": TINY},
        "compute": {"batch_size": 8, "device": "cpu"},
        "scoring": {"draws": 3, "bins": 3},
        "patches": {"patch_size": 32, "stride": 4},
        "selection": {"clusters": 3, "top_clusters": 2, "shortlist_share": 1},  # all of so few are clustered
        "assembly": {"size": 32},
    }


@pytest.fixture
def diffsel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line; gives (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["diffsel", *map(str, words)])
        code = cli.main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def colours(tmp_path: Path) -> Callable[..., None]:
    """Writes splits of two classes that only colour tells apart: ``colours(train=10, val=6)``."""

    def make(**splits: int) -> None:
        rng = np.random.default_rng(0)
        for split, count in splits.items():
            for name, channel in (("red", 0), ("blue", 2)):
                (tmp_path / split / name).mkdir(parents=True)
                for i in range(count):
                    pixels = rng.integers(0, 150, (16, 16, 3), dtype=np.uint8)
                    pixels[..., channel] += 100
                    Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")

    return make
