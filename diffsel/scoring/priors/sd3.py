"""Stable Diffusion 3 and 3.5: a flow transformer that two CLIP text encoders and T5 tell of the class; the null is zeros."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from ..diffusion import Network
from ..folder import ModelFolder
from .transformer import Transformer
from .words import Words, clip_words, t5_words, with_row


class Prior(Transformer):
    """Words are CLIP's, both side by side and filled up with zeros, then T5's; one more row holds CLIP's pooled words."""

    attention = "attn"

    def __init__(self, folder: ModelFolder, device: torch.device, dtype: torch.dtype):
        from diffusers import SD3Transformer2DModel
        from transformers import CLIPTextModelWithProjection, T5EncoderModel

        super().__init__(folder, device, dtype)
        self.network = self.part("transformer", SD3Transformer2DModel)
        kinds = (CLIPTextModelWithProjection, CLIPTextModelWithProjection, T5EncoderModel)
        self.encoders = {part: self.part(part, kind) for (part, _, _), kind in zip(folder.texts, kinds, strict=True)}
        self.read_path()

    @torch.inference_mode()
    def embed_prompts(self, prompts: list[str]) -> Words:
        self.folder.check_lengths(prompts)
        (first, pooled), (second, pooled_2) = clip_words(self, 0, prompts), clip_words(self, 1, prompts)
        long, _ = t5_words(self, 2, prompts, masked=False)
        short = torch.cat([first, second], 2)
        words = torch.cat([pad(short, (0, long.shape[2] - short.shape[2])), long], 1)
        words = with_row(words, torch.cat([pooled, pooled_2], 1))
        words[[not prompt for prompt in prompts]] = 0  # as it was trained: dropped words are zeros, not an empty text
        return words

    def whole(self, noisy: Tensor, t: Float[Tensor, " b"], words: Tensor, network: Network) -> Tensor:
        words = words.to(self.dtype)
        pooled = words[:, -1, : self.network.config.pooled_projection_dim]
        told = {"encoder_hidden_states": words[:, :-1], "pooled_projections": pooled}
        return network(hidden_states=noisy, timestep=t, **told, return_dict=False)[0]
