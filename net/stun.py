"""STUN's simplest question and its answer (RFC 8489): where a datagram came from, as whoever got it sees it.

A relay answers it, so that ICE, ours or another stack's, needs no other server. Nothing is proven by it, and whoever
asks learns its own address alone. Not here: ICE itself (ice.py).
"""

import ipaddress
import struct

from .ways import Addr

ANSWERS_PER_S = 256  # of 32 or 44 bytes to questions of 20: no amplifier to speak of, and 1% of a processor
MAX_REQUEST_BYTES = 548  # RFC 8489, section 6.1: as long as one may be where the path is not known

_HEADER = struct.Struct(">HHI12s")  # type, length of what follows, cookie, transaction
_COOKIE = 0x2112A442
_REQUEST, _SUCCESS = 0x0001, 0x0101
_XOR_MAPPED_ADDRESS = 0x0020
_FAMILIES = {4: 1, 6: 2}


def is_request(datagram: bytes) -> bool:
    """Whether it asks where it came from; QUIC's packets and ours begin otherwise."""
    if not _HEADER.size <= len(datagram) <= MAX_REQUEST_BYTES or datagram[0] != 0:
        return False
    kind, length, cookie, _ = _HEADER.unpack_from(datagram)
    return kind == _REQUEST and cookie == _COOKIE and _HEADER.size + length == len(datagram)


def response(request: bytes, addr: Addr) -> bytes:
    """That it came from ``addr``."""
    transaction = _HEADER.unpack_from(request)[3]
    host = ipaddress.ip_address(addr[0].partition("%")[0])
    host = getattr(host, "ipv4_mapped", None) or host
    plain = struct.pack(">H", addr[1]) + host.packed
    mask = struct.pack(">HI", _COOKIE >> 16, _COOKIE) + transaction  # the port's, the address's
    value = bytes((0, _FAMILIES[host.version])) + bytes(a ^ b for a, b in zip(plain, mask, strict=False))
    attribute = struct.pack(">HH", _XOR_MAPPED_ADDRESS, len(value)) + value
    return _HEADER.pack(_SUCCESS, len(attribute), _COOKIE, transaction) + attribute
