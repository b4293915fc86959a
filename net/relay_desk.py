"""RelayDesk: what makes an Endpoint a relay. It serves its peers' messages, and passes their channels' datagrams on.

A datagram is passed on as it is: its first 8 bytes name the channel and the end that it is from, and all behind them is
encrypted between the two ends. It goes to where the other end's own connection with the relay is, so that a peer whose
address changes is followed by that connection's means. While the kernel takes no more, each direction of a channel has
a queue of its own, and they take turns.
"""

import asyncio
import logging
import os
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import MembershipError, NetworkError
from .announcement import peek
from .connection import Connection
from .directory import Directory
from .endpoint import Endpoint
from .identity import PeerId
from .relay_messages import Accept, Announce, Leave, Reach, Register, Registered, RelayMessage, Revoke, Watch, Withdrawn
from .relay_table import MAX_REGISTERED, RelayTable
from .ways import CHANNEL_BYTES, CHANNEL_PREFIX_BYTES, Direct, is_from_asker, shown

logger = logging.getLogger(__name__)

TICK_S = 1.0
MAX_WAITING_BYTES = 512 << 10  # of one direction of a channel: half of what a link has under way on a short path
TURN_DATAGRAMS = 16  # of one queue, before it is the next one's turn
MAX_WATCHERS = MAX_REGISTERED


class Revocable(Protocol):
    """A network, as far as its relay looks after it; see membership.py."""

    @property
    def revocations_blob(self) -> bytes | None:
        """Who is no member any more, signed; None where no list has come."""
        ...

    def take_revocations(self, blob: bytes) -> bool:
        """Says whether they are newer. Raises MembershipError: they are not the authority's."""
        ...


@dataclass(slots=True, eq=False)
class _Queue:
    """Datagrams of one direction of a channel, and who gets them."""

    receiver: PeerId
    datagrams: deque[bytes] = field(default_factory=deque)
    num_bytes: int = 0


