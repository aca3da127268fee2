"""The templates of a page, its style and its script, and where a page is written."""

from __future__ import annotations

import base64
import hashlib
import os
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..machine.files import AsPath
from ..settings.errors import ConfigError


def html_file(target: AsPath, out: AsPath | None, kind: str) -> Path:
    """``out``, or TARGET-KIND.html beside TARGET.  Raises ConfigError for what is no HTML file."""
    whole = Path(os.path.realpath(target))
    out = Path(out or whole.with_name(f"{whole.name}-{kind}.html"))
    if out.suffix != ".html" or out.is_dir():
        raise ConfigError(f"--out {out}: must be a file that ends in .html")
    return out


def render(template: str, **values: Any) -> str:
    text = _templates().get_template(template).render(**values)
    return text.encode("utf-8", "backslashreplace").decode()  # a path may hold bytes that are no text


@cache
def _templates() -> Environment:
    """The templates, everything escaped; the style and the script stand in them as they are."""
    env = Environment(
        loader=PackageLoader("diffsel", "assets/report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    folder = files("diffsel") / "assets" / "report"
    script = (folder / "script.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    env.globals |= {
        "version": version("diffsel"),
        "style": (folder / "style.css").read_text(encoding="utf-8"),
        "script": script,
        "script_digest": digest,
    }
    return env
