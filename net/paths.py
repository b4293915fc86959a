"""Path: which way leads to a link's peer; QUIC above sees one address for good.

    begun       on the way that was dialled, or that the first packet came on; QUIC's handshake proves it
    tried       ways that the peer, or a relay, has named, or that a packet came on (path_tries.py); one that answers is
                known
    known       ways that have answered. Straight ones go before relayed ones, then the faster ones
    dead        the way in use, when it was asked for DEAD_S without an answer and there is another one
    stranded    when it is gone and there is no other one; the next to answer is taken

A peer's address may also change unasked: a NAT that forgets, a laptop that moves. When an authentic packet comes on an
unknown way, a challenge goes there; nothing else does until the answer comes, so that nobody can turn a stream of
activations towards a third party (RFC 9000, section 9.3, lets some data go at once). The same challenge, padded, finds
out how large a datagram may be (path_size.py). Each end chooses for itself. Not here: sockets and time.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .path_size import SITE_DATAGRAM_BYTES, DatagramSize
from .path_tries import MAX_PROBES, MAX_REPUNCH_S, MAX_WAYS, PROBE_S, REPUNCH_S, Tries
from .probes import NONCE_BYTES, PROBE_BYTES, answer, challenge, is_authentic, is_challenge, nonce_of
from .ways import Direct, Relayed, Way
from .wire import Hello

Outgoing = tuple[bytes, Way]

DEAD_S = 1.0  # three probes, and a little; or three round trips, where they are longer ...
MAX_DEAD_S = 3.0  # ... and yet no longer than users are promised
STANDBY_S = 5.0  # between probes on ways that are not in use, or while nobody waits; keeps NATs' mappings (RFC 4787)
STEADY_S = 20.0  # a way that held for so long and dies is tried again as soon as one that dies for the first time
RTT_GAIN_S = 0.005  # that another way must be faster by, so that two of a kind do not take turns
MAX_ASKED = 256  # challenges that may be answered; older ones are forgotten
_NEWEST_SHARE = 0.3  # of a round trip in the mean


@dataclass(slots=True, eq=False)
class _Known:
    """A way that answers.

    Attributes:
        pause_s: until it is tried again, should it die soon.
        silent_since: when it was asked first after its last answer.
    """

    since: float
    pause_s: float = REPUNCH_S
    rtt_s: float = math.inf
    asked_at: float = -math.inf
    silent_since: float | None = None
    num_silent: int = 0

    def is_dead(self, now: float) -> bool:
        silent_s = 0.0 if self.silent_since is None else now - self.silent_since
        patience_s = DEAD_S if math.isinf(self.rtt_s) else min(max(DEAD_S, 3 * self.rtt_s), MAX_DEAD_S)
        return self.num_silent >= MAX_PROBES and silent_s >= patience_s


@dataclass(frozen=True, slots=True)
class _Asked:
    way: Way
    size: int
    sent_at: float


@dataclass(frozen=True, slots=True)
class _Keys:
    own: Hello
    peers: Hello


class Path:
    """All ways to one peer, of which one is in use.

    Args:
        way: where it was dialled, or where its first packet came from; QUIC's handshake proves it.
        make_nonce: entropy.
        max_datagram_bytes: try no larger ones.

    Attributes:
        way: in use.
        is_stranded: the way in use is gone, and there is no other.
        waits_for_relay: likewise, because a relay is gone, which may soon be back.
        rtt_s: QUIC's shortest round trip, to be kept up to date by the owner.
        is_busy: somebody waits for the peer; likewise.
    """

    def __init__(
        self, way: Way, make_nonce: Callable[[int], bytes], max_datagram_bytes: int = SITE_DATAGRAM_BYTES
    ) -> None:
        self.way = way
        self.is_stranded = self.waits_for_relay = False
        self.rtt_s = math.inf
        self.is_busy = False
        self._make_nonce = make_nonce
        self._keys: _Keys | None = None
        self._known: dict[Way, _Known] = {way: _Known(-math.inf)}
        self._tries = Tries()
        self._asked: dict[bytes, _Asked] = {}
        self._size = DatagramSize(max_datagram_bytes)

    @property
    def ways(self) -> list[Way]:
        """All that are known to lead there, the one in use first."""
        others = [way for way in self._known if way != self.way]
        return others if self.is_stranded else [self.way, *others]

    @property
    def datagram_bytes(self) -> int:
        """The largest datagram that is known to get through."""
        return self._size.datagram_bytes

    # ---- what happens

    def begin(self, own: Hello, peers: Hello, now: float) -> list[Outgoing]:
        """The two ends know each other's keys: look how large a datagram may be."""
        self._keys = _Keys(own, peers)
        self._size.begin(self.way, self.rtt_s, now)
        return self.handle_deadline(now)

    def offer(self, ways: Iterable[Way], now: float) -> list[Outgoing]:
        """Ways that may lead there, besides those that are known."""
        for way in ways:
            if way not in self._known:
                self._tries.offer(way, now, len(self._known))
        return self.handle_deadline(now)

    def heard_from(self, way: Way, now: float) -> list[Outgoing]:
        """An authentic packet came on ``way``."""
        if self._keys is None or way in self._known:
            return []
        if not isinstance(way, Direct):
            self._tries.offer(way, now, len(self._known))
        else:
            self._tries.move_to(way, now, len(self._known))
        return self.handle_deadline(now)

    def take(self, datagram: bytes, way: Way, now: float) -> list[Outgoing]:
        """A probe with this path's tag has come on ``way``."""
        keys = self._keys
        if keys is None or not is_authentic(datagram, keys.own.path_key):
            return []
        if is_challenge(datagram):
            if self._has_choice and way not in self._known:
                self._tries.challenged(way, now, len(self._known))
            return [(answer(keys.peers, nonce_of(datagram)), way), *self.handle_deadline(now)]
        asked = self._asked.pop(nonce_of(datagram), None)
        return [] if asked is None else self._answered(asked, now)

    def lose(self, way: Way, now: float, *, waits_for_relay: bool = False) -> list[Outgoing]:
        """A channel is closed, or a machine says that no program listens there.

        Args:
            waits_for_relay: the channel is closed because the relay is gone, and not because the peer is.
        """
        if way in self._known:
            self._bury(way, now)
        if not isinstance(way, Direct):
            self._tries.take(way)
        self.waits_for_relay = self.is_stranded and (waits_for_relay or self.waits_for_relay)
        return self.handle_deadline(now)

    # ---- time

    def next_deadline(self) -> float:
        """When ``handle_deadline`` wants to be called."""
        if self._keys is None:
            return math.inf
        soonest = min(self._tries.next_deadline(), self._size.next_deadline())
        if self._has_choice:
            for way, known in self._known.items():
                soonest = min(soonest, known.asked_at + self._interval_s(way))
        return soonest

    def handle_deadline(self, now: float) -> list[Outgoing]:
        """Time has passed."""
        if self._keys is None:
            return []
        outgoing = self._watch(now) if self._has_choice else []
        outgoing += [self._challenge(way, PROBE_BYTES, now) for way in self._tries.due(now)]
        size = self._size.due(self.way, now)
        if size is not None:
            outgoing.append(self._challenge(self.way, size, now))
        return outgoing

    def _watch(self, now: float) -> list[Outgoing]:
        """Ask on the known ways whether they still lead there."""
        outgoing = []
        for way, known in tuple(self._known.items()):
            if now < known.asked_at + self._interval_s(way):
                continue
            if known.is_dead(now) and len(self._known) > 1:
                self._bury(way, now)
                continue
            known.asked_at = now
            known.num_silent += 1
            known.silent_since = now if known.silent_since is None else known.silent_since
            outgoing.append(self._challenge(way, PROBE_BYTES, now))
        return outgoing

    # ---- what follows

    def _answered(self, asked: _Asked, now: float) -> list[Outgoing]:
        way, rtt_s = asked.way, now - asked.sent_at
        tried = self._tries.take(way)
        known = self._known.get(way)
        if known is None:
            if tried is None:
                return []  # it was given up meanwhile
            pause_s = min(2 * tried.pause_s, MAX_REPUNCH_S) if tried.has_worked else REPUNCH_S
            known = self._known[way] = _Known(now, pause_s, asked_at=now)
        known.rtt_s = rtt_s if math.isinf(known.rtt_s) else known.rtt_s + _NEWEST_SHARE * (rtt_s - known.rtt_s)
        known.silent_since, known.num_silent = None, 0
        if way != self.way or self.is_stranded:
            replaces = tried is not None and tried.replaces
            if replaces or self._is_better(way):
                self._move(way, now, forget=replaces and isinstance(self.way, Direct))
        else:
            self._size.answered(asked.size, now)
        return self.handle_deadline(now)

    def _is_better(self, way: Way) -> bool:
        """Than the one in use."""
        if self.is_stranded:
            return True
        used = self._known[self.way]
        if isinstance(way, Relayed) != isinstance(self.way, Relayed):
            return isinstance(self.way, Relayed)
        return not math.isinf(used.rtt_s) and self._known[way].rtt_s < used.rtt_s - RTT_GAIN_S

    def _move(self, way: Way, now: float, *, forget: bool) -> None:
        """Take another way; what is known of sizes and round trips begins anew."""
        if forget:
            self._known.pop(self.way, None)
        self.way, self.is_stranded, self.waits_for_relay = way, False, False
        self.rtt_s = self._known[way].rtt_s
        self._size.begin(way, self.rtt_s, now)

    def _bury(self, way: Way, now: float) -> None:
        """A way is gone. A straight one is tried again, and the sooner the longer it held; a channel is another."""
        known = self._known.pop(way)
        if not isinstance(way, Relayed):
            self._tries.died(way, now, REPUNCH_S if now - known.since >= STEADY_S else known.pause_s)
        if way != self.way:
            return
        if self._known:
            best = min(self._known, key=lambda other: (isinstance(other, Relayed), self._known[other].rtt_s))
            self._move(best, now, forget=False)
        else:
            self.is_stranded = True
            self._size.stop()

    @property
    def _has_choice(self) -> bool:
        """Whether there is, or may come, another way than the one in use."""
        return len(self._known) > 1 or isinstance(self.way, Relayed) or self._tries.may_lead_there

    def _interval_s(self, way: Way) -> float:
        """Between two challenges. Where a channel is the only way, it is the link that notices its death."""
        is_watched = way == self.way and self.is_busy and (not isinstance(way, Relayed) or len(self._known) > 1)
        return PROBE_S if is_watched else STANDBY_S

    def _challenge(self, way: Way, size: int, now: float) -> Outgoing:
        assert self._keys is not None
        nonce = self._make_nonce(NONCE_BYTES)
        while len(self._asked) >= MAX_ASKED:
            del self._asked[next(iter(self._asked))]
        self._asked[nonce] = _Asked(way, size, now)
        return challenge(self._keys.peers, nonce, size), way

    def check_integrity(self) -> None:
        """Assert every invariant."""
        assert self.is_stranded or self.way in self._known, "the way in use is not known"
        assert not self.is_stranded or not self._known, "stranded, and there is a way"
        assert not self.waits_for_relay or self.is_stranded
        assert not any(way in self._tries for way in self._known), "a way is known and tried"
        assert len(self._known) + len(self._tries) <= MAX_WAYS and len(self._asked) <= MAX_ASKED
        self._tries.check_integrity()
