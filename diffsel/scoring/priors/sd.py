"""Stable Diffusion 1.x and 2.x: a U-Net that one CLIP text encoder tells of the class; a table of 1000 steps."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..diffusion import Diffusion, Network
from ..folder import ModelFolder


class UNet(Diffusion):
    """A U-Net in diffusers layout, its noise table and its points: the up blocks, as DIFT has them."""

    def __init__(self, folder: ModelFolder, device: torch.device, dtype: torch.dtype):
        from diffusers import UNet2DConditionModel

        super().__init__(folder, device, dtype)
        self.network = self.unet = self.part("unet", UNet2DConditionModel)
        self.read_table()

    def activation(self, noisy: Tensor, t: Tensor, words: Tensor, point: int | str) -> Float[Tensor, "b channels fh fw"]:
        block = self.unet.up_blocks[self.folder.check_point(point)]
        return self.stopped(block, lambda: self.output(noisy, t, words, self.network))


class Prior(UNet):
    """Words are the last hidden states of the text encoder; the null is a prompt without the class."""

    def __init__(self, folder: ModelFolder, device: torch.device, dtype: torch.dtype):
        from transformers import CLIPTextModel

        super().__init__(folder, device, dtype)
        self.tokenizer = folder.tokenizer
        self.text_encoder = self.part("text_encoder", CLIPTextModel)
        self.encoders = {"text_encoder": self.text_encoder}

    @torch.inference_mode()
    def embed_prompts(self, prompts: list[str]) -> Float[Tensor, "prompts tokens width"]:
        for prompt in prompts:
            self.folder.tokens(prompt)
        tokens = self.tokenizer(prompts, padding="max_length", max_length=self.folder.positions, return_tensors="pt")
        return self.text_encoder(tokens["input_ids"].to(self.device)).last_hidden_state

    def output(self, noisy: Tensor, t: Int[Tensor, " b"], words: Tensor, network: Network) -> Tensor:
        return network(noisy.to(self.dtype), t, encoder_hidden_states=words.to(self.dtype), return_dict=False)[0]

    def time(self, share: float) -> int:
        return int(share * self.steps)
