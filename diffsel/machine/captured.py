"""Forward and backward of a batch as a CUDA graph: one launch in the place of a hundred, which take longer than the work."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LOG = logging.getLogger(__name__)
Value = Tensor | float | None
WARM_UP = 2  # calls in which libraries choose their kernels and ask for memory; neither can be captured


@dataclass(frozen=True)
class Recorded:
    """A graph with what it reads and what it writes."""

    replay: Callable[[], None]
    inputs: dict[str, Any]  # tensors, or None
    outputs: Tensor
    gradients: list[Tensor | None]


class Captured:
    """``run(name=value, ...) -> outputs``, which leaves gradients in ``weights``, as a graph for each set of shapes.

    The first ``WARM_UP`` calls of every shape run as they are, and so does everything where a graph cannot be had, which is
    told once.  A number among the values becomes a tensor of no dimension, so that it may change from call to call.
    All graphs work in the same memory, since no two run at a time.
    """

    def __init__(self, run: Callable[..., Tensor], weights: Sequence[nn.Parameter]):
        self.run, self.weights, self.refused = run, weights, False
        self.pool: Any = None  # memory of the graphs
        self.calls: dict[tuple, int] = {}
        self.graphs: dict[tuple, Recorded] = {}

    def __call__(self, **values: Value) -> Tensor:
        key = tuple((name, each.shape) for name, each in values.items() if isinstance(each, Tensor))
        if key not in self.graphs:
            self.calls[key] = self.calls.get(key, 0) + 1
            if self.refused or self.calls[key] <= WARM_UP or not self._capture(key, values):
                self._clear()
                return self.run(**values)
        graph = self.graphs[key]
        for name, held in graph.inputs.items():
            value = values[name]
            if isinstance(value, Tensor):
                held.copy_(value)
            elif value is not None:
                held.fill_(value)
        graph.replay()
        for weight, gradient in zip(self.weights, graph.gradients, strict=True):
            weight.grad = gradient
        return graph.outputs.clone()  # the next replay writes there

    def _capture(self, key: tuple, values: dict[str, Value]) -> bool:
        device = self.weights[0].device
        held = {name: _held(value, device) for name, value in values.items()}
        self._clear()  # then captured gradients are written, not added to
        try:
            self.pool = self.pool or new_pool()
            replay, outputs = record(lambda: self.run(**held), self.pool)
        except RuntimeError as error:
            self.refused = True
            LOG.warning("note: steps are launched one by one: no CUDA graph can be had (%s)", str(error).splitlines()[0])
            return False
        self.graphs[key] = Recorded(replay, held, outputs, [weight.grad for weight in self.weights])
        return True

    def _clear(self) -> None:
        for weight in self.weights:
            weight.grad = None


def _held(value: Value, device: torch.device) -> Tensor | None:
    if value is None:
        return None
    return value.clone() if isinstance(value, Tensor) else torch.full((), value, device=device)


def new_pool() -> Any:
    return torch.cuda.graph_pool_handle()


def record(work: Callable[[], Tensor], pool: Any) -> tuple[Callable[[], None], Tensor]:
    """What does ``work`` again when called, in the same memory, and where its outputs lie; nothing is computed here."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        outputs = work()
    return graph.replay, outputs
