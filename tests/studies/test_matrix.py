"""Tables as products: every combination once, what is there is kept, bad files are refused by key."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, TINY
from PIL import Image

from diffsel.evaluation import cells as experiment
from diffsel.evaluation.bench import Bench
from diffsel.evaluation.networks import build
from diffsel.evaluation.results import Line, fairness, spread
from diffsel.machine.device import Machine
from diffsel.machine.formats import read_yaml
from diffsel.sets import baselines
from diffsel.settings.errors import ConfigError
from diffsel.settings.settings import fingerprint, resolve
from diffsel.settings.training import ProtocolSettings
from diffsel.studies.matrix import Matrix, Point, Source, points, read_matrix, run_matrix, scores

CPU = Machine(torch.device("cpu"))


def write(path: Path, **values) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def world(folder, tmp_path: Path, monkeypatch) -> dict:
    train, val = folder("train", (16, 16), ant=6, bee=6), folder("val", (16, 16), ant=3, bee=3)
    torch.manual_seed(0)
    torch.save(build("conv3w8", 2, 16).state_dict(), tmp_path / "t.pth")
    monkeypatch.setattr(experiment.Bench, "check_teacher", lambda *args, **words: 50.0)  # it is as bad as chance
    return {
        "datasets": {"toy": {"train": str(train), "val": str(val), "settings": {"data.image_size": 16}}},
        "teachers": [str(tmp_path / "t.pth")],
    }


def test_every_combination_once_and_a_table(world, tmp_path: Path, monkeypatch) -> None:
    file = write(
        tmp_path / "m.yaml",
        **world,
        full={"toy": {"all": {"conv3w8": 90.0}}},
        methods=["random", "rded"],
        ipc=[1, 2],
        students=["conv3w8"],
        seeds=2,
        sets=2,
        protocols={"soft": {}, "hard": {"labels": "hard"}},
    )
    matrix = read_matrix(file)
    assert len(points(matrix)) == 8
    s = resolve({"patches": {"patch_size": 0}, "assembly": {"size": 16, "factor": 1}, "protocol": {"epochs": 2}})
    asked, judged = [], baselines._judged
    monkeypatch.setattr(baselines, "_judged", lambda *args: asked.append(args[1]) or judged(*args))
    text = run_matrix(matrix, tmp_path / "out", s, Bench(CPU))
    assert sorted(asked) == ["ant"] * 2 + ["bee"] * 2  # once for each draw, whatever the ipc
    assert text.count("±") == 8 * 4 + 2  # the header has two
    table, fair = text.split("\n\n")
    assert len(table.splitlines()) == 2 + 8 + 1
    assert table.endswith("hard* is hard with epochs = 2")
    assert "random: 2 sets" in fair
    for line in fair.splitlines()[4:]:
        ior, hlr, lrs, ars = line.split()[-4:]
        alpha = 0.5 * float(ior) / 100 - 0.5 * float(hlr) / 100
        assert float(lrs) == pytest.approx(100 * (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1)), abs=0.06)
        assert ars == "-"  # there are no students without augmentation
    results = sorted((tmp_path / "out" / "results").rglob("seed-*.json"))
    assert len(results) == 32
    judge = f"t.pth+{fingerprint(world['teachers'][0])[:8]}"
    assert sorted(p.name for p in (tmp_path / "out" / "sets").iterdir()) == [
        f"toy+all+{name}{draw}"
        for name in ("random+ipc1", "random+ipc2", f"rded+ipc1+{judge}", f"rded+ipc2+{judge}")
        for draw in ("", "+set1")
    ]
    before = {file: file.stat().st_mtime_ns for file in results}
    assert run_matrix(matrix, tmp_path / "out", s, Bench(CPU)) == text
    assert before == {file: file.stat().st_mtime_ns for file in results}
    assert len((tmp_path / "out" / "table.csv").read_text().splitlines()) == 9


def test_teachers_down_students_across(world, tmp_path: Path) -> None:
    torch.manual_seed(1)
    torch.save(build("conv3w4", 2, 16).state_dict(), tmp_path / "u.pth")
    world["teachers"].append(str(tmp_path / "u.pth"))
    file = write(tmp_path / "m.yaml", **world, methods=["random"], ipc=[1], students=["conv3w8", "conv3w4"], seeds=1)
    s = resolve({"patches": {"patch_size": 0}, "assembly": {"size": 16, "factor": 1}, "protocol": {"epochs": 1}})
    text = run_matrix(read_matrix(file), tmp_path / "out", s, Bench(CPU))
    pivot = text.split("\n\n")[1].splitlines()
    assert pivot[0] == "toy all random ipc 1, rded-fixed*"  # of one epoch
    assert pivot[1].split() == ["teacher", "\\", "student", "conv3w8", "conv3w4"]
    assert [line.split()[0] for line in pivot[3:]] == ["t.pth", "u.pth"]


def test_diffsel_takes_part(world, tmp_path: Path) -> None:
    world["datasets"]["toy"]["settings"] |= {"patches.patch_size": 0, "model.model": TINY, "scoring.draws": 3}
    world["datasets"]["toy"]["settings"]["data.image_size"] = 64
    file = write(
        tmp_path / "m.yaml", **world, methods=["diffsel", "diffsel-noclusters"], ipc=[1], students=["conv3w8"], seeds=1
    )
    s = resolve({"assembly": {"size": 16, "factor": 1}, "protocol": {"epochs": 1}, "selection": {"clusters": 2}})
    text = run_matrix(read_matrix(file), tmp_path / "out", s, Bench(CPU))
    assert "toy all diffsel ipc 1" in text
    assert "toy all diffsel-noclusters ipc 1" in text
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 1  # one scoring pass serves both


def test_fairness_compares_like_with_like() -> None:
    """One epoch kind for all terms, soft labels for the plain ones, the whole data set by classes and student."""
    bare = {"mix": "none", "crop": False, "flip": False, "shuffle": False}
    protocols = {"soft": {"report": "best"}, "hard": {"labels": "hard", **bare}, "bare": bare}
    top1 = {
        ("rded", "soft"): 60,
        ("random", "soft"): 50,
        ("rded", "hard"): 40,
        ("random", "hard"): 30,
        ("rded", "bare"): 45,
        ("random", "bare"): 43,
    }
    lines, chosen = {}, {}
    for (method, name), value in top1.items():
        last, best = spread([value - 7.0 * (method == "rded")]), spread([float(value)])
        point, protocol = Point("toy", "all", method, 1, "t", "conv3", name, method), ProtocolSettings(**protocols[name])
        top = best if protocol.report == "best" else last
        chosen[point] = protocol
        lines[point] = Line("set", "t", "online", "conv3", name, "fp32", top, None, best, last, {}, 0, {})
    full = {"toy": {"all": {"conv3": 90.0, "conv4": 99.0}, "half": {"conv3": 98.0}}}
    matrix = Matrix({"toy": Source("a", "b")}, ("random", "rded"), (1,), ("t",), ("conv3",), full=full)
    (row,) = scores(lines, chosen, matrix).splitlines()[4:]
    expected = fairness(soft=60, random_soft=50, hard=40, full_hard=90, plain=45, random_plain=43)
    assert [float(value) for value in row.split()[-4:]] == [round(expected[key], 1) for key in ("IOR", "HLR", "LRS", "ARS")]


def test_methods_may_have_names_and_settings_of_their_own(world, tmp_path: Path) -> None:
    whole = {"selection.method": "random", "baseline.whole": True}
    methods = {"crops": {"selection.method": "random"}, "whole images": whole}
    file = write(
        tmp_path / "m.yaml",
        **{**world, "methods": methods, "ipc": [1], "students": ["conv3w8"], "seeds": 1, "sets": 2},
        protocols={"hard": {"labels": "hard"}},
    )
    s = resolve({"patches": {"patch_size": 0}, "assembly": {"size": 16, "factor": 1}, "protocol": {"epochs": 1}})
    text = run_matrix(read_matrix(file), tmp_path / "out", s, Bench(CPU))
    assert "toy all crops ipc 1" in text
    assert "toy all whole images ipc 1" in text
    sets = {folder.name: read_yaml(folder / "set.yaml") for folder in (tmp_path / "out" / "sets").iterdir()}
    assert [record["baseline"]["whole"] for name, record in sorted(sets.items())] == [False, False, True, True]
    assert sorted(record["seed"] for record in sets.values()) == [0, 0, 1, 1]
    (page,) = (tmp_path / "out").glob("table-*.png")
    assert page.name == "table-toy+all+t+conv3w8+hard.png"
    with Image.open(page) as picture:
        assert picture.size[0] > 400
    bad = write(tmp_path / "b.yaml", **{**world, "methods": {"x": {"selection.metod": 1}}, "ipc": [1], "students": ["conv3w8"]})
    with pytest.raises(ConfigError, match="metod"):
        run_matrix(read_matrix(bad), tmp_path / "other", s, Bench(CPU))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": ["conv3"]}, r"student: Unexpected keyword argument .*axes: .*students"),
        ({"ipc": ["ten"]}, "ipc.0"),
        ({"datasets": {"toy": {"train": "x"}}}, "datasets.toy.val"),
        ({"methods": ["rdde"]}, "methods.*0.*: .*'rded'"),
        ({"ipc": [0]}, "ipc.0: .*greater than or equal to 1"),
        ({"seeds": 0}, "seeds: .*greater than or equal to 1"),
    ],
)
def test_a_bad_file_is_refused_by_key(world, tmp_path: Path, change: dict, message: str) -> None:
    good = {**world, "methods": ["random"], "ipc": [1], "students": ["conv3"]}
    with pytest.raises(ConfigError, match=message):
        read_matrix(write(tmp_path / "m.yaml", **{**good, **change}))
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        read_matrix(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("settings", "student", "message"),
    [
        ({"date.image_size": 16}, "conv3", "'date.image_size': 'date' is no section .*data"),
        ({"seed.x": 16}, "conv3", "'seed' is no section"),
        ({}, "conv9", "unknown network 'conv9'"),
        ({}, "conv6", "conv6 halves images 6 times, too often for 16 x 16"),
    ],
)
def test_what_cannot_work_is_refused_before_any_set_is_made(world, tmp_path: Path, settings, student, message) -> None:
    world["datasets"]["toy"]["settings"] |= settings
    file = write(tmp_path / "m.yaml", **world, methods=["random"], ipc=[1], students=["conv3w8", student], seeds=1)
    s = resolve({"patches": {"patch_size": 0}, "assembly": {"size": 16, "factor": 1}})
    with pytest.raises(ConfigError, match=message):
        run_matrix(read_matrix(file), tmp_path / "out", s, Bench(CPU))
    assert not (tmp_path / "out").exists()


EXPERIMENTS = sorted((ROOT / "configs" / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda p: p.stem)
def test_every_experiment_file_is_well_formed(file: Path) -> None:
    assert points(read_matrix(file))


def test_rded_sets_belong_to_their_judge() -> None:
    judges = ("a/t1", "a/t2", "b/t1")
    assert len({Point("d", "all", "rded", 1, judge, "conv3", "p", "rded").set_name for judge in judges}) == 3
    names = (("d-x", "all"), ("d", "x-all"), ("d+x", "all"), ("d", "x+all"))
    assert len({Point(*pair, "random", 1, "t", "conv3", "p", "random").set_name for pair in names}) == 4
    assert (
        Point("d", "all", "random", 1, "a/t1", "conv3", "p", "random").set_name
        == Point("d", "all", "random", 1, "b", "conv3", "p", "random").set_name
    )


def test_the_patch_follows_each_data_sets_image_size(tmp_path: Path) -> None:
    from diffsel.settings.settings import default_patch, resolve
    from diffsel.studies.matrix import settings_of

    assert settings_of(resolve({}), {"data.image_size": 512}).patches.patch_size == default_patch(512) == 448
    assert settings_of(resolve({"patches": {"patch_size": 100}}), {"data.image_size": 512}).patches.patch_size == 100
    assert settings_of(resolve({}), {"data.image_size": 32, "patches.patch_size": 0}).patches.patch_size == 0
