"""Endpoint: who a node is connected with. One connection with each peer, dialled by either.

It looks at the key that a peer has shown before anything else of it is read, lets it in or not, and chooses when two
ends dial each other at once. Not here: sockets and timers (carrier.py), and the process it runs in.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..errors import LinkError, NetworkError
from .admission import HANDSHAKE_S, Known, keeps_old, why_refused
from .carrier import Carrier, Connection
from .identity import Identity, PeerId
from .link import CLOSED, DUPLICATE, REFUSED, Greeted, LinkEvent, Over, Proven
from .messages import Close, Message, Refuse
from .paths import SITE_DATAGRAM_BYTES
from .quic import Credentials
from .switchboard import Event, PeerDown, PeerStats, PeerUp, Received
from .udp import join_host_port, split_host_port
from .wire import Hello

logger = logging.getLogger(__name__)

MAX_DIAL_ADDRS = 16  # wire.MAX_ADDRS; all are tried at once, one Initial of 1,200 bytes each


@dataclass(slots=True)
class _Dial:
    """An attempt to reach a peer at several addresses, of which the first to answer wins."""

    timer: asyncio.TimerHandle
    attempts: list[Connection] = field(default_factory=list)
    lookup: "asyncio.Task[None] | None" = None
    standby: tuple[Connection, Known, Hello] | None = (
        None  # the peer has dialled us meanwhile; taken if we do not get through
    )
    reason: str = "it does not answer"


class Endpoint:
    """All peers of a node.

    Args:
        allow: who may connect; None is everybody. Whom this node dials itself is let in anyway.
        tell: gets every event.
        max_datagram_bytes: send no larger ones, whatever the path carries.
    """

    def __init__(
        self,
        identity: Identity,
        allow: frozenset[PeerId] | None,
        tell: Callable[[Event], None],
        max_datagram_bytes: int = SITE_DATAGRAM_BYTES,
    ) -> None:
        self.peer_id = identity.peer_id
        self._allow = allow
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._carrier = Carrier(Credentials(identity), self._on_event, max_datagram_bytes)
        self._peers: dict[PeerId, Connection] = {}
        self._dials: dict[PeerId, _Dial] = {}

    @property
    def addrs(self) -> tuple[str, ...]:
        """See Switchboard."""
        return tuple(addr for one in self._carrier.sockets for addr in one.addrs())

    def listen(self, addrs: Sequence[str]) -> None:
        """Open a socket for each HOST:PORT; port 0 is any. Raises NetworkError."""
        self._carrier.listen(addrs)

    def dial(self, peer: PeerId, addrs: Sequence[str]) -> None:
        """See Switchboard."""
        if peer in self._peers or peer in self._dials:
            return
        if peer == self.peer_id:
            self._tell(PeerDown(peer, "this is the node itself"))
            return
        dial = _Dial(self._loop.call_later(HANDSHAKE_S, self._end_dial, peer))
        self._dials[peer] = dial
        dial.lookup = self._loop.create_task(self._try_all(peer, dial, tuple(addrs)[:MAX_DIAL_ADDRS]))

    def send(self, peer: PeerId, message: Message) -> None:
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
        for peer in tuple(self._dials):
            self._take_dial(peer)
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
            why = why_refused(peer, self.peer_id, self._allow, num_strangers)
            if why is not None:
                logger.info("peer=%s addr=%s: refused: %s", peer, connection.path.addr, why)
                self._carrier.end(connection, REFUSED, why)
            else:
                connection.peer = peer
                connection.is_stranger = self._allow is None
        elif peer != connection.dialled:
            logger.warning("peer=%s addr=%s: %s answered", connection.dialled, connection.path.addr, peer)
            self._carrier.end(connection, REFUSED, "you are not whom I dialled")
            self._fail_attempt(connection, f"another key answers there: {peer}")
        else:
            connection.peer = peer
            connection.link.greet(connection.hello)

    def _on_greeted(self, connection: Connection, hello: Hello) -> None:
        """The other end has let us in, or, where it dialled, asks to be let in."""
        peer = connection.peer
        assert peer is not None
        dialler = self.peer_id if connection.dialled else peer
        known = Known(dialler, hello.instance, self._loop.time())
        old = self._peers.get(peer)
        if old is not None:
            assert old.known is not None
            if keeps_old(old.known, known):
                self._carrier.end(connection, DUPLICATE, "we are connected already")
                return
            self._lose(old, DUPLICATE, "it has connected anew")
        dial = self._dials.get(peer)
        if connection.dialled is None:
            if dial is not None and dial.standby is None and self.peer_id < peer:
                dial.standby = (connection, known, hello)  # two dials at once: ours wins, if it gets through
                return
            connection.link.greet(connection.hello)
        self._let_in(connection, known, hello)

    def _let_in(self, connection: Connection, known: Known, hello: Hello) -> None:
        peer = connection.peer
        assert peer is not None
        connection.known = known
        self._peers[peer] = connection
        if peer in self._dials:
            self._take_dial(peer, keep=connection)
        self._carrier.begin_path(connection, hello)
        self._carrier.send_soon(connection)
        logger.info("peer=%s addr=%s: connected", peer, connection.path.addr)
        self._tell(PeerUp(peer))

    def _on_message(self, connection: Connection, message: Message) -> None:
        assert connection.peer is not None
        if isinstance(message, Close):  # this hop sends no more of it to anybody
            for other in self._peers.values():
                other.link.end_session(message.session)
                self._carrier.send_soon(other)
        elif isinstance(message, Refuse):
            connection.link.end_session(message.session)
        self._tell(Received(connection.peer, message))

    def _on_over(self, connection: Connection, over: Over) -> None:
        self._carrier.forget(connection)
        peer = connection.peer or connection.dialled
        if peer is not None and self._peers.get(peer) is connection:
            del self._peers[peer]
            logger.info("peer=%s addr=%s: gone: %s", peer, connection.path.addr, over.reason)
            self._tell(PeerDown(peer, over.reason))
        elif connection.dialled is not None:
            self._fail_attempt(connection, over.reason, is_duplicate=over.code == DUPLICATE)

    def _lose(self, connection: Connection, code: int, reason: str) -> None:
        """End a connection that was let in."""
        assert connection.peer is not None
        self._carrier.end(connection, code, reason)
        del self._peers[connection.peer]
        logger.info("peer=%s addr=%s: ended: %s", connection.peer, connection.path.addr, reason)
        self._tell(PeerDown(connection.peer, reason))

    # ---- dialling

    async def _try_all(self, peer: PeerId, dial: _Dial, addrs: tuple[str, ...]) -> None:
        """Send an Initial to every address there is; names are looked up one after the other."""
        if not addrs:
            dial.reason = "no address of it is known"
        for addr in addrs:
            try:
                host, port = split_host_port(addr)
                found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
            except (OSError, UnicodeError, NetworkError) as error:
                dial.reason = f"{addr}: {error}"
                continue
            for family, _, _, _, where in found[:MAX_DIAL_ADDRS]:
                own = next((one for one in self._carrier.sockets if one.takes(family)), None)
                if own is None:
                    dial.reason = f"{addr}: no socket of this node reaches it"
                elif len(dial.attempts) < MAX_DIAL_ADDRS:
                    dial.attempts.append(self._carrier.dial(peer, own, own.mapped(where)))
        dial.lookup = None
        if not dial.attempts:
            self._end_dial(peer)

    def _fail_attempt(self, connection: Connection, reason: str, is_duplicate: bool = False) -> None:
        """One address did not lead there. Where the peer says that it has a connection, that one is waited for."""
        assert connection.dialled is not None
        dial = self._dials.get(connection.dialled)
        if dial is None or connection not in dial.attempts:
            return
        dial.attempts.remove(connection)
        if not is_duplicate:
            dial.reason = f"{join_host_port(*connection.path.addr[:2])}: {reason}"
            if not dial.attempts and dial.lookup is None:
                self._end_dial(connection.dialled)

    def _end_dial(self, peer: PeerId) -> None:
        """It did not get through."""
        standby, reason = self._dials[peer].standby, self._dials[peer].reason
        self._take_dial(peer, keep=standby[0] if standby else None)
        if standby is None or standby[0].link.is_over:
            self._tell(PeerDown(peer, reason))
        else:
            standby[0].link.greet(standby[0].hello)
            self._let_in(*standby)

    def _take_dial(self, peer: PeerId, keep: Connection | None = None) -> None:
        """Stop trying, and end what was tried."""
        dial = self._dials.pop(peer)
        dial.timer.cancel()
        if dial.lookup is not None:
            dial.lookup.cancel()
        tried = [*dial.attempts, *([dial.standby[0]] if dial.standby else [])]
        for connection in tried:
            if connection is not keep:
                self._carrier.end(connection, DUPLICATE, "we are connected already")


def _stats_of(connection: Connection) -> PeerStats:
    link = connection.link
    addr = join_host_port(*connection.path.addr[:2])
    return PeerStats(addr, link.quic.smoothed_rtt_s, link.sent_bytes, link.received_bytes, link.queued_bytes)
