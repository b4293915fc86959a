"""Carrier: moves datagrams between sockets and links on an asyncio loop, and calls links when their time has come.

It decides nothing about peers: what links tell goes to ``tell``, who is let in is endpoint.py's, and where a datagram
goes is paths.py's. A datagram finds its link by the connection id in it (RFC 9000, section 5.1); ids are 8 bytes of
chance, and no end ever changes them.
"""

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from .admission import (
    HANDSHAKE_S,
    HANDSHAKES_PER_S,
    HINTS_PER_S,
    MAX_HALF_OPEN,
    MAX_HANDSHAKES,
    Known,
    Rate,
    Retries,
    parse_initial,
)
from .identity import PeerId
from .link import Link, LinkEvent, Over
from .paths import SITE_DATAGRAM_BYTES, Addr, Outgoing, Path, is_probe, tag_of
from .quic import CONNECTION_ID_BYTES, Credentials, MutualQuic
from .udp import UdpSocket, split_host_port
from .wire import INSTANCE_BYTES, PATH_KEY_BYTES, PATH_TAG_BYTES, Hello

_HINT = b"\x03"  # "that connection is none of mine"; like a probe it has not the bit 0x40 of QUIC's packets


@dataclass(eq=False, slots=True)
class Connection:
    """A link, and what is known of it.

    Attributes:
        dialled: whom, where this end did.
        began: when.
        peer: whose key was shown, once that is proven and right.
        known: once it is let in.
        is_stranger: it dialled us and is on no list.
    """

    link: Link
    path: Path
    socket: UdpSocket
    hello: Hello
    dialled: PeerId | None
    began: float
    peer: PeerId | None = None
    known: Known | None = None
    is_stranger: bool = False
    ids: list[bytes] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None


