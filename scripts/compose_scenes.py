"""Write demo scenes as class folders; what the demo's embedded teacher was trained on.

    python scripts/compose_scenes.py --out scenes --per-class 640
    diffsel demo --out demo                                             # for its test scenes, on which its epoch was chosen
    diffsel teacher scenes --val demo/test --network conv3w32 --size 32 --epochs 30 --crop resized --min-scale 0.35 --no-flip \\
        --optimizer adamw --learning-rate 0.004 --weight-decay 0.01 --schedule cosine --warmup 1 --batch-size 64 --workers 2 \\
        --out teacher                                                   # best.safetensors -> diffsel/assets/demo-teacher

The next one's epoch should be chosen on other scenes: --out others --per-class 64 --first 40000.  On test digits that nobody
chose anything on (--split test --first 40000) this one is as good as on the demo's (RESULTS.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from diffsel.studies import scenes

FIRST = 20_000  # number of the first scene: far from those of the demo and of its diffusion model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-class", type=int, default=640)
    parser.add_argument("--first", type=int, default=FIRST, help="number of the first scene")
    parser.add_argument("--split", choices=("train", "test"), default="train", help="whose digits")
    args = parser.parse_args()
    for label, name in enumerate(scenes.NAMES):
        (args.out / name).mkdir(parents=True, exist_ok=True)
        for i in range(args.per_class):
            Image.fromarray(scenes.compose(args.split, label, args.first + i).pixels).save(args.out / name / f"{i:05d}.png")


if __name__ == "__main__":
    main()
