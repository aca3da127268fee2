"""Intervals and scores by their closed forms."""

from __future__ import annotations

import math

import pytest
from scipy.stats import ttest_ind

from diffsel.evaluation.results import difference, fairness, spread


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
