"""A teacher as the judge of sets: what it sees and what it says."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffsel.data.views import normalise
from diffsel.evaluation.seeing import TeacherEye
from diffsel.evaluation.teachers import Teacher
from diffsel.sets.baselines import pad


class Tiny(nn.Module):
    """Means of colours, then a linear layer."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 4)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 4"]:
        return self.last(images.mean((2, 3)))


@pytest.fixture
def eye() -> TeacherEye:
    torch.manual_seed(0)
    rows = torch.tensor([2, 0])  # two of its four outputs
    return TeacherEye(Teacher("tiny", "here", Tiny().eval(), rows, None, "x"), 8, ("cat", "dog"))


def test_realism_is_minus_the_cross_entropy_of_each_tile_in_its_frame_of_zeros(eye: TeacherEye) -> None:
    tiles = [np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8) for i in range(70)]
    found = eye.realism(tiles, "dog", 2)
    for i in (0, 69):  # of different batches
        image = pad(normalise(torch.from_numpy(tiles[i]).permute(2, 0, 1)[None]), 8)
        logits = eye.teacher.network(image)[0, [2, 0]].detach()
        assert found[i] == pytest.approx(float(torch.log_softmax(logits, 0)[1]), abs=1e-5)
    assert (found < 0).all()


def test_features_are_what_goes_into_the_last_layer(eye: TeacherEye) -> None:
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = (250, 120, 30)  # the middle square is this colour alone
    square = np.full((8, 8, 3), (250, 120, 30), np.uint8)
    found = eye.vectors([wide, square])
    colour = normalise(torch.tensor([250.0, 120, 30]).reshape(1, 3, 1, 1)).flatten()
    expected = (colour / colour.norm()).numpy()
    np.testing.assert_allclose(found, [expected, expected], atol=1e-5)
    with ThreadPoolExecutor(4) as pool:  # as a report asks for several classes
        many = [[wide] * (1 + i) for i in range(40)]
        assert [len(each) for each in pool.map(eye.vectors, many)] == [*range(1, 41)]
    assert eye.name == "the last features of tiny"
