"""One soft label an image: the teacher's on the image as it is, stored or not; and what a student makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from students import CPU, QUICK, Trusting, cell_of

from diffsel.data.views import normalise
from diffsel.evaluation.bench import Bench
from diffsel.evaluation.cells import train_one
from diffsel.evaluation.fixed import check, source_of, write_fixed
from diffsel.evaluation.students import batch_loss
from diffsel.settings.errors import SettingsDiffer, StoreError

FIXED = QUICK.model_copy(update={"labels": "fixed"})


@pytest.mark.parametrize("mix", ["cutmix", "mixup", "none"])
def test_every_view_of_an_image_has_the_label_of_the_image_itself(world, mix: str) -> None:
    cell = cell_of(world, Bench(CPU), FIXED.model_copy(update={"mix": mix}))
    pictures = cell.train.load()
    own = torch.cat([cell.teacher.logits(normalise(pictures.pixels[i : i + 1])) for i in range(6)])  # one by one, not cropped
    for epoch in range(2):
        for batch in source_of(pictures, cell.protocol, cell.recipe, 0, cell.teacher, None)(epoch):
            torch.testing.assert_close(batch.logits, own[batch.ids], atol=2e-3, rtol=2e-3)  # kept in float16
            torch.testing.assert_close(batch.other_logits, own[batch.partners], atol=2e-3, rtol=2e-3)
            assert torch.equal(pictures.labels[batch.ids], batch.labels)
            assert torch.equal(pictures.labels[batch.partners], batch.other)


def test_the_loss_has_the_gradient_of_the_mixed_label(world) -> None:
    """Cross-entropy with share * p + (1 - share) * q, p and q the teacher's softmaxes: the parts without student differ."""
    cell = cell_of(world, Bench(CPU), FIXED)
    batch = next(source_of(cell.train.load(), cell.protocol, cell.recipe, 0, cell.teacher, None)(1))
    output = torch.randn(len(batch.ids), 2, requires_grad=True)
    (ours,) = torch.autograd.grad(batch_loss(output, batch, 20.0, "fixed"), output)
    p, q = ((logits / 20).softmax(1) for logits in (batch.logits, batch.other_logits))
    mixed = batch.share * p + (1 - batch.share) * q
    (theirs,) = torch.autograd.grad(F.cross_entropy(output / 20, mixed), output)
    torch.testing.assert_close(ours, theirs)


def test_stored_or_not_they_are_the_same_labels_and_the_same_student(world, tmp_path: Path) -> None:
    live = cell_of(world, Trusting(CPU), FIXED)
    pictures = live.train.load()
    assert write_fixed(tmp_path / "l", pictures, live.teacher)
    assert not write_fixed(tmp_path / "l", pictures, live.teacher)
    found, val, _ = world
    kept = cell_of((found, val, None), Bench(CPU), FIXED, labels=tmp_path / "l")
    assert (live.labelling, kept.labelling) == ("fixed", "fixed")
    assert live.identity == kept.identity
    one, other = (train_one(cell, 3, Trusting(CPU)) for cell in (live, kept))
    assert one["loss"] == other["loss"]
    assert one["best"] == other["best"]


def test_labels_of_something_else_are_refused(world, tmp_path: Path) -> None:
    cell = cell_of(world, Bench(CPU), FIXED)
    with pytest.raises(StoreError, match="holds no fixed labels"):
        check(tmp_path / "l", cell.train.digest, cell.protocol, cell.recipe)
    write_fixed(tmp_path / "l", cell.train.load(), cell.teacher)
    assert check(tmp_path / "l", cell.train.digest, cell.protocol, cell.recipe)["network"] == "conv3w8"
    with pytest.raises(SettingsDiffer, match="set: stored"):
        check(tmp_path / "l", "another", cell.protocol, cell.recipe)
    with pytest.raises(SettingsDiffer, match="teacher: stored"):
        check(tmp_path / "l", cell.train.digest, cell.protocol, cell.recipe, "another")
    (tmp_path / "l" / "fixed.safetensors").write_bytes(b"damaged")
    with pytest.raises(StoreError, match=r"fixed.safetensors is damaged .*; delete it, `diffsel relabel` writes it again"):
        source_of(cell.train.load(), cell.protocol, cell.recipe, 0, None, tmp_path / "l")
