"""What a probe asks, and what it says of the embedded prior on its own digits."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image

from diffsel.runs.probe import LABELS, _labels
from diffsel.studies import scenes


def test_every_image_is_tried_with_its_own_label_first_and_few_others() -> None:
    assert sorted(_labels(2, 4, 0)) == [0, 1, 2, 3]
    many = _labels(7, 1000, 0)
    assert many[0] == 7
    assert len(set(many)) == len(many) == LABELS
    assert many.tolist() == _labels(7, 1000, 0).tolist() != _labels(7, 1000, 1).tolist()


def test_the_embedded_prior_knows_digits_and_not_other_words(tmp_path: Path, diffsel) -> None:
    for label, name in enumerate(scenes.NAMES[:4]):
        for i in range(4):
            for folder in (name, f"thing{label}"):
                file = tmp_path / ("digits" if folder == name else "things") / folder / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(scenes.compose("test", label, i).pixels).save(file)
    words = ("--model", "demo", "--image-size", 64, "--draws", 4, "--bins", 1, "--images", 4, "--device", "cpu", "-q")
    code, out, err = diffsel("probe", tmp_path / "digits", *words)
    assert (code, err) == (0, "")
    assert f"nats (at most {math.log(4):.2f})" in out
    found, other = (row_of_all(diffsel("probe", tmp_path / name, *words)[1]) for name in ("digits", "things"))
    assert found["top1"] >= 60  # chance is 25
    assert found["auroc"] >= 0.8
    assert other["auroc"] <= 0.7
    assert found["nats"] > other["nats"]


def row_of_all(out: str) -> dict[str, float]:
    line = next(line.split() for line in out.splitlines() if line.startswith("all "))
    return {"top1": float(line[2]), "auroc": float(line[5]), "nats": float(line[8].replace("−", "-"))}
