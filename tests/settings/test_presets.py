"""Every preset is found by its name and is valid settings; other names are answered with the nearest."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from diffsel.settings import presets as module
from diffsel.settings.errors import ConfigError
from diffsel.settings.presets import about, find_preset, presets
from diffsel.settings.settings import Settings, load_settings

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", presets())
def test_each_is_valid_says_what_it_is_for_and_changes_something(name: str) -> None:
    assert load_settings([find_preset(name)]) != Settings() or name in ("rded-fixed", "guided")  # the defaults, spelled out
    assert len(about(find_preset(name))) > 20
    assert about(find_preset(name)).endswith((".", ")."))  # one line, not cut in a sentence


def test_no_two_have_one_name() -> None:
    files = [file for kind in module.KINDS for file in (ROOT / "configs" / kind).glob("*.yaml")]
    assert sorted(presets().values()) == sorted(files)


def test_a_file_comes_before_a_preset_and_a_typing_slip_is_told(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings([find_preset("hard")]).protocol.labels == "hard"
    Path("hard").write_text("protocol: {epochs: 7}")
    assert load_settings([find_preset("hard")]).protocol.epochs == 7
    with pytest.raises(
        ConfigError, match=r"settings 'imagenete': no such file, and no preset of that name; there is imagenette"
    ):
        find_preset("imagenete")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_settings([find_preset("nowhere.yaml")])


def test_the_command_lists_and_prints_them(diffsel) -> None:
    code, out, _ = diffsel("configs")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(presets())
    assert diffsel("configs", "rded")[1] == find_preset("rded").read_text()


def test_the_command_copies_the_whole_folder_to_where_one_works(diffsel, tmp_path: Path) -> None:
    code, out, _ = diffsel("configs", "--out", tmp_path / "configs")
    assert (code, out) == (0, f"the files: {tmp_path / 'configs'}\n")
    there = {file.relative_to(ROOT / "configs"): file.read_bytes() for file in (ROOT / "configs").rglob("*") if file.is_file()}
    copied = {name: (tmp_path / "configs" / name).read_bytes() for name in there}
    assert copied == there
    assert Path("accelerate/gpu-8.yaml") in there  # what is no preset too
    code, _, told = diffsel("configs", "--out", tmp_path / "configs")
    assert code == 2
    assert "exists; give a new folder" in told


def test_a_wheel_carries_them(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    code = "from hatchling.builders.wheel import WheelBuilder; print(*WheelBuilder({!r}).build(directory={!r}))"
    built = subprocess.run(
        [sys.executable, "-c", code.format(str(ROOT), str(tmp_path))], capture_output=True, text=True, check=True
    )
    with zipfile.ZipFile(built.stdout.split()[-1]) as wheel:
        assert "diffsel/assets/configs/protocols/rded.yaml" in wheel.namelist()
