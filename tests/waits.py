"""What makes a host wait for a GPU, counted without one: fake tensors have a device, and compute nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from diffsel.data import views

CUDA = torch.device("cuda:0")


class Waits(TorchDispatchMode):
    """Copies between host and device that block, and single numbers that the host asks for, by the operation's name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        places = {each.device.type for each in (*args, out) if isinstance(each, Tensor)}
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default) and len(places) > 1
        non_blocking = (kwargs or {}).get("non_blocking") or (func == torch.ops.aten.copy_.default and args[2:] == (True,))
        asks = func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default) and "cuda" in places
        if asks or (copies and not non_blocking):
            self.seen.append(str(func))
        return out


@contextmanager
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within: tensors may lie on ``CUDA``; nothing is computed there, and nothing learned."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(Tensor, "backward", lambda self, *_: None)
    views.mean_and_deviation.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield
    views.mean_and_deviation.cache_clear()
