"""A case at a scale: what is left out, what is shared, what it costs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT
from programs import CONFIGS, SCALES, load

from diffsel.settings.errors import ConfigError
from diffsel.studies import cases as scales
from diffsel.studies.cases import Case, costs, plan, read_scale


def test_the_full_set_has_no_cap() -> None:
    """Figure 7: all images of the demo (its pass is the same), ImageNet-1K's 1.28 million; left out on CIFAR-10."""
    cases = load(ROOT / "pipelines" / "real_images.py")["cells"]()
    counts = {}
    for name in SCALES:
        scale = read_scale(name, CONFIGS)
        jobs = plan(cases, scale, CONFIGS)
        counts[name] = len(jobs), jobs[-1].settings.selection.images, costs(jobs, scale)[-1].forwards
        assert jobs[-1].settings.data.images_per_class == (300 if name == "cifar10" else None)
    assert counts == {"demo": (5, None, 0), "cifar10": (4, 300, 0), "paper": (5, None, 1_281_167 * 16 * 2)}


def test_the_cost_of_shared_work_is_counted_once() -> None:
    scale = read_scale("paper", CONFIGS)
    ranges = plan(load(ROOT / "pipelines" / "timestep_ranges.py")["cells"](), scale, CONFIGS)
    found = costs(ranges, scale)
    assert [cost.forwards for cost in found] == [300_000 * 16 * 2] + [0] * 9
    assert [cost.vectors for cost in found] == [300_000] * 10
    assert {cost.images for cost in found} == {50 * 1000 * 300 * 5}
    assert len({job.run_name for job in ranges}) == 1
    assert len({job.set_name for job in ranges}) == 10


def test_a_scale_stands_for_the_paper_and_refuses_what_it_lacks(tmp_path: Path) -> None:
    scale = read_scale("demo", CONFIGS, model="elsewhere", students=7)
    case = Case("r", "c", "imagewoof", 50, settings={"selection.clusters": 64})
    (job,) = plan([case, case, Case("r", "d", "cifar100", 50)], scale, CONFIGS)
    assert (job.dataset, job.ipc, job.student, job.students) == ("scenes", 5, "conv4w32", 7)
    assert job.settings.selection.clusters == 16
    assert job.settings.model.model == "elsewhere"
    assert job.settings.patches.t_range == (0.1, 0.7)
    with pytest.raises(ConfigError, match="data set 'mars' is not in this scale"):
        plan([Case("r", "c", "mars", 1)], scale, CONFIGS)
    with pytest.raises(ConfigError, match="there is cifar10, demo, paper"):
        read_scale("huge", CONFIGS)
    with pytest.raises(ConfigError, match="set the environment variable NOWHERE"):
        scales.place("$NOWHERE/train", tmp_path)
    for speed in ("{}", "{forward: 1}", "{forward: 0, student: 1}", "{forward: 1, student: 1, resnet50: -1}"):
        (tmp_path / "s.yaml").write_text(f"datasets: {{}}\nspeed: {speed}\n")
        with pytest.raises(ConfigError, match=r"s\.yaml: speed\.\w+: must be there and above 0, such as"):
            read_scale(str(tmp_path / "s.yaml"), CONFIGS)
    (tmp_path / "s.yaml").write_text("datasets: {}\nspeed: {}\nstands: {selection.clutsers: {32: 8}}\n")
    with pytest.raises(ConfigError, match=r"s\.yaml: stands.selection.clutsers: neither one of dataset, ipc"):
        read_scale(str(tmp_path / "s.yaml"), CONFIGS)
    (tmp_path / "s.yaml").write_text("datasets: {}\nspeed: {}\nstudnts: 3\n")
    with pytest.raises(ConfigError, match=r"s\.yaml: studnts"):
        read_scale(str(tmp_path / "s.yaml"), CONFIGS)


def test_the_cap_on_training_images_leaves_the_validation_images_whole(folder, tmp_path: Path, monkeypatch) -> None:
    from diffsel.data.albums import Opener

    root = str(folder(cat=5, dog=4))
    (tmp_path / "s.yaml").write_text(
        yaml.safe_dump(
            {
                "datasets": {"toy": {"train": root, "val": root, "images": 9, "classes": 2}},
                "settings": {"data.images_per_class": 2, "data.image_size": 64},
                "speed": {"forward": 1, "student": 1},
            }
        )
    )
    (job,) = plan([Case("r", "c", "toy", 1)], read_scale(str(tmp_path / "s.yaml"), CONFIGS), CONFIGS)
    assert job.settings.data.images_per_class == 2
    assert len(Opener().validation(job.source.val, job.settings).rows) == 9
    monkeypatch.setattr("diffsel.data.albums.validation_split", lambda path, _: "held")
    monkeypatch.setattr("diffsel.data.albums.open_data", lambda path, data, *rest: SimpleNamespace(split=data.split, notes=()))
    assert Opener().validation("some/hub-id", job.settings).split == "held"  # not the split of the training images
    assert Opener().training("some/hub-id", job.settings).split == "train"
