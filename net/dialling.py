"""Dialling: attempts to reach peers, each at several addresses and through several relays, of which the first wins.

Not here: who is let in (endpoint.py), and channels through relays, which are asked for here (relays.py).
"""

import asyncio
import hashlib
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import NetworkError
from .admission import HANDSHAKE_S, Known
from .carrier import Carrier
from .connection import Connection
from .identity import PEER_DIGEST_BYTES, PeerId
from .link import DUPLICATE, REFUSED
from .relays import MAX_RELAYS, Relays, split_relay
from .udp import split_host_port
from .ways import Addr, Direct, Relayed, Way, shown
from .wire import MAX_ADDRS, Hello

MAX_ATTEMPTS = MAX_ADDRS + MAX_RELAYS  # all are made at once, one Initial of 1,200 bytes each

Standby = tuple[Connection, Known, Hello]


@dataclass(slots=True, eq=False)
class Dial:
    """An attempt to reach a peer.

    Attributes:
        peer: who it is; made up where it is a relay that may be anybody.
        relay_addrs: where it is a relay that is dialled; several where two addresses turn out to be one relay's.
        is_peer: somebody wants to talk to it, beside its being a relay.
        is_anybody: whoever answers is taken.
        num_reaching: relays that have been asked for a channel, and have not said anything yet.
        standby: the peer has dialled us meanwhile; taken if we do not get through.
        reason: why it is not reached, as far as is known.
        is_refused: somebody is there, who does not let this node in, or is not whom it dialled.
    """

    peer: PeerId
    timer: asyncio.TimerHandle
    relay_addrs: list[str] = field(default_factory=list)
    is_peer: bool = False
    is_anybody: bool = False
    attempts: list[Connection] = field(default_factory=list)
    num_reaching: int = 0
    lookup: "asyncio.Task[None] | None" = None
    standby: Standby | None = None
    reason: str = "it does not answer"
    is_refused: bool = False

    @property
    def is_hopeless(self) -> bool:
        """Whether nothing is under way any more."""
        return not self.attempts and not self.num_reaching and self.lookup is None


class DialOwner(Protocol):
    """Whose dials they are."""

    def dialled_in_vain(self, dial: Dial) -> None:
        """One has ended without a connection."""
        ...

    def let_in(self, standby: Standby) -> None:
        """The peer's own connection is to be taken, as none of ours got through."""
        ...


