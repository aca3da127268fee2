"""A folder for other tools is whole, or it is told; earlier ones are still what they were."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import small_values
from PIL import Image

from diffsel.data.images import open_data
from diffsel.sets import export
from diffsel.sets.baselines import select_baseline
from diffsel.settings.errors import DataError, StoreError
from diffsel.settings.settings import resolve


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    place, rng = tmp_path_factory.mktemp("exported"), np.random.default_rng(0)
    for name in ("cat", "dog"):
        (place / "data" / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(place / "data" / name / f"{i}.png")
    settings = resolve({**small_values(), "selection": {"method": "random"}, "assembly": {"size": 16, "factor": 1}})
    assert select_baseline(open_data(str(place / "data"), settings.data, 0), 2, place / "set", settings)
    return place / "set"


@pytest.mark.parametrize("form", export.FORMS)
def test_an_export_that_was_damaged_is_not_called_there_already(form: str, made: Path, tmp_path: Path, diffsel) -> None:
    out = tmp_path / "out"
    assert export.export_set(made, form, out)
    (out / "README.md").write_text("a card is for people to write in")
    assert not export.export_set(made, form, out)
    file = next(file for file in sorted(out.rglob("*")) if file.is_file() and file.name not in ("README.md", "export.yaml"))
    for told, hand in {
        "is not what export.yaml tells": lambda: file.write_bytes(file.read_bytes() + b"x"),
        "is named in export.yaml but is not there": file.unlink,
        "is a link that leads out of its folder": lambda: file.symlink_to(made / "set.yaml"),
    }.items():
        hand()
        with pytest.raises(DataError, match=f"{file.name} {told}.*; the export is damaged: delete .* and make it anew"):
            export.export_set(made, form, out)
        code, text, _ = diffsel("check", out, "-q")
        assert (code, f"{file} {told}" in text, f"remove {out}, and export it anew" in text) == (1, True, True)


def test_the_slower_of_two_exports_takes_the_others(made: Path, tmp_path: Path, monkeypatch) -> None:
    """Both found nothing there; the other one is done while this one packs."""
    whole = export.export_set(made, "csv", tmp_path / "first")
    card = export._card

    def late(*given: object) -> str:
        shutil.copytree(tmp_path / "first", tmp_path / "out")
        return card(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(export, "_card", late)
    assert (whole, export.export_set(made, "csv", tmp_path / "out")) == (True, False)
    (tmp_path / "first" / "export.yaml").unlink()
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(StoreError, match="exists and is not this export"):
        export.export_set(made, "csv", tmp_path / "out")


def test_an_export_of_an_earlier_version_is_still_that_export(made: Path, tmp_path: Path) -> None:
    assert export.export_set(made, "csv", tmp_path / "out")
    record = yaml.safe_load((tmp_path / "out" / "export.yaml").read_text())
    record["format"] = 1
    del record["files"], record["checksum"]
    (tmp_path / "out" / "export.yaml").write_text(yaml.safe_dump(record))
    assert not export.export_set(made, "csv", tmp_path / "out")
