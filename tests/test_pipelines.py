"""Pipelines: short, light, unlike each other, with the paper's numbers; a dry run at every scale; one run whole and resumed."""

from __future__ import annotations

import ast
import csv
import difflib
import json
import os
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import GOLDEN, ROOT, TINY
from programs import CONFIGS, SCALES, load

from diffsel.sets.candidates import candidates, most_patches
from diffsel.studies import study, tables
from diffsel.studies.cases import plan, read_scale

FILES = sorted((ROOT / "pipelines").glob("*.py"))
NAMES = [file.stem for file in FILES]


def run(file: Path, *words: object) -> None:
    """As `python FILE words`, in this process; it must end well."""
    before, sys.argv = sys.argv, [str(file), *map(str, words)]
    try:
        with pytest.raises(SystemExit) as done:
            runpy.run_path(str(file), run_name="__main__")
    finally:
        sys.argv = before
    assert not done.value.code


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_a_pipeline_is_short_and_only_lists(file: Path) -> None:
    text = file.read_text()
    tree = ast.parse(text)
    assert text.count("\n") < 60
    doc = ast.get_docstring(tree) or ""
    assert f"accelerate launch pipelines/{file.name}" in doc
    assert "Cost" in doc
    assert [node.name for node in tree.body if isinstance(node, ast.FunctionDef)] == ["cells"]
    assert {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)} == {
        "diffsel.studies.cases",
        "diffsel.studies.study",
    }
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.While | ast.ClassDef | ast.For)]


def test_no_two_pipelines_are_near_copies() -> None:
    for i, one in enumerate(FILES):
        for other in FILES[i + 1 :]:
            alike = difflib.SequenceMatcher(None, one.read_text().splitlines(), other.read_text().splitlines(), False).ratio()
            assert alike < 0.6, (one.name, other.name)


