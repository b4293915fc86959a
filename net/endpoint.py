"""Endpoint: who a node is connected with. One connection with each peer, dialled by either.

It looks at the key that a peer has shown before anything else of it is read, lets it in or not, and chooses when two
ends dial each other at once. A peer is dialled at its addresses and through the relays that it is said to be at; where
both lead to it, or it tells where it may be reached straight, the connection takes whichever is best (paths.py).
Not here: sockets and timers (carrier.py), dials (dialling.py), relays (relays.py), and the process it runs in.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from ..errors import LinkError, NetworkError
from .admission import Guests, Known, keeps_old
from .carrier import Carrier
from .connection import Connection
from .dialling import Dial, Dialling, Standby
from .identity import Identity, PeerId
from .link import CLOSED, DUPLICATE, REFUSED, Greeted, LinkEvent, Over, Proven
from .messages import Close, Message, Refuse
from .path_size import SITE_DATAGRAM_BYTES
from .quic import RECEIVE_WINDOW_BYTES, RELAY_WINDOW_BYTES, Credentials
from .relay_messages import Candidates, IceOffer, RelayMessage
from .relays import Relays
from .switchboard import Event, PeerDown, PeerStats, PeerUp, Received
from .ways import Relayed, Way, is_loopback, offered_addr, shown
from .wire import MAX_ADDRS, Hello

if TYPE_CHECKING:  # aioice is loaded where ICE is asked for
    from .ice import IceAgents

logger = logging.getLogger(__name__)

A_RELAY = "it is a relay, and serves no layers"


class Desk(Protocol):
    """What a node does with messages about relaying, beside being somebody's client."""

    def up(self, peer: PeerId, connection: Connection) -> None:
        """A peer is connected."""
        ...

    def down(self, peer: PeerId) -> None:
        """It is gone."""
        ...

    def take(self, peer: PeerId, message: RelayMessage) -> None:
        """It says something."""
        ...

    def moved(self, connection: Connection) -> None:
        """It is reached at another address than before."""
        ...


