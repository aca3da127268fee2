"""How help looks, and what the shell completes."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from diffsel.cli import app as cli
from diffsel.cli.layout import ORDER


def test_commands_stand_in_the_order_of_the_work(diffsel) -> None:
    out = diffsel("--help")[1]
    parts = re.split(r"^(\w.*):$", out.partition("Options:")[2], flags=re.M)
    titled = zip(parts[1::2], parts[2::2], strict=True)
    shown = {title: tuple(re.findall(r"^  ([\w-]+)  ", text, re.M)) for title, text in titled}
    assert shown == ORDER
    assert "..." not in out.partition("Begin:")[2]  # whole sentences
    registered = {info.name or info.callback.__name__ for info in cli.app.registered_commands}
    assert registered == {name for names in ORDER.values() for name in names}


def panels(text: str) -> dict[str, set[str]]:
    """Title -> flags."""
    parts = re.split(r"^(\w+):$", text, flags=re.M)
    return {title: set(re.findall(r"--[a-z][\w-]+", text)) for title, text in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize(
    ("verb", "titles", "has", "lacks"),
    [
        ("score", "data model compute scoring patches", "--draws --keep-latents --verbose", "--students-at-once --network"),
        ("inspect", "data model compute scoring", "--prompt --null-prompt --workers", "--draws --device --compile"),
        ("select", "data compute patches features selection baseline assembly", "--clusters --device", "--keep-latents"),
        ("evaluate", "compute protocol", "--students-at-once --epochs --tracker", "--batch-size-u --keep-latents --draws"),
        ("teacher", "data compute training", "--network --tracker", "--keep-latents --students-at-once"),
    ],
)
def test_help_lists_what_a_verb_uses_section_by_section(verb: str, titles: str, has: str, lacks: str, diffsel) -> None:
    found = panels(diffsel(verb, "--help")[1])
    flags = set[str]().union(*found.values())
    assert set(titles.split()) | {"Arguments", "Options"} == found.keys()
    assert set(has.split()) <= flags
    assert not set(lacks.split()) & flags


PROGRAM = "import sys; sys.argv[0] = 'diffsel'; from diffsel.__main__ import main; main()"


def run(*words: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, env={**os.environ, **environment}
    )
    return done.stdout + done.stderr


def test_help_has_no_colours_even_where_they_are_asked_for() -> None:
    assert "\x1b" not in run("select", "--help", FORCE_COLOR="1")


@pytest.mark.parametrize(
    ("line", "expected"),
    [("diffsel re", {"report", "relabel", "rebuild"}), ("diffsel score x --config rd", {"rded", "rded-fixed"})],
)
def test_shells_complete_commands_and_presets(line: str, expected: set[str]) -> None:
    words = line.split()
    found = run(_DIFFSEL_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
    assert set(found.split()) == expected
