"""Numbers as places on paper."""

from __future__ import annotations

import numpy as np
import pytest

from diffsel.report.charts import Axis, Scale, evenly, histogram, principal, tsne


def test_histograms_count_every_score_in_round_steps() -> None:
    scores = np.array([0.0, 0.0, 1.0, 2.0, 4.0])
    bars = histogram(scores, scores > 1, bins=4)
    assert (bars.all, bars.picked, bars.axis.low, bars.axis.high) == ((2, 1, 1, 1), (0, 0, 1, 1), 0.0, 4.0)
    assert sum(histogram(np.full(3, 7.0), np.ones(3, bool), bins=8).all) == 3
    many = np.random.default_rng(0).normal(size=5000) * 0.37
    many[:3] = -40  # a tail that would squeeze all others into one bar
    bars = histogram(many, many < -1, bins=40)
    assert (sum(bars.all), sum(bars.picked)) == (5000, (many < -1).sum())
    assert 20 <= len(bars.all) <= 41
    assert bars.beyond[0] == (many < bars.axis.low).sum() > 3
    assert sorted(bars.all)[-10] > 100
    step = (bars.axis.high - bars.axis.low) / len(bars.all)
    assert f"{step:.0e}"[0] in "125"
    inside = (many >= bars.axis.low + 3 * step) & (many < bars.axis.low + 4 * step)
    assert bars.all[3] == inside.sum()


@pytest.mark.parametrize(("low", "high"), [(49.9, 50.1), (0, 100), (-3.37, 0.07), (36.99, 37.0), (0, 0.4), (12, 80_000)])
def test_no_two_ticks_of_an_axis_are_written_alike(low: float, high: float) -> None:
    marks = Axis.of(low, high).marks
    assert 2 <= len(marks) <= 7
    assert len({text for _, text in marks}) == len(marks)
    for place, text in marks:
        value = float(text.replace("−", "-").replace(",", ""))
        assert place == pytest.approx(100 * (value - low) / (high - low), abs=1e-6)
        assert -1e-9 <= place <= 100 + 1e-9


@pytest.mark.parametrize(
    ("size", "nats", "unit", "text"),
    [
        (3.2e-4, None, "× 10⁻⁴", "−3.20"),
        (0.4, None, "", "−0.400"),
        (12.0, None, "", "−12.0"),
        (0, None, "", "+0.00"),
        (3.2e-4, 2000.0, "nats", "−0.640"),
        (3.2e-4, 10.0, "× 10⁻³ nats", "−3.20"),
    ],
)
def test_scores_are_shown_with_three_digits(size: float, nats: float | None, unit: str, text: str) -> None:
    scale = Scale.of(np.full(5, size), nats)
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


def test_principal_components_are_those_of_a_decomposition() -> None:
    rng = np.random.default_rng(0)
    points = rng.standard_normal((40, 30)) * np.linspace(3, 0.1, 30)
    laid = principal(points, 0)
    assert laid is not None
    places, share = laid
    left, size, _ = np.linalg.svd(points - points.mean(0), full_matrices=False)
    assert share == pytest.approx((size[:2] ** 2).sum() / (size**2).sum(), rel=1e-6)
    expected = left[:, :2] * size[:2]
    for mine, theirs in zip(places.T, expected.T, strict=True):
        assert abs(np.corrcoef(mine, theirs)[0, 1]) == pytest.approx(1, abs=1e-6)
    assert np.ptp(places[:, 0]) / np.ptp(places[:, 1]) == pytest.approx(
        np.ptp(expected[:, 0]) / np.ptp(expected[:, 1]), rel=1e-5
    )
    assert (places.min(), places.max()) == pytest.approx((0, 1))
    assert principal(np.ones((30, 8)), 0) is None


def test_samples_are_even_and_keep_what_they_must() -> None:
    assert evenly(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert evenly(101, 3, [7]).tolist() == [0, 7, 50, 100]
    assert evenly(0, 3).tolist() == []
