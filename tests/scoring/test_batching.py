"""Batches on a device: what is launched when, what is made again, and which copies a GPU would have to wait for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY
from diffusers import AutoencoderKL, UNet2DConditionModel
from pictures import PROMPTS, SETTINGS, picture
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from diffsel.scoring import draws, features, maps
from diffsel.scoring.batching import Job
from diffsel.scoring.draws import Scorer
from diffsel.scoring.features import Patch, embed_patches
from diffsel.scoring.folder import ModelFolder
from diffsel.scoring.maps import score_images
from diffsel.scoring.priors.sd import Prior
from diffsel.settings.sections import FeatureSettings

SHAPE = (4, 8, 8)
GPU = torch.device("cuda:0")


def job(log: list[str], items: str, fails: str = "") -> Job[str]:
    """What it makes of an item is its letter's number; it logs what is launched and what arrives.  The arrival of a batch
    with an item of ``fails`` and another one fails."""

    def launch(chunk: list[str]) -> tuple[torch.Tensor, object]:
        batch = "".join(chunk)
        log.append(f"launch {batch}")

        def arrived() -> None:
            if set(batch) & set(fails) and len(set(batch)) > 1:
                raise RuntimeError("CUDA error: out of memory")
            log.append(f"take {batch}")

        return torch.tensor([ord(item) for item in chunk]), arrived

    return Job(items, SHAPE, 1, launch)


def test_the_device_has_work_at_the_end_of_every_shape() -> None:
    log: list[str] = []

    def jobs() -> Iterator[Job[str]]:
        for items in ("abc", "de"):
            log.append(f"make {items}")
            yield job(log, items)

    found = [(item, chr(int(value))) for item, value in Scorer(SimpleNamespace(), SETTINGS, 0, 2).batches(jobs())]
    assert found == [(item, item) for item in "abcde"]
    assert log == ["make abc", "launch ab", "launch cc", "take ab", "make de", "launch de", "take cc", "take de"]


def test_a_batch_that_fails_when_it_arrives_is_made_again_in_its_place() -> None:
    log: list[str] = []
    scorer = Scorer(SimpleNamespace(), SETTINGS, 0, 4)
    assert [item for item, _ in scorer.batches([job(log, "abcdefgh", fails="b")])] == list("abcdefgh")
    assert log[:3] == ["launch abcd", "launch efgh", "launch ab"]
    assert scorer.sizes == {SHAPE: 1}


# ---- copies ------------------------------------------------------------------------------------------------------------


class Blocking(TorchDispatchMode):
    """Counts copies between host and device for which the host waits."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made, kwargs = func(*args, **(kwargs or {})), kwargs or {}
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.to) and not kwargs.get("non_blocking"):
            self.count += made.device.type != args[0].device.type
        return made


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Prior]:
    """The tiny model on a GPU that is not there: shapes and devices are real, numbers are not."""
    if torch.__version__.startswith("2.7."):
        pytest.skip("this torch asks the driver for random numbers even of tensors that are not there")
    row = lambda tensor: SimpleNamespace(numpy=lambda: np.zeros(tensor.shape[1:], np.float32))  # noqa: E731
    for module in (draws, features, maps):
        there = lambda tensor, device: torch.empty(tensor.shape, dtype=tensor.dtype, device=device)  # noqa: E731
        monkeypatch.setattr(module, "to_device", there, raising=False)
        monkeypatch.setattr(module, "to_host", lambda tensor: ([row(tensor)] * len(tensor), lambda: None), raising=False)
    monkeypatch.setattr(draws, "draw_noise", lambda key, draw, shape, *_: (1, torch.zeros(shape)))
    model = Prior.__new__(Prior)
    model.folder, model.device, model.dtype, model.forward = ModelFolder(Path(TINY)), torch.device("cpu"), torch.float32, None
    model.read_table()
    model.device = GPU
    config = lambda part: json.loads((Path(TINY) / part / "config.json").read_text())  # noqa: E731
    with FakeTensorMode(allow_non_fake_inputs=True):
        with GPU:
            model.vae = AutoencoderKL.from_config(config("vae")).eval().requires_grad_(False)
            model.network = model.unet = UNet2DConditionModel.from_config(config("unet")).eval().requires_grad_(False)
            model.levels.alphas = torch.empty(1000)
        model.embed_prompts = lambda texts: torch.empty(len(texts), 77, model.unet.config.cross_attention_dim, device=GPU)
        yield model


def test_scoring_and_its_latents_wait_for_no_copy(gpu: Prior) -> None:
    images = [(str(i), picture(i, 64, 64 + 32 * (i % 2))) for i in range(6)]
    with Blocking() as blocking:
        found = dict(score_images(Scorer(gpu, SETTINGS, 0, 8), images, PROMPTS))
    assert sorted(found) == list(range(6))
    assert found[1].latent.shape == (4, 8, 12)
    assert blocking.count == 0


def test_embedding_waits_for_no_copy(gpu: Prior) -> None:
    patches = [Patch(str(i), picture(i), (0, 8, 32, 32)) for i in range(5)]
    with Blocking() as blocking:
        assert len(list(embed_patches(Scorer(gpu, SETTINGS, 0, 4), patches, PROMPTS[0], FeatureSettings(ensemble=2)))) == 5
    assert blocking.count == 0
