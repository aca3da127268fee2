"""How many near copies selection notices: real ones, and planted ones of ten kinds.

    python scripts/measure_copies.py --images cifar10/train [--sheet pairs.png]

Real copies: images that look nearly like an earlier one of their class, counted; ``--sheet`` draws some pairs for the eye.
Planted copies: one image in twenty of each class, changed as copies on the web are, beside the class's own images: the share
that is noticed, and the share whose original is named.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from diffsel.data.pool import looks, near_copies
from diffsel.report.drawing import sheet
from diffsel.report.text import table
from diffsel.settings.sections import SelectionSettings

Change = Callable[[Image.Image], Image.Image]


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    image.save(file := io.BytesIO(), "JPEG", quality=quality)
    return Image.open(file)


def moved(image: Image.Image, pixels: int) -> Image.Image:
    """To the right; its left edge is repeated."""
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, -pixels, 0, 1, 0), Image.Resampling.NEAREST)


def zoomed(image: Image.Image, share: float) -> Image.Image:
    """The middle ``share`` of each side, at the old size."""
    edge = round(image.width * (1 - share) / 2)
    return image.crop((edge, edge, image.width - edge, image.height - edge)).resize(image.size, Image.Resampling.BICUBIC)


CHANGES: dict[str, Change] = {
    "JPEG of quality 75": lambda image: recompressed(image, 75),
    "JPEG of quality 30": lambda image: recompressed(image, 30),
    "halved and doubled": lambda image: image.resize((image.width // 2,) * 2, Image.Resampling.BICUBIC).resize(image.size),
    "5 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.05),
    "20 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "moved by a pixel": lambda image: moved(image, 1),
    "moved by three pixels": lambda image: moved(image, 3),
    "zoomed by an eighth": lambda image: zoomed(image, 7 / 8),
    "mirrored": ImageOps.mirror,
}


def look(images: list[Image.Image]) -> np.ndarray:
    return looks(np.asarray(image.convert("RGB")) for image in images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder of class folders")
    parser.add_argument("--per-class", type=int, help="the first so many images of each class")
    parser.add_argument("--alike", type=float, default=SelectionSettings().alike, help="correlation of near copies")
    parser.add_argument("--sheet", type=Path, help="draws eight real pairs of each class, drawn by chance")
    args = parser.parse_args()
    rng, rows, found, total = np.random.default_rng(0), [], 0, 0
    noticed: dict[str, list[bool]] = {name: [] for name in CHANGES}
    named: dict[str, list[bool]] = {name: [] for name in CHANGES}
    for folder in sorted(path for path in args.images.iterdir() if path.is_dir()):
        images = [Image.open(file).convert("RGB") for file in sorted(folder.iterdir())[: args.per_class]]
        own = look(images)
        pairs = near_copies(own, alike=args.alike)
        found, total = found + len(pairs), total + len(images)
        shown = rng.permutation(sorted(pairs))[:8]
        rows.append((folder.name, [images[place] for i in shown for place in (i, pairs[i])]))
        kept = [i for i in range(len(images)) if i not in pairs]
        chosen = rng.choice(kept, len(kept) // 20, replace=False)
        for name, change in CHANGES.items():
            after = np.concatenate([own[kept], look([change(images[i]) for i in chosen])])
            like = near_copies(after, len(kept), alike=args.alike)
            originals = [like.get(len(kept) + place) for place in range(len(chosen))]
            noticed[name] += [original is not None for original in originals]
            named[name] += [place == original for place, original in zip(np.searchsorted(kept, chosen), originals, strict=True)]
    print(f"{found} of {total} images look nearly like an earlier one of their class ({found / total:.2%})\n")
    lines = [[name, f"{np.mean(noticed[name]):.1%}", f"{np.mean(named[name]):.1%}"] for name in CHANGES]
    print(f"{len(noticed['grey'])} planted copies of each kind:\n")
    print(table(lines, ["a copy that is", "noticed", "with its original"]))
    if args.sheet:
        sheet([row for row in rows if row[1]], "pairs that look nearly alike", gap=2).save(args.sheet, optimize=True)


if __name__ == "__main__":
    main()
