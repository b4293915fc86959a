"""RelayTable: who may be reached through a relay, and the channels between them. Pure: ``now`` is told.

    offered     the peer that was asked for has been told of the channel, and the relay waits for its Accept
    open        both ends know it, and datagrams pass

What a channel may pass on is bounded in each direction, by a bucket of tokens, so that no pair takes the relay from the
others; what is beyond it is dropped, as a full link does, and the sender is told. Not here: datagrams (relay_desk.py).
"""

from dataclasses import dataclass, field

from .identity import PeerId
from .relay_messages import Channel, Leave, Limited, RelayMessage, Unreachable
from .ways import CHANNEL_BYTES

MAX_REGISTERED = 4096
MAX_CHANNELS = 16_384  # all together: 16 MiB
MAX_PEER_CHANNELS = 256  # of one peer, which has asked for them or not
REACHES_PER_S = 20  # that a peer may ask for: a caller and a hop ask once for each peer
ACCEPT_S = 5.0  # the other end has to answer an offer; as long as a handshake may take
REPORT_S = 1.0  # between two reports of what was dropped
DEFAULT_RATE = 64 << 20  # bytes a second, for each direction of a channel: more than one Python process sends
BURST_S = 0.25  # of the rate, at once: four times what a link has under way


@dataclass(slots=True)
class _Bucket:
    """What one direction of a channel may still pass on."""

    left: float
    at: float
    num_dropped: int = 0

    def take(self, num_bytes: int, rate: float, now: float) -> bool:
        self.left = min(self.left + (now - self.at) * rate, BURST_S * rate)
        self.at = now
        if self.left < num_bytes:
            self.num_dropped += 1
            return False
        self.left -= num_bytes
        return True


@dataclass(slots=True, eq=False)
class _Channel:
    """One channel. What is about a direction stands first for the one away from the asker."""

    asker: PeerId
    other: PeerId
    deadline: float | None  # while it is offered
    buckets: tuple[_Bucket, _Bucket]


@dataclass(slots=True, eq=False)
class _Peer:
    channels: set[bytes] = field(default_factory=set)
    reaches_left: float = REACHES_PER_S
    reached_at: float = 0.0


