"""The kinds of field that announcements have and messages have not; wire_fields.py has the others, and their rules."""

from dataclasses import dataclass
from typing import Any

from .identity import PEER_DIGEST_BYTES, PeerId
from .layer_range import LayerRange
from .wire import MAX_LAYERS
from .wire_fields import Cursor, Field, Number


@dataclass(frozen=True, slots=True)
class Bytes:
    """As many bytes as a u16 before them says."""

    name: str
    max_bytes: int

    def pack(self, value: bytes) -> bytes:
        """See Field."""
        return self._length.pack(len(value)) + value

    def unpack(self, cursor: Cursor) -> bytes:
        """See Field."""
        return cursor.take(self._length.unpack(cursor))

    @property
    def _length(self) -> Number:
        return Number(f"the length of {self.name}", 2, 0, self.max_bytes)


@dataclass(frozen=True, slots=True)
class Flag:
    """Yes or no: a u8 that is 1 or 0."""

    name: str

    def pack(self, value: bool) -> bytes:
        """See Field."""
        return b"\1" if value else b"\0"

    def unpack(self, cursor: Cursor) -> bool:
        """See Field."""
        return Number(self.name, 1, 0, 1).unpack(cursor) == 1


@dataclass(frozen=True, slots=True)
class Maybe:
    """A flag, and behind it an ``item`` if it is 1; None if it is 0."""

    name: str
    item: Field

    def pack(self, value: Any) -> bytes:
        """See Field."""
        return b"\0" if value is None else b"\1" + self.item.pack(value)

    def unpack(self, cursor: Cursor) -> Any:
        """See Field."""
        return self.item.unpack(cursor) if Flag(self.name).unpack(cursor) else None


class Peer:
    """A peer's digest."""

    def pack(self, value: PeerId) -> bytes:
        """See Field."""
        return value.digest

    def unpack(self, cursor: Cursor) -> PeerId:
        """See Field."""
        return PeerId(cursor.take(PEER_DIGEST_BYTES))


class Layers:
    """A range of layers: its start and its end, a u16 each."""

    _start, _end = Number("start", 2, 0, MAX_LAYERS), Number("end", 2, 0, MAX_LAYERS)

    def pack(self, value: LayerRange) -> bytes:
        """See Field."""
        return self._start.pack(value.start) + self._end.pack(value.end)

    def unpack(self, cursor: Cursor) -> LayerRange:
        """See Field."""
        return LayerRange(self._start.unpack(cursor), self._end.unpack(cursor))
