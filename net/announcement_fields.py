"""The kinds of field that announcements have and messages have not; wire_fields.py has the others, and their rules."""

from dataclasses import dataclass
from typing import Any

from .layer_range import LayerRange
from .wire import MAX_LAYERS
from .wire_fields import Cursor, Field, Flag, Number


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


class Layers:
    """A range of layers: its start and its end, a u16 each."""

    _start, _end = Number("start", 2, 0, MAX_LAYERS), Number("end", 2, 0, MAX_LAYERS)

    def pack(self, value: LayerRange) -> bytes:
        """See Field."""
        return self._start.pack(value.start) + self._end.pack(value.end)

    def unpack(self, cursor: Cursor) -> LayerRange:
        """See Field."""
        return LayerRange(self._start.unpack(cursor), self._end.unpack(cursor))
