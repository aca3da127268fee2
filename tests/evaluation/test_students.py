"""One student learns, the same for the same seed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from students import CPU, cell_of
from waits import CUDA, Waits, a_gpu

from diffsel.data.albums import Pictures
from diffsel.data.classes import ClassInfo
from diffsel.data.images import open_data
from diffsel.data.views import mean_and_deviation
from diffsel.evaluation import batches as relabeling
from diffsel.evaluation import cells as experiment
from diffsel.evaluation import students as evaluation
from diffsel.evaluation.batches import online
from diffsel.evaluation.bench import Bench
from diffsel.evaluation.cells import make_cell
from diffsel.evaluation.fixed import source_of
from diffsel.evaluation.networks import build
from diffsel.evaluation.protocols import resolve_recipe
from diffsel.evaluation.storing import write_labels
from diffsel.evaluation.students import Diverged, train_student
from diffsel.evaluation.teachers import Teacher
from diffsel.machine import captured
from diffsel.machine.device import Machine
from diffsel.sets.opening import open_set
from diffsel.settings.sections import DataSettings
from diffsel.settings.training import ProtocolSettings


def test_hard_labels_weigh_both_classes_of_a_mix() -> None:
    output = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    batch = relabeling.Batch(output, *torch.tensor([[0, 1], [1, 0]]), torch.tensor([0, 1]), None, torch.tensor([1, 1]), 0.75)
    own = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    other = (math.log(1 + math.exp(2)) + math.log(1 + math.exp(-1))) / 2
    assert evaluation.batch_loss(output, batch, 20.0, "hard").item() == pytest.approx(0.75 * own + 0.25 * other, rel=1e-6)


def test_the_same_seed_gives_the_same_student(world) -> None:
    cell, out = cell_of(world, Bench(CPU)), []
    pictures, val = cell.train.load(), cell.validation.load()
    torch.backends.cudnn.allow_tf32 = True  # as torch has it, and as no student in fp32 may
    for seed in (3, 3, 4):
        source = online(pictures, cell.protocol, cell.recipe, seed, cell.teacher)
        out.append(train_student("conv3w8", source, val, cell.protocol, cell.recipe, seed, CPU))
        del out[-1]["seconds"]
    assert out[0] == out[1]
    assert out[0]["loss"] != out[2]["loss"]
    assert not torch.backends.cudnn.allow_tf32


def test_a_student_learns_what_can_be_learned(colours, tmp_path: Path) -> None:
    """Two classes told apart by colour: hard labels bring a fresh student from chance to near certainty."""
    colours(set=8, val=20)
    found = open_set(tmp_path / "set")
    val = open_data(str(tmp_path / "val"), DataSettings(), 0)
    protocol = ProtocolSettings(labels="hard", epochs=25, batch_size=8, mix="none", evaluate_every=1)
    cell = make_cell("colours", found, val, "conv3w8", protocol, None, Bench(CPU))
    result = experiment.train_one(cell, 0, Bench(CPU))
    assert result["best"]["top1"] >= 95
    assert result["loss"][-1] < result["loss"][0] / 2
    assert result["best"]["top1"] == max(top1 for _, top1, _ in result["evaluations"])
    assert result["last"]["epoch"] == 24
    assert result["images_seen"] == 25 * 16
    assert np.mean(result["last"]["per_class"]) == pytest.approx(result["last"]["top1"])


def test_a_network_that_says_no_numbers_has_no_accuracy() -> None:
    network = build("conv3w8", 2, 16)
    with torch.no_grad():
        network.classifier.bias[0] = torch.nan
    pictures = Pictures(torch.zeros((2, 3, 16, 16), dtype=torch.uint8), torch.tensor([0, 1]), (), "none")
    with pytest.raises(Diverged, match="its output is not a number in epoch 3"):
        evaluation.measure(network, pictures, CPU, 3)


def test_top_five_of_few_classes_is_everything() -> None:
    logits, labels = torch.eye(3), torch.tensor([0, 1, 1])
    assert evaluation.accuracy(logits, labels) == (66.6667, 100.0)


@pytest.mark.parametrize("kind", ["online", "stored", "fixed"])
@pytest.mark.parametrize("each", [4, 600])  # images a class: an epoch among several made at once; one made batch by batch
def test_a_step_on_a_gpu_waits_for_no_copy(tmp_path: Path, monkeypatch, kind: str, each: int) -> None:
    """Ten copies a step blocked, and every loss was asked for: of a small network that is most of its time."""
    protocol = ProtocolSettings(epochs=1, size=16, labels="fixed" if kind == "fixed" else "soft")
    recipe = resolve_recipe(protocol, classes=2, ipc=each, factor=2, size=16, student="conv3w8")
    pixels, labels = torch.zeros(2 * each, 3, 16, 16, dtype=torch.uint8), torch.arange(2).repeat_interleave(each)
    pictures = Pictures(pixels, labels, (ClassInfo("a", "a"), ClassInfo("b", "b")), "none")

    def teacher(device: torch.device) -> Teacher:
        with device:
            return Teacher("conv3w8", "", build("conv3w8", 2, 16).eval(), torch.arange(2), None, "")

    if kind == "stored":
        write_labels(tmp_path, pictures, protocol, recipe, 0, teacher(CPU.device), 1)
    with a_gpu(monkeypatch):
        shown, machine = pictures.to(CUDA), Machine(CUDA)
        mean_and_deviation(CUDA)  # go up once for all students
        source = source_of(shown, protocol, recipe, 0, teacher(CUDA), tmp_path if kind == "stored" else None, machine)
        with CUDA:
            network = build("conv3w8", 2, 16)
        optimizer = evaluation.make_optimizer(network, protocol, recipe)
        monkeypatch.setattr(optimizer, "step", lambda: None)
        scaler = torch.amp.GradScaler("cuda", enabled=False)
        monkeypatch.setattr(captured, "new_pool", lambda: 1)
        monkeypatch.setattr(captured, "record", lambda work, pool: (lambda: None, work()))
        with Waits() as waits:
            steps = list(evaluation.train_epoch(network, source(0), optimizer, protocol, recipe, machine, scaler))
            losses = torch.stack([step.loss for step in steps])
        assert losses.device == CUDA
    assert len(steps) == -(-2 * each // recipe.batch_size)
    assert waits.seen == []
