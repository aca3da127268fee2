"""What is stored by earlier versions stays valid: hashes of what decides bytes, and a RUN of store format 1.

tests/assets/format-1 was written by version 0.1.0:
``diffsel distill data --out run --ipc 1 --model tests/golden/tiny-sd --image-size 32 --draws 3 --batch-size 8
--patch-size 16 --stride 4 --clusters 2 --top-clusters 1 --size 32 --factor 2 --device cpu``, with paths made relative.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, TINY
from PIL import Image
from test_method import with_
from torch import nn

from diffsel.data.images import open_data
from diffsel.evaluation.bench import Bench
from diffsel.evaluation.cells import make_cell
from diffsel.evaluation.storing import label_identity
from diffsel.evaluation.teachers import Teacher
from diffsel.machine.device import Machine
from diffsel.runs.run import open_run
from diffsel.runs.session import start
from diffsel.sets.baselines import baseline_provenance
from diffsel.sets.candidates import provenance
from diffsel.sets.opening import open_set
from diffsel.settings.errors import SettingsDiffer
from diffsel.settings.settings import Settings, fingerprint, resolve

MADE = ROOT / "tests" / "assets" / "format-1"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The folder of run and data, as if it had been written here."""
    shutil.copytree(MADE, tmp_path / "made")
    file = tmp_path / "made" / "run" / "run.yaml"
    text = file.read_text().replace("../data", str(tmp_path / "made" / "data")).replace("model: tiny-sd", f"model: {TINY}")
    file.write_text(text)
    return tmp_path / "made"


def test_what_decides_the_bytes_of_runs_and_sets_hashes_as_before(made: Path) -> None:
    settings = open_run(made / "run").settings
    run = open_run(made / "run", settings)
    assert run.mark == "1e8b595929fe0ba7"
    assert fingerprint(run.feature_identity) == "35a8a612ced7f587"
    assert run.feature_mark == "57938c97a3d6a4d1"
    record = provenance(run, 1, 2, ["blue", "red"])
    assert fingerprint(record) == "b3f0dcb863ad9fcd"
    assert record == yaml.safe_load((made / "run" / "ipc1" / "set.yaml").read_text())
    random = settings.model_copy(update={"selection": settings.selection.model_copy(update={"method": "random"})})
    baseline = baseline_provenance(run.data, 1, 2, random, ["blue", "red"], None)
    assert fingerprint(baseline) == "8996f70fc587e559"


def test_what_decides_students_and_labels_hashes_as_before(made: Path) -> None:
    protocol = resolve({"protocol": {"epochs": 3}}).protocol
    bench = Bench(Machine(torch.device("cpu")))
    found = open_set(made / "run" / "ipc1")
    validation = open_data(str(made / "data"), resolve({}).data, 0)
    hard = protocol.model_copy(update={"labels": "hard"})
    cell = make_cell("cell", found, validation, "conv3", hard, None, bench)
    assert fingerprint(cell.identity) == "29bb0372a7d9ad23"
    teacher = Teacher("conv3", "nowhere", nn.Identity(), torch.arange(2), None, "digest")
    identity = label_identity(bench.pictures(cell.train), protocol, cell.recipe, 0, teacher, None)
    assert fingerprint(identity) == "2c4c61ce52a68d62"


def test_a_run_of_an_earlier_version_opens_and_gives_the_same_set(
    made: Path, diffsel: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = diffsel("select", made / "run", "--ipc", 1, "--out", made / "again", "--device", "cpu", "-q")
    assert code == 0, err
    again, before = made / "again", made / "run" / "ipc1"
    for name in ("metadata.jsonl", "set.yaml"):
        assert (again / name).read_bytes() == (before / name).read_bytes(), name
    for name in ("blue/00000.png", "red/00000.png"):  # the pixels: another zlib writes other bytes
        assert Image.open(again / name).tobytes() == Image.open(before / name).tobytes(), name
    code, out, _ = diffsel("check", made / "run", "-q")
    assert (code, out) == (0, "6 files, 0 damaged\n")


def test_a_run_keeps_its_precision_where_none_is_asked_for(
    folder: Callable[..., Path], tmp_path: Path, small: Settings
) -> None:
    source = folder(cat=4)
    start(str(source), tmp_path / "run", with_(small, compute={"precision": "bf16"}))
    again = start(str(source), tmp_path / "run", small)
    assert (again.run.precision, again.scorer.model.dtype) == ("bf16", torch.bfloat16)
    with pytest.raises(SettingsDiffer, match="precision"):
        start(str(source), tmp_path / "run", with_(small, compute={"precision": "fp32"}))
