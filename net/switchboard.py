"""Switchboard: what the model's side of a node sees of the network. Who is connected, and messages in and out.

Three carry it out: QUIC in a process of its own (network_process.py), and for tests a network in memory with delay,
loss, death and a clock of its own (memory_network.py). Sessions, routes and failover are written against this and
know nothing of sockets.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from .announcement import Announcement
from .directory import Via
from .identity import PeerId
from .messages import Message


@dataclass(frozen=True, slots=True)
class PeerUp:
    """A connection with ``peer`` is there, its key proven; messages reach it."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class PeerDown:
    """The connection with ``peer`` is gone, or could not be made; what was not delivered is lost."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class Received:
    """A message from ``peer``, in the order in which it sent those of the same session and of no session."""

    peer: PeerId
    message: Message


@dataclass(frozen=True, slots=True)
class Heard:
    """Somebody announces something; of a signature that is right, by a member where the network is closed."""

    announcement: Announcement
    blob: bytes
    via: Via


@dataclass(frozen=True, slots=True)
class Vanished:
    """A peer announces nothing any more."""

    peer: PeerId


Event = PeerUp | PeerDown | Received | Heard | Vanished


@dataclass(frozen=True, slots=True)
class PeerStats:
    """How the connection with a peer does.

    Attributes:
        addr: HOST:PORT where it is now, behind PEER_ID@ where it is reached through that relay.
        rtt_s: smoothed round trip.
        sent_bytes, received_bytes: of datagrams, since it was made.
        queued_bytes: of messages that wait here.
    """

    addr: str
    rtt_s: float
    sent_bytes: int
    received_bytes: int
    queued_bytes: int

    @property
    def kind(self) -> str:
        """Of the path: "direct" or "relayed"."""
        return "relayed" if "@" in self.addr else "direct"


class Switchboard(Protocol):
    """The network of one node. One thread uses it."""

    @property
    def peer_id(self) -> PeerId:
        """This node."""
        ...

    @property
    def addrs(self) -> tuple[str, ...]:
        """HOST:PORT each, where this node listens."""
        ...

    def now(self) -> float:
        """Seconds on the clock that ``poll`` waits by."""
        ...

    def dial(self, peer: PeerId, addrs: Sequence[str]) -> None:
        """Connect to ``peer`` unless it is connected; PeerUp or PeerDown tells how it went."""
        ...

    def send(self, peer: PeerId, message: Message) -> None:
        """Queue a message. To a peer that is not connected it is lost, which PeerDown has told or will."""
        ...

    def send_all(self, messages: Iterable[tuple[PeerId, Message]]) -> None:
        """``send`` each of them, as one: the network is woken once."""
        ...

    def poll(self, timeout_s: float | None) -> list[Event]:
        """What has happened, in order; waits for the first for at most ``timeout_s``, None for as long as it takes."""
        ...

    def stats(self) -> dict[PeerId, PeerStats]:
        """Everybody connected, as of the last poll."""
        ...

    def close(self) -> None:
        """Tell the peers, close the connections and give everything back."""
        ...


class MeshSwitchboard(Switchboard, Protocol):
    """One whose node takes part in a mesh, or may."""

    @property
    def relays(self) -> tuple[str, ...]:
        """PEER_ID@HOST:PORT of the relays that the node may be reached through now."""
        ...

    @property
    def relay_problems(self) -> tuple[str, ...]:
        """Why it may not be reached through others; a line each, for people."""
        ...

    def publish(self, announcement: bytes | None) -> None:
        """Announce this wherever the node takes part, until the next; None takes it back.

        It is a signed announcement without addresses, relays and network, which the network's process fills in.
        """
        ...
