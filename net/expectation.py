"""What a mesh promises one session: its best route, what each hop of it takes, and whether one machine alone is faster.

Pure. Only the layers and the network are in it, not the embedding, the head and the drawing of a token, which are the
caller's on any route. Other sessions are not either: their steps are computed in one batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .identity import PEER_DIGEST_BYTES, PeerId
from .layer_range import LayerRange
from .placement import MeshNode
from .routes import HOP_S, Candidate, Ends, Hop, cheapest_route, route_cost_s

ENOUGH_BETTER = 3  # peers that are better in all; more of them are rarely all taken by one route
_CALLER = PeerId(bytes(PEER_DIGEST_BYTES))  # what a route begins and ends with where no node is the caller


@dataclass(frozen=True, slots=True)
class ExpectedHop:
    """One hop of the route.

    Attributes:
        layers_s: of a step, in its layers.
        network_s: of a step, to get there and on.
    """

    peer: PeerId
    layers: LayerRange
    layers_s: float
    network_s: float

    @property
    def step_s(self) -> float:
        """What it adds to a step."""
        return self.layers_s + self.network_s


@dataclass(frozen=True, slots=True)
class Alone:
    """A machine that would run all layers by itself; ``max_layers`` is what it has room for."""

    peer: PeerId
    step_s: float
    max_layers: int


@dataclass(frozen=True, slots=True)
class Expectation:
    """Of one session's decode steps.

    Attributes:
        hops: of the cheapest route.
        alone: the fastest by itself of the machines that have room for the whole model; None where none has.
        with_room: a machine that would be faster yet, and than the route, but lacks room; None where none would.
    """

    hops: tuple[ExpectedHop, ...]
    alone: Alone | None
    with_room: Alone | None

    @property
    def step_s(self) -> float:
        """Seconds a token."""
        return sum(hop.step_s for hop in self.hops)

    @property
    def tokens_per_s(self) -> float:
        """Of the route."""
        return 1 / self.step_s

    @property
    def bottleneck(self) -> ExpectedHop:
        """The hop that takes longest."""
        return max(self.hops, key=lambda hop: hop.step_s)

    @property
    def is_alone_faster(self) -> bool:
        """Whether a machine that has room for all layers needs less time by itself than the route."""
        return self.alone is not None and self.alone.step_s < self.step_s


def expect(num_layers: int, nodes: Iterable[MeshNode], own: PeerId | None = None) -> Expectation | None:
    """What a session from here may expect; None where some layer is served by nobody who is ready.

    Args:
        own: the node that asks, if it is one of them: its own layers cost it no hop.
    """
    known = {one.peer: one for one in sorted(nodes, key=lambda one: one.peer)}
    candidates = _worth_a_look(
        [
            Candidate(one.peer, one.layers, one.layer_s, one.rtt_s)
            for one in known.values()
            if one.layers and one.is_ready
        ]
    )
    caller = _CALLER if own is None else own
    route = cheapest_route(candidates, LayerRange(0, num_layers), Ends(caller, caller))
    if route is None:
        return None
    hops = tuple(_expected(candidates, hop, own) for hop in route)
    alone = sorted((_alone(one, num_layers, own) for one in known.values()), key=lambda one: one.step_s)
    fitting = next((one for one in alone if one.max_layers >= num_layers), None)
    least_s = min(sum(hop.step_s for hop in hops), fitting.step_s if fitting else np.inf)
    with_room = alone[0] if alone[0].max_layers < num_layers and alone[0].step_s < least_s else None
    return Expectation(hops, fitting, with_room)


def _expected(candidates: Sequence[Candidate], hop: Hop, own: PeerId | None) -> ExpectedHop:
    one = next(one for one in candidates if one.peer == hop.peer)
    layers_s = one.layer_s * len(hop.layers)
    return ExpectedHop(
        hop.peer, hop.layers, layers_s, 0.0 if hop.peer == own else route_cost_s([one], [hop]) - layers_s
    )


def _alone(node: MeshNode, num_layers: int, own: PeerId | None) -> Alone:
    network_s = 0.0 if node.peer == own else node.rtt_s + HOP_S
    return Alone(node.peer, node.layer_s * num_layers + network_s, node.max_layers)


def _worth_a_look(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that fewer than ENOUGH_BETTER others better in layers, speed and round trip at once.

    The search takes long with many; and of those who are bettered a route has use only where the better are taken.
    """
    if not candidates:
        return []
    starts, ends = np.array([(one.layers.start, one.layers.end) for one in candidates]).T
    layer_s, rtt_s = np.array([(one.layer_s, one.rtt_s) for one in candidates]).T
    order = np.arange(len(candidates))
    keys = (-starts, ends, -layer_s, -rtt_s)
    no_worse = np.logical_and.reduce([key[:, None] >= key for key in keys])
    better = no_worse & (np.logical_or.reduce([key[:, None] > key for key in keys]) | (order[:, None] < order))
    return [one for one, count in zip(candidates, better.sum(axis=0), strict=True) if count < ENOUGH_BETTER]
