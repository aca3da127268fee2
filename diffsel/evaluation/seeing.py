"""A teacher as the eye that judges sets (sets/figures.py): its last features, and RDED's realism score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..data.classes import ClassInfo
from ..data.pixels import Pixels
from ..data.views import normalise
from ..machine.device import machine_of
from ..sets.baselines import crop_losses, pad
from ..settings.sections import ComputeSettings
from .teachers import Teacher, load_teacher

AT_ONCE = 64


@dataclass(frozen=True)
class TeacherEye:
    """``size``: side of what the teacher sees, pixels; ``labels``: its outputs, in their order."""

    teacher: Teacher
    size: int
    labels: tuple[str, ...]
    _one: Lock = field(default_factory=Lock, repr=False)  # looks at a time: it listens inside the network

    @property
    def name(self) -> str:
        return f"the last features of {self.teacher.name}"

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its vectors."""
        return {"network": self.teacher.name, "digest": self.teacher.digest, "size": self.size}

    @torch.inference_mode()
    def vectors(self, pictures: Sequence[Pixels]) -> Float[np.ndarray, "n channels"]:
        """What goes into the network's last linear layer, unit length."""
        last, found = [each for each in self.teacher.network.modules() if isinstance(each, nn.Linear)][-1], list[Tensor]()

        def keep(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            found.append(inputs[0].flatten(1).float())

        with self._one:
            handle = last.register_forward_pre_hook(keep)
            try:
                for images in self._batches(pictures, self.size):
                    self.teacher.logits(images)
            finally:
                handle.remove()
        return torch.nn.functional.normalize(torch.cat(found), dim=1).cpu().numpy()

    @torch.inference_mode()
    def realism(self, tiles: Sequence[Pixels], label: str, factor: int) -> Float[np.ndarray, " n"]:
        """Minus the cross-entropy with the label of each tile, as RDED judges its crops: at the size that it has in a mosaic,
        zeros around it (golden `rded_selector`)."""
        batches = self._batches(tiles, self.size // factor)
        with self._one:
            losses = [crop_losses(self.teacher.logits(pad(images, self.size)), self.labels.index(label)) for images in batches]
        return -torch.cat(losses).numpy()

    def _batches(self, pictures: Sequence[Pixels], side: int) -> Iterator[Float[Tensor, "b 3 side side"]]:
        for start in range(0, len(pictures), AT_ONCE):
            shrunk = [_square(picture, side) for picture in pictures[start : start + AT_ONCE]]
            yield normalise(torch.cat(shrunk).to(self.teacher.device))


def _square(picture: Pixels, side: int) -> Float[Tensor, "1 3 side side"]:
    """The middle square, antialiased to ``side`` pixels."""
    height, width = picture.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    middle = torch.from_numpy(np.array(picture[top : top + short, left : left + short])).permute(2, 0, 1)[None].float()
    return torch.nn.functional.interpolate(middle, size=(side, side), mode="bilinear", antialias=True, align_corners=False)


def teacher_eye(spec: str, classes: Sequence[ClassInfo], size: int, device: torch.device | None = None) -> TeacherEye:
    """A teacher for these classes on images of ``size`` pixels, on ``device`` or where this machine computes best.

    Raises ConfigError and DataError as ``load_teacher``.
    """
    teacher = load_teacher(spec, classes, size, device or machine_of(ComputeSettings()).device)
    return TeacherEye(teacher, size, tuple(info.folder for info in classes))