class RelayDesk:
    """The shell around RelayTable.

    Args:
        directory: of what peers announce; whom it admits is its own business.
        network: takes revocations; None where there is no closed network.
    """

    def __init__(self, endpoint: Endpoint, table: RelayTable, directory: Directory, network: Revocable | None) -> None:
        self.table = table
        self.directory = directory
        self._endpoint = endpoint
        self._carrier = endpoint.carrier
        self._network = network
        self._loop = asyncio.get_running_loop()
        self._connections: dict[PeerId, Connection] = {}
        self._watchers: set[PeerId] = set()
        self._queues: dict[bytes, _Queue] = {}  # those that are not empty, by the datagrams' first bytes

    @property
    def num_connected(self) -> int:
        """Peers that are connected, registered or not."""
        return len(self._connections)

    # ---- messages

    def up(self, peer: PeerId, connection: Connection) -> None:
        """See Desk."""
        self._connections[peer] = connection
        if self._network is not None and self._network.revocations_blob is not None:
            self._endpoint.send(peer, Revoke(self._network.revocations_blob))

    def down(self, peer: PeerId) -> None:
        """See Desk."""
        self._connections.pop(peer, None)
        self._watchers.discard(peer)
        self.table.gone(peer)
        if self.directory.gone(peer):
            self._tell_watchers(Withdrawn(peer))
        self._say()

    def take(self, peer: PeerId, message: RelayMessage) -> None:
        """See Desk."""
        now = self._loop.time()
        if isinstance(message, Register):
            self._register(peer)
        elif isinstance(message, Reach):
            self.table.reach(peer, message.peer, os.urandom(CHANNEL_BYTES), now)
        elif isinstance(message, Accept):
            self.table.accept(peer, message.channel)
        elif isinstance(message, Leave):
            self.table.leave(peer, message.channel, message.text)
        elif isinstance(message, Announce):
            self._publish(peer, message.announcement)
        elif isinstance(message, Watch):
            self._watch(peer)
        elif isinstance(message, Revoke):
            self._revoke(message.revocations)
        self._say()

    def tick(self) -> None:
        """Time has passed; to be called every TICK_S."""
        now = self._loop.time()
        self.table.handle_deadline(now)
        for peer in self.directory.expire(now):
            self._tell_watchers(Withdrawn(peer))
        self._say()

    def moved(self, connection: Connection) -> None:
        """A peer's address has changed: tell it, since others may reach it there."""
        peer = connection.peer
        if peer is not None and self._connections.get(peer) is connection:
            self._endpoint.send(peer, Registered(shown(Direct(0, connection.path.way.addr)), self.table.max_rate))

    def _say(self) -> None:
        for peer, message in self.table.take_outbox():
            self._endpoint.send(peer, message)

    def _register(self, peer: PeerId) -> None:
        if self.table.register(peer):
            way = self._connections[peer].path.way
            self._endpoint.send(peer, Registered(shown(Direct(0, way.addr)), self.table.max_rate))
        else:
            self._endpoint.refuse(peer, f"this relay has {MAX_REGISTERED} peers already")

    def _publish(self, peer: PeerId, blob: bytes) -> None:
        if not blob:
            if self.directory.gone(peer):
                self._tell_watchers(Withdrawn(peer), besides=peer)
            return
        try:
            if peek(blob)[0] != peer:
                raise NetworkError("it is another peer's")
            announcement = self.directory.put(blob, self._loop.time(), time.time())
        except NetworkError as error:
            logger.info("peer=%s: its announcement is not taken: %s", peer, error)
            return
        if announcement is not None:
            self._tell_watchers(Announce(blob), besides=peer)

    def _watch(self, peer: PeerId) -> None:
        if len(self._watchers) < MAX_WATCHERS:
            self._watchers.add(peer)
            for entry in self.directory.entries():
                self._endpoint.send(peer, Announce(entry.blob))

    def _tell_watchers(self, message: RelayMessage, besides: PeerId | None = None) -> None:
        for peer in self._watchers:
            if peer != besides:
                self._endpoint.send(peer, message)

    def _revoke(self, revocations: bytes) -> None:
        try:
            changed = self._network is not None and self._network.take_revocations(revocations)
        except MembershipError as error:
            logger.info("revocations are not taken: %s", error)
            return
        if changed:
            self.tell_revoked()

    def tell_revoked(self) -> None:
        """Tell everybody who is no member any more, and part with them."""
        assert self._network is not None and self._network.revocations_blob is not None
        for peer in tuple(self._connections):
            self._endpoint.send(peer, Revoke(self._network.revocations_blob))
        self._loop.call_soon(self._endpoint.recheck)

    # ---- datagrams

    def forward(self, datagram: bytes, way: Direct, now: float) -> None:
        """See Forwarder."""
        prefix = datagram[:CHANNEL_PREFIX_BYTES]
        channel, from_asker = prefix[1:], is_from_asker(prefix)
        ends = self.table.ends(channel, from_asker=from_asker)
        if ends is None:
            return
        sender = self._connections[ends[0]]
        if sender.path.way != way:
            self._carrier.heard_from(sender, way)
        num_bytes = len(datagram)
        if not self.table.passes(channel, num_bytes, now, from_asker=from_asker):
            return
        queue = self._queues.get(prefix)
        if queue is None:
            queue = self._queues[prefix] = _Queue(ends[1])
        if queue.num_bytes + num_bytes > MAX_WAITING_BYTES:
            self.table.dropped(channel, from_asker=from_asker)
            return
        queue.datagrams.append(datagram)
        queue.num_bytes += num_bytes

    def flush(self) -> None:
        """See Forwarder. What the kernel does not take now is sent when it takes more, as this is called again then."""
        waiting = dict(self._queues)
        while waiting:
            still = {}
            for prefix, queue in waiting.items():
                connection = self._connections.get(queue.receiver)
                if connection is None:
                    del self._queues[prefix]
                    continue
                if self._carrier.is_full(connection.path.way):
                    continue
                turn = [queue.datagrams.popleft() for _ in range(min(TURN_DATAGRAMS, len(queue.datagrams)))]
                queue.num_bytes -= sum(map(len, turn))
                self._carrier.send(connection.path.way, turn)
                if queue.datagrams:
                    still[prefix] = queue
                else:
                    del self._queues[prefix]
            waiting = still