class Carrier:
    """All connections of a node, whether they have been let in or not.

    Args:
        tell: gets what each link tells.
        max_datagram_bytes: send no larger ones.
    """

    def __init__(
        self,
        credentials: Credentials,
        tell: Callable[[Connection, LinkEvent], None],
        max_datagram_bytes: int = SITE_DATAGRAM_BYTES,
    ) -> None:
        self._credentials = credentials
        self._tell = tell
        self._max_datagram_bytes = max_datagram_bytes
        self._loop = asyncio.get_running_loop()
        self._instance = os.urandom(INSTANCE_BYTES)
        self._retries = Retries()
        self._sockets: list[UdpSocket] = []
        self._by_id: dict[bytes, Connection] = {}
        self._by_tag: dict[bytes, Connection] = {}  # every connection once, whatever ids it has
        self._unsent: dict[Connection, None] = {}
        self._handshakes, self._proven_handshakes = Rate(HANDSHAKES_PER_S), Rate(HANDSHAKES_PER_S)
        self._hints = Rate(HINTS_PER_S)
        self.is_held = False  # see Link.hold; for connections to come

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

    def dial(self, peer: PeerId, socket: UdpSocket, addr: Addr) -> Connection:
        """A connection to ``peer`` at ``addr``; its first datagram has left."""
        connection = self._add(MutualQuic(self._credentials), socket, addr, peer)
        self._transmit(connection)
        return connection

    def send_soon(self, connection: Connection) -> None:
        """Send what the link has once the loop's turn is over: several messages are one batch."""
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
            connection.socket.send(datagrams, connection.path.addr)
        if connection.timer is not None:
            connection.timer.cancel()
        for connection_id in connection.ids:
            self._by_id.pop(connection_id, None)
        self._by_tag.pop(connection.hello.path_tag, None)
        self._unsent.pop(connection, None)

    def close(self, code: int, reason: str) -> None:
        """End all connections, and give the sockets back."""
        for connection in tuple(self._by_tag.values()):
            self.end(connection, code, reason)
        for socket in self._sockets:
            self._loop.remove_reader(socket.fileno())
            self._loop.remove_writer(socket.fileno())
            socket.close()

    def begin_path(self, connection: Connection, peers: Hello) -> None:
        """Both ends have let each other in: look after the path from now on."""
        connection.path.rtt_s = connection.link.quic.min_rtt_s
        self._send_probes(connection, connection.path.begin(connection.hello, peers, self._loop.time()))
        self._arm(connection)

    # ---- datagrams in

    def _on_readable(self, socket: UdpSocket) -> None:
        now = self._loop.time()
        touched: dict[Connection, None] = {}
        for datagram, addr in socket.receive():
            connection = self._receive(socket, datagram, addr, now)
            if connection is not None:
                touched[connection] = None
        for addr in socket.refused() if socket.has_errors else ():
            self._on_refused(addr, now)
        for connection in touched:
            self._advance(connection)

    def _receive(self, socket: UdpSocket, datagram: bytes, addr: Addr, now: float) -> Connection | None:
        """Hand a datagram to its link, and say which that is."""
        first = datagram[0] if datagram else 0
        is_long = bool(first & 0x80)  # RFC 8999: the one bit that no version changes
        if not is_long and not first & 0x40:
            self._take_own(datagram, addr, now)
            return None
        destination = (
            datagram[6 : 6 + datagram[5]] if is_long and len(datagram) > 6 else datagram[1 : 1 + CONNECTION_ID_BYTES]
        )
        connection = self._by_id.get(destination)
        if connection is None:
            if is_long:
                return self._accept(socket, datagram, addr, now)
            self._send_hint(socket, destination, addr, now)
        elif connection.link.receive(datagram, now):
            connection.socket = socket
            if addr != connection.path.addr:
                self._send_probes(connection, connection.path.heard_from(addr, now))
        return connection

    def _accept(self, socket: UdpSocket, datagram: bytes, addr: Addr, now: float) -> Connection | None:
        """A connection that begins, if it may."""
        initial = parse_initial(datagram)
        if initial is None:
            return None
        num_half_open = sum(not one.link.is_proven for one in self._by_tag.values())
        original_id: bytes | None = initial.destination_id
        retry_id: bytes | None = None
        if initial.token:
            original_id, retry_id = self._retries.original_id(initial, addr, now), initial.destination_id
            if original_id is None or num_half_open >= MAX_HANDSHAKES or not self._proven_handshakes.take(now):
                return None
        elif num_half_open >= MAX_HALF_OPEN or not self._handshakes.take(now):
            socket.send((self._retries.packet(initial, addr, now),), addr)
            return None
        connection = self._add(MutualQuic(self._credentials, original_id, retry_id), socket, addr, None)
        if not connection.link.receive(datagram, now):  # garbage: what an Initial's keys did not make
            connection.link.discard()
            self.forget(connection)
            return None
        self._add_id(connection, initial.destination_id)
        return connection

    def _take_own(self, datagram: bytes, addr: Addr, now: float) -> None:
        """A probe, or a hint."""
        if datagram == _HINT:
            self._on_hint(addr, now)
        elif is_probe(datagram) and (connection := self._by_tag.get(tag_of(datagram))) is not None:
            self._send_probes(connection, connection.path.take(datagram, addr, now))
            self._arm(connection)

    def _on_refused(self, addr: Addr, now: float) -> None:
        """The machine at ``addr`` says that no program listens; the kernel has seen that it speaks of our datagram."""
        for connection in self._at(addr):
            if connection.link.is_proven:
                connection.link.hint_gone(now)
                self.send_soon(connection)
            else:
                connection.link.discard()
                self._tell(connection, Over("no node listens there"))

    def _on_hint(self, addr: Addr, now: float) -> None:
        """Somebody who can write ``addr`` as his own says that no such connection is there."""
        for connection in self._at(addr):
            connection.link.hint_gone(now)
            self.send_soon(connection)

    def _send_hint(self, socket: UdpSocket, destination: bytes, addr: Addr, now: float) -> None:
        """Tell a peer of an earlier process that it waits in vain.

        QUIC's own stateless reset (RFC 9000, section 10.3) needs a token that the earlier process has taken along.
        """
        if len(destination) == CONNECTION_ID_BYTES and self._hints.take(now):
            socket.send((_HINT,), addr)

    def _at(self, addr: Addr) -> list[Connection]:
        return [one for one in self._by_tag.values() if one.path.addr[:2] == addr[:2]]

    # ---- datagrams out, and time

    def _advance(self, connection: Connection) -> None:
        """Tell what the link has to tell; what it has to send is sent with the answer, if that comes at once."""
        for event in connection.link.events():
            self._tell(connection, event)
        if connection.hello.path_tag in self._by_tag:
            self.send_soon(connection)

    def _transmit(self, connection: Connection) -> None:
        self._unsent.pop(connection, None)
        socket, addr = connection.socket, connection.path.addr
        connection.link.quic.max_datagram_bytes = connection.path.datagram_bytes
        for datagrams in connection.link.transmit(self._loop.time()):
            socket.send(datagrams, addr)
        if socket.has_backlog:
            self._loop.add_writer(socket.fileno(), self._on_writable, socket)
        self._arm(connection)

    def _send_all(self) -> None:
        for connection in tuple(self._unsent):
            self._transmit(connection)

    def _send_probes(self, connection: Connection, outgoing: Iterable[Outgoing]) -> None:
        for datagram, addr in outgoing:
            connection.socket.send((datagram,), addr)

    def _on_writable(self, socket: UdpSocket) -> None:
        socket.send()
        if not socket.has_backlog:
            self._loop.remove_writer(socket.fileno())

    def _arm(self, connection: Connection) -> None:
        """Set the timer."""
        soonest = min(
            connection.link.next_deadline(),
            connection.path.next_deadline(),
            float("inf") if connection.link.is_open else connection.began + HANDSHAKE_S,
        )
        if connection.timer is not None:
            if connection.timer.when() == soonest:
                return
            connection.timer.cancel()
        connection.timer = self._loop.call_at(soonest, self._on_timer, connection)

    def _on_timer(self, connection: Connection) -> None:
        connection.timer = None
        now = self._loop.time()
        if not connection.link.is_open and now >= connection.began + HANDSHAKE_S:
            self._tell(connection, Over("it does not answer"))
            return
        connection.path.rtt_s = connection.link.quic.min_rtt_s
        self._send_probes(connection, connection.path.handle_deadline(now))
        event = connection.link.handle_deadline(now)
        if event is not None:
            self._tell(connection, event)
        else:
            self._advance(connection)

    # ---- the tables

    def _add(self, quic: MutualQuic, socket: UdpSocket, addr: Addr, dialled: PeerId | None) -> Connection:
        now = self._loop.time()
        hello = Hello(self._instance, os.urandom(PATH_TAG_BYTES), os.urandom(PATH_KEY_BYTES))
        path = Path(addr, os.urandom, self._max_datagram_bytes)
        connection = Connection(Link(quic, now), path, socket, hello, dialled, now)
        connection.link.hold(self.is_held)
        self._by_tag[hello.path_tag] = connection
        self._add_id(connection, quic.host_cid)
        return connection

    def _add_id(self, connection: Connection, connection_id: bytes) -> None:
        connection.ids.append(connection_id)
        self._by_id[connection_id] = connection
