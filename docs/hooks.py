"""What mkdocs makes pages of, besides the files here: README.md and its neighbours, the notebook, every public name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

import diffsel

ROOT = Path(__file__).parent.parent
BESIDE = {"README.md": "index.md"} | {name: name for name in ("RESULTS.md", "CHANGELOG.md", "CONTRIBUTING.md")}
MOVED = {"results/README.md": "results/index.md", "quickstart.ipynb": "quickstart.md", "README.md": "index.md"}
LINK = re.compile(r"\[([^]]*)\]\((?:docs/|\.\./|(?=results/README))([\w./-]+)(#[^)]*|)\)")
EXAMPLE = re.compile(r"(?:^>>> .*\n?(?:^(?!>>> |\s*$).*\n?)*)+", re.M)


def on_files(files: Files, config: Any) -> Files:
    made = {page: (ROOT / name).read_text(encoding="utf-8") for name, page in BESIDE.items()}
    made["results/index.md"] = (ROOT / "docs/results/README.md").read_text(encoding="utf-8")
    made |= {"quickstart.md": notebook(), "reference.md": reference()}
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, files: Files, **_: Any) -> str:
    """Links as they are on the site: README.md speaks of docs/, the files in docs/ of ../; code is no page of it."""

    def link(found: re.Match[str]) -> str:
        text, name, rest = found.groups()
        name = MOVED.get(name, name)
        return f"[{text}]({name}{rest})" if name in files.src_uris else text

    return LINK.sub(link, markdown)


def notebook() -> str:
    cells = json.loads((ROOT / "docs/quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    texts = (("".join(cell["source"]), cell["cell_type"] == "code") for cell in cells)
    return "\n\n".join(f"```python\n{text}\n```" if code else text for text, code in texts)


def reference() -> str:
    names = "\n\n".join(f"::: diffsel.{module}.{name}" for name, module in diffsel._PUBLIC.items())
    return f"# Every public name\n\n`from diffsel import ...`; [From Python](api.md) shows them at work.\n\n{names}\n"


class Examples(griffe.Extension):
    """Examples of docstrings become blocks of code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", obj.docstring.value)
