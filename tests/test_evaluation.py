"""Students: the same batches whatever the labels come from, reproducible, honest statistics, one JSON each."""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import os
import sys
import time
from dataclasses import replace
from multiprocessing.context import ForkProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw, forks, until
from safetensors.numpy import load_file
from scipy.stats import ttest_ind
from tqdm import tqdm

from diffsel.data.albums import match_classes, open_validation, validation_pictures
from diffsel.data.classes import ClassInfo
from diffsel.data.images import open_data
from diffsel.evaluation import batches as relabeling
from diffsel.evaluation import cells as experiment
from diffsel.evaluation import students as evaluation
from diffsel.evaluation.batches import online, plan_epoch, show, stored, write_labels
from diffsel.evaluation.cells import Bench, gather, make_cell, result_file, run_cells, students_at_once
from diffsel.evaluation.networks import build
from diffsel.evaluation.protocols import resolve_recipe
from diffsel.evaluation.results import difference, fairness, spread
from diffsel.evaluation.students import train_student
from diffsel.evaluation.teachers import load_teacher
from diffsel.machine.device import Machine
from diffsel.sets.opening import open_set
from diffsel.settings.errors import ConfigError, DataError, SettingsDiffer, StoreError
from diffsel.settings.sections import DataSettings, ProtocolSettings
from diffsel.settings.settings import resolve

CPU = Machine(torch.device("cpu"))
QUICK = ProtocolSettings(epochs=3, batch_size=4, size=16)


@pytest.fixture
def world(folder, tmp_path: Path):
    """A set of 2 x 3 images of 16 pixels, validation images, and a teacher that is right about half of the time."""
    made = folder("set", (16, 16), ant=3, bee=3)
    val = folder("val", (20, 16), ant=4, bee=4)
    torch.manual_seed(0)
    network = build("conv3w8", 2, 16)
    torch.save(network.state_dict(), tmp_path / "t.pth")
    return open_set(made, factor=2), open_data(str(val), DataSettings(), 0), str(tmp_path / "t.pth")


def cell_of(world, bench: Bench, protocol: ProtocolSettings = QUICK, **options):
    found, val, teacher = world
    return make_cell("tiny", found, val, "conv3w8", protocol, teacher, bench, **options)


class Trusting(Bench):
    """A bench whose teachers need not be good."""

    def check_teacher(self, teacher, album, recorded=True, images="") -> float:
        return 50.0


# ---- batches and labels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", ["cutmix", "mixup", "none"])
@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_stored_labels_give_the_batches_of_online_ones(world, tmp_path: Path, mix, top_k) -> None:
    cell = cell_of(world, Bench(CPU), QUICK.model_copy(update={"mix": mix}))
    pictures = cell.train.load()
    write_labels(tmp_path / "l", pictures, cell.protocol, cell.recipe, 5, cell.teacher, 3, top_k)
    read = stored(tmp_path / "l", pictures, cell.protocol, cell.recipe)
    live = online(pictures, cell.protocol, cell.recipe, 5, cell.teacher)
    for epoch in range(3):
        for ours, theirs in zip(read(epoch), live(epoch), strict=True):
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.labels, theirs.labels)
            assert torch.equal(ours.other, theirs.other)
            assert ours.share == theirs.share
            probability, right = ours.logits.softmax(1), theirs.logits.softmax(1)
            torch.testing.assert_close(probability, right, atol=2e-3, rtol=0)  # float16; two classes: one tells the other


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
    for source in (online(pictures, cell.protocol, cell.recipe, 5, cell.teacher),
                   stored(tmp_path / "l", pictures, cell.protocol, cell.recipe)):  # fmt: skip
        seen.clear()
        optimizer = evaluation.make_optimizer(network.train(), cell.protocol, cell.recipe)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        next(evaluation.train_epoch(network, source(0), optimizer, cell.protocol, cell.recipe, CPU, scaler))
        expected = [plain if mix == "mixup" else mixed, mixed] if double else [mixed]
        assert len(seen) == len(expected)
        assert all(torch.equal(one, other) for one, other in zip(seen, expected, strict=True))
    assert not torch.equal(plain, mixed)


