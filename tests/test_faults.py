"""Whatever goes wrong: nothing that was computed is lost or mixed, and the message says what to do."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import TWO_PROCESSES, draw, small_values
from PIL import Image
from test_method import contents, distill, with_

from diffsel import method
from diffsel.cli import app as cli
from diffsel.machine import files
from diffsel.machine.files import PART
from diffsel.runs.index import read_skipped
from diffsel.runs.record import FORMAT
from diffsel.runs.session import resume, start
from diffsel.scoring.diffusion import Diffusion
from diffsel.settings.errors import ConfigError, DataError, SettingsDiffer, StoreError
from diffsel.settings.settings import resolve

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
LAUNCH = ("-m", *TWO_PROCESSES)


def whole(run: Path) -> dict[str, bytes]:
    """A run's results, without what a killed process left half-written."""
    return {name: blob for name, blob in contents(run).items() if PART not in name and not name.endswith(".claim")}


# ---- kills -----------------------------------------------------------------------------------------------------------


def _job(source: Path, run: Path, values: dict) -> None:
    import torch

    torch.set_num_threads(1)
    method.distill(str(source), run, {1: run / "ipc1"}, resolve(values))


@pytest.fixture(scope="module")
def spawn() -> Callable[..., multiprocessing.Process]:
    """Starts the job in a process of its own, within milliseconds: its parent has everything imported, also what a model
    imports when it is loaded, which takes longer than the job itself."""
    context = multiprocessing.get_context("forkserver")
    loaded = ("unets.unet_2d_condition", "autoencoders.autoencoder_kl")
    clip = ("modeling_clip", "tokenization_clip")
    context.set_forkserver_preload(
        [
            *("test_faults", "sklearn.cluster", "accelerate.tracking", "diffusers.schedulers.scheduling_ddpm"),
            *(f"diffusers.models.{name}" for name in loaded),
            *(f"transformers.models.clip.{name}" for name in clip),
        ]
    )
    return lambda *args: context.Process(target=_job, args=args)


@pytest.fixture
def source(folder) -> Path:
    return folder(**{f"class{i}": 4 for i in range(4)})


STAGES = ("scoring", "assembling")  # vectors are made while images are scored


class Killed:
    """A job that is killed at a moment that its own files define; what it held then says where it was."""

    def __init__(self, run: Path, process: multiprocessing.Process):
        self.run, self.process = run, process
        process.start()

    def at_work(self) -> str:
        """The stage that this process has a file or folder in work of; ``between`` where it has none."""
        if list(self.run.glob(f"{PART}*-{self.process.pid}-*/")):
            return "assembling"
        for claim in _begun(self.run):
            with contextlib.suppress(OSError, ValueError):  # taken or given back in this moment
                if json.loads(claim.read_text())["pid"] == self.process.pid:
                    return "scoring"
        return "between"

    def done(self) -> int:
        """Files that are finished, and pictures of a set that is in work."""
        return sum(PART not in path.name for path in self.run.rglob("*.safetensors")) + len(list(self.run.rglob("*.png")))

    def kill(self, stage: str, files: int, seconds: float) -> str | None:
        """Wait for ``stage`` (``between``: for anything finished and nothing in work) and so many new files, then a moment,
        then kill; where that was, or None where the job ended first."""
        before = self.done()
        while self.process.exitcode is None:
            if self.at_work() == stage and self.done() >= before + files:
                time.sleep(seconds)
                where = self.at_work()
                self.process.kill()  # also where it has just ended
                self.process.join()
                return where if self.process.exitcode == -signal.SIGKILL else None
            time.sleep(0.002)
        assert self.process.exitcode == 0
        return None


def test_twenty_kills_at_random_moments_lose_nothing(folder, tmp_path, small, spawn) -> None:
    """Runs are killed again and again, at random moments of every stage and between two; all end with the bytes of one left
    alone.  A moment is so much of the work, and up to 20 ms: machines differ in speed."""
    source = folder(**{f"class{i}": 3 for i in range(8)})
    distill(source, tmp_path / "alone", small)
    expected, dice, landed = contents(tmp_path / "alone"), random.Random(0), Counter[str]()
    for attempt in range(20):
        run = tmp_path / f"run{attempt}"
        for stage in ("scoring", "scoring", "scoring", "between", "assembling", "assembling"):
            if landed.total() < 20 or not landed[stage]:
                files = dice.randint(stage == "between", 2 if stage != "between" else 8)
                moment = dice.uniform(0, 0.005 if stage == "assembling" else 0.02)  # a set is made in some 20 ms
                where = Killed(run, spawn(source, run, small_values())).kill(stage, files, moment)
                if where is None:  # it ended first
                    break
                landed[where] += 1
        last = spawn(source, run, small_values())
        last.start()
        last.join(120)
        assert last.exitcode == 0
        assert whole(run) == expected
        if landed.total() >= 20 and all(landed[stage] for stage in (*STAGES, "between")):
            break
    print("kills by what was in work:", dict(landed))
    assert landed.total() >= 20
    assert min(landed[stage] for stage in (*STAGES, "between")) > 0, landed


