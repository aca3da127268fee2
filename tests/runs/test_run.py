"""What lies on disk is whole, belongs to its settings, and stays inside its folder."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from test_method import distill

from diffsel import method
from diffsel.data import images
from diffsel.data.classes import ClassInfo
from diffsel.data.images import ImageData
from diffsel.data.rows import Row, Rows, Skipped
from diffsel.machine import files
from diffsel.report.opening import open_target, settings_of
from diffsel.runs import index, session
from diffsel.runs import run as store
from diffsel.runs.units import told_by
from diffsel.sets.candidates import most_patches
from diffsel.settings.errors import SettingsDiffer, StoreError
from diffsel.settings.sections import DataSettings
from diffsel.settings.settings import Settings, fingerprint, resolve


def data(count: int = 3, label: str = "cat") -> ImageData:
    rows = Rows.of([[Row(i, f"{label}/{i}.png", label, 64, 48, f"{i:032x}") for i in range(count)]])
    skipped = (Skipped(f"{label}/x.png", label, "empty file"),)
    return ImageData("/data", (ClassInfo(label, label),), rows, skipped, DataSettings(), lambda name: b"")


def test_a_run_is_opened_again_and_other_settings_are_listed(tmp_path: Path) -> None:
    identity = {"seed": 0, "scoring": {"draws": 12, "t_min": 0.1}, "precision": "fp32"}
    record = session.create_run(tmp_path / "run", identity, Settings(), data())
    assert store.read_index(tmp_path / "run") == data().rows
    assert store.read_skipped(tmp_path / "run") == list(data().skipped)
    assert session.create_run(tmp_path / "run", identity, Settings(), data()) == record
    other = {"seed": 0, "scoring": {"draws": 10, "t_min": 0.1}, "precision": "bf16"}
    with pytest.raises(SettingsDiffer) as caught:
        session.create_run(tmp_path / "run", other, Settings(), data())
    assert caught.value.differences == {"scoring.draws": (12, 10), "precision": ("fp32", "bf16")}
    assert "scoring.draws: stored 12, asked 10" in str(caught.value)


def test_other_formats_and_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a run"):
        store.open_run(tmp_path)
    (tmp_path / "photo.jpg").write_text("mine")
    with pytest.raises(StoreError, match="exists and is not a run"):
        session.create_run(tmp_path, {}, Settings(), data())
    session.create_run(tmp_path / "run", {}, Settings(), data())
    file = tmp_path / "run" / "run.yaml"
    file.write_text(file.read_text().replace("format: 1", "format: 0"))
    with pytest.raises(StoreError, match="store format 0; this version reads format 1"):
        store.open_run(tmp_path / "run")


def test_units_hold_at_most_256_rows_of_one_class() -> None:
    units = store.Run(Path("run"), {}, Settings(), data().classes, data(600)).units
    assert [(u.name, len(u.rows)) for u in units] == [("cat-000", 256), ("cat-001", 256), ("cat-002", 88)]


@pytest.fixture
def scored(folder, tmp_path: Path, small: Settings) -> Path:
    method.distill(str(folder(cat=300, dog=5, size=(16, 16))), tmp_path / "run", {}, tiny_images(small))
    return tmp_path / "run"


def tiny_images(small: Settings) -> Settings:
    """Settings for pictures of 16 pixels, so that a class of two units takes seconds."""
    values = small.model_dump(mode="json")
    values |= {"data": {"image_size": 16}, "patches": {"patch_size": 0}, "scoring": {"draws": 1, "bins": 1}}
    return resolve(values | {"compute": {"batch_size": 64, "device": "cpu"}})


def units_under_other_names(run: Path, part: str) -> None:
    """The second unit of a class is a copy of the first; the other class has one of its own."""
    first = next(run.glob(f"{part}/cat-000.safetensors"))
    (first.parent / "cat-001.safetensors").write_bytes(first.read_bytes())
    (first.parent / "dog-000.safetensors").write_bytes(first.read_bytes())


@pytest.mark.parametrize("part", ["maps", "features/*"])
def test_a_unit_under_another_units_name_is_refused(scored: Path, part: str, diffsel) -> None:
    assert diffsel("check", scored, "-q")[0] == 0
    units_under_other_names(scored, part)
    run = store.open_run(scored)
    for unit in run.units[1:]:
        with pytest.raises(StoreError, match=f"holds other images than unit {unit.name}"):
            run.maps(unit) if part == "maps" else run.patches(unit)
    if part != "maps":
        with pytest.raises(StoreError, match=r"dog-000.safetensors holds other images than unit dog-000"):
            most_patches(run, ["dog"])
    code, out, _ = diffsel("check", scored, "-q")
    assert (code, out.count("holds other images")) == (1, 2)


def test_an_index_that_is_lost_or_damaged_is_made_again(scored: Path, tmp_path: Path, small: Settings, diffsel) -> None:
    index = scored / "index.parquet"
    whole = index.read_bytes()
    table = pq.read_table(index)
    wrong = table.set_column(3, "width", pa.array([9] * len(table)))
    for change in (
        lambda: index.unlink(),
        lambda: (index.unlink(), os.mkfifo(index)),
        lambda: index.write_bytes(b"PAR1"),
        lambda: pq.write_table(wrong, index),
        lambda: pq.write_table(table.drop_columns("digest"), index),
    ):
        change()
        with pytest.raises(StoreError, match=r"index.parquet is (lost or )?damaged.*diffsel score .* makes it again"):
            store.open_run(scored)
        code, out, _ = diffsel("check", scored, "-q")
        assert (code, "diffsel score" in out) == (1, True)
        session.start(str(tmp_path / "data"), scored, tiny_images(small))
        assert index.read_bytes() == whole


def test_a_folder_of_somebody_else_is_refused_and_nothing_in_it_is_removed(folder, tmp_path: Path, small: Settings) -> None:
    (gone := subprocess.Popen(["true"])).wait()
    (tmp_path / "theirs").mkdir()
    for name in ("notes.txt", f".part-{files._host()}-{gone.pid}-abc"):
        (tmp_path / "theirs" / name).touch()
    with pytest.raises(StoreError, match="theirs exists and is not a run"):
        session.start(str(folder(cat=1, size=(16, 16))), tmp_path / "theirs", tiny_images(small))
    assert len(os.listdir(tmp_path / "theirs")) == 2


def test_a_record_that_was_edited_is_refused(scored: Path, diffsel) -> None:
    file = scored / "run.yaml"
    whole = re.sub("checksum: .*\n", "", file.read_text())  # as earlier versions wrote it: the record must speak for itself
    renamed = "  name: tiger".join(whole.rsplit("  name: cat", 1))
    cut = whole[: whole.index("  training:")]
    for text, message in (
        (renamed, "its classes are not those that were scored"),
        (cut, "settings.training"),
        (whole.replace("identity:", "identities:"), "identity missing"),
        (whole.replace("data: /", "dat: /", 1), "data missing"),
    ):
        assert text != whole
        file.write_text(text)
        code, _, err = diffsel("suspects", scored, "-q")
        assert (code, message in err, "Traceback" in err) == (2, True, False), message


def test_settings_of_vectors_that_were_changed_are_written_again_and_cost_no_vector(scored: Path, diffsel) -> None:
    (file,) = scored.glob("features/*/settings.yaml")
    whole = file.read_text()
    before = {path: path.stat().st_mtime_ns for path in file.parent.glob("*.safetensors")}
    file.write_text(whole.replace("timestep: 0.16", "timestep: 0.17"))
    code, out, _ = diffsel("check", scored, "--remove", "-q")
    assert (code, "does not say the settings that its folder is named after: removed" in out) == (0, True)
    assert diffsel("embed", scored, "-q")[0] == 0
    assert file.read_text() == whole
    assert before == {path: path.stat().st_mtime_ns for path in file.parent.glob("*.safetensors")}
    assert diffsel("check", scored, "-q")[0] == 0


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_patches_are_ranked_by_a_mean_inside_their_box(guidance: float, folder, tmp_path: Path, small: Settings) -> None:
    ranked = small.selection.model_copy(update={"rank_by": "guided", "guidance": guidance})
    asked = small.model_copy(update={"selection": ranked})
    method.distill(str(folder(cat=4)), tmp_path / "run", {}, asked)
    run = store.open_run(tmp_path / "run", asked)
    unit = run.units[0]
    tensors, patches = run.maps(unit)[0], run.patches(unit)
    stored = {name: patches[name] for name in ("differential", "gap")}  # the first versions had none: then from the maps
    for name, values in run.means(unit, patches["row"].tolist(), patches["box"].tolist()).items():
        np.testing.assert_array_equal(stored[name], values)
    for row, (top, left, height, width), value in zip(patches["row"], patches["box"], run.ranks(unit, patches), strict=True):
        d, g = (tensors[f"{row}.{name}"][0].astype(float).mean(0) for name in ("differential", "gap"))
        wide, high = run.data.size(unit.rows[int(row)])
        cells = torch.from_numpy(-d - (guidance - 1) * g)
        full = F.interpolate(cells[None, None], (high, wide), mode="bilinear", align_corners=False)[0, 0]
        assert value == pytest.approx(full[top : top + height, left : left + width].mean().item())


def test_vectors_and_ranks_read_the_maps_of_a_unit_once(folder, tmp_path: Path, small: Settings, monkeypatch) -> None:
    opened = session.start(str(folder(cat=4, dog=3)), tmp_path / "run", small)
    method.score(opened)
    real, read = store.Run.maps, list[str]()
    monkeypatch.setattr(store.Run, "maps", lambda run, unit: read.append(unit.name) or real(run, unit))
    method.embed(opened)
    assert sorted(read) == sorted(unit.name for unit in opened.run.units)
    read.clear()
    plain = small.model_copy(update={"selection": small.selection.model_copy(update={"method": "diffsel-noclusters"})})
    run, unit = store.open_run(tmp_path / "run", plain), opened.run.units[0]
    assert len(run.ranks(unit, run.patches(unit))) == 4
    assert read == [unit.name]


def test_an_index_of_an_earlier_version_is_read_and_checked(tmp_path: Path) -> None:
    """It had texts where classes are now counted, and a checksum of the columns as lists."""
    session.create_run(tmp_path, {}, Settings(), data())
    names, fields = ("row", "path", "class", "width", "height", "digest"), ("row", "path", "label", "width", "height", "digest")
    columns = [[getattr(row, field) for row in data().rows] for field in fields]
    table = pa.table(dict(zip(names, columns, strict=True))).replace_schema_metadata({"diffsel": fingerprint(columns)})
    pq.write_table(table, tmp_path / "index.parquet")
    assert store.read_index(tmp_path) == data().rows
    assert store.read_index(tmp_path).digest == data().digest
    columns[3][1] += 1
    pq.write_table(pa.table(dict(zip(names, columns, strict=True)), metadata=table.schema.metadata), tmp_path / "index.parquet")
    with pytest.raises(StoreError, match="checksum differs"):
        store.read_index(tmp_path)


def test_another_process_of_a_launch_lists_no_image_again(folder, tmp_path, small, monkeypatch) -> None:
    source = folder(cat=3, dog=2)
    (source / "dog" / "broken.png").write_bytes(b"nothing")
    first = session.start(str(source), tmp_path / "run", small)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with monkeypatch.context() as patch:
        patch.setattr(images, "_list", lambda *_: pytest.fail("listed"))
        second = session.start(str(source), tmp_path / "run", small)
    assert second.data.rows == first.data.rows
    assert second.data.skipped == first.data.skipped
    assert np.array_equal(second.data.pixels(second.data.rows[4]), first.data.pixels(first.data.rows[4]))
    other = small.model_copy(update={"data": small.data.model_copy(update={"images_per_class": 2})})
    with pytest.raises(SettingsDiffer, match=r"images\.count"):  # as the main process says
        session.start(str(source), tmp_path / "run", other)


def test_an_index_that_is_whole_is_read_once_and_not_written_again(folder, tmp_path, small, monkeypatch) -> None:
    source, read = folder(cat=3), []
    session.start(str(source), tmp_path / "run", small)
    before = (tmp_path / "run" / "index.parquet").stat().st_ino
    monkeypatch.setattr(index, "read_index", lambda path, inner=index.read_index: read.append(path) or inner(path))
    session.start(str(source), tmp_path / "run", small)
    assert len(read) == 1
    assert (tmp_path / "run" / "index.parquet").stat().st_ino == before


def test_units_name_their_device_and_several_are_told(folder, tmp_path, small, diffsel, monkeypatch) -> None:
    """A name changes no fingerprint: units of one run may be of several devices, which is told and not refused."""
    source, run = folder(cat=3, dog=3), tmp_path / "run"
    alone = distill(source, run, small).run
    assert {extra["device"] for extra in told_by(run)} == {"cpu"}
    for file in (alone.map_file(alone.units[1]), alone.feature_file(alone.units[1])):
        file.unlink()
    monkeypatch.setattr("diffsel.machine.device.device_name", lambda device: "NVIDIA X")
    session = distill(source, run, small)
    assert session.run.mark == alone.mark
    note = "units of several devices (1 by NVIDIA X, 1 by cpu) are equal to rounding, not byte by byte"
    assert note in session.notes
    code, out, _ = diffsel("check", run, "-q")
    assert code == 0
    assert note.replace("1", "2") in out  # maps and features
    assert settings_of(open_target(run))["run"]["devices"] == note.replace("1", "2")
