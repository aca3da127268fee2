"""A small world of sets, teachers and students."""

from __future__ import annotations

import torch

from diffsel.evaluation.cells import Bench, make_cell
from diffsel.machine.device import Machine
from diffsel.settings.sections import ProtocolSettings

CPU = Machine(torch.device("cpu"))


QUICK = ProtocolSettings(epochs=3, batch_size=4, size=16)


def cell_of(world, bench: Bench, protocol: ProtocolSettings = QUICK, **options):
    found, val, teacher = world
    return make_cell("tiny", found, val, "conv3w8", protocol, teacher, bench, **options)


class Trusting(Bench):
    """A bench whose teachers need not be good."""

    def check_teacher(self, teacher, album, recorded=True, images="") -> float:
        return 50.0
