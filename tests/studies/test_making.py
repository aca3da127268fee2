"""A study's products: kept where they are the ones asked for, refused where what they were made of was replaced."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, TINY, draw

from diffsel.evaluation.bench import Bench
from diffsel.evaluation.networks import build
from diffsel.machine.device import Machine
from diffsel.settings.errors import StoreError
from diffsel.studies import making as products
from diffsel.studies.cases import Case, Job, Scale, plan, read_scale

CONFIGS = ROOT / "configs"
CPU = Machine(torch.device("cpu"))


@pytest.fixture
def world(folder, tmp_path: Path, monkeypatch) -> Scale:
    """Six images of two classes, the tiny checkpoint and a small teacher, all of which may be replaced."""
    monkeypatch.setattr(Bench, "check_teacher", lambda *args, **more: 50.0)  # it is as bad as chance
    root = folder(cat=3, dog=3)
    shutil.copytree(TINY, tmp_path / "model")
    write_teacher(tmp_path / "judge.pth", seed=0)
    (tmp_path / "s.yaml").write_text(
        yaml.safe_dump(
            {
                "datasets": {"toy": {"train": str(root), "val": str(root), "images": 6, "classes": 2}},
                "speed": {"forward": 1, "student": 1},
                "stands": {"teacher": {"resnet18": str(tmp_path / "judge.pth")}, "student": {"resnet18": "conv3w8"}},
                "teachers": {"pupil": {"network": "conv3w8", "size": 16, "epochs": 2, "batch_size": 4, "crop": "none"}},
                "settings": {
                    "model.model": str(tmp_path / "model"),
                    "data.image_size": 64,
                    "compute.device": "cpu",
                    "scoring.draws": 3,
                    "patches.patch_size": 32,
                    "assembly.size": 32,
                    "assembly.factor": 1,
                    "selection.clusters": 2,
                },
            }
        )
    )
    return read_scale(str(tmp_path / "s.yaml"), CONFIGS)


def write_teacher(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    torch.save(build("conv3w8", 2, 32).state_dict(), path)


def jobs_of(scale: Scale, out: Path, *methods: str, **case: object) -> list[Job]:
    cases = [Case(method, "c", "toy", 1, method, **case) for method in methods]  # type: ignore[arg-type]
    return products.prepare(plan(cases, scale, CONFIGS, once=False), scale, out, Bench(CPU))


def make(scale: Scale, out: Path, *methods: str) -> dict[str, Path]:
    return products.make_sets(jobs_of(scale, out, *methods), out, Bench(CPU))


def replace_model(tmp_path: Path) -> None:
    file = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "beta_end": 0.011}))


@pytest.mark.parametrize(
    ("method", "change", "what"),
    [
        ("diffsel", replace_model, "model: stored"),
        ("rded", lambda where: write_teacher(where / "judge.pth", seed=1), "teacher.digest: stored"),
        ("random", lambda where: draw(where / "data" / "cat" / "0.png", 77), "images: stored"),
    ],
)
def test_a_set_is_refused_where_what_it_was_made_of_was_replaced(world, tmp_path: Path, method, change, what) -> None:
    out = tmp_path / "out"
    folders = make(world, out, method)
    bytes_ = {file: file.read_bytes() for path in folders.values() for file in path.rglob("*.png")}
    assert make(world, out, method) == folders
    change(tmp_path)
    with pytest.raises(StoreError, match=rf"{what} [\s\S]*give a new --out, or delete {out}"):
        make(world, out, method)
    assert bytes_ == {file: file.read_bytes() for file in bytes_}
    for folder in (out / "sets", out / "runs"):
        shutil.rmtree(folder, ignore_errors=True)  # what the message says
    assert make(world, out, method) == folders


def test_what_is_there_costs_no_forward_and_no_second_reading(world, tmp_path: Path, monkeypatch) -> None:
    make(world, tmp_path / "out", "diffsel", "rded", "random")
    opened = []

    def reading(*args):
        opened.append(args[0])
        return products_open(*args)

    from diffsel.data import albums as pictures

    products_open = pictures.open_data
    monkeypatch.setattr("diffsel.data.albums.open_data", reading)
    monkeypatch.setattr("diffsel.scoring.diffusion.Diffusion.load", never)
    monkeypatch.setattr("diffsel.evaluation.teachers.Teacher.logits", never)
    make(world, tmp_path / "out", "diffsel", "rded", "random")
    assert len(opened) == 1  # for both baselines


def never(*args, **kwargs):
    raise AssertionError("made twice")


def test_a_trained_teacher_is_kept_and_checked(world, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    jobs_of(world, out, "random", teacher="pupil")
    weights = (out / "teachers" / "toy-pupil" / "best.safetensors").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(products, "train", never)
        patched.setattr("diffsel.data.albums.Album.load", never)
        jobs_of(world, out, "random", teacher="pupil", settings={"data.images_per_class": 2})  # a case's own images
    assert (out / "teachers" / "toy-pupil" / "best.safetensors").read_bytes() == weights
    world.teachers["pupil"]["epochs"] = 1
    with pytest.raises(StoreError, match=r"training\.epochs: stored 2, asked 1\n.*give a new --out, or delete .*toy-pupil"):
        jobs_of(world, out, "random", teacher="pupil")
    world.teachers["pupil"]["epochs"] = 2
    draw(tmp_path / "data" / "cat" / "0.png", 77)
    with pytest.raises(StoreError, match=r"images: stored"):
        jobs_of(world, out, "random", teacher="pupil")


def test_a_timing_is_of_its_model_and_teacher(world, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def timed() -> dict:
        return products.timings(jobs_of(world, out, "diffsel", "rded"), out, Bench(CPU))

    first = timed()
    assert first["diffsel", "c, forwards"].mean == 6 * 3 * 2
    assert timed() == first
    (record,) = (out / "timing").glob("rded-*/*.json")
    about = json.loads(record.read_text())
    assert about["teacher"]
    record.write_text(json.dumps({**about, "teacher": "another"}))
    with pytest.raises(StoreError, match=r"is not of the model and teacher that .* tells; delete .*rded"):
        timed()
    record.write_text(json.dumps(about))
    write_teacher(tmp_path / "judge.pth", seed=1)
    with pytest.raises(StoreError, match=r"teacher.digest: stored [\s\S]*or delete"):
        timed()
    shutil.rmtree(record.parent)
    assert timed()["diffsel", "c, s"] == first["diffsel", "c, s"]
    replace_model(tmp_path)
    with pytest.raises(StoreError, match="model: stored"):
        timed()
