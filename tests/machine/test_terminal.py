"""Whatever a name holds, a terminal shows it and obeys none of it."""

from __future__ import annotations

import io
import sys

import pytest

from diffsel.machine.files import check_words
from diffsel.machine.progress import progress
from diffsel.machine.terminal import Terminal, guarded, shown
from diffsel.settings.errors import ConfigError

ODD = {
    "\x1b]0;pwned\x07": r"\x1b]0;pwned\x07",  # the title
    "\x1b[31mred\x1b[0m": r"\x1b[31mred\x1b[0m",
    "\x9b31m": r"\x9b31m",  # the same in one byte
    "a\rb\x08c": r"a\rb\x08c",  # overwrites
    "\u202egnp.exe": r"\u202egnp.exe",  # turns the direction of writing
    "bad\udcff": r"bad\udcff",  # a byte that is no text
    "zero\u200bwidth": r"zero\u200bwidth",
    "del\x7f": r"del\x7f",
}
PLAIN = ("tabby cat", "猫", "Ångström ± 3 – “x”", "a\\b", "全角\u3000空白", "e\u0301")


@pytest.mark.parametrize("text", ODD)
def test_what_is_not_for_the_eye_is_escaped(text: str) -> None:
    assert shown(text) == ODD[text]
    stream = io.StringIO()
    print(text, file=Terminal(stream))
    assert stream.getvalue() == ODD[text] + "\n"


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_for_the_eye_stays(text: str) -> None:
    assert shown(text) == text
    stream = io.StringIO()
    print(text, file=Terminal(stream))
    assert stream.getvalue() == f"{text}\n"


def test_lines_are_lines_but_not_within_a_name() -> None:
    stream = io.StringIO()
    Terminal(stream).write("one\ttwo\nthree\n")
    assert stream.getvalue() == "one\ttwo\nthree\n"
    assert shown("one\ntwo") == r"one\ntwo"


def test_a_terminal_that_lacks_a_letter_gets_its_number() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="latin-1", errors="strict")
    print("é 猫 \udcff", file=Terminal(stream), flush=True)
    assert raw.getvalue() == b"\xe9 \\u732b \\udcff\n"


def test_both_streams_are_guarded_and_given_back(capsys) -> None:
    before = sys.stdout, sys.stderr
    with guarded():
        print("\x1b[31m")
        print("\x1b[32m", file=sys.stderr)
        assert sys.stdout.encoding == before[0].encoding
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == ("\\x1b[31m\n", "\\x1b[32m\n")


def test_bars_show_their_words(capsys) -> None:
    with guarded(), progress(False)(total=2, desc="RDED \x1b]0;x\x07", unit="im\x1bage") as bar:
        bar.update(2)
        bar.refresh()
    told = capsys.readouterr().err
    assert "RDED \\x1b]0;x\\x07: 2 of 2" in told
    assert "\x1b]" not in told
    assert "im\x1b" not in told


@pytest.mark.parametrize(
    "words",
    [
        *(
            ("inspect", "bad\udcff"),
            ("score", "data", "--out", "bad\udcff/run"),
            ("select", "data", "--ipc", "1", "--out=\udc80"),
        ),
        *(("export", "set", "--to", "csv", "--out", "\udcff"), ("teacher", "data", "--network", "conv3", "--out", "a\udcffb")),
    ],
)
def test_a_path_that_is_no_text_is_refused_before_any_work(diffsel, tmp_path, monkeypatch, words: tuple[str, ...]) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = diffsel(*words)
    assert (code, out) == (2, "")
    assert err == f"error: {words[-1]!a} is not valid UTF-8; give a path of another name\n"
    assert list(tmp_path.iterdir()) == []
    check_words(["猫", "tabby cat", "--out"])
    with pytest.raises(ConfigError):
        check_words(words)


@pytest.mark.parametrize(
    "words", [("inspect", ""), ("score", "data", "--out", ""), ("report", ""), ("select", "", "--ipc", "1", "--out", "x")]
)
def test_an_empty_argument_is_not_taken_for_this_folder(diffsel, tmp_path, monkeypatch, words: tuple[str, ...]) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = diffsel(*words)
    assert (code, out) == (2, "")
    assert err == "error: an argument is empty (a variable that is not set?); give a folder, or . for this one\n"
    check_words(["score", "data", "--null-prompt", "", "--source", ""])


def test_names_in_what_commands_print_are_harmless(diffsel, folder, tmp_path) -> None:
    data = folder(**{"cat\x1b[31m": 1, "dog": 1})
    (data / "dog" / "\x1b]0;x\x07.png").write_text("x")
    for words in (
        ("inspect", data, "--model", "demo", "-q"),
        ("score", data / "\x1b[2J", "--model", "demo", "--out", tmp_path / "run"),
        ("trace", tmp_path / "\x1b[2J", "0"),
    ):
        _, out, err = diffsel(*words)
        assert "\x1b" not in out + err
        assert "\\x1b" in out + err
