"""A mesh that places its own layers, simulated: peers of mixed speed and room join, load, leave, crash and move. Pure.

Every peer runs the real thing: net/auto_span.py decides by net/placement.py, on a view of its own that is as old as
announcements take to reach it. What a simulator has to make up is named below. No sessions, rows or weights move here.

A layer counts as served from the moment that it is loaded until its peer leaves, crashes or drains, whatever others
believe meanwhile.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from statistics import median

from ..net.auto_span import AnnounceIntent, AnnounceReady, AutoSpan, Drain, Load, Output, Unload, Withdraw
from ..net.expectation import expect
from ..net.identity import PEER_DIGEST_BYTES, PeerId
from ..net.layer_range import LayerRange
from ..net.placement import Mesh, MeshNode
from .placement_meter import Meter

GROWTH_S = 120.0  # in which the first peers come, one by one
WARM_UP_S = 300.0  # after that it is measured: the last of them have loaded
ROOM = ((1, 0.05), (0.5, 0.1), (0.3, 0.2), (0.2, 0.25), (0.1, 0.25), (0.05, 0.15))  # share of the layers, and of peers
LAYER_S = (0.0003, 0.01)  # of a decode step; in between, any magnitude is as likely: from a large GPU to a laptop's CPU
RTT_S = (0.002, 0.08)
LOAD_LAYER_S = (0.5, 4.0)  # to fetch and load a layer: 400 MB at 100 to 800 MB/s
LOAD_S = 5.0  # and to start
FAILED_LOADS = 0.01
DELAY_S = (1, 5)  # until an announcement is seen, whole seconds
LEASE_S = (20.0, 30.0)  # that a crashed peer's announcement outlives it: renewed every 10 s, for 30 s
CRASHES = 0.5  # of those that go; the others say so


@dataclass(frozen=True, slots=True)
class SimPlan:
    """What is simulated.

    Attributes:
        churn_percent: of the peers that go in a minute; as many join.
        strikes: at half time all peers that serve the layer in the middle crash at once, and nobody joins any more.
        moves: whether peers that serve may move.
    """

    num_peers: int
    num_layers: int
    minutes: float
    seed: int
    churn_percent: float = 1.0
    strikes: bool = False
    moves: bool = True


@dataclass(frozen=True, slots=True)
class SimResult:
    """What came of it, after WARM_UP_S.

    Attributes:
        whole_percent: of the time with every layer served.
        covered_percent: of the layers, over the time.
        whole_after_s: until all layers were served for the first time; None for never.
        num_holes: times that a layer was served by nobody; a hole of several layers is one until all are served.
        mend_p50_s, mend_max_s: until such a time was over, if it was.
        balance_percent, worst_balance_percent: the slowest layer's rate, of the one that all would have if peers could
            share all layers alike; mean over the time, and the least.
        moves_per_node_hour: a move is a drain and a load; those called off do not count.
        hops, tokens_per_s: of the best route at the end, from a caller that serves nothing; None without one.
    """

    num_joined: int
    num_gone: int
    whole_percent: float
    covered_percent: float
    whole_after_s: float | None
    num_holes: int
    mend_p50_s: float | None
    mend_max_s: float | None
    balance_percent: float
    worst_balance_percent: float
    moves_per_node_hour: float
    hops: int | None
    tokens_per_s: float | None


@dataclass(slots=True, eq=False)
class _Peer:
    """One peer, and what really happens on it; ``turn`` tells an answer to an output from one to those before it."""

    auto: AutoSpan
    random: random.Random
    load_layer_s: float
    delay_s: int
    serves: LayerRange | None = None
    is_gone: bool = False
    turn: int = 0


class _Views:
    """The announcements of the last seconds, one view for each."""

    def __init__(self, num_layers: int) -> None:
        self._num_layers = num_layers
        self._now: dict[PeerId, MeshNode] = {}
        self._past: deque[Mesh] = deque([Mesh(num_layers, ())], maxlen=DELAY_S[1] + 1)
        self._is_changed = False

    def announce(self, node: MeshNode) -> None:
        self._now[node.peer] = node
        self._is_changed = True

    def withdraw(self, peer: PeerId) -> None:
        self._is_changed |= self._now.pop(peer, None) is not None

    def tick(self) -> None:
        """A second is over."""
        self._past.append(Mesh(self._num_layers, self._now.values()) if self._is_changed else self._past[-1])
        self._is_changed = False

    def seen(self, delay_s: int) -> Mesh:
        """What whoever is so far away sees now."""
        return self._past[max(len(self._past) - delay_s, 0)]


class Simulation:
    """One run. ``run`` it once."""

    def __init__(self, plan: SimPlan) -> None:
        self._plan = plan
        self._random = random.Random(plan.seed)
        self._now = 0.0
        self._order = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._peers: list[_Peer] = []
        self._views = _Views(plan.num_layers)
        self._meter = Meter(plan.num_layers, WARM_UP_S)
        self._num_joined = self._num_gone = self._num_moves = 0
        self._is_struck = False

    def mesh(self) -> Mesh:
        """All announcements as they are now."""
        return Mesh(self._plan.num_layers, (peer.auto.own for peer in self._peers))

    def run(self) -> SimResult:
        """Simulate all of it."""
        plan, end_s = self._plan, self._plan.minutes * 60
        for _ in range(plan.num_peers):
            self._at(self._random.uniform(0, GROWTH_S), self._join)
        self._at(1.0, self._tick)
        if plan.churn_percent:
            self._at(GROWTH_S + self._gap_s(), self._churn)
        if plan.strikes:
            self._at(end_s / 2, self._strike)
        while self._events and self._events[0][0] < end_s:
            self._now, _, event = heapq.heappop(self._events)
            self._meter.advance(self._now, len(self._peers))
            event()
        self._meter.advance(end_s, len(self._peers))
        return self._result()

    def _at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), event))

    def _tick(self) -> None:
        self._views.tick()
        self._at(self._now + 1.0, self._tick)

    def _gap_s(self) -> float:
        """Until the next peer joins that replaces one that goes."""
        return self._random.expovariate(self._plan.num_peers * self._plan.churn_percent / 100 / 60)

    def _churn(self) -> None:
        if not self._is_struck:
            self._join()
            self._at(self._now + self._gap_s(), self._churn)

    def _join(self) -> None:
        """A peer comes, with everything that will ever be drawn for it, whatever it or others decide."""
        draw = random.Random(self._random.getrandbits(64))
        share = draw.choices([one for one, _ in ROOM], [weight for _, weight in ROOM])[0]
        node = MeshNode(
            PeerId(draw.randbytes(PEER_DIGEST_BYTES)),
            None,
            LAYER_S[0] * (LAYER_S[1] / LAYER_S[0]) ** draw.random(),
            max(round(share * self._plan.num_layers), 1),
            draw.uniform(*RTT_S),
            is_movable=self._plan.moves,
        )
        peer = _Peer(AutoSpan(node, self._now), draw, draw.uniform(*LOAD_LAYER_S), draw.randint(*DELAY_S))
        self._peers.append(peer)
        self._num_joined += 1
        if self._plan.churn_percent:
            lives_s = draw.expovariate(self._plan.churn_percent / 100 / 60)
            is_crash = draw.random() < CRASHES
            self._at(max(self._now, GROWTH_S) + lives_s, lambda: self._go(peer, is_crash))
        self._go_on(peer)

    def _strike(self) -> None:
        self._is_struck = True
        middle = LayerRange(self._plan.num_layers // 2, self._plan.num_layers // 2 + 1)
        for peer in [one for one in self._peers if one.serves is not None and middle in one.serves]:
            self._go(peer, is_crash=True)

    def _go(self, peer: _Peer, is_crash: bool) -> None:
        if peer.is_gone:
            return
        peer.is_gone = True
        self._peers.remove(peer)
        self._num_gone += 1
        self._serve(peer, None)
        name = peer.auto.own.peer
        if is_crash:
            self._at(self._now + peer.random.uniform(*LEASE_S), lambda: self._views.withdraw(name))
        else:
            self._views.withdraw(name)

    def _go_on(self, peer: _Peer) -> None:
        """Carry out what a peer decided, and come back when it wants to decide again."""
        for output in peer.auto.take_outputs():
            self._carry_out(peer, output)
        peer.auto.check_integrity()
        due = peer.auto.next_deadline()
        if due is not None:
            self._at(max(due, self._now), lambda: self._decide(peer, due))

    def _decide(self, peer: _Peer, due: float) -> None:
        if peer.is_gone or peer.auto.next_deadline() != due:
            return
        mesh = self._views.seen(peer.delay_s)
        num_moves = peer.auto.num_moves
        peer.auto.handle_deadline(mesh, self._now)
        self._count_moves(peer.auto.num_moves - num_moves)
        self._go_on(peer)

    def _count_moves(self, num_moves: int) -> None:
        if self._now >= WARM_UP_S:
            self._num_moves += num_moves

    def _carry_out(self, peer: _Peer, output: Output) -> None:
        peer.turn += 1
        turn = peer.turn
        match output:
            case AnnounceIntent():
                self._views.announce(peer.auto.own)
            case AnnounceReady(layers):
                self._serve(peer, layers)
                self._views.announce(peer.auto.own)
            case Withdraw():
                self._views.withdraw(peer.auto.own.peer)
            case Load(layers):
                load_s = LOAD_S + peer.load_layer_s * len(layers)
                self._at(self._now + load_s, lambda: self._answer(peer, turn, self._load_ended))
            case Drain(grace_s):
                self._serve(peer, None)
                self._at(self._now + peer.random.uniform(0, grace_s), lambda: self._answer(peer, turn, self._drained))
            case Unload():
                pass

    def _answer(self, peer: _Peer, turn: int, event: Callable[[_Peer], None]) -> None:
        if not peer.is_gone and peer.turn == turn:
            event(peer)
            self._go_on(peer)

    def _load_ended(self, peer: _Peer) -> None:
        if peer.random.random() < FAILED_LOADS:
            peer.auto.load_failed(self._now)
        else:
            peer.auto.loaded(self._now)

    def _drained(self, peer: _Peer) -> None:
        peer.auto.drained(self._now)

    def _serve(self, peer: _Peer, layers: LayerRange | None) -> None:
        if peer.serves is not None:
            self._meter.remove(peer.serves, peer.auto.own.layer_s)
        peer.serves = layers
        if layers is not None:
            self._meter.add(layers, peer.auto.own.layer_s)

    def _result(self) -> SimResult:
        meter = self._meter
        ready = (peer.auto.own for peer in self._peers if peer.serves is not None)
        expected = expect(self._plan.num_layers, ready)
        return SimResult(
            num_joined=self._num_joined,
            num_gone=self._num_gone,
            whole_percent=meter.whole_percent,
            covered_percent=meter.covered_percent,
            whole_after_s=meter.whole_at,
            num_holes=meter.num_holes,
            mend_p50_s=median(meter.mended_s) if meter.mended_s else None,
            mend_max_s=max(meter.mended_s, default=None),
            balance_percent=meter.balance_percent,
            worst_balance_percent=100 * meter.worst_balance,
            moves_per_node_hour=self._num_moves / meter.node_hours if meter.node_hours else 0.0,
            hops=len(expected.hops) if expected else None,
            tokens_per_s=expected.tokens_per_s if expected else None,
        )