def test_the_largest_logits_are_enough_at_the_protocols_temperature(world) -> None:
    """100 classes, k = 10, T = 20: one value for the rest, from the rest alone, whatever the size of the largest."""
    cell = cell_of(world, Bench(CPU))
    plans = plan_epoch(cell.train.load(), cell.protocol, replace(cell.recipe, batch_size=6), 0, 0)
    logits = np.random.default_rng(0).normal(0, 4, (6, 100)).astype(np.float32)
    logits[:, 0] = 60  # exp(60) leaves nothing of the others' sum in float32
    full = relabeling._all_logits(relabeling._tensors(plans, [logits], 10), 100)
    right, ours = (torch.from_numpy(values / 20).log_softmax(1) for values in (logits, full))
    rest = np.sort(logits, axis=1)[:, :90].mean(1)
    assert np.sort(full, axis=1)[:, :90] == pytest.approx(np.tile(rest[:, None], 90), abs=4e-3)  # float16
    assert (right.exp() * (right - ours)).sum(1).max() < 0.02
    whole = relabeling._all_logits(relabeling._tensors(plans, [logits], 100), 100)
    assert whole == pytest.approx(logits, abs=4e-3, rel=1e-3)


def test_stored_labels_are_as_large_as_was_told_and_resume(world, tmp_path: Path) -> None:
    cell = cell_of(world, Bench(CPU))
    pictures = cell.train.load()
    assert write_labels(tmp_path / "l", pictures, cell.protocol, cell.recipe, 0, cell.teacher, 2) == 2
    assert write_labels(tmp_path / "l", pictures, cell.protocol, cell.recipe, 0, cell.teacher, 3) == 1
    arrays = [load_file(file) for file in sorted((tmp_path / "l").glob("epoch-*"))]
    assert len(arrays) == 3
    kept = ("ids", "partner", "crop", "flip", "rows", "cols", "logits")
    size = sum(value.nbytes for each in arrays for key, value in each.items() if key in kept)
    assert size == relabeling.stored_bytes(6, 2, 3, None, cell.recipe.factor)
    with pytest.raises(SettingsDiffer, match="seed: stored 0, asked 1"):
        write_labels(tmp_path / "l", pictures, cell.protocol, cell.recipe, 1, cell.teacher, 3)


def test_stored_labels_of_something_else_are_refused(world, tmp_path: Path) -> None:
    cell = cell_of(world, Bench(CPU))
    pictures = cell.train.load()
    with pytest.raises(StoreError, match="no stored labels"):
        stored(tmp_path / "nothing", pictures, cell.protocol, cell.recipe)
    write_labels(tmp_path / "l", pictures, cell.protocol, cell.recipe, 0, cell.teacher, 2)
    with pytest.raises(StoreError, match=r"lacks the labels of 1 of the protocol's 3 epochs \(the first: epoch 2\)"):
        stored(tmp_path / "l", pictures, cell.protocol, cell.recipe)
    with pytest.raises(SettingsDiffer, match="mix: stored 'cutmix', asked 'mixup'"):
        stored(tmp_path / "l", pictures, cell.protocol.model_copy(update={"mix": "mixup"}), cell.recipe)
    with pytest.raises(SettingsDiffer, match="teacher: stored"):
        stored(tmp_path / "l", pictures, cell.protocol, cell.recipe, "another")
    write_labels(tmp_path / "k", pictures, cell.protocol, cell.recipe, 0, cell.teacher, 3, 1)
    record = tmp_path / "k" / "labels.yaml"
    record.write_text(record.read_text().replace("rest: mean\n", ""))
    with pytest.raises(SettingsDiffer, match="rest: stored None, asked 'mean'"):  # another rule for the rest
        stored(tmp_path / "k", pictures, cell.protocol, cell.recipe)
    with pytest.raises(ConfigError, match="top_k = 3 must lie between 1 and the number of classes, 2"):
        write_labels(tmp_path / "k", pictures, cell.protocol, cell.recipe, 0, cell.teacher, 2, 3)


