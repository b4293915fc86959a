"""What a node knows of a relay, and of the peers that it wants to reach through it; Relays and Channels own it.

Not here: what is done with it (relays.py, relay_channels.py).
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from .admission import Rate
from .connection import Connection
from .identity import PeerId
from .relay_messages import RelayMessage
from .ways import Relayed

FIRST_PAUSE_S = 0.25  # until a relay that was lost is dialled again; it may have been started anew
OUTSIDE_PER_S = 4  # changes of the address that a relay sees, which are passed on to peers and into announcements


class RelayClient(Protocol):
    """What Relays needs of the node that it belongs to."""

    def dial_relay(self, addr: str, relay: PeerId | None) -> None:
        """Connect to the relay at HOST:PORT, whoever it is where ``relay`` is None; is_up or failed follows."""
        ...

    def connection_of(self, peer: PeerId) -> Connection | None:
        """With a peer that is let in."""
        ...

    def send_message(self, peer: PeerId, message: RelayMessage) -> None:
        """To a relay."""
        ...

    def channel_opened(self, peer: PeerId, way: Relayed, *, is_asker: bool) -> None:
        """There is a channel to a peer."""
        ...

    def channel_closed(self, peer: PeerId, way: Relayed, *, waits_for_relay: bool) -> None:
        """There was one. ``waits_for_relay`` where it is the relay that is gone, and not the peer."""
        ...

    def part_with_relay(self, relay: PeerId) -> None:
        """It is not needed any more."""
        ...

    def outside_changed(self) -> None:
        """A relay sees this node elsewhere than before."""
        ...


@dataclass(slots=True, eq=False)
class Wanted:
    """A peer that is to be reached through a relay.

    Attributes:
        failed: is told, once, that it cannot be.
        num_failures: how often that was asked in vain.
        timer: until it is asked again.
    """

    failed: Callable[[str], None] | None = None
    num_failures: int = 0
    timer: asyncio.TimerHandle | None = None

    def stop_timer(self) -> None:
        """Do not ask again."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


@dataclass(slots=True, eq=False)
class KnownRelay:
    """One relay.

    Attributes:
        addr: HOST:PORT.
        pinned: who must answer there; None for whoever does.
        is_kept: the node was told to be reached through it.
        peer: who it is, once that is known.
        is_registered: it has said that others may reach this node.
        outside: where it sees this node.
        outside_changes: how many are listened to.
        problem: why it is not connected; empty where it is, or was not dialled yet.
        is_refused: it answers, and does not let this node in, or is not whom it should be.
        pause_s: until it is dialled again.
        lost_at: since when it is not connected.
        warned_at: when somebody was told that it drops datagrams.
        timer: until it is dialled again, or given up.
        wanted: whom to reach through it.
    """

    addr: str
    pinned: PeerId | None
    is_kept: bool = False
    peer: PeerId | None = None
    is_connected: bool = False
    is_dialled: bool = False
    is_registered: bool = False
    outside: str = ""
    outside_changes: Rate = field(default_factory=lambda: Rate(OUTSIDE_PER_S))
    problem: str = ""
    is_refused: bool = False
    pause_s: float = FIRST_PAUSE_S
    lost_at: float = -math.inf
    warned_at: float = -math.inf
    timer: asyncio.TimerHandle | None = None
    wanted: dict[PeerId, Wanted] = field(default_factory=dict)

    @property
    def is_used(self) -> bool:
        """Whether it is to be connected."""
        return self.is_kept or bool(self.wanted)

    def stop_timer(self) -> None:
        """Do not dial it, or give it up, later."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
