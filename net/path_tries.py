"""Tries: ways that may lead to a peer, and when each is asked, which opens NATs (RFC 5128, section 3.3).

    offered     the peer, or a relay, has named it: many challenges at once, then a few now and then
    died        it led there once: the same, from a while later on
    moved to    an authentic packet came on it: three challenges, and then it is given up

A peer may name addresses that are not its own, and make us send there. What it gets for that is a burst of 20 small
datagrams to each address, of which it may name MAX_WAYS at once and TRIES_PER_S a second later on, and four each time
to the last MAX_WAYS of them. Not here: what an answer changes (paths.py).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from .ways import Way

MAX_WAYS = 40  # known and tried: wire.MAX_ADDRS of the peer's, what they turn into behind NATs, a channel a relay
TRIES_PER_S = 1.0  # new ways that are looked at, beyond MAX_WAYS at once: a peer that moves is at a few new addresses
MAX_PROBES = 3  # then it does not get through
PROBE_S = 0.3  # until a probe is sent again, and between those on the way in use: three round trips of 100 ms
PUNCH_S = 2.0  # both ends begin within a round trip of each other, and the first probes of each are lost at the other
PUNCH_EVERY_S = 0.1
REPUNCH_S = 5.0  # then again, a few; after twice as long each time where no answer ever came
MAX_REPUNCH_S = 20.0  # below the 30 s that NATs remember an unanswered datagram, so that the two ends' may meet
LATER_PUNCH_S = 0.4


@dataclass(slots=True, eq=False)
class Try:
    """A way that may lead there.

    Attributes:
        replaces: the peer has already gone over to it: it takes the place of the way in use.
        until: the end of this burst of challenges.
        pause_s: between the bursts.
        has_worked: it led there once.
    """

    replaces: bool
    until: float
    next_at: float
    pause_s: float = REPUNCH_S
    has_worked: bool = False
    num_sent: int = 0
    sent_at: float = -math.inf

    def is_asked(self, now: float) -> bool:
        """Whether this is a burst, and no pause."""
        return self.replaces or (now < self.until and self.next_at <= now + PUNCH_EVERY_S)


class Tries:
    """Owner of the ways of one path that have not answered, or not lately."""

    def __init__(self) -> None:
        self._tries: dict[Way, Try] = {}
        self._left = float(MAX_WAYS)
        self._at = 0.0

    def __contains__(self, way: object) -> bool:
        return way in self._tries

    def __len__(self) -> int:
        return len(self._tries)

    def __iter__(self) -> Iterator[Way]:
        return iter(self._tries)

    @property
    def may_lead_there(self) -> bool:
        """Whether there may come another way than the one in use, and not merely in its place."""
        return any(not one.replaces for one in self._tries.values())

    def offer(self, way: Way, now: float, num_known: int) -> None:
        """A way was named: ask there, unless that is being done.

        Args:
            num_known: other ways that are remembered elsewhere, see MAX_WAYS.
        """
        tried = self._tries.get(way)
        if (tried is not None and tried.is_asked(now)) or not self._may_try(now):
            return
        if tried is None:
            self._put(way, Try(False, now + PUNCH_S, now), num_known)
        else:
            tried.until, tried.next_at = now + PUNCH_S, now

    def move_to(self, way: Way, now: float, num_known: int) -> None:
        """An authentic packet came on a way: if it leads there, it does instead of the one in use."""
        tried = self._tries.get(way)
        if (tried is not None and tried.replaces) or not self._may_try(now):
            return
        for other in [other for other, one in self._tries.items() if one.replaces]:
            del self._tries[other]  # the peer has moved on since
        self._tries.pop(way, None)
        self._put(way, Try(True, now, now), num_known)

    def challenged(self, way: Way, now: float, num_known: int) -> None:
        """The peer asks on a way, so that its NAT is open just now: ask there as well."""
        tried = self._tries.get(way)
        if tried is None:
            self.offer(way, now, num_known)
        elif now >= tried.sent_at + PUNCH_EVERY_S:
            until = now + LATER_PUNCH_S
            tried.until = max(tried.until, until) if tried.is_asked(now) else until
            tried.next_at = now

    def died(self, way: Way, now: float, pause_s: float) -> None:
        """A way that was known leads there no more; it is not known any more, so that there is room for it."""
        again_at = now + pause_s
        self._tries[way] = Try(False, again_at + LATER_PUNCH_S, again_at, pause_s, has_worked=True)

    def take(self, way: Way) -> Try | None:
        """Try it no more; what was tried."""
        return self._tries.pop(way, None)

    def due(self, now: float) -> list[Way]:
        """Where to send a challenge now."""
        due = []
        for way, one in tuple(self._tries.items()):
            if now < one.next_at:
                continue
            if one.replaces:
                if one.num_sent >= MAX_PROBES:
                    del self._tries[way]
                    continue
                one.next_at = now + PROBE_S
            elif now < one.until:
                one.next_at = now + PUNCH_EVERY_S
            else:
                one.next_at = now + one.pause_s
                one.until = one.next_at + LATER_PUNCH_S
                one.pause_s = one.pause_s if one.has_worked else min(2 * one.pause_s, MAX_REPUNCH_S)
                continue
            one.num_sent, one.sent_at = one.num_sent + 1, now
            due.append(way)
        return due

    def next_deadline(self) -> float:
        """When ``due`` has something."""
        return min((one.next_at for one in self._tries.values()), default=math.inf)

    def check_integrity(self) -> None:
        """Assert every invariant."""
        assert sum(one.replaces for one in self._tries.values()) <= 1
        assert 0 <= self._left <= MAX_WAYS

    def _may_try(self, now: float) -> bool:
        """Whether one more way may be looked at now; it counts."""
        self._left = min(self._left + (now - self._at) * TRIES_PER_S, MAX_WAYS)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def _put(self, way: Way, one: Try, num_known: int) -> None:
        """Take up a way; where there is no room, in place of the one that was tried for the longest time."""
        if num_known + len(self._tries) >= MAX_WAYS:
            if not self._tries:
                return
            del self._tries[min(self._tries, key=lambda other: self._tries[other].has_worked)]
        self._tries[way] = one
