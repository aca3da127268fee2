"""To the hub and from it, with the real clients of huggingface_hub and datasets, and a hub on the loopback (hub.py)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hub import hub
from safetensors.torch import load_file

import diffsel as package

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def online(tmp_path: Path) -> Iterator[tuple[Command, Path, list[str]]]:
    """A command line in a process of its own, what the hub holds, and what it was asked."""
    with hub(tmp_path / "hub") as (environment, asked):

        def run(*words: object, **more: str) -> tuple[int, str, str]:
            command, known = [sys.executable, "-m", "diffsel", *map(str, words)], {**os.environ, **environment, **more}
            done = subprocess.run(command, env=known, cwd=tmp_path, capture_output=True, text=True)
            return done.returncode, done.stdout, done.stderr

        yield run, tmp_path / "hub", asked


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_set_is_pushed_and_evaluated_from_there(online, folder, diffsel: Command, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    run, hub_, asked = online
    data = folder(cat=4, dog=4)
    words = ["--method", "random", "--ipc", 2, "--image-size", 64, "--patch-size", 32, "--size", 32, "--factor", 1]
    assert diffsel("select", data, *words, "--out", tmp_path / "set", "-q")[0] == 0
    push = ("export", "set", "--to", "hf", "--out", "ready", "--push", "somebody/pets")
    code, _, err = run(*push, HF_TOKEN="hf_wrong")
    assert (code, "the hub did not accept the login" in err, (tmp_path / "ready").exists()) == (2, True, False)
    code, out, err = run(*push)
    assert (code, "logged in to the hub as somebody" in out) == (0, True), err
    repo = hub_ / "datasets" / "somebody" / "pets"
    assert contents(repo) == contents(tmp_path / "ready")
    assert re.search('"visibility": "private"|"private": true', repo.with_suffix(".json").read_text())
    student = ("--val", data, "--labels", "hard", "--student", "conv3w8", "--epochs", 1, "--students", 1, "-q")
    code, out, err = run("evaluate", "hub:somebody/pets", *student)
    assert (code, "pets" in out, err) == (0, True, "")
    assert any(re.match(r"GET /datasets/somebody/pets/resolve/\w+/data/train-.*parquet", each) for each in asked)


def test_a_prior_is_fetched_once_and_its_maps_are_those_of_the_folder(online, folder, tmp_path: Path) -> None:
    run, hub_, asked = online
    data, demo = folder(cat=2), Path(package.__file__).parent / "assets" / "demo-sd"
    shutil.copytree(demo, hub_ / "models" / "somebody" / "prior")
    (hub_ / "models" / "somebody" / "prior" / "not-needed.safetensors").write_bytes(bytes(100))
    words = ("score", data, "--draws", 3, "--image-size", 64, "--patch-size", 32)
    for out, model in (("far", "somebody/prior"), ("near", demo), ("again", "somebody/prior")):
        code, _, err = run(*words, "--model", model, "--out", out)
        assert (code, "\r" in err) == (0, False), err
    maps = [load_file(tmp_path / out / "maps" / "cat-000.safetensors") for out in ("far", "near", "again")]
    assert all(torch.equal(maps[0][name], other[name]) for other in maps[1:] for name in maps[0])
    fetched = [each for each in asked if each.startswith("GET /somebody/prior/resolve")]
    assert len(fetched) == len(set(fetched))
    assert not any("not-needed" in each for each in fetched)
    assert (
        sum("/api/models/somebody/prior/revision" in each for each in asked) == 2 * 2
    )  # of two commands: its index, its files
    for more, told in ((("--model", "somebody/none"), "the hub has none of this name, or it is private"),
                       (("--model", "somebody/prior", "--revision", "v9"), "on the hub it has no revision 'v9'")):  # fmt: skip
        code, _, err = run(*words, *more, "--out", "x", "-q")
        assert (code, told in err, err.count("\n")) == (2, True, 1), err
