"""Batches and graphs for the images of a run; its bytes depend on neither."""

from __future__ import annotations

import pytest
import torch
from conftest import draw
from test_method import with_

from diffsel import method
from diffsel.runs.session import start
from diffsel.scoring import batching, draws
from diffsel.scoring.batching import PIXELS, filled_pictures, picture_sizes, vae_batch
from diffsel.scoring.diffusion import Diffusion

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_a_gpu_encodes_a_million_pixels_at_once_and_a_cpu_two_pictures() -> None:
    assert [vae_batch(GPU, side, side) for side in (64, 256, 512, 1024, 2048)] == [256, 16, 4, 2, 2]
    assert [vae_batch(GPU, *size) for size in ((256, 352), (352, 256), (256, 320))] == [10, 10, 12]
    assert [vae_batch(CPU, side, side) for side in (64, 2048)] == [2, 2]


def test_a_small_batch_size_holds_for_pictures_too() -> None:
    found = [picture_sizes({(256, 256): 1000}, GPU, size)[(3, 256, 256)] for size in (1, 4, 5, 16, 64)]
    assert found == [2, 4, 4, 16, 16]


@pytest.mark.parametrize("count", [1, 2, 3, 15, 16, 17, 33, 1000])
def test_batches_of_the_vae_are_even_no_larger_than_allowed_and_hold_few_pictures_twice(count: int) -> None:
    sizes = picture_sizes({(256, 256): count}, GPU, 64)
    size = sizes[(3, 256, 256)]
    assert size % 2 == 0
    assert size * 256 * 256 <= PIXELS
    batches = -(-count // size)
    run = filled_pictures([(256, 256)] * count, sizes)
    assert count <= run == batches * size < count + size
    assert run - count <= max(1, 2 * batches, count / 10)


def test_the_vae_has_more_at_once_where_a_device_wants_it_and_the_same_bytes_alone(
    folder, tmp_path, small, monkeypatch
) -> None:
    """At most six here: 14 squares are two more than twelve, so four batches of four; two upright ones are a pair."""
    source, encoded, original = folder(cat=9, dog=5), [], Diffusion.encode
    for name in ("cat", "dog"):
        draw(source / name / "upright.png", 7, 64, 96)
    for module in (draws, batching):
        monkeypatch.setattr(module, "vae_batch", lambda *_: 6)
    monkeypatch.setattr(Diffusion, "encode", lambda self, x, *a: encoded.append(tuple(x.shape[::2])) or original(self, x, *a))
    session = start(str(source), tmp_path / "run", small)
    encoded.clear()  # the model was asked whether it answers
    method.score(session)
    assert sorted(encoded) == [(2, 96), (4, 64), (4, 64), (4, 64), (4, 64)]
    before = {unit: session.run.map_file(unit).read_bytes() for unit in session.run.units}
    for unit in session.run.units:
        session.run.map_file(unit).unlink()
        method.score(start(str(source), tmp_path / "run", small))
        assert session.run.map_file(unit).read_bytes() == before[unit]


@pytest.mark.parametrize("order", [1, -1])
def test_graphs_of_all_sizes_are_made_in_one_order_whatever_images_come_first(
    folder, tmp_path, small, monkeypatch, order: int
) -> None:
    """A graph remembers the sizes that it was made at; here they are told by a compiler that only listens."""
    source, seen, shapes = folder(cat=1), [], [(64, 64), (64, 96), (96, 64), (64, 128)]
    for i, (width, height) in enumerate(shapes[::order]):
        draw(source / "cat" / f"{i}.png", i, width, height)

    def compile(network, dynamic):
        if hasattr(network, "conv_norm_out") and not hasattr(network, "time_embedding"):
            return network  # the VAE
        return lambda noisy, *rest, **named: seen.append((dynamic, *noisy.shape[2:])) or network(noisy, *rest, **named)

    monkeypatch.setattr(torch, "compile", compile)
    values = with_(small, compute={"compile": True})
    session = start(str(source), tmp_path / "run", values)
    assert not seen  # nor where vectors alone are made
    session.scorer.warm()
    assert list(dict.fromkeys(seen)) == [(True, 8, 8), (True, 8, 12), (True, 12, 8), (True, 16, 8)]
    number = len(seen)
    session.scorer.warm()
    assert len(seen) == number  # once
    method.score(session)
    plain = start(str(source), tmp_path / "plain", small)
    method.score(plain)
    for unit in plain.run.units:
        assert session.run.map_file(unit).read_bytes() == plain.run.map_file(unit).read_bytes()