def test_lost_and_damaged_labels_are_told_and_written_again(world, tmp_path: Path) -> None:
    cell, out = cell_of(world, Bench(CPU)), tmp_path / "l"
    pictures = cell.train.load()
    (out / "logs").mkdir(parents=True)
    (out / ".part-host-1-x").touch()  # of a start that was killed
    assert write_labels(out, pictures, cell.protocol, cell.recipe, 0, cell.teacher, 4) == 4
    (out / "epoch-001.safetensors").unlink()  # three are left, but not 0, 1 and 2
    with pytest.raises(StoreError, match=r"lacks the labels of 1 of .* epoch 1\)"):
        stored(out, pictures, cell.protocol, cell.recipe)
    (out / "epoch-001.safetensors").write_bytes(b"damaged")
    with pytest.raises(StoreError, match=r"epoch-001\.safetensors is damaged .*; `diffsel relabel` writes it again"):
        list(stored(out, pictures, cell.protocol, cell.recipe)(1))
    assert write_labels(out, pictures, cell.protocol, cell.recipe, 0, cell.teacher, 4) == 1
    assert list(stored(out, pictures, cell.protocol, cell.recipe)(1))


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


def test_hard_labels_weigh_both_classes_of_a_mix() -> None:
    output = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    batch = relabeling.Batch(output, torch.tensor([0, 1]), None, torch.tensor([1, 1]), 0.75)
    own = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    other = (math.log(1 + math.exp(2)) + math.log(1 + math.exp(-1))) / 2
    assert evaluation.batch_loss(output, batch, 20.0, "hard").item() == pytest.approx(0.75 * own + 0.25 * other, rel=1e-6)


# ---- students --------------------------------------------------------------------------------------------------------


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


def test_results_are_written_once_and_never_mixed(world, tmp_path: Path) -> None:
    bench = Trusting(CPU)
    cell = cell_of(world, bench)
    run_cells([cell], range(2), tmp_path / "r", bench)
    files = sorted((tmp_path / "r").rglob("*.json"))
    assert [file.name for file in files] == ["seed-0.json", "seed-1.json"]
    before = {file: file.stat().st_mtime_ns for file in files}
    run_cells([cell], range(2), tmp_path / "r", bench)
    assert before == {file: file.stat().st_mtime_ns for file in files}
    other = cell_of(world, bench, QUICK.model_copy(update={"temperature": 4.0}))
    assert result_file(tmp_path, other, 0, CPU) != result_file(tmp_path, cell, 0, CPU)
    assert result_file(tmp_path, cell, 0, Machine(CPU.device, "bf16")) != result_file(tmp_path, cell, 0, CPU)
    shown = cell_of(world, bench, QUICK.model_copy(update={"report": "best"}))  # only another column of the same results
    assert result_file(tmp_path, shown, 0, CPU) == result_file(tmp_path, cell, 0, CPU)
    named = cell_of(world, bench, QUICK.model_copy(update={"name": "../a b/c"}))
    assert named.identity == cell.identity
    assert result_file(tmp_path, named, 0, CPU).parent.parent == tmp_path
    (line,) = gather([cell], range(2), tmp_path / "r", CPU)
    values = [json.loads(file.read_text())["last"]["top1"] for file in files]
    assert line.top1.mean == pytest.approx(np.mean(values))
    assert line.last == line.top1  # rded-fixed reports the last epoch
    with pytest.raises(StoreError, match=r"seed-2\.json"):
        gather([cell], range(3), tmp_path / "r", CPU)


def test_one_bar_counts_all_students_whoever_trains_them(world, tmp_path: Path) -> None:
    bars: list = []

    def progress(*given, **words):
        bars.append(tqdm(*given, **words, file=io.StringIO()))
        return bars[-1]

    bench = Trusting(CPU, progress=progress)
    cell, other = cell_of(world, bench), cell_of(world, bench, QUICK.model_copy(update={"temperature": 4.0}))
    run_cells([cell], range(1), tmp_path, Trusting(CPU))
    late, real = result_file(tmp_path, other, 1, CPU), experiment.train_one

    def train(*given):  # meanwhile another process ends with the last one
        late.parent.mkdir(exist_ok=True)
        late.write_text(result_file(tmp_path, cell, 0, CPU).read_text())
        return real(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "train_one", train)
        run_cells([cell, other], range(2), tmp_path, bench)
    (bar,) = (bar for bar in bars if bar.desc == "students")
    assert (bar.initial, bar.n, bar.total) == (1, 4, 4)


