"""Levels of noise, and noise out of whatever a network predicts."""

from __future__ import annotations

import math

import pytest
import torch

from diffsel.scoring.levels import Flow, Table, noise_from
from diffsel.settings.errors import ConfigError

CPU = torch.device("cpu")
TABLE = Table(torch.linspace(1, 0.01, 1001, dtype=torch.float64)[1:].square(), CPU)


@pytest.mark.parametrize("levels", [TABLE, Flow(1000)])
def test_times_and_log_snr_are_one_anothers_inverse(levels: Table | Flow) -> None:
    for share in (0.1, 0.16, 0.5, 0.7):
        t = levels.time(levels.log_snr(share))
        assert t == pytest.approx(share * 1000)
        alpha, sigma = levels.sides(torch.tensor([t]))
        assert 2 * math.log(alpha.item() / sigma.item()) == pytest.approx(levels.log_snr(share), rel=1e-4)


def test_the_window_of_stable_diffusion_on_a_flow() -> None:
    """s in [.256, .769], as METHOD has it for lambda from 2.13 to -2.41."""
    assert [round(Flow(1).time(each), 3) for each in (2.13, -2.41)] == [0.256, 0.769]


def test_a_kind_of_prediction_that_is_unknown_is_refused() -> None:
    with pytest.raises(ConfigError, match="prediction_type 'score'; known: epsilon"):
        noise_from("score", *[torch.zeros(1)] * 4)
