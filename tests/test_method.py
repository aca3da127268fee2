"""The stages together: same settings, same bytes, whatever happens on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import TWO_PROCESSES, draw, small_values
from PIL import Image
from safetensors.torch import load_file, save_file

from diffsel import method
from diffsel.data.images import ImageData
from diffsel.machine import claims
from diffsel.machine.processes import as_shard
from diffsel.machine.tensors import read_unit
from diffsel.report.text import trace_image
from diffsel.runs import run as run_module
from diffsel.runs import writing
from diffsel.runs.index import read_skipped
from diffsel.runs.session import Session, resume, start
from diffsel.scoring import answers, features
from diffsel.scoring.diffusion import Diffusion
from diffsel.sets.candidates import check_set, mosaic_factor, most_patches
from diffsel.sets.opening import read_set
from diffsel.settings.errors import ConfigError, DataError, SelectionError, SettingsDiffer, StoreError
from diffsel.settings.settings import Settings, resolve


def with_(settings: Settings, **sections: dict) -> Settings:
    values = settings.model_dump(mode="json")
    for section, fields in sections.items():
        values[section] = {**values[section], **fields}
    return resolve(values)


def distill(source: Path, out: Path, settings: Settings, *ipcs: int) -> Session:
    return method.make_sets(source, out, {n: out / f"ipc{n}" for n in ipcs or (1,)}, settings)


def contents(run: Path) -> dict[str, bytes]:
    """Every result of a run (run.yaml holds versions, so it is not one)."""
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file() and p.name != "run.yaml"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the model's verbs, as they are called on images of a user: not on those that tell whether it answers."""
    seen: list[str] = []
    monkeypatch.setattr(answers, "check_answers", lambda *_: None)
    for verb in ("encode", "predict_noise", "features"):
        original = getattr(Diffusion, verb)
        monkeypatch.setattr(Diffusion, verb, lambda self, *a, _v=verb, _o=original: seen.append(_v) or _o(self, *a))
    return seen


def test_the_main_job_end_to_end(folder: Callable[..., Path], tmp_path: Path, small: Settings) -> None:
    source = folder(cat=9, dog=8, size=(70, 64))
    (source / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff no")
    run = tmp_path / "run"
    done = distill(source, run, small, 1, 2)
    assert done.counts["images scored"] == 17
    assert done.counts["U-Net forwards"] == 17 * 3 * 2
    assert [s.path for s in read_skipped(run)] == ["cat/broken.jpg"]
    for ipc in (1, 2):
        lines = [json.loads(line) for line in (run / f"ipc{ipc}" / "metadata.jsonl").read_text().splitlines()]
        assert len(lines) == 2 * ipc
        sources = [tile["source"] for line in lines for tile in line["tiles"]]
        assert len(set(sources)) == len(sources) == 8 * ipc
    assert not list(tmp_path.rglob(".part-*"))


def test_what_is_stored_serves_other_sets_without_any_network(folder, tmp_path, small, calls) -> None:
    source, run = folder(cat=9, dog=8), tmp_path / "run"
    distill(source, run, small, 1)
    assert calls
    calls.clear()
    session = resume(run, small)
    method.select(session, 2, tmp_path / "ipc2")
    method.select(session, 1, tmp_path / "dogs", classes=["dog"])
    method.select(resume(run, with_(small, selection={"method": "diffsel-noclusters"})), 2, tmp_path / "plain")
    method.select(resume(run, with_(small, assembly={"factor": 1})), 8, tmp_path / "ipc8")
    assert calls == []
    assert (tmp_path / "dogs" / "dog" / "00000.png").exists()
    assert not (tmp_path / "dogs" / "cat").exists()
    method.embed(resume(run, with_(small, patches={"patch_size": 48})))  # other patches need features, but no new maps
    assert set(calls) == {"encode", "features"}


def test_a_finished_job_does_nothing_when_started_again(folder, tmp_path, small, calls) -> None:
    source, run = folder(cat=5), tmp_path / "run"
    distill(source, run, small)
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*.safetensors")}
    calls.clear()
    distill(source, run, small)
    assert calls == []
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*.safetensors")}


def test_the_bytes_do_not_depend_on_file_order_or_place(folder, tmp_path, small, monkeypatch) -> None:
    first = folder("one", cat=5, dog=4)
    distill(first, tmp_path / "run1", small)
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *a, **k: ((w, d[::-1], f[::-1]) for w, d, f in walk(*a, **k)))
    second = folder("two", cat=5, dog=4)
    distill(second, tmp_path / "run2", small)
    assert contents(tmp_path / "run1") == contents(tmp_path / "run2")


