"""PRX: an undistilled flow transformer that T5Gemma tells of the class; the null is the empty text, as T5Gemma has it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..diffusion import Network
from ..folder import ModelFolder
from .transformer import Transformer
from .words import Words, masked_words


class Prior(Transformer):
    """Words are T5Gemma's last hidden states; one more number a token says whether it is one."""

    blocks, attention = "blocks", "attention"

    def __init__(self, folder: ModelFolder, device: torch.device, dtype: torch.dtype):
        from diffusers import PRXTransformer2DModel
        from transformers import T5GemmaConfig
        from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

        super().__init__(folder, device, dtype)
        self.network = self.part("transformer", PRXTransformer2DModel)
        settings = T5GemmaConfig(encoder=folder.text_config("text_encoder")).encoder  # without a decoder's
        self.encoders = {"text_encoder": self.part("text_encoder", T5GemmaEncoder, config=settings)}
        self.read_path()

    @torch.inference_mode()
    def embed_prompts(self, prompts: list[str]) -> Words:
        return masked_words(self, prompts)

    def whole(self, noisy: Tensor, t: Float[Tensor, " b"], words: Tensor, network: Network) -> Tensor:
        told = {"encoder_hidden_states": words[:, :, :-1].to(self.dtype), "attention_mask": words[:, :, -1].bool()}
        return network(noisy, timestep=t / self.steps, **told, return_dict=False)[0]
