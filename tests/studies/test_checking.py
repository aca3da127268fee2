"""`diffsel check` names what is damaged in any folder of ours, and the sentence that it gives is true."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from students import CPU, Trusting, cell_of

from diffsel.data.images import open_data
from diffsel.evaluation.bench import Bench
from diffsel.evaluation.cells import run_cells
from diffsel.evaluation.fixed import write_fixed
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
    write_fixed(tmp_path / "f", how[0], how[4])
    (tmp_path / "f" / "fixed.safetensors").write_bytes(b"")
    assert list(bad(tmp_path / "f")) == ["fixed.safetensors"]
    found = bad(tmp_path / "l")
    assert list(found) == ["epoch-001.safetensors", "epoch-002.safetensors"]
    assert found["epoch-001.safetensors"] == "holds the labels of another epoch"
    (tmp_path / "l" / "epoch-000.safetensors").unlink()
    assert list(bad(tmp_path / "l")) == ["epoch-000.safetensors", "epoch-001.safetensors", "epoch-002.safetensors"]
    write_labels(tmp_path / "l", *how)
    assert {file.name: file.read_bytes() for file in (tmp_path / "l").iterdir()} == whole
    (tmp_path / "l" / "labels.yaml").write_text("seed: 7")  # then the labels are whole, and stay
    (told,) = check_folder(tmp_path / "l")
    assert (told.file.name, told.remake) == ("labels.yaml", "")
    assert "does not say the settings of the labels" in told.reason


def test_how_many_labels_and_students_there_are_is_told(world, tmp_path: Path, diffsel) -> None:
    """Nobody knows how many there should be, so one that is lost at the end shows in their number alone."""
    bench = Trusting(CPU)
    cell = cell_of(world, bench)
    write_labels(tmp_path / "l", bench.pictures(cell.train), cell.protocol, cell.recipe, 0, cell.teacher, 2)
    run_cells([cell], range(3), tmp_path / "r", bench)
    (next((tmp_path / "r").glob("*/seed-2.json"))).unlink()
    assert f"{tmp_path / 'l'}: labels of 2 epochs" in diffsel("check", tmp_path / "l", "-q")[1]
    assert f"{tmp_path / 'r'}: 2 students, 2 to a cell" in diffsel("check", tmp_path / "r", "-q")[1]


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
    state = tmp_path / "t" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"x")
    assert list(bad(tmp_path / "t")) == ["best.safetensors", "metrics.jsonl", "state.safetensors"]


def test_a_teacher_that_tells_of_fewer_epochs_than_it_had_is_not_whole(colours: Callable[..., None], tmp_path: Path) -> None:
    colours(train=8)
    data = open_data(str(tmp_path / "train"), DataSettings(), 0)
    train(data, None, tmp_path / "t", TrainingSettings(network="conv3w8", size=16, epochs=1, crop="none"), 0, Bench(CPU))
    (tmp_path / "t" / "metrics.jsonl").write_text("")
    assert list(bad(tmp_path / "t")) == ["metrics.jsonl"]


def test_whole_files_of_another_teacher_and_lost_ones_are_found(colours: Callable[..., None], tmp_path: Path, diffsel) -> None:
    colours(train=8)
    data = open_data(str(tmp_path / "train"), DataSettings(), 0)
    for seed, name in enumerate(("t", "other")):
        how = TrainingSettings(network="conv3w8", size=16, epochs=2, crop="none", record=True)
        train(data, None, tmp_path / name, how, seed, Bench(CPU))
    assert bad(tmp_path / "t") == {}
    (tmp_path / "t" / "tracked.txt").touch()  # a tracker's
    for name in ("best.safetensors", "last.safetensors", "records/epoch-001.safetensors"):
        shutil.copy(tmp_path / "other" / name, tmp_path / "t" / name)
    (tmp_path / "t" / "state.safetensors").unlink()
    found = bad(tmp_path / "t")
    assert list(found) == ["best.safetensors", "last.safetensors", "epoch-001.safetensors", "state.safetensors"]
    assert found["best.safetensors"] == "is not what B2SUMS tells (its bytes have another hash)"
    assert found["state.safetensors"] == "is named in B2SUMS but is not there"
    for file in (tmp_path / "other").glob("B2SUMS"):
        file.unlink()
    code, out, _ = diffsel("check", tmp_path / "other", "-q")  # as the first versions wrote them
    assert (code, "has no sums of its files" in out) == (0, True)


def test_an_edited_record_of_an_export_is_told(folder: Callable[..., Path], tmp_path: Path, diffsel) -> None:
    words = ["--method", "random", "--ipc", 1, "--image-size", 64, "--patch-size", 32, "--size", 32, "--out", tmp_path / "set"]
    assert diffsel("select", folder(cat=4), *words)[0] == 0
    assert diffsel("export", tmp_path / "set", "--to", "csv", "--out", tmp_path / "csv")[0] == 0
    assert bad(tmp_path / "csv") == {}
    file = tmp_path / "csv" / "export.yaml"
    whole = file.read_text()
    for old, new, told in (
        ("checksum:", "bhecksum:", "checksum differs"),
        ("format: 2", "format: 6", "this version reads 1 and 2"),
    ):
        file.write_text(whole.replace(old, new))
        assert told in bad(tmp_path / "csv")["export.yaml"]
    file.write_text(whole.replace("form: csv", "form: csw"))
    assert "checksum differs" in bad(tmp_path / "csv")["export.yaml"]
    code, _, err = diffsel("export", tmp_path / "set", "--to", "csv", "--out", tmp_path / "csv")
    assert (code, "checksum differs" in err) == (2, True)


@pytest.mark.parametrize("part", ["latents/cat-000.safetensors", "maps/cat-000.safetensors", "index.parquet", "skipped.jsonl"])
def test_what_is_removed_of_a_run_is_made_again_by_the_command_told(
    part: str, folder: Callable[..., Path], tmp_path: Path, small, diffsel
) -> None:
    from diffsel import method
    from diffsel.runs.session import start

    kept = small.model_copy(update={"compute": small.compute.model_copy(update={"keep_latents": True})})
    method.score(start(str(folder("all my images", cat=3)), tmp_path / "a run", kept))
    file = tmp_path / "a run" / part
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"x")
    code, out, _ = diffsel("check", tmp_path / "a run", "--remove", "-q")
    assert (code, file.exists()) == (0, False)
    command = shlex.split(next(line for line in out.splitlines() if line.startswith("`diffsel")).split("`")[1])
    code, _, err = diffsel(*command[1:], "--device", "cpu", "--batch-size", 8, "-q")
    assert code == 0, err
    assert file.read_bytes() == whole


@pytest.fixture
def scored(folder: Callable[..., Path], tmp_path: Path, small) -> Path:
    from diffsel import method
    from diffsel.runs.session import start

    method.score(start(str(folder(cat=3)), tmp_path / "run", small))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (lambda text: "", "it holds no settings"),
        (lambda text: text[:300], "is damaged"),
        (lambda text: text[: text.index("versions:")], "checksum differs"),  # a whole YAML file all the same
        (lambda text: text.replace("log_snr:\n  - ", "log_snr:\n  - 1"), "checksum differs"),
        (lambda text: text.replace("draws: 3", "draws: 2020-13-45"), "is damaged"),  # which YAML takes for a date
        (lambda text: "[" * 5000, "is damaged"),
        (lambda text: "\0", "is damaged"),
    ],
)
def test_a_record_that_was_cut_or_edited_is_told(scored: Path, cut: Callable[[str], str], message: str, diffsel) -> None:
    file = scored / "run.yaml"
    file.write_text(cut(file.read_text()))
    for words in (("check", scored), ("suspects", scored)):
        code, out, err = diffsel(*words, "-q")
        assert (code, (out + err).count("run.yaml ")) == (1 if words[0] == "check" else 2, 1)
        assert message in out + err
        assert len((out + err).splitlines()) <= 2


def test_what_a_run_still_lacks_is_told(scored: Path, diffsel) -> None:
    whole = (scored / "skipped.jsonl").read_bytes()
    (scored / "skipped.jsonl").unlink()
    (found,) = [each for each in check_folder(scored) if each.reason]
    assert (found.file.name, found.reason) == ("skipped.jsonl", "is not there")
    command = shlex.split(found.remake.split("`")[1])
    code, _, err = diffsel(*command[1:], "--device", "cpu", "--batch-size", 8, "-q")
    assert (code, (scored / "skipped.jsonl").read_bytes()) == (0, whole), err
    assert "not there" not in diffsel("check", scored, "-q")[1]
    (scored / "maps" / "cat-000.safetensors").unlink()
    code, out, _ = diffsel("check", scored, "-q")
    told = f"{scored / 'maps'}: 1 of 1 units are not there (yet), such as cat-000; the next start makes them"
    assert (code, told in out) == (0, True)


def test_vectors_whose_settings_are_lost_are_not_called_whole(scored: Path) -> None:
    (scored / "features" / "0123456789abcdef").mkdir(parents=True)
    found = [each for each in check_folder(scored) if each.reason]
    assert [each.file.name for each in found] == ["settings.yaml"]
    assert "is named after" in found[0].reason
    (scored / "features" / "0123456789abcdef" / "settings.yaml").write_text("a: .nan")
    assert bad(scored) == {"settings.yaml": found[0].reason}


def test_where_images_lie_may_be_written_into_a_record(scored: Path) -> None:
    record = yaml.safe_load((scored / "run.yaml").read_text())
    (scored / "run.yaml").write_text(yaml.safe_dump({**record, "data": "elsewhere"}))
    assert bad(scored) == {}


def test_a_folder_in_a_files_place_is_told_and_stays(scored: Path, diffsel) -> None:
    file = scored / "maps" / "cat-000.safetensors"
    file.unlink()
    file.mkdir()
    (file / "mine.txt").touch()
    code, out, _ = diffsel("check", scored, "--remove", "-q")
    assert (code, (file / "mine.txt").exists()) == (1, True)
    assert "cat-000.safetensors is damaged" in out


def test_a_folder_of_somebody_else_is_told(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("mine")
    with pytest.raises(StoreError, match="is not a run"):
        list(check_folder(tmp_path))


def test_sets_and_exports_without_sums_are_not_called_whole(folder: Callable[..., Path], tmp_path: Path, diffsel) -> None:
    """As the first version wrote them; with sums, nothing is said."""
    data, out = folder(cat=4, dog=4), tmp_path / "set"
    words = ["--method", "random", "--ipc", 1, "--image-size", 64, "--patch-size", 32, "--size", 32, "--out", out, "-q"]
    assert diffsel("select", data, *words)[0] == 0
    assert diffsel("export", out, "--to", "csv", "--out", tmp_path / "csv")[0] == 0
    told = "has no sums of its files: they are there, but their contents were compared with nothing"
    for made, lose in ((out, ("B2SUMS", "README.md")), (tmp_path / "csv", ())):
        code, said, _ = diffsel("check", made, "-q")
        assert (code, told in said) == (0, False)
        for name in lose:
            (made / name).unlink()
        if not lose:
            record = yaml.safe_load((made / "export.yaml").read_text())
            (made / "export.yaml").write_text(yaml.safe_dump({**record, "format": 1, "files": {}, "checksum": None}))
        code, said, _ = diffsel("check", made, "-q")
        assert (code, f"{made} {told}" in said) == (0, True)
