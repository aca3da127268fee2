"""Claims: every file is made once where all goes well, and made all the same where it does not."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from diffsel.machine import claims
from diffsel.machine.claims import Shared, ahead, forget
from diffsel.machine.place import mark


def shared(folder: Path, names: str = "abcdef", **kwargs) -> Shared[str]:
    return Shared(list(names), lambda name: folder / name, **kwargs)


def work(folder: Path, made: list[str], seconds: float = 0.0, **kwargs) -> None:
    with shared(folder, **kwargs) as left:
        for name in left:
            time.sleep(seconds)
            made.append(name)
            (folder / name).write_text(name)


def claim_of(path: Path, pid: int, host: str | None = None, **more: object) -> Path:
    """A claim of a process here, where ``more`` does not say otherwise."""
    claim = path.with_name(f".{path.name}.claim")
    owner = {"host": host or socket.gethostname(), "place": mark(), "pid": pid, "born": 1.0, **more}
    claim.write_text(json.dumps({key: value for key, value in owner.items() if value is not None}))
    return claim


def test_everything_is_made_once_by_processes_that_work_at_the_same_time(tmp_path) -> None:
    made: list[list[str]] = [[], [], []]
    threads = [
        threading.Thread(target=work, args=(tmp_path, part, 0.02), kwargs={"first": 2 * i}) for i, part in enumerate(made)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(made[0] + made[1] + made[2]) == list("abcdef")
    assert all(made)
    assert sorted(p.name for p in tmp_path.iterdir()) == list("abcdef")  # no claim is left


def test_what_others_finish_is_told_once(tmp_path) -> None:
    told: list[str] = []
    (tmp_path / "b").write_text("")
    made: list[str] = []
    work(tmp_path, made, finished=told.append)
    assert (sorted(made), told) == (list("acdef"), ["b"])


def test_the_claim_of_a_dead_process_is_taken_over_at_once(tmp_path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True, text=True)
    claim_of(tmp_path / "c", int(dead.stdout))
    made: list[str] = []
    begin = time.monotonic()
    work(tmp_path, made)
    assert sorted(made) == list("abcdef")
    assert time.monotonic() - begin < 5


def test_the_claim_of_a_dead_process_that_its_parent_has_not_missed_yet_is_taken_over_too(tmp_path) -> None:
    """Such as a helper that the system ended for want of memory: a zombie until it is joined."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    born = psutil.Process(child.pid).create_time()
    claim_of(tmp_path / "a", child.pid, born=born)
    child.kill()
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    made: list[str] = []
    begin = time.monotonic()
    work(tmp_path, made, names="a")
    assert made == ["a"]
    assert time.monotonic() - begin < 30  # a silent process elsewhere would be given a minute
    child.communicate()


def test_a_process_that_died_between_its_file_and_its_claim_leaves_no_claim(tmp_path) -> None:
    claim_of(tmp_path / "c", 1, host="elsewhere")
    (tmp_path / "c").write_text("theirs")
    work(tmp_path, made := [])
    assert made == list("abdef")
    assert sorted(p.name for p in tmp_path.iterdir()) == list("abcdef")


def test_a_process_number_that_was_given_away_again_is_not_the_claimer(tmp_path) -> None:
    claim_of(tmp_path / "c", os.getpid())  # this process lives, but was not born then
    made: list[str] = []
    work(tmp_path, made)
    assert "c" in made


def remembering(original):
    """A look at a network disk whose client remembers the first answer for good."""
    known: dict[Path, object] = {}

    def look(path: Path):
        return known[path] if path in known else known.setdefault(path, original(path))

    return look


@pytest.mark.parametrize("cached", ["nothing", "attributes", "listings"])
def test_a_claim_from_another_host_is_waited_for_while_it_is_renewed(tmp_path, monkeypatch, cached: str) -> None:
    """Also where the client of a network disk remembers too long: a file that is opened it asks for anew."""
    monkeypatch.setattr(claims, "STALE", 0.4)
    if cached != "nothing":
        place, name = (Path, "lstat") if cached == "attributes" else (claims, "_names")
        monkeypatch.setattr(place, name, remembering(getattr(place, name)))
    claim = claim_of(tmp_path / "c", 1, host="elsewhere")
    stop = threading.Event()

    def elsewhere() -> None:
        while not stop.wait(0.05):
            os.utime(claim)
        (tmp_path / "c").write_text("theirs")

    monkeypatch.setattr(claims, "PATIENCE", 1e9)
    thread, made = threading.Thread(target=elsewhere), []
    thread.start()
    threading.Timer(1.0, stop.set).start()
    work(tmp_path, made, 0.001)
    thread.join()
    assert (sorted(made), (tmp_path / "c").read_text()) == (list("abdef"), "theirs")


