"""Labels stored once for all students."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from students import CPU, QUICK, cell_of

from diffsel.evaluation import storing as relabeling
from diffsel.evaluation.batches import online, plan_epoch, show
from diffsel.evaluation.bench import Bench
from diffsel.evaluation.storing import stored, write_labels
from diffsel.machine.processes import Workers
from diffsel.settings.errors import ConfigError, SettingsDiffer, StoreError, Withheld


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


def test_the_largest_logits_are_enough_at_the_protocols_temperature(world) -> None:
    """100 classes, k = 10, T = 20: one value for the rest, from the rest alone, whatever the size of the largest."""
    cell = cell_of(world, Bench(CPU))
    plans = plan_epoch(cell.train.load(), cell.protocol, replace(cell.recipe, batch_size=6), 0, 0)
    logits = np.random.default_rng(0).normal(0, 4, (6, 100)).astype(np.float32)
    logits[:, 0] = 60  # exp(60) leaves nothing of the others' sum in float32
    full = relabeling._all_logits(relabeling._tensors(plans, torch.from_numpy(logits), 10), 100)
    right, ours = (torch.from_numpy(values / 20).log_softmax(1) for values in (logits, full))
    rest = np.sort(logits, axis=1)[:, :90].mean(1)
    assert np.sort(full, axis=1)[:, :90] == pytest.approx(np.tile(rest[:, None], 90), abs=4e-3)  # float16
    assert (right.exp() * (right - ours)).sum(1).max() < 0.02
    whole = relabeling._all_logits(relabeling._tensors(plans, torch.from_numpy(logits), 100), 100)
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


def test_a_crop_inside_a_tile_shows_no_other_tile_and_labels_are_for_it(world, tmp_path: Path) -> None:
    """Every quarter of each picture has one colour of its own: no view may show two."""
    protocol = QUICK.model_copy(update={"tile_crop": True, "mix": "none"})
    cell = cell_of(world, Bench(CPU), protocol)
    pictures = cell.train.load()
    pictures.pixels[:, :, :8], pictures.pixels[:, :, 8:] = 50, 100
    pictures.pixels[:, :, :, 8:] += 100
    plans = plan_epoch(pictures, protocol, cell.recipe, 0, 0)
    seen = show(pictures, plans, protocol, cell.recipe)
    assert seen.amax((2, 3)) == pytest.approx(seen.amin((2, 3)), abs=1e-4)
    assert len(seen[:, 0, 0, 0].round(decimals=3).unique()) > 1
    write_labels(tmp_path / "l", pictures, protocol, cell.recipe, 0, cell.teacher, 3)
    assert list(stored(tmp_path / "l", pictures, protocol, cell.recipe)(0))
    with pytest.raises(SettingsDiffer, match="tile_crop: stored True, asked False"):
        stored(tmp_path / "l", pictures, protocol.model_copy(update={"tile_crop": False}), cell.recipe)


def test_processes_share_the_epochs_and_write_the_same_bytes(world, tmp_path: Path, monkeypatch) -> None:
    """Every process labelled every epoch: eight GPUs took as long as one.  Threads stand for processes here."""
    cell, written = cell_of(world, Bench(CPU)), []
    pictures, write = cell.train.load(), relabeling.write_unit
    monkeypatch.setattr(relabeling, "write_unit", lambda file, *what: (written.append(file.name), write(file, *what)))

    def label(out: Path, index: int, count: int) -> int:
        workers = Workers()
        workers.index, workers.count = index, count
        return write_labels(out, pictures, cell.protocol, cell.recipe, 0, cell.teacher, 12, workers=workers)

    assert label(tmp_path / "one", 0, 1) == 12
    written.clear()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(partial(label, tmp_path / "two", count=2), range(2)))
    assert sorted(written) == [f"epoch-{epoch:03d}.safetensors" for epoch in range(12)]
    for name in written:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_labels_of_another_user_that_cannot_be_read_stay(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cell_of(world, Bench(CPU))
    how = cell.train.load(), cell.protocol, cell.recipe, 0, cell.teacher, 2
    write_labels(tmp_path / "l", *how)
    file, opened = tmp_path / "l/epoch-001.safetensors", Path.open
    whole = file.read_bytes()

    def guarded(path: Path, *args: object, **more: object):
        if path == file:
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **more)

    def lost(path: Path, **more: object):  # as safetensors says of it
        if path == file:
            raise FileNotFoundError(f"No such file or directory: {path}")
        return safe_open(path, **more)

    monkeypatch.setattr(Path, "open", guarded)
    monkeypatch.setattr("diffsel.machine.tensors.safe_open", lost)
    with pytest.raises(Withheld, match=r"epoch-001\.safetensors: Permission denied"):
        write_labels(tmp_path / "l", *how)
    monkeypatch.undo()
    assert file.read_bytes() == whole
