"""Images as a teacher's training sees them: cut, mirrored and in an order that (seed, epoch) decides."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2

from ..data.images import ImageData
from ..machine.progress import Progress
from ..settings.settings import fingerprint
from ..settings.training import TrainingSettings

SHARED = Path("/dev/shm")
HELD = 2**31  # bytes of uint8 pixels that a process keeps at most


class Shown(Dataset):
    """The images as one training sees them: item ``epoch * n + i`` is image i as it is cut in that epoch."""

    def __init__(self, data: ImageData, settings: TrainingSettings, seed: int):
        self.data, self.seed = data, seed
        self.labels = {info.folder: i for i, info in enumerate(data.classes)}
        self.transform = training_transform(settings)

    def __len__(self) -> int:
        return len(self.data.rows)

    def __getitem__(self, item: int) -> tuple[Tensor, int, int]:
        epoch, index = divmod(item, len(self))
        row = self.data.rows[index]
        before = torch.get_rng_state()  # torch.manual_seed would do, but takes a millisecond
        try:
            torch.default_generator.manual_seed(int(fingerprint([self.seed, epoch, index]), 16) >> 1)
            return self.transform(self.data.image(row)), self.labels[row.label], index
        finally:
            torch.set_rng_state(before)


class Held(Dataset):
    """Small images as one training sees them, all of them in memory: a batch is cut out in one go, without decoding.

    Items as of ``Shown``; crops and mirrors come from a generator keyed (seed, epoch), one draw for each image.
    """

    def __init__(self, data: ImageData, settings: TrainingSettings, seed: int, progress: Progress):
        self.settings, self.seed, self.epoch = settings, seed, -1
        middle = v2.Compose([v2.Resize(settings.size), v2.CenterCrop(settings.size), v2.PILToTensor()])
        places = {info.folder: i for i, info in enumerate(data.classes)}
        self.labels = torch.tensor([places[row.label] for row in data.rows])
        with progress(total=len(data.rows), desc="reading images", unit="image", leave=False) as bar:
            pixels = []
            for row in data.rows:
                pixels.append(middle(data.image(row)))
                bar.update()
        pad = max(1, settings.size // 8) if settings.crop == "padded" else 0
        self.pixels, self.room = F.pad(torch.stack(pixels), (pad,) * 4), 2 * pad

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, items: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """(uint8 (b, 3, size, size), labels, which images): torch's loaders ask for a batch at a time where they can."""
        self._draw(items[0] // len(self))
        ids, size = torch.tensor(items) % len(self), torch.arange(self.settings.size)
        rows, cols = (self.corner[side, ids, None] + size for side in (0, 1))
        cols = torch.where(self.mirrored[ids, None], cols.flip(1), cols)
        return self.pixels[ids[:, None, None], :, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2), self.labels[ids], ids

    def _draw(self, epoch: int) -> None:
        if epoch == self.epoch:
            return
        generator = torch.Generator().manual_seed(int(fingerprint([self.seed, epoch, "views"]), 16) >> 1)
        self.epoch = epoch
        self.corner = torch.randint(self.room + 1, (2, len(self)), generator=generator)
        self.mirrored = (torch.rand(len(self), generator=generator) < 0.5) & self.settings.flip


def fits(data: ImageData, t: TrainingSettings) -> bool:
    """Whether images are cut in memory: they are small, and a crop needs no more than their middle."""
    return t.crop != "resized" and len(data.rows) * 3 * t.size**2 <= HELD


class Order(Sampler[int]):
    """The items of one epoch, shuffled by (seed, epoch)."""

    def __init__(self, n: int, seed: int):
        self.n, self.seed, self.epoch = n, seed, 0

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(int(fingerprint([self.seed, self.epoch]), 16) >> 1)
        return iter((torch.randperm(self.n, generator=generator) + self.epoch * self.n).tolist())


def training_transform(t: TrainingSettings) -> v2.Transform:
    """PIL picture -> uint8 (3, size, size), as torchvision's references cut it."""
    middle = [v2.Resize(t.size), v2.CenterCrop(t.size)]
    crop = {
        "resized": [v2.RandomResizedCrop(t.size, scale=(t.min_scale, 1))],
        "padded": [*middle, v2.RandomCrop(t.size, padding=max(1, t.size // 8))],
        "none": middle,
    }[t.crop]
    return v2.Compose([*crop, *([v2.RandomHorizontalFlip()] if t.flip else []), v2.PILToTensor()])


def no_room(processes: int, handed: int) -> str:
    """Why so many processes that read cannot be had, which hand over ``handed`` bytes at a time through shared memory: there
    they would wait for ever, or end the training.  Empty where they can."""
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        files, size = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE))
        if 0 <= files < (needed := 64 + 16 * processes):
            return f"this process may hold {files} files open, and needs {needed} (ulimit -n)"
        if 0 <= size < handed:
            return f"a file may have {size:,} bytes, and a batch takes {handed:,} (ulimit -f)"
    free = shutil.disk_usage(SHARED).free if SHARED.is_dir() else None
    if free is not None and free < (taken := 4 * processes * handed):  # each has a few batches ready
        return f"{SHARED} has {free:,} bytes left, and {taken:,} are needed (docker run --shm-size)"
    return ""
