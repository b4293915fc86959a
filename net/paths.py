"""Path: which way leads to a link's peer, and how large a datagram may be on it; QUIC above sees one address for good.

    begun       on the way that was dialled, or that the first packet came on; QUIC's handshake proves it
    offered     ways that the peer, or a relay, has named: asked at once many times, which opens NATs (RFC 5128,
                section 3.3), and again now and then; one that answers is known
    known       ways that have answered. Straight ones go before relayed ones, then the faster ones
    dead        the way in use, when it was asked for DEAD_S without an answer and there is another one

A peer's address may also change unasked: a NAT that forgets, a laptop that moves. When an authentic packet comes on an
unknown way, a challenge goes there; nothing else does until the answer comes, so that nobody can turn a stream of
activations towards a third party (RFC 9000, section 9.3, lets some data go at once). The same challenge, padded, finds
out how large a datagram may be (in the manner of RFC 8899): 8,900 bytes within a site, in fragments if need be, and
what an Ethernet frame holds elsewhere. Each end chooses for itself. Not here: sockets and time.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .congestion import SHORT_PATH_RTT_S
from .probes import NONCE_BYTES, PROBE_BYTES, answer, challenge, is_authentic, is_challenge, nonce_of
from .quic import MIN_DATAGRAM_BYTES
from .ways import CHANNEL_PREFIX_BYTES, Direct, Relayed, Way, is_loopback, is_site
from .wire import Hello

Outgoing = tuple[bytes, Way]

ETHERNET_DATAGRAM_BYTES = 1452  # 1,500 less the headers of IPv6 and UDP
SITE_DATAGRAM_BYTES = 8900  # a jumbo frame; where there are none the kernel makes six fragments, which still is faster

MAX_WAYS = 40  # known and offered: wire.MAX_ADDRS of the peer's, what they turn into behind NATs, a channel a relay
PROBE_S = 0.3  # until a probe is sent again, and between those on the way in use: three round trips of 100 ms
DEAD_S = 1.0  # three of them, and a little
STANDBY_S = 5.0  # between probes on ways that are not in use, or while nobody waits; keeps NATs' mappings (RFC 4787)
PUNCH_S = 2.0  # both ends begin within a round trip of each other, and the first probes of each are lost at the other
PUNCH_EVERY_S = 0.1
REPUNCH_S = 5.0  # then again, a few; after twice as long each time where no answer ever came
MAX_REPUNCH_S = 20.0  # below the 30 s that NATs remember an unanswered datagram, so that the two ends' may meet
LATER_PUNCH_S = 0.4
RTT_GAIN_S = 0.005  # that another way must be faster by, so that two of a kind do not take turns
_MAX_PROBES = 3  # then it does not get through
_RECHECK_S = 10.0  # a size that once passed may cease to when the route changes
_MAX_ASKED = 256  # challenges that may be answered; older ones are forgotten
_NEWEST_SHARE = 0.3  # of a round trip in the mean


@dataclass(slots=True, eq=False)
class _Known:
    """A way that answers."""

    rtt_s: float = math.inf
    asked_at: float = -math.inf
    silent_since: float | None = None  # when it was asked first after its last answer
    num_silent: int = 0


@dataclass(slots=True, eq=False)
class _Try:
    """A way that may lead there.

    Attributes:
        replaces: the peer has already gone over to it: it takes the place of the way in use.
        until: the end of this burst of challenges.
        pause_s: between the bursts.
    """

    replaces: bool
    until: float
    next_at: float
    num_sent: int = 0
    pause_s: float = REPUNCH_S
    has_worked: bool = False


@dataclass(slots=True, eq=False)
class _Sizing:
    """A padded challenge on the way in use."""

    size: int
    num_sent: int = 0
    again_at: float = 0.0


@dataclass(frozen=True, slots=True)
class _Asked:
    way: Way
    size: int
    sent_at: float


@dataclass(slots=True, eq=False)
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
        rtt_s: QUIC's shortest round trip, to be kept up to date by the owner.
        is_busy: somebody waits for the peer; likewise.
    """

    def __init__(
        self, way: Way, make_nonce: Callable[[int], bytes], max_datagram_bytes: int = SITE_DATAGRAM_BYTES
    ) -> None:
        self.way = way
        self.is_stranded = False
        self.datagram_bytes = MIN_DATAGRAM_BYTES
        self.rtt_s = math.inf
        self.is_busy = False
        self._make_nonce = make_nonce
        self._max_datagram_bytes = max_datagram_bytes
        self._keys: _Keys | None = None
        self._known: dict[Way, _Known] = {way: _Known()}
        self._tries: dict[Way, _Try] = {}
        self._asked: dict[bytes, _Asked] = {}
        self._sizing: _Sizing | None = None
        self._next_check = math.inf

    @property
    def ways(self) -> list[Way]:
        """All that are known to lead there, the one in use first."""
        others = [way for way in self._known if way != self.way]
        return others if self.is_stranded else [self.way, *others]

    # ---- what happens

    def begin(self, own: Hello, peers: Hello, now: float) -> list[Outgoing]:
        """The two ends know each other's keys: look how large a datagram may be."""
        self._keys = _Keys(own, peers)
        self._begin_sizing(self._best_size, now)
        return self.handle_deadline(now)

    def offer(self, ways: Iterable[Way], now: float) -> list[Outgoing]:
        """Ways that may lead there, besides those that are known."""
        for way in ways:
            if way not in self._known and way not in self._tries and len(self._known) + len(self._tries) < MAX_WAYS:
                self._tries[way] = _Try(False, now + PUNCH_S, now)
        return self.handle_deadline(now)

    def heard_from(self, way: Way, now: float) -> list[Outgoing]:
        """An authentic packet came on ``way``."""
        if self._keys is None or way in self._known:
            return []
        if not isinstance(way, Direct):
            return self.offer((way,), now)
        if way in self._tries:
            self._tries[way].replaces = True
            return []
        self._tries = {other: one for other, one in self._tries.items() if not one.replaces}
        if len(self._known) + len(self._tries) < MAX_WAYS:
            self._tries[way] = _Try(True, now, now)
        return self.handle_deadline(now)

    def take(self, datagram: bytes, way: Way, now: float) -> list[Outgoing]:
        """A probe with this path's tag has come on ``way``."""
        keys = self._keys
        if keys is None or not is_authentic(datagram, keys.own.path_key):
            return []
        if is_challenge(datagram):
            reply = (answer(keys.peers, nonce_of(datagram)), way)
            return [reply, *(self.offer((way,), now) if self._has_choice else ())]
        asked = self._asked.pop(nonce_of(datagram), None)
        return [] if asked is None else self._answered(asked, now)

    def lose(self, way: Way, now: float) -> list[Outgoing]:
        """A channel is closed, or a machine says that no program listens there."""
        self._tries.pop(way, None)
        self._known.pop(way, None)
        if way == self.way and not self.is_stranded:
            self._fall_back(now)
        return self.handle_deadline(now)

    # ---- time

    def next_deadline(self) -> float:
        """When ``handle_deadline`` wants to be called."""
        if self._keys is None:
            return math.inf
        deadlines = [one.next_at for one in self._tries.values()]
        deadlines.append(self._next_check if self._sizing is None else self._sizing.again_at)
        if self._has_choice:
            deadlines += [one.asked_at + self._interval_s(way) for way, one in self._known.items()]
        return min(deadlines)

    def handle_deadline(self, now: float) -> list[Outgoing]:
        """Time has passed."""
        if self._keys is None:
            return []
        return [*self._watch(now), *self._try(now), *self._size(now)]

    def _watch(self, now: float) -> list[Outgoing]:
        """Ask on the known ways whether they still lead there."""
        if not self._has_choice:
            return []
        outgoing = []
        for way, known in tuple(self._known.items()):
            if now < known.asked_at + self._interval_s(way):
                continue
            silent_s = 0.0 if known.silent_since is None else now - known.silent_since
            if known.num_silent >= _MAX_PROBES and silent_s >= DEAD_S and len(self._known) > 1:
                self._bury(way, now)
                continue
            known.asked_at = now
            known.num_silent += 1
            known.silent_since = now if known.silent_since is None else known.silent_since
            outgoing.append(self._challenge(way, PROBE_BYTES, now))
        return outgoing

    def _try(self, now: float) -> list[Outgoing]:
        """Ask on ways that are not known."""
        outgoing = []
        for way, one in tuple(self._tries.items()):
            if now < one.next_at:
                continue
            if one.replaces:
                if one.num_sent >= _MAX_PROBES:
                    del self._tries[way]
                    continue
                one.next_at = now + PROBE_S
            elif now < one.until:
                one.next_at = now + PUNCH_EVERY_S
            else:
                one.next_at = now + one.pause_s
                one.until = one.next_at + LATER_PUNCH_S
                one.pause_s = REPUNCH_S if one.has_worked else min(2 * one.pause_s, MAX_REPUNCH_S)
                continue
            one.num_sent += 1
            outgoing.append(self._challenge(way, PROBE_BYTES, now))
        return outgoing

    def _size(self, now: float) -> list[Outgoing]:
        """Ask how long a datagram may be on the way in use."""
        if self.is_stranded:
            return []
        if self._sizing is None and now >= self._next_check:
            at_least = self.datagram_bytes > MIN_DATAGRAM_BYTES
            self._begin_sizing(self.datagram_bytes if at_least else self._best_size, now)
        sizing = self._sizing
        if sizing is not None and now >= sizing.again_at and sizing.num_sent >= _MAX_PROBES:
            self._begin_sizing(self._smaller_than(sizing.size), now)
            sizing = self._sizing
        if sizing is None or now < sizing.again_at:
            return []
        sizing.num_sent, sizing.again_at = sizing.num_sent + 1, now + PROBE_S
        return [self._challenge(self.way, sizing.size, now)]

    # ---- what follows

    def _answered(self, asked: _Asked, now: float) -> list[Outgoing]:
        way, rtt_s = asked.way, now - asked.sent_at
        tried = self._tries.pop(way, None)
        known = self._known.get(way)
        if known is None:
            if tried is None:
                return []  # it was given up meanwhile
            known = self._known[way] = _Known(asked_at=now)
        known.rtt_s = rtt_s if math.isinf(known.rtt_s) else known.rtt_s + _NEWEST_SHARE * (rtt_s - known.rtt_s)
        known.silent_since, known.num_silent = None, 0
        if way != self.way or self.is_stranded:
            replaces = tried is not None and tried.replaces
            if replaces or self._is_better(way):
                self._move(way, now, forget=replaces and isinstance(self.way, Direct))
        elif self._sizing is not None and asked.size == self._sizing.size:
            self.datagram_bytes, self._sizing = asked.size, None
            self._next_check = now + _RECHECK_S
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
        self.way, self.is_stranded = way, False
        self.datagram_bytes, self.rtt_s = MIN_DATAGRAM_BYTES, self._known[way].rtt_s
        self._begin_sizing(self._best_size, now)

    def _bury(self, way: Way, now: float) -> None:
        """A way answers no more; the peer may come back on it."""
        del self._known[way]
        if not isinstance(way, Relayed):
            self._tries[way] = _Try(False, now + REPUNCH_S + LATER_PUNCH_S, now + REPUNCH_S, has_worked=True)
        if way == self.way:
            self._fall_back(now)

    def _fall_back(self, now: float) -> None:
        """The way in use is gone: take the best of the others."""
        if not self._known:
            self.is_stranded, self._sizing = True, None
            return
        best = min(self._known, key=lambda way: (isinstance(way, Relayed), self._known[way].rtt_s))
        self._move(best, now, forget=False)

    @property
    def _has_choice(self) -> bool:
        """Whether there is, or may come, another way than the one in use."""
        if len(self._known) > 1 or isinstance(self.way, Relayed):
            return True
        return any(not one.replaces for one in self._tries.values())

    def _interval_s(self, way: Way) -> float:
        return PROBE_S if way == self.way and self.is_busy and not isinstance(way, Relayed) else STANDBY_S

    def _challenge(self, way: Way, size: int, now: float) -> Outgoing:
        assert self._keys is not None
        nonce = self._make_nonce(NONCE_BYTES)
        while len(self._asked) >= _MAX_ASKED:
            del self._asked[next(iter(self._asked))]
        self._asked[nonce] = _Asked(way, size, now)
        return challenge(self._keys.peers, nonce, size), way

    # ---- how large datagrams may be

    @property
    def _best_size(self) -> int:
        """Private addresses may be far apart, in a VPN; there each lost fragment would cost all the others."""
        is_near = is_loopback(self.way) or (is_site(self.way) and self.rtt_s < SHORT_PATH_RTT_S)
        return min(SITE_DATAGRAM_BYTES if is_near else ETHERNET_DATAGRAM_BYTES, self._max_datagram_bytes) - self._less

    @property
    def _less(self) -> int:
        """Bytes that a channel needs for itself."""
        return CHANNEL_PREFIX_BYTES if isinstance(self.way, Relayed) else 0

    def _smaller_than(self, size: int) -> int:
        ethernet = ETHERNET_DATAGRAM_BYTES - self._less
        return ethernet if size > ethernet else MIN_DATAGRAM_BYTES

    def _begin_sizing(self, size: int, now: float) -> None:
        if size < self.datagram_bytes or size <= MIN_DATAGRAM_BYTES:
            self.datagram_bytes = MIN_DATAGRAM_BYTES  # a larger one no longer passes
        self._next_check = math.inf
        self._sizing = _Sizing(size, again_at=now) if size > MIN_DATAGRAM_BYTES else None

    def check_integrity(self) -> None:
        """Assert every invariant."""
        assert self.is_stranded or self.way in self._known, "the way in use is not known"
        assert not self.is_stranded or not self._known, "stranded, and there is a way"
        assert not self._known.keys() & self._tries.keys(), "a way is known and tried"
        assert len(self._known) + len(self._tries) <= MAX_WAYS and len(self._asked) <= _MAX_ASKED
