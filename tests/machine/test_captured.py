"""Captured steps give what steps launched one by one give.  No GPU: a recording is played here by doing the work again."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from diffsel.data.albums import Pictures
from diffsel.data.classes import ClassInfo
from diffsel.evaluation import students as evaluation
from diffsel.evaluation.batches import online
from diffsel.evaluation.networks import build
from diffsel.evaluation.protocols import resolve_recipe
from diffsel.evaluation.teachers import Teacher
from diffsel.machine import captured
from diffsel.machine.captured import WARM_UP, Captured
from diffsel.machine.device import Machine
from diffsel.settings.training import ProtocolSettings


def slope(weight: nn.Parameter) -> Tensor:
    assert weight.grad is not None
    return weight.grad


class Recorder:
    """In the place of ``record``: as a graph, it writes where the capture has written, and its capture leaves no trace."""

    def __init__(self, network: nn.Module):
        self.network, self.recorded, self.replayed = network, 0, 0

    def __call__(self, work: Callable[[], Tensor], pool: object) -> tuple[Callable[[], None], Tensor]:
        weights, before = list(self.network.parameters()), {k: v.clone() for k, v in self.network.state_dict().items()}
        outputs = work()
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        assert len(gradients) == len(weights)
        self.network.load_state_dict(before)
        self.recorded += 1
        for each in (outputs, *gradients):
            each.fill_(torch.nan)  # nothing is computed by a capture

        def replay() -> None:
            for weight in weights:
                weight.grad = None
            outputs.copy_(work())
            for kept, weight in zip(gradients, weights, strict=True):
                kept.copy_(slope(weight))
                weight.grad = torch.full_like(weight, torch.nan)  # who captured puts the graph's own there
            self.replayed += 1

        return replay, outputs


def trained(
    protocol: ProtocolSettings, images: int, monkeypatch: pytest.MonkeyPatch, capture: bool
) -> tuple[dict[str, Tensor], list[tuple[float, int]], Recorder]:
    """Weights and steps of five epochs on noise, of batches of 8 and what is left over."""
    recipe = resolve_recipe(protocol, classes=2, ipc=images // 2, factor=1, size=16, student="conv3w8")
    pixels = torch.randint(0, 256, (images, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pictures = Pictures(pixels, torch.arange(images) % 2, (ClassInfo("a", "a"), ClassInfo("b", "b")), "noise")
    torch.manual_seed(0)
    teacher = Teacher("conv3w8", "", build("conv3w8", 2, 16).eval(), torch.arange(2), None, "")
    network = build("conv3w8", 2, 16).train()
    recorder, machine = Recorder(network), Machine(torch.device("cpu"))
    steps: list[evaluation.Step] = []
    monkeypatch.setattr(captured, "record", recorder)
    monkeypatch.setattr(captured, "new_pool", lambda: 1)
    optimizer, scaler = evaluation.make_optimizer(network, protocol, recipe), torch.amp.GradScaler("cpu", enabled=False)
    learn = evaluation.learner(network, protocol, recipe, machine, scaler)
    learn = Captured(learn, list(network.parameters())) if capture else learn
    source = online(pictures, protocol, recipe, 0, teacher if protocol.labels == "soft" else None)
    for epoch in range(5):
        steps += evaluation.train_epoch(network, source(epoch), optimizer, protocol, recipe, machine, scaler, learn)
    return network.state_dict(), [(float(step.loss), int(step.right)) for step in steps], recorder


@pytest.mark.parametrize("options", [{}, {"double_forward": True, "mix": "mixup"}, {"labels": "hard"}])
def test_students_are_the_same(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shapes take turns, each with gradients of its own; losses that were given out stay as they were."""
    protocol = ProtocolSettings(epochs=5, size=16, batch_size=8, **options)
    (plain, told, idle), (ours, seen, recorder) = (trained(protocol, 20, monkeypatch, capture) for capture in (False, True))
    steps, shapes = 5 * 3, 2  # 8, 8 and 4
    assert (idle.recorded, recorder.recorded, recorder.replayed) == (0, shapes, steps - WARM_UP * shapes)
    exact = protocol.labels == "soft"  # else a share is a float64 here and a float32 there
    torch.testing.assert_close(ours, plain, **({"rtol": 0, "atol": 0} if exact else {"rtol": 1e-3, "atol": 1e-4}))
    assert seen == told if exact else [a[0] for a in seen] == pytest.approx([b[0] for b in told], rel=1e-4)


def test_what_cannot_be_captured_runs_as_it_is(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(work: Callable[[], Tensor], pool: object) -> tuple[Callable[[], None], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(captured, "record", refuse)
    monkeypatch.setattr(captured, "new_pool", lambda: 1)
    weight = nn.Parameter(torch.tensor(2.0))

    def run(x: Tensor, share: float) -> Tensor:
        loss = share * weight * x
        loss.backward()
        return loss.detach()

    learn, found = Captured(run, [weight]), []
    with caplog.at_level(logging.WARNING):
        for number in range(6):
            found.append((float(learn(x=torch.tensor(float(number)), share=0.5)), float(slope(weight))))
    assert found == [(float(n), 0.5 * n) for n in range(6)]
    assert [each.getMessage() for each in caplog.records] == [
        "note: steps are launched one by one: no CUDA graph can be had (operation not permitted when stream is capturing)"
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    weight = nn.Parameter(torch.tensor(2.0, device="cuda"))

    def run(x: Tensor, share: float) -> Tensor:
        loss = (share * weight * x).mean()
        loss.backward()
        return loss.detach()

    learn = Captured(run, [weight])
    for number in range(12):
        x = torch.full((1 + number % 2,), float(number), device="cuda")  # two shapes in one memory
        loss = learn(x=x, share=0.1 * number)
        assert (float(loss), float(slope(weight))) == pytest.approx((0.2 * number**2, 0.1 * number**2))
    assert len(learn.graphs) == 2
    assert not learn.refused
