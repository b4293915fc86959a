"""LayerRange: a half-open range of a model's layers, and the few things that are asked of several of them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import BlocksMapError

_RANGE = re.compile(r"(\d{1,6}):(\d{1,6})", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class LayerRange:
    """The layers ``start .. end``, half-open; "4:8" is 4, 5, 6 and 7."""

    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> "LayerRange":
        """The range that ``text`` spells.

        Raises:
            BlocksMapError: it spells none, or an empty one.
        """
        found = _RANGE.fullmatch(text)
        if found is None or int(found[1]) >= int(found[2]):
            raise BlocksMapError(f"{text[:40]!r} is no range of layers; write 4:8 for the layers 4, 5, 6 and 7")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.start}:{self.end}"

    def __len__(self) -> int:
        return max(self.end - self.start, 0)

    def __contains__(self, other: "LayerRange") -> bool:
        return self.start <= other.start and other.end <= self.end

    def common(self, other: "LayerRange") -> "LayerRange":
        """What both have; empty where they have nothing in common."""
        start = max(self.start, other.start)
        return LayerRange(start, max(start, min(self.end, other.end)))


def merged(ranges: Iterable[LayerRange]) -> list[LayerRange]:
    """The same layers in as few ranges as possible, in order."""
    result: list[LayerRange] = []
    for one in sorted(ranges):
        if not one:
            continue
        if result and one.start <= result[-1].end:
            result[-1] = LayerRange(result[-1].start, max(result[-1].end, one.end))
        else:
            result.append(one)
    return result


def gaps(ranges: Iterable[LayerRange], whole: LayerRange) -> list[LayerRange]:
    """The parts of ``whole`` that none of ``ranges`` has, in order."""
    result, start = [], whole.start
    for one in merged(ranges):
        result.append(LayerRange(start, min(one.start, whole.end)))
        start = max(start, one.end)
    result.append(LayerRange(start, whole.end))
    return [one for one in result if one]


def listed(ranges: Iterable[LayerRange]) -> str:
    """Ranges for people: "4:8 and 12:16"."""
    *first, last = map(str, ranges)
    return f"{', '.join(first)} and {last}" if first else last
