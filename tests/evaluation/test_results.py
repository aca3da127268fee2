"""Intervals and scores by their closed forms."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_ind

from diffsel.evaluation.results import as_result, difference, fairness, line_of, nested, read_result, result_key, spread
from diffsel.settings.errors import StoreError


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


@pytest.mark.parametrize("sets_differ", [0.0, 2.0])
def test_the_interval_over_sets_covers_the_choice_of_the_set(sets_differ: float) -> None:
    """95 % of 2,000 simulated tables: 3 sets of 5 students; the students' own interval is far too narrow where sets differ."""
    rng, hits, naive = np.random.default_rng(0), [], []
    for _ in range(2000):
        groups = 30 + sets_differ * rng.normal(size=(3, 1)) + rng.normal(size=(3, 5))
        both, alone = nested([spread(list(group)) for group in groups]), spread(list(groups.ravel()))
        hits.append(abs(both.mean - 30) <= both.ci95)
        naive.append(abs(alone.mean - 30) <= alone.ci95)
    assert abs(np.mean(hits) - 0.95) < 0.015  # three standard errors
    assert (np.mean(naive) < 0.75) == bool(sets_differ)


def test_both_spreads_are_those_of_the_analysis_of_variance() -> None:
    rng = np.random.default_rng(1)
    groups = 30 + 2 * rng.normal(size=(400, 1)) + 3 * rng.normal(size=(400, 4))
    value = nested([spread(list(group)) for group in groups])
    assert (value.within, value.between) == (pytest.approx(3, rel=0.1), pytest.approx(2, rel=0.1))
    assert value.within == pytest.approx(math.sqrt(np.var(groups, axis=1, ddof=1).mean()))
    assert value.ci95 == pytest.approx(spread(list(groups.mean(1))).ci95)
    same = nested([spread([1.0, 3.0]), spread([2.0, 2.0])])
    assert (same.mean, same.between, same.counted) == (2, 0, "2 x 2")
    alone = nested([spread([1.0, 3.0])])
    assert (alone.ci95, alone.between) == (None, None)


def test_fairness_scores_have_the_closed_form_of_dd_ranking() -> None:
    scores = fairness(soft=60, random_soft=50, hard=40, full_hard=90, plain=45, random_plain=43)
    assert scores["IOR"] == 10
    assert scores["HLR"] == 50
    assert scores["LRS"] == pytest.approx(100 * (math.exp(-0.2) - math.exp(-1)) / (math.e - math.exp(-1)))
    assert scores["ARS"] == pytest.approx(100 * (math.exp(0.06) - math.exp(-1)) / (math.e - math.exp(-1)))
    assert set(fairness(soft=60, random_soft=50)) == {"IOR"}


def result(folder: Path, seed: int = 0, **changes: object) -> Path:
    identity = {"set": "s", "images": 4, "classes": ["a"], "student": "conv3", "teacher": None, "protocol": {"size": 16}}
    score = {"epoch": 1, "top1": 50.0, "top5": 90.0}
    told = {"cell": "c", "protocol": "hard", "report": "last", "labels": "hard", "precision": "fp32", "seed": seed}
    values = {**told, "identity": identity, "best": score, "last": score, "seconds": 1.0, **changes}
    file = folder / f"conv3-hard-{result_key(identity, 'fp32')}" / f"seed-{seed}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({key: value for key, value in values.items() if value != "gone"}))
    return file


def test_a_result_is_its_seeds_and_its_folders(tmp_path: Path) -> None:
    file = result(tmp_path)
    assert line_of([read_result(file)]).top1.mean == 50
    result(tmp_path, 1).rename(file)
    with pytest.raises(StoreError, match=r"seed-0.json holds the result of another student \(seed-1, .*delete it"):
        read_result(file)
    other = {"set": "other", "images": 4, "classes": ["a"], "student": "conv3", "teacher": None, "protocol": {"size": 16}}
    for changes in ({"identity": other}, {"precision": "bf16"}):
        with pytest.raises(StoreError, match="holds the result of another student"):
            read_result(result(tmp_path, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        *({"last": "gone"}, {"identity": {}}, {"best": {"top1": "x"}}, {"precision": "gone"}, {"seconds": "gone"}),
        *({"best": {"top1": number, "top5": 90.0}} for number in (-1, 100.1, float("nan"), float("inf"))),
    ],
)
def test_half_a_result_is_told_with_the_way_out(tmp_path: Path, changes: dict) -> None:
    with pytest.raises(StoreError, match=r"seed-0.json is damaged \(.*\); delete it, and evaluate again"):
        read_result(result(tmp_path, **changes))
    empty = tmp_path / "seed-9.json"
    empty.write_text("")
    with pytest.raises(StoreError, match="delete it, and evaluate again"):
        read_result(empty)


def test_a_number_that_was_edited_is_told(tmp_path: Path) -> None:
    file = result(tmp_path)
    file.write_bytes(as_result(json.loads(file.read_text())))
    assert line_of([read_result(file)]).top1.mean == 50
    file.write_text(file.read_text().replace("50.0", "60.0", 1))
    with pytest.raises(StoreError, match=r"its checksum differs.*delete it, and evaluate again"):
        read_result(file)
