"""RowLayout: where the rows of a payload lie, so that some can be taken out and several joined without unpacking them.

EXACT: row by row, elements little-endian. INT8: the float32 scales of all rows, little-endian, one for each group of
INT8_GROUP elements of a row (its last group may be shorter), and behind them the int8 elements of all rows.
Packing and unpacking are activations.py's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .messages import Codec, Dtype
from .wire import INT8_GROUP, payload_bytes

SCALE_BYTES = 4

Payload = bytes | memoryview


@dataclass(frozen=True, slots=True)
class RowLayout:
    """How rows of ``width`` elements are packed."""

    dtype: Dtype
    codec: Codec
    width: int

    def __str__(self) -> str:
        return f"{self.width} {self.dtype.name} {self.codec.name}"

    @property
    def num_groups(self) -> int:
        """Scales of a row; INT8."""
        return -(-self.width // INT8_GROUP)

    def num_bytes(self, num_rows: int) -> int:
        """How long a payload of ``num_rows`` rows is."""
        return payload_bytes(num_rows, self.width, self.dtype, self.codec)

    def num_rows(self, payload: Payload) -> int:
        """How many rows a payload has."""
        rows, rest = divmod(len(payload), self.num_bytes(1))
        assert rest == 0, f"{len(payload)} bytes are no whole rows of {self.num_bytes(1)}"
        return rows

    def take(self, payload: Payload, start: int, stop: int) -> Payload:
        """The rows ``start .. stop`` of a payload, copied unless they are all of them."""
        num_rows = self.num_rows(payload)
        assert 0 <= start <= stop <= num_rows
        if (start, stop) == (0, num_rows):
            return payload
        return b"".join(part[start * size : stop * size] for part, size in self._parts(payload))

    def join(self, payloads: Sequence[Payload]) -> Payload:
        """All rows of several payloads, in order."""
        if len(payloads) == 1:
            return payloads[0]
        columns = zip(*(self._parts(payload) for payload in payloads), strict=True)
        return b"".join(part for column in columns for part, _ in column)

    def _parts(self, payload: Payload) -> list[tuple[memoryview, int]]:
        """What lies one behind the other in a payload, each with its bytes a row."""
        view = memoryview(payload)
        if self.codec is Codec.EXACT:
            return [(view, self.num_bytes(1))]
        scale_bytes = self.num_groups * SCALE_BYTES
        border = self.num_rows(payload) * scale_bytes
        return [(view[:border], scale_bytes), (view[border:], self.width)]
