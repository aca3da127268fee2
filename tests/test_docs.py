"""Every command and snippet of README.md and docs/ runs as it stands, on small data, in the order in which a reader meets them.
Flags are appended only to save time or to name the small model; the last of a flag wins."""

from __future__ import annotations

import ast
import errno
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import small_values
from PIL import Image

from diffsel.machine.tensors import RECOVER

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PASS = ["--config", "small.yaml", "--batch-size", "16", "-q"]
STUDENTS = ["--epochs", "1", "--students", "1", "-q"]
QUICK = {
    "inspect": [],
    "probe": ["--config", "small.yaml", "--images", "2", "-q"],
    "check": ["-q"],
    "trace": [],
    "score": ["--config", "small.yaml"],
    "distill": PASS,
    "select": ["--config", "small.yaml", "-q"],
    "teacher": [*("--network", "conv3w8", "--size", "32", "--epochs", "6", "--batch-size", "8", "--crop", "none"), "-q"],
    "relabel": ["--epochs", "1", "-q"],
    "evaluate": STUDENTS,
    "experiment": ["--epochs", "1", "-q"],
    "prompts": ["--patch-size", "16", "--batch-size", "16", "-q"],
    "suspects": ["-q"],
    "report": ["-q"],
    "export": [],
    "rebuild": ["-q"],
    "apply": [],
}
ELSEWHERE = ("make ", "pip ")  # tried by every run of the tests themselves


def commands(document: Path) -> Iterator[list[str]]:
    """Indented commands, joined where a backslash ends a line."""
    text = document.read_text().replace("\\\n", " ")
    for line in re.findall(r"^    ((?:diffsel|accelerate|scripts/|make|pip|[A-Z0-9_]+=).*)$", text, re.MULTILINE):
        if not line.startswith(ELSEWHERE):
            yield shlex.split(line, comments=True)


def images(where: Path, classes: dict[str, int], count: int) -> None:
    rng = np.random.default_rng(0)
    for name, channel in classes.items():
        (where / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 150, (32, 32, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(where / name / f"{i:04}.jpg")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders that the documents speak of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nobody"))  # nobody is logged in
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("CIFAR10", "cifar10")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    study = tmp_path / "configs/experiments/cifar10.yaml"  # of which every method and protocol is tried, once
    study.write_text(yaml.safe_dump({**yaml.safe_load(study.read_text()), "ipc": [1], "sets": 1, "seeds": 1}))
    nette = yaml.safe_load((ROOT / "configs/datasets/imagenette.yaml").read_text())["data"]["classes"]
    for split, count in (("train", 50), ("val", 4)):
        images(tmp_path / "photos" / split, {"cat": 0, "dog": 2}, count)
        images(tmp_path / "cifar10" / split.replace("val", "test"), {"automobile": 0, "ship": 2}, count)
        images(tmp_path / ("unseen" if split == "train" else "test"), {"automobile": 0, "ship": 2}, count)
    images(tmp_path / "imagenet/train", dict.fromkeys(nette, 0), 24)
    values = {**small_values(), "data": {"image_size": 32}, "scoring": {"draws": 1, "bins": 1}}
    patches = {"patch_size": 16, "per_image": 4, "stride": 4}
    Path("small.yaml").write_text(yaml.safe_dump({**values, "patches": patches, "assembly": {"size": 32}}))
    words = {a: {"name": a, "description": f"all {a}", "other": b} for a, b in (("cat", "dog"), ("dog", "cat"))}
    Path("words.yaml").write_text(yaml.safe_dump(words))
    return tmp_path


def test_commands_of_the_documents_run(world: Path, diffsel) -> None:
    seen: set[str] = set()
    for document in DOCUMENTS:
        for words in commands(document):
            told = f"{document.name}: {shlex.join(words)}"
            while "=" in words[0]:
                words = words[1:]
            if words[0] == "accelerate":
                if "--config_file" in words:
                    assert (ROOT / words[words.index("--config_file") + 1]).is_file(), told
                words = words[2:] if "-m" not in words else words[words.index("-m") + 1 :]
            if words[0] != "diffsel":  # what they do is in test_pipelines.py
                assert (ROOT / next(word for word in words if "/" in word)).is_file(), told
                continue
            name, *rest = (os.path.expandvars(word) for word in words[1:])
            seen.add(name)
            quick = QUICK[name]
            if name == "prompts" and "--val" in rest:
                quick = [*quick, *STUDENTS, "--labels", "soft"]
            if name == "experiment":  # the head of that file says so too
                teacher = ("unseen", *QUICK["teacher"], "--out", "teacher-conv3")
                assert diffsel("teacher", *teacher)[0] == 0
            if "--drop-below" in rest:  # that every class of a random model keeps enough is luck
                quick = [*quick, "--drop-below=-99"]
            code, _, err = diffsel(name, *rest, *quick)
            if "--push" in rest:
                assert (code, "hf auth login" in err) == (2, True), told
            else:
                assert (code, "error" in err) == (0, False), f"{told}\n{err}"
    assert seen == set(QUICK)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_documents_link_to_is_there(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", document.read_text()):
        assert target.startswith("https://") or (document.parent / target).exists(), target


def literals() -> str:
    """All texts in the code, and the messages that are put together from two of them."""
    trees = [ast.parse(file.read_text()) for file in (ROOT / "diffsel").rglob("*.py")]
    found = [n.value for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    found += [f" exists and is not {what}; give a new or empty folder" for what in ("a run", "a distilled set")]
    found += [str(OSError(code, os.strerror(code), "FILE")) for code in (errno.ENOSPC, errno.EROFS, errno.ENOENT)]
    return "\n".join([*found, f"is damaged (checksum differs); {RECOVER}", f"damaged (...); {RECOVER}"])


def test_every_fault_told_has_its_test_and_its_message_as_it_is() -> None:
    table = (ROOT / "docs/cost.md").read_text().partition("| fault |")[2].splitlines()
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in table if line.endswith("` |")]
    tests, texts = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py")), literals()
    assert len(rows) == 94
    for fault, _, message, test in rows:
        assert f"def {test.strip('`')}(" in tests, fault
        for part in re.split(r"<[\w ]+>", message.strip("`")):
            assert part.strip(" :';)") in texts, (fault, part)
