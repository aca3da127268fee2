"""Does each part of a loaded prior answer to what it is asked?"""

from __future__ import annotations

import torch

from ..settings.errors import ConfigError
from .diffusion import Diffusion
from .draws import keyed_generator

ALIKE = 1e-6  # share of the largest number within which two answers are one


@torch.inference_mode()
def check_answers(model: Diffusion, label: str, null: str, side: int) -> None:
    """Refuse a model of which a part says the same whatever it is asked: weights of zeros, or of another network.

    It is asked of two images of ``side`` pixels (at most 256), of a label prompt and of the null prompt.  Raises ConfigError.
    """
    kind, keyed = model.folder.kind, keyed_generator("answers")
    side = min(side, 256)
    try:
        with model.eager():  # for one look
            latents = model.encode(torch.rand((2, 3, side, side), generator=keyed) * 2 - 1)
        words = model.embed_prompts([null, label])
        noisy = torch.randn((1, *latents.shape[1:]), generator=keyed).repeat(2, 1, 1, 1).to(model.device)
        t = torch.tensor([model.levels.time(0.0)] * 2, device=model.device)
        heard = model.output(noisy, t, words, model.network)
    except (TypeError, IndexError) as error:
        raise ConfigError(f"model {model.folder} does not compute ({str(error)[:200]}); see to its config.json files") from None
    given, asked = "two images", f"{label!r} and the null prompt"
    told = {"vae": (latents, given), next(iter(kind.texts), kind.network): (words, asked), kind.network: (heard, asked)}
    for part, (answers, what) in told.items():
        first, second = answers.float()
        if not (first - second).abs().max() > ALIKE * answers.abs().max():  # nor where one is no number
            why = "its weights are not what they should be"
            raise ConfigError(f"model {model.folder}: {part} says the same of {what}; {why}")