@pytest.mark.parametrize("why", ["silent", "slow"])
def test_a_silent_or_slow_process_elsewhere_does_not_stall_the_others(tmp_path, monkeypatch, why) -> None:
    """Silent: its time stamp stands still.  Slow: renewed all the time, but far beyond what such an item takes here."""
    monkeypatch.setattr(claims, "STALE", 0.5)
    claim, stop = claim_of(tmp_path / "c", 1, host="elsewhere"), threading.Event()

    def renew() -> None:
        while why == "slow" and not stop.wait(0.05):
            with contextlib.suppress(FileNotFoundError):  # taken over, and given back
                os.utime(claim)

    thread, made = threading.Thread(target=renew), []
    thread.start()
    work(tmp_path, made)
    stop.set()
    thread.join()
    assert made[-1] == "c"


@pytest.mark.parametrize("place", ["0123456789ab", None])
def test_a_process_number_of_another_container_or_machine_of_this_name_tells_nothing(tmp_path, monkeypatch, place) -> None:
    """Its time stamp decides: renewed, it lives; still, it is gone.  None: a claim in the form that told no place."""
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True, text=True)
    monkeypatch.setattr(claims, "STALE", 0.5)
    for renewed in (True, False):
        claim, stop = claim_of(tmp_path / "a", int(dead.stdout), place=place), threading.Event()

        def elsewhere(stop=stop, claim=claim) -> None:
            while not stop.wait(0.05):
                os.utime(claim)
            (tmp_path / "a").write_text("theirs")

        if renewed:
            thread = threading.Thread(target=elsewhere)
            thread.start()
            threading.Timer(1.5, stop.set).start()
        work(tmp_path, made := [], names="a")
        if renewed:
            thread.join()
        assert made == ([] if renewed else ["a"])
        (tmp_path / "a").unlink()


