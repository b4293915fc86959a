"""Carrier: moves datagrams between sockets and links on an asyncio loop, and calls links when their time has come.

It decides nothing about peers: what links tell goes to ``tell``, who is let in is endpoint.py's, and where a datagram
goes is paths.py's. A datagram finds its link by the connection id in it (RFC 9000, section 5.1); ids are 8 bytes of
chance, and no end ever changes them. A relayed one is unwrapped first, unless this node is the relay: then it goes to
``forwarder`` as it is.
"""

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from .admission import (
    HANDSHAKE_S,
    HANDSHAKES_PER_S,
    HINTS_PER_S,
    MAX_HALF_OPEN,
    MAX_HANDSHAKES,
    Rate,
    Retries,
    parse_initial,
)
from .connection import Connection
from .identity import PeerId
from .link import PATIENCE_S, RELAYED_PATIENCE_S, STRANDED_PATIENCE_S, Link, LinkEvent, Over, Proven
from .path_size import SITE_DATAGRAM_BYTES
from .paths import Outgoing, Path
from .probes import is_probe, tag_of
from .quic import CONNECTION_ID_BYTES, Credentials, MutualQuic
from .stun import ANSWERS_PER_S, is_request, response
from .udp import UdpSocket, split_host_port
from .ways import CHANNEL_PREFIX_BYTES, Direct, Ice, Relayed, Way, is_relayed
from .wire import INSTANCE_BYTES, PATH_KEY_BYTES, PATH_TAG_BYTES, Hello

_HINT = b"\x03"  # "that connection is none of mine"; like a probe it has not the bit 0x40 of QUIC's packets


class Forwarder(Protocol):
    """What a relay does with datagrams of channels."""

    def forward(self, datagram: bytes, way: Direct, now: float) -> None:
        """One has come on ``way``."""
        ...

    def flush(self) -> None:
        """These were all that had arrived: pass them on."""
        ...


