"""The kinds of field that messages other than steps are made of: how each is packed, and what it takes.

A field checks its limits in both directions, so that nothing can be sent that would be refused where it arrives. All
numbers are big-endian and unsigned.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

from ..errors import WireError
from .identity import PEER_DIGEST_BYTES, PeerId
from .messages import Dtype, Neighbours, SessionKey


class Cursor:
    """A frame's bytes, taken one field after the other."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._offset = 0

    def take(self, num_bytes: int) -> bytes:
        """The next bytes."""
        begin, end = self._offset, self._offset + num_bytes
        if end > len(self._data):
            raise WireError(f"a frame ends after {len(self._data)} bytes of fields, in the middle of one")
        self._offset = end
        return bytes(self._data[begin:end])

    def finish(self) -> None:
        """Refuse what nobody took."""
        if self._offset != len(self._data):
            raise WireError(f"a frame has {len(self._data) - self._offset} bytes after its last field")


class Field(Protocol):
    """One value of a message."""

    def pack(self, value: Any) -> bytes:
        """Its bytes. Raises WireError beyond the limits."""
        ...

    def unpack(self, cursor: Cursor) -> Any:
        """Its value. Raises WireError beyond the limits."""
        ...


@dataclass(frozen=True, slots=True)
class Number:
    """An integer from ``low`` to ``high`` in ``num_bytes``."""

    name: str
    num_bytes: int
    low: int
    high: int

    def pack(self, value: int) -> bytes:
        """See Field."""
        check_within(self.name, value, self.low, self.high)
        return value.to_bytes(self.num_bytes, "big")

    def unpack(self, cursor: Cursor) -> int:
        """See Field."""
        value = int.from_bytes(cursor.take(self.num_bytes), "big")
        check_within(self.name, value, self.low, self.high)
        return value


@dataclass(frozen=True, slots=True)
class Real:
    """A number from ``low`` to ``high`` as an IEEE 754 binary64, or binary32 with ``is_single``; never a NaN."""

    name: str
    low: float
    high: float
    is_single: bool = False

    def pack(self, value: float) -> bytes:
        """See Field."""
        check_within(self.name, value, self.low, self.high)
        return self._layout.pack(value)

    def unpack(self, cursor: Cursor) -> float:
        """See Field."""
        value: float = self._layout.unpack(cursor.take(self._layout.size))[0]
        check_within(self.name, value, self.low, self.high)
        return value

    @property
    def _layout(self) -> struct.Struct:
        return _BINARY32 if self.is_single else _BINARY64


_BINARY32, _BINARY64 = struct.Struct(">f"), struct.Struct(">d")


@dataclass(frozen=True, slots=True)
class Raw:
    """Exactly ``num_bytes`` bytes."""

    name: str
    num_bytes: int

    def pack(self, value: bytes) -> bytes:
        """See Field."""
        if len(value) != self.num_bytes:
            raise WireError(f"{self.name} has {len(value)} bytes; it takes {self.num_bytes}")
        return value

    def unpack(self, cursor: Cursor) -> bytes:
        """See Field."""
        return cursor.take(self.num_bytes)


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes after their number, a u16."""

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
    """Yes or no, a u8 of 1 or 0."""

    name: str

    def pack(self, value: bool) -> bytes:
        """See Field."""
        return self._number.pack(int(value))

    def unpack(self, cursor: Cursor) -> bool:
        """See Field."""
        return bool(self._number.unpack(cursor))

    @property
    def _number(self) -> Number:
        return Number(self.name, 1, 0, 1)


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer's digest."""

    def pack(self, value: PeerId) -> bytes:
        """See Field."""
        return value.digest

    def unpack(self, cursor: Cursor) -> PeerId:
        """See Field."""
        return PeerId(cursor.take(PEER_DIGEST_BYTES))


@dataclass(frozen=True, slots=True)
class Text:
    """UTF-8 after its length in bytes, a u16."""

    name: str
    max_bytes: int

    def pack(self, value: str) -> bytes:
        """See Field."""
        try:
            raw = value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise WireError(f"{self.name} holds half a surrogate pair, which UTF-8 has no bytes for") from error
        return self._length.pack(len(raw)) + raw

    def unpack(self, cursor: Cursor) -> str:
        """See Field."""
        try:
            return cursor.take(self._length.unpack(cursor)).decode("utf-8")
        except UnicodeDecodeError as error:
            raise WireError(f"{self.name} is not UTF-8") from error

    @property
    def _length(self) -> Number:
        return Number(f"the length of {self.name}", 2, 0, self.max_bytes)


@dataclass(frozen=True, slots=True)
class Choice:
    """A member of an enumeration, a u8; with ``optional``, 0 is None."""

    of: type[IntEnum]
    optional: bool = False

    def pack(self, value: IntEnum | None) -> bytes:
        """See Field."""
        return bytes((0 if value is None else value,))

    def unpack(self, cursor: Cursor) -> IntEnum | None:
        """See Field."""
        number = cursor.take(1)[0]
        return None if self.optional and number == 0 else chosen(self.of, number)


