"""The house: which room may import which, and which files may load a heavy library."""

from __future__ import annotations

import ast
import contextlib
import graphlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "diffsel"
ROOMS = {  # room -> what it may import; a name with a dot is one file.  The line order is the order of the house.
    "settings": "",
    "machine": "settings",
    "data": "settings machine",
    "scoring": "settings machine data",
    "runs": "settings machine data scoring",
    "sets": "settings machine data scoring.patches runs",
    "method": "settings machine data scoring runs sets",
    "evaluation": "settings machine data sets",
    "report": "settings machine data scoring.patches runs.parts runs.run runs.units runs.knowledge sets evaluation.results",
    "studies": "settings machine data scoring runs sets method evaluation report",
    "cli": "settings machine data scoring runs sets method evaluation report studies",
}
DOORS = {  # a heavy library -> the files, or folders in a room, that import it
    "accelerate": "machine.processes",
    "diffusers": "scoring.diffusion scoring.priors",
    "fsspec": "machine.addresses",
    "huggingface_hub": "scoring.folder sets.card sets.export",
    "jinja2": "report.rendering",
    "joblib": "sets.selection",
    "matplotlib": "studies.figures studies.tables",
    "sklearn": "sets.coresets studies.scenes report.charts",
    "timm": "evaluation.networks",
    "torch": "machine.captured machine.device machine.helpers data.albums data.views scoring.batching scoring.diffusion "
    "scoring.draws scoring.answers scoring.levels scoring.maps scoring.features scoring.fitting scoring.priors runs.forecast "
    "runs.probe sets.baselines evaluation.networks evaluation.checkpoints evaluation.seeing "
    "evaluation.teachers evaluation.teaching evaluation.cutting evaluation.batches evaluation.fixed "
    "evaluation.storing evaluation.students evaluation.cells",
    "typer": "cli.app cli.flags cli.layout cli.making cli.looking cli.handing cli.evaluation studies.study",
}
FOLDERS = ["scoring.priors"]  # inside a room
NEVER = {"pickle", "dill", "shelve"}

FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name not in ("__init__.py", "__main__.py")
}


def imports(name: str) -> tuple[set[str], set[str]]:
    """(files of this package, top-level packages) that a file imports, wherever in it."""
    here, own, other = name.split("."), set(), set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            other |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            other.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = [*here[: len(here) - node.level], *(node.module.split(".") if node.module else [])]
            own |= {".".join([*base, a.name]) if ".".join([*base, a.name]) in FILES else ".".join(base) for a in node.names}
    return own, other


def test_the_house_has_these_rooms_and_no_others() -> None:
    there = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert there == {*ROOMS, "assets", "__init__.py", "__main__.py", "method.py", "py.typed"} - {"method"}


@pytest.mark.parametrize("name", FILES)
def test_imports_go_to_earlier_rooms_only(name: str) -> None:
    room = name.split(".")[0]
    allowed = {room, *ROOMS[room].split()}
    own, other = imports(name)
    assert not [file for file in own if file.split(".")[0] not in allowed and file not in allowed]
    assert not other & NEVER
    for library, files in DOORS.items():
        doors = files.split()
        assert library not in other or name in doors or name.rpartition(".")[0] in doors, f"{name} imports {library}"


def test_no_file_imports_itself_over_others() -> None:
    """Nor are there long ways: from the command line to the settings a chain of at most 14 files."""
    below = {name: imports(name)[0] & FILES.keys() for name in FILES}
    longest: dict[str, int] = {}
    for name in graphlib.TopologicalSorter(below).static_order():  # CycleError names the files of a circle
        longest[name] = 1 + max((longest[other] for other in below[name]), default=0)
    assert max(longest.values()) <= 14


def test_every_room_says_what_its_files_are() -> None:
    for room in [*(ROOMS.keys() - {"method"}), *FOLDERS]:
        tree = ast.parse((PACKAGE / room.replace(".", "/") / "__init__.py").read_text())
        assert len(tree.body) == 1, f"{room}/__init__.py holds a docstring and nothing else"
        told = re.findall(r"^(\w+)  +\S", tree.body[0].value.value, re.M)
        assert told == [name.rpartition(".")[2] for name in sorted([*FILES, *FOLDERS]) if name.rpartition(".")[0] == room]


def test_the_readme_shows_the_files_of_each_room() -> None:
    layout = (PACKAGE.parent / "README.md").read_text().partition("## Layout")[2]
    for room in {name.partition(".")[0] for name in FILES} - {"method"}:
        files = {name.split(".")[1] for name in FILES if name.startswith(f"{room}.")}
        told = re.search(rf"^  {room}/ +.*: (.*)$", layout, re.M)
        assert told, room
        assert sorted(told[1].replace("/", "").split(", ")) == sorted(files), room


