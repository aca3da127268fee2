"""What the cells of one command share."""

from __future__ import annotations

from students import CPU

from diffsel.data.albums import Album
from diffsel.data.images import open_data
from diffsel.evaluation import bench as module
from diffsel.evaluation.bench import Bench
from diffsel.settings.sections import DataSettings


def test_validation_images_stay_and_sets_leave_by_their_bytes(folder, monkeypatch) -> None:
    """Five sets stayed whatever their size, and the first to leave were validation images, which every student asks for."""
    data, read = open_data(str(folder("many", (16, 16), **dict.fromkeys("abcdef", 2))), DataSettings(), 0), []
    load = Album.load
    monkeypatch.setattr(Album, "load", lambda self, *how: (read.append(self.rows[0].label), load(self, *how))[1])
    albums = {name: Album(data, tuple(data.of_class(name)), data.classes[:1], 16, 16) for name in "abcdef"}
    monkeypatch.setattr(module, "ROOM", 3 * albums["a"].nbytes)
    bench = Bench(CPU)
    assert bench.pictures(albums["a"], stays=True).pixels.nbytes == albums["a"].nbytes
    for name in "bcbdb":  # d makes c leave, which was asked for longest ago of those that may
        bench.pictures(albums[name])
    assert [read.pop() for _ in range(4)] == ["d", "c", "b", "a"]
    bench.pictures(albums["c"])
    bench.pictures(albums["a"])
    assert read == ["c"]
    monkeypatch.setattr(module, "ROOM", 0)
    bench.pictures(albums["e"])
    assert bench.loaded.keys() == {albums["a"].digest, albums["e"].digest}
