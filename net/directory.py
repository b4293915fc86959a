"""Directory: who announces what, as far as this node has heard. Pure: ``now`` and the time of day are told.

It takes signed bytes from anybody and keeps the newest announcement of each peer until it is no longer good. A peer can
replace its own and nobody else's, and an older one never takes the place of a newer one: what a peer said last is
remembered until nothing that it said before can be good any more, also when it is gone meanwhile.

Everything is bounded: how many peers, how long an announcement is and lasts, and how often one peer may change its own.
Not here: who belongs to a mesh (``admit`` is asked), and how announcements travel.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag

from ..errors import NetworkError
from ..llama.fingerprint_bits import same_model
from .announcement import MAX_SKEW_S, MAX_VALID_S, Announcement, parse, peek
from .identity import PeerId

MAX_ENTRIES = 4096  # of at most 4 KiB each: 16 MiB
MIN_INTERVAL_S = 1.0  # between the changes of one peer, on the average
MAX_BURST = 4  # changes of one peer that may come at once: chosen, loading, ready, and one more


class Via(IntFlag):
    """How an announcement came here."""

    LAN = 1
    RELAY = 2


@dataclass(frozen=True, slots=True)
class Entry:
    """What a peer announces.

    Attributes:
        blob: the announcement as it was signed, for whoever is to be told of it.
        via: every way on which it came.
        heard_at, expires_at: on the clock that ``now`` is of.
    """

    announcement: Announcement
    blob: bytes
    via: Via
    heard_at: float
    expires_at: float


@dataclass(slots=True, eq=False)
class _Known:
    """What a peer announced last; listed while it is good on some way, and remembered until ``forget_at``.

    Attributes:
        good_until: when the announcement expires, on whatever way it came.
        via: each way on which the peer is heard, and until when what it said there is good.
        num_changes: that count against MAX_BURST; one less each MIN_INTERVAL_S.
    """

    announcement: Announcement
    blob: bytes
    heard_at: float
    good_until: float
    forget_at: float
    via: dict[Via, float]
    num_changes: float

    @property
    def next_deadline(self) -> float:
        """When it is to be listed no longer, or to be forgotten."""
        return max(self.via.values()) if self.via else self.forget_at


class Directory:
    """Owner of the entries.

    Args:
        admit: looks at an announcement whose signature is right; raises NetworkError where its peer is none of ours.
        max_entries: peers that are remembered.
    """

    def __init__(self, admit: Callable[[Announcement], None] = lambda _: None, max_entries: int = MAX_ENTRIES) -> None:
        self._admit = admit
        self._max_entries = max_entries
        self._known: dict[PeerId, _Known] = {}
        self._deadline = math.inf  # nothing is to be done before

    def put(self, blob: bytes, now: float, now_unix: float, via: Via = Via.RELAY) -> Announcement | None:
        """Take up what somebody says a peer announces; None where that is not newer than what is known, or too soon.

        Raises:
            WireError: it is no announcement, or is not good now.
            NetworkError: the peer is not admitted, or there is no room for another one.
        """
        peer, issued_at = peek(blob)
        known = self._known.get(peer)
        if known is not None and issued_at <= known.announcement.issued_at:
            if issued_at == known.announcement.issued_at and known.via and via not in known.via:
                parse(blob, now_unix)  # the same on another way, perhaps with fewer addresses
                known.via[via] = known.good_until
            return None
        announcement = parse(blob, now_unix)
        self._admit(announcement)
        num_changes = 1.0
        if known is not None:
            num_changes += max(known.num_changes - (now - known.heard_at) / MIN_INTERVAL_S, 0.0)
            if num_changes > MAX_BURST:
                return None
        elif len(self._known) >= self._max_entries:
            self._make_room()
        good_until = now + announcement.remaining_s(now_unix)
        forget_at = now + (announcement.issued_at / 1000 + MAX_VALID_S + MAX_SKEW_S - now_unix)
        ways = {one: min(until, good_until) for one, until in known.via.items()} if known is not None else {}
        ways[via] = good_until
        self._known[peer] = _Known(announcement, blob, now, good_until, forget_at, ways, num_changes)
        self._deadline = min(self._deadline, self._known[peer].next_deadline)
        return announcement

    def gone(self, peer: PeerId, via: Via | None = None) -> bool:
        """A peer is not there any more; with ``via`` it is not there on that way, and may be on another.

        Returns whether it was listed until now, and no longer is.
        """
        known = self._known.get(peer)
        if known is None or not known.via:
            return False
        known.via = {} if via is None else {one: until for one, until in known.via.items() if one is not via}
        self._deadline = min(self._deadline, known.next_deadline)
        return not known.via

    def expire(self, now: float) -> list[PeerId]:
        """Drop what is no longer good; returns the peers that were listed until now."""
        if now < self._deadline:
            return []
        dropped = []
        for peer, one in tuple(self._known.items()):
            was_listed = bool(one.via)
            one.via = {via: until for via, until in one.via.items() if now < until}
            if was_listed and not one.via:
                dropped.append(peer)
            if not one.via and one.forget_at <= now:
                del self._known[peer]
        self._deadline = min((one.next_deadline for one in self._known.values()), default=math.inf)
        return dropped

    def entries(self) -> list[Entry]:
        """Everybody who is listed, as of the last ``expire``."""
        return [_entry(one) for one in self._known.values() if one.via]

    def entry(self, peer: PeerId) -> Entry | None:
        """What a peer announces, if it is listed."""
        known = self._known.get(peer)
        return _entry(known) if known is not None and known.via else None

    def matching(self, fingerprint: bytes, num_layers: int) -> list[Entry]:
        """Those that announce layers of this model, or that they will."""
        return [one for one in self.entries() if is_of_model(one.announcement, fingerprint, num_layers)]

    def next_deadline(self) -> float | None:
        """When ``expire`` wants to be called; None while nothing is known."""
        return self._deadline if self._known else None

    def check_integrity(self) -> None:
        """Assert every invariant."""
        assert len(self._known) <= self._max_entries
        for peer, one in self._known.items():
            assert peer == one.announcement.peer, f"{peer} is listed with the announcement of another"
            assert all(until <= one.good_until for until in one.via.values()), f"{peer} is listed for too long"
            assert one.good_until <= one.forget_at, f"{peer} is forgotten while its announcement is good"
            assert self._deadline <= one.next_deadline, f"{peer} would expire unseen"
            assert 1 <= one.num_changes <= MAX_BURST

    def _make_room(self) -> None:
        """Forget a peer that is only remembered: the one that is nearest to being forgotten anyway."""
        remembered = [(one.forget_at, peer) for peer, one in self._known.items() if not one.via]
        if not remembered:
            raise NetworkError(f"{len(self._known)} peers are announced already; no more are taken")
        del self._known[min(remembered)[1]]


def is_of_model(announcement: Announcement, fingerprint: bytes, num_layers: int) -> bool:
    """Whether a peer's layers, or those that it will have, are of the model with this fingerprint."""
    if announcement.num_layers != num_layers:
        return False
    layers = announcement.layers
    start, end = (layers.start, layers.end) if layers is not None else (0, 0)
    return same_model(fingerprint, announcement.fingerprint, num_layers, start, end)


def _entry(known: _Known) -> Entry:
    via = Via(0)
    for one in known.via:
        via |= one
    return Entry(known.announcement, known.blob, via, known.heard_at, known.next_deadline)
