"""Relays: those that this node keeps a connection with, to be reached through them and to reach others.

A relay is kept where the node was told to be reached through it, or is asked because a peer is said to be there. When
one is lost it is dialled again for as long as it is needed. Not here: channels (relay_channels.py), the relay's own
side (relay_desk.py), and which way a connection takes (paths.py).
"""

import asyncio
import logging
import random
from collections.abc import Callable

from ..errors import IdentityError, NetworkError
from .carrier import Carrier
from .identity import PeerId
from .known_relay import FIRST_PAUSE_S, KnownRelay, RelayClient
from .link import STRANDED_PATIENCE_S
from .relay_channels import Channels
from .relay_messages import (
    Announce,
    Channel,
    Leave,
    Limited,
    Register,
    Registered,
    RelayMessage,
    Revoke,
    Unreachable,
    Watch,
    Withdrawn,
)
from .ways import Direct, Relayed, offered_addr, shown

logger = logging.getLogger(__name__)

MAX_RELAYS = 8  # of a node, kept and asked; each is a connection
MAX_SOON_S = 1.0  # pauses between dials double up to this while connections may wait for it (link.STRANDED_PATIENCE_S)
MAX_PAUSE_S = 5.0  # and then to this
JITTER = 0.25  # of each, either way: a relay that is started again is not dialled by all at once
UNUSED_S = 10.0  # that one stays connected after it was asked for peers that are not wanted any more
QUIET_PING_S = 1.0  # to a relay without channels: soon enough for others to find this node after it was started again
LIMITED_LOG_S = 10.0  # between two warnings that a channel is beyond its rate


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
        self._heard = heard
        self._revoked = revoked
        self._loop = asyncio.get_running_loop()
        self._relays: dict[str, KnownRelay] = {}  # by HOST:PORT; one that has two is there twice
        self._channels = Channels(client, carrier)
        self._announcement: bytes | None = None
        self._is_watching = False
        self._is_closed = False

    def keep(self, text: str) -> None:
        """Be reached through the relay at HOST:PORT or PEER_ID@HOST:PORT from now on. Raises NetworkError."""
        relay = self._find(text)
        relay.is_kept = True
        if relay.is_connected:
            self._greet(relay)
        self._ensure(relay)

    def has(self, peer: PeerId) -> bool:
        """Whether a peer is a relay that this node is connected with."""
        return self._at(peer) is not None

    @property
    def addrs(self) -> tuple[str, ...]:
        """PEER_ID@HOST:PORT of the relays that others may reach this node through now."""
        return tuple(f"{one.peer}@{one.addr}" for one in self._all() if one.is_kept and one.is_registered)

    @property
    def problems(self) -> tuple[str, ...]:
        """Of each kept relay that is not connected, why; for people."""
        return tuple(f"relay {one.addr}: {one.problem}" for one in self._all() if one.is_kept and one.problem)

    @property
    def are_refused(self) -> bool:
        """Whether there are kept relays, and every one of them has turned this node away."""
        kept = [one for one in self._all() if one.is_kept]
        return bool(kept) and all(one.is_refused for one in kept)

    @property
    def outside_addrs(self) -> tuple[str, ...]:
        """HOST:PORT each, where relays see this node."""
        return tuple(dict.fromkeys(one.outside for one in self._all() if one.outside))

    def ways_to(self, peer: PeerId) -> list[Relayed]:
        """The channels to a peer."""
        return self._channels.ways_to(peer)

    def reach(self, peer: PeerId, text: str, failed: Callable[[str], None]) -> None:
        """Get a channel to ``peer`` through a relay, and again whenever it is lost, until ``leave``.

        Args:
            failed: is told once if it cannot be had now.

        Raises:
            NetworkError: the relay's address is none, another relay is there, or there are too many relays.
        """
        relay = self._find(text)
        self._channels.want(relay, peer, failed)
        self._ensure(relay)

    def leave(self, peer: PeerId) -> None:
        """No channel to ``peer`` is needed any more."""
        self._channels.leave(peer)
        for relay in self._all():
            wanted = relay.wanted.pop(peer, None)
            if wanted is None:
                continue
            wanted.stop_timer()
            self._channels.set_vital(relay)
            self._check_use(relay)

    def announce(self, announcement: bytes | None) -> None:
        """Tell all kept relays what this node serves; None takes it back."""
        if announcement is None and self._announcement is None:
            return
        self._announcement = announcement
        for relay in self._all():
            if relay.is_kept and relay.is_connected:
                self._say(relay, Announce(announcement or b""))

    def watch(self) -> None:
        """Hear from all kept relays what others announce."""
        self._is_watching = True

    def revoke(self, revocations: bytes) -> None:
        """Pass on to the relays who is no member any more."""
        for relay in self._all():
            if relay.is_connected:
                self._say(relay, Revoke(revocations))

    def close(self) -> None:
        """Dial no more."""
        self._is_closed = True
        for relay in self._all():
            relay.stop_timer()
            for wanted in relay.wanted.values():
                wanted.stop_timer()

    # ---- what the node tells

    def is_up(self, addr: str, peer: PeerId) -> None:
        """The relay at ``addr`` is connected, and is ``peer``."""
        relay, known = self._relays[addr], self._at(peer)
        if known is not None and known is not relay:
            self._merge(relay, known)
            return
        relay.stop_timer()
        relay.peer, relay.is_connected, relay.is_dialled, relay.pause_s = peer, True, False, FIRST_PAUSE_S
        relay.problem, relay.is_refused = "", False
        connection = self._client.connection_of(peer)
        assert connection is not None
        connection.link.quiet_ping_s = QUIET_PING_S
        self._say(relay, Register())
        self._greet(relay)
        for target in relay.wanted:
            self._channels.ask(relay, target)
        self._check_use(relay)

    def is_down(self, peer: PeerId, reason: str) -> bool:
        """A peer is gone; says whether it was a relay."""
        relay = self._at(peer)
        if relay is None:
            return False
        relay.is_connected = relay.is_registered = False
        relay.lost_at = self._loop.time()
        self._channels.relay_is_down(relay)
        self.failed(relay.addr, reason)
        return True

    def failed(self, addr: str, reason: str, *, is_refused: bool = False) -> None:
        """The relay at ``addr`` is not connected; try again later."""
        relay = self._relays[addr]
        if relay.is_connected:
            return
        relay.is_dialled = False
        relay.problem, relay.is_refused = reason.removeprefix(f"{addr}: "), is_refused
        relay.stop_timer()
        for wanted in relay.wanted.values():
            self._channels.tell_failed(wanted, f"relay {relay.addr}: {reason}")
        if self._is_closed:
            return
        if not relay.is_used:
            self._forget(relay)
            return
        pause_s = relay.pause_s * random.uniform(1 - JITTER, 1 + JITTER)
        logger.info("relay=%s: %s; again in %.2f s", relay.addr, reason, pause_s)
        relay.timer = self._loop.call_later(pause_s, self._ensure, relay)
        is_waited_for = self._loop.time() < relay.lost_at + STRANDED_PATIENCE_S
        relay.pause_s = min(2 * relay.pause_s, MAX_SOON_S if is_waited_for else MAX_PAUSE_S)

    def take(self, peer: PeerId, message: RelayMessage) -> None:
        """A message has come from a peer; one that is no relay of ours is not listened to."""
        relay = self._at(peer)
        if relay is None:
            return
        if isinstance(message, Registered):
            self._registered(relay, message)
        elif isinstance(message, Channel):
            self._channels.take(relay, message)
        elif isinstance(message, Unreachable):
            self._channels.not_reached(relay, message)
        elif isinstance(message, Leave):
            self._channels.ended(relay, message)
        elif isinstance(message, Limited):
            self._limited(relay, message)
        elif isinstance(message, Announce):
            self._heard(message.announcement)
        elif isinstance(message, Withdrawn):
            self._heard(message.peer)
        elif isinstance(message, Revoke):
            self._revoked(message.revocations)

    # ---- relays

    def _all(self) -> list[KnownRelay]:
        return list(dict.fromkeys(self._relays.values()))

    def _at(self, peer: PeerId) -> KnownRelay | None:
        return next((one for one in self._relays.values() if one.is_connected and one.peer == peer), None)

    def _find(self, text: str) -> KnownRelay:
        """The relay at HOST:PORT or PEER_ID@HOST:PORT, which may be new."""
        addr, pinned = split_relay(text)
        relay = self._relays.get(addr)
        if relay is None:
            if len(self._relays) >= MAX_RELAYS:
                raise NetworkError(f"this node has {MAX_RELAYS} relays already")
            relay = self._relays[addr] = KnownRelay(addr, pinned)
        elif pinned is not None:
            found = relay.pinned or (relay.peer if relay.is_connected else None)
            if found is not None and found != pinned:
                raise NetworkError(f"the relay at {addr} is {found}, and not {pinned}")
            relay.pinned = pinned
        return relay

    def _ensure(self, relay: KnownRelay) -> None:
        """Dial a relay that is not connected, or keep one that was to be given up."""
        relay.stop_timer()
        if relay.is_connected or relay.is_dialled:
            return
        relay.is_dialled = True
        self._client.dial_relay(relay.addr, relay.pinned)

    def _greet(self, relay: KnownRelay) -> None:
        """Tell a kept relay what it is kept for."""
        if relay.is_kept and self._is_watching:
            self._say(relay, Watch())
        if relay.is_kept and self._announcement is not None:
            self._say(relay, Announce(self._announcement))

    def _say(self, relay: KnownRelay, message: RelayMessage) -> None:
        assert relay.peer is not None
        self._client.send_message(relay.peer, message)

    def _merge(self, relay: KnownRelay, into: KnownRelay) -> None:
        """Two addresses turn out to be one relay's."""
        for addr in [addr for addr, one in self._relays.items() if one is relay]:
            self._relays[addr] = into
        relay.stop_timer()
        for peer, wanted in relay.wanted.items():
            wanted.stop_timer()
            self._channels.want(into, peer, wanted.failed)
        if relay.is_kept and not into.is_kept:
            into.is_kept = True
            self._greet(into)
            self._client.outside_changed()

    def _check_use(self, relay: KnownRelay) -> None:
        """One that is not needed any more is kept for a moment, as it may be needed again."""
        if relay.is_used or relay.is_dialled:
            return
        if relay.is_connected:
            relay.stop_timer()
            relay.timer = self._loop.call_later(UNUSED_S, self._give_up, relay)
        else:
            relay.stop_timer()
            self._forget(relay)

    def _give_up(self, relay: KnownRelay) -> None:
        """A relay has not been needed for a while, though others may have come through it."""
        relay.timer = None
        if relay.is_used or not relay.is_connected or relay.peer is None:
            return
        if self._channels.is_used(relay):
            self._check_use(relay)
            return
        relay.is_connected = False
        self._forget(relay)
        self._client.part_with_relay(relay.peer)

    def _forget(self, relay: KnownRelay) -> None:
        for addr in [addr for addr, one in self._relays.items() if one is relay]:
            del self._relays[addr]

    def _registered(self, relay: KnownRelay, message: Registered) -> None:
        try:
            addr = offered_addr(message.addr, loopback=True)
        except NetworkError as error:
            logger.warning("relay=%s: it says that this node is at no address: %s", relay.addr, error)
            return
        outside = "" if addr is None else shown(Direct(0, addr))
        is_news = outside != relay.outside or not relay.is_registered
        if is_news and relay.outside_changes.take(self._loop.time()):
            relay.outside, relay.is_registered = outside, True
            logger.info("relay=%s peer=%s: registered, seen at %s", relay.addr, relay.peer, outside)
            self._client.outside_changed()

    def _limited(self, relay: KnownRelay, message: Limited) -> None:
        now = self._loop.time()
        if now >= relay.warned_at + LIMITED_LOG_S:
            relay.warned_at = now
            text = "relay=%s: %s datagrams were beyond the rate that it passes on, and dropped"
            logger.warning(text, relay.addr, message.num_dropped)


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
