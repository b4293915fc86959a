"""ProcessSwitchboard: the Switchboard of a real node. Its network lives in a process of its own (network_child.py).

Sends are writes into a socket pair, which that process always reads; events are read from it. Not here: anything that
imports QUIC.
"""

import contextlib
import logging
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import NetworkError
from .announcement import parse
from .directory import Via
from .identity import Identity, PeerId
from .messages import Message
from .pipe import (
    Dial,
    Down,
    Failed,
    HeardOf,
    Log,
    Publish,
    Ready,
    Record,
    RecordReader,
    Start,
    Stats,
    Stop,
    Unheard,
    Up,
    pack_message,
    pack_order,
)
from .switchboard import Event, Heard, PeerDown, PeerStats, PeerUp, Received, Vanished
from .wire import Part

START_S = 30.0  # Python and its imports take 0.5 s; a loaded machine ten times that
STOP_S = 2.0  # the child sends a datagram to each peer, and ends
SEND_S = 30.0  # the child reads at every turn; where it has not for so long, it hangs
READ_BYTES = 1 << 20
_MAX_PARTS = 64  # in one write: of some twenty messages, and far below what the kernel takes
PIPE_BUFFER_BYTES = 4 << 20  # asked for, see network_child.py
DEFAULT_MAX_DATAGRAM_BYTES = 8900  # paths.SITE_DATAGRAM_BYTES, which would import QUIC
_CHILD = "hopformer.net.network_child"


@dataclass(frozen=True, slots=True)
class MeshPart:
    """What a node takes part in, beside being dialled.

    Attributes:
        relays: HOST:PORT or PEER_ID@HOST:PORT each, through which it is to be reached.
        is_watching: it wants to hear what others announce there.
        lan: the addresses of the interfaces on which it looks for others, empty for all; None for not at all.
        network: whose members are let in, beside those that are allowed by name; None for an open one.
        membership: what it shows of that.
        ice: it looks for ways to peers by ICE too.
    """

    relays: tuple[str, ...] = ()
    is_watching: bool = False
    lan: tuple[str, ...] | None = None
    network: PeerId | None = None
    membership: bytes = b""
    ice: bool = False


