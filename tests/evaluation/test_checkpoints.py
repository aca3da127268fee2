"""Weights are read whatever a file is called and whatever harmless things lie beside them; what could run code is named."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffsel.data.classes import ClassInfo
from diffsel.evaluation.checkpoints import as_safetensors, read_checkpoint, read_metrics, read_state, weights_digest
from diffsel.evaluation.networks import build
from diffsel.evaluation.teachers import load_teacher
from diffsel.settings.errors import ConfigError


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build("conv3w8", 3, 16).state_dict()


@pytest.mark.parametrize("name", ["model_best.pth.tar", "last.ckpt", "pytorch_model.bin", "BEST.PTH", "weights"])
def test_the_name_of_a_file_does_not_decide_whether_it_is_read(state, name: str, tmp_path: Path) -> None:
    torch.save({"state_dict": state}, tmp_path / name)
    found = read_checkpoint(str(tmp_path / name))
    assert found.network == "conv3w8"
    assert weights_digest(found.state) == weights_digest(state)


def test_what_training_scripts_store_beside_weights_is_no_hindrance(state, tmp_path: Path) -> None:
    beside = {"args": argparse.Namespace(lr=0.1, name="x"), "best_acc1": np.float64(81.5), "epoch": np.int64(3)}
    torch.save({"model": state, **beside}, tmp_path / "t.pth")
    found = read_checkpoint(str(tmp_path / "t.pth"))
    assert weights_digest(found.state) == weights_digest(state)
    assert found.accuracy == 81.5


@pytest.mark.parametrize(
    ("told", "accuracy"), [(50, 50.0), (1j, None), (float("nan"), None), (1e9, None), ("50", None), ([1, 2], None)]
)
def test_an_accuracy_is_a_percentage_or_unknown(state, told: object, accuracy: float | None, tmp_path: Path) -> None:
    torch.save({"model": state, "best_acc1": told}, tmp_path / "t.pth")
    assert read_checkpoint(str(tmp_path / "t.pth")).accuracy == accuracy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: dict(enumerate(w.values())), "holds no weights; its keys are 0, 1"),
        (lambda w: {name: torch.tensor(0.0) for name in w}, "t.pth: the weights have no classifier known here"),
        (lambda w: {name: torch.tensor(0.0) if "conv.0" in name else v for name, v in w.items()}, "of no network known"),
        (lambda w: {name: value for name, value in w.items() if "conv.0" not in name}, "of no network known"),
    ],
    ids=["keys that are numbers", "scalars", "a first layer without sides", "no first layer"],
)
def test_weights_of_an_odd_layout_are_refused_in_words(state, change, message: str, tmp_path: Path) -> None:
    torch.save(change(state), tmp_path / "t.pth")
    with pytest.raises(ConfigError, match=message):
        read_checkpoint(str(tmp_path / "t.pth"))


class Odd:
    """Something of a training script's own."""


def test_what_could_run_code_is_named_and_not_run(state, tmp_path: Path) -> None:
    torch.save({"model": state, "config": Odd()}, tmp_path / "t.pth")
    with pytest.raises(ConfigError, match=r"holds a .*Odd, which could run code; save the weights alone: torch.save") as caught:
        read_checkpoint(str(tmp_path / "t.pth"))
    assert "\x1b" not in str(caught.value)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ConfigError, match=r"text.pth cannot be read as plain weights"):
        read_checkpoint(str(tmp_path / "text.pth"))


def test_weights_changed_after_they_were_written_are_refused(state, tmp_path: Path) -> None:
    about = {"network": "conv3w8", "classes": ["a", "b", "c"], "size": 16, "digest": weights_digest(state)}
    file = tmp_path / "best.safetensors"
    save_file(state, file, {"diffsel": json.dumps(about)})
    assert read_checkpoint(str(tmp_path)).classes == ("a", "b", "c")
    changed = load_file(file)
    changed["classifier.bias"] += 1
    save_file(changed, file, {"diffsel": json.dumps(about)})
    with pytest.raises(ConfigError, match=r"best.safetensors is damaged .* train it anew"):
        read_checkpoint(str(tmp_path))


def test_what_is_told_of_weights_is_theirs(state, tmp_path: Path) -> None:
    file = tmp_path / "best.safetensors"
    file.write_bytes(as_safetensors(state, {"network": "conv3w8", "classes": ["a", "b", "c"], "size": 16}))
    assert read_checkpoint(str(tmp_path)).classes == ("a", "b", "c")
    file.write_bytes(file.read_bytes().replace(b'\\"a\\", \\"b\\"', b'\\"b\\", \\"a\\"'))
    with pytest.raises(ConfigError, match="what is told of its weights has another digest"):
        read_checkpoint(str(tmp_path))
    save_file(state, file, {"diffsel": "[]"})
    with pytest.raises(ConfigError, match=r"best.safetensors is damaged"):
        read_checkpoint(str(tmp_path))


def test_weights_that_are_no_numbers_label_nothing(state, tmp_path: Path) -> None:
    state["classifier.bias"][1] = torch.nan
    torch.save(state, tmp_path / "t.pth")
    with pytest.raises(ConfigError, match=r"t.pth is damaged \(classifier.bias holds numbers that are not finite"):
        load_teacher(str(tmp_path / "t.pth"), [ClassInfo(name, name) for name in "abc"], 16, torch.device("cpu"))


def test_a_training_goes_on_from_whole_files_alone(state, tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    blob = as_safetensors({**state, "epoch": torch.tensor(2)}, {})
    file.write_bytes(blob)
    assert int(read_state(file)["epoch"]) == 2
    for damaged in (b"", blob[:100], blob[:-9], blob[:-1] + bytes([blob[-1] ^ 1]), as_safetensors(state, {})):
        file.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"state.safetensors is damaged .*; put a whole copy back, or delete it"):
            read_state(file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ConfigError, match=r"state.safetensors is damaged .*a pipe or a device"):
        read_state(file)
    assert read_metrics(tmp_path) == []
    for text in ('{"epoch": 0}\n', '{"epoch": 1}\n{"epoch": 0}\n', "", "{", "[]\n[]\n"):
        (tmp_path / "metrics.jsonl").write_text(text)
        with pytest.raises(ConfigError, match=r"metrics.jsonl is damaged"):
            read_metrics(tmp_path, 2)
