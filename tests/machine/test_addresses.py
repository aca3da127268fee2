"""Files behind addresses: listed, read in parts, written whole, and refused where work must be shared."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffsel.machine.addresses import Store, check_outputs, check_writable, is_address, refuse_address
from diffsel.machine.formats import is_mine
from diffsel.settings.errors import ConfigError, DataError


@pytest.mark.parametrize("near", [True, False])
def test_a_store_is_all_files_below_a_place(tmp_path: Path, near: bool) -> None:
    store = Store(str(tmp_path) if near else f"memory:/{tmp_path}")
    with pytest.raises(DataError, match="nothing lies there"):
        Store(f"{store.root}/none").files()
    if near:
        (tmp_path / "a").mkdir()
    store.write("a/b.bin", bytes(range(100)))
    store.write("c.bin", b"c")
    assert store.files() == ["a/b.bin", "c.bin"]
    assert store.read("a/b.bin", 10, 3) == bytes([10, 11, 12])
    assert store.open("c.bin").read() == b"c"
    assert (store.exists("c.bin"), store.exists("d.bin")) == (True, False)
    with pytest.raises(FileNotFoundError):
        store.read("d.bin")


def test_a_file_system_that_is_not_known_or_not_installed_is_told() -> None:
    with pytest.raises(DataError, match=r"zz9://a: Protocol not known"):
        Store("zz9://a").files()


@pytest.mark.parametrize("text", ["C:/photos", "photos", "./a:b", "/s3://a", "owner/name", "a b://c"])
def test_paths_are_no_addresses(text: str) -> None:
    assert not is_address(text)


def test_work_is_not_put_behind_an_address(diffsel, tmp_path: Path) -> None:
    for words in (["select", "run", "--out", "s3://b/set"], ["distill", "d", "--out=memory://run", "--ipc", "1"]):
        with pytest.raises(ConfigError, match="give a folder of a disk"):
            check_outputs(words)
        code, _, err = diffsel(*words)
        assert (code, "give a folder of a disk" in err) == (2, True)
    check_outputs(["export", "run", "--out", "s3://b/out"])
    check_outputs([])
    with pytest.raises(ConfigError, match="claims and renamed folders"):
        is_mine(Path("s3://b/run"), "run.yaml", {}, "a run")
    refuse_address(tmp_path)
    with pytest.raises(ConfigError, match="sftp may show a file that is half-written"):
        check_writable("sftp://host/out")
    check_writable("gs://bucket/out")