def test_what_dead_processes_left_half_written_is_swept(source, tmp_path, small, spawn) -> None:
    run = tmp_path / "run"
    distill(source, run, small)
    process = spawn(source, tmp_path / "other", small_values())
    process.start()
    process.join()
    dead, alive = (run / "maps" / f"{PART}{files._host()}-{pid}-abc" for pid in (process.pid, os.getpid()))
    elsewhere = run / "maps" / f"{PART}elsewhere-{process.pid}-abc"
    for path in (dead, alive, elsewhere):
        path.write_text("half")
    resume(run, small)
    assert (dead.exists(), alive.exists(), elsewhere.exists()) == (False, True, True)


def _begun(run: Path) -> Iterator[Path]:
    return (run / "maps").glob(".*.claim")


def _until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _ranks(launcher: int) -> list[int]:
    """Process numbers of what ``accelerate launch`` started."""
    import psutil

    children = psutil.Process(launcher).children(recursive=True)
    return [child.pid for child in children if "diffsel" in child.cmdline() and child.environ().get("RANK") is not None]


@pytest.mark.parametrize("who", ["one", "all"])
def test_ranks_killed_in_the_middle_of_a_unit_lose_nothing(who, source, tmp_path, small) -> None:
    distill(source, tmp_path / "alone", small)
    config, run = tmp_path / "settings.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(small_values()))
    command = ["-m", "diffsel", "distill", str(source), "--out", str(run), "--ipc", "1", "--config", str(config), "-q"]
    with subprocess.Popen([sys.executable, *LAUNCH, *command], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as launched:
        _until(lambda: len(list(_begun(run))) >= 2)
        ranks = _ranks(launched.pid)
        assert len(ranks) == 2
        for pid in ranks[:1] if who == "one" else ranks:
            os.kill(pid, signal.SIGKILL)
        errors = launched.communicate(timeout=120)[1]
    assert launched.returncode != 0
    assert "SIGKILL" in errors or "-9" in errors
    distill(source, run, small)  # what is left is taken by a start with another number of processes
    assert whole(run) == contents(tmp_path / "alone")


def test_two_launches_on_one_run_share_the_work(source, tmp_path, small, spawn) -> None:
    distill(source, tmp_path / "alone", small)
    run = tmp_path / "run"
    processes = [spawn(source, run, small_values()) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert contents(run) == contents(tmp_path / "alone")


def test_one_of_two_launches_is_killed_and_the_other_finishes_alone(source, tmp_path, small, spawn) -> None:
    distill(source, tmp_path / "alone", small)
    run = tmp_path / "run"
    first, second = (spawn(source, run, small_values()) for _ in range(2))
    first.start()
    _until(lambda: list(_begun(run)))
    second.start()
    os.kill(first.pid, signal.SIGKILL)
    second.join(120)
    assert second.exitcode == 0
    assert whole(run) == contents(tmp_path / "alone")


# ---- disks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 KB; where none can be mounted, a stand-in that counts what is written."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80k", "tmpfs", str(disk)], capture_output=True).returncode == 0
    )
    if not mounted:
        pytest.skip("no right to mount a small file system here; test_a_full_disk_is_told_and_costs_nothing has the stand-in")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_really_full_disk_is_told(source, small_disk, small) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught:
        distill(source, small_disk / "run", small)
    assert caught.value.filename.startswith(str(small_disk))
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    distill(source, small_disk / "run", small)


def test_a_full_disk_is_told_and_costs_nothing(source, tmp_path, small, monkeypatch, capsys) -> None:
    distill(source, tmp_path / "alone", small)
    room = [4]

    def fsync(handle: int) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run, config = tmp_path / "run", tmp_path / "settings.yaml"
    config.write_text(yaml.safe_dump(small_values()))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(
            sys, "argv", ["diffsel", "distill", str(source), "--out", str(run), "--ipc", "1", "--config", str(config), "-q"]
        )
        assert cli.main() == 2
    assert f"No space left on device: '{run}/features/" in capsys.readouterr().err
    assert not list(run.rglob(f"{PART}*"))
    assert not list(run.rglob("*.claim"))
    distill(source, run, small)
    assert contents(run) == contents(tmp_path / "alone")


def test_an_output_that_cannot_be_written_is_told_before_any_network_runs(source, tmp_path, small, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "somewhere")

    monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    monkeypatch.setattr(Diffusion, "predict_noise", lambda *_: pytest.fail("a network ran"))
    with pytest.raises(OSError, match="Read-only file system"):
        distill(source, tmp_path / "run", small)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StoreError, match="exists and is not a run"):
        distill(source, blocked, small)


