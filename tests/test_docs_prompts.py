"""Every command of docs/prompts.md and docs/export.md runs as it stands, on small data (with flags that only save time)."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml
from conftest import small_values

DOCS = Path(__file__).parent.parent / "docs"
QUICK = {"prompts": ["--patch-size", "16", "-q"], "select": ["-q"], "suspects": ["-q"], "export": []}
STUDENTS = ["--epochs", "1", "--students", "1", "--labels", "soft"]


def commands(name: str) -> list[list[str]]:
    lines = (DOCS / name).read_text().splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("    diffsel ")]


@pytest.mark.parametrize(("name", "least"), [("prompts.md", 8), ("export.md", 5)])
def test_commands_of_the_docs_run(name: str, least: int, diffsel, colours, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nobody"))  # nobody is logged in
    monkeypatch.delenv("HF_TOKEN", raising=False)
    Path("photos").mkdir()
    colours(train=5, val=4)
    for split in ("train", "val"):
        Path(split).rename(f"photos/{split}")
    values = {
        **small_values(),
        "data": {"image_size": 32},
        "scoring": {"draws": 1, "bins": 1},
        "assembly": {"size": 32, "factor": 1},
    }
    Path("settings.yaml").write_text(yaml.safe_dump({**values, "patches": {"patch_size": 16}}))
    words = {a: {"name": a, "description": f"all {a}", "other": b} for a, b in (("red", "blue"), ("blue", "red"))}
    Path("words.yaml").write_text(yaml.safe_dump(words))
    assert diffsel("distill", "photos/train", "--config", "settings.yaml", "--out", "run", "--ipc", 1, "-q")[0] == 0
    found = commands(name)
    assert len(found) >= least
    if any("--teacher" in command for command in found):
        train = [
            "--network",
            "conv3w8",
            "--size",
            32,
            "--epochs",
            6,
            "--batch-size",
            5,
            "--crop",
            "none",
            "--device",
            "cpu",
            "-q",
        ]
        assert diffsel("teacher", "photos/train", "--val", "photos/val", *train, "--out", "teacher")[0] == 0
    for command in found:
        code, _, err = diffsel(*command, *QUICK[command[0]], *(STUDENTS if "--val" in command else []))
        if "--push" in command:
            assert (code, "hf auth login" in err) == (2, True), command
        else:
            assert (code, err) == (0, ""), command
