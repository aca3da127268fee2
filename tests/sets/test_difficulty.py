"""EL2N, forgetting and CCS against their definitions, written out again; records kept by a real training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffsel.data.rows import Row
from diffsel.evaluation.teaching import difficulty
from diffsel.sets.difficulty import Records, ccs, forgotten, order, read_records, write_epoch, write_images
from diffsel.settings.errors import ConfigError, DataError, StoreError


def row(name: str) -> Row:
    return Row(0, name, "ant", 8, 8, name)


def test_el2n_is_the_length_of_softmax_minus_one_hot() -> None:
    logits, labels = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    el2n, right, shown = difficulty(logits, labels)
    for i, (values, label) in enumerate(zip(logits.numpy().astype(float), labels.tolist(), strict=True)):
        p = np.exp(values) / np.exp(values).sum()
        p[label] -= 1
        assert abs(float(el2n[i]) - np.sqrt((p**2).sum())) < 1e-6
        assert bool(right[i]) == (values.argmax() == label)
    assert shown.tolist() == [1] * 7


def test_forgetting_counts_answers_that_turned_wrong() -> None:
    right = np.random.default_rng(0).random((12, 30)) < 0.4
    right[:, 3] = False
    for i, found in enumerate(forgotten(right)):
        events = sum(1 for e in range(11) if right[e, i] and not right[e + 1, i])
        assert found == (events if right[:, i].any() else 12)


def test_ccs_shares_the_budget_over_strata_and_leaves_out_the_hardest() -> None:
    rng = np.random.default_rng(0)
    hard = np.concatenate([rng.uniform(0, 0.1, 80), rng.uniform(0.9, 1.0, 10), rng.uniform(5, 9, 10)])
    for count in (1, 7, 20, 40):
        chosen = ccs(hard, count, 0.1, np.random.default_rng(1), strata=2)
        assert len(set(chosen.tolist())) == count
        assert (chosen < 90).all()  # the ten hardest are a tenth
        assert (chosen >= 80).sum() == min(10, count // 2)  # half of the budget, as far as that stratum reaches
    again = ccs(hard, 20, 0.1, np.random.default_rng(1), strata=2)
    assert (again == ccs(hard, 20, 0.1, np.random.default_rng(1), strata=2)).all()


@pytest.mark.parametrize("method", ["el2n-easy", "el2n-hard", "forgetting", "ccs"])
def test_orders_give_as_many_as_asked_best_first(method: str) -> None:
    rng = np.random.default_rng(3)
    records = Records(list("abcdefgh"), rng.random((4, 8)), rng.random((4, 8)) < 0.5)
    chosen, score = order(method, records, 5, early=2, cut=0.25, rng=np.random.default_rng(0))
    assert len(set(chosen.tolist())) == 5
    mean = records.el2n[:2].mean(0)
    if method == "el2n-easy":
        assert chosen.tolist() == np.argsort(mean)[:5].tolist()
    elif method == "el2n-hard":
        assert chosen.tolist() == np.argsort(-mean)[:5].tolist()
    elif method == "forgetting":
        assert (np.diff(score[chosen]) <= 0).all()
        assert score[chosen].min() >= np.delete(score, chosen).max()
    else:
        assert not set(np.argsort(mean)[-2:].tolist()) & set(chosen.tolist())


def test_records_come_back_as_they_were_written_and_damage_is_told(tmp_path: Path) -> None:
    digests = ["00" * 16, "ab" * 16]
    write_images(tmp_path, digests)
    for epoch in range(3):
        write_epoch(tmp_path, epoch, np.array([0.5, epoch / 4]), np.array([True, epoch == 1]))
    found = read_records(tmp_path)
    assert found.digests == digests
    assert found.el2n.tolist() == [[0.5, 0], [0.5, 0.25], [0.5, 0.5]]
    assert found.right.tolist() == [[True, False], [True, True], [True, False]]
    swapped = found.of([row(digests[1])])
    assert swapped.el2n.tolist() == [[0], [0.25], [0.5]]
    with pytest.raises(DataError, match="trained on"):
        found.of([row("cd" * 16)])
    file = tmp_path / "records" / "epoch-001.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match="damaged"):
        read_records(tmp_path)
    (tmp_path / "records" / "epoch-000.safetensors").rename(file)
    with pytest.raises(StoreError, match="epoch"):
        read_records(tmp_path)
    with pytest.raises(ConfigError, match="--record"):
        read_records(tmp_path / "none")
