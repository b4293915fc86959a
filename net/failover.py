"""Failover: which hops take the place of those that were lost. Pure; caller_session.py carries it out.

The smallest change wins: hops that have all of the session stay, and others are found for the layers between them. Only
where that fails is the whole route chosen anew. Links between peers that failed lately are avoided as long as there is
any other way.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import groupby
from typing import Protocol

from .identity import PeerId
from .layer_range import LayerRange
from .messages import Done, Neighbours
from .routes import Ends, Hop, Link


class State(Enum):
    """How far a hop is."""

    OPENING = auto()  # Open is sent
    OPENED = auto()  # answered; it waits for the others
    FILLING = auto()  # joined; what came before is flowing into it
    FULL = auto()  # it has every position that is committed


class Fault(Enum):
    """Why a hop should be replaced."""

    SILENT = auto()  # beyond its deadline; it may be heard again
    LEAVING = auto()  # it works, and will not for long
    GONE = auto()


@dataclass(slots=True, eq=False)
class Place:
    """A hop of a session's route.

    Attributes:
        since: when Open was sent.
        heard_at: when it last said anything.
        told: the neighbours that it knows of.
    """

    hop: Hop
    state: State
    since: float
    heard_at: float
    fault: Fault | None = None
    told: Neighbours | None = None

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be computed here."""
        return self.fault in (Fault.SILENT, Fault.GONE)

    def may_stay(self, keep_leaving: bool) -> bool:
        """Whether it has, or will have by joining, all that a session needs when another hop is replaced."""
        return self.state is not State.FILLING and (
            self.fault is None or (keep_leaving and self.fault is Fault.LEAVING)
        )


class Peers(Protocol):
    """The part of a PeerTable that sessions need."""

    def route(
        self, layers: LayerRange, now: float, ends: Ends, taken: Collection[PeerId] = (), *, avoid_links: bool = True
    ) -> tuple[Hop, ...] | None: ...

    def addrs(self, peer: PeerId) -> tuple[str, ...]: ...

    def open_allowance_s(self) -> float: ...

    def allowance_s(self, hop: Hop, num_tokens: int) -> float: ...

    def missing(self, layers: LayerRange, now: float) -> list[LayerRange]: ...

    def why(self, layers: Iterable[LayerRange], now: float) -> str: ...

    def next_change(self, now: float) -> float | None: ...

    def worked(self, hop: Hop, num_tokens: int, done: Done) -> None: ...

    def failed(self, peer: PeerId, reason: str, now: float) -> None: ...

    def link_failed(self, link: Link, now: float) -> None: ...

    def leaving(self, peer: PeerId) -> None: ...

    def refuses_model(self, peer: PeerId, text: str) -> None: ...


def find_route(
    places: Sequence[Place], layers: LayerRange, caller: PeerId, peers: Peers, now: float
) -> tuple[Hop, ...] | None:
    """The hops for ``layers``, with as many of ``places`` as may stay; None if there are none now."""
    for avoid_links in (True, False):
        for keep_leaving in (False, True):
            route = _mended(places, caller, keep_leaving, peers, now, avoid_links) if places else None
            if route is not None:
                return route
        route = peers.route(layers, now, Ends(caller, caller), avoid_links=avoid_links)
        if route is not None:
            return route
    return None


def _mended(
    places: Sequence[Place], caller: PeerId, keep_leaving: bool, peers: Peers, now: float, avoid_links: bool
) -> tuple[Hop, ...] | None:
    """The same route with others for each run of hops that may not stay."""
    taken = {place.hop.peer for place in places if place.may_stay(keep_leaving)}
    route: list[Hop] = []
    index = 0
    for stays, group in groupby(places, key=lambda place: place.may_stay(keep_leaving)):
        hops = [place.hop for place in group]
        index += len(hops)
        if not stays:
            gap = LayerRange(hops[0].layers.start, hops[-1].layers.end)
            next_peer = places[index].hop.peer if index < len(places) else caller
            ends = Ends(route[-1].peer if route else caller, next_peer)
            found = peers.route(gap, now, ends, taken, avoid_links=avoid_links)
            if found is None:
                return None
            hops = list(found)
            taken |= {hop.peer for hop in found}
        route += hops
    return tuple(route)
