"""What a pass will cost is what it does."""

from __future__ import annotations

import pytest
from conftest import draw
from test_method import distill, with_

from diffsel import method
from diffsel.data.images import count_images
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
    assert told.bytes * 5 // 8 == sum(value.nbytes for value in tensors.values())
    half = forecast(str(source), with_(small, data={"images_per_class": 2}), scorer)
    assert half.images == 4
    assert half.flop == pytest.approx(told.flop / 2)
    assert told.seconds > 0
    assert told.rate > 0
    more = forecast(str(source), with_(small, scoring={"adaptive_draws": 12}), scorer)
    assert (more.forwards, more.most_forwards) == (told.forwards, 4 * told.forwards)
    assert "adaptive" in str(more)


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
