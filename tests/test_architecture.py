"""The house rules: imports go down only, heavy libraries have one door each, files stay small."""

from __future__ import annotations

import ast
import contextlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "diffsel"
FLOORS = [
    {"sections", "augment", "scenes", "claims", "files", "memory", "helpers"},
    {"config", "protocols", "networks"},
    {"classes", "diffusion", "hub", "patches", "pixels"},
    {"data", "teachers", "racing", "draws"},
    {"store", "scoring"},
    {"distributed", "features", "selection", "planning", "charts"},
    {"session", "baselines", "tables", "scales"},
    {"assembly", "export", "suspects"},
    {"capacity"},
    {"method", "pictures", "prompts"},
    {"relabeling"},
    {"evaluation"},
    {"experiment", "teaching"},
    {"report"},
    {"page_pictures"},
    {"page_class"},
    {"page_accuracy"},
    {"page_run"},
    {"page"},
    {"comparison", "demo", "matrix"},
    {"products", "gallery"},
    {"flags"},
    {"cli_evaluation", "study"},
    {"cli_study"},
    {"cli"},
    {"__main__"},
]
ONLY_DOOR = {
    "diffusers": {"diffusion"},
    "accelerate": {"distributed"},
    "typer": {"cli", "cli_evaluation", "cli_study", "flags", "study"},
    "timm": {"networks"},
    "matplotlib": {"tables", "gallery"},
    "sklearn": {"selection", "scenes", "charts", "gallery"},
    "joblib": {"selection"},
    "jinja2": {"page"},
}
MAY_TORCH = {
    *("diffusion", "draws", "scoring", "features", "session", "planning", "helpers"),
    *("augment", "baselines", "networks", "teachers", "pictures", "relabeling", "evaluation", "teaching", "experiment"),
}


def imports(name: str) -> tuple[set[str], set[str]]:
    """(modules of this package, top-level packages) that a module imports, wherever in the file."""
    own, other = set(), set()
    for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            own |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            other.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            other |= {alias.name.split(".")[0] for alias in node.names}
    return own, other


MODULES = sorted(p.stem for p in PACKAGE.glob("*.py") if p.stem != "__init__")


def test_every_module_has_a_floor() -> None:
    assert sorted(name for floor in FLOORS for name in floor) == MODULES


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down_only(name: str) -> None:
    floor = next(i for i, names in enumerate(FLOORS) if name in names)
    below = set().union(*FLOORS[:floor])
    own, other = imports(name)
    assert own <= below
    for package, doors in ONLY_DOOR.items():
        assert package not in other or name in doors, f"{name} imports {package}"
    assert "torch" not in other or name in MAY_TORCH
    assert not other & {"pickle", "dill", "shelve"}


@pytest.mark.parametrize("name", [*MODULES, "__init__"])
def test_files_stay_readable(name: str) -> None:
    text = (PACKAGE / f"{name}.py").read_text()
    tree = ast.parse(text)
    assert text.count("\n") <= 320
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 55, f"{name}.{node.name}"


def test_help_loads_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "diffusers", "transformers", "PIL", "accelerate", "sklearn")
    code = f"import sys, diffsel.cli; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_dependency_says_from_which_version_on() -> None:
    """major.minor, of what is installed where the tests run, or older."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    extras = [each for names in project["optional-dependencies"].values() for each in names]
    for each in [*project["dependencies"], *extras]:
        found = re.fullmatch(r"([\w-]+)>=(\d+)\.(\d+)", each)
        assert found, each
        with contextlib.suppress(PackageNotFoundError):
            assert tuple(map(int, version(found[1]).split(".")[:2])) >= (int(found[2]), int(found[3])), each


def test_public_names_resolve() -> None:
    import diffsel

    assert all(getattr(diffsel, name) for name in diffsel.__all__)
    with pytest.raises(AttributeError):
        _ = diffsel.nothing
