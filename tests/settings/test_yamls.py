"""Whatever is wrong with a YAML file is one line, in whoever reads it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diffsel.data.classes import read_class_file
from diffsel.machine.formats import read_yaml
from diffsel.settings.errors import ConfigError, DataError, StoreError
from diffsel.settings.settings import load_settings
from diffsel.settings.yamls import from_json, load_yaml, read_text
from diffsel.studies.cases import read_scale
from diffsel.studies.matrix import read_matrix

WRONG = {
    "twice": ("a: x\nb: z\na: y\n", "line 3: 'a' stands twice"),
    "twice inside": ("a: {name: x, name: y}\n", "line 1: 'name' stands twice"),
    "deep": ("a: " + "[" * 5000, ""),
    "cut": ("a: {b", ""),
    "binary": ("\0", ""),
}
READERS = {
    "settings": (lambda file: load_settings(file), ConfigError),
    "classes": (read_class_file, DataError),
    "record": (read_yaml, StoreError),
    "matrix": (read_matrix, ConfigError),
    "scale": (lambda file: read_scale(str(file), file.parent, None, None), ConfigError),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_wrong_with_a_file_is_one_line_that_names_it(reader: str, wrong: str, tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    text, message = WRONG[wrong]
    file.write_text(text)
    read, error = READERS[reader]
    with pytest.raises(error) as told:
        read(file)
    assert str(file) in str(told.value)
    assert message in str(told.value)
    assert "\n" not in str(told.value)


def test_values_and_texts_as_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("base: &b {x: 1}\nothers: [{<<: *b, y: off}, {<<: *b}]\nday: 2020-01-02\n")
    assert load_yaml(file)["others"] == [{"x": 1, "y": False}, {"x": 1}]
    file.write_text("off: 007\n")
    assert load_yaml(file, texts=True) == {"off": "007"}
    (tmp_path / "date.yaml").write_text("seed: 2020-13-45\n")
    with pytest.raises(ConfigError, match=r"date.yaml: "):
        load_settings(tmp_path / "date.yaml")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, b"\xff"])
def test_what_is_no_json_is_one_kind_of_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_json(text)


def test_a_pipe_in_a_files_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="a pipe or a device"):
            read_text(place)
