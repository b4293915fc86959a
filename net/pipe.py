"""What the model's process and the network's process of one node say to each other, over a socket pair.

A record is length u32, kind u8, body. Messages lie in it as they do on the wire (wire.py), after the peer's 22-byte
digest; everything else is msgpack of a struct below. Both ends are ours and of one version; lengths are bounded all
the same, so that a stray byte is noticed where it is.
"""

import logging
import struct
from collections.abc import Iterator

import msgspec

from ..errors import NetworkError
from .identity import PEER_DIGEST_BYTES, PeerId
from .messages import Message
from .wire import MAX_FRAME_BYTES, Part, decode, encode, owned

_HEADER = struct.Struct(">IB")
_LENGTH_BYTES = 4  # which the length does not count
_MESSAGE, _ORDER = 1, 2
_MAX_RECORD_BYTES = 1 + PEER_DIGEST_BYTES + MAX_FRAME_BYTES


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Anything but a message."""


class Start(_Struct, frozen=True):
    """To the network: begin. ``allow`` is None or digests; ``seed`` is the private key; the rest is MeshPart's."""

    seed: bytes
    listen: tuple[str, ...]
    allow: tuple[bytes, ...] | None
    max_datagram_bytes: int
    relays: tuple[str, ...]
    is_watching: bool
    lan: tuple[str, ...] | None
    network: bytes | None
    membership: bytes
    ice: bool = False
    log_level: int = logging.WARNING

    def __repr__(self) -> str:
        return f"Start(listen={self.listen!r}, allow={self.allow!r})"  # not the seed


class Dial(_Struct, frozen=True):
    """To the network: see Switchboard.dial."""

    peer: bytes
    addrs: tuple[str, ...]


class Publish(_Struct, frozen=True):
    """To the network: announce this from now on; None takes it back. Addresses, relays and times are the network's."""

    announcement: bytes | None


class Stop(_Struct, frozen=True):
    """To the network: tell the peers, and end."""


class Ready(_Struct, frozen=True):
    """From the network: it listens on ``addrs``, and may be reached through ``relays``; again where these change.

    ``problems`` are why it may not be reached through others.
    """

    addrs: tuple[str, ...]
    relays: tuple[str, ...]
    problems: tuple[str, ...] = ()


class Failed(_Struct, frozen=True):
    """From the network: it could not begin."""

    reason: str


class Up(_Struct, frozen=True):
    """From the network: PeerUp."""

    peer: bytes


class Down(_Struct, frozen=True):
    """From the network: PeerDown."""

    peer: bytes
    reason: str


class HeardOf(_Struct, frozen=True):
    """From the network: Heard."""

    announcement: bytes
    via: int


class Unheard(_Struct, frozen=True):
    """From the network: Vanished."""

    peer: bytes


class Stat(_Struct, frozen=True):
    """PeerStats of one peer."""

    peer: bytes
    addr: str
    rtt_s: float
    sent_bytes: int
    received_bytes: int
    queued_bytes: int


class Stats(_Struct, frozen=True):
    """From the network, now and then: everybody connected."""

    peers: tuple[Stat, ...]


class Log(_Struct, frozen=True):
    """From the network: a line for the node's log."""

    level: int
    logger: str
    text: str


Order = Start | Dial | Publish | Stop | Ready | Failed | Up | Down | HeardOf | Unheard | Stats | Log
Record = tuple[PeerId, Message] | Order

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Order).decode


def pack_order(order: Order) -> tuple[Part, ...]:
    """The record of an order."""
    body = _encode(order)
    return (_HEADER.pack(1 + len(body), _ORDER) + body,)


def pack_message(peer: PeerId, message: Message) -> tuple[Part, ...]:
    """The record of a message to or from ``peer``, in parts; a payload is not copied. Raises WireError."""
    parts = encode(message)
    num_bytes = 1 + PEER_DIGEST_BYTES + sum(len(part) for part in parts)
    return (_HEADER.pack(num_bytes, _MESSAGE) + peer.digest, *parts)


class RecordReader:
    """Bytes as they come, records as they are complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._needed = _HEADER.size

    def feed(self, data: Part) -> Iterator[Record]:
        """The records that ``data`` completes; a payload is a view of memory that nothing else uses."""
        self._buffer += data
        begin = 0
        view = memoryview(self._buffer)
        while len(view) - begin >= self._needed:
            length, kind = _HEADER.unpack_from(view, begin)
            if length > _MAX_RECORD_BYTES:
                raise NetworkError(f"the other process sent a record of {length} bytes; {_MAX_RECORD_BYTES} fit")
            end = begin + _LENGTH_BYTES + length
            if len(view) < end:
                self._needed = end - begin
                break
            yield _unpack(kind, owned(view, begin + _HEADER.size, end))
            begin, self._needed = end, _HEADER.size
        if begin:
            self._buffer = self._buffer[begin:]
        view.release()


def _unpack(kind: int, body: memoryview) -> Record:
    if kind == _ORDER:
        order: Order = _decode(body)
        return order
    message = decode(body[PEER_DIGEST_BYTES:])
    return PeerId(bytes(body[:PEER_DIGEST_BYTES])), message  # type: ignore[return-value]  # links keep their own frames
