"""MemoryNetwork: many nodes in one process, on a clock that only moves when somebody waits.

Messages take ``delay_s``; one that is "lost" arrives a retransmission later, as on a reliable stream, and with it
everything behind it of the same session, while other sessions overtake. Nodes can be killed, frozen and thawed, and
pairs cut and joined; who is connected notices after ``notice_s``, as a keep-alive would. All chance is from one seed,
so a run that fails fails again.
"""

import heapq
import random
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from .announcement import parse
from .directory import Via
from .identity import PeerId
from .messages import Message, SessionKey
from .switchboard import Event, Heard, PeerDown, PeerStats, PeerUp, Received, Vanished


@dataclass(frozen=True, slots=True)
class LinkQuality:
    """How every pair of nodes is connected.

    Attributes:
        delay_s: one way.
        jitter_s: up to so much more, each message by chance.
        loss: the share of messages that are sent again, ``retransmit_s`` later.
        duplicates: the share that arrives twice, which a stream would not do and a machine must stand.
        notice_s: until a death or a cut is noticed.
    """

    delay_s: float = 0.001
    jitter_s: float = 0.0
    loss: float = 0.0
    retransmit_s: float = 0.05
    duplicates: float = 0.0
    notice_s: float = 0.5


class MemoryNetwork:
    """The nodes and everything under way between them."""

    def __init__(self, quality: LinkQuality | None = None, seed: int = 0) -> None:
        self.now = 0.0
        self.quality = quality or LinkQuality()
        self._random = random.Random(seed)
        self._nodes: dict[PeerId, MemorySwitchboard] = {}
        self._actors: dict[PeerId, Callable[[], float | None]] = {}
        self._wakes: dict[PeerId, float | None] = {}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._num_queued = 0
        self._dead: set[PeerId] = set()
        self._frozen: set[PeerId] = set()
        self._cut: set[frozenset[PeerId]] = set()
        self._announced: dict[PeerId, bytes] = {}
        self._last_arrival: dict[tuple[PeerId, PeerId, SessionKey | None], float] = defaultdict(float)

    def join(self, peer: PeerId) -> "MemorySwitchboard":
        """A node's switchboard; a killed node that joins again is a new process under the same key."""
        self._dead.discard(peer)
        self._nodes[peer] = MemorySwitchboard(self, peer)
        for other, announcement in self._announced.items():
            self._schedule(2 * self.quality.delay_s, partial(self._hear, peer, other, announcement))
        return self._nodes[peer]

    def attach(self, peer: PeerId, turn: Callable[[], float | None]) -> None:
        """Let ``turn`` run for ``peer`` whenever it has events or its time has come.

        It returns when it wants to run again at the latest, on this clock, or None.
        """
        self._actors[peer] = turn
        self._wakes[peer] = None

    def kill(self, peer: PeerId) -> None:
        """End a node's process: it never runs again, and nothing it had under way arrives."""
        self._dead.add(peer)
        self._actors.pop(peer, None)
        self._disconnect(peer, "it died")
        self._announce(peer, None, self.quality.notice_s)

    def freeze(self, peer: PeerId) -> None:
        """Stop a node's own work while its connections stay up, as SIGSTOP does to the model's process alone."""
        self._frozen.add(peer)

    def thaw(self, peer: PeerId) -> None:
        """Let a frozen node go on, with all that has arrived."""
        self._frozen.discard(peer)
        self._schedule(0.0, lambda: self._run(peer))

    def cut(self, one: PeerId, other: PeerId) -> None:
        """Let nothing pass between two nodes."""
        self._cut.add(frozenset((one, other)))
        for peer, gone in ((one, other), (other, one)):
            self._notice(peer, gone, "nothing is heard of it")

    def join_again(self, one: PeerId, other: PeerId) -> None:
        """Undo ``cut``; they are not connected until one dials."""
        self._cut.discard(frozenset((one, other)))

    def advance(self, until: float, for_whom: "MemorySwitchboard | None" = None) -> None:
        """Run the world until ``until``, or until ``for_whom`` has an event."""
        while for_whom is None or not for_whom.inbox:
            wake = min((at for at in self._wakes.values() if at is not None), default=None)
            at = self._queue[0][0] if self._queue else None
            soonest = min((one for one in (wake, at) if one is not None), default=None)
            if soonest is None or soonest > until:
                break
            self.now = max(self.now, soonest)
            if at is not None and at <= soonest:
                heapq.heappop(self._queue)[2]()
            else:
                for peer in [one for one, time in self._wakes.items() if time is not None and time <= soonest]:
                    self._run(peer)
        if until != float("inf") and (for_whom is None or not for_whom.inbox):
            self.now = max(self.now, until)

    def dial(self, peer: PeerId, other: PeerId) -> None:
        """See Switchboard.dial."""
        if self._connected(peer, other) and other in self._nodes[peer].peers:
            return
        if other in self._nodes and self._connected(peer, other):
            self._schedule(2 * self.quality.delay_s, lambda: self._connect(peer, other))
        else:
            self._notice(peer, other, "it does not answer")

    def send(self, sender: PeerId, receiver: PeerId, message: Message) -> None:
        """See Switchboard.send."""
        quality, chance = self.quality, self._random
        if receiver not in self._nodes[sender].peers:
            return
        copies = 2 if chance.random() < quality.duplicates else 1
        for _ in range(copies):
            delay = quality.delay_s + chance.random() * quality.jitter_s
            if chance.random() < quality.loss:
                delay += quality.retransmit_s
            stream = (sender, receiver, getattr(message, "session", None))
            arrival = max(self.now + delay, self._last_arrival[stream])
            self._last_arrival[stream] = arrival
            self._schedule(arrival - self.now, lambda: self._deliver(sender, receiver, message))

    def publish(self, peer: PeerId, announcement: bytes | None) -> None:
        """See MeshSwitchboard.publish: everybody hears it, as if they all were at one relay."""
        self._announce(peer, announcement, 2 * self.quality.delay_s)

    def _announce(self, peer: PeerId, announcement: bytes | None, delay_s: float) -> None:
        if announcement is None and peer not in self._announced:
            return
        self._announced.pop(peer, None)
        if announcement is not None:
            self._announced[peer] = announcement
        for other in self._nodes:
            if other != peer:
                self._schedule(delay_s, partial(self._hear, other, peer, announcement))

    def _hear(self, listener: PeerId, peer: PeerId, announcement: bytes | None) -> None:
        if listener in self._dead:
            return
        if announcement is None:
            self._tell(listener, Vanished(peer))
        else:
            self._tell(listener, Heard(parse(announcement, time.time()), announcement, Via.RELAY))

    def _connected(self, one: PeerId, other: PeerId) -> bool:
        return not {one, other} & self._dead and frozenset((one, other)) not in self._cut

    def _connect(self, one: PeerId, other: PeerId) -> None:
        if not self._connected(one, other):
            self._notice(one, other, "it does not answer")
            return
        for peer, new in ((one, other), (other, one)):
            if new not in self._nodes[peer].peers:
                self._nodes[peer].peers.add(new)
                self._tell(peer, PeerUp(new))

    def _deliver(self, sender: PeerId, receiver: PeerId, message: Message) -> None:
        if self._connected(sender, receiver) and sender in self._nodes[receiver].peers:
            self._tell(receiver, Received(sender, message))

    def _disconnect(self, gone: PeerId, reason: str) -> None:
        for peer, node in self._nodes.items():
            if gone in node.peers:
                self._notice(peer, gone, reason)
        self._nodes[gone].peers.clear()

    def _notice(self, peer: PeerId, gone: PeerId, reason: str) -> None:
        def tell() -> None:
            if peer not in self._dead and not (self._connected(peer, gone) and gone in self._nodes[peer].peers):
                self._nodes[peer].peers.discard(gone)
                self._tell(peer, PeerDown(gone, reason))

        self._schedule(self.quality.notice_s, tell)

    def _tell(self, peer: PeerId, event: Event) -> None:
        self._nodes[peer].inbox.append(event)
        self._run(peer)

    def _run(self, peer: PeerId) -> None:
        self._wakes[peer] = None
        if peer in self._actors and peer not in self._frozen:
            self._wakes[peer] = self._actors[peer]()

    def _schedule(self, delay_s: float, action: Callable[[], None]) -> None:
        self._num_queued += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._num_queued, action))


