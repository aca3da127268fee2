"""Stable Diffusion XL: a U-Net that two CLIP text encoders tell of the class, and the picture's size; the null is zeros."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from ..diffusion import Network
from ..folder import ModelFolder
from .sd import UNet
from .words import Words, clip_words, with_row


class Prior(UNet):
    """Words are the last but one hidden states of both encoders side by side; one more row holds the pooled words."""

    def __init__(self, folder: ModelFolder, device: torch.device, dtype: torch.dtype):
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        super().__init__(folder, device, dtype)
        self.encoders = {
            "text_encoder": self.part("text_encoder", CLIPTextModel),
            "text_encoder_2": self.part("text_encoder_2", CLIPTextModelWithProjection),
        }

    @torch.inference_mode()
    def embed_prompts(self, prompts: list[str]) -> Words:
        self.folder.check_lengths(prompts)
        (first, _), (second, pooled) = clip_words(self, 0, prompts), clip_words(self, 1, prompts)
        words = with_row(torch.cat([first, second], 2), pooled)
        words[[not prompt for prompt in prompts]] = 0  # as it was trained: dropped words are zeros, not an empty text
        return words

    def output(self, noisy: Tensor, t: Int[Tensor, " b"], words: Tensor, network: Network) -> Tensor:
        height, width = (side * self.cell for side in noisy.shape[2:])
        sizes = torch.tensor([[height, width, 0, 0, height, width]], device=self.device, dtype=self.dtype)  # asked, cut, meant
        pooled = words[:, -1, : self.encoders["text_encoder_2"].config.projection_dim]
        added = {"text_embeds": pooled.to(self.dtype), "time_ids": sizes.expand(len(noisy), -1)}
        told = {"encoder_hidden_states": words[:, :-1].to(self.dtype), "added_cond_kwargs": added}
        return network(noisy.to(self.dtype), t, **told, return_dict=False)[0]
