"""SharedSwitchboard: one node's network for two, a caller and a server of layers, each in a thread of its own.

A thread reads what happens and puts it where it belongs: who comes and goes is told to both, a message to the one that
it is for. Neither sees the other's sessions. While one of them does not read, nothing more is read for either, so that
what waits here is bounded and the peers are held back.
"""

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from enum import Enum, auto

from ..errors import NetworkError
from .identity import PeerId
from .messages import Ask, Close, Context, Draw, Lease, Message, Open, Reroute, Rollback, Step
from .switchboard import Event, MeshSwitchboard, PeerDown, PeerStats, PeerUp, Received

log = logging.getLogger(__name__)

MAX_WAITING_BYTES = 16 << 20  # that one of the two has not read; then nothing more is read: as network_child.HOLD_BYTES
EVENT_COST_BYTES = 256  # that each counts for beside its payload, as outbox.MESSAGE_COST_BYTES
READ_S = 0.25  # how soon the thread that reads notices the end
_TO_SERVERS = (Ask, Open, Reroute, Rollback, Close, Lease, Context, Draw)


class Role(Enum):
    """Which of the two."""

    CALLER = auto()
    SERVER = auto()


def role_of(message: Message, own: PeerId) -> Role:
    """Whom a message is for, on the node ``own``."""
    if isinstance(message, Step):  # rows that come back, or those of a hop's session
        return Role.CALLER if message.session.caller == own else Role.SERVER
    return Role.SERVER if isinstance(message, _TO_SERVERS) else Role.CALLER


class SharedSwitchboard:
    """Owner of the switchboard, of the thread that reads it, and of a port for each role.

    Args:
        board: which nobody else uses from now on.
    """

    def __init__(self, board: MeshSwitchboard) -> None:
        self._board = board
        self._sending = threading.Lock()  # around whatever writes to the board
        self._changed = threading.Condition()  # around all below
        self._connected: set[PeerId] = set()
        self._error: NetworkError | None = None
        self._is_over = False
        self.ports = {role: Port(self) for role in Role}
        self._thread = threading.Thread(target=self._read, name="network", daemon=True)

    @property
    def board(self) -> MeshSwitchboard:
        """The switchboard below."""
        return self._board

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def close(self) -> None:
        """End the connections and give everything back."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        with self._sending:
            self._board.close()

    def dial(self, port: "Port", peer: PeerId, addrs: Sequence[str]) -> None:
        """See Switchboard.dial; of a connection that the other role has, ``port`` is told at once."""
        with self._changed:
            if peer in self._connected:
                port.waiting.append(PeerUp(peer))
                self._changed.notify_all()
                return
        with self._sending:
            self._board.dial(peer, addrs)

    def send_all(self, messages: Iterable[tuple[PeerId, Message]]) -> None:
        """See Switchboard.send_all."""
        with self._sending:
            self._board.send_all(messages)

    def publish(self, announcement: bytes | None) -> None:
        """See MeshSwitchboard.publish."""
        with self._sending:
            self._board.publish(announcement)

    def poll(self, port: "Port", timeout_s: float | None) -> list[Event]:
        """See Switchboard.poll."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not port.waiting:
                if self._error is not None:
                    raise NetworkError(str(self._error))
                left = None if deadline is None else deadline - time.monotonic()
                if self._is_over or (left is not None and left <= 0):
                    break
                self._changed.wait(left)
            events, port.waiting, port.waiting_bytes = port.waiting, [], 0
            self._changed.notify_all()
            return events

    def _read(self) -> None:
        """The thread: until the end, or until the network's."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_over or not self._is_full)
                if self._is_over:
                    return
            try:
                events = self._board.poll(READ_S)
            except NetworkError as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                for event in events:
                    self._sort(event)
                self._changed.notify_all()

    @property
    def _is_full(self) -> bool:
        return any(port.waiting_bytes > MAX_WAITING_BYTES for port in self.ports.values())

    def _sort(self, event: Event) -> None:
        """Put an event where it belongs."""
        match event:
            case PeerUp(peer):
                self._connected.add(peer)
            case PeerDown(peer, _):
                self._connected.discard(peer)
            case Received(_, message):
                port = self.ports[role_of(message, self._board.peer_id)]
                port.waiting.append(event)
                port.waiting_bytes += EVENT_COST_BYTES + (len(message.payload) if isinstance(message, Step) else 0)
                return
        for port in self.ports.values():
            port.waiting.append(event)
            port.waiting_bytes += EVENT_COST_BYTES


class Port:
    """The Switchboard of one role; used by one thread.

    Attributes:
        waiting, waiting_bytes: what it has not read; the SharedSwitchboard's to change.
    """

    def __init__(self, shared: SharedSwitchboard) -> None:
        self._shared = shared
        self.waiting: list[Event] = []
        self.waiting_bytes = 0

    @property
    def peer_id(self) -> PeerId:
        """See Switchboard."""
        return self._shared.board.peer_id

    @property
    def addrs(self) -> tuple[str, ...]:
        """See Switchboard."""
        return self._shared.board.addrs

    @property
    def relays(self) -> tuple[str, ...]:
        """See MeshSwitchboard."""
        return self._shared.board.relays

    @property
    def relay_problems(self) -> tuple[str, ...]:
        """See MeshSwitchboard."""
        return self._shared.board.relay_problems

    def publish(self, announcement: bytes | None) -> None:
        """See MeshSwitchboard."""
        self._shared.publish(announcement)

    def now(self) -> float:
        """See Switchboard."""
        return self._shared.board.now()

    def dial(self, peer: PeerId, addrs: Sequence[str]) -> None:
        """See Switchboard."""
        self._shared.dial(self, peer, addrs)

    def send(self, peer: PeerId, message: Message) -> None:
        """See Switchboard."""
        self._shared.send_all([(peer, message)])

    def send_all(self, messages: Iterable[tuple[PeerId, Message]]) -> None:
        """See Switchboard."""
        self._shared.send_all(messages)

    def poll(self, timeout_s: float | None) -> list[Event]:
        """See Switchboard. Raises NetworkError: the network's process has ended."""
        return self._shared.poll(self, timeout_s)

    def stats(self) -> dict[PeerId, PeerStats]:
        """See Switchboard."""
        return self._shared.board.stats()

    def close(self) -> None:
        """See Switchboard: nothing, as the other role may go on; SharedSwitchboard.close ends both."""
