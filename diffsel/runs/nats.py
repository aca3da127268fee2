"""What a mean of -D is in nats, for a stored run whose model is at hand (scoring/nats.py has the formula)."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..scoring.folder import locate
from ..scoring.nats import nats_per_unit
from ..scoring.patches import chosen_bins
from ..settings.errors import ConfigError
from .run import Run


def nats_of(run: Run) -> Callable[[int, int], float]:
    """What the mean of -D over an image of (width, height) pixels is multiplied with to be log p(x | label) - log p(x).

    Within the timesteps that the run's patches take.  Raises ConfigError where the model of the run is not on this machine.
    """
    import torch

    from ..scoring.diffusion import Diffusion
    from ..scoring.draws import latent_size

    folder = locate(run.settings.model, fetch=False)
    if folder.digest != run.record["identity"]["model"]:
        raise ConfigError(f"{run.path} was scored with another model than {folder} now holds")
    model = Diffusion.load(folder, torch.device("cpu"), "fp32")
    bins, edges = chosen_bins(run.settings.patches, run.settings.scoring), run.settings.scoring.bin_edges()
    window = model.levels.log_snr(edges[bins[0]]), model.levels.log_snr(edges[bins[-1] + 1])

    def unit(width: int, height: int) -> float:
        return nats_per_unit(window, math.prod(latent_size(model, height, width)))

    return unit
