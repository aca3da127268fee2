"""Where networks compute: devices, precisions, copies to and fro, and the memory that a process keeps."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..settings.errors import ConfigError
from ..settings.sections import ComputeSettings

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST = 2**30  # bytes; larger blocks still come from the system, and go back to it


def pick_device(name: str, local: int = 0) -> torch.device:
    """``auto``: the accelerator that is there, else the CPU; of GPUs one for each process of a machine (``local`` counts them),
    also where plainly ``cuda`` is asked for.

    Raises ConfigError for a device that is unknown, not there or out of order, for fewer GPUs than processes, and for ``auto``
    where a GPU is there that cannot be used: the CPU in its place would take days, and nobody would be told.
    """
    if name == "auto":
        kind = _accelerator()
        if kind is None and gpu_is_there():
            raise ConfigError(
                f"an NVIDIA GPU is in this machine, but torch {torch.__version__} cannot use it (its driver? a build for the "
                "CPU?); mend that, or ask for the CPU: --device cpu"
            )
        name = kind or "cpu"
    if name == "cuda" and torch.cuda.is_available():
        if local >= (count := torch.cuda.device_count()):
            raise ConfigError(
                f"process {local + 1} of this machine has no GPU of its own: there are {count}; start {count} processes "
                "a machine"
            )
        name = f"cuda:{local}"  # set_device below takes no name without a number
    try:
        device = torch.device(name)
        if (torch.ones(2, device=device) + 1).sum().item() != 4:  # a kernel that runs, not only an address
            raise RuntimeError("1 + 1 was not 2 there")
        if device.type == "cuda":
            torch.cuda.set_device(device)  # streams, events and graphs are those of the current device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"compute.device = {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def gpu_is_there() -> bool:
    """Whether the system shows an NVIDIA GPU that nobody hid from this process."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    hidden |= os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")  # accelerate launch --cpu
    return not hidden and any(Path("/proc/driver/nvidia/gpus").glob("*"))


def device_name(device: torch.device) -> str:
    """What the device is called, as ``NVIDIA H100 80GB HBM3`` or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _accelerator() -> str | None:
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None


def pick_precision(name: str, device: torch.device, scoring: bool = False) -> str:
    """``auto`` is fp32, and fp16 where a CUDA device only scores: it is 8.7 times as fast there, and its boxes and ranks are
    those of fp32 (RESULTS.md, "Precision").  bf16's are not quite, and a CPU gains little by it."""
    if name in ("fp16", "tf32") and device.type == "cpu":
        raise ConfigError(f"compute.precision = {name!r} needs a GPU; use fp32 or bf16 on a CPU")
    if name == "auto":
        return "fp16" if scoring and device.type == "cuda" else "fp32"
    return name


def set_tf32(precision: str) -> None:
    """``tf32``: matrix products and convolutions of float32 numbers may drop 13 of their 23 bits; else none does.

    Said for both, since torch leaves it off for the one and on for the other.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


@dataclass(frozen=True)
class Machine:
    """Where and how networks compute; nothing here is part of a protocol."""

    device: torch.device
    precision: str = "fp32"  # fp32, tf32, fp16 or bf16 (these two by autocast)
    compile: bool = False
    at_once: int | None = None  # students trained at a time on a CPU; None: as many as torch has threads, or one

    def autocast(self) -> Any:
        kinds = {"fp16": torch.float16, "bf16": torch.bfloat16}
        return torch.autocast(self.device.type, kinds[self.precision]) if self.precision in kinds else nullcontext()


def compile_network(network: nn.Module) -> None:
    """``network.compile()`` for one of many: torch counts the graphs of all networks of a class together, and from the ninth
    on runs them as they are with nothing but a warning; a ConvNet takes three (to learn, to be measured, batches of any size).
    """
    import torch._dynamo.config as limits  # a second of work, for who compiles

    limits.recompile_limit = limits.accumulated_recompile_limit  # 256
    network.compile()


def machine_of(compute: ComputeSettings, local: int = 0, scoring: bool = False) -> Machine:
    """The machine that these settings ask for, to train on or for ``scoring`` alone.

    Raises ConfigError where the device or the precision cannot be used.
    """
    device = pick_device(compute.device, local)
    return Machine(device, pick_precision(compute.precision, device, scoring), compute.compile, compute.students_at_once)


# ---- to and from the device ------------------------------------------------------------------------------------------


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device; from pinned memory to a GPU, so that nobody waits for it."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: Tensor) -> tuple[Tensor, Callable[[], None]]:
    """A copy on the CPU that is under way, and what waits for its arrival."""
    if tensor.device.type != "cuda":
        return tensor.cpu(), lambda: None
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(tensor.device))  # of the tensor's device, whichever is the current one
    return host, event.synchronize


# ---- memory ----------------------------------------------------------------------------------------------------------


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep what is freed (mallopt(3)), in this process from now on; whether it did.

    A step of a training frees many megabytes and soon asks for them again.  glibc would give such blocks back to the system
    and get them again page by page, filled with zeros: a quarter to a half of a step on a CPU.  Without effect on results;
    other allocators (macOS, Windows, musl) are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
