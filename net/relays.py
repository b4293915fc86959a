"""Relays: those that this node keeps a connection with, and its channels through them to other peers.

A relay is kept where the node was told to be reached through it, or is asked because a peer is said to be there. When
one is lost it is dialled again; channels that this node had asked for are asked for again, so that connections above
them go on. Not here: the relay's own side (relay_desk.py), and which way a connection takes (paths.py).
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import IdentityError, NetworkError
from .carrier import Carrier, Connection
from .identity import PeerId
from .relay_messages import (
    Accept,
    Announce,
    Channel,
    Leave,
    Limited,
    Reach,
    Register,
    Registered,
    RelayMessage,
    Revoke,
    Unreachable,
    Watch,
    Withdrawn,
)
from .ways import Relayed, channel_prefix

logger = logging.getLogger(__name__)

MAX_RELAYS = 8  # of a node, kept and asked; each is a connection
MAX_CHANNELS = 256  # through all of them; a relay could open any number
FIRST_PAUSE_S = 0.25  # until a relay that was lost is dialled again; it may have been started anew
MAX_PAUSE_S = 5.0
REACH_AGAIN_S = 0.5  # where the other end has not come back to the relay yet; three in a row, then as seldom as a relay


class RelayClient(Protocol):
    """What Relays needs of the node that it belongs to."""

    def dial_relay(self, addr: str, relay: PeerId | None) -> None:
        """Connect to the relay at HOST:PORT, whoever it is where ``relay`` is None; peer_up or relay_failed follows."""
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

    def channel_closed(self, peer: PeerId, way: Relayed) -> None:
        """There was one."""
        ...

    def outside_changed(self) -> None:
        """A relay sees this node elsewhere than before."""
        ...


@dataclass(slots=True, eq=False)
class _Relay:
    """One relay.

    Attributes:
        addr: HOST:PORT.
        pinned: who must answer there; None for whoever does.
        peer: who it is, once that is known.
        is_kept: the node was told to be reached through it.
        outside: where it sees this node.
        wanted: peers that are to be reached through it, and how often that was asked in vain.
        failed: who is told that one of them cannot be.
    """

    addr: str
    pinned: PeerId | None
    is_kept: bool
    peer: PeerId | None = None
    is_connected: bool = False
    is_dialled: bool = False
    outside: str = ""
    pause_s: float = FIRST_PAUSE_S
    timer: asyncio.TimerHandle | None = None
    wanted: dict[PeerId, int] = field(default_factory=dict)
    failed: dict[PeerId, Callable[[str], None]] = field(default_factory=dict)


class Relays:
    """Owner of the relays and the channels of a node.

    Args:
        heard: gets the announcements that relays pass on, and PeerId for those that are withdrawn.
        revoked: gets revocations.
    """

    def __init__(
        self,
        client: RelayClient,
        carrier: Carrier,
        heard: Callable[[bytes | PeerId], None],
        revoked: Callable[[bytes], None],
    ) -> None:
        self._client = client
        self._carrier = carrier
        self._heard = heard
        self._revoked = revoked
        self._loop = asyncio.get_running_loop()
        self._relays: dict[str, _Relay] = {}
        self._channels: dict[bytes, tuple[PeerId, Relayed]] = {}
        self._announcement: bytes | None = None
        self._is_watching = False

    def keep(self, text: str) -> None:
        """Be reached through the relay at HOST:PORT or PEER_ID@HOST:PORT from now on."""
        self._ensure(text, is_kept=True)

    def has(self, peer: PeerId) -> bool:
        """Whether a peer is a relay of this node."""
        return any(one.peer == peer for one in self._relays.values())

    @property
    def addrs(self) -> tuple[str, ...]:
        """PEER_ID@HOST:PORT of the relays that others may reach this node through now."""
        return tuple(
            f"{one.peer}@{one.addr}"
            for one in self._relays.values()
            if one.is_kept and one.is_connected and one.outside
        )

    @property
    def outside_addrs(self) -> tuple[str, ...]:
        """HOST:PORT each, where relays see this node."""
        return tuple(dict.fromkeys(one.outside for one in self._relays.values() if one.outside))

    def ways_to(self, peer: PeerId) -> list[Relayed]:
        """The channels to a peer."""
        return [way for other, way in self._channels.values() if other == peer]

    def reach(self, peer: PeerId, text: str, failed: Callable[[str], None]) -> None:
        """Get a channel to ``peer`` through a relay, and again whenever it is lost, until ``leave``.

        Args:
            failed: is told once if it cannot be had now.

        Raises:
            NetworkError: the relay's address is none, or there are too many relays.
        """
        relay = self._ensure(text, is_kept=False, wanted=peer)
        relay.failed[peer] = failed
        if relay.is_connected and relay.peer is not None:
            self._client.send_message(relay.peer, Reach(peer))

    def leave(self, peer: PeerId) -> None:
        """No channel to ``peer`` is needed any more."""
        for relay in self._relays.values():
            relay.wanted.pop(peer, None)
            relay.failed.pop(peer, None)
        for channel, (other, way) in tuple(self._channels.items()):
            if other == peer:
                self._close(channel)
                self._client.send_message(way.relay, Leave(channel, "it is not needed any more"))

    def announce(self, announcement: bytes) -> None:
        """Tell all kept relays what this node serves."""
        self._announcement = announcement
        for relay in self._relays.values():
            if relay.is_kept and relay.is_connected and relay.peer is not None:
                self._client.send_message(relay.peer, Announce(announcement))

    def watch(self) -> None:
        """Hear from all kept relays what others announce."""
        self._is_watching = True

    def revoke(self, revocations: bytes) -> None:
        """Pass on to the relays who is no member any more."""
        for relay in self._relays.values():
            if relay.is_connected and relay.peer is not None:
                self._client.send_message(relay.peer, Revoke(revocations))

    def close(self) -> None:
        """Dial no more."""
        for relay in self._relays.values():
            if relay.timer is not None:
                relay.timer.cancel()

    # ---- what the node tells

    def is_up(self, addr: str | None, peer: PeerId) -> bool:
        """A peer is connected, dialled at ``addr`` if that is known; says whether it is a relay of this node."""
        relay = self._relays.get(addr) if addr is not None else self._at(peer)
        if relay is None:
            return False
        relay.peer, relay.is_connected, relay.is_dialled = peer, True, False
        relay.pause_s = FIRST_PAUSE_S
        connection = self._client.connection_of(peer)
        assert connection is not None
        connection.link.is_vital = True
        self._client.send_message(peer, Register())
        if relay.is_kept and self._is_watching:
            self._client.send_message(peer, Watch())
        if relay.is_kept and self._announcement is not None:
            self._client.send_message(peer, Announce(self._announcement))
        for target in relay.wanted:
            self._client.send_message(peer, Reach(target))
        return True

    def is_down(self, peer: PeerId, reason: str) -> bool:
        """A peer is gone, or could not be reached; says whether it was a relay."""
        relay = self._at(peer)
        if relay is None:
            return False
        for channel, (_, way) in tuple(self._channels.items()):
            if way.relay == peer:
                self._close(channel)
        self.failed(relay.addr, reason)
        return True

    def failed(self, addr: str, reason: str) -> None:
        """The relay at ``addr`` is not connected; try again later."""
        relay = self._relays[addr]
        relay.is_connected = relay.is_dialled = False
        for peer, failed in tuple(relay.failed.items()):
            del relay.failed[peer]
            failed(f"relay {relay.addr}: {reason}")
        if relay.is_kept or relay.wanted:
            logger.info("relay=%s: %s; again in %.2f s", relay.addr, reason, relay.pause_s)
            relay.timer = self._loop.call_later(relay.pause_s, self._dial, relay)
            relay.pause_s = min(2 * relay.pause_s, MAX_PAUSE_S)

    def take(self, peer: PeerId, message: RelayMessage) -> None:
        """A message has come from a peer; one that is no relay of ours is not listened to."""
        relay = self._at(peer)
        if relay is None:
            return
        if isinstance(message, Registered):
            relay.outside = message.addr
            logger.info("relay=%s peer=%s: registered, seen at %s", relay.addr, peer, message.addr)
            self._client.outside_changed()
        elif isinstance(message, Channel):
            self._open(relay, message)
        elif isinstance(message, Unreachable):
            self._not_reached(relay, message)
        elif isinstance(message, Leave):
            self._end_channel(relay, message)
        elif isinstance(message, Limited):
            logger.warning("relay=%s: %s datagrams were beyond its rate", relay.addr, message.num_dropped)
        elif isinstance(message, Announce):
            self._heard(message.announcement)
        elif isinstance(message, Withdrawn):
            self._heard(message.peer)
        elif isinstance(message, Revoke):
            self._revoked(message.revocations)

    # ---- relays

    def _ensure(self, text: str, *, is_kept: bool, wanted: PeerId | None = None) -> _Relay:
        addr, pinned = split_relay(text)
        relay = self._relays.get(addr)
        if relay is None:
            if len(self._relays) >= MAX_RELAYS:
                raise NetworkError(f"this node has {MAX_RELAYS} relays already")
            relay = self._relays[addr] = _Relay(addr, pinned, is_kept)
        relay.is_kept |= is_kept
        if wanted is not None:
            relay.wanted[wanted] = 0
        if not relay.is_connected and not relay.is_dialled and relay.timer is None:
            self._dial(relay)
        return relay

    def _dial(self, relay: _Relay) -> None:
        relay.timer = None
        if relay.is_kept or relay.wanted:
            relay.is_dialled = True
            self._client.dial_relay(relay.addr, relay.pinned)

    def _at(self, peer: PeerId) -> _Relay | None:
        return next((one for one in self._relays.values() if one.peer == peer), None)

    # ---- channels

    def _open(self, relay: _Relay, message: Channel) -> None:
        connection = self._client.connection_of(relay.peer) if relay.peer is not None else None
        if connection is None or relay.peer is None or message.channel in self._channels:
            return
        if len(self._channels) >= MAX_CHANNELS or (message.is_asker and message.peer not in relay.wanted):
            self._client.send_message(relay.peer, Leave(message.channel, "there are too many, or it was not asked for"))
            return
        prefix = channel_prefix(message.channel, is_asker=message.is_asker)
        way = Relayed(relay.peer, connection.path.way.addr, prefix)
        self._channels[message.channel] = message.peer, way
        self._carrier.open_channel(way, connection)
        if message.is_asker:
            relay.wanted[message.peer] = 0
            relay.failed.pop(message.peer, None)
        else:
            self._client.send_message(relay.peer, Accept(message.channel))
        self._client.channel_opened(message.peer, way, is_asker=message.is_asker)

    def _not_reached(self, relay: _Relay, message: Unreachable) -> None:
        failed = relay.failed.pop(message.peer, None)
        if failed is not None:
            failed(f"relay {relay.addr}: {message.text}")
        if message.peer in relay.wanted:
            self._again(relay, message.peer)

    def _again(self, relay: _Relay, peer: PeerId) -> None:
        """Ask once more a little later, for a connection that is there."""
        num_failures = relay.wanted[peer]
        relay.wanted[peer] = num_failures + 1
        pause_s = REACH_AGAIN_S if num_failures < 3 else MAX_PAUSE_S

        def reach() -> None:
            if peer in relay.wanted and relay.is_connected and relay.peer is not None:
                self._client.send_message(relay.peer, Reach(peer))

        self._loop.call_later(pause_s, reach)

    def _end_channel(self, relay: _Relay, message: Leave) -> None:
        found = self._channels.get(message.channel)
        if found is None or found[1].relay != relay.peer:
            return
        self._close(message.channel)
        if found[0] in relay.wanted:
            self._again(relay, found[0])

    def _close(self, channel: bytes) -> None:
        peer, way = self._channels.pop(channel)
        self._carrier.close_channel(way)
        self._client.channel_closed(peer, way)


def split_relay(text: str) -> tuple[str, PeerId | None]:
    """HOST:PORT and the peer of HOST:PORT or PEER_ID@HOST:PORT.

    Raises:
        NetworkError: it is neither.
    """
    name, at, addr = text.rpartition("@")
    try:
        return addr, PeerId.parse(name) if at else None
    except IdentityError as error:
        raise NetworkError(f"{text[:120]!r} is no PEER_ID@HOST:PORT: {error}") from error
