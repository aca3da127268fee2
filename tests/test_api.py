"""The Python interface: names, what is printed, and examples: of docstrings, of docs/api.md, of the notebook."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import draw

import diffsel
from diffsel.scoring.draws import open_scorer
from diffsel.settings.errors import ConfigError
from diffsel.settings.sections import PatchSettings
from diffsel.settings.settings import Settings, load_settings

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "diffsel"
MODULES = [
    ".".join(("diffsel", *file.relative_to(PACKAGE).with_suffix("").parts))
    for file in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in file.read_text(encoding="utf-8")
]
GIVEN = {"diffsel": diffsel, "np": np, "Settings": Settings, "load_settings": load_settings, "open_scorer": open_scorer}
GIVEN |= {"PatchSettings": PatchSettings}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the photos that examples speak of, and what the first of them makes there: RUN with two sets."""
    where = tmp_path_factory.mktemp("world")
    for number, name in enumerate(("cat", "dog")):
        for i in range(8):
            draw(where / "photos" / name / f"{i}.png", 100 * number + i)
            draw(where / "new-photos" / name / f"{i}.png", 1000 + 100 * number + i)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        examples("diffsel.method")
        yield where


def examples(name: str) -> int:
    """Runs the examples of a module's docstrings where we are; how many there were."""
    module, runner = importlib.import_module(name), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in doctest.DocTestFinder().find(module, extraglobs=GIVEN):
        said: list[str] = []
        runner.run(test, out=said.append)
        assert not runner.failures, "".join(said)
    return runner.tries


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_run(name: str, world: Path) -> None:
    assert examples(name)


def test_the_examples_of_the_interface_run(world: Path) -> None:
    """docs/api.md, in the order in which they stand."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/api.md").read_text(encoding="utf-8"), re.M | re.S)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/api.md", "exec"), names)
    assert len(blocks) >= 4


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell by cell; the last expression of each is shown as a notebook shows it."""
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs/quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    names, shown = dict[str, Any](), []
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        assert not cell["outputs"]  # as it is run, not as it once was
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), names)
        shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None)
    assert sum(hasattr(value, "_repr_html_") for value in shown) >= 2


def test_the_public_names_are_told_to_type_checkers_as_they_are() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {each.asname: node.module for node in block.body for each in node.names}
    assert told == diffsel._PUBLIC
    assert dir(diffsel) == sorted(diffsel.__all__)
    assert (PACKAGE / "py.typed").exists()


class Html(HTMLParser):
    """Raises where a tag is not closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        self.open += [] if tag == "img" else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_what_is_printed_is_short(world: Path) -> None:
    session, found = diffsel.resume("run"), diffsel.open_set("run/ipc2")
    assert repr(session.run) == "Run('run': 16 images in 2 classes, scored by demo)"
    assert repr(found) == "DistilledSet('run/ipc2': 4 images of 2 classes, chosen by diffsel)"
    assert repr(diffsel.open_set("photos")) == "DistilledSet('photos': of another tool)"
    for each in (session, found, session.data, session.settings):
        assert len(repr(each)) < 500
    assert "draws=3" in repr(session.settings)
    assert "bins" not in repr(session.settings)  # a default


def test_notebooks_show_runs_and_sets(world: Path) -> None:
    run, found = diffsel.open_run("run"), diffsel.open_set(world / "run" / "ipc2")
    assert "1 of 1" not in run._repr_html_()
    assert "2 of 2 scored" in run._repr_html_()
    assert Html(run._repr_html_()).seen.count("img") == 0
    assert Html(found._repr_html_()).seen.count("img") == 4
    strange = diffsel.sets.opening.replace(found, record={"selection": {"method": "<b>"}})
    assert "<b>" not in strange._repr_html_().partition("</b>")[2]


def test_a_folder_is_text_or_path_or_a_set(world: Path) -> None:
    found = diffsel.open_set("run/ipc1")
    assert diffsel.open_set(Path("run/ipc1")).digest == diffsel.open_set(found).digest == found.digest
    assert diffsel.export_set(found, "csv", "ready")
    assert not diffsel.export_set("run/ipc1", "csv", Path("ready"))
    assert diffsel.write_report(found, "one.html") == [Path("one.html")]


def test_a_setting_needs_no_section_where_only_one_has_it() -> None:
    flat = Settings(model="demo", draws=3, prompts=["a {label}"], seed=4)
    assert flat == Settings(model={"model": "demo"}, scoring={"draws": 3, "prompts": ("a {label}",)}, seed=4)
    assert Settings(model=flat.model, scoring=flat.scoring, seed=4) == flat
    assert Settings(scoring=flat.scoring, bins=1).scoring.draws == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 32}, "'size' is in several sections; say which: assembly.size, training.size, protocol.size"),
        ({"drawz": 3}, "unknown setting 'drawz'; did you mean 'draws'"),
        ({"draws": 0}, "scoring.draws = 0: .* greater than or equal to 1"),
        ({"scoring": 5}, "scoring = 5: .* dictionary"),
        ({"model": 5}, "model.model = 5: .* string"),
    ],
)
def test_a_wrong_setting_is_told_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(**values)