class Endpoint:
    """All peers of a node.

    Args:
        guests: who may connect; None is everybody. Whom this node dials itself is let in anyway.
        tell: gets every event.
        max_datagram_bytes: send no larger ones, whatever the path carries.
        membership: what this node shows to be let in where a network is closed.
        is_relay: it takes no sessions, so that each peer costs little.

    Attributes:
        desk: where this node is a relay.
        ice: where this node looks for ways by ICE too.
        punches: whether it tells peers where else it may be reached, so that they and it ask there.
        heard: gets announcements, and the PeerId of whoever announces nothing any more.
        revoked: gets revocations, whoever sends them.
        registered: is called when others may reach this node in another way than before.
    """

    def __init__(
        self,
        identity: Identity,
        guests: "Guests | frozenset[PeerId] | None",
        tell: Callable[[Event], None],
        max_datagram_bytes: int = SITE_DATAGRAM_BYTES,
        membership: bytes = b"",
        is_relay: bool = False,
    ) -> None:
        self.peer_id = identity.peer_id
        self.desk: Desk | None = None
        self.ice: IceAgents | None = None
        self.punches = True
        self.heard: Callable[[bytes | PeerId], None] = lambda _: None
        self.revoked: Callable[[bytes], None] = lambda _: None
        self.registered: Callable[[], None] = lambda: None
        self._guests = guests if isinstance(guests, Guests) else Guests(guests)
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        credentials = Credentials(identity, RELAY_WINDOW_BYTES if is_relay else RECEIVE_WINDOW_BYTES)
        self._carrier = Carrier(credentials, self._on_event, membership, max_datagram_bytes, not is_relay)
        self._carrier.moved = self._on_moved
        self._peers: dict[PeerId, Connection] = {}
        self._dials = Dialling(self, self._carrier)
        self.relays = Relays(
            self, self._carrier, lambda one: self.heard(one), lambda revocations: self.revoked(revocations)
        )

    @property
    def carrier(self) -> Carrier:
        """For who passes datagrams on."""
        return self._carrier

    @property
    def addrs(self) -> tuple[str, ...]:
        """See Switchboard."""
        return tuple(addr for one in self._carrier.sockets for addr in one.addrs())

    def listen(self, addrs: Sequence[str]) -> None:
        """Open a socket for each HOST:PORT; port 0 is any. Raises NetworkError."""
        self._carrier.listen(addrs)

    def dial(self, peer: PeerId, addrs: Sequence[str]) -> None:
        """See Switchboard."""
        if peer == self.peer_id:
            self._tell(PeerDown(peer, "this is the node itself"))
        elif self.relays.has(peer):
            self._tell(PeerDown(peer, A_RELAY))
        elif peer not in self._peers:
            self._dials.begin(peer, addrs, self.relays)

    def send(self, peer: PeerId, message: Message | RelayMessage) -> None:
        """See Switchboard. Raises WireError: the message is beyond the wire's limits."""
        connection = self._peers.get(peer)
        if connection is None:
            return
        try:
            connection.link.send(message)
        except LinkError as error:
            self._lose(connection, CLOSED, str(error))
            return
        if isinstance(message, Close | Refuse):
            connection.link.end_session(message.session)
        self._carrier.send_soon(connection)

    def hold(self, is_held: bool) -> None:
        """While it is held nobody reads the events, so peers get no more credit."""
        if is_held != self._carrier.is_held:
            self._carrier.is_held = is_held
            for connection in self._peers.values():
                connection.link.hold(is_held)
                self._carrier.send_soon(connection)

    def stats(self) -> dict[PeerId, PeerStats]:
        """See Switchboard."""
        return {peer: _stats_of(connection) for peer, connection in self._peers.items()}

    def close(self) -> None:
        """Tell all peers, and give everything back."""
        self.relays.close()
        if self.ice is not None:
            self.ice.close()
        self._dials.close()
        self._peers.clear()
        self._carrier.close(CLOSED, "it was shut down")

    # ---- what links tell

    def _on_event(self, connection: Connection, event: LinkEvent) -> None:
        if isinstance(event, Proven):
            self._on_proven(connection, event.peer)
        elif isinstance(event, Greeted):
            self._on_greeted(connection, event.hello)
        elif isinstance(event, Over):
            self._on_over(connection, event)
        elif connection.peer is not None and self._peers.get(connection.peer) is connection:
            self._on_message(connection, event)

    def _on_proven(self, connection: Connection, peer: PeerId | None) -> None:
        """The first thing that is known of the other end; nothing else of it was read."""
        if connection.dialled is None:
            num_strangers = sum(one.is_stranger for one in self._peers.values())
            why = self._guests.why_refused(peer, self.peer_id, num_strangers)
            if why is not None:
                logger.info("peer=%s addr=%s: refused: %s", peer, shown(connection.path.way), why)
                self._carrier.end(connection, REFUSED, why)
            else:
                connection.peer = peer
                connection.is_stranger = self._guests.are_strangers
            return
        if peer is not None and peer not in self._peers:
            self._dials.name(connection, peer)
        if peer in self._peers and self._is_known_relay(connection, peer):
            return
        if peer != connection.dialled:
            logger.info("peer=%s addr=%s: %s answered", connection.dialled, shown(connection.path.way), peer)
            self._carrier.end(connection, REFUSED, "you are not whom I dialled")
            self._dials.attempt_failed(connection, f"another key answers there: {peer}", REFUSED)
        else:
            connection.peer = peer
            connection.link.greet(connection.hello)

    def _is_known_relay(self, connection: Connection, peer: PeerId) -> bool:
        """Whether one that was dialled, whoever it would be, is a relay that this node is connected with already."""
        dial = None if connection.dialled is None else self._dials.get(connection.dialled)
        if dial is None or not dial.is_anybody or not self.relays.has(peer):
            return False
        self._dials.take(dial.peer)
        for addr in dial.relay_addrs:
            self.relays.is_up(addr, peer)
        return True

    def _on_greeted(self, connection: Connection, hello: Hello) -> None:
        """The other end has let us in, or, where it dialled, asks to be let in."""
        peer = connection.peer
        assert peer is not None
        why = None if connection.dialled else self._guests.why_no_member(peer, hello.membership)
        if why is not None:
            logger.info("peer=%s addr=%s: refused: %s", peer, shown(connection.path.way), why)
            self._carrier.end(connection, REFUSED, why)
            return
        dialler = self.peer_id if connection.dialled else peer
        known = Known(dialler, hello.instance, self._loop.time())
        old = self._peers.get(peer)
        if old is not None:
            assert old.known is not None
            if keeps_old(old.known, known):
                self._carrier.end(connection, DUPLICATE, "we are connected already")
                return
            self._lose(old, DUPLICATE, "it has connected anew", is_replaced=True)
        dial = self._dials.get(peer)
        if connection.dialled is None and dial is not None and dial.standby is None and self.peer_id < peer:
            dial.standby = (connection, known, hello)  # two dials at once: ours wins, if it gets through
            return
        self.let_in((connection, known, hello))

    def let_in(self, standby: Standby) -> None:
        """See DialOwner."""
        connection, known, hello = standby
        if connection.dialled is None:
            connection.link.greet(connection.hello)
        peer = connection.peer
        assert peer is not None
        connection.known = known
        connection.membership = hello.membership
        self._peers[peer] = connection
        dial = self._dials.take(peer, keep=connection)
        self._carrier.begin_path(connection, hello)
        self._carrier.send_soon(connection)
        logger.info("peer=%s addr=%s: connected", peer, shown(connection.path.way))
        if dial is not None and dial.relay_addrs:
            for addr in dial.relay_addrs:
                self.relays.is_up(addr, peer)
            if dial.is_peer:
                self._tell(PeerDown(peer, A_RELAY))
            return
        if self.desk is not None:
            self.desk.up(peer, connection)
        self._tell(PeerUp(peer))
        ways = self.relays.ways_to(peer)
        if ways:
            self._carrier.offer(connection, ways)
            self._send_candidates(connection)

    def dialled_in_vain(self, dial: Dial) -> None:
        """See DialOwner."""
        self.relays.leave(dial.peer)
        for addr in dial.relay_addrs:
            self.relays.failed(addr, dial.reason, is_refused=dial.is_refused)
        if dial.is_peer:
            self._tell(PeerDown(dial.peer, dial.reason))

    def _on_message(self, connection: Connection, message: Message | RelayMessage) -> None:
        peer = connection.peer
        assert peer is not None
        if isinstance(message, RelayMessage):
            if isinstance(message, Candidates):
                self._take_candidates(connection, message.addrs)
            elif isinstance(message, IceOffer):
                if self.ice is not None:
                    self.ice.take(peer, message)
            elif self.desk is not None:
                self.desk.take(peer, message)
            else:
                self.relays.take(peer, message)
            return
        if isinstance(message, Close):  # this hop sends no more of it to anybody
            for other in self._peers.values():
                other.link.end_session(message.session)
                self._carrier.send_soon(other)
        elif isinstance(message, Refuse):
            connection.link.end_session(message.session)
        self._tell(Received(peer, message))

    def _on_over(self, connection: Connection, over: Over) -> None:
        self._carrier.forget(connection)
        peer = connection.peer or connection.dialled
        if peer is not None and self._peers.get(peer) is connection:
            logger.info("peer=%s addr=%s: gone: %s", peer, shown(connection.path.way), over.reason)
            self._is_gone(peer, over.reason)
        elif connection.dialled is not None:
            self._dials.attempt_failed(connection, over.reason, over.code)

    def _lose(self, connection: Connection, code: int, reason: str, *, is_replaced: bool = False) -> None:
        """End a connection that was let in; where it is replaced, what leads to the peer is still needed."""
        assert connection.peer is not None
        self._carrier.end(connection, code, reason)
        logger.info("peer=%s addr=%s: ended: %s", connection.peer, shown(connection.path.way), reason)
        self._is_gone(connection.peer, reason, is_replaced=is_replaced)

    def _is_gone(self, peer: PeerId, reason: str, *, is_replaced: bool = False) -> None:
        del self._peers[peer]
        if self.relays.is_down(peer, reason):
            return
        if self.desk is not None:
            self.desk.down(peer)
        if self.ice is not None:
            self.ice.end(peer)
        if not is_replaced and self._dials.get(peer) is None:
            self.relays.leave(peer)
        self._tell(PeerDown(peer, reason))

    def refuse(self, peer: PeerId, why: str) -> None:
        """End the connection with one that was let in, and tell it why."""
        connection = self._peers.get(peer)
        if connection is not None:
            self._lose(connection, REFUSED, why)

    def recheck(self) -> None:
        """End connections with those that are no members any more, or not yet known to be revoked when they came."""
        for peer, connection in tuple(self._peers.items()):
            why = None if connection.dialled else self._guests.why_no_member(peer, connection.membership)
            if why is not None:
                self._lose(connection, REFUSED, why)

    # ---- ways

    def connection_of(self, peer: PeerId) -> Connection | None:
        """See RelayClient."""
        return self._peers.get(peer)

    def dial_relay(self, addr: str, relay: PeerId | None) -> None:
        """See RelayClient."""
        if relay is not None and relay in self._peers:
            self.relays.is_up(addr, relay)
        else:
            self._dials.begin_relay(addr, relay)

    def part_with_relay(self, relay: PeerId) -> None:
        """See RelayClient."""
        connection = self._peers.pop(relay, None)
        if connection is not None:
            self._carrier.end(connection, CLOSED, "it is not needed any more")

    def send_message(self, peer: PeerId, message: RelayMessage) -> None:
        """See RelayClient."""
        self.send(peer, message)

    def channel_opened(self, peer: PeerId, way: Relayed, *, is_asker: bool) -> None:
        """See RelayClient."""
        connection = self._peers.get(peer)
        if is_asker:
            self._dials.channel_opened(peer, way)
        if connection is not None:
            self._carrier.offer(connection, (way,))
            self._send_candidates(connection)

    def channel_closed(self, peer: PeerId, way: Relayed, *, waits_for_relay: bool) -> None:
        """See RelayClient."""
        connection = self._peers.get(peer)
        if connection is not None:
            self._carrier.lose(connection, way, waits_for_relay=waits_for_relay)

    def outside_changed(self) -> None:
        """See RelayClient."""
        for peer, connection in self._peers.items():
            if self.relays.ways_to(peer):
                self._send_candidates(connection)
        self.registered()

    def _send_candidates(self, connection: Connection) -> None:
        """Tell a peer that a relay leads to where else this node may be reached."""
        assert connection.peer is not None
        own = [addr for addr in self.addrs if "%" not in addr]
        addrs = tuple(dict.fromkeys((*self.relays.outside_addrs, *own)))[:MAX_ADDRS]
        if self.punches:
            self.send(connection.peer, Candidates(addrs))
        if self.ice is not None:
            self.ice.begin(connection.peer)

    def _take_candidates(self, connection: Connection, addrs: Sequence[str]) -> None:
        loopback = any(is_loopback(way) for way in connection.path.ways)
        ways: list[Way] = []
        try:
            for text in addrs:
                addr = offered_addr(text, loopback=loopback)
                if addr is not None:
                    ways += self._dials.ways_to(addr)
        except NetworkError as error:
            logger.info("peer=%s: %s", connection.peer, error)
        self._carrier.offer(connection, ways)

    def _on_moved(self, connection: Connection) -> None:
        logger.info("peer=%s addr=%s: takes another way", connection.peer, shown(connection.path.way))
        if self.desk is not None:
            self.desk.moved(connection)


def _stats_of(connection: Connection) -> PeerStats:
    link = connection.link
    return PeerStats(
        shown(connection.path.way), link.quic.smoothed_rtt_s, link.sent_bytes, link.received_bytes, link.queued_bytes
    )