def test_an_image_has_the_same_maps_in_a_smaller_data_set(folder, tmp_path, small) -> None:
    source = folder(cat=5)
    distill(source, tmp_path / "all", small)
    (source / "cat" / "1.png").unlink()
    distill(source, tmp_path / "four", small)
    maps = [resume(tmp_path / name, small) for name in ("all", "four")]
    tensors = [session.run.maps(session.run.units[0])[0] for session in maps]
    paths = [{row.path: row.row for row in session.data.rows} for session in maps]
    for path, row in paths[1].items():
        assert np.array_equal(tensors[1][f"{row}.differential"], tensors[0][f"{paths[0][path]}.differential"])


def test_units_may_be_computed_in_any_order(folder, tmp_path, small, monkeypatch) -> None:
    source = folder(cat=5, dog=4, emu=4)
    distill(source, tmp_path / "run1", small)
    from diffsel.machine.processes import Workers

    share = Workers.share
    monkeypatch.setattr(Workers, "share", lambda self, items, *rest, **how: share(self, list(items)[::-1], *rest, **how))
    distill(source, tmp_path / "run2", small)
    assert contents(tmp_path / "run1") == contents(tmp_path / "run2")


def test_a_run_of_a_gpus_precision_is_selected_from_and_traced_without_one(folder, tmp_path, small, monkeypatch) -> None:
    asked = with_(small, compute={"precision": "tf32", "device": "cpu"})
    with monkeypatch.context() as gpu:
        gpu.setattr("diffsel.machine.device.pick_precision", lambda name, device, scoring: name)  # as if it were one
        whole = distill(folder(cat=6, dog=5), tmp_path / "run", asked)
    assert whole.run.precision == "tf32"
    session = resume(tmp_path / "run", asked)
    method.select(session, 2, tmp_path / "set")
    assert len(read_set(tmp_path / "set").pictures) == 4
    assert "class 'cat'" in trace_image(session.run, "cat/0.png", [read_set(tmp_path / "set")])
    with pytest.raises(ConfigError, match="needs a GPU"):
        distill(folder(cat=6, dog=5), tmp_path / "run", asked)


# ---- processes -------------------------------------------------------------------------------------------------------


