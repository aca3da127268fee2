"""The command line: what it prints, how it ends, and that every setting is reachable."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from conftest import TINY, draw, small_values
from PIL import Image

from diffsel.cli import app as cli
from diffsel.cli.flags import split_names
from diffsel.settings.sections import Section
from diffsel.settings.settings import Settings

SMALL = [
    *("--model", TINY, "--image-size", "64", "--patch-size", "32", "--stride", "4", "--size", "32", "--draws", "3"),
    *("--batch-size", "8", "--device", "cpu", "--clusters", "3", "--top-clusters", "2", "-q"),
]


PASS = ["--model", TINY, "--image-size", "64", "--draws", "3", "--batch-size", "8", "--device", "cpu", "-q"]  # for `score`
JOB = ["distill", "DATA", "--out", "RUN", "--ipc", "1"]


def test_inspect_says_what_it_did_not_look_into(diffsel, folder) -> None:
    """Only headers are read, and files of other extensions are no images: both are told."""
    data = folder(cat=3, dog=3)
    for name in ("a.heic", "b.HEIC", "notes.txt", "README"):
        (data / "cat" / name).write_bytes(b"anything")
    draw(data / "dog" / "cut.jpg", 9)
    (data / "dog" / "cut.jpg").write_bytes((data / "dog" / "cut.jpg").read_bytes()[:-200])
    code, out, _ = diffsel("inspect", data, "-q")
    assert code == 0
    assert "7 images in 2 classes (3 to 4 each); 0 passed over by their headers (the rest is decoded when it is scored)" in out
    assert "files beside them that are not taken for images: 2 .heic, 1 .txt, 1 no extension; taken are .avif .bmp" in out


def test_inspect_tells_images_that_are_byte_by_byte_the_same(diffsel, folder) -> None:
    data = folder(cat=3, dog=3)
    for name in ("cat/8.png", "cat/9.png", "dog/9.png"):
        (data / name).write_bytes((data / "cat" / "0.png").read_bytes())
    (data / "dog" / "8.png").write_bytes((data / "dog" / "1.png").read_bytes())
    code, out, _ = diffsel("inspect", data, "-q")
    assert code == 0
    assert "identical images: 3 are copies of others of their class, such as cat/0.png and cat/8.png and cat/9.png ...\n" in out
    assert "identical images: 1 lie in more than one class, such as cat/0.png and cat/8.png and cat/9.png ...\n" in out
    assert "identical" not in diffsel("inspect", folder("other", cat=3, dog=3), "-q")[1]


@pytest.mark.parametrize(("prompt", "reason"), [("{label}" + 80 * " and", "tokens"), ("An image of .", "says the same of all")])
def test_inspect_refuses_the_prompts_that_score_would(prompt: str, reason: str, diffsel, folder, tmp_path: Path) -> None:
    data, words = folder(cat=3, dog=3), ["--prompt", prompt]
    code, out, told = diffsel("inspect", data, *words, "--model", TINY, "-q")
    assert "6 images in 2 classes" in out
    assert (code, told) == diffsel("score", data, "--out", tmp_path / "run", *words, *PASS)[::2]
    assert reason in told
    code, out, _ = diffsel("inspect", data, "--model", "nobody/nothing", *words, "-q")
    assert code == 0
    assert "whether the model takes these prompts is told when it is there" in out
    assert "'nobody/nothing': no such folder, nor fetched from the hub before\n" in out


def test_images_larger_than_those_a_model_was_made_for_are_told_before_they_are_read(
    diffsel, folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, small = folder(cat=3, dog=3), ("--image-size", "64", "-q")
    told = "the model was made for images of 64 pixels; images are scored at 256 (--image-size 64 asks for its own)"
    assert told in diffsel("inspect", data, "--model", "demo", "-q")[1]
    assert "was made for" not in diffsel("inspect", data, "--model", "demo", *small)[1]
    run = ("score", data, "--model", "demo", "--draws", "3", "--out", tmp_path / "run")
    assert diffsel(*run, *small)[0] == 0
    assert "was made for" not in caplog.text
    assert diffsel(*run[:-1], tmp_path / "larger", "--image-size", "72", "--index-only", "-q")[0] == 0  # it scores nothing
    assert told.replace("256", "72") in caplog.text


def test_notes_about_the_data_end_every_command_that_stores_or_selects(diffsel, folder, tmp_path: Path) -> None:
    data = folder(cat=4, dog=4)
    (data / "cat" / "9.heic").write_bytes(b"")
    note = "note: files beside them that are not taken for images: 1 .heic; taken are .avif"
    baseline = ["--method", "random", "--ipc", 1, "--factor", 1, "--size", 32, "-q"]
    assert note in diffsel("select", data, *baseline, "--out", tmp_path / "random")[1]
    assert note in diffsel("score", data, "--out", tmp_path / "run", *PASS)[1]
    assert note in diffsel("distill", data, "--out", tmp_path / "run", "--ipc", 1, *SMALL)[1]


def test_images_that_cannot_be_read_are_told_by_those_too_who_write_no_list_of_them(diffsel, folder, tmp_path: Path) -> None:
    data = folder(cat=4, dog=4)
    (data / "cat" / "x.png").write_bytes(b"<html>")
    note = f"note: {data}: 1 of 9 images cannot be read and are left out; the first: cat/x.png: a web page or XML"
    words = ["--method", "random", "--ipc", 1, "--factor", 1, "--size", 32, "--out", tmp_path / "random", "-q"]
    assert note in diffsel("select", data, *words)[1]
    words = ["--network", "conv3w8", "--size", 16, "--epochs", 1, "--batch-size", 4, "--workers", 1]
    assert note in "".join(diffsel("teacher", data, *words, "--out", tmp_path / "t", "-q")[1:])


def test_results_inside_the_data_can_be_made_again(diffsel, folder) -> None:
    data = folder(cat=4, dog=4)
    (data / "run").mkdir()  # of a start that was stopped at once
    for _ in range(2):
        code, out, err = diffsel("distill", data, "--out", data / "run", "--ipc", 1, *SMALL)
        assert (code, err) == (0, "")
    assert "passed over what diffsel made itself: 'run'" in out
    baseline = ["--method", "random", "--factor", 1, "--size", 32, "-q"]
    for ipc in (1, 2):
        assert diffsel("select", data, *baseline, "--ipc", ipc, "--out", data / f"random{ipc}")[0] == 0
    assert "8 images in 2 classes" in diffsel("inspect", data, "-q")[1]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["tench, Tinca tinca"], ["tench, Tinca tinca"]),
        (["tench, Tinca tinca,cat"], ["tench, Tinca tinca", "cat"]),
        (["cat,a,b"], ["cat", "a,b"]),
        (["a,b", "cat"], ["a,b", "cat"]),
        (["cat, dog"], ["cat", "dog"]),
        (["dog,cat"], ["dog", "cat"]),
        (["caf\u00e9,cat"], ["cafe\u0301", "cat"]),
    ],
)
def test_a_class_with_a_comma_is_taken_whole(given: list[str], expected: list[str], diffsel, folder, tmp_path: Path) -> None:
    data = folder(**dict.fromkeys(["tench, Tinca tinca", "a,b", "cat", "dog", "cafe\u0301", "Tinca tinca"], 1))
    flags = [word for each in given for word in ("--classes", each)]
    code, out, err = diffsel("inspect", data, *flags, "-q")
    assert (code, err) == (0, "")
    assert f"images in {len(expected)} classes" in out
    for name, line in zip(expected, out.splitlines()[2:], strict=False):
        assert f"An image of {name}." in line
    only = [word for each in given for word in ("--only", each)]
    baseline = ["--method", "random", "--ipc", 1, "--factor", 1, "--size", 32, "-q"]
    assert diffsel("select", data, *baseline, *only, "--out", tmp_path / "set")[0] == 0
    assert yaml.safe_load((tmp_path / "set" / "set.yaml").read_text())["classes"] == expected
    assert split_names(given, ["tench, Tinca tinca", "a,b", "cat", "dog", "cafe\u0301", "Tinca tinca"]) == expected


def test_a_class_that_is_not_there_is_still_named(diffsel, folder) -> None:
    code, _, err = diffsel("inspect", folder(cat=1, dog=1), "--classes", "cat,cow", "-q")
    assert code == 2
    assert "class 'cow' is not in" in err


def test_images_that_were_moved_are_found_where_they_are_said_to_be(diffsel, folder, tmp_path: Path) -> None:
    data, run = folder("before", cat=5, dog=5), tmp_path / "run"
    assert diffsel("distill", data, "--out", run, "--ipc", 1, "--factor", 1, *SMALL)[0] == 0
    data.rename(tmp_path / "after")
    now, job = tmp_path / "after", ["--ipc", 2, "--factor", 1, "-q", "--out"]
    for words in (["select", run, *job, tmp_path / "s"], ["embed", run, "--patch-size", 24], ["prompts", run, "--ipc", 0]):
        code, _, err = diffsel(*words)
        assert code == 2
        assert "before: no such folder" in err
        assert "say where they are now: --data" in err
        assert diffsel(*words, "--data", now, *([] if "select" in words else ["-q"]))[0] == 0
    assert diffsel("trace", run, "cat/0.png", "--data", now)[0] == 0
    (wrong := tmp_path / "wrong").mkdir()
    code, _, err = diffsel("select", run, "--data", wrong, "--ipc", 1, "--out", tmp_path / "more")
    assert (code, f"error: --data {wrong}: no cat/0.png there, the first image of {run}" in err) == (2, True)
    (now / "cat/0.png").rename(tmp_path / "elsewhere.png")  # one that is lost hides no others
    assert diffsel("trace", run, "dog/0.png", "--data", now)[0] == 0
    (tmp_path / "elsewhere.png").rename(now / "cat/0.png")
    assert diffsel("select", run, "--method", "random", *job, tmp_path / "random", "--data", now, "--size", 32)[0] == 0
    code, _, err = diffsel("select", now, "--method", "random", *job, tmp_path / "other", "--data", now)
    assert (code, "--data tells where the images of a RUN are now" in err) == (2, True)
    before = (run / "run.yaml").read_text()
    assert diffsel("score", now, "--out", run, *PASS)[0] == 0  # which records it
    assert (run / "run.yaml").read_text() == before.replace(str(data), str(now))
    assert diffsel("select", run, *job, tmp_path / "again")[0] == 0
    assert (tmp_path / "again" / "metadata.jsonl").read_bytes() == (tmp_path / "s" / "metadata.jsonl").read_bytes()
    draw(now / "cat" / "0.png", 99)
    code, _, err = diffsel("score", now, "--out", run, *PASS)
    assert code == 0  # what is indexed is not read again; the hash of what is used is checked


def test_other_images_in_another_place_are_refused(diffsel, folder, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert diffsel("distill", folder("one", cat=5), "--out", run, "--ipc", 1, "--factor", 1, *SMALL)[0] == 0
    other = folder("other", (48, 48), cat=5)
    recorded = (run / "run.yaml").read_text()
    code, _, err = diffsel("score", other, "--out", run, *PASS)
    assert (code, "images.digest" in err) == (2, True)
    code, _, err = diffsel("select", run, "--ipc", 2, "--factor", 1, "--out", tmp_path / "set", "--data", other, "-q")
    assert (code, "edited since it was indexed" in err) == (2, True)
    assert (run / "run.yaml").read_text() == recorded


def test_distill_select_trace_and_inspect(diffsel, folder, tmp_path: Path) -> None:
    data, run = folder(cat=9, dog=9), tmp_path / "run"
    code, out, _ = diffsel("inspect", data, "--image-size", 64, "-q")
    assert code == 0
    assert "An image of cat." in out
    assert "18 images in 2 classes (9 each); 0 passed over" in out
    code, out, _ = diffsel("distill", data, "--out", run, "--ipc", 1, "--ipc", 2, *SMALL)
    assert code == 0
    assert "images scored" in out
    assert "U-Net forwards" in out
    assert (run / "ipc1" / "cat" / "00000.png").exists()
    assert (run / "ipc2" / "dog" / "00001.png").exists()
    code, _, err = diffsel("select", run, "--ipc", 1, "--only", "dog", "--out", tmp_path / "dogs", "-q")
    assert (code, err) == (0, "")
    assert (tmp_path / "dogs" / "dog" / "00000.png").exists()
    tile = json.loads((run / "ipc2" / "metadata.jsonl").read_text().splitlines()[0])["tiles"][0]
    code, out, _ = diffsel("trace", run, tile["source"])
    assert code == 0
    for word in (
        f"row      {tile['row']}:",
        "map ",
        f"box      {tile['box']}",
        f"cluster  {tile['cluster']} of",
        "ipc2/cat/00000.png, tile 0",
    ):
        assert word in out
    code, _, err = diffsel("trace", run, "nothing.png")
    assert code == 2
    assert "is called 'nothing.png'; give a row number" in err
    code, again, err = diffsel("trace", run, data / tile["source"])
    assert (code, again) == (0, out), err


def test_whole_images_go_into_mosaics(diffsel, folder, tmp_path: Path) -> None:
    """Images that are not square, squeezed; by any method, and the report shows each."""
    data, run = folder("data", (60, 40), cat=8, dog=8), tmp_path / "run"
    words = ["--patch-size", 0, "--factor", 2, "--size", 32]
    code, _, err = diffsel("distill", data, "--out", run, "--ipc", 1, *PASS, *words)
    assert code == 0, err
    assert diffsel("select", run, "--method", "herding", "--ipc", 2, "--out", run / "herding", "-q")[0] == 0
    plain = ["--whole", "--image-size", 64, *words, "--ipc", 2, "--out", run / "random", "-q"]
    assert diffsel("select", data, "--method", "random", *plain)[0] == 0
    for name in ("ipc1", "herding"):
        for line in map(json.loads, (run / name / "metadata.jsonl").read_text().splitlines()):
            mosaic = np.asarray(Image.open(run / name / line["file_name"]))
            for number, tile in enumerate(line["tiles"]):
                whole = Image.open(data / tile["source"]).convert("RGB").resize((16, 16), Image.Resampling.BICUBIC)
                top, left = 16 * (number // 2), 16 * (number % 2)
                assert np.array_equal(mosaic[top : top + 16, left : left + 16], whole)
    code, _, err = diffsel("report", run, "-q")
    assert code == 0, err
    assert "to cover the class" in (tmp_path / "run-report.html").read_text()


def test_score_embed_and_select_are_the_three_of_distill(diffsel, folder, tmp_path: Path) -> None:
    data = folder(cat=5)
    config = tmp_path / "settings.yaml"
    config.write_text(yaml.safe_dump(small_values()))
    assert diffsel("distill", data, "--out", tmp_path / "one", "--ipc", 1, "--config", config, "-q")[0] == 0
    assert diffsel("score", data, "--out", tmp_path / "three", "--config", config, "-q")[0] == 0
    assert diffsel("embed", tmp_path / "three", "--batch-size", 8, "-q")[0] == 0  # other sizes: equal to rounding
    assert diffsel("select", tmp_path / "three", "--ipc", 1, "--out", tmp_path / "set", "-q")[0] == 0
    one = {p.name: p.read_bytes() for p in (tmp_path / "one" / "ipc1").rglob("*") if p.is_file()}
    assert one == {p.name: p.read_bytes() for p in (tmp_path / "set").rglob("*") if p.is_file()}


def test_strict_makes_a_passed_over_image_exit_code_1(diffsel, folder, tmp_path: Path) -> None:
    data = folder(cat=5)
    (data / "cat" / "page.jpg").write_bytes(b"<html>")
    code, _, err = diffsel("distill", data, "--out", tmp_path / "run", "--ipc", 1, *SMALL)
    assert code == 0
    assert "1 image(s) passed over" in err
    assert "cat/page.jpg: a web page or XML" in err
    assert diffsel("distill", data, "--out", tmp_path / "run", "--ipc", 1, *SMALL, "--strict")[0] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*JOB, "--drawz", "3"], "--draws"),
        (["distill", "DATA", "--out", "RUN", "--ipc", "0"], "--ipc"),
        (["distill", "DATA", "--out", "RUN"], "--ipc"),
        (["distill", "/no/such", "--out", "RUN", "--ipc", "1", "--model", TINY], "error: /no/such: no such folder"),
        ([*JOB, "--draws", "10", "--bins", "3"], "error: scoring.draws (10) must be a multiple"),
        ([*JOB, "--model", "/no/model"], "error: model.model = '/no/model': no such folder"),
        (["distill", "DATA", "--out", "RUN", "--ipc", "50", *SMALL], "error: class 'cat' has 3 patches"),
        ([*JOB, "--config", "BAD"], "unknown setting 'scoring.draw'; did you mean 'draws'"),
        (["select", "DATA", "--ipc", "1", "--out", "SET"], "is not a run (no run.yaml)"),
        (["select", "/no/such", "--ipc", "1", "--out", "SET"], "/no/such is not a run: it does not exist"),
        (["export", "/no/such", "--to", "hf"], "/no/such: no such folder"),
        (["score", "DATA", "--out", "RUN", "--device", "cpu", "--precision", "fp16", "--model", TINY], "needs a GPU"),
    ],
)
def test_bad_usage_and_settings_exit_with_2_before_any_work(words, message: str, diffsel, folder, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("scoring: {draw: 3}\n")
    places = {"DATA": folder(cat=3), "RUN": tmp_path / "run", "SET": tmp_path / "set", "BAD": tmp_path / "bad.yaml"}
    code, _, err = diffsel(*(places.get(word, word) for word in words))
    assert code == 2
    assert message in err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_every_setting_has_a_flag(diffsel) -> None:
    out = "".join(diffsel(command, "--help")[1] for command in ("distill", "select", "teacher", "evaluate"))
    renamed = {"classes": "classes", "prompts": "prompt", "prompt": "prompt-index"}
    for section in Settings.model_fields.values():
        if isinstance(section.annotation, type) and issubclass(section.annotation, Section):
            for name in section.annotation.model_fields:
                assert f"--{renamed.get(name, name).replace('_', '-')} " in out.replace("/--no", " --no") + " "


def test_a_run_remembers_its_settings_and_refuses_others(diffsel, folder, tmp_path: Path) -> None:
    data, run = folder(cat=5), tmp_path / "run"
    words = ["score", data, "--out", run, "--model", TINY, "--image-size", 64, "-q", "--draws"]
    assert diffsel(*words, 3)[0] == 0
    code, _, err = diffsel(*words, 6)
    assert code == 2
    assert "scoring.draws: stored 3, asked 6" in err


def test_no_command_has_a_flag_twice() -> None:
    for command in typer.main.get_command(cli.app).commands.values():
        flags = [flag for parameter in command.params for flag in [*parameter.opts, *parameter.secondary_opts]]
        assert len(flags) == len(set(flags)), command.name


def test_the_version_is_told(diffsel) -> None:
    from importlib.metadata import version

    assert diffsel("--version") == (0, f"diffsel {version('diffsel')}\n", "")


def test_commands_that_need_a_network_show_progress_before_torch_is_loaded(tmp_path: Path) -> None:
    """Torch cannot be loaded here, so what was written came before it."""
    (tmp_path / "torch.py").write_text("raise SystemExit(9)")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(cli.__file__).parents[2])])}
    for words in (["score", "no-images", "--out", "run"], ["evaluate", "set", "--val", "val", "--student", "conv3"], ["demo"]):
        command = [sys.executable, "-m", "diffsel", *words]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.startswith("loading PyTorch: 0 of 1")) == (9, True)


def test_ctrl_c_ends_with_what_comes_next(folder, tmp_path: Path) -> None:
    """In a process of its own, which is interrupted when it has begun to score."""
    words = ["score", str(folder(cat=60, dog=60)), "--out", str(tmp_path / "run"), *map(str, PASS[:-1])]
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # tests may run where nobody hears it
    code = f"{listen}; from diffsel.__main__ import main; main()"
    job = subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True)
    assert job.stderr
    assert any(line.startswith("scoring images: 0 of 120") for line in iter(job.stderr.readline, ""))
    job.send_signal(signal.SIGINT)
    err = job.communicate(timeout=60)[1]
    assert err.splitlines()[-1:] == ["stopped: what is finished is kept, and the same command goes on from there"]
    assert job.returncode in (130, -signal.SIGINT)  # the latter, a shell's 130 too, where it came in the midst of an import


@pytest.mark.parametrize("where", ["diffsel.settings.presets.presets", "diffsel.cli.app.check_outputs"])
def test_ctrl_c_ends_a_command_that_keeps_nothing(where: str, diffsel, monkeypatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupted)
    code, out, err = diffsel("configs")
    assert (code, out, err.strip()) == (130, "", "stopped")


def test_memory_that_does_not_do_is_one_line(diffsel, folder, monkeypatch) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 16.4 TiB")

    monkeypatch.setattr("diffsel.data.images.open_data", no_memory)
    assert diffsel("inspect", folder(cat=1)) == (2, "", "error: not enough memory: Unable to allocate 16.4 TiB\n")