def test_no_temporary_folder_is_needed(source, tmp_path, small) -> None:
    config, run = tmp_path / "settings.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(small_values()))
    command = ["-m", "diffsel", "distill", str(source), "--out", str(run), "--ipc", "1", "--config", str(config), "-q"]
    nowhere = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), "/proc/nowhere")
    subprocess.run([sys.executable, *command], env={**ENVIRONMENT, **nowhere}, check=True, timeout=240, capture_output=True)
    assert (run / "ipc1" / "set.yaml").exists()


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_out_of_memory_halves_the_batch_and_keeps_the_unit(folder, tmp_path, small, monkeypatch) -> None:
    source = folder(cat=8)
    values = with_(small, compute={"batch_size": 32})
    distill(source, tmp_path / "alone", with_(small, compute={"batch_size": 8}))
    sizes: list[int] = []
    original = Diffusion.predict_noise

    def predict(self, noisy, *rest):
        sizes.append(len(noisy))
        if len(noisy) > 8:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return original(self, noisy, *rest)

    monkeypatch.setattr(Diffusion, "predict_noise", predict)
    session = distill(source, tmp_path / "run", values)
    assert sizes[0] == 24  # 48 samples in two batches
    assert set(sizes[1:]) == {8}
    assert "out of memory: batches of latents of 8 x 8 were lowered to 8" in session.notes
    assert contents(tmp_path / "run") == contents(tmp_path / "alone")


def test_out_of_memory_in_the_middle_makes_only_the_rest_again_and_halves_that_shape_alone(
    folder, tmp_path, small, monkeypatch
) -> None:
    source = folder(cat=8)
    for i in range(4):
        draw(source / "cat" / f"wide{i}.png", i, 96, 64)
    made: dict[tuple[int, ...], list[int]] = {}
    original = Diffusion.predict_noise

    def predict(self, noisy, *rest):
        sizes = made.setdefault(tuple(noisy.shape[2:]), [])
        if noisy.shape[3] == 8 and len(noisy) == 16 and len(sizes) == 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
        sizes.append(len(noisy))
        return original(self, noisy, *rest)

    monkeypatch.setattr(Diffusion, "predict_noise", predict)
    distill(source, tmp_path / "run", with_(small, compute={"batch_size": 16}))
    assert made == {(8, 8): [16, 16, *[8] * 2], (8, 12): [8] * 3}  # of three batches the last is made again, in halves


