"""What a pass will cost is what it does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from conftest import draw
from test_method import distill, with_

from diffsel import method
from diffsel.data.images import ImageData, count_images
from diffsel.runs import forecast as module
from diffsel.runs.forecast import forecast
from diffsel.runs.session import start
from diffsel.scoring.diffusion import Diffusion
from diffsel.scoring.draws import open_scorer
from diffsel.settings.settings import Settings


def test_a_plan_counts_what_the_pass_will_do(folder, tmp_path, small: Settings) -> None:
    """Forwards, bytes and classes as the pass then has them; FLOP as one image has them, times images."""
    source = folder(cat=5, dog=3)
    scorer = open_scorer(small)
    told = forecast(str(source), small, scorer)
    session = distill(source, tmp_path / "run", small)
    assert (told.classes, told.images) == (2, 8)
    assert told.forwards == session.counts["U-Net forwards"]
    tensors = session.run.maps(session.run.units[0])[0]
    assert told.bytes * 5 // 8 == sum(value.nbytes for value in tensors.values())  # 5 of the 8 images
    half = forecast(str(source), with_(small, data={"images_per_class": 2}), scorer)
    assert half.images == 4
    assert half.flop == pytest.approx(told.flop / 2)
    assert told.seconds > 0
    assert told.rate > 0
    more = forecast(str(source), with_(small, scoring={"adaptive_draws": 12}), scorer)
    assert (more.forwards, more.most_forwards) == (told.forwards * 7 // 4, 4 * told.forwards)  # a quarter gets all
    assert "adaptive" in str(more)


@pytest.mark.parametrize("rivals", [1, ("owl", "cat")])
def test_forwards_and_bytes_of_rivals_are_told_beforehand(folder, tmp_path, small: Settings, rivals) -> None:
    source, asked = folder(cat=2, dog=1, owl=2), with_(small, patches={"rivals": rivals})
    plain, told = (forecast(str(source), each, open_scorer(small)) for each in (small, asked))
    session = start(str(source), tmp_path / "run", asked)
    method.score(session)
    assert told.rival_forwards == session.counts["U-Net forwards of rivals"]
    assert f"forwards of rivals  {told.rival_forwards}\n" in str(told)
    assert (told.forwards, plain.rival_forwards) == (plain.forwards, 0)
    assert told.flop > plain.flop
    part = session.run.rivals
    assert part is not None
    stored = sum(value.nbytes for unit in session.run.units for value in part.read(unit).values())
    assert told.bytes - plain.bytes == stored


def test_the_plan_counts_what_fills_up_the_batches(folder, tmp_path, small, monkeypatch) -> None:
    """Photographs come in many sizes; the samples that really run are those of the plan."""
    source = folder(cat=3)
    for i, size in enumerate([(96, 64), (96, 64), (64, 96), (128, 64)]):
        draw(source / "cat" / f"wide{i}.png", i, *size)
    values = with_(small, compute={"batch_size": 32})
    told, run = forecast(str(source), values, open_scorer(values)), []
    original = Diffusion.predict_noise

    def predict(self, noisy, *rest):
        run.append(len(noisy))
        return original(self, noisy, *rest)

    monkeypatch.setattr(Diffusion, "predict_noise", predict)
    method.score(start(str(source), tmp_path / "run", values))
    assert run == [24, 16, 8, 8]  # of the square, and of the others as many draws as there are, in eights, not 32 samples
    assert (told.forwards, told.filled) == (7 * 3 * 2, sum(run)) == (42, 56)
    assert "42 (56 with filling of batches)" in str(told)


def test_images_are_counted_without_being_read(folder, small) -> None:
    source = folder(cat=5, dog=3)
    (source / "cat" / "0.png").write_bytes(b"not looked at")
    assert count_images(str(source), small.data) == {"cat": 5, "dog": 3}
    assert count_images(str(source), small.data.model_copy(update={"images_per_class": 4})) == {"cat": 4, "dog": 3}


@pytest.mark.parametrize("beside", [False, True])
def test_hours_are_those_of_each_part_at_each_shape(folder, small, monkeypatch, beside: bool) -> None:
    """On a clock that model, VAE and reading alone move: 1 s a latent cell and sample, 100 s a picture, 30 s to read one."""
    source, now = folder(cat=6), [0.0]
    for i, size in enumerate([(96, 64), (96, 64), (64, 128), (128, 64)]):
        draw(source / "cat" / f"wide{i}.png", i, *size)

    def moved(original, seconds):
        def call(self, first, *rest):
            now[0] += seconds(first)
            return original(self, first, *rest)

        return call

    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(Diffusion, "predict_noise", moved(Diffusion.predict_noise, lambda z: len(z) * z[0, 0].numel()))
    monkeypatch.setattr(Diffusion, "encode", moved(Diffusion.encode, lambda images: 100 * len(images)))
    monkeypatch.setattr(ImageData, "pixels", moved(ImageData.pixels, lambda row: 30))
    values = with_(small, compute={"workers": 1})
    told = forecast(str(source), values, open_scorer(values))
    cells = (6 * 64 + 2 * 96 + 2 * 128) / 10
    assert told.parts["U-Net"] == pytest.approx(told.filled * cells)
    assert (told.parts["VAE"], told.parts["reading"], told.parts["noise"]) == (1200, 300, 0)  # two of each 64 x 128, 128 x 64
    assert told.shapes[0] == (4, 8, 8)
    assert len(told.shapes) == 4
    assert "the U-Net at 8 x 8, 8 x 12, 8 x 16; the other 1 shapes by their area" in str(told)
    assert "fp32 on cpu" in str(told)
    device = told.parts["U-Net"] + 1200
    assert replace(told, beside=beside).seconds == pytest.approx(device if beside else device + 300)
    slow = replace(told, beside=beside, parts={**told.parts, "reading": 1e9})
    assert slow.seconds == pytest.approx(1e9 if beside else device + 1e9)


class Called(torch.nn.Module):
    """A module, since it stands in the place of one."""

    def __init__(self, call: Callable[..., object]):
        super().__init__()
        self.forward = call


@pytest.mark.parametrize("sizes", [1, 4])
def test_what_compiling_takes_is_told_and_flop_are_counted_without_it(folder, small, monkeypatch, sizes: int) -> None:
    """On a clock: a graph takes 1,000 s, of each size or of all, and a call 1 s; of many sizes the VAE is not compiled."""
    source, now, asked, eager = folder(cat=6), [0.0], [], []
    for i, width in enumerate([96, 128, 160][: sizes - 1]):
        draw(source / "cat" / f"wide{i}.png", i, width, 64)

    def compiler(network, dynamic):
        asked.append(dynamic)
        made: set[object] = set()

        def call(noisy, *rest, **named):
            graph = "all" if dynamic else noisy.shape
            now[0] += 1 + 1000 * (graph not in made) * (not eager)
            made.update([] if eager else [graph])
            return network(noisy, *rest, **named)

        return Called(call)

    @contextmanager
    def stance(asked_for):
        assert asked_for == "force_eager"
        eager.append(True)
        yield
        eager.pop()

    plain = forecast(str(source), small, open_scorer(small))
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(torch.compiler, "set_stance", stance)
    values = with_(small, compute={"compile": True})
    told = forecast(str(source), values, open_scorer(values))
    graphs = 2 if sizes == 1 else 1
    assert told.parts["compiling"] == 1000 * graphs
    assert told.seconds == pytest.approx(1000 * graphs + told.parts["U-Net"] + told.parts["VAE"])
    assert asked[-1] is (sizes > 3)
    assert told.flop == plain.flop
    assert f"compiling {graphs / 3.6:.3g};" in str(told)
    assert "compiling" not in plain.parts
