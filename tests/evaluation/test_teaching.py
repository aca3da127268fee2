"""`diffsel teacher`: learns, resumes to the same weights, and its file is a teacher for what comes after."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import accelerate.optimizer
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from waits import CUDA, Waits, a_gpu

from diffsel.data.albums import validation_pictures
from diffsel.data.images import open_data
from diffsel.data.views import mean_and_deviation, normalise
from diffsel.evaluation.bench import Bench
from diffsel.evaluation.checkpoints import read_checkpoint
from diffsel.evaluation.cutting import Held, Order, Shown, fits, no_room, training_transform
from diffsel.evaluation.networks import build
from diffsel.evaluation.tasks import loaders_of, train_teacher
from diffsel.evaluation.teachers import load_teacher
from diffsel.evaluation.teaching import _resume, _save, _train_epoch, rate
from diffsel.evaluation.teaching import train as teach
from diffsel.machine import files
from diffsel.machine.device import Machine
from diffsel.machine.processes import Workers
from diffsel.machine.progress import quiet
from diffsel.sets.difficulty import read_records
from diffsel.settings.errors import ConfigError, DataError, SettingsDiffer, StoreError
from diffsel.settings.sections import ComputeSettings, DataSettings
from diffsel.settings.settings import resolve
from diffsel.settings.training import TrainingSettings

CPU = Machine(torch.device("cpu"))
QUICK = TrainingSettings(network="conv3w8", size=16, epochs=4, batch_size=8, learning_rate=0.05, crop="padded")


@pytest.fixture
def images(colours, tmp_path: Path):
    colours(train=12, val=10)
    train, val = (open_data(str(tmp_path / split), DataSettings(), 0) for split in ("train", "val"))
    return train, validation_pictures(val, train.classes, 16, 16).load()


def test_it_learns_and_its_file_is_a_teacher(images, tmp_path: Path) -> None:
    train, val = images
    line = teach(train, val, tmp_path / "t", QUICK, 0, Bench(CPU))
    lines = [json.loads(text) for text in (tmp_path / "t" / "metrics.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in lines] == [0, 1, 2, 3]
    assert lines[-1] == line
    assert lines[-1]["loss"] < lines[0]["loss"]
    found = read_checkpoint(str(tmp_path / "t"))
    assert found.accuracy == max(entry["top1"] for entry in lines) >= 90
    assert found.classes == ("blue", "red")
    teacher = load_teacher(str(tmp_path / "t"), [train.classes[1], train.classes[0]], 16, CPU.device)
    assert teacher.rows.tolist() == [1, 0]  # by name, in the order asked for
    with pytest.raises(ConfigError, match=r"32 x 32 pixels \(it was trained at 16 pixels\): --size 16 .* shows it such"):
        load_teacher(str(tmp_path / "t"), train.classes, 32, CPU.device)


def test_records_say_how_hard_each_image_was_when_it_was_shown(images, tmp_path: Path) -> None:
    """One batch holds all images: in the first epoch, all are shown to the network as it was built."""
    train, _ = images
    whole = QUICK.model_copy(update={"record": True, "crop": "none", "flip": False, "batch_size": 24, "epochs": 2})
    teach(train, None, tmp_path / "t", whole, 0, Bench(CPU))
    found = read_records(tmp_path / "t")
    assert found.digests == [row.digest for row in train.rows]
    assert found.el2n.shape == found.right.shape == (2, 24)
    torch.manual_seed(0)
    network = build("conv3w8", 2, 16)
    cut = training_transform(whole)
    with torch.no_grad():
        output = network(normalise(torch.stack([cut(train.image(row)) for row in train.rows])))
    labels = torch.tensor([train.classes[0].folder != row.label for row in train.rows]).long()
    error = output.softmax(1) - torch.nn.functional.one_hot(labels, 2)
    assert np.abs(found.el2n[0] - error.norm(dim=1).numpy()).max() < 1e-3  # float16
    assert (found.right[0] == (output.argmax(1) == labels).numpy()).all()
    (lost := tmp_path / "t" / "records" / "epoch-001.safetensors").rename(kept := tmp_path / "kept")
    with pytest.raises(StoreError, match="records holds 1 of 2 epochs"):
        teach(train, None, tmp_path / "t", whole, 0, Bench(CPU))
    lost.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"epoch-001.safetensors is damaged"):
        teach(train, None, tmp_path / "t", whole, 0, Bench(CPU))
    lost.write_bytes(kept.read_bytes())
    (tmp_path / "t" / "records" / "images.safetensors").write_bytes(kept.read_bytes())
    with pytest.raises(StoreError, match=r"images.safetensors holds no digests of images"):
        teach(train, None, tmp_path / "t", whole, 0, Bench(CPU))
    teach(train, None, tmp_path / "u", whole.model_copy(update={"record": False}), 0, Bench(CPU))
    assert load_file(tmp_path / "t" / "last.safetensors").keys() == load_file(tmp_path / "u" / "last.safetensors").keys()
    for name, value in load_file(tmp_path / "t" / "last.safetensors").items():
        assert torch.equal(value, load_file(tmp_path / "u" / "last.safetensors")[name]), name


def test_the_loss_scale_of_fp16_is_kept_too(tmp_path: Path) -> None:
    """The scale was halved, two good steps ago: with the first one a resumed training would skip a step again."""
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    scaler, fresh = (torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=100) for _ in range(2))
    for value in (math.inf, 1.0, 1.0):  # an overflow, then two good steps
        optimizer.zero_grad()
        scaler.scale(value * network(torch.ones(1, 2)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**15
    settings = QUICK.model_copy(update={"epochs": 2, "save_every": 1})
    _save(tmp_path, network, optimizer, scaler, {"classes": ["a", "b"]}, {"epoch": 0}, -1.0, settings)
    assert _resume(tmp_path, network, optimizer, fresh) == (1, -1.0)
    assert fresh.state_dict() == scaler.state_dict()


def test_small_images_are_cut_in_memory_as_one_by_one(images) -> None:
    """A crop of the padded image, mirrored or not: the same windows, whichever images are asked for together."""
    train, _ = images
    held = Held(train, QUICK, 3, quiet)
    assert fits(train, QUICK)
    assert not fits(train, QUICK.model_copy(update={"crop": "resized"}))
    pixels, labels, ids = held.__getitems__([24 + 5, 24 + 0, 24 + 23])
    assert ids.tolist() == [5, 0, 23]
    again = held.__getitems__([24 + 23])
    assert torch.equal(pixels[2], again[0][0])
    assert labels.tolist() == [0, 0, 1]
    middle = training_transform(QUICK.model_copy(update={"crop": "none", "flip": False}))
    for place, i in enumerate((5, 0, 23)):
        padded = torch.nn.functional.pad(middle(train.image(train.rows[i])), (2,) * 4)
        top, left = held.corner[:, i].tolist()
        window = padded[:, top : top + 16, left : left + 16]
        assert torch.equal(pixels[place], window.flip(2) if held.mirrored[i] else window)
    first = held.__getitems__([5])[0]  # another epoch, and back
    assert torch.equal(held.__getitems__([24 + 5])[0][0], pixels[0])
    assert torch.equal(held.__getitems__([5])[0], first)


def test_crops_and_mirrors_are_spread_evenly(images) -> None:
    train, _ = images
    held = Held(train, QUICK, 0, quiet)
    corners, mirrored = [], []
    for epoch in range(200):
        held.__getitems__([24 * epoch])
        corners.append(held.corner.flatten())
        mirrored.append(held.mirrored)
    counts = torch.bincount(torch.cat(corners))
    assert len(counts) == 5  # 0 to twice the padding of 2
    assert (counts.float() / counts.sum() - 0.2).abs().max() < 0.02
    assert abs(torch.cat(mirrored).float().mean() - 0.5) < 0.03


def test_loaders_that_do_not_fork_take_the_images_along(images) -> None:
    """As on macOS, and everywhere from Python 3.14 on."""
    train, _ = images
    settings = QUICK.model_copy(update={"crop": "resized"})
    loader = DataLoader(Shown(train, settings, 0), 8, num_workers=1, multiprocessing_context="spawn")
    pixels, labels, _ = next(iter(loader))
    alone, _, _ = Shown(train, settings, 0)[0]
    assert torch.equal(pixels[0], alone)
    assert labels.tolist() == [0] * 8


def test_a_batch_that_processes_cannot_share_is_refused_before_images_are_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    settings = resolve({"training": {"network": "conv3", "size": 32, "batch_size": 64}})
    with pytest.raises(ConfigError, match=r"training.batch_size = 64 cannot be divided among 3 processes; take 63"):
        train_teacher(str(tmp_path / "nowhere"), tmp_path / "t", settings)


def test_no_image_is_ever_a_batch_alone(images, tmp_path: Path) -> None:
    train, _ = images  # 24 images: 23 and 1
    deep = QUICK.model_copy(update={"network": "resnet18", "epochs": 1, "batch_size": 23})  # 1 x 1 pixel in the last layers
    line = teach(train, None, tmp_path / "t", deep, 0, Bench(CPU))
    assert math.isfinite(line["loss"])
    alone = replace(train, rows=train.rows[:1])
    with pytest.raises(DataError, match="holds 1 image; a teacher needs 2 or more"):
        teach(alone, None, tmp_path / "a", QUICK, 0, Bench(CPU))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_stopped_training_goes_on_to_the_same_weights(images, tmp_path: Path, monkeypatch, optimizer: str) -> None:
    from diffsel.evaluation import teaching

    train, val = images
    settings = QUICK.model_copy(update={"optimizer": optimizer, "learning_rate": 0.01})
    teach(train, val, tmp_path / "whole", settings, 0, Bench(CPU))
    real, calls = teaching._train_epoch, []

    def dies(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(teaching, "_train_epoch", dies)
    with pytest.raises(KeyboardInterrupt):
        teach(train, val, tmp_path / "cut", settings, 0, Bench(CPU))
    monkeypatch.setattr(teaching, "_train_epoch", real)
    teach(train, val, tmp_path / "cut", settings, 0, Bench(CPU))
    for name in ("best.safetensors", "last.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    cut, whole = ([json.loads(x) for x in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in ("cut", "whole"))
    assert [{**entry, "seconds": 0} for entry in cut] == [{**entry, "seconds": 0} for entry in whole]


def test_other_settings_and_strange_folders_are_refused(images, tmp_path: Path) -> None:
    train, val = images
    teach(train, val, tmp_path / "t", QUICK, 0, Bench(CPU))
    with pytest.raises(SettingsDiffer, match=r"training.epochs: stored 4, asked 5"):
        teach(train, val, tmp_path / "t", QUICK.model_copy(update={"epochs": 5}), 0, Bench(CPU))
    for name in ("best", "last"):  # which is not called trained
        whole = (file := tmp_path / "t" / f"{name}.safetensors").read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ConfigError, match=rf"{name}.safetensors is damaged"):
            teach(train, val, tmp_path / "t", QUICK, 0, Bench(CPU))
        file.write_bytes(whole)
    (tmp_path / "t" / "teacher.yaml").write_bytes((tmp_path / "t" / "teacher.yaml").read_bytes() + b"# edited")
    with pytest.raises(StoreError, match=r"teacher.yaml is not what B2SUMS tells .*; train it anew"):
        teach(train, val, tmp_path / "t", QUICK, 0, Bench(CPU))
    (tmp_path / "begun" / "logs").mkdir(parents=True)  # of a tracker
    (gone := subprocess.Popen(["true"])).wait()
    (tmp_path / "begun" / f".part-{files._host()}-{gone.pid}-abc").touch()  # of a start that was killed
    teach(train, None, tmp_path / "begun", QUICK.model_copy(update={"epochs": 1}), 0, Bench(CPU))
    assert not list((tmp_path / "begun").glob(".part-*"))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").touch()
    with pytest.raises(StoreError, match="exists and is not a teacher"):
        teach(train, val, tmp_path / "x", QUICK, 0, Bench(CPU))
    with pytest.raises(ConfigError, match=r"is no number in epoch \d; lower training.learning_rate"):
        teach(train, val, tmp_path / "n", QUICK.model_copy(update={"learning_rate": 1e30}), 0, Bench(CPU))


def test_images_are_cut_by_epoch_and_number_alone(images) -> None:
    train, _ = images
    shown, other = Shown(train, QUICK, 0), Shown(train, QUICK, 1)
    first, _, index = shown[5]
    assert index == 5
    torch.manual_seed(99)
    assert torch.equal(shown[5][0], first)
    assert not torch.equal(shown[len(train.rows) + 5][0], first)
    assert not torch.equal(other[5][0], first)
    order = Order(24, 0)
    assert sorted(order) == list(range(24))
    before = list(order)
    order.epoch = 2
    assert sorted(order) == list(range(48, 72))
    assert [i - 48 for i in order] != before


@pytest.mark.parametrize("crop", ["resized", "padded", "none"])
def test_every_crop_has_the_size(crop: str) -> None:
    cut = training_transform(QUICK.model_copy(update={"crop": crop}))
    assert cut(Image.new("RGB", (50, 40))).shape == (3, 16, 16)


def test_rates() -> None:
    step = TrainingSettings(epochs=90)
    assert [rate(step, e) for e in (0, 29, 30, 60, 89)] == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.001])  # torchvision's
    cosine = TrainingSettings(epochs=10, warmup=2, schedule="cosine")
    assert [rate(cosine, e) for e in (0, 1, 2)] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1])
    assert rate(cosine, 6) == pytest.approx(0.05)
    assert math.isclose(rate(cosine, 9), 0.05 * (1 + math.cos(math.pi * 7 / 8)))


def test_a_step_on_a_gpu_waits_for_no_copy(monkeypatch) -> None:
    """How many images a batch has was sent up in every step."""

    class Alone:
        device, autocast, backward = CUDA, nullcontext, staticmethod(lambda loss: None)
        reduce = staticmethod(lambda each, how: total)  # what the host asks for at the end

    total = torch.ones(3)
    with a_gpu(monkeypatch):
        mean_and_deviation(CUDA)
        with CUDA:
            network = build("conv3w8", 2, 16)
            batch = torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.zeros(4, dtype=torch.long), torch.arange(4)
        optimizer = torch.optim.SGD(network.parameters())
        with Waits() as waits:
            _train_epoch(network, [batch] * 3, optimizer, Alone(), QUICK, 0)
    assert waits.seen == []


def test_a_stopped_training_counts_its_steps_on_the_host(images, tmp_path: Path, monkeypatch) -> None:
    """On the device AdamW asks for them one by one, in each step; accelerate would bring what it finds in an optimizer."""
    moved, move = [], accelerate.optimizer.move_to_device
    spy = lambda what, device: (moved.append(what), move(what, device))[1]  # noqa: E731
    monkeypatch.setattr(accelerate.optimizer, "move_to_device", spy)
    t = QUICK.model_copy(update={"optimizer": "adamw", "epochs": 1})
    for epochs in (1, 2):
        monkeypatch.setattr("diffsel.evaluation.teaching.is_mine", lambda *_: True)
        teach(images[0], None, tmp_path, t.model_copy(update={"epochs": epochs}), 0, Bench(CPU))
    assert len(moved) > 2
    assert not any(isinstance(each, torch.Tensor) for each in moved)


CORES = [({}, 1, 16), ({}, 8, 2), ({}, 32, 1), ({"workers": 3}, 1, 3), ({"workers": 99}, 2, 8)]


@pytest.mark.parametrize(("asked", "beside", "count"), CORES)
def test_loaders_follow_the_cores(monkeypatch, asked: dict[str, int], beside: int, count: int) -> None:
    """Four gave 1,400 images a second, where a GPU wants 2,500 to 5,000."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(16)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(beside))
    assert loaders_of(ComputeSettings(**asked), Workers()) == count


