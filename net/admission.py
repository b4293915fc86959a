"""Who is let in, and what somebody unknown may cost until then.

    an Initial      while MAX_HALF_OPEN others are at it, or more than HANDSHAKES_PER_S have begun, gets a Retry
                    (RFC 9000, section 8.1.2), which costs no memory; then only who receives at the address that it
                    sends from gets further
    a handshake     takes 5 ms of a processor and at most HANDSHAKE_S; HANDSHAKES_PER_S begin behind a Retry
    a key           must be on the list, where there is one; else at most MAX_STRANGERS are let in
    a connection    may hold 32 MiB + 13 MiB, see inbox.py and quic.py; one with a relay 0.1 MiB

Not here: the connections themselves.
"""

import os
import time
from dataclasses import dataclass
from typing import Protocol

from aioquic.buffer import Buffer
from aioquic.quic.packet import QuicPacketType, QuicProtocolVersion, encode_quic_retry, pull_quic_header
from aioquic.quic.retry import QuicRetryTokenHandler

from ..errors import MembershipError
from .identity import PeerId
from .quic import CONNECTION_ID_BYTES, MIN_DATAGRAM_BYTES
from .ways import Way, retry_addr

MAX_HALF_OPEN = 32  # 160 ms of handshakes
MAX_HANDSHAKES = 256  # at once, from addresses that were proven; beyond it nobody is answered
HANDSHAKES_PER_S = 50  # a quarter of a processor
HINTS_PER_S = 100  # see carrier.py; so that nobody can make us a source of many small datagrams
MAX_STRANGERS = 32  # connected peers that dialled us and are on no list: 1.4 GiB at worst
RECHECK_S = 60.0  # between two looks at whose membership has expired
RELAY_MAX_STRANGERS = 4096  # of a relay: 400 MiB at worst; relay_table.MAX_REGISTERED
HANDSHAKE_S = 5.0  # the first Initial and four more, 0.2, 0.4, 0.8 and 1.6 s apart; dials end after it as well
_MAX_TOKEN_BYTES = 256  # a Retry token of ours has about 80


class Rate:
    """At most ``per_s`` a second, and as many at once (a token bucket)."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._left = per_s
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Whether one more may be, and count it."""
        self._left = min(self._per_s, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


@dataclass(frozen=True, slots=True)
class Initial:
    """The first packet of a connection that does not exist yet (RFC 9000, section 17.2.2)."""

    destination_id: bytes
    source_id: bytes
    token: bytes


def parse_initial(datagram: bytes) -> Initial | None:
    """The Initial in ``datagram``, if it may begin a connection; versions other than 1 are not answered."""
    if len(datagram) < MIN_DATAGRAM_BYTES:
        return None
    try:
        header = pull_quic_header(Buffer(data=datagram), host_cid_length=CONNECTION_ID_BYTES)
    except ValueError:
        return None
    if header.packet_type != QuicPacketType.INITIAL or header.version != QuicProtocolVersion.VERSION_1:
        return None
    if len(header.destination_cid) < 8 or len(header.token) > _MAX_TOKEN_BYTES:  # 8: RFC 9000, section 7.2
        return None
    return Initial(header.destination_cid, header.source_cid, header.token)


class Retries:
    """Retry packets, and the tokens in them: whoever sends one back receives at the address that it names."""

    def __init__(self) -> None:
        self._tokens = QuicRetryTokenHandler()

    def packet(self, initial: Initial, way: Way, now: float) -> bytes:
        """What to answer."""
        new_id = os.urandom(CONNECTION_ID_BYTES)
        token = self._tokens.create_token(
            address=retry_addr(way),
            original_destination_connection_id=initial.destination_id,
            retry_source_connection_id=new_id,
            now=now,
        )
        packet: bytes = encode_quic_retry(
            version=QuicProtocolVersion.VERSION_1,
            source_cid=new_id,
            destination_cid=initial.source_id,
            original_destination_cid=initial.destination_id,
            retry_token=token,
        )
        return packet

    def original_id(self, initial: Initial, way: Way, now: float) -> bytes | None:
        """The destination of the Initial that the Retry answered; None where the token is not ours for ``way``."""
        try:
            original: bytes = self._tokens.validate_token(
                address=retry_addr(way),
                destination_cid=initial.destination_id,
                token=initial.token,
                now=now,
            )
        except ValueError:
            return None
        return original


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a connection when two with one peer are one too many.

    Attributes:
        dialler: which end dialled it.
        instance: the peer's, see wire.Hello.
        since: when it was let in.
    """

    dialler: PeerId
    instance: bytes
    since: float


def keeps_old(old: Known, new: Known) -> bool:
    """Whether the connection that is there stays, and the new one goes.

    A new process of the peer knows nothing of the old connection. The same process would not dial again long after, so
    it has lost the old one. Else both ends dialled at once, and both keep the one that the smaller id dialled.
    """
    if old.instance != new.instance or new.since - old.since > HANDSHAKE_S:
        return False
    return old.dialler <= new.dialler


class ClosedNetwork(Protocol):
    """A network, as far as it matters at the door; see membership.py."""

    def admit(self, membership: bytes, peer: PeerId, now: float) -> object:
        """Raises MembershipError: ``peer`` is no member at ``now``, in seconds since 1970."""
        ...


@dataclass(frozen=True, slots=True)
class Guests:
    """Who is let in.

    Attributes:
        allow: peers by name; None is everybody.
        network: whose members are let in as well.
        max_strangers: how many, where everybody is let in.
    """

    allow: frozenset[PeerId] | None = None
    network: ClosedNetwork | None = None
    max_strangers: int = MAX_STRANGERS

    def why_refused(self, peer: PeerId | None, own: PeerId, num_strangers: int) -> str | None:
        """Why a peer that has dialled us is not let in, before anything that it says is read; None where it may be."""
        if peer is None:
            return "no Ed25519 certificate was shown"
        if peer == own:
            return "this is you"
        if self.allow is None:
            return f"{num_strangers} peers are connected already" if num_strangers >= self.max_strangers else None
        return None if peer in self.allow or self.network is not None else f"{peer} is not on this node's list"

    def why_no_member(self, peer: PeerId, membership: bytes) -> str | None:
        """Why a peer that may be a member is none; None where it is, or need not be."""
        if self.network is None or self.allow is None or peer in self.allow:
            return None
        try:
            self.network.admit(membership, peer, time.time())
        except MembershipError as error:
            return str(error)
        return None

    @property
    def are_strangers(self) -> bool:
        """Whether nobody has vouched for them."""
        return self.allow is None
