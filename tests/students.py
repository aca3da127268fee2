"""A small world of sets, teachers and students."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffsel.data.images import open_data
from diffsel.evaluation.bench import Bench
from diffsel.evaluation.cells import make_cell
from diffsel.evaluation.networks import build
from diffsel.machine.device import Machine
from diffsel.sets.opening import open_set
from diffsel.settings.sections import DataSettings
from diffsel.settings.training import ProtocolSettings

CPU = Machine(torch.device("cpu"))


QUICK = ProtocolSettings(epochs=3, batch_size=4, size=16)


def cell_of(world, bench: Bench, protocol: ProtocolSettings = QUICK, **options):
    found, val, teacher = world
    return make_cell("tiny", found, val, "conv3w8", protocol, teacher, bench, **options)


class Trusting(Bench):
    """A bench whose teachers need not be good."""

    def check_teacher(self, teacher, album, recorded=True, images="") -> float:
        return 50.0


@pytest.fixture
def world(folder, tmp_path: Path):
    """A set of 2 x 3 images of 16 pixels, validation images, and a teacher that is right about half of the time."""
    made = folder("set", (16, 16), ant=3, bee=3)
    val = folder("val", (20, 16), ant=4, bee=4)
    torch.manual_seed(0)
    network = build("conv3w8", 2, 16)
    torch.save(network.state_dict(), tmp_path / "t.pth")
    return open_set(made, factor=2), open_data(str(val), DataSettings(), 0), str(tmp_path / "t.pth")
