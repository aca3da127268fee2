"""DiT: a transformer that is told one of ImageNet's 1000 classes by its number; the null is number 1000."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..diffusion import Network
from ..folder import ModelFolder
from .transformer import Transformer


class Prior(Transformer):
    """ "Words" are one number; a prompt is a class by number, wnid or name, and an empty one is the null."""

    def __init__(self, folder: ModelFolder, device: torch.device, dtype: torch.dtype):
        from diffusers import DiTTransformer2DModel

        super().__init__(folder, device, dtype)
        self.network = self.part("transformer", DiTTransformer2DModel)
        self.read_table()

    @torch.inference_mode()
    def embed_prompts(self, prompts: list[str]) -> Float[Tensor, "prompts 1 1"]:
        numbers = [self.folder.class_number(prompt) for prompt in prompts]
        return torch.tensor(numbers, device=self.device, dtype=torch.float32)[:, None, None]

    def whole(self, noisy: Tensor, t: Int[Tensor, " b"], words: Tensor, network: Network) -> Tensor:
        told = {"timestep": t, "class_labels": words[:, 0, 0].long()}
        height, width = (side // self.patch for side in noisy.shape[2:])
        if height == width:
            return network(noisy, **told, return_dict=False)[0]
        # diffusers puts tokens back into a square only: those of other shapes are put back here.
        tokens = self.stopped(self.network.proj_out_2, lambda: self.network(noisy, **told))
        cells = tokens.unflatten(2, (self.patch, self.patch, -1)).unflatten(1, (height, width))
        return cells.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
