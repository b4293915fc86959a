"""Probes: small datagrams beside QUIC that ask whether the other end of a connection is reached on a certain way.

    probe = type u8 (1 challenge, 2 answer), tag of the receiver 8, nonce 8, HMAC-SHA256 of all that 16, padding

Tags and keys were exchanged inside the connection (wire.Hello), so nobody else can ask or answer. QUIC's packets have
the bit 0x40 in their first byte, probes do not. When to ask: paths.py.
"""

import hmac

from .wire import PATH_KEY_BYTES, PATH_TAG_BYTES, Hello

NONCE_BYTES = 8
_CHALLENGE, _ANSWER = 1, 2
_MAC_BYTES = 16
PROBE_BYTES = 1 + PATH_TAG_BYTES + NONCE_BYTES + _MAC_BYTES


def is_probe(datagram: bytes) -> bool:
    """Whether it may be a probe, and no QUIC packet (RFC 9000, section 17)."""
    return len(datagram) >= PROBE_BYTES and datagram[0] in (_CHALLENGE, _ANSWER)


def tag_of(datagram: bytes) -> bytes:
    """Whose probe it says it is."""
    return datagram[1 : 1 + PATH_TAG_BYTES]


def nonce_of(datagram: bytes) -> bytes:
    """What a challenge asks, and its answer repeats."""
    return datagram[1 + PATH_TAG_BYTES :][:NONCE_BYTES]


def is_challenge(datagram: bytes) -> bool:
    """Which of the two a probe is."""
    return datagram[0] == _CHALLENGE


def challenge(receiver: Hello, nonce: bytes, size: int = PROBE_BYTES) -> bytes:
    """A question, padded to ``size`` bytes."""
    return _probe(_CHALLENGE, receiver, nonce, size)


def answer(receiver: Hello, nonce: bytes) -> bytes:
    """What a challenge gets."""
    return _probe(_ANSWER, receiver, nonce, PROBE_BYTES)


def is_authentic(datagram: bytes, key: bytes) -> bool:
    """Whether who made it knows ``key``."""
    head = datagram[: PROBE_BYTES - _MAC_BYTES]
    return hmac.compare_digest(datagram[PROBE_BYTES - _MAC_BYTES : PROBE_BYTES], _mac(key, head))


def _probe(kind: int, receiver: Hello, nonce: bytes, size: int) -> bytes:
    head = bytes((kind,)) + receiver.path_tag + nonce
    return (head + _mac(receiver.path_key, head)).ljust(size, b"\0")


def _mac(key: bytes, head: bytes) -> bytes:
    assert len(key) == PATH_KEY_BYTES
    return hmac.digest(key, head, "sha256")[:_MAC_BYTES]