def test_a_claim_that_is_no_file_is_not_followed_and_holds_nothing_up(tmp_path) -> None:
    """Links to a file, to nothing and to a folder, a pipe, a folder: what they lead to is as before."""
    (tmp_path / "place").mkdir()
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    victim.write_text("precious")
    os.utime(victim, (1, 1))
    folder.mkdir()
    for name, target in {"a": victim, "b": tmp_path / "nothing", "c": folder}.items():
        (tmp_path / "place" / f".{name}.claim").symlink_to(target)
    os.mkfifo(tmp_path / "place" / ".d.claim")
    (tmp_path / "place" / ".e.claim").mkdir()
    begin = time.monotonic()
    work(tmp_path / "place", made := [], names="abcde")
    assert sorted(made) == list("abcde")
    assert time.monotonic() - begin < 20
    assert (victim.read_text(), victim.stat().st_mtime) == ("precious", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "place", "victim"]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\xff\x00{", b"[" * 100_000, b'{"pid": ', b"[1]", b'{"host": 1}'])
def test_a_claim_that_cannot_be_read_is_taken_over_like_any_that_stands_still(content: bytes, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(claims, "STALE", 0.3)
    (tmp_path / ".a.claim").write_bytes(content)
    work(tmp_path, made := [], names="ab")
    assert sorted(made) == ["a", "b"]


def test_what_is_held_is_not_renewed_through_a_link(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT", 0.05)
    (tmp_path / "victim").write_text("precious")
    os.utime(tmp_path / "victim", (1, 1))
    with shared(tmp_path, "a") as left:
        name = next(iter(left))
        (tmp_path / ".a.claim").unlink()
        (tmp_path / ".a.claim").symlink_to(tmp_path / "victim")
        time.sleep(0.3)
        (tmp_path / name).write_text("")
    assert (tmp_path / "victim").stat().st_mtime == 1


def test_a_claim_of_another_user_that_can_be_neither_read_nor_replaced_is_waited_out(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(claims, "STALE", 0.3)
    claim = claim_of(tmp_path / "a", 1)
    before = claim.read_bytes()

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(claim))

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *a, **k: refused() if path == claim else opened(path, *a, **k))
    for place, name in ((Path, "unlink"), (claims, "write_atomically")):
        monkeypatch.setattr(place, name, refused)
    begin = time.monotonic()
    work(tmp_path, made := [], names="a")
    monkeypatch.undo()
    assert made == ["a"]
    assert time.monotonic() - begin > 0.3  # whose process is alive cannot be read: its time stamp decided
    assert claim.read_bytes() == before


def stale(times: int, original):
    """A look at a network disk that fails at first."""
    left = [times]

    def look(*args: object, **kwargs: object):
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return original(*args, **kwargs)

    return look


@pytest.mark.parametrize("name", ["exists", "is_dir", "lstat"])
def test_a_network_disk_that_lost_its_handle_for_a_moment_is_asked_again(tmp_path, monkeypatch, name) -> None:
    monkeypatch.setattr(claims, "STALE", 0.5)
    claim_of(tmp_path / "c", 1, host="elsewhere")
    (tmp_path / "d").write_text("theirs")
    monkeypatch.setattr(Path, name, stale(3, getattr(Path, name)))
    work(tmp_path, made := [])
    assert sorted(made) == list("abcef")


def test_a_claim_is_made_later_where_a_network_disk_lost_its_handle(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(claims, "_create", stale(2, claims._create))
    work(tmp_path, made := [])
    assert sorted(made) == list("abcdef")


def test_a_network_disk_that_stays_away_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(claims, "STALE", 0.5)
    monkeypatch.setattr(claims, "_create", stale(10**9, claims._create))
    monkeypatch.setattr(Path, "exists", stale(10**9, Path.exists))
    with pytest.raises(OSError, match="Stale file handle"):
        work(tmp_path, [])


def test_one_that_has_made_nothing_does_not_call_another_slow(tmp_path, monkeypatch) -> None:
    """Students take longer than a minute: a process that waits for its first one lets the others train theirs."""
    monkeypatch.setattr(claims, "STALE", 0.3)
    for patience, expected in ((None, []), (0.0001, ["a"])):
        claim, stop = claim_of(tmp_path / "a", 1, host="elsewhere"), threading.Event()

        def elsewhere(stop=stop, claim=claim) -> None:
            begin = time.monotonic()
            while not stop.wait(0.05) and time.monotonic() - begin < 1.5:
                with contextlib.suppress(FileNotFoundError):  # taken over, and given back
                    os.utime(claim)
            if not stop.is_set():
                (tmp_path / "a").write_text("theirs")

        thread, made = threading.Thread(target=elsewhere), []
        thread.start()
        with Shared(["a"], lambda name: tmp_path / name, patience=patience) as left:
            for name in left:
                made.append(name)
                (tmp_path / name).write_text("")
        stop.set()
        thread.join()
        assert made == expected
        (tmp_path / "a").unlink()


def test_a_failure_gives_its_claims_back(tmp_path) -> None:
    def fail() -> None:
        with shared(tmp_path) as left:
            for _ in ahead(left, "".join):
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_reading_ahead_keeps_order_and_passes_errors_on(tmp_path) -> None:
    def loading(load: Callable[[str], object], names: str = "abc") -> Iterator[tuple[str, object]]:
        with shared(tmp_path, names) as left:
            yield from ((name, value) for (name,), value in ahead(left, lambda group: load(group[0])))

    assert list(loading(str.upper)) == [("a", "A"), ("b", "B"), ("c", "C")]
    failing = loading({"a": 1, "b": 2}.__getitem__)
    assert [next(failing), next(failing)] == [("a", 1), ("b", 2)]
    with pytest.raises(KeyError):
        next(failing)
    begun: list[str] = []
    items = loading(lambda name: begun.append(name) or name, "abcdef")
    assert next(items)[0] == "a"
    time.sleep(0.2)
    assert begun == ["a", "b"]  # one ahead, no more
    items.close()


def test_items_are_claimed_in_groups_and_alone_where_few_are_left(tmp_path) -> None:
    (tmp_path / "b").touch()
    claim_of(tmp_path / "d", 1, host="elsewhere")
    with shared(tmp_path, "abcdefg", enough=lambda group, left: len(group) == 2 or left <= 4) as left:
        groups = left.groups()
        assert next(groups) == ["a", "c"]  # b is there, d is another's
        assert all((tmp_path / f".{name}.claim").exists() for name in "ac")
        assert next(groups) == ["e", "f"]
        for name in "acef":
            (tmp_path / name).touch()
        assert next(groups) == ["g"]


def test_an_error_is_not_held_up_by_what_another_process_has_in_work(tmp_path) -> None:
    def fail() -> None:
        with shared(tmp_path, "ab") as left:
            for _ in ahead(left, lambda name: name):
                time.sleep(0.5)  # the next step is waiting for b by now
                raise RuntimeError("no space")

    claim = claim_of(tmp_path / "b", 1, host="elsewhere")  # not known to be dead, so worth a wait
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match="no space"):
        fail()
    assert time.monotonic() - begin < 5
    assert claim.exists()


def test_the_claim_of_one_killed_between_its_file_and_its_claim_is_forgotten(tmp_path) -> None:
    for name in "ab":
        claim_of(tmp_path / name, 1, host="elsewhere")
    (tmp_path / "a").touch()
    forget([tmp_path / "a", tmp_path / "c"])
    assert sorted(file.name for file in tmp_path.iterdir()) == [".b.claim", "a"]


def test_a_claim_for_which_the_disk_has_no_room_is_named_and_does_not_stay(tmp_path: Path, monkeypatch) -> None:
    def full(handle: int, *_: object) -> None:
        os.close(handle)
        raise OSError(errno.ENOSPC, "No space left on device")  # as it is said of a handle: without a name

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(OSError, match=r"No space left on device: .*/\.a\.claim"):
        claims._create(tmp_path / ".a.claim", "{}")
    assert not list(tmp_path.iterdir())
