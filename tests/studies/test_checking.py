"""`diffsel check` names what is damaged in any folder of ours, and the sentence that it gives is true."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from students import CPU, Trusting, cell_of

from diffsel.data.images import open_data
from diffsel.evaluation.bench import Bench
from diffsel.evaluation.storing import write_labels
from diffsel.evaluation.teaching import train
from diffsel.settings.errors import StoreError
from diffsel.settings.sections import DataSettings
from diffsel.settings.training import TrainingSettings
from diffsel.studies.checking import check_folder


def bad(path: Path) -> dict[str, str]:
    """What is wrong, by file name."""
    return {each.file.name: each.reason for each in check_folder(path) if each.reason}


def test_labels_of_other_epochs_and_damaged_ones_are_found_and_written_again(world, tmp_path: Path) -> None:
    bench = Trusting(CPU)
    cell = cell_of(world, bench)
    how = bench.pictures(cell.train), cell.protocol, cell.recipe, 0, cell.teacher, 3
    write_labels(tmp_path / "l", *how)
    assert bad(tmp_path / "l") == {}
    whole = {file.name: file.read_bytes() for file in (tmp_path / "l").iterdir()}
    shutil.copy(tmp_path / "l" / "epoch-000.safetensors", tmp_path / "l" / "epoch-001.safetensors")
    (tmp_path / "l" / "epoch-002.safetensors").write_bytes(b"")
    found = bad(tmp_path / "l")
    assert list(found) == ["epoch-001.safetensors", "epoch-002.safetensors"]
    assert found["epoch-001.safetensors"] == "holds the labels of another epoch"
    write_labels(tmp_path / "l", *how)
    assert {file.name: file.read_bytes() for file in (tmp_path / "l").iterdir()} == whole


def test_a_teachers_files_are_read_to_the_last_weight(colours: Callable[..., None], tmp_path: Path) -> None:
    colours(train=8)
    data = open_data(str(tmp_path / "train"), DataSettings(), 0)
    train(data, None, tmp_path / "t", TrainingSettings(network="conv3w8", size=16, epochs=1, crop="none"), 0, Bench(CPU))
    assert bad(tmp_path / "t") == {}
    file = tmp_path / "t" / "best.safetensors"
    blob = bytearray(file.read_bytes())
    blob[-2] ^= 1
    file.write_bytes(blob)
    (tmp_path / "t" / "metrics.jsonl").write_text("{")
    assert list(bad(tmp_path / "t")) == ["best.safetensors", "metrics.jsonl"]


@pytest.mark.parametrize("part", ["latents", "maps"])
def test_latents_and_maps_that_are_removed_are_made_again_by_the_command_told(
    part: str, folder: Callable[..., Path], tmp_path: Path, small, diffsel
) -> None:
    from diffsel import method
    from diffsel.runs.session import start

    kept = small.model_copy(update={"compute": small.compute.model_copy(update={"keep_latents": True})})
    method.score(start(str(folder(cat=3)), tmp_path / "run", kept))
    file = tmp_path / "run" / part / "cat-000.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"x")
    code, out, _ = diffsel("check", tmp_path / "run", "--remove", "-q")
    assert (code, file.exists()) == (0, False)
    command = next(line for line in out.splitlines() if line.startswith("`diffsel")).split("`")[1].split()
    code, _, err = diffsel(*command[1:], "--device", "cpu", "--batch-size", 8, "-q")
    assert code == 0, err
    assert file.read_bytes() == whole


def test_a_folder_of_somebody_else_is_told(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("mine")
    with pytest.raises(StoreError, match="is not a run"):
        list(check_folder(tmp_path))
