"""What a node's memory and handles come to when it is used for long, or not as it should be: a real node of `hopformer
serve`, both of its processes, and a caller that

    sessions      opens a session, computes a token in it and closes it, thousands of times
    unread        sends activations to a node whose model's process is stopped, so that nobody takes them
    garbage       is no peer at all and floods the node's address with Initials that nobody can decrypt

A node that forgets something would grow with their number. Not here: what may be concluded.
"""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from ..errors import NetworkError
from ..llama.config import load_config
from ..llama.fingerprint import fingerprint
from ..llama.load import LoadOptions
from ..net.identity import Identity, PeerId
from ..net.messages import Close, Codec, Done, Dtype, Neighbours, Open, Refuse, SessionKey, Step
from ..net.network_process import ProcessSwitchboard
from ..net.switchboard import Event, PeerDown, PeerUp, Received
from ..net.udp import split_host_port
from .net_cluster import Node, served

ANSWER_S = 30.0
LOOK_EVERY_S = 0.1
SETTLE_S = 2.0  # after a case: what is only busy is over then
UNREAD_WIDTH, UNREAD_ROWS = 4096, 256  # 2 MiB in bfloat16
GARBAGE_PER_S = 3400  # what took a stock server from 26 to 508 MiB
MAX_CONTEXT = 64
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class MemoryEffort:
    """How much of each case; ``warm_sessions`` come before anything is looked at."""

    warm_sessions: int = 1000
    sessions: int = 10_000
    unread_bytes: int = 256 << 20
    garbage_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Footprint:
    """Of all of a node's processes: resident memory, and open files and sockets."""

    mib: float
    handles: int


@dataclass(frozen=True, slots=True)
class MemoryTurn:
    """One case: ``amount`` of it, and the node before, at its largest, and afterwards."""

    case: str
    amount: str
    before: Footprint
    most_mib: float
    after: Footprint


def measure_memory(folder: Path, effort: MemoryEffort) -> list[MemoryTurn]:
    """All cases, one after the other, on one node with half of the model's layers.

    Raises:
        NetworkError: the node does not become ready, or does not answer.
    """
    options = LoadOptions(device="cpu", max_context=MAX_CONTEXT)
    half = load_config(folder).num_layers // 2
    with (
        TemporaryDirectory(prefix="hopformer-bench-") as scratch,
        served(folder, [(0, half)], options, 1, Path(scratch)) as (node,),
    ):
        watched = _Watched(node)
        return [_sessions(folder, half, watched, effort), _unread(watched, effort), _garbage(watched, effort)]


class _Watched:
    """A node, and how large it was at most since it was last asked."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.peer = PeerId.parse(node.peer_id)
        process = psutil.Process(node.pid)
        self.model = process
        self._processes = [process, *process.children(recursive=True)]
        self._looked_at = 0.0
        self.most_mib = 0.0

    def look(self) -> Footprint:
        """Its footprint now."""
        mib = sum(one.memory_info().rss for one in self._processes) / _MIB
        self.most_mib = max(self.most_mib, mib)
        return Footprint(mib, sum(one.num_fds() for one in self._processes))

    def glance(self) -> None:
        """The same now and then."""
        now = time.monotonic()
        if now >= self._looked_at + LOOK_EVERY_S:
            self._looked_at = now
            self.look()

    def settled(self) -> Footprint:
        """Its footprint when it has come to rest."""
        time.sleep(SETTLE_S)
        return self.look()

    def turn(self, case: str, amount: str, act: Callable[[], None]) -> MemoryTurn:
        """Look, act, and look again."""
        before = self.settled()
        self.most_mib = before.mib
        act()
        after = self.settled()
        return MemoryTurn(case, amount, before, self.most_mib, after)


@contextmanager
def _caller(watched: _Watched) -> Iterator[ProcessSwitchboard]:
    """Somebody who is connected with the node."""
    board = ProcessSwitchboard.start(Identity.generate(), ("127.0.0.1:0",), allow=())
    try:
        board.dial(watched.peer, (watched.node.addr,))
        _wait_for(board, PeerUp)
        yield board
    finally:
        board.close()


def _wait_for(board: ProcessSwitchboard, kind: type) -> None:
    """Until an event, or a message, of a kind has come."""
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        for event in board.poll(1.0):
            found = event.message if isinstance(event, Received) else event
            if isinstance(found, PeerDown | Refuse):
                raise NetworkError(f"the node ends it: {found}")
            if isinstance(found, kind):
                return
    raise NetworkError(f"the node has not answered for {ANSWER_S:.0f} s")


def _sessions(folder: Path, end: int, watched: _Watched, effort: MemoryEffort) -> MemoryTurn:
    config, wanted = load_config(folder), fingerprint(folder)
    with _caller(watched) as board:
        me = board.peer_id
        rows = bytes(2 * config.hidden_size)
        kinds = Dtype.BFLOAT16, Codec.EXACT

        def go_through(numbers: Sequence[int]) -> None:
            for number in numbers:
                key = SessionKey(me, number)
                opening = Open(key, wanted, 0, end, *kinds, MAX_CONTEXT, 60, Neighbours(me, me, ()))
                step = Step(key, 1, 0, 1, 1, False, *kinds, config.hidden_size, rows)
                board.send_all([(watched.peer, opening), (watched.peer, step)])
                _wait_for(board, Done)
                board.send(watched.peer, Close(key))
                watched.glance()

        go_through(range(effort.warm_sessions))
        amount = f"{effort.sessions:,} opened, used and closed"
        last = effort.warm_sessions + effort.sessions
        return watched.turn("sessions", amount, lambda: go_through(range(effort.warm_sessions, last)))


def _unread(watched: _Watched, effort: MemoryEffort) -> MemoryTurn:
    def send_on() -> None:
        with _caller(watched) as board:
            kinds = Dtype.BFLOAT16, Codec.EXACT, UNREAD_WIDTH
            payload = bytes(2 * UNREAD_WIDTH * UNREAD_ROWS)
            watched.model.send_signal(signal.SIGSTOP)
            try:
                for number in range(effort.unread_bytes // len(payload)):
                    key = SessionKey(board.peer_id, number)
                    board.send(watched.peer, Step(key, 1, 0, UNREAD_ROWS, 0, False, *kinds, payload))
                    watched.glance()
                    if any(isinstance(event, PeerDown) for event in _events(board)):
                        return
            finally:
                watched.model.send_signal(signal.SIGCONT)

    return watched.turn("unread", f"{effort.unread_bytes // _MIB} MiB sent and not read", send_on)


def _events(board: ProcessSwitchboard) -> list[Event]:
    return board.poll(0.02)


def _garbage(watched: _Watched, effort: MemoryEffort) -> MemoryTurn:
    def flood() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.connect(split_host_port(watched.node.addr))
            began = time.monotonic()
            for number in range(int(effort.garbage_s * GARBAGE_PER_S)):
                udp.send(_garbage_initial())
                ahead = number / GARBAGE_PER_S - (time.monotonic() - began)
                if ahead > 0.01:
                    time.sleep(ahead)
                watched.glance()

    return watched.turn("garbage", f"{int(effort.garbage_s * GARBAGE_PER_S):,} Initials that nobody made", flood)


def _garbage_initial() -> bytes:
    """It looks like the first packet of a connection (RFC 9000, section 17.2.2), and its keys made none of it."""
    head = b"\xc3\0\0\0\x01\x08" + os.urandom(8) + b"\x08" + os.urandom(8) + b"\0"
    return head + (0x4000 | 1170).to_bytes(2, "big") + os.urandom(1174)
