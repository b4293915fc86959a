"""Where a link's peer is, and how large a datagram may be on the way; QUIC above sees one address that never changes.

A peer's address may change at either end: a NAT that forgets, a laptop that moves. When an authentic packet comes from
elsewhere, a challenge goes there; nothing else does until the answer comes, so that nobody can turn a stream of
activations towards a third party (RFC 9000, section 9.3, lets some data go at once). The same challenge, padded, finds
out how large a datagram may be (in the manner of RFC 8899): 8,900 bytes within a site, in fragments if need be, and
what an Ethernet frame holds elsewhere.

    probe = type u8 (1 challenge, 2 answer), tag of the receiver 8, nonce 8, HMAC-SHA256 of all that 16, padding

QUIC's packets have the bit 0x40 in their first byte, probes do not. Not here: sockets and time.
"""

import hmac
import ipaddress
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .congestion import SHORT_PATH_RTT_S
from .quic import MIN_DATAGRAM_BYTES
from .wire import PATH_KEY_BYTES, PATH_TAG_BYTES, Hello

Addr = tuple[Any, ...]  # as the socket module has it: host and port, with IPv6 two more
Outgoing = tuple[bytes, Addr]

ETHERNET_DATAGRAM_BYTES = 1452  # 1,500 less the headers of IPv6 and UDP
SITE_DATAGRAM_BYTES = 8900  # a jumbo frame; where there are none the kernel makes six fragments, which still is faster
NONCE_BYTES = 8
_CHALLENGE, _ANSWER = 1, 2
_MAC_BYTES = 16
PROBE_BYTES = 1 + PATH_TAG_BYTES + NONCE_BYTES + _MAC_BYTES

_PROBE_S = 0.3  # until a probe is sent again: three round trips of 100 ms
_MAX_PROBES = 3  # then it does not get through
_RECHECK_S = 10.0  # a size that once passed may cease to when the route changes


@dataclass(slots=True)
class _Question:
    """A challenge that has not been answered."""

    addr: Addr
    size: int
    nonce: bytes
    num_sent: int
    again_at: float


