"""What a class's section shows, as values: sources, mosaics, and the patches of a cluster.  The templates draw them."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..scoring.patches import Box


@dataclass
class Source:
    """An image that gave a patch, or could have: the picture, its map, the box inside it, and why it was chosen or not."""

    anchor: str
    path: str
    box: Box
    size: tuple[int, int]  # (width, height) of the resized image, pixels; (0, 0): not known
    score: float | None = None
    judge: str = "score"
    cluster: int | None = None
    place: int | None = None
    better: float | None = None  # share of the class's patches with a lower score
    picture: str = ""
    heat: str = ""
    uses: list[tuple[str, str, int, int, str]] = field(default_factory=list)  # set, file, tile, rank, reason

    @property
    def outline(self) -> str:
        """The box as CSS, in percent of the picture."""
        (top, left, height, width), (across, down) = self.box, self.size
        shares = {"top": top / down, "left": left / across, "height": height / down, "width": width / across}
        return ";".join(f"{side}:{100 * share:.2f}%" for side, share in shares.items())


@dataclass(frozen=True)
class Mosaic:
    file: str
    picture: str
    factor: int
    tiles: tuple[Source, ...]


@dataclass(frozen=True)
class Patch:
    """Of a cluster: ``place`` 0 is nearest to its centre; ``source`` where the report shows the image it is cut from."""

    picture: str
    source: Source | None
    path: str
    score: float
    place: int


@dataclass(frozen=True)
class Group:
    """A cluster: its place by median score, that score, its size, and the patches shown."""

    rank: int
    median: float
    size: int
    picked: int
    patches: tuple[Patch, ...]
