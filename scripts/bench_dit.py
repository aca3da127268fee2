"""DiT-XL/2's exact architecture with random weights in bfloat16: that it loads, and what one image costs on a CPU.

    OMP_NUM_THREADS=2 python scripts/bench_dit.py --out OUT          # 1.5 GB of disk, about a minute of two cores

The transformer has 750 M parameters as diffusers has it (675 M in the paper: there all blocks share one embedding), the VAE is
that of Stable Diffusion.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from diffsel.scoring.draws import open_scorer
from diffsel.scoring.maps import score_images
from diffsel.settings.settings import resolve


def clocks() -> tuple[float, float]:
    """Seconds, and seconds of CPU over all threads: on a machine that others use too these tell more."""
    return time.perf_counter(), time.process_time()


def make(out: Path) -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    network = DiTTransformer2DModel(in_channels=4, out_channels=8, num_embeds_ada_norm=1000)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        scaling_factor=0.18215,
    )
    torch.set_default_dtype(torch.float32)
    print(f"transformer: {sum(p.numel() for p in network.parameters()):,} parameters", flush=True)
    DiTPipeline(network, vae, DDIMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")).save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=3)
    args = parser.parse_args()
    if not (args.out / "model_index.json").exists():
        return make(args.out)  # measured in a process of its own, which holds the weights once
    compute = {"device": "cpu", "precision": "bf16", "batch_size": 2}
    settings = resolve({"model": {"model": str(args.out)}, "compute": compute, "scoring": {"draws": args.draws}})
    times = [clocks()]
    scorer = open_scorer(settings)
    times.append(clocks())
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    ((_, maps),) = score_images(scorer, [("0", pixels)], ["n01440764"])
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