@pytest.mark.parametrize(
    ("lacking", "told"),
    [
        ((resource.RLIMIT_NOFILE, 70), r"may hold 70 files open, and needs 96 \(ulimit -n\)"),
        ((resource.RLIMIT_FSIZE, 1000), r"a file may have 1,000 bytes, and a batch takes 6,144 \(ulimit -f\)"),
        (20_000, r"has 20,000 bytes left, and 49,152 are needed \(docker run --shm-size\)"),
    ],
)
def test_one_process_reads_where_more_would_wait_for_ever(
    lacking: tuple[int, int] | int, told: str, colours: Callable[..., None], tmp_path: Path, monkeypatch, caplog
) -> None:
    colours(train=8)
    data = open_data(str(tmp_path / "train"), DataSettings(), 0)
    how = QUICK.model_copy(update={"size": 16, "batch_size": 8, "epochs": 1})
    monkeypatch.setattr("diffsel.evaluation.teaching.fits", lambda *_: False)
    teach(data, None, tmp_path / "alone", how, 0, Bench(CPU))
    assert not no_room(2, 6144)
    limit = resource.getrlimit
    if isinstance(lacking, tuple):
        kind, most = lacking
        monkeypatch.setattr(resource, "getrlimit", lambda asked: (most, most) if asked == kind else limit(asked))
    else:
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=lacking))
    assert re.search(told, no_room(2, 6144))
    teach(data, None, tmp_path / "lacking", how, 0, Bench(CPU), 2)
    assert re.search(f"note: images are read by one process: .*{told}", caplog.text)
    weights = [(tmp_path / name / "best.safetensors").read_bytes() for name in ("alone", "lacking")]
    assert weights[0] == weights[1]