def timeless(folder: Path) -> dict[str, dict]:
    """Results without what a clock says."""
    return {str(file.relative_to(folder)): {**json.loads(file.read_text()), "seconds": 0} for file in folder.rglob("*.json")}


@forks
def test_students_trained_at_the_same_time_are_those_trained_in_turn(world, tmp_path: Path, monkeypatch) -> None:
    """Two processes at work, each begins with a student of its own before either may go on."""
    real, here = experiment.train_one, tmp_path / "processes"
    here.mkdir()

    def train(cell, seed, bench):
        (here / str(os.getpid())).touch()
        until(lambda: len(list(here.iterdir())) == 2)
        return real(cell, seed, bench)

    bench, two = Trusting(replace(CPU, at_once=1)), Trusting(replace(CPU, at_once=2))
    cells = [cell_of(world, bench), cell_of(world, bench, QUICK.model_copy(update={"temperature": 4.0}))]
    run_cells(cells, range(2), tmp_path / "turn", bench)
    monkeypatch.setattr(experiment, "train_one", train)
    run_cells(cells, range(2), tmp_path / "time", two)
    assert len(list(here.iterdir())) == 2
    assert timeless(tmp_path / "turn") == timeless(tmp_path / "time")
    assert len(timeless(tmp_path / "time")) == 4


@forks
def test_what_a_helper_cannot_do_is_done_here(world, tmp_path: Path, monkeypatch, capfd) -> None:
    real, me, failed = experiment.train_one, os.getpid(), tmp_path / "failed"

    def train(cell, seed, bench):
        if os.getpid() != me:
            failed.touch()
            raise RuntimeError("no memory")
        until(failed.exists)
        return real(cell, seed, bench)

    monkeypatch.setattr(experiment, "train_one", train)
    bench = Trusting(replace(CPU, at_once=2))
    run_cells([cell_of(world, bench)], range(4), tmp_path / "r", bench)
    assert len(timeless(tmp_path / "r")) == 4
    assert "a helping process failed and is missed: RuntimeError: no memory" in capfd.readouterr().err


@forks
def test_helpers_end_with_an_error_here_and_give_their_students_back(world, tmp_path: Path, monkeypatch) -> None:
    me, busy = os.getpid(), tmp_path / "busy"

    def train(cell, seed, bench):
        if os.getpid() != me:
            busy.touch()
            time.sleep(600)
        until(busy.exists)
        raise RuntimeError("no memory")

    monkeypatch.setattr(experiment, "train_one", train)
    bench = Trusting(replace(CPU, at_once=2))
    with pytest.raises(RuntimeError, match="no memory"):
        run_cells([cell_of(world, bench)], range(4), tmp_path / "r", bench)
    assert not [child for child in multiprocessing.active_children() if isinstance(child, ForkProcess)]
    assert not [path for path in (tmp_path / "r").rglob("*") if path.is_file()]  # no claim either


