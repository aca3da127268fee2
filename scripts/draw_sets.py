"""Sets side by side on one page: a row for each class, the first pictures of each set one after the other.

python scripts/draw_sets.py diffsel=SET random=SET --out sets.png [--each 10] [--side 48]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from diffsel.report.drawing import sheet
from diffsel.sets.opening import open_set


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="NAME=SET")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--each", type=int, default=10, help="pictures of a class")
    parser.add_argument("--side", type=int, default=48, help="pixels")
    args = parser.parse_args()
    named = dict(text.split("=", 1) for text in args.sets)
    found = {name: open_set(Path(path)) for name, path in named.items()}
    gap = Image.new("RGB", (args.side // 2, args.side), "white")
    rows = []
    for number, label in enumerate(next(iter(found.values())).names):
        pictures: list[Image.Image] = []
        for one in found.values():
            of_class = one.data.of_class(one.data.classes[number].folder)[: args.each]
            pictures += [one.data.image(row).resize((args.side, args.side), Image.Resampling.LANCZOS) for row in of_class]
            pictures.append(gap)
        rows.append((label, pictures[:-1]))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(rows, "   |   ".join(named), gap=3).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
