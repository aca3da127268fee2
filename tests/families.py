"""A tiny pipeline with random weights of each family, made by diffusers itself in the family's own layout."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from conftest import TINY
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import Metaspace, Sequence, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

NEW = ("sdxl", "dit", "pixart", "sd3", *(["prx"] if hasattr(diffusers, "PRXPipeline") else []))
NAMES = {0: "tench, Tinca tinca", 207: "golden retriever", 134: "crane", 517: "crane", 1: "goldfish, Carassius auratus"}


def _vae(channels: int = 4, **more: Any) -> AutoencoderKL:
    blocks = {"block_out_channels": (4, 4, 4, 4), "norm_num_groups": 2, "layers_per_block": 1, "latent_channels": channels}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return AutoencoderKL(**blocks, **kinds, sample_size=64, **more)


def _clip(kind: Any) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(_clip_words()),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=16,
        max_position_embeddings=77,
    )
    return kind(config)


@cache
def _clip_words() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(TINY, subfolder="tokenizer")


def _t5(width: int = 32) -> dict[str, Any]:
    letters = [(f"▁{a}", -3.0) for a in "abcdefghijklmnopqrstuvwxyz"] + [(a, -2.0) for a in "abcdefghijklmnopqrstuvwxyz."]
    words = Tokenizer(Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters], unk_id=2))
    words.pre_tokenizer = Sequence([WhitespaceSplit(), Metaspace()])
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    config = T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
    return {"tokenizer": T5TokenizerFast(tokenizer_object=words, extra_ids=0), "text_encoder": T5EncoderModel(config)}


def _unet(width: int, **more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        sample_size=8,
        **more,
    )


def _sdxl() -> StableDiffusionXLPipeline:
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
    }
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return StableDiffusionXLPipeline(
        vae=_vae(scaling_factor=0.13025),
        text_encoder=_clip(CLIPTextModel),
        text_encoder_2=_clip(CLIPTextModelWithProjection),
        tokenizer=_clip_words(),
        tokenizer_2=_clip_words(),
        unet=_unet(32, **added),
        scheduler=EulerDiscreteScheduler(**betas, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )


TRANSFORMER = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3, "sample_size": 8, "patch_size": 2}
LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}


def _dit() -> DiTPipeline:
    network = DiTTransformer2DModel(**TRANSFORMER, in_channels=4, out_channels=8, num_embeds_ada_norm=1000)
    return DiTPipeline(network, _vae(scaling_factor=0.18215), DDIMScheduler(**LINEAR), id2label=NAMES)


def _pixart() -> PixArtSigmaPipeline:
    shape = {"in_channels": 4, "out_channels": 8, "caption_channels": 32, "cross_attention_dim": 16}
    network = PixArtTransformer2DModel(**TRANSFORMER, **shape, use_additional_conditions=False)
    return PixArtSigmaPipeline(
        **_t5(), vae=_vae(scaling_factor=0.13025), transformer=network, scheduler=DDIMScheduler(**LINEAR)
    )


def _sd3() -> StableDiffusion3Pipeline:
    t5 = _t5()
    shape = {"joint_attention_dim": 32, "caption_projection_dim": 16, "pooled_projection_dim": 32, "pos_embed_max_size": 24}
    network = SD3Transformer2DModel(**TRANSFORMER, in_channels=16, out_channels=16, **shape, qk_norm="rms_norm")
    return StableDiffusion3Pipeline(
        transformer=network,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(CLIPTextModelWithProjection),
        tokenizer=_clip_words(),
        text_encoder_2=_clip(CLIPTextModelWithProjection),
        tokenizer_2=_clip_words(),
        text_encoder_3=t5["text_encoder"],
        tokenizer_3=t5["tokenizer"],
    )


def _gemma() -> dict[str, Any]:
    from transformers import GemmaTokenizerFast, T5GemmaConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz."]
    words = Tokenizer(BPE({a: n for n, a in enumerate(letters)}, [], unk_token="<unk>", fuse_unk=True))
    words.normalizer = Replace(" ", "▁")
    words.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    tokenizer = GemmaTokenizerFast(tokenizer_object=words, model_max_length=64)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8, "vocab_size": 64}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128}
    return {"tokenizer": tokenizer, "text_encoder": T5GemmaEncoder(T5GemmaConfig(encoder=shape, decoder=shape).encoder)}


def _prx() -> Any:
    from diffusers.pipelines.prx import pipeline_prx

    if not hasattr(pipeline_prx, "ftfy"):  # it mends broken Unicode, of which there is none here
        pipeline_prx.ftfy = SimpleNamespace(fix_text=str)
    network = diffusers.PRXTransformer2DModel(context_in_dim=32, hidden_size=16, num_heads=2, depth=3, axes_dim=[4, 4])
    return diffusers.PRXPipeline(
        **_gemma(),
        transformer=network,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
    )


@cache
def pipeline(name: str) -> Any:
    """Of a family, in memory; its random weights are those of seed 0, and none is zero."""
    if name == "sd":
        return StableDiffusionPipeline.from_pretrained(TINY)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = {"sdxl": _sdxl, "dit": _dit, "pixart": _pixart, "sd3": _sd3, "prx": _prx}[name]()
        for weights in (made.unet if name == "sdxl" else made.transformer).parameters():
            if not weights.any():  # what starts as zero would let no condition through
                torch.nn.init.normal_(weights, std=0.1)
        for part in made.components.values():
            part.eval() if isinstance(part, torch.nn.Module) else None
    made.set_progress_bar_config(disable=True)
    return made


@cache
def saved(name: str) -> Path:
    """Its folder."""
    if name == "sd":
        return Path(TINY)
    path = Path(mkdtemp(prefix="diffsel-")) / f"tiny-{name}"
    pipeline(name).save_pretrained(path)
    if name == "dit":  # the published ones have it, though save_pretrained forgets it
        index = path / "model_index.json"
        index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": NAMES}))
    return path
