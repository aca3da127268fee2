"""Stable Diffusion 1.x and 2.x: a U-Net that one CLIP text encoder tells of the class; a table of 1000 steps."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...settings.errors import ConfigError
from ..diffusion import Diffusion, Network
from ..folder import ModelFolder
from ..levels import Table


class Prior(Diffusion):
    """Words are the last hidden states of the text encoder; the null is a prompt without the class."""

    def __init__(self, folder: ModelFolder, device: torch.device, dtype: torch.dtype):
        from diffusers import DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel

        super().__init__(folder, device, dtype)
        self.tokenizer = folder.tokenizer
        self.text_encoder = self.part("text_encoder", CLIPTextModel)
        self.network = self.unet = self.part("unet", UNet2DConditionModel)
        # Whatever sampler the model ships with, only its noise table and prediction type matter here.
        self.scheduler = folder.loaded("scheduler", lambda: DDPMScheduler.from_pretrained(folder.path, subfolder="scheduler"))
        self.levels = Table(self.scheduler.alphas_cumprod, device)
        self.prediction = self.scheduler.config.prediction_type

    @torch.inference_mode()
    def embed_prompts(self, prompts: list[str]) -> Float[Tensor, "prompts tokens width"]:
        for prompt in prompts:
            self.folder.tokens(prompt)
        tokens = self.tokenizer(prompts, padding="max_length", max_length=self.folder.positions, return_tensors="pt")
        return self.text_encoder(tokens["input_ids"].to(self.device)).last_hidden_state

    def output(self, noisy: Tensor, t: Int[Tensor, " b"], words: Tensor, network: Network) -> Tensor:
        return network(noisy.to(self.dtype), t, encoder_hidden_states=words.to(self.dtype), return_dict=False)[0]

    def point(self, point: int) -> torch.nn.Module:
        """``unet.up_blocks[point]``, as DIFT has it."""
        if point >= len(self.unet.up_blocks):
            raise ConfigError(f"features.up_block = {point}: this U-Net has blocks 0 to {len(self.unet.up_blocks) - 1}")
        return self.unet.up_blocks[point]
