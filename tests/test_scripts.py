"""Scripts: each says how it is used, and what they do that nothing else tests."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest
import torch
from pictures import scene

from diffsel.runs.run import open_run
from diffsel.sets import selection
from diffsel.sets.candidates import candidates
from diffsel.settings.settings import resolve

ROOT = Path(__file__).parent.parent
FILES = sorted(file for folder in ("scripts", "pipelines") for file in (ROOT / folder).glob("*.py"))
CLASSES, PATCHES, CHANNELS = 40, 60, 64


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_script_and_pipeline_tells_how_it_is_used(file: Path, monkeypatch, capsys) -> None:
    """In this process: what they import is imported once."""
    monkeypatch.setattr(sys, "argv", [str(file), "--help"])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(file), run_name="__main__")
    assert not done.value.code
    assert "usage" in capsys.readouterr().out.lower()


def test_training_goes_on_where_its_state_lies_on_another_device() -> None:
    class OnDevice:
        """A tensor of a GPU, as far as the state of the random numbers goes: torch takes it from the CPU only."""

        def __init__(self, tensor: torch.Tensor):
            self.tensor = tensor

        def cpu(self) -> torch.Tensor:
            return self.tensor

    state = {"average": [torch.ones(2)], "random": OnDevice(torch.get_rng_state())}
    expected, average = torch.rand(3), [torch.zeros(2)]
    load("train_prior").take_up(state, {}, average)
    assert torch.equal(torch.rand(3), expected)
    assert average[0].tolist() == [1, 1]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of random vectors, as embedding leaves it."""
    out, maker = tmp_path_factory.mktemp("store"), load("bench_selection")
    maker.CHANNELS = CHANNELS
    maker.make_store(out, CLASSES, PATCHES)
    return out / "run"


def test_selection_holds_few_classes_at_a_time_and_picks_the_same_with_any_jobs(store: Path) -> None:
    """Vectors are read class by class: all of ImageNet's would be 6.7 GB."""
    run = open_run(store, resolve({"model": {"model": "demo"}}))
    most, found = {1: 0, 2: 0}, {}

    def watched(jobs: int) -> Iterator[selection.Candidates]:
        seen: list[weakref.ref] = []
        for info in run.data.classes:
            pool = candidates(run, info.folder)
            assert pool.vectors.shape == (PATCHES, CHANNELS)
            seen.append(weakref.ref(pool))
            most[jobs] = max(most[jobs], sum(each() is not None for each in seen))
            yield pool
            del pool

    for jobs in (1, 2):
        picks = selection.select_all(watched(jobs), 5, 1, run.settings.selection, 0, jobs)
        found[jobs] = [asdict(pick) for name in sorted(picks) for pick in picks[name]]
    assert len(found[1]) == CLASSES * 5
    assert repr(found[1]).encode() == repr(found[2]).encode()
    assert most[1] <= 3  # several jobs: two for each at work; of classes as small as these, joblib bundles more


def test_a_stopped_training_of_a_prior_goes_on_to_the_same_bytes(tmp_path: Path, folder, monkeypatch, capsys) -> None:
    """Also in the middle of the VAE; and another recipe in the same folder is refused."""
    source, script = folder(cat=6, dog=6, size=(16, 16)), load("train_prior")
    small = {
        "size": 16,
        "vae": [8, 8],
        "vae_groups": 4,
        "vae_steps": 4,
        "vae_batch": 4,
        "unet": [16, 16],
        "steps": 4,
        "batch": 4,
    }

    def run(out: str, *words: object, **changes: object) -> None:
        flags = [word for key, value in {**small, **changes}.items() for word in ("--set", f"{key}={value}")]
        given = ["cifar10", "--images", source, "--out", tmp_path / out, "--hold-out", 2, "--probe", 1, "--probe-draws", 1]
        given += ["--log-every", 4, "--save-every", 2, "--device", "cpu", *flags, *words]
        monkeypatch.setattr(sys, "argv", ["train_prior.py", *map(str, given)])
        script.main()

    def weights(out: str) -> dict[str, bytes]:
        return {str(file.relative_to(tmp_path / out)): file.read_bytes() for file in (tmp_path / out).rglob("*.safetensors")}

    run("whole")
    with monkeypatch.context() as patch:
        patch.setattr(script, "standardise", lambda *_: 1 / 0)  # killed when the VAE is done
        with pytest.raises(ZeroDivisionError):
            run("cut")
    run("cut", "--stop", 2)
    run("cut")
    assert weights("cut") == weights("whole")
    log = [json.loads(line) for line in (tmp_path / "whole-state" / "log.jsonl").read_text().splitlines()]
    assert {"top1", "nats", "nats_se", "r"} <= {key.removeprefix("held out ") for key in log[-1]}
    with pytest.raises(SystemExit, match=r"is of another training \(lr differ\)"):
        run("cut", lr=0.01)


