"""Freed memory stays: a loop that allocates and frees large tensors stops asking the system for pages."""

from __future__ import annotations

import platform
import subprocess
import sys
from functools import partialmethod

import pytest
import torch
import torch._dynamo.config as limits
from torch import nn

from diffsel.evaluation.networks import build
from diffsel.machine import device as module
from diffsel.machine.device import compile_network, pick_device, to_host
from diffsel.settings.errors import ConfigError

CODE = """
import resource, torch
from diffsel.machine.device import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)  # 64 MiB: more than glibc ever keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

asked = min(faults() for _ in range(6))
assert keep_freed_memory()
print(asked, min(faults() for _ in range(6)))  # the first few rounds: the heap grows
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left as they are")
def test_memory_once_touched_is_not_asked_for_again() -> None:
    out = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout
    asked, kept = map(int, out.split())
    assert asked > 50  # huge pages of 2 MiB at most: 32 a tensor
    assert kept < asked / 20


# ---- a GPU, without one ------------------------------------------------------------------------------------------------


def test_a_gpu_that_torch_cannot_use_is_told_and_not_replaced_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(module, "gpu_is_there", lambda: True)
    with pytest.raises(ConfigError, match=r"an NVIDIA GPU is in this machine, but torch .* cannot use it.*--device cpu"):
        pick_device("auto")
    assert pick_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU"])
def test_a_gpu_that_was_hidden_is_not_missed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.Path, "glob", lambda *_: iter(["0000:00:00.0"]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert module.gpu_is_there()
    monkeypatch.setenv(name, "" if name.startswith("CUDA") else "true")
    assert not module.gpu_is_there()


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Says that two GPUs are there, whose tensors lie on the CPU; the devices that were made the current one."""
    current: list[torch.device] = []
    ones = torch.ones
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch, "ones", lambda n, device: ones(n))
    return current


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_more_processes_than_gpus_are_refused(name: str, two_gpus: list[torch.device]) -> None:
    with pytest.raises(ConfigError, match="process 3 of this machine has no GPU of its own: there are 2; start 2 processes"):
        pick_device(name, local=2)


@pytest.mark.parametrize(("name", "index"), [("auto", 1), ("cuda", 1), ("cuda:0", 0)])
def test_a_gpu_has_its_number_which_torch_asks_for(name: str, index: int, two_gpus: list[torch.device]) -> None:
    assert pick_device(name, local=1) == torch.device("cuda", index)
    assert [device.index for device in two_gpus] == [index]


def test_a_device_that_miscounts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "item", lambda _self: 5)
    with pytest.raises(ConfigError, match=r"compute.device = 'cpu' cannot be used: 1 \+ 1 was not 2 there"):
        pick_device("cpu")


def test_an_event_is_recorded_on_the_stream_of_the_tensors_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --device cuda:1 the current device may be another, whose stream knows nothing of this copy."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    recorded = []

    class Event:
        def record(self, stream: object) -> None:
            recorded.append(stream)

        def synchronize(self) -> None: ...

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: ("stream of", str(device)))
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **how: empty(*size, **how))
    with FakeTensorMode(allow_non_fake_inputs=True):
        to_host(empty(3, device="cuda:1"))
    assert recorded == [("stream of", "cuda:1")]


def test_the_graphs_of_every_network_of_a_process_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's limit of graphs (eight, here two) is for all networks of a class: those that came last stayed as they are."""
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))
    torch.compiler.reset()
    with limits.patch(recompile_limit=2):
        for made, depth in enumerate((3, 4), 1):
            network, images = build(f"conv{depth}w2", 2, 16), torch.zeros(2, 3, 16, 16)
            compile_network(network)
            network(images)
            with torch.inference_mode():
                network.eval()(images)
            assert len(graphs) == 2 * made
    torch.compiler.reset()