def command(source: Path, run: Path, config: Path, *launch: str) -> list[str]:
    start_ = [sys.executable, "-m", *launch] if launch else [sys.executable]
    return [*start_, "-m", "diffsel", "distill", str(source), "--out", str(run), "--ipc", "1", "--config", str(config), "-q"]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(small_values()))
    return file


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(folder, tmp_path, small, config) -> None:
    source = folder(**{f"class{i}": 6 for i in range(6)})
    distill(source, tmp_path / "whole", small)
    run = tmp_path / "killed"
    with subprocess.Popen(command(source, run, config), env=ENVIRONMENT) as process:
        deadline = time.monotonic() + 120
        while not list((run / "maps").glob("*.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    done = len(list((run / "maps").glob("*.safetensors")))
    assert 1 <= done < 6
    assert not (run / "ipc1").exists()
    subprocess.run(command(source, run, config), env=ENVIRONMENT, check=True, timeout=240)
    left = {name: blob for name, blob in contents(run).items() if ".part-" not in name}
    assert left == contents(tmp_path / "whole")


def test_two_processes_write_the_same_bytes_as_one(folder, tmp_path, small, config) -> None:
    source = folder(cat=6, dog=5, emu=5)
    distill(source, tmp_path / "one", small)
    subprocess.run(command(source, tmp_path / "two", config, *TWO_PROCESSES), env=ENVIRONMENT, check=True, timeout=240)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_shards_that_never_meet_give_the_same_bytes(folder, tmp_path, small, monkeypatch, order) -> None:
    monkeypatch.setattr(run_module, "UNIT_ROWS", 3)
    monkeypatch.setattr(claims, "_create", lambda *_: pytest.fail("claimed"))
    source = folder(cat=9, dog=8)
    (source / "cat" / "cut.png").write_bytes((source / "cat" / "0.png").read_bytes()[:200])
    for shard in order:
        with as_shard(f"{shard}/3"):
            session = distill(source, tmp_path / "shards", small, 1)
        left = [note for note in session.notes if "by other shards" in note]
        assert bool(left) == (shard != order[-1])
        assert (tmp_path / "shards/ipc1").exists() == (shard == order[-1])
    monkeypatch.undo()
    monkeypatch.setattr(run_module, "UNIT_ROWS", 3)
    distill(source, tmp_path / "whole", small, 1)
    assert contents(tmp_path / "shards") == contents(tmp_path / "whole")


def test_a_shard_is_asked_for_by_the_command_line(folder, tmp_path, diffsel, monkeypatch) -> None:
    monkeypatch.setattr(run_module, "UNIT_ROWS", 3)
    source, run, words = folder(cat=5, dog=4), tmp_path / "run", ["--config", tmp_path / "small.yaml", "-q"]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small_values()))
    assert diffsel("score", source, "--out", run, "--index-only", *words)[0] == 0
    assert (run / "run.yaml").exists()
    assert not (run / "maps").exists()
    code, out, _ = diffsel("score", source, "--out", run, "--shard", "1/2", *words)
    assert (code, "note: 2 of 4 units are still to be made by other shards" in out) == (0, True)
    assert len(list((run / "maps").glob("*.safetensors"))) == 2
    monkeypatch.setenv("DIFFSEL_SHARD", "0/2")
    assert diffsel("score", source, "--out", run, *words)[0] == 0
    assert len(list((run / "maps").glob("*.safetensors"))) == 4
    for wrong in ("2/2", "1", "-1/2", "a/b"):
        code, _, err = diffsel("embed", run, f"--shard={wrong}")
        assert (code, "expected I/N with I from 0 to N - 1" in err) == (2, True)


def test_other_settings_are_refused_and_listed(folder, tmp_path, small, calls) -> None:
    source, run = folder(cat=5), tmp_path / "run"
    distill(source, run, small)
    calls.clear()
    with pytest.raises(SettingsDiffer, match=r"scoring.draws: stored 3, asked 6"):
        start(str(source), run, with_(small, scoring={"draws": 6}))
    with pytest.raises(SettingsDiffer, match="seed: stored 0, asked 1"):
        resume(run, small.model_copy(update={"seed": 1}))
    draw(source / "cat" / "new.png", 9)
    with pytest.raises(SettingsDiffer, match=r"images.count: stored 5, asked 6"):
        start(str(source), run, small)
    assert calls == []


def test_what_cannot_be_selected_is_refused_before_scoring(folder, tmp_path, small, calls) -> None:
    source = folder(cat=5, dog=3)
    with pytest.raises(SelectionError, match="class 'dog' has 3 patches"):
        distill(source, tmp_path / "run", with_(small, assembly={"factor": 2}), 1)
    with pytest.raises(SelectionError, match="ipc 3 is the most it can give"):
        distill(source, tmp_path / "run", small, 4)
    (tmp_path / "run" / "ipc7").mkdir(parents=True)
    (tmp_path / "run" / "ipc7" / "mine.txt").write_text("")
    with pytest.raises(StoreError, match="not a distilled set"):
        method.distill(str(source), tmp_path / "other", {3: tmp_path / "run" / "ipc7"}, with_(small, assembly={"factor": 1}))
    assert calls == []


