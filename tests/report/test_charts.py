"""Numbers as places on paper."""

from __future__ import annotations

import numpy as np
import pytest

from diffsel.report.charts import Scale, evenly, histogram, tsne


def test_histograms_count_every_score() -> None:
    scores = np.array([0.0, 0.0, 1.0, 2.0, 4.0])
    bars = histogram(scores, scores > 1, bins=4)
    assert (bars.all, bars.picked, bars.low, bars.high, bars.top) == ((2, 1, 1, 1), (0, 0, 1, 1), 0.0, 4.0, 2)
    assert sum(histogram(np.full(3, 7.0), np.ones(3, bool), bins=8).all) == 3


@pytest.mark.parametrize(
    ("size", "unit", "text"), [(3.2e-4, "× 10⁻⁴", "−3.20"), (0.4, "", "−0.400"), (12.0, "", "−12.0"), (0, "", "+0.00")]
)
def test_scores_are_shown_with_three_digits(size: float, unit: str, text: str) -> None:
    scale = Scale.of(np.full(5, size))
    assert (scale.unit, scale.text(-size if size else 0.0)) == (unit, text)


def test_layout_keeps_groups_apart() -> None:
    rng = np.random.default_rng(0)
    near = np.concatenate([rng.normal(0, 0.1, (20, 8)), rng.normal(5, 0.1, (20, 8))])
    places = tsne(near, 0)
    assert places is not None
    assert places.min() == 0
    assert places.max() == 1
    middle = places[:20].mean(0), places[20:].mean(0)
    own = [np.linalg.norm(places - centre, axis=1) for centre in middle]
    assert (np.argmin(own, axis=0) == np.repeat([0, 1], 20)).all()
    assert tsne(np.ones((30, 8)), 0) is None


def test_samples_are_even_and_keep_what_they_must() -> None:
    assert evenly(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert evenly(101, 3, [7]).tolist() == [0, 7, 50, 100]
    assert evenly(0, 3).tolist() == []