def test_as_many_students_at_a_time_as_there_are_threads_on_a_cpu(monkeypatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert [students_at_once(CPU, n) for n in (1, 7, 8, 20)] == [1, 1, 8, 8]  # few have all threads each, in turn
    assert [students_at_once(replace(CPU, at_once=2), n) for n in (1, 5)] == [1, 2]
    assert students_at_once(replace(CPU, compile=True), 20) == 1
    assert students_at_once(Machine(torch.device("cuda")), 20) == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # whose driver does not survive a fork
    assert students_at_once(CPU, 20) == 1


def test_a_student_that_diverges_is_on_record_and_the_others_go_on(world, tmp_path: Path, monkeypatch) -> None:
    real = evaluation.batch_loss

    def loss(output, batch, temperature, labels):
        return real(output, batch, temperature, labels) * (math.nan if torch.initial_seed() == 1 else 1)

    monkeypatch.setattr(evaluation, "batch_loss", loss)
    bench = Trusting(CPU)
    cell = cell_of(world, bench)
    run_cells([cell], range(3), tmp_path, bench)
    (line,) = gather([cell], range(3), tmp_path, CPU)
    assert line.top1.n == 2
    assert line.failed == {1: "the loss is not a number in epoch 0"}


def test_what_cannot_work_is_refused_before_training(world, folder, tmp_path: Path) -> None:
    found, val, teacher = world
    bench = Bench(CPU)
    with pytest.raises(ConfigError, match="unknown network 'convnext'"):
        make_cell("x", found, val, "convnext", QUICK, teacher, bench)
    with pytest.raises(ConfigError, match="conv5w8 halves images 5 times"):
        make_cell("x", found, val, "conv5w8", QUICK, teacher, bench)
    with pytest.raises(DataError, match="3 images in its smallest class, so ipc 4 cannot be evaluated"):
        make_cell("x", found, val, "conv3w8", QUICK, teacher, bench, ipc=4)
    with pytest.raises(ConfigError, match="needs a teacher"):
        make_cell("x", found, val, "conv3w8", QUICK, None, bench)
    other = open_data(str(folder("other", (16, 16), ant=1, cat=1)), DataSettings(), 0)
    with pytest.raises(DataError, match="lacks 1 of the 2 classes: 'bee'; it has 'ant', 'cat'"):
        make_cell("x", found, other, "conv3w8", QUICK, teacher, bench)
    with pytest.raises(DataError, match="no such distilled set"):
        open_set(tmp_path / "nowhere")
    (tmp_path / "set" / "ant" / "9.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match="the set is damaged"):
        open_set(found.path)


def test_epochs_without_a_step_and_batches_of_one_are_refused(world) -> None:
    with pytest.raises(ConfigError, match=r"accumulate = 3, but an epoch of 6 images has only 2 batches of 4"):
        cell_of(world, Bench(CPU), QUICK.model_copy(update={"accumulate": 3}))
    few = QUICK.model_copy(update={"accumulate": 9, "batch_size": None})  # 10 // 9
    with pytest.raises(ConfigError, match=r"accumulate = 9 make batches of 1 image"):
        cell_of(world, Bench(CPU), few)
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        ProtocolSettings(batch_size=1)


def test_a_teacher_that_slipped_stops_before_it_labels(world, folder, tmp_path: Path) -> None:
    found, _, teacher = world
    val = open_data(str(folder("many", (16, 16), ant=30, bee=30)), DataSettings(), 0)
    bench = Bench(CPU)
    cell = make_cell("x", found, val, "conv3w8", QUICK, teacher, bench)
    with pytest.raises(DataError, match="on 60 validation images, no better than chance for 2 classes"):
        run_cells([cell], range(1), tmp_path / "r", bench)
    assert not (tmp_path / "r").exists()


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_validation_pictures_are_torchvisions(tmp_path: Path) -> None:
    from PIL import Image
    from torchvision.transforms import v2

    for i, (width, height) in enumerate(((50, 37), (37, 50), (36, 36), (91, 36))):
        draw(tmp_path / "v" / "cat" / f"{i}.png", i, width, height)
    data = open_data(str(tmp_path / "v"), DataSettings(), 0)
    ours = validation_pictures(data, data.classes, 32, 36).load()
    theirs = v2.Compose([v2.Resize(36), v2.CenterCrop(32), v2.PILToTensor()])
    for row, mine in zip(data.rows, ours.pixels, strict=True):
        assert torch.equal(mine, theirs(Image.open(tmp_path / "v" / row.path).convert("RGB")))


def test_a_subset_of_validation_classes_and_the_first_files(folder, world) -> None:
    found, _, _ = world
    more = open_data(str(folder("more", (16, 16), bee=3, ant=2, cow=2)), DataSettings(), 0)
    train = found.album(2, 16)
    assert len(train.rows) == 4
    album = validation_pictures(more, train.classes, 16, 16)
    assert [row.label for row in album.rows] == ["ant", "ant", "bee", "bee", "bee"]
    assert album.load().labels.tolist() == [0, 0, 1, 1, 1]
    assert len(validation_pictures(more, train.classes, 16, 16, per_class=1).rows) == 2


def test_all_validation_images_are_read_and_broken_ones_told(folder, world, tmp_path: Path) -> None:
    val = folder("v", (16, 16), ant=3, bee=2)
    (val / "bee" / "9.png").write_bytes(b"broken")
    data = open_validation(str(val), resolve({"data": {"images_per_class": 1}}))
    assert len(data.rows) == 5
    found, _, teacher = world
    told: list[str] = []
    bench = Trusting(CPU, tell=told.append)
    cell = make_cell("x", found, data, "conv3w8", QUICK.model_copy(update={"epochs": 1}), teacher, bench)
    result = experiment.train_one(cell, 0, bench)
    assert result["validation_images"] == {"read": 5, "unreadable": 1}
    assert len(told) == 1
    assert "1 of 6 images cannot be read and are left out; the first: bee/9.png" in told[0]


def test_two_classes_never_share_a_folder(folder) -> None:
    cranes = [ClassInfo("crane_bird", "crane"), ClassInfo("crane_machine", "crane")]
    one = open_data(str(folder("one", (16, 16), crane=1, bee=1)), DataSettings(), 0)
    with pytest.raises(DataError, match=r"'crane_bird' and 'crane_machine' both match 'crane'"):
        match_classes(cranes, one)
    two = replace(one, classes=(ClassInfo("bird", "crane"), ClassInfo("machine", "crane")))
    with pytest.raises(DataError, match="lacks 1 of the 1 classes: 'crane_bird'"):  # which of the two?
        match_classes(cranes[:1], two)


# ---- statistics ------------------------------------------------------------------------------------------------------


def test_the_interval_is_students_t() -> None:
    value = spread([50.0, 51.0, 52.0, 53.0, 54.0])
    assert (value.mean, value.n) == (52, 5)
    assert value.std == pytest.approx(math.sqrt(2.5))
    assert value.ci95 == pytest.approx(2.7764451 * math.sqrt(2.5) / math.sqrt(5), rel=1e-6)
    assert str(value) == "52.0 ± 2.0"
    assert spread([3.0]).ci95 is None
    with pytest.raises(ValueError, match="no student"):
        spread([])


def test_the_improvement_over_random_has_welchs_interval() -> None:
    ours, theirs = [50.0, 51.0, 52.0, 55.0], [40.0, 44.0, 45.0]
    low, high = ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assert difference(spread(ours), spread(theirs)) == f"{52 - 43:+.1f} ± {(high - low) / 2:.1f}"
    assert difference(spread([50.0]), spread(theirs)) == "+7.0"
    assert difference(spread([5.0, 5.0]), spread([6.0, 6.0])) == "-1.0"


def test_fairness_scores_have_the_closed_form_of_dd_ranking() -> None:
    scores = fairness(soft=60, random_soft=50, hard=40, full_hard=90, plain=45, random_plain=43)
    assert scores["IOR"] == 10
    assert scores["HLR"] == 50
    assert scores["LRS"] == pytest.approx(100 * (math.exp(-0.2) - math.exp(-1)) / (math.e - math.exp(-1)))
    assert scores["ARS"] == pytest.approx(100 * (math.exp(0.06) - math.exp(-1)) / (math.e - math.exp(-1)))
    assert set(fairness(soft=60, random_soft=50)) == {"IOR"}


def test_top_five_of_few_classes_is_everything() -> None:
    logits, labels = torch.eye(3), torch.tensor([0, 1, 1])
    assert evaluation.accuracy(logits, labels) == (66.6667, 100.0)


def test_load_teacher_keeps_the_order_of_the_classes_asked_for(world) -> None:
    found, _, teacher = world
    infos = found.album(None, 16).classes
    loaded = load_teacher(teacher, infos, 16, CPU.device)
    assert loaded.rows.tolist() == [0, 1]
    assert resolve_recipe(QUICK, classes=2, ipc=3, factor=2, size=16, student="conv3w8").crop_scale == (0.5, 1.0)