def test_pipelines_load_nothing_heavy() -> None:
    code = (
        "import runpy, sys; [runpy.run_path(f) for f in sys.argv[1:]];"
        "print([m for m in ('torch', 'numpy', 'diffusers', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, FILES)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_expected_speaks_of_what_is_run(file: Path) -> None:
    """Every expected number stands in a row that the cells have, and most cells of a full table have one."""
    found = load(file)
    cases, expected = found["cells"](), found["EXPECTED"]
    places = {(case.row, case.column) for case in cases}
    assert len(places) == len(cases)
    assert expected
    if file.stem != "capabilities":  # the paper's marks speak of methods that are not run
        assert {row for row, _ in expected} <= {row for row, _ in places}
        assert places & expected.keys()


def test_expected_has_the_papers_shape() -> None:
    """Counts as the paper's tables have them, and numbers picked from its text."""
    tables_ = {name: load(ROOT / "pipelines" / f"{name}.py")["EXPECTED"] for name in NAMES}
    counts = {
        "high_resolution": 96,
        "low_resolution": 50,
        "cross_architecture": 98,
        "clustering": 18,
        "timestep_ranges": 10,
        "hard_labels": 24,
        "sizes": 18,
        "capabilities": 24,
    }
    assert {name: len(tables_[name]) for name in counts} == counts
    assert tables_["high_resolution"]["ImageNet-1K, IPC 100", "D3HR"] == (62.5, 0.0)
    assert tables_["low_resolution"]["Tiny-ImageNet, IPC 50", "Ours, ResNet-18"] == (58.5, 0.2)
    assert tables_["cross_architecture"]["IPC 50, ResNet-50", "ResNet-101"] == 66.7
    assert tables_["cross_architecture"]["IPC 10, ViT-B", "EfficientNet-B0"] == 28.9
    assert tables_["hard_labels"]["IPC 50", "Ours"] == (33.2, 0.1)
    assert tables_["sizes"]["image 512, patch 448", "IPC 100"] == 81.0


@pytest.mark.parametrize("scale", SCALES)
def test_every_pipeline_has_a_dry_run_at_every_scale(scale: str, tmp_path: Path, capsys, monkeypatch) -> None:
    for name in ("IMAGENET", "CIFAR10", "CIFAR10_TEACHER"):
        monkeypatch.delenv(name, raising=False)  # not needed yet
    for file in FILES:
        run(file, "--scale", scale, "--out", tmp_path / "out", "--dry-run")
        text = capsys.readouterr().out
        cells = int(text.splitlines()[0].split(": ")[-1].split()[0])
        table = text.splitlines()[4 : text.splitlines().index("", 4)]
        assert cells == len(table) > 0
        assert "hours" in text
    assert not (tmp_path / "out").exists()


def test_subsets_have_teachers_of_their_own_at_paper_scale(tmp_path: Path, capsys, monkeypatch) -> None:
    """As RDED's ResNet-18 are: trained on the subset; ImageNet-1K's is torchvision's."""
    monkeypatch.delenv("TEACHERS", raising=False)
    monkeypatch.setenv("IMAGENET", "there")
    run(ROOT / "pipelines" / "high_resolution.py", "--scale", "paper", "--out", tmp_path / "out", "--dry-run")
    teachers, environment = capsys.readouterr().out.splitlines()[-2:]
    own = [f"$TEACHERS/{name}-resnet18.pth" for name in ("imagenette", "imagewoof", "imagenet-100")]
    assert teachers == "teachers: " + "; ".join([*own, "resnet18"])
    assert environment == "environment: IMAGENET; TEACHERS (not set)"


def test_rded_makes_its_own_mosaics_at_paper_scale() -> None:
    """Left to the method (two tiles a side at any IPC, as its scripts have it); small images stay whole."""
    factors: dict[str, set[int]] = {}
    for name in ("high_resolution", "low_resolution", "rded", "hard_labels"):
        for job in plan(load(ROOT / "pipelines" / f"{name}.py")["cells"](), read_scale("paper", CONFIGS), CONFIGS):
            if job.method == "rded":
                factors.setdefault(job.dataset, set()).add(job.settings.assembly.factor)
    small = {"cifar10", "cifar100", "tiny-imagenet"}
    assert factors == {name: {1} if name in small else {0} for name in factors}
    assert len(factors) == 8


def test_rdeds_scripts_are_all_there() -> None:
    """Settings of every script of RDED, as recorded in its golden file."""
    cases = load(ROOT / "pipelines" / "rded.py")["cells"]()
    ours = {(case.dataset.replace("tiny-", "tiny"), case.teacher, case.ipc, *case.settings.values()) for case in cases}
    golden = json.loads((GOLDEN / "rded_config.json").read_text())
    theirs = {
        (
            re.sub("net-(nette|woof)", r"\1", each["subset"]),
            each["arch_name"],
            each["ipc"],
            each["num_crop"],
            each["input_size"],
        )
        for each in golden
        if each["source"].endswith("as written")
    }
    assert len(theirs) == 16
    assert ours == theirs


def tiny_scale(tmp_path: Path) -> Path:
    """The demo in seconds: two scenes a class, one draw a bin, one epoch."""
    values = yaml.safe_load((CONFIGS / "scales" / "demo.yaml").read_text())
    values |= {"scenes": 2, "students": 2}
    values["settings"] |= {
        "protocol.epochs": 1,
        "assembly.factor": 1,
        "data.image_size": 32,
        "patches.patch_size": 16,
        "compute.device": "cpu",
    }
    values["stands"] |= {"ipc": {"1": 1, "10": 1, "50": 1, "100": 2}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "tiny.yaml"


def test_one_pipeline_whole_and_taken_up_again(tmp_path: Path, monkeypatch, capsys) -> None:
    out, file = tmp_path / "out", ROOT / "pipelines" / "hard_labels.py"
    words = ("--scale", tiny_scale(tmp_path), "--out", out, "-q", "--model", TINY)
    run(file, *words)
    text = capsys.readouterr().out
    results = {path: path.stat().st_mtime_ns for path in out.rglob("seed-*.json")}
    units = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.safetensors")}
    assert len(results) == 6 * 2  # IPC 1 and 100 of three methods, two students each
    assert len(units) == 20  # ten classes: one unit of maps, one of vectors
    rows = list(csv.DictReader((out / "tables" / "hard_labels.csv").read_text().splitlines()))
    assert {(row["row"], row["column"]): row["paper"] for row in rows}["IPC 50", "Minimax"] == "31.3"
    assert len([row for row in rows if row["n"] == "2"]) == 6
    assert "**" in text
    assert (out / "tables" / "hard_labels.png").stat().st_size > 5000

    def never(*args, **kwargs):
        raise AssertionError("made twice")

    monkeypatch.setattr("diffsel.evaluation.cells.train_one", never)
    monkeypatch.setattr("diffsel.scoring.diffusion.Diffusion.load", never)  # without it there is no forward
    monkeypatch.setattr("diffsel.sets.assembly._write_set", never)
    run(file, *words)
    assert capsys.readouterr().out == text
    assert results == {path: path.stat().st_mtime_ns for path in out.rglob("seed-*.json")}
    assert units == {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.safetensors")}


def test_fewer_images_are_read_from_the_same_pass(tmp_path: Path, small, folder) -> None:
    """`selection.images` sees the images that `data.images_per_class` would have kept."""
    from diffsel import method
    from diffsel.data.images import open_data
    from diffsel.runs.session import start

    session = start(str(folder(cat=7, dog=5)), tmp_path / "run", small)
    method.score(session)
    method.embed(session)
    everything = {label: set(candidates(session.run, label).rows) for label in ("cat", "dog")}
    fewer = small.model_copy(update={"selection": small.selection.model_copy(update={"images": 3})})
    session = session.seen(replace(session.run, settings=fewer))
    capped = open_data(session.data.root, small.data.model_copy(update={"images_per_class": 3}), small.seed)
    for label in ("cat", "dog"):
        found = {session.data.rows[row].path for row in candidates(session.run, label).rows}
        assert found == {row.path for row in capped.of_class(label)}
        assert len(everything[label]) > 3
    assert most_patches(session.run, ["cat"])["cat"] < 7 * small.patches.per_image + 1


def test_study_and_tables_are_public_where_pipelines_need_them() -> None:
    assert study.__all__ == ["Case", "main"]
    assert tables.axes([("a", "x")], {("b", "y"): 1.0}) == (["a", "b"], ["x", "y"])
