"""How noisy a latent is, and noise out of whatever a network predicts: the conversions between priors, stated once.

Every prior sees z = alpha x + sigma eps; its level is the log-SNR lambda = 2 ln(alpha / sigma), and the network is told of it
by a time of its own.  What it predicts (eps, v, x, a flow, EDM's x) becomes eps-hat here.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ..settings.errors import ConfigError
from .nats import log_snr

Sides = tuple[Float[Tensor, "b 1 1 1"], Float[Tensor, "b 1 1 1"]]  # alpha, sigma


def unsound(alphas: Float[Tensor, " steps"]) -> str:
    """Why these cumulated alphas are no noise table, in words; empty where they fall from nearly image to nearly noise."""
    falls = len(alphas) > 1 and bool((alphas.diff() < 0).all())  # false where one is no number
    if falls and 1 > alphas[0] > 0.5 > alphas[-1] >= 0:
        return ""
    ends = f"from {alphas[0]:.4g} to {alphas[-1]:.4g}" if len(alphas) else "over nothing"
    return (
        f"over its {len(alphas)} steps an image's share of the variance goes {ends}, and should fall at every step, from "
        "nearly 1 to nearly 0 (num_train_timesteps, beta_start, beta_end, trained_betas)"
    )


class Table:
    """A noise table (variance preserving, alpha^2 + sigma^2 = 1); times are its rows."""

    def __init__(self, alphas: Float[Tensor, " steps"], device: torch.device):
        self.alphas, self.steps = alphas.to(device, torch.float32), len(alphas)
        self._log_snr = log_snr(alphas.double().cpu().numpy())

    def sides(self, t: Tensor) -> Sides:
        """alpha and sigma at these times."""
        abar = self.alphas[t][:, None, None, None]
        return abar.sqrt(), (1 - abar).sqrt()

    def log_snr(self, share: float) -> float:
        """At this share of the steps."""
        return float(self._log_snr[min(round(share * self.steps), self.steps - 1)])

    def time(self, log_snr: float) -> int:
        """The row whose log-SNR is nearest."""
        return int(abs(self._log_snr - log_snr).argmin())


class Flow:
    """A straight path from image to noise (flow matching, rectified flow): alpha = 1 - s, sigma = s; times are s x steps."""

    def __init__(self, steps: int):
        self.steps = steps

    def sides(self, t: Tensor) -> Sides:
        s = (t.float() / self.steps)[:, None, None, None]
        return 1 - s, s

    def log_snr(self, share: float) -> float:
        """lambda = 2 ln((1 - s) / s)."""
        return 2 * math.log((1 - share) / share)

    def time(self, log_snr: float) -> float:
        """s = 1 / (1 + e^(lambda / 2))."""
        return self.steps / (1 + math.exp(log_snr / 2))


def noise_from(kind: str, output: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """eps-hat, so that z = alpha x-hat + sigma eps-hat.  Raises ConfigError for a kind of prediction that is unknown.

    ``v_prediction`` is v = alpha eps - sigma x of a variance preserving prior, ``flow`` v = eps - x on a straight path;
    ``sample`` is x itself, which EDM's denoiser gives at alpha = 1.
    """
    match kind:
        case "epsilon":
            return output
        case "v_prediction":
            return alpha * output + sigma * noisy
        case "sample":
            return (noisy - alpha * output) / sigma
        case "flow":
            return noisy + alpha * output
    raise ConfigError(f"model with prediction_type {kind!r}; known: epsilon, v_prediction, sample, flow")