class MemorySwitchboard:
    """One node's Switchboard in a MemoryNetwork."""

    def __init__(self, network: MemoryNetwork, peer: PeerId) -> None:
        self._network = network
        self._peer = peer
        self.peers: set[PeerId] = set()
        self.inbox: deque[Event] = deque()

    @property
    def peer_id(self) -> PeerId:
        """See Switchboard."""
        return self._peer

    @property
    def addrs(self) -> tuple[str, ...]:
        """See Switchboard."""
        return (f"memory:{self._peer}",)

    def now(self) -> float:
        """See Switchboard."""
        return self._network.now

    def dial(self, peer: PeerId, addrs: Sequence[str]) -> None:
        """See Switchboard."""
        self._network.dial(self._peer, peer)

    def send(self, peer: PeerId, message: Message) -> None:
        """See Switchboard."""
        self._network.send(self._peer, peer, message)

    @property
    def relays(self) -> tuple[str, ...]:
        """See MeshSwitchboard."""
        return ()

    @property
    def relay_problems(self) -> tuple[str, ...]:
        """See MeshSwitchboard."""
        return ()

    def publish(self, announcement: bytes | None) -> None:
        """See MeshSwitchboard."""
        self._network.publish(self._peer, announcement)

    def send_all(self, messages: Iterable[tuple[PeerId, Message]]) -> None:
        """See Switchboard."""
        for peer, message in messages:
            self.send(peer, message)

    def poll(self, timeout_s: float | None) -> list[Event]:
        """See Switchboard; while it waits, the rest of the world goes on."""
        if not self.inbox and timeout_s != 0:
            self._network.advance(float("inf") if timeout_s is None else self.now() + timeout_s, self)
        events = list(self.inbox)
        self.inbox.clear()
        return events

    def stats(self) -> dict[PeerId, PeerStats]:
        """See Switchboard."""
        rtt = 2 * self._network.quality.delay_s
        return {peer: PeerStats(f"memory:{peer}", rtt, 0, 0, 0) for peer in self.peers}

    def close(self) -> None:
        """See Switchboard."""
        self._network.kill(self._peer)
