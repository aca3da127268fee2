"""Numbers that are logged while they come, what a pass will cost, and processes that help."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_method import distill, with_

from diffsel import method
from diffsel.machine.processes import Workers, out_of_memory
from diffsel.runs.session import resume, start
from diffsel.scoring.diffusion import Diffusion
from diffsel.settings.errors import DataError, StoreError


def test_speed_is_logged_by_the_tracker_that_is_set(folder, tmp_path, small) -> None:
    pytest.importorskip("tensorboardX")
    distill(folder(cat=4, dog=4), tmp_path / "run", with_(small, compute={"tracker": "tensorboard"}))
    blob = b"".join(file.read_bytes() for file in (tmp_path / "run" / "logs").rglob("*tfevents*"))
    assert b"images_scored_per_second" in blob
    assert b"patches_embedded" in blob


def test_a_tracker_opens_no_process_group_and_leaves_the_precision_of_a_training_open(tmp_path: Path) -> None:
    """In a process of its own: accelerate's state is one for all."""
    pytest.importorskip("tensorboardX")
    code = (
        "import sys, torch; from pathlib import Path; from diffsel.machine.processes import Workers\n"
        "track = Workers().tracker('tensorboard', Path(sys.argv[1]), {'size': 3}); track({'loss': 1.5}, 0)\n"
        "assert not torch.distributed.is_initialized()\n"
        "print(Workers().accelerator('bf16', cpu=True).mixed_precision)"
    )
    told = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    both = {**os.environ, **told}
    found = subprocess.run([sys.executable, "-c", code.rsplit("\n", 1)[0], tmp_path], env=both, timeout=60, capture_output=True)
    assert found.returncode == 0, found.stderr.decode()  # nobody waits for the other process
    alone = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=120)
    assert alone.stdout.strip() == "bf16", alone.stderr


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2 GiB",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "MPS backend out of memory (MPS allocated: 8 GB)",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
    ],
)
def test_every_library_says_out_of_memory_in_words_of_its_own(text: str) -> None:
    assert out_of_memory(RuntimeError(text))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_without_a_tracker_nothing_is_logged(folder, tmp_path, small) -> None:
    distill(folder(cat=4), tmp_path / "run", small)
    assert not (tmp_path / "run" / "logs").exists()


def test_a_tracker_that_is_not_installed_is_told_before_any_work(folder, tmp_path: Path, small, monkeypatch) -> None:
    source, values = folder(cat=4), with_(small, compute={"tracker": "wandb"})
    start(str(source), tmp_path / "run", small)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    monkeypatch.setattr("diffsel.runs.session.open_data", lambda *_: pytest.fail("images were read"))
    for begin in (
        lambda: start(str(source), tmp_path / "new", values),
        lambda: resume(tmp_path / "run", values),
        lambda: Workers().tracker("wandb", tmp_path, {}),
    ):
        with pytest.raises(StoreError, match=r"compute.tracker = 'wandb': pip install wandb"):
            begin()
    assert not (tmp_path / "new").exists()


def test_a_tracker_that_does_not_open_is_told_before_the_first_unit(folder, tmp_path: Path, small, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise StoreError("nobody is logged in")

    session = start(str(folder(cat=4)), tmp_path / "run", small)
    monkeypatch.setattr(Workers, "tracker", refuse)
    monkeypatch.setattr(Diffusion, "predict_noise", lambda *_: pytest.fail("a network ran"))
    with pytest.raises(StoreError, match="nobody is logged in"):
        method.score(session)


# ---- helpers ---------------------------------------------------------------------------------------------------------


# ---- waiting -----------------------------------------------------------------------------------------------------------


def of_two(index: int, monkeypatch: pytest.MonkeyPatch) -> Workers:
    monkeypatch.setenv("RANK", str(index))
    monkeypatch.setenv("WORLD_SIZE", "2")
    return Workers()


def test_who_waits_for_the_main_process_is_told_when_that_has_failed(tmp_path: Path, monkeypatch) -> None:
    """On another machine no launcher stops it."""
    monkeypatch.setattr("diffsel.machine.processes.WITHDRAWN", 0.3)
    main, other = of_two(0, monkeypatch), of_two(1, monkeypatch)
    told: list[BaseException] = []

    def wait() -> None:
        try:
            other.wait_for([tmp_path / "run.yaml"])
        except StoreError as error:
            told.append(error)

    def fail() -> None:
        with main.awaited(tmp_path / "run.yaml"):
            thread.start()
            time.sleep(0.5)
            raise DataError("no such folder")

    thread = threading.Thread(target=wait)
    with pytest.raises(DataError):
        fail()
    thread.join(20)
    assert "has gone" in str(told[0])


def test_who_waits_for_the_main_process_goes_on_when_the_file_is_there(tmp_path: Path, monkeypatch) -> None:
    main, other = of_two(0, monkeypatch), of_two(1, monkeypatch)
    with main.awaited(tmp_path / "run.yaml"):
        assert [file.name for file in tmp_path.iterdir()] == [".run.yaml.claim"]
        (tmp_path / "run.yaml").write_text("format: 1")
    other.wait_for([tmp_path / "run.yaml"])
    assert [file.name for file in tmp_path.iterdir()] == ["run.yaml"]


def test_who_waits_for_a_file_of_a_folder_that_comes_as_a_whole_is_told_too(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("diffsel.machine.processes.STALE", 0.5)
    (tmp_path / ".set.claim").write_text("{}")
    with pytest.raises(StoreError, match="has gone"):
        of_two(1, monkeypatch).wait_for([tmp_path / "set" / "set.yaml"])
    (tmp_path / ".set.claim").unlink()
    with of_two(0, monkeypatch).awaited(tmp_path / "set"):
        assert [file.name for file in tmp_path.iterdir()] == [".set.claim"]


def test_who_waits_is_told_when_a_claim_stands_still(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("diffsel.machine.processes.STALE", 0.5)
    (tmp_path / ".run.yaml.claim").write_text("{}")
    with pytest.raises(StoreError, match="has gone"):
        of_two(1, monkeypatch).wait_for([tmp_path / "run.yaml"])