class Path:
    """The way to one peer.

    Args:
        addr: where it was dialled, or where its first packet came from; QUIC's handshake proves it.
        make_nonce: entropy.
        max_datagram_bytes: try no larger ones.
    """

    def __init__(
        self, addr: Addr, make_nonce: Callable[[int], bytes], max_datagram_bytes: int = SITE_DATAGRAM_BYTES
    ) -> None:
        self.addr = addr
        self.datagram_bytes = MIN_DATAGRAM_BYTES
        self.rtt_s = math.inf  # to be kept up to date by the owner
        self._make_nonce = make_nonce
        self._max_datagram_bytes = max_datagram_bytes
        self._own: Hello | None = None
        self._peers: Hello | None = None
        self._question: _Question | None = None
        self._next_check = math.inf

    def begin(self, own: Hello, peers: Hello, now: float) -> list[Outgoing]:
        """The two ends know each other's keys: look how large a datagram may be."""
        self._own, self._peers = own, peers
        return self._ask_size(self._best_size, now)

    def heard_from(self, addr: Addr, now: float) -> list[Outgoing]:
        """An authentic packet came from ``addr``."""
        if addr == self.addr or self._peers is None or (self._question and self._question.addr == addr):
            return []
        return self._ask(addr, PROBE_BYTES, now)

    def take(self, datagram: bytes, addr: Addr, now: float) -> list[Outgoing]:
        """A probe with this path's tag has come from ``addr``."""
        if self._own is None or self._peers is None or not _is_authentic(datagram, self._own.path_key):
            return []
        nonce = datagram[1 + PATH_TAG_BYTES :][:NONCE_BYTES]
        if datagram[0] == _CHALLENGE:
            return [(_probe(_ANSWER, self._peers, nonce, PROBE_BYTES), addr)]
        question = self._question
        if question is None or not hmac.compare_digest(nonce, question.nonce):
            return []
        self._question = None
        if question.addr != self.addr:
            self.addr, self.datagram_bytes = question.addr, MIN_DATAGRAM_BYTES
            return self._ask_size(self._best_size, now)
        self.datagram_bytes = question.size
        self._next_check = now + _RECHECK_S
        return []

    def next_deadline(self) -> float:
        """When ``handle_deadline`` wants to be called."""
        return self._next_check if self._question is None else self._question.again_at

    def handle_deadline(self, now: float) -> list[Outgoing]:
        """Time has passed."""
        question = self._question
        if question is None:
            if now < self._next_check:
                return []
            at_least = self.datagram_bytes > MIN_DATAGRAM_BYTES
            return self._ask_size(self.datagram_bytes if at_least else self._best_size, now)
        if now < question.again_at:
            return []
        if question.num_sent < _MAX_PROBES:
            question.num_sent += 1
            question.again_at = now + _PROBE_S
            return [self._challenge(question)]
        self._question = None
        if question.addr != self.addr:
            self._next_check = now + _RECHECK_S
            return []
        return self._ask_size(self._smaller_than(question.size), now)

    @property
    def _best_size(self) -> int:
        """Private addresses may be far apart, in a VPN; there each lost fragment would cost all the others."""
        host = ipaddress.ip_address(self.addr[0].partition("%")[0])
        host = getattr(host, "ipv4_mapped", None) or host
        is_near = host.is_loopback or ((host.is_private or host.is_link_local) and self.rtt_s < SHORT_PATH_RTT_S)
        return min(SITE_DATAGRAM_BYTES if is_near else ETHERNET_DATAGRAM_BYTES, self._max_datagram_bytes)

    def _smaller_than(self, size: int) -> int:
        return ETHERNET_DATAGRAM_BYTES if size > ETHERNET_DATAGRAM_BYTES else MIN_DATAGRAM_BYTES

    def _ask_size(self, size: int, now: float) -> list[Outgoing]:
        if size <= MIN_DATAGRAM_BYTES:
            self.datagram_bytes, self._next_check = MIN_DATAGRAM_BYTES, math.inf
            return []
        if size < self.datagram_bytes:
            self.datagram_bytes = MIN_DATAGRAM_BYTES  # the larger one no longer passes
        return self._ask(self.addr, size, now)

    def _ask(self, addr: Addr, size: int, now: float) -> list[Outgoing]:
        self._question = _Question(addr, size, self._make_nonce(NONCE_BYTES), 1, now + _PROBE_S)
        return [self._challenge(self._question)]

    def _challenge(self, question: _Question) -> Outgoing:
        assert self._peers is not None
        return _probe(_CHALLENGE, self._peers, question.nonce, question.size), question.addr


def is_probe(datagram: bytes) -> bool:
    """Whether it may be a probe, and no QUIC packet (RFC 9000, section 17)."""
    return len(datagram) >= PROBE_BYTES and datagram[0] in (_CHALLENGE, _ANSWER)


def tag_of(datagram: bytes) -> bytes:
    """Whose probe it says it is."""
    return datagram[1 : 1 + PATH_TAG_BYTES]


def _probe(kind: int, receiver: Hello, nonce: bytes, size: int) -> bytes:
    head = bytes((kind,)) + receiver.path_tag + nonce
    return (head + _mac(receiver.path_key, head)).ljust(size, b"\0")


def _is_authentic(datagram: bytes, key: bytes) -> bool:
    head = datagram[: PROBE_BYTES - _MAC_BYTES]
    return hmac.compare_digest(datagram[PROBE_BYTES - _MAC_BYTES : PROBE_BYTES], _mac(key, head))


def _mac(key: bytes, head: bytes) -> bytes:
    assert len(key) == PATH_KEY_BYTES
    return hmac.digest(key, head, "sha256")[:_MAC_BYTES]