@dataclass(frozen=True, slots=True)
class Several:
    """At most ``max_items`` of ``item`` after their number, a u8 unless ``count_bytes`` says more; a tuple."""

    name: str
    item: Field
    max_items: int
    count_bytes: int = 1

    def pack(self, value: tuple[Any, ...]) -> bytes:
        """See Field."""
        return self._count.pack(len(value)) + b"".join(self.item.pack(one) for one in value)

    def unpack(self, cursor: Cursor) -> tuple[Any, ...]:
        """See Field."""
        return tuple(self.item.unpack(cursor) for _ in range(self._count.unpack(cursor)))

    @property
    def _count(self) -> Number:
        return Number(f"the number of {self.name}", self.count_bytes, 0, self.max_items)


@dataclass(frozen=True, slots=True)
class Session:
    """The caller's digest, then the session's number, a u64."""

    _number = Number("a session's number", 8, 0, (1 << 64) - 1)

    def pack(self, value: SessionKey) -> bytes:
        """See Field."""
        return value.caller.digest + self._number.pack(value.number)

    def unpack(self, cursor: Cursor) -> SessionKey:
        """See Field."""
        return SessionKey(PeerId(cursor.take(PEER_DIGEST_BYTES)), self._number.unpack(cursor))


@dataclass(frozen=True, slots=True)
class Both:
    """Neighbours: the digests of the previous and the next hop, then where the next may be dialled."""

    addrs: Several

    def pack(self, value: Neighbours) -> bytes:
        """See Field."""
        return value.previous.digest + value.next.digest + self.addrs.pack(value.next_addrs)

    def unpack(self, cursor: Cursor) -> Neighbours:
        """See Field."""
        previous, following = PeerId(cursor.take(PEER_DIGEST_BYTES)), PeerId(cursor.take(PEER_DIGEST_BYTES))
        return Neighbours(previous, following, self.addrs.unpack(cursor))


@dataclass(frozen=True, slots=True)
class Tuple:
    """Several fields, one behind the other, as ``make`` takes them; ``names`` are its attributes, if it has such."""

    make: Callable[..., Any]
    items: tuple[Field, ...]
    names: tuple[str, ...] = ()

    def pack(self, value: Any) -> bytes:
        """See Field."""
        parts = [getattr(value, name) for name in self.names] if self.names else value
        return b"".join(item.pack(part) for item, part in zip(self.items, parts, strict=True))

    def unpack(self, cursor: Cursor) -> Any:
        """See Field."""
        return self.make(*(item.unpack(cursor) for item in self.items))


@dataclass(frozen=True, slots=True)
class Form:
    """A message's fields in the order in which they lie, which is that of its dataclass.

    Attributes:
        kind: the number of the message.
        rule: what fields must be to each other; raises WireError.
        flag: the field that is no byte of its own but the frame's flag 0x01; None where there is none.
    """

    kind: int
    message: type
    fields: dict[str, Field]
    rule: Callable[[Any], None] = lambda _: None
    flag: str | None = None

    @property
    def known_flags(self) -> int:
        """The bits that mean something."""
        return 0 if self.flag is None else 1

    def flags(self, message: Any) -> int:
        """Those of a message."""
        return 0 if self.flag is None else int(getattr(message, self.flag))

    def pack(self, message: Any) -> bytes:
        """All fields. Raises WireError."""
        self.rule(message)
        return b"".join(field.pack(getattr(message, name)) for name, field in self.fields.items())

    def unpack(self, data: memoryview, flags: int = 0) -> Any:
        """The message. Raises WireError."""
        cursor = Cursor(data)
        flagged = {} if self.flag is None else {self.flag: bool(flags)}
        message = self.message(**{name: field.unpack(cursor) for name, field in self.fields.items()}, **flagged)
        cursor.finish()
        self.rule(message)
        return message


def chosen(enumeration: type[IntEnum], number: int) -> Any:
    """The member with that number. Raises WireError."""
    try:
        return enumeration(number)
    except ValueError as error:
        known = ", ".join(str(one.value) for one in enumeration)
        raise WireError(f"{enumeration.__name__.lower()} {number} is unknown; there are {known}") from error


def check_within(name: str, value: float, low: float, high: float) -> None:
    """Raises WireError unless ``low <= value <= high``."""
    if not low <= value <= high:
        raise WireError(f"{name} is {value}; {low} to {high} are allowed")


def check_span(start: int, end: int, dtype: Dtype | None) -> None:
    """Raises WireError unless there is a layer, or neither a layer nor a dtype."""
    if (start, end) != (0, 0) if dtype is None else start >= end:
        raise WireError(f"layers {start} to {end} with dtype {dtype!r} are no span")
