"""Priors of full size with random weights in bfloat16: that they load, and what one image costs on a CPU.

    OMP_NUM_THREADS=2 python scripts/bench_priors.py dit --out OUT          # 1.5 GB of disk, about a minute of two cores
    OMP_NUM_THREADS=2 python scripts/bench_priors.py sd3 --out OUT          # 5 GB of disk, several minutes

The first start writes the pipeline, the second measures, in a process that holds the weights once.  Networks and VAEs are
those of DiT-XL/2, PixArt Sigma, SD3 medium and PRX.  Text encoders have their width, but one layer: T5-XXL would be 9.5 GB.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

from diffsel.scoring.draws import open_scorer
from diffsel.scoring.folder import locate
from diffsel.scoring.maps import score_images
from diffsel.scoring.suiting import suited
from diffsel.settings.sections import ModelSettings
from diffsel.settings.settings import resolve

LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}


def clocks() -> tuple[float, float]:
    """Seconds, and seconds of CPU over all threads: on a machine that others use too these tell more."""
    return time.perf_counter(), time.process_time()


def vae(channels: int = 4, **more: Any) -> diffusers.AutoencoderKL:
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    shape = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": channels}
    return diffusers.AutoencoderKL(**kinds, **shape, **more)


def t5() -> dict[str, Any]:
    letters = [(f"▁{a}", -3.0) for a in "abcdefghijklmnopqrstuvwxyz"] + [(a, -2.0) for a in "abcdefghijklmnopqrstuvwxyz."]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    config = transformers.T5Config(d_model=4096, d_ff=10240, num_heads=64, num_layers=1, feed_forward_proj="gated-gelu")
    tokenizer = transformers.T5Tokenizer(vocab=special + letters, extra_ids=0)
    return {"tokenizer": tokenizer, "text_encoder": transformers.T5EncoderModel(config)}


def clip(width: int, heads: int) -> transformers.CLIPTextModelWithProjection:
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads, "projection_dim": width}
    return transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**shape, num_hidden_layers=1))


def dit() -> diffusers.DiTPipeline:
    network = diffusers.DiTTransformer2DModel(in_channels=4, out_channels=8, num_embeds_ada_norm=1000)
    return diffusers.DiTPipeline(network, vae(), diffusers.DDIMScheduler(**LINEAR))


def pixart() -> diffusers.PixArtSigmaPipeline:
    network = diffusers.PixArtTransformer2DModel(caption_channels=4096, use_additional_conditions=False)
    parts = {"vae": vae(scaling_factor=0.13025), "transformer": network, "scheduler": diffusers.DDIMScheduler(**LINEAR)}
    return diffusers.PixArtSigmaPipeline(**t5(), **parts)


def sd3() -> diffusers.StableDiffusion3Pipeline:
    shape = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192}
    words, long = locate(ModelSettings(model="demo")).tokenizer, t5()
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(sample_size=128, out_channels=16, **shape),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(768, 12),
        tokenizer=words,
        text_encoder_2=clip(1280, 20),
        tokenizer_2=words,
        text_encoder_3=long["text_encoder"],
        tokenizer_3=long["tokenizer"],
    )


def prx() -> diffusers.PRXPipeline:
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz."]
    vocabulary = {letter: n for n, letter in enumerate(letters)}
    return diffusers.PRXPipeline(
        transformer=diffusers.PRXTransformer2DModel(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=T5GemmaEncoder(transformers.T5GemmaConfig(encoder={"num_hidden_layers": 1}).encoder),
        tokenizer=transformers.GemmaTokenizerFast(vocab=vocabulary, merges=[], model_max_length=256, add_bos_token=True),
        vae=vae(16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
    )


def make(family: str, out: Path) -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    pipeline = {"dit": dit, "pixart": pixart, "sd3": sd3, "prx": prx}[family]()
    torch.set_default_dtype(torch.float32)
    for weights in pipeline.transformer.parameters():
        if not weights.any():  # what starts as zero would let no condition through
            torch.nn.init.normal_(weights, std=0.02)
    print(f"transformer: {sum(p.numel() for p in pipeline.transformer.parameters()):,} parameters", flush=True)
    pipeline.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=("dit", "pixart", "sd3", "prx"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=3)
    args = parser.parse_args()
    if not (args.out / "model_index.json").exists():
        return make(args.family, args.out)
    compute = {"device": "cpu", "precision": "bf16", "batch_size": 2}
    asked = resolve({"model": {"model": str(args.out)}, "compute": compute, "scoring": {"draws": args.draws}})
    settings = suited(asked, locate(asked.model))
    times = [clocks()]
    scorer = open_scorer(settings)
    times.append(clocks())
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    ((_, maps),) = score_images(scorer, [("0", pixels)], ["n01440764" if args.family == "dit" else "An image of tench."])
    times.append(clocks())
    assert np.isfinite(maps.differential).all()
    assert maps.gap.any()
    (load, load_cpu), (score, score_cpu) = np.diff(times, axis=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("| what | seconds | of CPU |\n|---|---|---|")
    print(f"| load | {load:.1f} | {load_cpu:.1f} |\n| one image, {2 * args.draws} forwards | {score:.1f} | {score_cpu:.1f} |")
    print(f"peak memory {peak:.2f} GiB, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
