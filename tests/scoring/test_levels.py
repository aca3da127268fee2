"""Levels of noise, and noise out of whatever a network predicts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffsel.scoring.draws import differential_and_gap
from diffsel.scoring.levels import Flow, Table, noise_from, unsound
from diffsel.scoring.nats import nats_per_unit
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


@pytest.mark.parametrize(
    "betas",
    [
        np.linspace(0.00085**0.5, 0.0001**0.5, 1000) ** 2,  # ends before it begins
        np.zeros(1000),
        np.linspace(0.00085, 2, 1000),  # negative from some step on
        np.full(1000, np.nan),
        np.linspace(0.00085**0.5, 0.012**0.5, 3) ** 2,  # three steps, which hide nothing
        [0.9, 0.9],
        [],
    ],
)
def test_a_table_that_does_not_go_from_image_to_noise_is_unsound(betas: np.ndarray) -> None:
    alphas = torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0)
    assert "should fall at every step, from nearly 1 to nearly 0" in unsound(alphas)


def test_tables_of_published_models_are_sound() -> None:
    steps = torch.linspace(0, 1, 1000, dtype=torch.float64)
    scaled = torch.cumprod(1 - (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * steps) ** 2, 0)
    linear = torch.cumprod(1 - (1e-4 + (0.02 - 1e-4) * steps), 0)
    no_image_left = ((scaled.sqrt() - scaled[-1].sqrt()) * (scaled[0].sqrt() / (scaled[0].sqrt() - scaled[-1].sqrt()))).square()
    assert [unsound(each.float()) for each in (scaled, linear, no_image_left)] == [""] * 3


def test_a_kind_of_prediction_that_is_unknown_is_refused() -> None:
    with pytest.raises(ConfigError, match="prediction_type 'score'; known: epsilon"):
        noise_from("score", *[torch.zeros(1)] * 4)


# ---- a prior in closed form ------------------------------------------------------------------------------------------

MEANS, SIDES = torch.tensor([-1.0, 1.5, 3.0]).double(), torch.tensor([0.5, 0.7, 0.4]).double()  # of three classes
LAMBDAS = torch.linspace(14, -14, 401).double()


def denoised(z: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, classes: list[int]) -> torch.Tensor:
    """E[x | z] where x comes from these classes, alike often."""
    z, mean, side = z[..., None], MEANS[classes], SIDES[classes]
    variance = (alpha[..., None] * side) ** 2 + sigma[..., None] ** 2
    weight = (-((z - alpha[..., None] * mean) ** 2) / (2 * variance) - variance.log() / 2).softmax(-1)
    return (weight * (mean + alpha[..., None] * side**2 / variance * (z - alpha[..., None] * mean))).sum(-1)


def quadrature(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Places and weights of a standard normal variable."""
    places, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(places), torch.from_numpy(weights / weights.sum())


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow", "edm"])
@pytest.mark.parametrize("label", [0, 1])
def test_every_kind_of_prediction_tells_a_mixtures_log_ratio(kind: str, label: int) -> None:
    """The mean over a class of log p(x|c) - log p(x) within 1 %, from D and from G; at single x from D."""
    (places, weights), (noise, likely) = quadrature(24), quadrature(48)
    x = (MEANS[label] + SIDES[label] * places)[:, None, None]
    snr = (LAMBDAS / 2).exp()  # alpha / sigma
    sigma = 1 / snr if kind == "edm" else 1 / (1 + snr) if kind == "flow" else 1 / (1 + snr**2).sqrt()
    alpha, sigma, eps = (snr * sigma)[None, :, None], sigma[None, :, None], noise[None, None, :]
    z = alpha * x + sigma * eps

    def network(classes: list[int]) -> torch.Tensor:
        clean = denoised(z, *torch.broadcast_tensors(alpha + 0 * z, sigma + 0 * z), classes)
        noise = (z - alpha * clean) / sigma
        told = {"epsilon": noise, "v_prediction": alpha * noise - sigma * clean, "flow": noise - clean}
        return told.get(kind, clean)

    read = "sample" if kind == "edm" else kind
    label_noise, null_noise = (noise_from(read, network(c), z, alpha, sigma) for c in ([label], [0, 1, 2]))
    shape = (len(places), 1, len(LAMBDAS), len(noise))  # one channel, for ``differential_and_gap``
    d, g = differential_and_gap((eps + 0 * z).reshape(shape), null_noise.reshape(shape), label_noise.reshape(shape))
    unit = nats_per_unit((14.0, -14.0), 1)  # draws are uniform in log-SNR: nats are mean times window
    from_d, from_g = ((each @ likely).mean(1) * unit for each in (-d, g))
    normal = torch.distributions.Normal
    each = normal(MEANS, SIDES).log_prob(x[:, 0, 0, None])
    exact = each[:, label] - (each.logsumexp(1) - math.log(3))
    average = float(exact @ weights)
    assert float(from_d @ weights) == pytest.approx(average, rel=0.01)
    assert float(from_g @ weights) == pytest.approx(average, rel=0.01)
    middle = slice(6, -6)  # where the quadrature is dense
    torch.testing.assert_close(from_d[middle], exact[middle], rtol=0.01, atol=0.02)
