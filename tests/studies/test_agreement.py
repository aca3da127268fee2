"""Agreement of known cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from diffsel.studies.agreement import overlap, rank_correlations


def test_correlations_and_overlaps_of_known_cases() -> None:
    values = np.array([[1.0, 2, 3, 4], [10, 20, 30, 40], [4, 3, 2, 1], [1, 1, 1, 1], [1, 1, 2, 2]])
    found = rank_correlations(values)
    assert found[0, 1] == pytest.approx(1)
    assert found[0, 2] == pytest.approx(-1)
    assert np.isnan(found[3]).all()
    assert found[0, 4] == pytest.approx(spearmanr(values[0], values[4]).statistic)
    assert overlap((0, 0, 4, 4), (0, 0, 4, 4)) == 1
    assert overlap((0, 0, 4, 4), (0, 2, 4, 4)) == pytest.approx(8 / 24)
    assert overlap((0, 0, 4, 4), (4, 0, 4, 4)) == 0
