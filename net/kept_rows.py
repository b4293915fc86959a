"""KeptRows: the rows that a hop sent on, from position 0 without a gap, for a hop that takes the next one's place."""

from bisect import bisect_left
from collections.abc import Iterator

from .row_layout import Payload, RowLayout


class KeptRows:
    """One session's rows. Each token of them has its keys and values in a page, so the pages bound them too."""

    def __init__(self, layout: RowLayout) -> None:
        self._layout = layout
        self._payloads: list[Payload] = []
        self._ends = [0]  # where each payload ends; payload i has the positions _ends[i] .. _ends[i + 1]

    @property
    def length(self) -> int:
        """How many positions have rows."""
        return self._ends[-1]

    def append(self, payload: Payload) -> None:
        """The rows behind the last."""
        self._payloads.append(payload)
        self._ends.append(self.length + self._layout.num_rows(payload))

    def truncate(self, length: int) -> None:
        """Forget the rows of the positions from ``length`` on."""
        if length >= self.length:
            return
        index = bisect_left(self._ends, length)  # the first payload that ends there or behind is index - 1
        del self._payloads[index:], self._ends[index + 1 :]
        if self._ends[-1] > length:
            self._payloads[-1] = self._layout.take(self._payloads[-1], 0, length - self._ends[-2])
            self._ends[-1] = length

    def pieces(self, stop: int, max_rows: int) -> Iterator[tuple[int, Payload]]:
        """The rows of the positions ``0 .. stop`` in payloads of up to ``max_rows``, each with its first position."""
        stop = min(stop, self.length)
        for start in range(0, stop, max_rows):
            yield start, self.between(start, min(start + max_rows, stop))

    def between(self, start: int, stop: int) -> Payload:
        """The rows of the positions ``start .. stop``, all of which are kept."""
        first = bisect_left(self._ends, start + 1) - 1  # the payload that has position start
        last = bisect_left(self._ends, stop)  # the payload behind the one that has position stop - 1
        parts = []
        for begin, payload in zip(self._ends[first:last], self._payloads[first:last], strict=True):
            end = begin + self._layout.num_rows(payload)
            parts.append(self._layout.take(payload, max(start - begin, 0), min(stop, end) - begin))
        return self._layout.join(parts)

    def check_integrity(self) -> None:
        """Assert that the payloads cover the positions without a gap."""
        assert len(self._ends) == len(self._payloads) + 1 and self._ends[0] == 0
        for index, payload in enumerate(self._payloads):
            assert self._ends[index + 1] - self._ends[index] == self._layout.num_rows(payload) > 0
