"""Placement: which layers a node of a mesh should serve, and which node should move where. Pure and deterministic.

A node that serves n layers shares its time among them: it gives each of them 1 / (n * layer_s) steps a second, its
rate. A layer's rate is the sum of its replicas'; 1 / rate, seconds a step, is its burden, which counts for more the
fewer replicas could crash. The mesh is the better the fewer layers are a hole, which nobody serves, and then the
smaller the sum of all burdens is: the slowest layers count most in it, and it is least where all are equally fast.

A node that joins goes where it improves that most. A node moves where it would be worth MOVE_WORTH times what it is
worth now, or to mend a hole; so each move improves the mesh, and one that nobody joins or leaves comes to rest. Every
node computes the same from the same announcements, so all agree whose turn it is. When a node asks, and how long it
waits until it acts, is auto_span.py's.

How busy nodes are says nothing here about layers: each session passes all of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .identity import PeerId
from .layer_range import LayerRange

MAX_NODES = 4096  # of a mesh that are looked at, by peer id; a plan of as many takes tens of milliseconds
MOVE_WORTH = 1.5  # a balancing move loads layers anew and makes sessions leave; below that it is not worth them
NODES_PER_MOVE = 32  # one balancing move at a time for as many nodes; fewer nodes have one
MAX_MOVES = 4  # in a ranking: whoever does not act in its turn does not stop the others
MIN_FILL = 0.5  # of the layers that a node has room for: half as many layers make twice the hops
WHOLE_WORTH = 0.7  # the whole model on one node is one hop: it is taken for this share of the best gain
EDGE_WORTH = 0.2  # of a gain: what is lost where no others' layers begin or end: routes change hops at such edges
LONE_RISK = 3.0  # a burden counts 1 + LONE_RISK / replicas times; in the simulator, holes become rare from 3 on
FASTEST_LAYER_S = 1e-6  # announcements are clamped to these two; no machine runs a layer in a microsecond
SLOWEST_LAYER_S = 100.0

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MeshNode:
    """What is known of a node, as it announces it.

    Attributes:
        layers: that it serves, or intends to; None while it has not said.
        layer_s: seconds that a decode step takes it, a layer.
        max_layers: that it has room for.
        rtt_s: round trip from here; 0 for this node.
        load: sessions that are open on it, which a move would disturb.
        is_ready: it serves them now; else it is loading, or leaves others to get there.
        is_movable: it chose its layers itself, and may choose others.
    """

    peer: PeerId
    layers: LayerRange | None
    layer_s: float
    max_layers: int
    rtt_s: float = 0.0
    load: float = 0.0
    is_ready: bool = True
    is_movable: bool = True


@dataclass(frozen=True, slots=True)
class Move:
    """A node should leave its layers for others; ``mends``: there are fewer holes then."""

    peer: PeerId
    layers: LayerRange
    mends: bool


class Mesh:
    """All nodes as the announcements have them at one time; what is asked of it is computed once.

    Args:
        nodes: in any order, each peer once. Those that name no sound layers are left out.
    """

    def __init__(self, num_layers: int, nodes: Iterable[MeshNode]) -> None:
        self.num_layers = num_layers
        sound = (one for one in nodes if _is_sound(one, num_layers))
        self.nodes = sorted(sound, key=lambda one: one.peer.digest)[:MAX_NODES]

    def node(self, peer: PeerId) -> MeshNode | None:
        """What ``peer`` announces; None where that is nothing sound."""
        return self._places[peer][1] if peer in self._places else None

    def choose(self, own: MeshNode) -> LayerRange:
        """The layers that ``own`` should serve, as if it served none now."""
        assert own.max_layers >= 1
        best = self._best(own, least_holes=0, least_gain=0.0)
        assert best is not None
        return best

    def num_lost(self, peer: PeerId, layers: LayerRange) -> int:
        """How many of ``layers`` no other peer is ready to serve: they are lost while ``peer`` leaves them."""
        index = self._places[peer][0] if peer in self._places else None
        copies = self._ready_copies - (0 if index is None else self._spans[index] & self._is_ready[index])
        return int((copies[layers.start : layers.end] == 0).sum())

    def num_holes(self, peer: PeerId, layers: LayerRange) -> int:
        """How many of ``layers`` no other peer serves or intends to: ``peer`` mends them there."""
        return int((self._without(peer)[0][layers.start : layers.end] == 0).sum())

    @cached_property
    def moves(self) -> tuple[Move, ...]:
        """Whose turn it is to move and where to, and who comes next if that one does not; at most MAX_MOVES.

        First who mends most holes, then who improves most for the sessions that it disturbs, then the lower peer id.
        """
        if not self.nodes:
            return ()
        spans = self._spans
        rest_copies = self._copies - spans  # [N, L], without the node itself
        rest = np.where(rest_copies > 0, self._rates - spans * self._own_rates[:, None], 0.0)
        room = np.array([one.max_layers for one in self.nodes])
        sizes = room.clip(1, self.num_layers)
        speeds = self._speeds
        left = spans & (
            self._ready_copies - (spans & self._is_ready[:, None]) == 0
        )  # that nobody else is ready to serve
        holes_now = left.sum(axis=1)
        gains_now = (_gains(rest, rest_copies, 1 / self._own_rates, speeds * self.num_layers) * spans).sum(axis=1)
        holes, gains = _best_windows(rest, rest_copies, sizes, speeds)
        mends = holes > holes_now
        improves = (holes == 0) & (holes_now == 0) & (gains > MOVE_WORTH * gains_now) & self._is_settled
        can = self._is_ready & np.array([one.is_movable for one in self.nodes]) & (room > 0)
        loads = np.array([max(one.load, 0.0) for one in self.nodes])
        net = holes - holes_now
        better = _rounded((gains - gains_now) / (1 + loads))
        ranked = sorted(np.flatnonzero(can & (mends | improves)), key=lambda one: (-net[one], -better[one], one))
        found = []
        for index in ranked[:MAX_MOVES]:
            need = (int(holes_now[index]) + 1, 0.0) if mends[index] else (0, MOVE_WORTH * float(gains_now[index]))
            layers = self._best(self.nodes[index], *need)
            if layers is not None and layers != self.nodes[index].layers:
                found.append(Move(self.nodes[index].peer, layers, bool(mends[index])))
        return tuple(found)

    @cached_property
    def num_unserved(self) -> int:
        """Layers that nobody serves or intends to."""
        return int((self._copies == 0).sum())

    @cached_property
    def burden_s(self) -> float:
        """The sum of all layers' burdens as they count, but for holes: seconds a step."""
        served = self._copies > 0
        return float(((1 + LONE_RISK / self._copies[served]) / self._rates[served]).sum())

    def _best(self, own: MeshNode, least_holes: int, least_gain: float) -> LayerRange | None:
        """The best window for ``own`` of those that mend and gain so much; None where none does."""
        copies, rates, edges = self._without(own.peer)
        whole = self.num_layers
        largest = min(own.max_layers, whole)
        windows, speed = [], np.array([_layer_s(own)])
        for size in range(max(-int(-largest * MIN_FILL // 1), 1), largest + 1):
            gains = _window_sums(_gains(rates[None], copies[None], size * speed, whole * speed), size)[0]
            holes = _window_sums((copies == 0)[None].astype(np.int64), size)[0]
            starts = np.arange(whole - size + 1)
            off_edges = 2 - edges[starts] - edges[starts + size]
            windows.append(np.stack([holes, gains, gains * (1 - EDGE_WORTH / 2 * off_edges), starts, starts + size]))
        holes, gains, scores, starts, ends = np.concatenate(windows, axis=1)
        fits = (holes >= least_holes) & (gains >= least_gain)
        if not fits.any():
            return None
        best = fits & (holes == holes[fits].max())
        if largest == whole and best[-1] and gains[-1] >= WHOLE_WORTH * gains[best].max():
            return LayerRange(0, whole)
        score = _rounded(np.where(best, scores, -np.inf))
        ties = np.flatnonzero(score == score.max())
        chosen = ties[int.from_bytes(own.peer.digest, "big") % len(ties)]  # so that not all who join take the same
        return LayerRange(int(starts[chosen]), int(ends[chosen]))

    def _without(self, peer: PeerId) -> tuple[Ints, Floats, Floats]:
        """Copies and rate of each layer, and of each boundary how usual it is, from 0 to 1, all but for ``peer``."""
        copies, rates, edges = self._copies, self._rates, self._edges.copy()
        if peer in self._places:
            index, node = self._places[peer]
            copies = copies - self._spans[index]
            rates = np.where(copies > 0, rates - self._spans[index] * self._own_rates[index], 0.0)
            assert node.layers is not None
            edges[[node.layers.start, node.layers.end]] -= 1
        usual = edges / max(edges[1:-1].max(initial=0), 1)
        usual[[0, -1]] = 1.0
        return copies, rates, usual

    @cached_property
    def _places(self) -> dict[PeerId, tuple[int, MeshNode]]:
        return {one.peer: (index, one) for index, one in enumerate(self.nodes)}

    @cached_property
    def _ranges(self) -> Ints:
        """Start and end of each node's layers: [N, 2]."""
        ranges = [(one.layers.start, one.layers.end) for one in self.nodes if one.layers is not None]
        return np.array(ranges, dtype=np.int64).reshape(-1, 2)

    @cached_property
    def _spans(self) -> NDArray[np.bool_]:
        """Which layers each node serves or intends to: [N, L]."""
        layers = np.arange(self.num_layers)
        return (self._ranges[:, :1] <= layers) & (layers < self._ranges[:, 1:])

    @cached_property
    def _own_rates(self) -> Floats:
        """What each node gives each of its layers: [N]."""
        return 1 / (self._speeds * (self._ranges[:, 1] - self._ranges[:, 0]))

    @cached_property
    def _speeds(self) -> Floats:
        """Seconds a layer of each node: [N]."""
        return np.array([_layer_s(one) for one in self.nodes], dtype=np.float64)

    @cached_property
    def _rates(self) -> Floats:
        return (self._spans * self._own_rates[:, None]).sum(axis=0)

    @cached_property
    def _copies(self) -> Ints:
        return self._spans.sum(axis=0)

    @cached_property
    def _is_ready(self) -> NDArray[np.bool_]:
        return np.array([one.is_ready for one in self.nodes], dtype=np.bool_)

    @cached_property
    def _ready_copies(self) -> Ints:
        return self._spans[self._is_ready].sum(axis=0)

    @cached_property
    def _edges(self) -> Floats:
        """How many nodes' layers begin or end at each boundary: [L + 1]."""
        return np.bincount(self._ranges.ravel(), minlength=self.num_layers + 1).astype(np.float64)

    @property
    def _is_settled(self) -> bool:
        """Whether one more may make a balancing move."""
        return int((~self._is_ready).sum()) <= len(self.nodes) // NODES_PER_MOVE


def choose_span(num_layers: int, nodes: Iterable[MeshNode], own: MeshNode) -> LayerRange:
    """The layers that ``own`` should serve as it joins, its own announcement left out of ``nodes``.

    Holes first, then where it lowers the burdens most, with layers that begin and end where others' do.
    """
    return Mesh(num_layers, nodes).choose(own)


def plan_move(num_layers: int, nodes: Iterable[MeshNode], own: PeerId) -> LayerRange | None:
    """Where ``own`` should move to, if it is its turn; None where it should stay.

    It is moved to balance only while others that are ready serve all its layers, and to mend a hole only if there are
    fewer of them then.

    Args:
        nodes: every node of the mesh, this one too, as all others see them.
    """
    moves = Mesh(num_layers, nodes).moves
    return moves[0].layers if moves and moves[0].peer == own else None


def _is_sound(node: MeshNode, num_layers: int) -> bool:
    layers = node.layers
    return layers is not None and 0 <= layers.start < layers.end <= num_layers


def _layer_s(node: MeshNode) -> float:
    """As announced, but within reason; what is no number counts as slowest."""
    return min(max(node.layer_s, FASTEST_LAYER_S), SLOWEST_LAYER_S) if node.layer_s > 0 else SLOWEST_LAYER_S


def _gains(rest: Floats, copies: Ints, own_s: Floats, most_s: Floats) -> Floats:
    """By how much each layer's burden falls where a node joins ``copies`` others whose rates are ``rest``: [N, L] all.

    In a hole it counts from ``most_s``, so that fewer layers at once are the better there.

    Args:
        own_s, most_s: [N], what a step of a layer takes on the node alone, with so many layers and with all.
    """
    own_s, most_s = own_s[:, None], most_s[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        before = (1 + LONE_RISK / copies) / rest
        after = (1 + LONE_RISK / (copies + 1)) / (rest + 1 / own_s)
    return np.where(copies > 0, before - after, (1 + LONE_RISK) * (most_s - own_s))


def _window_sums(values: NDArray[np.number], size: int) -> NDArray[np.number]:
    """The sum of every ``size`` neighbours in a row: [N, L] to [N, L - size + 1]."""
    sums = np.concatenate([np.zeros_like(values[:, :1]), values.cumsum(axis=1)], axis=1)
    return sums[:, size:] - sums[:, :-size]


def _best_windows(rest: Floats, copies: Ints, sizes: Ints, layer_s: Floats) -> tuple[Ints, Floats]:
    """For each node the holes that its best window of its size mends, and what it gains: [N] both."""
    holes, gains = np.zeros(len(sizes), np.int64), np.zeros(len(sizes))
    for size in np.unique(sizes):
        same = np.flatnonzero(sizes == size)
        mended = _window_sums((copies[same] == 0).astype(np.int64), size)
        own_s, most_s = layer_s[same] * size, layer_s[same] * copies.shape[1]
        gained = _window_sums(_gains(rest[same], copies[same], own_s, most_s), size)
        holes[same] = mended.max(axis=1)
        gains[same] = np.where(mended == holes[same, None], gained, -np.inf).max(axis=1)
    return holes, gains


def _rounded(values: Floats) -> Floats:
    """To 24 bits: sums that should be the same are, whatever the machine."""
    return values.astype(np.float32).astype(np.float64)