def test_a_class_too_small_for_mosaics_gives_one_patch_an_image(folder, tmp_path, small) -> None:
    session = distill(folder(cat=9, dog=3), tmp_path / "run", small, 1, 2)
    assert any("class 'dog' has too few patches for 2 x 2" in note for note in session.notes)
    lines = [json.loads(line) for line in (tmp_path / "run" / "ipc2" / "metadata.jsonl").read_text().splitlines()]
    assert [len(line["tiles"]) for line in lines] == [1, 1, 1, 1]
    assert mosaic_factor(session.run, 2, ["cat"])[0] == 2


def test_an_image_that_does_not_decode_may_cost_the_mosaics_but_not_the_set(folder, tmp_path, small) -> None:
    source = folder(cat=5, dog=4)
    broken = source / "dog" / "3.png"
    broken.write_bytes(broken.read_bytes()[:200])  # its header is whole: only the pass finds out
    session = distill(source, tmp_path / "run", small, 1)
    assert any("class 'dog' has too few patches for 2 x 2" in note for note in session.notes)
    lines = [json.loads(line) for line in (tmp_path / "run" / "ipc1" / "metadata.jsonl").read_text().splitlines()]
    assert [len(line["tiles"]) for line in lines] == [1, 1]
    assert most_patches(session.run, ["cat", "dog"]) == {"cat": 5, "dog": 3}
    by_score = with_(small, selection={"method": "diffsel-noclusters"})
    assert most_patches(resume(tmp_path / "run", by_score).run, ["dog"]) == {"dog": 3}


def test_a_baseline_is_not_made_of_a_scoring_pass(folder, tmp_path, small, calls) -> None:
    source, at_random = folder(cat=4), with_(small, selection={"method": "random"})
    with pytest.raises(ConfigError, match="use `diffsel select DATA --method random`"):
        distill(source, tmp_path / "run", at_random)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="needs no scoring pass"):
        check_set(start(str(source), tmp_path / "run", at_random).run, 1, tmp_path / "set")
    assert calls == []


def test_vectors_of_other_clip_weights_in_the_same_folder_are_not_mixed(folder, tmp_path, small) -> None:
    clip = tmp_path / "clip"
    features.random_clip(clip)
    asked = with_(small, features={"kind": "clip", "clip_model": str(clip)})
    source = folder(cat=4)
    distill(source, tmp_path / "run", asked, 1)
    weights = load_file(clip / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, clip / "model.safetensors", {"format": "pt"})
    features._load_clip.cache_clear()
    with pytest.raises(SettingsDiffer, match="weights: stored"):
        distill(source, tmp_path / "run", asked, 1)


def test_classes_may_be_called_as_the_files_of_a_set(folder, tmp_path, small) -> None:
    session = distill(folder(**{"set.yaml": 4, "README.md": 4, "metadata.jsonl": 4}), tmp_path / "run", small, 1)
    lines = [json.loads(line) for line in (tmp_path / "run" / "ipc1" / "metadata.jsonl").read_text().splitlines()]
    assert {line["class"] for line in lines} == {info.folder for info in session.run.classes}
    assert all((tmp_path / "run" / "ipc1" / line["file_name"]).is_file() for line in lines)


def test_prompts_are_checked_before_scoring(folder, tmp_path, small, calls) -> None:
    source = folder(cat=4)
    with pytest.raises(DataError, match=r"\{nmae\}, which class 'cat' lacks"):
        distill(source, tmp_path / "run", with_(small, scoring={"prompts": ["a {nmae}"]}))
    with pytest.raises(ConfigError, match="the model takes 77"):
        distill(source, tmp_path / "run", with_(small, scoring={"prompts": ["word " * 90]}))
    assert calls == []
    assert not (tmp_path / "run").exists()


