"""Images as numbered rows, held as columns: 14 million of them take little more than a gigabyte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int

BLOCK = 1 << 14  # rows that are objects at a time, where all are gone through
SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "class": pa.dictionary(pa.int32(), pa.string()),
        "width": pa.int32(),
        "height": pa.int32(),
        "digest": pa.string(),
    }
)


@dataclass(frozen=True, slots=True)
class Row:
    """One image: its number, its path inside the data set, its class, original size in pixels, and a hash of its bytes."""

    row: int
    path: str
    label: str
    width: int
    height: int
    digest: str


@dataclass(frozen=True, order=True)
class Skipped:
    path: str
    label: str
    reason: str


class Rows(Sequence[Row]):
    """The images from ``start`` to ``stop`` of a table, whose lines number them; classes come one after the other.

    An image becomes a ``Row`` when it is asked for.  ``digest``: of the whole table's images, where it is known; ``numbers``:
    of its lines, rising, where they are others than 0, 1, 2 ...
    """

    def __init__(
        self,
        table: pa.Table,
        start: int = 0,
        stop: int | None = None,
        digest: str | None = None,
        numbers: Int[np.ndarray, " lines"] | None = None,
    ):
        self.table, self.start, self.stop = table, start, len(table) if stop is None else stop
        self._digest, self._numbers = digest, numbers

    @classmethod
    def listed(cls, rows: Sequence[Row]) -> Rows:
        """These rows, by the numbers that they bear."""
        return cls(_columns(rows).table, numbers=np.array([row.row for row in rows], np.int64))

    @classmethod
    def of(cls, parts: Iterable[Sequence[Row]]) -> Rows:
        """All rows of the parts, numbered anew; parts that are one table from its begin to its end stay that table."""
        kept, waiting = list[Rows](), list[Row]()

        def settle(most: int) -> None:
            if len(waiting) > most:
                kept.append(_columns(waiting))
                waiting.clear()

        for part in parts:
            if isinstance(part, Rows):
                settle(0)
                kept.append(part)
            else:
                waiting += part
                settle(BLOCK)
        settle(0)
        return _joined(kept)

    def __len__(self) -> int:
        return self.stop - self.start

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> Rows: ...
    def __getitem__(self, place: int | slice) -> Row | Rows:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            if step != 1:
                raise ValueError("rows are taken one after the other")
            return Rows(self.table, self.start + start, self.start + max(start, stop), self._digest, self._numbers)
        at = self.start + range(len(self))[place]
        number = at if self._numbers is None else int(self._numbers[at])
        return Row(number, *(column[at].as_py() for column in self.table.columns))

    def sizes(self) -> dict[tuple[int, int], int]:
        """How many images have each (width, height)."""
        part = self.table.slice(self.start, len(self)).group_by(["width", "height"]).aggregate([([], "count_all")])
        columns = (part[name].to_pylist() for name in ("width", "height", "count_all"))
        return {(width, height): count for width, height, count in zip(*columns, strict=True)}

    def numbered(self, number: int) -> Row:
        """The row that bears this number."""
        return self[(number if self._numbers is None else int(np.searchsorted(self._numbers, number))) - self.start]

    def __iter__(self) -> Iterator[Row]:
        for start in range(self.start, self.stop, BLOCK):
            stop = min(start + BLOCK, self.stop)
            numbers = range(start, stop) if self._numbers is None else self._numbers[start:stop].tolist()
            block = self.table.slice(start, stop - start)
            yield from map(Row, numbers, *(column.to_pylist() for column in block.columns))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and self.start == other.start and self.checksum == other.checksum

    def __hash__(self) -> int:
        return hash((self.start, self.stop))

    def column(self, name: str) -> pa.ChunkedArray:
        return self.table[name].slice(self.start, len(self))

    def texts(self, name: str) -> list[str]:
        """All paths or digests."""
        return self.column(name).to_pylist()

    def numbers(self, name: str) -> Int[np.ndarray, " n"]:
        """All widths or heights, pixels."""
        return self.column(name).to_numpy()

    @cached_property
    def spans(self) -> dict[str, tuple[int, int]]:
        """Where each class begins and ends among these rows.  Raises ValueError where one is in several places."""
        classes = self.column("class").combine_chunks()
        codes = classes.indices.to_numpy() if len(self) else np.zeros(0, np.int32)
        ends = np.flatnonzero(np.diff(codes, append=-1)) + 1
        labels = [classes[int(end) - 1].as_py() for end in ends]
        if len(set(labels)) < len(labels):
            raise ValueError("a class is in several places")
        return dict(zip(labels, zip([0, *ends.tolist()], ends.tolist(), strict=False), strict=True))

    def of_class(self, label: str) -> Rows:
        """None where there is no such class."""
        return self[slice(*self.spans.get(label, (0, 0)))]

    @cached_property
    def digest(self) -> str:
        """Stands for these images, their places and their classes."""
        if self._digest and len(self) == len(self.table):
            return self._digest
        blocks = (self[start : start + BLOCK] for start in range(0, len(self), BLOCK))
        return _fingerprint([[row.path, row.label, row.digest] for row in block] for block in blocks)

    @cached_property
    def checksum(self) -> str:
        """Of all columns: quick, for what is read back."""
        state = hashlib.blake2b(json.dumps(self.spans).encode(), digest_size=16)
        for name in ("path", "digest"):
            for chunk in self.column(name).chunks:
                state.update(_bytes(chunk))
            state.update(pc.binary_length(self.column(name)).to_numpy().tobytes())
        for name in ("width", "height"):
            state.update(self.numbers(name).tobytes())
        return state.hexdigest()

    def copies(self) -> list[tuple[Row, Row]]:
        """Images with the bytes of an earlier one, and the first of those."""
        codes, new = self._contents()
        firsts = np.flatnonzero(new)
        return [(self[int(i)], self[int(firsts[codes[i]])]) for i in np.flatnonzero(~new)]

    def firsts(self) -> list[int]:
        """Numbers of the images that have not the bytes of an earlier one."""
        places = np.flatnonzero(self._contents()[1]) + self.start
        return (places if self._numbers is None else self._numbers[places]).tolist()

    def _contents(self) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """Digests counted as they appear, and where one is new."""
        codes = self.column("digest").dictionary_encode().combine_chunks().indices.to_numpy()
        return codes, np.diff(np.maximum.accumulate(codes), prepend=-1) > 0


def _columns(rows: Sequence[Row]) -> Rows:
    names = ("path", "label", "width", "height", "digest")
    return Rows(pa.table([[getattr(row, name) for row in rows] for name in names], schema=SCHEMA))


def _joined(parts: Sequence[Rows]) -> Rows:
    following = all(b.table is a.table and b.start == a.stop for a, b in pairwise(parts))
    if parts and following and (parts[0].start, parts[-1].stop) == (0, len(parts[0].table)):
        return Rows(parts[0].table, digest=parts[0]._digest)
    return whole([part.table.slice(part.start, len(part)) for part in parts])


def whole(tables: Sequence[pa.Table]) -> Rows:
    """Tables of these columns as one, in memory in one piece, so that any row is found at once."""
    joined = pa.concat_tables([table.select(SCHEMA.names).cast(SCHEMA) for table in tables] or [SCHEMA.empty_table()])
    return Rows(joined.unify_dictionaries().combine_chunks())


def _bytes(texts: pa.StringArray) -> memoryview:
    """The bytes of all texts, one after the other."""
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return memoryview(texts.buffers()[2])[offsets[0] : offsets[-1]] if len(texts) else memoryview(b"")


def _fingerprint(blocks: Iterable[list[list[str]]]) -> str:
    """``fingerprint`` (settings) of the list of all items of these blocks, which need not be in memory together."""
    state, before = hashlib.sha256(b"["), ""
    for block in filter(None, blocks):
        state.update(f"{before}{json.dumps(block)[1:-1]}".encode())
        before = ", "
    state.update(b"]")
    return state.hexdigest()[:16]


def lost(skipped: Iterable[Skipped], classes: Collection[str]) -> list[Skipped]:
    """What was passed over of these classes."""
    return [each for each in skipped if each.label in classes]


def lost_note(
    root: str, rows: Rows, skipped: Iterable[Skipped], classes: Collection[str], found: Sequence[Skipped] = ()
) -> str:
    """A line about it; empty where all could be read.  ``found``: rows that turned out not to decode."""
    listed = [*lost(skipped, classes), *found]
    if not listed:
        return ""
    count = len(listed) - len(found) + sum(len(rows.of_class(label)) for label in classes)
    first = listed[0]
    return f"{root}: {len(listed)} of {count} images cannot be read and are left out; the first: {first.path}: {first.reason}"
