"""Local copies: found again by content, the least recently used go first, never more than the bound."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

from diffsel.machine.cache import Cache


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def test_the_least_recently_used_go_first_and_the_bound_holds(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)
    for number in range(40):
        cache.put(f"{number:02}", bytes(40))
        if cache.get("00"):  # used again and again
            for other in tmp_path.rglob("*"):
                if other.is_file() and other.name != "00":
                    os.utime(other, (number, number + int(other.name)))
    left = sizes(tmp_path)
    assert sum(left.values()) <= 1000 + 0.05 * 1000
    assert {"00", "39"} <= left.keys()
    assert "01" not in left
    assert (cache.get("00"), cache.get("01")) == (bytes(40), None)


def test_no_limit_and_no_place_cost_nothing(tmp_path: Path) -> None:
    Cache(tmp_path, 0).put("aa", b"x")
    assert not sizes(tmp_path)
    (tmp_path / "file").write_text("")
    broken = Cache(tmp_path / "file", 1000)
    broken.put("aa", b"x")
    assert broken.get("aa") is None


def test_another_process_may_take_it_along(tmp_path: Path) -> None:
    cache = pickle.loads(pickle.dumps(Cache(tmp_path, 1000)))
    cache.put("aa", b"x")
    assert Cache(tmp_path, 1000).get("aa") == b"x"
