"""Write a pipeline of Stable Diffusion v1.5's exact architecture with random weights, to prove that it loads and to time it.

    python scripts/make_random_sd15.py --out OUT          # 2.1 GB in fp16, about two minutes

The U-Net has 859.5 M parameters, as the original.  The tokenizer is the embedded checkpoint's byte-level one, with 77
positions: the original's word list is not part of this project.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffsel.scoring.folder import locate
from diffsel.settings.sections import ModelSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="where the random weights are drawn")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_default_device(args.device)
    tokenizer = CLIPTokenizer.from_pretrained(locate(ModelSettings(model="demo")), subfolder="tokenizer", model_max_length=77)
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            projection_dim=768,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=512,
        scaling_factor=0.18215,
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    tokenizer.save_pretrained(args.out / "tokenizer")
    scheduler.save_pretrained(args.out / "scheduler")
    for name, module in (("text_encoder", text), ("unet", unet), ("vae", vae)):
        print(f"{name}: {sum(p.numel() for p in module.parameters()):,} parameters", flush=True)
        module.half().save_pretrained(args.out / name)


if __name__ == "__main__":
    main()