def test_the_benchmark_of_scale_goes_through_all_stages(tmp_path: Path, capsys, monkeypatch) -> None:
    """In this process, at 600 images of two classes."""
    script = load("bench_scale")
    monkeypatch.setenv("RANK", "0")  # which stage "second" changes
    monkeypatch.setenv("WORLD_SIZE", "1")
    patched = [(script.images, "_list"), (script.images, "_look"), (script.ImageData, "image"), (script.assembly, "_render")]
    patched += [
        (script.runs, "read_unit"),
        (script.choosing, "read_column"),
        (script.choosing, "read_extra"),
        (script.choosing, "has_column"),
        (script.Run, "map_file"),
    ]
    for module, name in patched:
        monkeypatch.setattr(module, name, getattr(module, name))  # so that they come back
    script.no_pixels((600, 2))
    monkeypatch.setattr(script, "WORKERS", 4)
    for name, stage in script.STAGES.items():
        stage(*((tmp_path, (600, 2)) if name in ("shards", "crowd") else (tmp_path,)))
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "1")
    assert len(list((tmp_path / "run" / "features").glob("*/*.safetensors"))) == 4  # units of 256 and 44 images, two a class
    assert len((tmp_path / "run" / "ipc1" / "metadata.jsonl").read_text().splitlines()) == 2
    assert capsys.readouterr().out.count("one class") == 2


def test_what_waits_for_a_gpu_goes_through_at_its_smallest_scale_and_is_left_when_done(tmp_path: Path) -> None:
    """The pieces of seconds; `prior` and `teachers` need CIFAR-10, `compiled` a C++ compiler and a minute."""
    environment = {**os.environ, "SMALL": "1", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [str(ROOT / "scripts" / "measure_gpu.sh"), str(tmp_path), "rates", "default", "layout", "bytes", "students"]
    first = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    ways = ["usual", "VAE alone, 2 at once", "diffsel, batch 8"]
    other = ["VAE alone, channels last, 2 at once", "diffsel, batch 8, channels last"]
    assert [row["way"] for row in rows if "images/s" in row] == [*ways, *ways, *ways, *other]
    assert [(row["equal bytes"], row["of images"]) for row in rows if "equal bytes" in row] == [(4, 4)]
    assert [row["student"] for row in rows if "student" in row] == ["conv3w8"]
    assert "== students" in first.stdout
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert again.stdout == ""
    unknown = subprocess.run([*command[:2], "nothing"], env=environment, capture_output=True, text=True, check=False)
    assert (unknown.returncode, "no piece nothing" in unknown.stderr) == (2, True)


def test_real_and_planted_copies_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "cat").mkdir()
    for seed in range(60):
        scene(seed).save(tmp_path / "cat" / f"{seed:02}.png")
    scene(7).save(tmp_path / "cat" / "copy.jpg", quality=60)
    monkeypatch.setattr(sys, "argv", ["measure_copies.py", "--images", str(tmp_path), "--sheet", str(tmp_path / "pairs.png")])
    load("measure_copies").main()
    told = capsys.readouterr().out
    assert "1 of 61 images look nearly like an earlier one of their class" in told
    assert "3 planted copies of each kind" in told
    found = {line.rsplit(None, 2)[0]: line.split()[-2:] for line in told.splitlines() if "%" in line and ":" not in line}
    assert found["20 % brighter"] == found["JPEG of quality 75"] == ["100.0%", "100.0%"]
    assert found["mirrored"] == ["0.0%", "0.0%"]
    assert (tmp_path / "pairs.png").exists()


@pytest.mark.parametrize("at_once", [2, 4])
def test_flop_of_an_image_do_not_count_what_fills_up_batches(at_once: int, tmp_path: Path, monkeypatch) -> None:
    """Truth: all that a pass over one image computes, whose picture fills a batch of the VAE alone."""
    bench = load("bench_scoring")
    from diffsel.scoring import draws

    model = bench.Diffusion.load(bench.locate(bench.ModelSettings(model="demo")), torch.device("cpu"), "fp32")
    image = bench.pictures(1, 64)
    monkeypatch.setattr(draws, "vae_batch", lambda *_: at_once)
    vae, forward = bench.flop_needed(model, image[0])
    words = bench.flops(lambda: model.embed_prompts([bench.PROMPT]))
    whole = bench.flops(lambda: bench.ours(model, image, 3, 6, tmp_path))
    assert whole == pytest.approx(at_once * vae + 6 * forward + 2 * words, rel=1e-3)
    assert vae > 0
    assert forward > vae / 10
