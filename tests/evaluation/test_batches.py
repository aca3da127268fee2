"""What a student sees in each epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from students import CPU, QUICK, cell_of

from diffsel.evaluation import batches as relabeling
from diffsel.evaluation import students as evaluation
from diffsel.evaluation.batches import online, plan_epoch, show
from diffsel.evaluation.bench import Bench
from diffsel.evaluation.networks import build
from diffsel.evaluation.storing import stored, write_labels
from diffsel.machine.device import Machine


@pytest.mark.parametrize(("mix", "double"), [("mixup", True), ("mixup", False), ("cutmix", True)])
def test_rdeds_extra_forward_sees_the_batch_before_mixup_and_after_cutmix(
    world, tmp_path: Path, mix: str, double: bool
) -> None:
    cell = cell_of(world, Bench(CPU), QUICK.model_copy(update={"mix": mix, "double_forward": double}))
    pictures, seen = cell.train.load(), []
    network = build("conv3w8", 2, 16)
    network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    write_labels(tmp_path / "l", pictures, cell.protocol, cell.recipe, 5, cell.teacher, 3)
    plan = plan_epoch(pictures, cell.protocol, cell.recipe, 5, 0)[0]
    plain, mixed = (make(pictures, [plan], cell.protocol, cell.recipe) for make in (relabeling.unmixed, show))
    for source in (
        online(pictures, cell.protocol, cell.recipe, 5, cell.teacher),
        stored(tmp_path / "l", pictures, cell.protocol, cell.recipe),
    ):
        seen.clear()
        optimizer = evaluation.make_optimizer(network.train(), cell.protocol, cell.recipe)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        next(evaluation.train_epoch(network, source(0), optimizer, cell.protocol, cell.recipe, CPU, scaler))
        expected = [plain if mix == "mixup" else mixed, mixed] if double else [mixed]
        assert len(seen) == len(expected)
        assert all(torch.equal(one, other) for one, other in zip(seen, expected, strict=True))
    assert not torch.equal(plain, mixed)


def test_an_epoch_shows_every_image_once_and_never_one_alone(world) -> None:
    cell = cell_of(world, Bench(CPU))
    pictures = cell.train.load()
    for size, lengths in ((4, [4, 2]), (5, [6]), (6, [6]), (2, [2, 2, 2])):  # 5 + 1: BatchNorm cannot take one image
        plans = plan_epoch(pictures, cell.protocol, replace(cell.recipe, batch_size=size), 0, 1)
        assert [len(plan.ids) for plan in plans] == lengths
        assert sorted(np.concatenate([plan.ids for plan in plans])) == list(range(6))


def test_seeds_and_epochs_differ(world) -> None:
    cell = cell_of(world, Bench(CPU))
    pictures = cell.train.load()
    seen = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        plan = plan_epoch(pictures, cell.protocol, cell.recipe, seed, epoch)[0]
        seen[seed, epoch] = show(pictures, [plan], cell.protocol, cell.recipe)
    assert not torch.equal(seen[0, 0], seen[0, 1])
    assert not torch.equal(seen[0, 0], seen[1, 0])


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_teacher_labels_in_the_students_precision(world, precision: str, dtype: torch.dtype) -> None:
    """It was asked outside of autocast: a third to a half of a student's arithmetic, on a GPU ten times slower than need be."""
    cell, machine, seen = cell_of(world, Bench(CPU)), Machine(torch.device("cpu"), precision), []
    cell.teacher.network.layers["conv"][0].register_forward_hook(lambda _module, _given, made: seen.append(made.dtype))
    pictures = cell.train.load()
    batch, right = (next(online(pictures, cell.protocol, cell.recipe, 0, cell.teacher, each)(0)) for each in (machine, None))
    assert seen == [dtype, torch.float32]
    assert batch.images.dtype == batch.logits.dtype == torch.float32
    assert torch.equal(batch.images, right.images)
    torch.testing.assert_close(batch.logits, right.logits, rtol=0.02, atol=0.02)