def test_an_unfinished_run_and_an_unknown_class_are_told(folder, tmp_path, small) -> None:
    session = start(str(folder(cat=4, dog=4)), tmp_path / "run", small)
    with pytest.raises(StoreError, match="cat-000 has no features for these settings yet"):
        method.select(session, 1, tmp_path / "set")
    with pytest.raises(StoreError, match="cat-000 is not scored yet"):
        method.embed(session)
    with pytest.raises(DataError, match=r"class 'cats' is not in .*; there is cat"):
        method.select(session, 1, tmp_path / "set", classes=["cats"])


def test_an_image_edited_between_scoring_and_selecting_is_reported(folder, tmp_path, small) -> None:
    source, run = folder(cat=4), tmp_path / "run"
    distill(source, run, small)
    draw(source / "cat" / "2.png", 99)
    with pytest.raises(DataError, match=r"cat/2.png: edited since it was indexed"):
        method.select(resume(run, small), 1, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_an_image_that_does_not_decode_is_passed_over_by_every_stage(folder, tmp_path, small) -> None:
    source, run = folder(cat=6), tmp_path / "run"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(source / "cat" / "3.jpg")
    (source / "cat" / "3.jpg").write_bytes((source / "cat" / "3.jpg").read_bytes()[:2000])
    distill(source, run, small)
    (lost,) = read_skipped(run)
    assert lost.path == "cat/3.jpg"
    assert "unreadable image" in lost.reason
    session = resume(run, small)
    assert read_unit(session.run.map_file(session.run.units[0]), session.run.mark)[1]["rows"] == [0, 1, 2, 4, 5, 6]


def test_another_model_is_refused_for_a_stored_run(folder, tmp_path, small) -> None:
    import shutil

    source, run = folder(cat=5), tmp_path / "run"
    distill(source, run, small)
    other = shutil.copytree(small.model.model, tmp_path / "other")
    config = other / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    changed = with_(small, model={"model": str(other)}, patches={"patch_size": 16})
    with pytest.raises(StoreError, match="scored with another model"):
        method.embed(resume(run, changed))
    with pytest.raises(SettingsDiffer, match="model: stored"):
        start(str(source), run, changed)


def test_a_file_that_vanishes_mid_run_stops_the_run_and_loses_nothing(folder, tmp_path, small) -> None:
    source, run = folder(cat=16, dog=4), tmp_path / "run"
    session = start(str(source), run, with_(small, compute={"batch_size": 1}))  # a group is 16 images
    blob = (source / "dog" / "1.png").read_bytes()
    (source / "dog" / "1.png").unlink()
    with pytest.raises(DataError, match=r"dog/1.png: No such file"):
        method.score(session)
    assert [p.name for p in (run / "maps").iterdir()] == ["cat-000.safetensors"]
    (source / "dog" / "1.png").write_bytes(blob)
    distill(source, run, small)
    assert read_skipped(run) == []


def test_another_data_folder_is_not_taken_for_the_indexed_one(folder, tmp_path, small) -> None:
    first, run = folder("one", cat=4), tmp_path / "run"
    distill(first, run, small)
    second = folder("two", cat=4)
    draw(second / "cat" / "2.png", 123)
    with pytest.raises(SettingsDiffer, match=r"images.digest"):
        start(str(second), run, small)


def test_a_kill_while_the_run_is_made_is_no_harm(folder, tmp_path, small, monkeypatch) -> None:
    source, run = folder(cat=4), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("diffsel.runs.session.dump_yaml", lambda values: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            start(str(source), run, small)
    assert (run / "skipped.jsonl").exists()
    assert not (run / "run.yaml").exists()
    distill(source, run, small)


@pytest.mark.parametrize(
    ("precision", "way"), [("fp32", "its weights or its noise table"), ("bf16", "use compute.precision = fp32")]
)
def test_maps_that_are_not_finite_are_refused(folder, tmp_path, small, monkeypatch, precision: str, way: str) -> None:
    original = Diffusion.predict_noise
    monkeypatch.setattr(Diffusion, "predict_noise", lambda self, *a: original(self, *a) * 1e4)
    with (
        pytest.raises(ConfigError, match=rf"4 of 4 images overflow; the model does not work in .*{way}"),
        np.errstate(over="ignore"),
    ):
        distill(folder(cat=4), tmp_path / "run", with_(small, compute={"precision": precision}))


def test_batches_are_filled_across_units_and_sizes_and_hold_no_more_than_is_needed(
    folder, tmp_path, small, monkeypatch
) -> None:
    """12 squares are 36 draws, of the upright ones there are 6; each with 2 prompts, and in multiples of eight."""
    source = folder(cat=7, dog=5)
    for name in ("cat", "dog"):
        draw(source / name / "upright.png", 7, 64, 90)
    sizes: list[int] = []
    original = Diffusion.predict_noise
    monkeypatch.setattr(Diffusion, "predict_noise", lambda self, x, *a: sizes.append(len(x)) or original(self, x, *a))
    session = distill(source, tmp_path / "run", with_(small, compute={"batch_size": 10**6}))
    assert sorted(sizes) == [16, 72]
    for unit in session.run.units:  # alone, in batches that are mostly filling
        before = session.run.map_file(unit).read_bytes()
        session.run.map_file(unit).unlink()
        distill(source, tmp_path / "run", with_(small, compute={"batch_size": 10**6}))
        assert session.run.map_file(unit).read_bytes() == before


def test_a_pass_reads_no_image_twice_and_writes_in_another_thread(folder, tmp_path, small, monkeypatch) -> None:
    """Vectors are made while the pixels of the maps are in memory; their bytes are those of the two stages apart."""
    source, read, threads = folder(cat=5, dog=4), Counter[str](), dict[str, set[int]]()
    session = start(source, tmp_path / "apart", small)
    method.score(session)
    method.embed(session)
    pixels, predict, write = ImageData.pixels, Diffusion.predict_noise, writing.write_unit

    def noted(what: str, call: Callable) -> Callable:
        return lambda *args: threads.setdefault(what, set()).add(threading.get_ident()) or call(*args)

    monkeypatch.setattr(ImageData, "pixels", lambda self, row: read.update([row.path]) or pixels(self, row))
    monkeypatch.setattr(Diffusion, "predict_noise", noted("device", predict))
    monkeypatch.setattr(writing, "write_unit", noted("disk", write))
    method.score(start(source, tmp_path / "run", small), vectors=True)
    assert set(read.values()) == {1}
    assert len(read) == 9
    assert not threads["device"] & threads["disk"]
    assert contents(tmp_path / "run") == contents(tmp_path / "apart")
    session = resume(tmp_path / "run")
    method.embed(session)
    assert "patches embedded" not in session.counts


def test_hostile_class_names_stay_inside_the_run(tmp_path, small) -> None:
    names = ["a b", "-rf", "new\nline", "ünï 猫", "<script>", "a%2Fb", "x" * 60]
    for name in names:
        for i in range(4):
            draw(tmp_path / "in" / "data" / name / f"{i}.png", i)
    before = set(tmp_path.rglob("*"))
    run = tmp_path / "in" / "run"
    distill(tmp_path / "in" / "data", run, small)
    assert all(run in p.parents or p == run for p in set(tmp_path.rglob("*")) - before)
    entries = [json.loads(line) for line in (run / "ipc1" / "metadata.jsonl").read_text().splitlines()]
    assert [entry["class"] for entry in entries] == sorted(names)
    assert all((run / "ipc1" / entry["file_name"]).exists() for entry in entries)
