"""What diffusion transformers share: latents cut into square patches, and blocks as points for features."""

from __future__ import annotations

from abc import abstractmethod

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from ..diffusion import Diffusion, Network


class Transformer(Diffusion):
    """A transformer that sees ``patch`` x ``patch`` latent cells as one token."""

    blocks = "transformer_blocks"  # what the network calls them
    attention = "attn1"  # a block's attention to the image itself

    @abstractmethod
    def whole(self, noisy: Tensor, t: Tensor, words: Tensor, network: Network) -> Tensor:
        """As ``output``, of latents that divide into patches; further channels (a learned variance) may follow."""

    @property
    def patch(self) -> int:
        return int(self.network.config.patch_size)

    def output(self, noisy: Tensor, t: Tensor, words: Tensor, network: Network) -> Tensor:
        height, width = noisy.shape[2:]
        return self.whole(self._filled(noisy), t, words, network)[:, : self.channels, :height, :width]

    def activation(self, noisy: Tensor, t: Tensor, words: Tensor, point: int | str) -> Float[Tensor, "b channels fh fw"]:
        """What a block's attention is given: its input, normalised and modulated (AdaLN), which tames the few huge channels
        of transformers (DiTF, arXiv 2505.18584)."""
        block = getattr(self.network, self.blocks)[self.folder.check_point(point)]
        filled = self._filled(noisy)
        height, width = (side // self.patch for side in filled.shape[2:])
        run = lambda: self.whole(filled, t, words, self.network)  # noqa: E731
        tokens = self.stopped(getattr(block, self.attention), run, inside=True)
        return tokens.transpose(1, 2).unflatten(2, (height, width))

    def _filled(self, noisy: Tensor) -> Tensor:
        """With the last row and column repeated until sides divide into patches."""
        height, width = (-side % self.patch for side in noisy.shape[2:])
        return pad(noisy, (0, width, 0, height), mode="replicate").to(self.dtype)