class Dialling:
    """Owner of the dials of a node."""

    def __init__(self, owner: DialOwner, carrier: Carrier) -> None:
        self._owner = owner
        self._carrier = carrier
        self._loop = asyncio.get_running_loop()
        self._dials: dict[PeerId, Dial] = {}

    def get(self, peer: PeerId) -> Dial | None:
        """The dial to a peer that is under way."""
        return self._dials.get(peer)

    def begin(self, peer: PeerId, addrs: Sequence[str], relays: Relays) -> None:
        """Dial a peer, unless that is being done; ``dialled_in_vain`` follows unless it is let in."""
        dial = self._dials.get(peer)
        if dial is None:
            dial = self._add(peer)
            dial.lookup = self._loop.create_task(self._try_all(dial, addrs, relays))
        dial.is_peer = True

    def begin_relay(self, addr: str, relay: PeerId | None) -> None:
        """Dial a relay at HOST:PORT; where it is not known who it is, whoever answers there is taken."""
        peer = relay or _made_up(addr)
        dial = self._dials.get(peer)
        if dial is None:
            dial = self._add(peer)
            dial.is_anybody = relay is None
            dial.lookup = self._loop.create_task(self._look_up(dial, (addr,)))
        dial.relay_addrs.append(addr)

    def channel_opened(self, peer: PeerId, way: Relayed) -> None:
        """A relay leads to a peer now."""
        dial = self._dials.get(peer)
        if dial is not None:
            dial.num_reaching = max(dial.num_reaching - 1, 0)
            self._attempt(dial, way)

    def name(self, connection: Connection, peer: PeerId) -> None:
        """Who it is that was dialled, where that was anybody: the dial is one to ``peer`` from now on."""
        made_up = connection.dialled
        dial = None if made_up is None else self._dials.get(made_up)
        if made_up is None or dial is None or not dial.is_anybody or connection not in dial.attempts:
            return
        del self._dials[made_up]
        other = self._dials.get(peer)
        for one in dial.attempts:
            one.dialled = peer
        if other is None:
            dial.peer, dial.is_anybody = peer, False
            self._dials[peer] = dial
        else:  # another address of the same relay
            dial.timer.cancel()
            if dial.lookup is not None:
                dial.lookup.cancel()
            other.attempts += dial.attempts
            other.relay_addrs += dial.relay_addrs

    def attempt_failed(self, connection: Connection, reason: str, code: int | None = None) -> None:
        """One address did not lead there. Where the peer says that it has a connection, that one is waited for.

        Args:
            code: with which the other end, or this one, has ended it; None where nobody answers.
        """
        dial = None if connection.dialled is None else self._dials.get(connection.dialled)
        if dial is None or connection not in dial.attempts:
            return
        dial.attempts.remove(connection)
        if code != DUPLICATE:
            dial.reason = f"{shown(connection.path.way)}: {reason}"
            dial.is_refused = code == REFUSED
            self._check(dial)

    def take(self, peer: PeerId, keep: Connection | None = None) -> Dial | None:
        """Stop trying, and end what was tried."""
        dial = self._dials.pop(peer, None)
        if dial is None:
            return None
        dial.timer.cancel()
        if dial.lookup is not None:
            dial.lookup.cancel()
        for connection in (*dial.attempts, *([dial.standby[0]] if dial.standby else ())):
            if connection is not keep:
                self._carrier.end(connection, DUPLICATE, "we are connected already")
        return dial

    def close(self) -> None:
        """Stop all."""
        for peer in tuple(self._dials):
            self.take(peer)

    def _add(self, peer: PeerId) -> Dial:
        dial: Dial = Dial(peer, self._loop.call_later(HANDSHAKE_S, lambda: self._end(dial)))
        self._dials[peer] = dial
        return dial

    async def _try_all(self, dial: Dial, addrs: Sequence[str], relays: Relays) -> None:
        """Ask the relays, and send an Initial to every address there is."""
        if not addrs:
            dial.reason = "no address of it is known"
        plain = []
        for text in addrs:
            try:
                addr, relay = split_relay(text)
                if relay is None or relay == dial.peer:
                    plain.append(addr)
                    continue
                relays.reach(dial.peer, text, self._when_not_reached(dial))
                dial.num_reaching += 1
            except NetworkError as error:
                dial.reason = f"{text}: {error}"
        await self._look_up(dial, plain)

    async def _look_up(self, dial: Dial, addrs: Sequence[str]) -> None:
        """Names are looked up one after the other."""
        for addr in addrs[:MAX_ADDRS]:
            try:
                host, port = split_host_port(addr)
                found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
            except (OSError, UnicodeError, NetworkError) as error:
                dial.reason = f"{addr}: {error}"
                continue
            for _, _, _, _, where in found:
                ways = self.ways_to(where)
                if not ways:
                    dial.reason = f"{addr}: no socket of this node reaches it"
                for way in ways:
                    self._attempt(dial, way)
        dial.lookup = None
        self._check(dial)

    def ways_to(self, addr: Addr) -> list[Way]:
        """Straight to an address, from the first socket that sends there; none where no socket does."""
        family = socket.AF_INET if len(addr) == 2 else socket.AF_INET6
        for index, own in enumerate(self._carrier.sockets):
            if own.takes(family):
                return [Direct(index, own.mapped(addr))]
        return []

    def _attempt(self, dial: Dial, way: Way) -> None:
        if len(dial.attempts) < MAX_ATTEMPTS:
            dial.attempts.append(self._carrier.dial(dial.peer, way))

    def _when_not_reached(self, dial: Dial) -> Callable[[str], None]:
        def not_reached(reason: str) -> None:
            dial.num_reaching = max(dial.num_reaching - 1, 0)
            dial.reason = reason
            self._check(dial)

        return not_reached

    def _check(self, dial: Dial) -> None:
        if dial.is_hopeless:
            self._end(dial)

    def _end(self, dial: Dial) -> None:
        """It did not get through."""
        if self._dials.get(dial.peer) is not dial:
            return
        standby = dial.standby if dial.standby is not None and not dial.standby[0].link.is_over else None
        if standby is not None:
            self._owner.let_in(standby)
            return
        self.take(dial.peer)
        self._owner.dialled_in_vain(dial)


def _made_up(addr: str) -> PeerId:
    """An id that is nobody's, for whoever is at an address."""
    return PeerId(hashlib.sha256(b"whoever is at " + addr.encode()).digest()[:PEER_DIGEST_BYTES])
