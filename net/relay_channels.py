"""Channels: those through this node's relays to other peers, who asked for them or was asked.

One that this node had asked for is asked for again when it is lost, until the peer is not wanted any more. One that
another node has asked for is taken: who comes through it is looked at like anybody who comes. A relay may say whatever
it likes: it gets MAX_CHANNELS, and one for each peer that was wanted. Not here: connections with relays (relays.py).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from .carrier import Carrier
from .identity import PeerId
from .known_relay import KnownRelay, RelayClient, Wanted
from .relay_messages import Accept, Channel, Leave, Reach, Unreachable
from .ways import Relayed, channel_prefix

MAX_CHANNELS = 256  # through each relay, as one could open any number; relay_table.MAX_PEER_CHANNELS
REACH_AGAIN_S = 0.5  # where the other end has not come back to the relay yet; three in a row, and then ...
REACH_SELDOM_S = 5.0  # ... until it does
UNUSED_S = 10.0  # two handshakes: whoever asked for a channel has connected by then, or never will


@dataclass(frozen=True, slots=True)
class _Channel:
    relay: KnownRelay
    peer: PeerId
    way: Relayed
    is_asker: bool


class Channels:
    """Owner of the channels of a node."""

    def __init__(self, client: RelayClient, carrier: Carrier) -> None:
        self._client = client
        self._carrier = carrier
        self._loop = asyncio.get_running_loop()
        self._channels: dict[bytes, _Channel] = {}

    def ways_to(self, peer: PeerId) -> list[Relayed]:
        """Those that lead to a peer."""
        return [one.way for one in self._channels.values() if one.peer == peer]

    def want(self, relay: KnownRelay, peer: PeerId, failed: Callable[[str], None] | None) -> None:
        """Get one to ``peer`` through ``relay`` once that is connected; ``failed`` is told if it cannot be had."""
        wanted = relay.wanted.setdefault(peer, Wanted())
        wanted.failed = failed
        if relay.is_connected:
            self.ask(relay, peer)

    def ask(self, relay: KnownRelay, peer: PeerId) -> None:
        """Ask a connected relay for one."""
        self._say(relay, Reach(peer))
        self.set_vital(relay)

    def leave(self, peer: PeerId) -> None:
        """Close those that lead to a peer."""
        for channel in [channel for channel, one in self._channels.items() if one.peer == peer]:
            self._leave(channel, "it is not needed any more")

    def is_used(self, relay: KnownRelay) -> bool:
        """Whether there are any through a relay."""
        return any(one.relay is relay for one in self._channels.values())

    def relay_is_down(self, relay: KnownRelay) -> None:
        """The connection with a relay is gone, and all channels with it; it may soon be back."""
        for channel in [channel for channel, one in self._channels.items() if one.relay is relay]:
            self._close(channel, waits_for_relay=True)

    def set_vital(self, relay: KnownRelay) -> None:
        """A relay's death is to be noticed soon while something depends on it."""
        connection = self._client.connection_of(relay.peer) if relay.is_connected and relay.peer is not None else None
        if connection is not None:
            connection.link.is_vital = bool(relay.wanted) or self.is_used(relay)
            self._carrier.send_soon(connection)

    # ---- what a relay says

    def take(self, relay: KnownRelay, message: Channel) -> None:
        """It opens one."""
        connection = None if relay.peer is None else self._client.connection_of(relay.peer)
        if connection is None or relay.peer is None or message.channel in self._channels:
            return
        why = self._why_not(relay, message)
        if why:
            self._say(relay, Leave(message.channel, why))
            return
        replaced = [
            channel
            for channel, one in self._channels.items()
            if (one.relay, one.peer, one.is_asker) == (relay, message.peer, message.is_asker)
        ]
        prefix = channel_prefix(message.channel, is_asker=message.is_asker)
        way = Relayed(relay.peer, connection.path.way.addr, prefix)
        self._channels[message.channel] = _Channel(relay, message.peer, way, message.is_asker)
        self._carrier.open_channel(way, connection)
        if message.is_asker:
            relay.wanted[message.peer].failed, relay.wanted[message.peer].num_failures = None, 0
        else:
            self._say(relay, Accept(message.channel))
            self._loop.call_later(UNUSED_S, self._end_unused, message.channel)
        self.set_vital(relay)
        self._client.channel_opened(message.peer, way, is_asker=message.is_asker)
        for channel in replaced:
            if channel in self._channels:
                self._close(channel, waits_for_relay=False)

    def not_reached(self, relay: KnownRelay, message: Unreachable) -> None:
        """It has none to somebody."""
        wanted = relay.wanted.get(message.peer)
        if wanted is not None:
            self._again(relay, message.peer, wanted)
            self.tell_failed(wanted, f"relay {relay.addr}: {message.text}")

    def ended(self, relay: KnownRelay, message: Leave) -> None:
        """The other end, or the relay, has closed one."""
        found = self._channels.get(message.channel)
        if found is None or found.relay is not relay:
            return
        self._close(message.channel, waits_for_relay=False)
        wanted = relay.wanted.get(found.peer)
        if wanted is not None and found.is_asker:
            self._again(relay, found.peer, wanted)

    def tell_failed(self, wanted: Wanted, reason: str) -> None:
        """Soon: who is told may leave, which changes what is being gone through."""
        if wanted.failed is not None:
            self._loop.call_soon(wanted.failed, reason)
            wanted.failed = None

    def check_integrity(self) -> None:
        """Assert every invariant."""
        for relay in {one.relay for one in self._channels.values()}:
            assert relay.is_connected, "a channel through a relay that is not connected"
            own = [one for one in self._channels.values() if one.relay is relay]
            assert len(own) <= MAX_CHANNELS
            asked = [one.peer for one in own if one.is_asker]
            assert len(set(asked)) == len(asked) and set(asked) <= relay.wanted.keys()

    # ---- what follows

    def _why_not(self, relay: KnownRelay, message: Channel) -> str:
        """Why one is not taken."""
        if message.is_asker and message.peer not in relay.wanted:
            return "it was not asked for"
        if sum(one.relay is relay for one in self._channels.values()) >= MAX_CHANNELS:
            return f"this node has {MAX_CHANNELS} channels already"
        return ""

    def _end_unused(self, channel: bytes) -> None:
        """Whoever asked for a channel to this node has not come: let it not fill up the relay's table."""
        found = self._channels.get(channel)
        if found is not None and self._client.connection_of(found.peer) is None:
            self._leave(channel, "nobody has connected through it")

    def _again(self, relay: KnownRelay, peer: PeerId, wanted: Wanted) -> None:
        """Ask once more a little later, for a connection that is there."""
        if wanted.timer is None:
            pause_s = REACH_AGAIN_S if wanted.num_failures < 3 else REACH_SELDOM_S
            wanted.num_failures += 1
            wanted.timer = self._loop.call_later(pause_s, self._ask_again, relay, peer, wanted)

    def _ask_again(self, relay: KnownRelay, peer: PeerId, wanted: Wanted) -> None:
        wanted.timer = None
        if relay.is_connected and relay.wanted.get(peer) is wanted:
            self.ask(relay, peer)

    def _leave(self, channel: bytes, text: str) -> None:
        """This end closes one."""
        self._say(self._channels[channel].relay, Leave(channel, text))
        self._close(channel, waits_for_relay=False)

    def _close(self, channel: bytes, *, waits_for_relay: bool) -> None:
        found = self._channels.pop(channel)
        self._carrier.close_channel(found.way)
        self.set_vital(found.relay)
        self._client.channel_closed(found.peer, found.way, waits_for_relay=waits_for_relay)

    def _say(self, relay: KnownRelay, message: Reach | Accept | Leave) -> None:
        assert relay.peer is not None
        self._client.send_message(relay.peer, message)
