"""PixArt Alpha and Sigma: a transformer that T5 tells of the class; the null is the empty text, as T5 has it."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from ..diffusion import Network
from ..folder import ModelFolder
from .transformer import Transformer
from .words import Words, masked_words


class Prior(Transformer):
    """Words are T5's last hidden states; one more number a token says whether it is one."""

    def __init__(self, folder: ModelFolder, device: torch.device, dtype: torch.dtype):
        from diffusers import PixArtTransformer2DModel
        from transformers import T5EncoderModel

        super().__init__(folder, device, dtype)
        self.network = self.part("transformer", PixArtTransformer2DModel)
        self.encoders = {"text_encoder": self.part("text_encoder", T5EncoderModel)}
        self.read_table()

    @torch.inference_mode()
    def embed_prompts(self, prompts: list[str]) -> Words:
        return masked_words(self, prompts)

    def whole(self, noisy: Tensor, t: Int[Tensor, " b"], words: Tensor, network: Network) -> Tensor:
        height, width = (side * self.cell for side in noisy.shape[2:])
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.network.use_additional_conditions:  # Alpha at 1024 pixels
            sizes = {"resolution": [[height, width]], "aspect_ratio": [[height / width]]}
            added = {k: torch.tensor(v, dtype=self.dtype, device=self.device).expand(len(t), -1) for k, v in sizes.items()}
        told = {"encoder_hidden_states": words[:, :, :-1].to(self.dtype), "encoder_attention_mask": words[:, :, -1].long()}
        return network(noisy, timestep=t, **told, added_cond_kwargs=added, return_dict=False)[0]
