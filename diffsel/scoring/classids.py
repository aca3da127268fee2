"""Which of a class-conditional prior's classes is meant: by its number, its wnid or a name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence


class ClassIds:
    """``names``: number -> names, parted by commas, as a pipeline's id2label has them; ``count`` classes, then the null;
    ``wnids`` in the order of the numbers, where the classes are ImageNet's."""

    def __init__(self, names: Mapping[str, str], count: int, wnids: Sequence[str] = ()):
        self.count = count
        self.wnids = {wnid: n for n, wnid in enumerate(wnids)}
        self.names: dict[str, set[int]] = {}
        if not all(0 <= int(number) < count for number in names):
            raise ValueError("a number beyond the classes")
        for number, text in names.items():
            for name in {text, *text.split(",")}:
                self.names.setdefault(_plain(name), set()).add(int(number))

    def find(self, text: str) -> int | None:
        """The number of a class, that of the null for an empty text, None where there is none or more than one.

        >>> ids = ClassIds({"0": "tench, Tinca tinca", "1": "crane", "2": "crane"}, 1000, ["n01440764"])
        >>> [ids.find(text) for text in ("tinca_tinca", "n01440764", "7", "", "crane", "yeti")]
        [0, 0, 7, 1000, None, None]
        """
        plain = _plain(text)
        if not plain:
            return self.count
        if re.fullmatch(r"\d+", plain):
            return int(plain) if int(plain) < self.count else None
        if plain in self.wnids:
            return self.wnids[plain]
        found = self.names.get(plain, set())
        return next(iter(found)) if len(found) == 1 else None


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())
