"""What text encoders make of prompts, and how all of it travels as one row of tokens a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from ..diffusion import Diffusion

Words = Float[Tensor, "prompts tokens width"]


@torch.inference_mode()
def clip_words(model: Diffusion, number: int, prompts: Sequence[str]) -> tuple[Words, Float[Tensor, "prompts width"]]:
    """Last but one hidden states of CLIP text encoder ``number`` (from 0), and its pooled words, if it projects them."""
    part, tokenizer, length = model.folder.texts[number]
    tokens = tokenizer(list(prompts), padding="max_length", max_length=length, return_tensors="pt")
    found = model.encoders[part](tokens["input_ids"].to(model.device), output_hidden_states=True)
    return found.hidden_states[-2], found[0]


@torch.inference_mode()
def t5_words(
    model: Diffusion, number: int, prompts: Sequence[str], masked: bool
) -> tuple[Words, Float[Tensor, "prompts tokens"]]:
    """Last hidden states of T5 or T5Gemma text encoder ``number``; which tokens are words (``masked``: it sees those alone)."""
    part, tokenizer, length = model.folder.texts[number]
    tokens = tokenizer(list(prompts), padding="max_length", max_length=length, return_tensors="pt").to(model.device)
    mask = tokens["attention_mask"]
    return model.encoders[part](tokens["input_ids"], attention_mask=mask if masked else None)[0], mask


def masked_words(model: Diffusion, prompts: Sequence[str]) -> Words:
    """Last hidden states of the only text encoder, of small letters as it was trained with; one more number a token: is it one?

    Raises ConfigError for a prompt that is too long.
    """
    model.folder.check_lengths(prompts)
    words, mask = t5_words(model, 0, [prompt.lower().strip() for prompt in prompts], masked=True)
    return torch.cat([words, mask[:, :, None].to(words.dtype)], 2)


def with_row(words: Words, row: Float[Tensor, "prompts numbers"]) -> Words:
    """``words`` and, as one more token, ``row``, which must not be longer than a token is wide."""
    return torch.cat([words, pad(row, (0, words.shape[2] - row.shape[1]))[:, None].to(words.dtype)], 1)