class RelayTable:
    """Owner of the registrations and the channels.

    Args:
        max_rate: bytes a second that a channel passes on in each direction.
    """

    def __init__(self, max_rate: int = DEFAULT_RATE) -> None:
        self.max_rate = max_rate
        self.num_passed = 0
        self.passed_bytes = 0
        self.num_dropped = 0
        self._peers: dict[PeerId, _Peer] = {}
        self._channels: dict[bytes, _Channel] = {}
        self._outbox: list[tuple[PeerId, RelayMessage]] = []
        self._report_at = 0.0

    @property
    def num_registered(self) -> int:
        """Peers that may be reached."""
        return len(self._peers)

    @property
    def num_channels(self) -> int:
        """Channels that are offered or open."""
        return len(self._channels)

    def take_outbox(self) -> list[tuple[PeerId, RelayMessage]]:
        """What is to be said to whom."""
        outbox, self._outbox = self._outbox, []
        return outbox

    def register(self, peer: PeerId) -> bool:
        """Let a peer be reached; says whether there was room for it."""
        if peer not in self._peers and len(self._peers) >= MAX_REGISTERED:
            return False
        self._peers.setdefault(peer, _Peer())
        return True

    def gone(self, peer: PeerId) -> None:
        """A peer is not connected any more."""
        if peer in self._peers:
            for channel in tuple(self._peers[peer].channels):
                self._end(channel, "the other end is not connected with the relay any more", besides=peer)
            del self._peers[peer]

    def reach(self, asker: PeerId, peer: PeerId, channel: bytes, now: float) -> None:
        """A peer asks for a channel to another one; ``channel`` is its name, of chance."""
        assert len(channel) == CHANNEL_BYTES and channel not in self._channels
        replaced = self._asked(asker, peer)
        why = self._why_not(asker, peer, now, len(replaced))
        if why:
            self._outbox.append((asker, Unreachable(peer, why)))
            return
        for old in replaced:
            self._end(old, "another one takes its place", besides=asker)
        burst = BURST_S * self.max_rate
        self._channels[channel] = _Channel(asker, peer, now + ACCEPT_S, (_Bucket(burst, now), _Bucket(burst, now)))
        self._peers[asker].channels.add(channel)
        self._peers[peer].channels.add(channel)
        self._outbox.append((peer, Channel(asker, channel, False)))

    def accept(self, peer: PeerId, channel: bytes) -> None:
        """The other end takes an offered channel."""
        one = self._channels.get(channel)
        if one is not None and one.other == peer and one.deadline is not None:
            one.deadline = None
            self._outbox.append((one.asker, Channel(peer, channel, True)))

    def leave(self, peer: PeerId, channel: bytes, text: str) -> None:
        """One end closes a channel."""
        one = self._channels.get(channel)
        if one is not None and peer in (one.asker, one.other):
            self._end(channel, text, besides=peer)

    def ends(self, channel: bytes, *, from_asker: bool) -> tuple[PeerId, PeerId] | None:
        """Who sends and who gets a channel's datagrams of one direction; None where it is not open."""
        one = self._channels.get(channel)
        if one is None or one.deadline is not None:
            return None
        return (one.asker, one.other) if from_asker else (one.other, one.asker)

    def passes(self, channel: bytes, num_bytes: int, now: float, *, from_asker: bool) -> bool:
        """Whether a datagram of an open channel may go on now; it is counted."""
        if self._channels[channel].buckets[not from_asker].take(num_bytes, self.max_rate, now):
            self.num_passed += 1
            self.passed_bytes += num_bytes
            return True
        self.num_dropped += 1
        return False

    def dropped(self, channel: bytes, *, from_asker: bool) -> None:
        """A datagram could not go on though it may: too many of its channel wait."""
        self.num_dropped += 1
        if channel in self._channels:
            self._channels[channel].buckets[not from_asker].num_dropped += 1

    def handle_deadline(self, now: float) -> None:
        """Time has passed: offers that nobody took end, and who was held back is told."""
        for channel, one in tuple(self._channels.items()):
            if one.deadline is not None and now >= one.deadline:
                self._outbox.append((one.asker, Unreachable(one.other, "it does not answer the relay")))
                self._outbox.append((one.other, Leave(channel, "it was not taken in time")))
                self._forget(channel)
        if now < self._report_at:
            return
        self._report_at = now + REPORT_S
        for channel, one in self._channels.items():
            for sender, bucket in zip((one.asker, one.other), one.buckets, strict=True):
                if bucket.num_dropped:
                    self._outbox.append((sender, Limited(channel, bucket.num_dropped)))
                    bucket.num_dropped = 0

    def check_integrity(self) -> None:
        """Assert every invariant."""
        for channel, one in self._channels.items():
            assert one.asker != one.other
            assert channel in self._peers[one.asker].channels and channel in self._peers[one.other].channels
        for peer, own in self._peers.items():
            assert len(own.channels) <= MAX_PEER_CHANNELS
            for channel in own.channels:
                assert peer in (self._channels[channel].asker, self._channels[channel].other)
        assert len(self._channels) <= MAX_CHANNELS and len(self._peers) <= MAX_REGISTERED

    def _asked(self, asker: PeerId, peer: PeerId) -> list[bytes]:
        """The channels to ``peer`` that ``asker`` has asked for."""
        own, other = self._peers.get(asker), self._peers.get(peer)
        shared = own.channels & other.channels if own is not None and other is not None else ()
        return [channel for channel in shared if self._channels[channel].asker == asker]

    def _why_not(self, asker: PeerId, peer: PeerId, now: float, num_replaced: int) -> str:
        own, other = self._peers.get(asker), self._peers.get(peer)
        if own is None:
            return "register first"
        own.reaches_left = min(own.reaches_left + (now - own.reached_at) * REACHES_PER_S, REACHES_PER_S)
        own.reached_at = now
        if own.reaches_left < 1:
            return f"more than {REACHES_PER_S} peers a second were asked for"
        own.reaches_left -= 1
        if asker == peer:
            return "this is you"
        if other is None:
            return "it is not connected with this relay"
        if max(len(own.channels), len(other.channels)) - num_replaced >= MAX_PEER_CHANNELS:
            return f"one of the two has {MAX_PEER_CHANNELS} channels already"
        if len(self._channels) - num_replaced >= MAX_CHANNELS:
            return f"the relay has {MAX_CHANNELS} channels already"
        return ""

    def _end(self, channel: bytes, text: str, besides: PeerId) -> None:
        """End a channel, and tell the end that does not know. An asker knows no channel that was not taken."""
        one = self._channels[channel]
        if besides == one.asker:
            self._outbox.append((one.other, Leave(channel, text)))
        elif one.deadline is None:
            self._outbox.append((one.asker, Leave(channel, text)))
        else:
            self._outbox.append((one.asker, Unreachable(one.other, text)))
        self._forget(channel)

    def _forget(self, channel: bytes) -> None:
        one = self._channels.pop(channel)
        for peer in (one.asker, one.other):
            self._peers[peer].channels.discard(channel)
