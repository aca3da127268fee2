"""A run as large as ImageNet's in classes, made of noise: to see how reports, stores and sets behave at that size.

    python scripts/make_large_run.py --classes 1000 --images 24 --ipc 5 --out large

OUT/train   a few dozen drawn pictures (256 pixels, detail as in photographs), linked into folders named by ImageNet's wnids
OUT/run     maps and vectors of random numbers, in the store's own files          OUT/run/ipcN   a set selected from them
OUT/report.html ...   the report on it, with its sizes and how long it took

No network is run: what the maps show means nothing.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
from PIL import Image

from diffsel import method
from diffsel.data.classes import imagenet_wnids
from diffsel.machine.progress import progress
from diffsel.machine.tensors import write_unit
from diffsel.report.page import write_report
from diffsel.runs import run as store
from diffsel.runs.session import Session, open_features, start
from diffsel.runs.units import columns
from diffsel.settings.settings import resolve

CELLS, CHANNELS = 32, 1280  # of Stable Diffusion v1.5 at 256 pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000, help="at most 1000")
    parser.add_argument("--images", type=int, default=24, help="per class")
    parser.add_argument("--ipc", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    for folder in imagenet_wnids()[: options.classes]:
        link_pictures(options.out, folder, options.images)
    settings = resolve({"model": {"model": "demo"}, "patches": {"stride": 4}, "assembly": {"format": "jpeg"}})
    session = start(str(options.out / "train"), options.out / "run", settings, progress(False))
    open_features(session.run)
    for unit in session.run.units:
        fill(session, unit)
    method.select(session, options.ipc, options.out / "run" / f"ipc{options.ipc}")
    begin, worked = time.monotonic(), time.process_time()
    sizes = [file.stat().st_size for file in write_report(options.out / "run", options.out / "report.html")]
    print(
        f"report: {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB, the largest {max(sizes) / 1e6:.2f} MB, the first "
        f"{sizes[0] / 1e6:.2f} MB; {time.monotonic() - begin:.0f} s, {time.process_time() - worked:.0f} of the processor"
    )


def link_pictures(out: Path, folder: str, count: int) -> None:
    """The same pictures for every class: what they show does not matter, their size does."""
    (out / "train" / folder).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        kept = out / "pictures" / f"{number:03d}.jpg"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(cloud(np.random.default_rng(number))).save(kept, quality=92)
        linked = out / "train" / folder / kept.name
        if not linked.exists():
            os.link(kept, linked)


def cloud(rng: np.random.Generator, height: int = 256, width: int = 341) -> np.ndarray:
    """Noise whose amplitude falls with frequency, in muted colours: as many bytes in a small WebP as photographs have."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    frequency[0, 0] = 1
    bands = [np.fft.ifft2(np.fft.fft2(rng.standard_normal((height, width))) / frequency**1.4).real for _ in range(4)]
    bands = [band / band.std() for band in bands]
    colours = np.stack([bands[3] + 0.3 * band for band in bands[:3]], -1)
    return np.clip(128 + 50 * colours / colours.std(), 0, 255).astype(np.uint8)


def fill(session: Session, unit: store.Unit) -> None:
    """Random maps and vectors for a unit that has none yet."""
    rng = np.random.default_rng(unit.rows[0].row)
    scored, vectors = session.run.map_file(unit), session.run.feature_file(unit)
    if not scored.exists():
        tensors = {}
        for row in unit.rows:
            width = CELLS * session.data.size(row)[0] // session.data.size(row)[1] // 2 * 2
            hill = np.exp(-(np.hypot(*np.meshgrid(np.linspace(-2, 2, width), np.linspace(-2, 2, CELLS))) ** 2))
            gap = (1e-4 + 4e-4 * np.roll(hill, rng.integers(0, CELLS, 2), (0, 1))) * rng.uniform(0.5, 1.5, (3, 1, 1))
            tensors[f"{row.row}.gap"] = gap[None].astype(np.float16)
            tensors[f"{row.row}.differential"] = (-gap[None] + rng.normal(0, 1e-4, gap.shape)).astype(np.float16)
            tensors[f"{row.row}.null"] = np.zeros(gap.shape, np.float32)
        rows = [row.row for row in unit.rows]
        write_unit(scored, session.run.mark, tensors, {"label": unit.label, "rows": rows, "skipped": []})
    if not vectors.exists():
        boxes = session.run.boxes(unit)
        centres = rng.standard_normal((6, CHANNELS))
        found = centres[rng.integers(0, 6, len(boxes))] + 0.5 * rng.standard_normal((len(boxes), CHANNELS))
        unit_length = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
        write_unit(vectors, session.run.feature_mark, {**columns(boxes), "vector": unit_length}, {"label": unit.label})


if __name__ == "__main__":
    main()