class Carrier:
    """All connections of a node, whether they have been let in or not.

    Args:
        tell: gets what each link tells.
        membership: said in every Hello.
        max_datagram_bytes: send no larger ones.
        takes_sessions: this node is more than a relay.

    Attributes:
        forwarder: gets what is relayed; None where this node is no relay.
        moved: is called with every connection that takes another way.
    """

    def __init__(
        self,
        credentials: Credentials,
        tell: Callable[[Connection, LinkEvent], None],
        membership: bytes = b"",
        max_datagram_bytes: int = SITE_DATAGRAM_BYTES,
        takes_sessions: bool = True,
    ) -> None:
        self.forwarder: Forwarder | None = None
        self.moved: Callable[[Connection], None] = lambda _: None
        self._membership = membership
        self._credentials = credentials
        self._tell = tell
        self._max_datagram_bytes = max_datagram_bytes
        self._takes_sessions = takes_sessions
        self._loop = asyncio.get_running_loop()
        self._instance = os.urandom(INSTANCE_BYTES)
        self._retries = Retries()
        self._sockets: list[UdpSocket] = []
        self._by_id: dict[bytes, Connection] = {}
        self._by_tag: dict[bytes, Connection] = {}  # every connection once, whatever ids it has
        self._half_open: set[Connection] = set()  # whose handshake is not over
        self._channels: dict[bytes, tuple[Relayed, Connection]] = {}  # by what the other end's datagrams begin with
        self._ices: dict[Ice, Callable[[bytes], None]] = {}  # what sends on each
        self._unsent: dict[Connection, None] = {}
        self._handshakes, self._proven_handshakes = Rate(HANDSHAKES_PER_S), Rate(HANDSHAKES_PER_S)
        self._hints, self._hints_taken = Rate(HINTS_PER_S), Rate(HINTS_PER_S)
        self._stun_answers = Rate(ANSWERS_PER_S)
        self.is_held = False  # see Link.hold; for connections to come
        self._is_closed = False

    @property
    def sockets(self) -> tuple[UdpSocket, ...]:
        """All that listen."""
        return tuple(self._sockets)

    def listen(self, addrs: Sequence[str]) -> None:
        """Open a socket for each HOST:PORT; port 0 is any. Raises NetworkError."""
        for addr in addrs:
            socket = UdpSocket(*split_host_port(addr))
            self._sockets.append(socket)
            self._loop.add_reader(socket.fileno(), self._on_readable, socket)

    def dial(self, peer: PeerId, way: Way) -> Connection:
        """A connection to ``peer`` on ``way``; its first datagram has left."""
        connection = self._add(MutualQuic(self._credentials), way, peer)
        self._transmit(connection)
        return connection

    def send_soon(self, connection: Connection) -> None:
        """Send what the link has once the loop's turn is over: several messages are one batch."""
        if connection.hello.path_tag not in self._by_tag:
            return
        if not self._unsent:
            self._loop.call_soon(self._send_all)
        self._unsent[connection] = None

    def end(self, connection: Connection, code: int, reason: str) -> None:
        """Tell the peer that this is the end, and forget the connection. What it had to tell is not told."""
        connection.link.close(code, reason)
        self.forget(connection)

    def forget(self, connection: Connection) -> None:
        """The connection is no more."""
        for datagrams in connection.link.transmit(self._loop.time()):
            self.send(connection.path.way, datagrams)
        if connection.timer is not None:
            connection.timer.cancel()
        for connection_id in connection.ids:
            self._by_id.pop(connection_id, None)
        self._by_tag.pop(connection.hello.path_tag, None)
        self._half_open.discard(connection)
        self._unsent.pop(connection, None)

    def open_channel(self, way: Relayed, relay: Connection) -> None:
        """Take datagrams of a channel from now on; ``relay`` is the connection with the relay."""
        self._channels[way.peers_prefix] = way, relay

    def close_channel(self, way: Relayed) -> None:
        """Take no more of them. Connections on that way have to be told with ``lose``."""
        self._channels.pop(way.peers_prefix, None)

    def open_ice(self, way: Ice, send: Callable[[bytes], None]) -> None:
        """There is a pair of sockets; what comes through it is to be told with ``take_ice``."""
        self._ices[way] = send

    def close_ice(self, way: Ice) -> None:
        """There is no more. Connections on that way have to be told with ``lose``."""
        self._ices.pop(way, None)

    def take_ice(self, datagram: bytes, way: Ice) -> None:
        """A datagram has come through a pair of sockets."""
        connection = self._receive(datagram, way, self._loop.time())
        if connection is not None:
            self._advance(connection)

    def offer(self, connection: Connection, ways: Iterable[Way]) -> None:
        """Ways that may lead to a connection's peer."""
        self._follow(connection, connection.path.offer(ways, self._loop.time()))

    def lose(self, connection: Connection, way: Way, *, waits_for_relay: bool = False) -> None:
        """A way no longer leads to a connection's peer, see Path."""
        outgoing = connection.path.lose(way, self._loop.time(), waits_for_relay=waits_for_relay)
        self._follow(connection, outgoing)

    def heard_from(self, connection: Connection, way: Way) -> None:
        """What only a connection's peer can know has come on ``way``."""
        self._follow(connection, connection.path.heard_from(way, self._loop.time()))

    def is_full(self, way: Way) -> bool:
        """Whether the kernel takes no more from the socket now."""
        return isinstance(way, Direct) and self._sockets[way.socket].has_backlog

    def send(self, way: Way, datagrams: Iterable[bytes]) -> None:
        """Send datagrams on a way. Where it has ceased to be one they are lost, which QUIC repairs."""
        if isinstance(way, Relayed):
            channel = self._channels.get(way.peers_prefix)
            if channel is not None and isinstance(channel[1].path.way, Direct):
                self.send(channel[1].path.way, (way.prefix + datagram for datagram in datagrams))
            return
        if isinstance(way, Ice):
            for datagram in datagrams if way in self._ices else ():
                self._ices[way](datagram)
            return
        socket = self._sockets[way.socket]
        socket.send(datagrams, way.addr)
        if socket.has_backlog:
            self._loop.add_writer(socket.fileno(), self._on_writable, socket)

    def close(self, code: int, reason: str) -> None:
        """End all connections, and give the sockets back; a second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        for connection in tuple(self._by_tag.values()):
            self.end(connection, code, reason)
        for socket in self._sockets:
            self._loop.remove_reader(socket.fileno())
            self._loop.remove_writer(socket.fileno())
            socket.close()

    def begin_path(self, connection: Connection, peers: Hello) -> None:
        """Both ends have let each other in: look after the path from now on."""
        connection.path.rtt_s = connection.link.quic.min_rtt_s
        self._follow(connection, connection.path.begin(connection.hello, peers, self._loop.time()))

    # ---- datagrams in

    def _on_readable(self, socket: UdpSocket) -> None:
        now = self._loop.time()
        touched: dict[Connection, None] = {}
        index = self._sockets.index(socket)
        for datagram, addr in socket.receive():
            connection = self._unwrap(datagram, Direct(index, addr), now)
            if connection is not None:
                touched[connection] = None
        for addr in socket.refused() if socket.has_errors else ():
            self._on_refused(Direct(index, addr), now)
        if self.forwarder is not None:
            self.forwarder.flush()
        for connection in touched:
            self._advance(connection)

    def _unwrap(self, datagram: bytes, way: Direct, now: float) -> Connection | None:
        """As ``_receive``, of what may have come through a relay, or be on its way through this one."""
        if not is_relayed(datagram):
            return self._receive(datagram, way, now)
        if self.forwarder is not None:
            self.forwarder.forward(datagram, way, now)
            return None
        channel = self._channels.get(datagram[:CHANNEL_PREFIX_BYTES])
        return None if channel is None else self._receive(datagram[CHANNEL_PREFIX_BYTES:], channel[0], now)

    def _receive(self, datagram: bytes, way: Way, now: float) -> Connection | None:
        """Hand a datagram to its link, and say which that is."""
        first = datagram[0] if datagram else 0
        is_long = bool(first & 0x80)  # RFC 8999: the one bit that no version changes
        if not is_long and not first & 0x40:
            self._take_own(datagram, way, now)
            return None
        destination = (
            datagram[6 : 6 + datagram[5]] if is_long and len(datagram) > 6 else datagram[1 : 1 + CONNECTION_ID_BYTES]
        )
        connection = self._by_id.get(destination)
        if connection is None:
            if is_long:
                return self._accept(datagram, way, now)
            self._send_hint(destination, way, now)
        elif connection.link.receive(datagram, now) and way != connection.path.way:
            self._follow(connection, connection.path.heard_from(way, now))
        return connection

    def _accept(self, datagram: bytes, way: Way, now: float) -> Connection | None:
        """A connection that begins, if it may."""
        initial = parse_initial(datagram)
        if initial is None:
            return None
        num_half_open = len(self._half_open)
        original_id: bytes | None = initial.destination_id
        retry_id: bytes | None = None
        if initial.token:
            original_id, retry_id = self._retries.original_id(initial, way, now), initial.destination_id
            if original_id is None or num_half_open >= MAX_HANDSHAKES or not self._proven_handshakes.take(now):
                return None
        elif num_half_open >= MAX_HALF_OPEN or not self._handshakes.take(now):
            self.send(way, (self._retries.packet(initial, way, now),))
            return None
        connection = self._add(MutualQuic(self._credentials, original_id, retry_id), way, None)
        if not connection.link.receive(datagram, now):  # garbage: what an Initial's keys did not make
            connection.link.discard()
            self.forget(connection)
            return None
        self._add_id(connection, initial.destination_id)
        return connection

    def _take_own(self, datagram: bytes, way: Way, now: float) -> None:
        """A probe, or a hint, or where this node is a relay, STUN's question."""
        if datagram == _HINT:
            self._on_hint(way, now)
        elif self.forwarder is not None and is_request(datagram):
            if self._stun_answers.take(now):
                self.send(way, (response(datagram, way.addr),))
        elif is_probe(datagram) and (connection := self._by_tag.get(tag_of(datagram))) is not None:
            self._follow(connection, connection.path.take(datagram, way, now))

    def _on_refused(self, way: Direct, now: float) -> None:
        """The machine there says that no program listens; the kernel has seen that it speaks of our datagram."""
        for connection in self._on(way):
            if not connection.link.is_proven:
                connection.link.discard()
                self._tell(connection, Over("no node listens there"))
            elif len(connection.path.ways) > 1:
                self.lose(connection, connection.path.way)
            else:
                connection.link.hint_gone(now)
                self.send_soon(connection)

    def _on_hint(self, way: Way, now: float) -> None:
        """Somebody who can write that address as his own says that no such connection is there."""
        for connection in self._on(way) if self._hints_taken.take(now) else ():
            connection.link.hint_gone(now)
            self.send_soon(connection)

    def _send_hint(self, destination: bytes, way: Way, now: float) -> None:
        """Tell a peer of an earlier process that it waits in vain.

        QUIC's own stateless reset (RFC 9000, section 10.3) needs a token that the earlier process has taken along.
        """
        if len(destination) == CONNECTION_ID_BYTES and self._hints.take(now):
            self.send(way, (_HINT,))

    def _on(self, way: Way) -> list[Connection]:
        """The connections that use a way. An IPv6 address may have come with another flow or scope."""
        if not isinstance(way, Direct):
            return [one for one in self._by_tag.values() if one.path.way == way]
        ways = [(one, one.path.way) for one in self._by_tag.values()]
        return [one for one, own in ways if isinstance(own, Direct) and own.addr[:2] == way.addr[:2]]

    # ---- datagrams out, and time

    def _advance(self, connection: Connection) -> None:
        """Tell what the link has to tell; what it has to send is sent with the answer, if that comes at once."""
        for event in connection.link.events():
            if isinstance(event, Proven):
                self._half_open.discard(connection)
            self._tell(connection, event)
        self.send_soon(connection)

    def _transmit(self, connection: Connection) -> None:
        self._unsent.pop(connection, None)
        connection.link.quic.max_datagram_bytes = connection.path.datagram_bytes
        for datagrams in connection.link.transmit(self._loop.time()):
            self.send(connection.path.way, datagrams)
        self._arm(connection)

    def _send_all(self) -> None:
        for connection in tuple(self._unsent):
            self._transmit(connection)

    def _follow(self, connection: Connection, outgoing: Iterable[Outgoing]) -> None:
        """Send a path's probes; where it has taken another way, tell the link, and send what that has to say."""
        for datagram, way in outgoing:
            self.send(way, (datagram,))
        path, link = connection.path, connection.link
        if path.waits_for_relay:
            link.patience_s = STRANDED_PATIENCE_S
        else:
            link.patience_s = RELAYED_PATIENCE_S if isinstance(path.way, Relayed) else PATIENCE_S
        if path.way != connection.way:
            connection.way = path.way
            link.take_another_way(self._loop.time())
            self.send_soon(connection)
            self.moved(connection)
        self._arm(connection)

    def _on_writable(self, socket: UdpSocket) -> None:
        socket.send()
        if not socket.has_backlog:
            self._loop.remove_writer(socket.fileno())
            if self.forwarder is not None:
                self.forwarder.flush()

    def _arm(self, connection: Connection) -> None:
        """Set the timer, unless it is forgotten meanwhile."""
        if connection.hello.path_tag not in self._by_tag:
            return
        connection.path.is_busy = connection.link.is_busy
        soonest = min(
            connection.link.next_deadline(),
            connection.path.next_deadline(),
            float("inf") if connection.link.is_open else connection.began + HANDSHAKE_S,
        )
        connection.due = soonest
        if connection.timer is not None:
            if connection.timer.when() <= soonest:
                return  # it sees to it that another follows, and most deadlines are put off before they come
            connection.timer.cancel()
        connection.timer = self._loop.call_at(soonest, self._on_timer, connection)

    def _on_timer(self, connection: Connection) -> None:
        connection.timer = None
        now = self._loop.time()
        if now < connection.due:
            self._arm(connection)
            return
        if not connection.link.is_open and now >= connection.began + HANDSHAKE_S:
            self._tell(connection, Over("it does not answer"))
            return
        connection.path.rtt_s = connection.link.quic.min_rtt_s
        self._follow(connection, connection.path.handle_deadline(now))
        event = connection.link.handle_deadline(now)
        if event is not None:
            self._tell(connection, event)
        else:
            self._advance(connection)

    # ---- the tables

    def _add(self, quic: MutualQuic, way: Way, dialled: PeerId | None) -> Connection:
        now = self._loop.time()
        hello = Hello(self._instance, os.urandom(PATH_TAG_BYTES), os.urandom(PATH_KEY_BYTES), self._membership)
        path = Path(way, os.urandom, self._max_datagram_bytes)
        connection = Connection(Link(quic, now, self._takes_sessions), path, hello, dialled, now, way)
        connection.link.hold(self.is_held)
        self._by_tag[hello.path_tag] = connection
        self._half_open.add(connection)
        self._add_id(connection, quic.host_cid)
        return connection

    def _add_id(self, connection: Connection, connection_id: bytes) -> None:
        connection.ids.append(connection_id)
        self._by_id[connection_id] = connection
