"""Routes: which peers a session's layers go through. Pure: candidates in, the cheapest hops out.

What a hop costs is the time of its layers and one round trip: half of it to come and half to go on. A peer's round trip
is the one from here; between two peers it is at most half of both together, so a route is never better than it looks.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .identity import PeerId
from .layer_range import LayerRange

HOP_S = 0.0005  # what a hop costs beside its round trip: packing, queues and a wake-up at either end

Link = tuple[PeerId, PeerId]  # from one peer to the next


@dataclass(frozen=True, slots=True)
class Hop:
    """One span on one peer."""

    peer: PeerId
    layers: LayerRange


@dataclass(frozen=True, slots=True)
class Candidate:
    """A peer that can be used now, for ``layers`` or any part of them.

    Attributes:
        layer_s: seconds that a decode step takes it, a layer.
        rtt_s: round trip from here.
    """

    peer: PeerId
    layers: LayerRange
    layer_s: float
    rtt_s: float


@dataclass(frozen=True, slots=True)
class Ends:
    """What a stretch of a route lies between: the peers before and behind it."""

    previous: PeerId
    next: PeerId


@dataclass(frozen=True, slots=True)
class _Path:
    """The cheapest way found to a boundary that ends with a certain peer."""

    cost_s: float
    hops: tuple[Hop, ...]

    def last(self, ends: Ends) -> PeerId:
        return self.hops[-1].peer if self.hops else ends.previous

    def has(self, peer: PeerId) -> bool:
        return any(hop.peer == peer for hop in self.hops)


def cheapest_route(
    candidates: Sequence[Candidate], layers: LayerRange, ends: Ends, broken: Collection[Link] = ()
) -> tuple[Hop, ...] | None:
    """The hops that run ``layers`` in the least time, none over a ``broken`` link; None where there are none.

    Hops change only where some candidate's layers begin or end: costs are linear, so no other boundary is better. A
    peer occurs once. Of routes that cost the same the one whose candidates come first is taken.
    """
    edges = {edge for one in candidates for edge in (one.layers.start, one.layers.end)}
    boundaries = sorted({layers.start, layers.end} | {edge for edge in edges if layers.start < edge < layers.end})
    paths: dict[int, dict[PeerId, _Path]] = {boundary: {} for boundary in boundaries}
    paths[layers.start][ends.previous] = _Path(0.0, ())
    for start in boundaries[:-1]:
        cheapest_first = sorted(paths[start].values(), key=lambda path: path.cost_s)
        for one in candidates:
            if not one.layers.start <= start < one.layers.end:
                continue
            path = next((path for path in cheapest_first if _may_go_on(path, one.peer, ends, broken)), None)
            if path is not None:
                _extend(paths, path, one, start)
    complete = [path for path in paths[layers.end].values() if (path.last(ends), ends.next) not in broken]
    return min(complete, key=lambda path: path.cost_s).hops if complete else None


def route_cost_s(candidates: Sequence[Candidate], route: Sequence[Hop]) -> float:
    """Seconds that a decode step takes on ``route``, whose hops are all among ``candidates``."""
    known = {one.peer: one for one in candidates}
    return sum(_cost_s(known[hop.peer], len(hop.layers)) for hop in route)


def _may_go_on(path: _Path, peer: PeerId, ends: Ends, broken: Collection[Link]) -> bool:
    return not path.has(peer) and (path.last(ends), peer) not in broken


def _extend(paths: dict[int, dict[PeerId, _Path]], path: _Path, one: Candidate, start: int) -> None:
    """Let ``one`` go on from ``start`` to every boundary that it reaches."""
    for end, found in paths.items():
        if not start < end <= one.layers.end:
            continue
        cost_s = path.cost_s + _cost_s(one, end - start)
        if one.peer not in found or cost_s < found[one.peer].cost_s:
            found[one.peer] = _Path(cost_s, (*path.hops, Hop(one.peer, LayerRange(start, end))))


def _cost_s(one: Candidate, num_layers: int) -> float:
    return one.rtt_s + HOP_S + one.layer_s * num_layers
