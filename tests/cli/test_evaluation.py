"""The commands about accuracy, from a folder of images to a table, and what they refuse."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import TWO_PROCESSES
from safetensors import safe_open

from diffsel.evaluation.checkpoints import as_safetensors
from diffsel.evaluation.results import spread

TEACH = [
    "--network",
    "conv3w8",
    "--size",
    16,
    "--epochs",
    3,
    "--batch-size",
    8,
    "--learning-rate",
    0.05,
    "--crop",
    "padded",
    "--workers",
    1,
    "-q",
]


@pytest.fixture
def pictures(colours, tmp_path: Path) -> Path:
    colours(train=10, val=6)
    return tmp_path


def test_from_images_to_a_table(diffsel: Callable, pictures: Path) -> None:
    train, val = pictures / "train", pictures / "val"
    code, out, err = diffsel("teacher", train, "--val", val, "--out", pictures / "t", *TEACH)
    assert code == 0, err
    assert "top1" in out
    for method in ("random", "rded", "herding"):
        words = ["select", train, "--method", method, "--ipc", 2, "--factor", 1, "--image-size", 16, "--patch-size", 0]
        judge = ["--teacher", pictures / "t"] if method != "random" else []
        code, out, err = diffsel(*words, "--size", 16, "--out", pictures / method, *judge, "-q")
        assert code == 0, err
        assert ("% on 20 of the images whose crops it judges" in out) == (method == "rded")
    code, out, err = diffsel("relabel", pictures / "random", "--teacher", pictures / "t", "--epochs", 3, "--val", val, "-q")
    assert code == 0, err
    assert "3 epochs of 4 images: 0.0 MB" in out
    assert "% on 12 validation images" in out
    code, out, err = diffsel("relabel", pictures / "random", "--teacher", pictures / "t", "--epochs", 3, "-q")
    assert code == 0, err
    assert "% on 4 images of the set itself" in out
    assert "0 epochs written, 3 were there" in out
    words = ["evaluate", pictures / "random", "--val", val, "--student", "conv3w8", "--epochs", 3, "--students", 2, "-q"]
    code, out, err = diffsel(*words, pictures / "rded", "--teacher", pictures / "t")
    assert code == 0, err
    assert "12 validation images" in out
    assert [line.split()[0] for line in out.splitlines() if "conv3w8  conv3w8  rded-fixed*" in line] == ["random", "rded"]
    assert "rded-fixed* is rded-fixed with epochs = 3" in out
    over = out.split("top-1 over random ± 95%")[1]
    assert re.search(r"rded +conv3w8 +12 +[+-]\d+\.\d.* random$", over, re.MULTILINE)
    results = sorted((pictures / "random-results").rglob("seed-*.json"))
    assert [file.name for file in results] == ["seed-0.json", "seed-1.json"]
    record = json.loads(results[0].read_text())
    assert record["identity"]["protocol"]["resolved"]["batch_size"] == 4
    assert record["teacher_top1"] > 60
    assert record["protocol"] == "rded-fixed with epochs = 3"
    code, out, err = diffsel(*words, "--stored", pictures / "random-labels")
    assert code == 0, err
    assert "over random" not in out  # it was alone
    assert "random  conv3w8 (stored)  conv3w8  rded-fixed*" in out
    assert "stored: all students see the same batches" in out
    stored = [p for p in (pictures / "random-results").rglob("seed-0.json") if p not in results]
    assert json.loads(stored[0].read_text())["loss"] == pytest.approx(record["loss"], rel=2e-2)  # the same batches, in float16
    again = json.loads(stored[0].read_text())
    assert (record["labels"], again["labels"]) == ("online", "stored")
    assert again["identity"]["teacher"] == record["identity"]["teacher"]  # who wrote the labels
    code, out, err = diffsel(*words, "--labels", "hard", "--name", "hard")
    assert code == 0, err
    assert "conv3w8  hard*" in out
    assert "hard* is hard with epochs = 3" in out


SMALL = ["--factor", 1, "--image-size", 16, "--patch-size", 0, "--size", 16, "-q"]


def test_several_sets_are_one_line_that_covers_their_choice(diffsel: Callable, pictures: Path) -> None:
    words = ["select", pictures / "train", "--method", "random", "--whole", "--ipc", 2, *SMALL]
    assert diffsel(*words, "--sets", 3, "--out", pictures / "sets")[0] == 0
    assert diffsel(*words, "--seed", 2, "--out", pictures / "alone")[0] == 0
    assert (pictures / "sets/set-2/B2SUMS").read_bytes() == (pictures / "alone/B2SUMS").read_bytes()  # its seed is the third
    evaluate = [
        "evaluate",
        "--val",
        pictures / "val",
        "--student",
        "conv3w8",
        "--epochs",
        2,
        "--students",
        2,
        "--labels",
        "hard",
    ]
    code, out, err = diffsel(*evaluate, pictures / "sets", pictures / "alone", "-q")
    assert code == 0, err
    several, alone = (next(line for line in out.splitlines() if line.startswith(name)) for name in ("sets", "alone"))
    assert re.search(r"3 x 2 .*\d ± .*\d sets, \d+\.\d\d students", several)
    assert " sets" not in alone
    assert "± of one set covers its students alone" in out
    tops = [
        np.mean([json.loads(file.read_text())["last"]["top1"] for file in one.rglob("seed-*.json")])
        for one in sorted((pictures / "sets").glob("set-*-results"))
    ]
    assert f" {spread(tops)} " in several
    (pictures / "sets/set-0").rename(pictures / "first")
    assert diffsel(*words[:-1], "--quality", 50, "--out", pictures / "sets/set-0", "-q")[0] == 0
    code, _, err = diffsel(*evaluate, pictures / "sets", "-q")
    assert code == 2
    assert "differ in more than chance (assembly: quality" in err or "assembly" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["select", "DATA", "--method", "rded", "--ipc", 1, "--out", "SET"], "--method rded needs a classifier"),
        (["select", "DATA", "--ipc", 1, "--out", "SET", "--teacher", "x"], "--teacher: --method diffsel asks none"),
        (["select", "DATA", "--method", "random", "--ipc", 99, "--out", "SET"], "has 10 patches, but ipc 99"),
        (["evaluate", "DATA", "--val", "DATA", "--student", "conv3", "--teacher", "conv3"], "no public weights of conv3"),
        (["evaluate", "DATA", "--val", "DATA", "--student", "conv9"], "'conv9' (and no file or folder of that name); did you"),
        (["evaluate", "DATA", "--val", "DATA", "--student", "conv3"], "needs a teacher"),
        (
            ["evaluate", "DATA", "--val", "DATA", "--student", "conv3", "--labels", "hard", "--stored", "x"],
            "--stored x, but protocol.labels = hard uses no teacher's labels",
        ),
        (["evaluate", "DATA", "--val", "DATA", "--student", "conv3", "--labels", "hard", "--teacher", "x"], "--teacher x, but"),
        (["evaluate", "DATA", "--val", "nowhere", "--student", "conv3"], "nowhere: no such folder"),
        (["teacher", "DATA", "--network", "conv6", "--size", 32, "--out", "SET"], "too often for 32 x 32"),
        (["experiment", "nowhere.yaml", "--out", "SET"], "nowhere.yaml"),
    ],
)
def test_what_cannot_work_is_refused_by_name(words, message: str, diffsel: Callable, pictures: Path) -> None:
    places = {"DATA": pictures / "train", "SET": pictures / "set"}
    code, _, err = diffsel(*(places.get(word, word) for word in words))
    assert code == 2
    assert message in err
    assert not (pictures / "set").exists()


def test_a_set_may_be_the_folder_one_is_in(diffsel: Callable, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pictures / "train")
    words = ["--val", pictures / "val", "--student", "conv3w8", "--epochs", 1, "--students", 1, "--labels", "hard", "-q"]
    code, out, err = diffsel("evaluate", ".", *words)
    assert code == 0, err
    assert any(line.startswith("train  ") for line in out.splitlines())
    assert len(list((pictures / "train-results").rglob("seed-0.json"))) == 1


def wrong_way_round(teacher: Path) -> Path:
    """The same weights, with the classes recorded in the other order."""
    with safe_open(teacher / "best.safetensors", framework="pt") as file:
        about, state = json.loads(file.metadata()["diffsel"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    told = {"network": about["network"], "classes": about["classes"][::-1], "size": about["size"]}
    (teacher / "wrong.safetensors").write_bytes(as_safetensors(state, told))
    return teacher / "wrong.safetensors"


def test_a_judge_that_takes_one_class_for_the_other_makes_no_set(diffsel: Callable, pictures: Path) -> None:
    assert diffsel("teacher", pictures / "train", "--out", pictures / "t", *TEACH)[0] == 0
    words = ["select", pictures / "train", "--method", "rded", "--ipc", 2, "--image-size", 16, "--patch-size", 0, "--size", 16]
    code, _, err = diffsel(*words, "--teacher", wrong_way_round(pictures / "t"), "--out", pictures / "set", "-q")
    assert code == 2
    assert "on 20 of the images whose crops it judges, no better than chance for 2 classes; with the outputs permuted" in err
    assert not (pictures / "set").exists()


def test_one_of_several_processes_selects_a_baseline(pictures: Path) -> None:
    words = [
        "select",
        str(pictures / "train"),
        "--method",
        "random",
        "--ipc",
        "2",
        "--factor",
        "1",
        "--image-size",
        "16",
        "--patch-size",
        "0",
        "--size",
        "16",
        "--device",
        "cpu",
        "-q",
        "--out",
        str(pictures / "set"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", *TWO_PROCESSES, "-m", "diffsel", *words], check=True, capture_output=True, text=True, timeout=200
    )
    assert done.stdout.count(f"ipc 2: {pictures / 'set'}") == 1


def test_students_are_spread_over_processes(diffsel: Callable, pictures: Path) -> None:
    """Two processes do what one does, each its share; the accuracies are the same."""
    train, val = pictures / "train", pictures / "val"
    words = [
        "evaluate",
        str(train),
        "--val",
        str(val),
        "--student",
        "conv3w8",
        "--epochs",
        "2",
        "--students",
        "3",
        "--labels",
        "hard",
        "-q",
        "--device",
        "cpu",
    ]
    assert diffsel(*words, "--out", pictures / "one")[0] == 0
    subprocess.run(
        [sys.executable, "-m", *TWO_PROCESSES, "-m", "diffsel", *words, "--out", str(pictures / "two")],
        check=True,
        capture_output=True,
        timeout=200,
    )
    one, two = (
        {file.relative_to(pictures / n): json.loads(file.read_text()) for file in (pictures / n).rglob("*.json")}
        for n in ("one", "two")
    )
    assert len(one) == 3
    assert one.keys() == two.keys()
    for file, result in one.items():
        assert {**result, "seconds": 0} == {**two[file], "seconds": 0}


def test_a_repository_of_the_datasets_library_is_evaluated_as_the_folder_it_came_from(
    diffsel: Callable, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout that repositories of the hub have, here on the disk: parquet files of images and labels."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(pictures / "cache"))
    found = datasets.load_dataset(
        "imagefolder", data_dir=str(pictures / "train"), split="train", cache_dir=str(pictures / "cache")
    )
    (pictures / "owner" / "data").mkdir(parents=True)
    found.to_parquet(str(pictures / "owner" / "data" / "train-00000-of-00001.parquet"))
    words = ["--val", pictures / "val", "--student", "conv3w8", "--epochs", 2, "--students", 1, "--config", "hard", "-q"]
    code, out, err = diffsel("evaluate", pictures / "train", f"hub:{pictures / 'owner'}", *words)
    assert code == 0, err
    one, other = (next((pictures / f"{name}-results").rglob("seed-0.json")) for name in ("train", "owner"))
    one, other = (json.loads(file.read_text()) for file in (one, other))
    assert (one["loss"], one["last"]) == (other["loss"], other["last"])  # the same images in the same order
    assert any(line.startswith("owner  ") for line in out.splitlines())
    code, _, err = diffsel("evaluate", "owner/name", *words)
    assert (code, "no such distilled set (a folder of class folders, or hub:OWNER/NAME)" in err) == (2, True)