def test_other_errors_are_not_taken_for_a_lack_of_memory(folder, tmp_path, small, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Diffusion, "predict_noise", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        distill(folder(cat=4), tmp_path / "run", small)


# ---- overflow --------------------------------------------------------------------------------------------------------


@pytest.fixture
def glare(monkeypatch) -> Callable[..., None]:
    """White pictures overflow in the VAE, in the numbers that are named."""
    original = Diffusion.encode

    def overflow(*kinds: torch.dtype) -> None:
        def encode(self, images, noise=None):
            latents = original(self, images, noise)
            if self.dtype in kinds:
                latents[(images == 1).flatten(1).all(1)] = torch.inf
            return latents

        monkeypatch.setattr(Diffusion, "encode", encode)

    return overflow


def white(file: Path) -> None:
    Image.fromarray(np.full((64, 64, 3), 255, np.uint8)).save(file)


@pytest.mark.parametrize("adaptive", [None, 6])
def test_an_image_that_overflows_is_scored_again_in_fp32(folder, tmp_path, small, glare, adaptive: int | None) -> None:
    source = folder(cat=5, dog=4)
    half = with_(small, compute={"precision": "bf16"}, scoring={"adaptive_draws": adaptive})
    before = distill(source, tmp_path / "before", half).run
    white(source / "cat" / "6.png")
    exact = distill(source, tmp_path / "exact", with_(small, scoring={"draws": adaptive or 3})).run
    glare(torch.bfloat16)
    session = distill(source, tmp_path / "run", with_(half, compute={"keep_latents": True}))
    tensors, extra = session.run.maps(session.run.units[0])
    (row,) = extra["again"]
    assert row == 5
    assert session.counts["images scored again in fp32"] == 1
    assert extra["draws"][row] == (adaptive or 3)
    for name in ("differential", "gap", "null"):
        assert np.array_equal(tensors[f"{row}.{name}"], exact.maps(exact.units[0])[0][f"{row}.{name}"])
    if not adaptive:  # the others are as they were
        for name, value in before.maps(before.units[0])[0].items():
            assert np.array_equal(tensors[name][: len(value)] if name in ("row", "look") else tensors[name], value)
    assert "again" not in session.run.maps(session.run.units[1])[1]
    assert all(np.isfinite(session.run.patches(unit)["vector"]).all() for unit in session.run.units)


def test_an_image_that_overflows_in_fp32_too_is_passed_over_with_its_reason(folder, tmp_path, small, glare) -> None:
    source = folder(cat=5)
    white(source / "cat" / "6.png")
    glare(torch.bfloat16, torch.float32)
    session = distill(source, tmp_path / "run", with_(small, compute={"precision": "bf16"}))
    assert [(each.path, each.reason) for each in read_skipped(tmp_path / "run")] == [
        ("cat/6.png", "its loss maps overflow, even in fp32")
    ]
    assert session.counts["images passed over"] == 1
    assert session.run.maps(session.run.units[0])[1]["rows"] == [0, 1, 2, 3, 4]


# ---- data and store --------------------------------------------------------------------------------------------------


def test_every_kind_of_broken_image_is_listed_and_passed_over(folder, tmp_path, small) -> None:
    from PIL import Image

    source = folder(cat=5)
    cat = source / "cat"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(cat / "cut.jpg")
    (cat / "cut.jpg").write_bytes((cat / "cut.jpg").read_bytes()[:2000])
    (cat / "empty.jpg").write_bytes(b"")
    (cat / "page.jpg").write_text("<!doctype html><html>404</html>")
    Image.new("1", (30_000, 30_000)).save(cat / "bomb.png")  # 110 KB that would become 2.7 GB
    Image.new("L", (30_000, 40)).save(cat / "long.png")
    distill(source, tmp_path / "run", small)
    reasons = {Path(item.path).name: item.reason for item in read_skipped(tmp_path / "run")}
    assert sorted(reasons) == ["bomb.png", "cut.jpg", "empty.jpg", "long.png", "page.jpg"]
    assert "more than twice the pixels of data.max_pixels = " in reasons["bomb.png"]
    assert "sides further apart than data.max_aspect" in reasons["long.png"]
    assert reasons["empty.jpg"] == "empty file"
    assert "a web page or XML, not an image" in reasons["page.jpg"]
    assert "unreadable image" in reasons["cut.jpg"]


def test_a_picture_of_30000_pixels_is_read_where_it_may_be(folder, tmp_path, small) -> None:
    from PIL import Image

    source = folder(cat=4)
    Image.new("L", (30_000, 1_000), 90).save(source / "cat" / "wide.png")
    session = distill(source, tmp_path / "run", with_(small, data={"max_aspect": 40}))
    assert read_skipped(tmp_path / "run") == []
    assert session.counts["images scored"] == 5


@pytest.mark.parametrize("damage", ["cut short", "a bit flipped"])
@pytest.mark.parametrize("part", ["maps", "features/*"])
def test_a_damaged_file_is_found_named_and_made_again_on_request(part, damage, folder, tmp_path, small, capsys) -> None:
    source, run = folder(cat=5, dog=5), tmp_path / "run"
    distill(source, run, small)
    before, method_ = contents(run), "diffsel-noclusters" if part == "maps" else "diffsel"
    (file,) = run.glob(f"{part}/dog-000.safetensors")
    blob = bytearray(file.read_bytes())
    if damage == "cut short":
        del blob[-100:]
    else:
        blob[-100] ^= 4
    file.write_bytes(blob)
    with pytest.raises(StoreError, match=rf"{file} is damaged \(.*; `diffsel check RUN --remove` removes it"):
        method.select(resume(run, with_(small, selection={"method": method_})), 1, tmp_path / "set")
    assert run_cli("check", str(run), "-q") == 1
    assert str(file) in capsys.readouterr().out
    assert file.exists()
    assert run_cli("check", str(run), "--remove", "-q") == 0
    out = capsys.readouterr().out
    assert ": removed\n" in out
    assert out.endswith("6 files, 1 damaged\n")
    shutil.rmtree(run / "ipc1")
    distill(source, run, small)
    assert contents(run) == before
    assert run_cli("check", str(run), "-q") == 0


def run_cli(*args: str) -> int:
    before = sys.argv
    sys.argv = ["diffsel", *args]
    try:
        return cli.main()
    finally:
        sys.argv = before


def test_a_store_of_an_older_format_is_refused_and_left_alone(folder, tmp_path, small) -> None:
    source, run = folder(cat=4), tmp_path / "run"
    distill(source, run, small)
    record = yaml.safe_load((run / "run.yaml").read_text())
    (run / "run.yaml").write_text(yaml.safe_dump({**record, "format": 0}))
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    for again in (lambda: start(str(source), run, small), lambda: resume(run, small)):
        with pytest.raises(StoreError, match=f"store format 0; this version reads format {FORMAT}"):
            again()
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_latents_asked_for_later_or_lost_are_made_by_the_vae_alone(folder, tmp_path, small, monkeypatch) -> None:
    source, kept = folder(cat=4, dog=4, size=(70, 64)), with_(small, compute={"keep_latents": True})
    method.score(start(str(source), tmp_path / "whole", kept))
    method.score(start(str(source), tmp_path / "run", small))
    monkeypatch.setattr(Diffusion, "predict_noise", lambda *_: pytest.fail("a forward for a map that is there"))
    method.score(start(str(source), tmp_path / "run", kept))
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    (tmp_path / "run" / "latents" / "dog-000.safetensors").unlink()
    method.score(start(str(source), tmp_path / "run", kept))
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_a_class_folder_renamed_between_scoring_and_selecting_is_reported(folder, tmp_path, small) -> None:
    source, run = folder(cat=5), tmp_path / "run"
    distill(source, run, small)
    (source / "cat").rename(source / "tiger")
    with pytest.raises(DataError, match=r"cat/.*png: No such file"):
        method.select(resume(run, small), 1, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    with pytest.raises((SettingsDiffer, ConfigError), match=r"classes|images\.digest"):
        start(str(source), run, small)


def test_an_image_edited_while_it_is_scored_stops_the_run(folder, tmp_path, small) -> None:
    source, run = folder(cat=4), tmp_path / "run"
    session = start(str(source), run, small)
    draw(source / "cat" / "1.png", 77)
    with pytest.raises(DataError, match=r"cat/1\.png: edited since it was indexed"):
        method.score(session)
    assert not list((run / "maps").glob("*.safetensors"))


def test_a_failing_rank_is_shown_and_fails_the_launch(folder, tmp_path, small) -> None:
    source, config, run = folder(cat=4, dog=4), tmp_path / "settings.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(small_values()))
    start(str(source), run, small)
    for name in ("cat/1.png", "dog/1.png"):
        (source / name).unlink()
        draw(source / name, 5)
    command = ["-m", "diffsel", "score", str(source), "--out", str(run), "--config", str(config), "-q"]
    done = subprocess.run([sys.executable, *LAUNCH, *command], env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode != 0
    assert "1.png: edited since it was indexed" in done.stderr
    assert "error (process " in done.stderr


def test_a_failed_start_leaves_a_set_folder_alone(folder, tmp_path, small) -> None:
    """Two launches that assemble one set at once: the second finds it there."""
    source, run = folder(cat=5), tmp_path / "run"
    session = distill(source, run, small)
    original, raced = files.os.rename, []

    def rename(part, path):
        if not raced:
            raced.append(path)
            shutil.copytree(part, path)  # the other launch was a moment faster
        original(part, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.os, "rename", rename)
        method.select(session, 1, tmp_path / "set")
    assert raced == [tmp_path / "set"]
    assert json.loads((tmp_path / "set" / "metadata.jsonl").read_text().splitlines()[0])["class"] == "cat"
    assert not list(tmp_path.glob(f"{PART}*"))