class ProcessSwitchboard:
    """See Switchboard. ``start`` makes one.

    Args:
        pipe: to the child, which has been told to start.
    """

    def __init__(self, peer_id: PeerId, pipe: socket.socket, child: "subprocess.Popen[bytes]") -> None:
        self._peer_id = peer_id
        self._pipe = pipe
        self._child = child
        self._reader = RecordReader()
        self._buffer = memoryview(bytearray(READ_BYTES))  # a fresh one for each read costs more than the read
        self._events: list[Event] = []
        self._stats: dict[PeerId, PeerStats] = {}
        self._addrs: tuple[str, ...] | None = None
        self._relays: tuple[str, ...] = ()
        self._relay_problems: tuple[str, ...] = ()
        self._end: str | None = None  # how the child ended
        self._is_closed = False

    @classmethod
    def start(
        cls,
        identity: Identity,
        listen: Sequence[str],
        allow: Iterable[PeerId] | None = None,
        max_datagram_bytes: int = DEFAULT_MAX_DATAGRAM_BYTES,
        mesh: MeshPart | None = None,
    ) -> "ProcessSwitchboard":
        """Begin a node's network.

        Args:
            listen: HOST:PORT each; port 0 is any that is free.
            allow: the peers that may connect; None is everybody.
            max_datagram_bytes: send no larger ones, whatever a path carries; at least 1,200.
            mesh: what else it takes part in; by default nothing.

        Raises:
            NetworkError: an address is taken, the process does not start, or no relay lets this node in, where that
                is how it takes part.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            # -P: without it the folder that the user is in could shadow modules; its own group: no Ctrl-C
            command = [sys.executable, "-P", "-m", _CHILD, str(theirs.fileno())]
            try:
                child = subprocess.Popen(
                    command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, process_group=0
                )
            except OSError as error:
                ours.close()
                raise NetworkError(f"the network's process cannot be started: {error.strerror}") from error
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIPE_BUFFER_BYTES)
        switchboard = cls(identity.peer_id, ours, child)
        digests = None if allow is None else tuple(peer.digest for peer in allow)
        mesh = mesh or MeshPart()
        start = Start(
            seed=identity.seed,
            listen=tuple(listen),
            allow=digests,
            max_datagram_bytes=max_datagram_bytes,
            relays=mesh.relays,
            is_watching=mesh.is_watching,
            lan=mesh.lan,
            network=None if mesh.network is None else mesh.network.digest,
            membership=mesh.membership,
            ice=mesh.ice,
            log_level=logging.getLogger(__name__).getEffectiveLevel(),
        )
        try:
            switchboard._write(pack_order(start))
            switchboard._await_ready()
        except NetworkError:
            switchboard.close()
            raise
        return switchboard

    @property
    def peer_id(self) -> PeerId:
        """See Switchboard."""
        return self._peer_id

    @property
    def addrs(self) -> tuple[str, ...]:
        """See Switchboard."""
        assert self._addrs is not None
        return self._addrs

    @property
    def relays(self) -> tuple[str, ...]:
        """PEER_ID@HOST:PORT of the relays that this node may be reached through now."""
        return self._relays

    @property
    def relay_problems(self) -> tuple[str, ...]:
        """See MeshSwitchboard."""
        return self._relay_problems

    @property
    def child_pid(self) -> int:
        """The network's process."""
        return self._child.pid

    def fileno(self) -> int:
        """Becomes readable when ``poll`` may have something; for an owner with a loop of its own."""
        return self._pipe.fileno()

    def now(self) -> float:
        """See Switchboard."""
        return time.monotonic()

    def dial(self, peer: PeerId, addrs: Sequence[str]) -> None:
        """See Switchboard."""
        self._write(pack_order(Dial(peer.digest, tuple(addrs))))

    def publish(self, announcement: bytes | None) -> None:
        """Announce this wherever the node takes part, until the next; None takes it back.

        It is a signed announcement without addresses, relays and network, which the network's process fills in.
        """
        self._write(pack_order(Publish(announcement)))

    def send(self, peer: PeerId, message: Message) -> None:
        """See Switchboard. Raises WireError: the message is beyond the wire's limits."""
        self._write(pack_message(peer, message))

    def send_all(self, messages: Iterable[tuple[PeerId, Message]]) -> None:
        """See Switchboard. Raises WireError: a message is beyond the wire's limits."""
        self._write([part for peer, message in messages for part in pack_message(peer, message)])

    def poll(self, timeout_s: float | None) -> list[Event]:
        """See Switchboard. Raises NetworkError: the network's process has ended."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._read()
        while not self._events:
            if self._end is not None:
                raise NetworkError(self._end)
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            self._wait(left)
            self._read()
        events, self._events = self._events, []
        return events

    def stats(self) -> dict[PeerId, PeerStats]:
        """See Switchboard."""
        return dict(self._stats)

    def close(self) -> None:
        """See Switchboard."""
        if self._is_closed:
            return
        self._is_closed = True
        with contextlib.suppress(OSError):
            self._pipe.sendmsg(pack_order(Stop()))
        self._pipe.close()
        try:
            self._child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while self._addrs is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise NetworkError(f"the network's process is not ready after {START_S:.0f} s")
            self._wait(left)
            self._read()
            if self._end is not None:
                raise NetworkError(self._end)

    def _write(self, parts: Sequence[Part]) -> None:
        """All of it. That the child has ended is told by ``poll``."""
        left = [memoryview(part) for part in parts]
        while left:
            try:
                num_bytes = self._pipe.sendmsg(left[:_MAX_PARTS])
            except BlockingIOError:
                if select.select([], [self._pipe], [], SEND_S)[1]:
                    continue
                self._child.kill()
                raise NetworkError(f"the network's process reads nothing for {SEND_S:.0f} s and was ended") from None
            except OSError:
                return
            while left and num_bytes >= len(left[0]):
                num_bytes -= len(left.pop(0))
            if num_bytes:
                left[0] = left[0][num_bytes:]

    def _wait(self, timeout_s: float | None) -> None:
        """For something from the child."""
        select.select([self._pipe], [], [], timeout_s)

    def _read(self) -> None:
        """Take what the child has said."""
        if self._end is not None:
            return
        try:
            num_bytes = self._pipe.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            num_bytes = 0
        if num_bytes == 0:
            self._end = f"the network's process has ended{self._exit_status()}; start the node again"
        for record in self._reader.feed(self._buffer[:num_bytes]):
            self._take(record)

    def _take(self, record: Record) -> None:
        if isinstance(record, tuple):
            self._events.append(Received(*record))
        elif isinstance(record, Up):
            self._events.append(PeerUp(PeerId(record.peer)))
        elif isinstance(record, Down):
            peer = PeerId(record.peer)
            self._stats.pop(peer, None)
            self._events.append(PeerDown(peer, record.reason))
        elif isinstance(record, Stats):
            self._stats = {
                PeerId(one.peer): PeerStats(one.addr, one.rtt_s, one.sent_bytes, one.received_bytes, one.queued_bytes)
                for one in record.peers
            }
        elif isinstance(record, Ready):
            self._addrs, self._relays, self._relay_problems = record.addrs, record.relays, record.problems
        elif isinstance(record, HeardOf):
            self._events.append(Heard(parse(record.announcement, time.time()), record.announcement, Via(record.via)))
        elif isinstance(record, Unheard):
            self._events.append(Vanished(PeerId(record.peer)))
        elif isinstance(record, Log):
            logging.getLogger(record.logger).log(record.level, "%s", record.text)
        else:
            assert isinstance(record, Failed)
            self._end = record.reason

    def _exit_status(self) -> str:
        try:
            return f" with exit status {self._child.wait(STOP_S)}"
        except subprocess.TimeoutExpired:
            return ""