@pytest.mark.parametrize("name", FILES)
def test_files_stay_readable(name: str) -> None:
    text = FILES[name].read_text()
    tree = ast.parse(text)
    assert text.count("\n") <= 320
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 55, f"{name}.{node.name}"


def test_the_method_is_one_page() -> None:
    assert (PACKAGE / "method.py").read_text().count("\n") <= 160


ELSEWHERE = {  # files without tests of their own name, and where they are tested
    "settings.errors": "classes and messages only: every test of a refusal meets them",
    "data.pool": "sets/test_candidates.py",
    "settings.sections": "settings/test_settings.py",
    "settings.training": "settings/test_settings.py",
    "data.notebook": "test_api.py",
    "runs.index": "runs/test_run.py",
    "runs.parts": "runs/test_prompts.py, runs/test_rivals.py",
    "runs.record": "runs/test_run.py",
    "runs.units": "runs/test_run.py",
    "runs.writing": "test_method.py, test_faults.py",
    "scoring.draws": "scoring/test_maps.py, test_golden.py",
    "scoring.parts": "scoring/test_folder.py, scoring/test_families.py",
    **{
        f"scoring.priors.{name}": "scoring/test_priors.py"
        for name in ("dit", "pixart", "prx", "sd3", "sdxl", "transformer", "words")
    },
    "scoring.priors.sd": "scoring/test_diffusion.py, test_golden.py, scoring/test_priors.py",
    "sets.record": "sets/test_opening.py",
    "sets.usable": "sets/test_baselines.py",
    "evaluation.cutting": "evaluation/test_teaching.py",
    "evaluation.judging": "cli/test_app.py, studies/test_making.py",
    "evaluation.protocols": "test_golden_rded.py, evaluation/test_cells.py",
    "evaluation.tasks": "cli/test_evaluation.py",
    "report.accuracies": "report/test_page.py",
    "report.classes": "report/test_page.py",
    "report.comparison": "report/test_page.py",
    "report.drawing": "report/test_page.py, runs/test_prompts.py",
    "report.opening": "report/test_page.py",
    "report.pictures": "report/test_page.py",
    "report.rendering": "report/test_page.py",
    "report.text": "cli/test_app.py, report/test_page.py",
    "studies.scenes": "studies/test_demo.py",
    "studies.study": "test_pipelines.py",
    "cli.flags": "settings/test_settings.py, cli/test_app.py",
    "cli.handing": "sets/test_export.py, sets/test_handover.py, sets/test_lists.py",
    "cli.looking": "cli/test_app.py, runs/test_prompts.py",
    "cli.making": "cli/test_app.py",
}


def test_every_file_has_tests_of_its_name_or_is_tested_elsewhere() -> None:
    rooms = [name.rpartition(".") for name in FILES]
    missing = {
        f"{room}{dot}{name}" for room, dot, name in rooms if not (TESTS / room.replace(".", "/") / f"test_{name}.py").exists()
    }
    assert missing == ELSEWHERE.keys()
    named = {file for told in ELSEWHERE.values() for file in re.findall(r"[\w/]+\.py", told)}
    assert all((TESTS / file).exists() for file in named)


LIGHT = {  # what is imported -> what must not come with it
    "diffsel.cli.app": "torch numpy diffusers transformers PIL accelerate sklearn",
    "diffsel.report.page": "torch accelerate diffusers transformers sklearn",
    "diffsel.sets.candidates": "torch accelerate diffusers transformers sklearn",
    "diffsel.method": "torch accelerate diffusers transformers sklearn",
    "diffsel.runs.session": "torch accelerate diffusers transformers sklearn",
}


@pytest.mark.parametrize("name", LIGHT)
def test_what_only_looks_loads_nothing_heavy(name: str) -> None:
    code = f"import sys, {name}; print([m for m in {LIGHT[name].split()} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_dependency_says_from_which_version_on() -> None:
    """Of what is installed where the tests run, or older; `make lowest` runs them with these very versions."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    extras = [each for names in project["optional-dependencies"].values() for each in names]
    for each in [*project["dependencies"], *extras]:
        found = re.fullmatch(r"([\w-]+)>=(\d+)\.(\d+)(\.\d+)?", each)
        assert found, each
        with contextlib.suppress(PackageNotFoundError):
            assert tuple(map(int, version(found[1]).split(".")[:2])) >= (int(found[2]), int(found[3])), each


def test_public_names_resolve() -> None:
    import diffsel

    assert all(getattr(diffsel, name) for name in diffsel.__all__)
    with pytest.raises(AttributeError):
        _ = diffsel.nothing
