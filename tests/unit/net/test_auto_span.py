"""The life of a node that chooses its layers: every way through its phases, and several nodes together."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hopformer.net.auto_span import (
    MAX_COUNTED_FAILURES,
    MAX_YIELDS,
    AnnounceIntent,
    AnnounceReady,
    AutoSpan,
    AutoTimes,
    Drain,
    Load,
    Output,
    Phase,
    Unload,
    Withdraw,
)
from hopformer.net.identity import PeerId
from hopformer.net.layer_range import LayerRange, gaps
from hopformer.net.placement import Mesh, MeshNode

NUM_LAYERS = 16
TIMES = AutoTimes()
LOW, HIGH = LayerRange(0, 8), LayerRange(8, 16)


def peer(index: int) -> PeerId:
    return PeerId(index.to_bytes(22, "big"))


def node(index: int, layers: LayerRange | None = None, max_layers: int = 8, layer_s: float = 0.001) -> MeshNode:
    return MeshNode(peer(index), layers, layer_s, max_layers)


class Life:
    """One AutoSpan among others whose announcements are set by hand."""

    def __init__(self, own: MeshNode, others: list[MeshNode]) -> None:
        self.auto, self.others, self.now = AutoSpan(own, 0.0), others, 0.0

    def mesh(self) -> Mesh:
        return Mesh(NUM_LAYERS, [*self.others, self.auto.own])

    def go_on(self, until: float | None = None) -> list[Output]:
        """Let the next deadline pass, or time until ``until``."""
        due = self.auto.next_deadline()
        self.now = max(self.now, due if due is not None else self.now) if until is None else until
        self.auto.handle_deadline(self.mesh(), self.now)
        self.auto.check_integrity()
        return self.auto.take_outputs()

    def serve(self) -> None:
        """On to the first span."""
        self.go_on()
        self.go_on()
        self.auto.loaded(self.now)
        self.auto.check_integrity()
        self.auto.take_outputs()

    def wait(self, seconds: float) -> list[Output]:
        """Let deadlines pass for so long."""
        outputs, end = [], self.now + seconds
        while (due := self.auto.next_deadline()) is not None and due <= end:
            outputs += self.go_on()
        self.now = end
        return outputs


def test_an_intent_goes_before_a_load_and_readiness_after_it() -> None:
    life = Life(node(5), [node(1, LOW)])
    assert life.go_on(TIMES.settle_s - 0.1) == [] and life.auto.phase is Phase.WAITING
    assert life.go_on() == [AnnounceIntent(HIGH)] and not life.auto.own.is_ready
    assert life.go_on(life.now + TIMES.confirm_s / 2) == []
    assert life.go_on(life.now + TIMES.confirm_s) == [Load(HIGH)] and life.auto.phase is Phase.LOADING
    assert life.auto.next_deadline() is None and not life.auto.own.is_ready
    life.auto.loaded(life.now)
    assert life.auto.take_outputs() == [AnnounceReady(HIGH)] and life.auto.own == replace(node(5, HIGH))


def test_nodes_that_start_together_choose_one_after_the_other() -> None:
    first, last = (AutoSpan(replace(node(1), peer=PeerId(bytes([byte]) * 22)), 10.0) for byte in (0, 255))
    assert first.next_deadline() == pytest.approx(10 + TIMES.settle_s)
    assert last.next_deadline() == pytest.approx(10 + TIMES.settle_s + TIMES.stagger_s)


@pytest.mark.parametrize(("other", "yields"), [(1, True), (9, False)])
def test_of_two_intents_that_cross_the_lower_peer_id_stays(other: int, yields: bool) -> None:
    life = Life(node(5), [])
    intent = life.go_on()[0]
    assert isinstance(intent, AnnounceIntent)
    life.others = [replace(node(other, intent.layers), is_ready=False)]
    outputs = life.go_on()
    rest = HIGH if intent.layers == LOW else LOW
    assert outputs == ([AnnounceIntent(rest)] if yields else [Load(intent.layers)])
    if yields:
        assert life.go_on() == [Load(rest)]


def test_who_is_ready_meanwhile_goes_first_whatever_its_id() -> None:
    life = Life(node(5), [])
    (intent,) = life.go_on()
    assert isinstance(intent, AnnounceIntent)
    life.others = [node(9, intent.layers)]
    assert life.go_on() == [AnnounceIntent(HIGH if intent.layers == LOW else LOW)]


def test_yielding_has_an_end() -> None:
    life = Life(node(50), [])
    outputs = life.go_on()
    for index in range(MAX_YIELDS + 1):
        assert isinstance(outputs[0], AnnounceIntent)
        life.others.append(replace(node(index, outputs[0].layers, layer_s=1e-5), is_ready=False))
        outputs = life.go_on()
    assert isinstance(outputs[0], Load)


def test_failed_loads_are_withdrawn_and_tried_again_later_and_later() -> None:
    life, gaps_s = Life(node(5), [node(1, LOW)]), []
    for _ in range(MAX_COUNTED_FAILURES + 2):
        assert [type(one) for one in life.go_on() + life.go_on()] == [AnnounceIntent, Load]
        life.auto.load_failed(life.now)
        life.auto.check_integrity()
        assert life.auto.take_outputs() == [Withdraw()] and life.auto.layers is None
        due = life.auto.next_deadline()
        assert due is not None
        gaps_s.append(due - life.now)
    assert gaps_s[:3] == [5.0, 10.0, 20.0] and gaps_s[-1] == TIMES.longest_backoff_s
    life.serve()
    life.others = [node(1, LOW), node(2, HIGH)]
    assert life.auto.phase is Phase.SERVING


def test_a_load_that_failed_for_want_of_room_is_tried_with_less_and_not_at_all_without_room() -> None:
    life = Life(node(5), [node(1, LOW)])
    life.go_on(), life.go_on()
    life.auto.has_room(0)
    life.auto.load_failed(life.now)
    life.auto.take_outputs()
    assert life.go_on() == [] and life.auto.phase is Phase.WAITING
    life.auto.has_room(2)
    (intent,) = life.go_on()
    assert isinstance(intent, AnnounceIntent) and len(intent.layers) == 2


def test_measured_speed_counts_from_the_next_choice_on() -> None:
    life = Life(node(5), [node(1, LOW)])
    life.serve()
    life.auto.measured(0.25)
    assert life.auto.own.layer_s == 0.25 and life.mesh().node(peer(5)) == life.auto.own


def serving(others: list[MeshNode], own: MeshNode | None = None) -> Life:
    """A node that serves HIGH beside a replica; ``others`` come then."""
    life = Life(own or node(5), [node(1, LOW)])
    life.serve()
    assert life.auto.layers == HIGH
    life.others = others
    return life


def test_a_hole_is_mended_after_a_while_by_drain_unload_and_load() -> None:
    life = serving([node(6, HIGH)])
    assert life.wait(TIMES.mend_after_s) == [] and life.auto.phase is Phase.SERVING
    outputs = life.wait(TIMES.plan_every_s)
    assert outputs == [AnnounceIntent(LOW), Drain(TIMES.mend_drain_s)] and life.auto.phase is Phase.DRAINING
    assert not life.auto.own.is_ready and life.auto.layers == LOW
    life.auto.drained(life.now)
    assert life.auto.take_outputs() == [Unload()] and life.go_on() == [Load(LOW)]
    life.auto.loaded(life.now)
    assert life.auto.take_outputs() == [AnnounceReady(LOW)] and life.auto.num_moves == 1
    assert life.wait(600) == []


def test_a_move_that_only_balances_waits_longer_and_drains_longer() -> None:
    life = serving([node(6, HIGH), node(7, HIGH), node(8, LOW, layer_s=0.004)])
    assert life.wait(TIMES.balance_after_s) == []
    assert life.wait(TIMES.plan_every_s) == [AnnounceIntent(LOW), Drain(TIMES.drain_s)]


def test_a_hole_that_is_gone_again_moves_nobody() -> None:
    life = serving([node(6, HIGH)])
    for _ in range(5):
        life.others = [node(6, HIGH)]
        assert life.wait(TIMES.mend_after_s - 1) == []
        life.others = [node(6, HIGH), node(7, LOW)]
        assert life.wait(TIMES.plan_every_s) == []


def test_nobody_moves_whose_own_announcement_is_not_round_yet() -> None:
    life = serving([node(6, HIGH)])
    old = Mesh(NUM_LAYERS, [*life.others, replace(life.auto.own, is_ready=False)])
    for _ in range(20):
        life.now = life.auto.next_deadline() or 0.0
        life.auto.handle_deadline(old, life.now)
    assert life.auto.take_outputs() == [] and life.auto.phase is Phase.SERVING


def test_the_second_in_turn_waits_twice_as_long_for_one_that_does_not_act() -> None:
    life = serving([node(2, HIGH)])
    assert [move.peer for move in life.mesh().moves] == [peer(2), peer(5)]
    assert life.wait(2 * TIMES.mend_after_s) == []
    assert life.wait(TIMES.plan_every_s) == [AnnounceIntent(LOW), Drain(TIMES.mend_drain_s)]


def test_a_drain_is_called_off_when_the_replica_goes_too() -> None:
    life = serving([node(6, HIGH), node(7, HIGH), node(8, LOW, layer_s=0.004)])
    assert len(life.wait(TIMES.balance_after_s + TIMES.plan_every_s)) == 2
    life.others = [node(8, LOW, layer_s=0.004)]
    assert life.go_on() == [AnnounceReady(HIGH)] and life.auto.num_moves == 0
    life.auto.drained(life.now)
    assert life.auto.take_outputs() == [] and life.auto.phase is Phase.SERVING
    assert life.wait(600) == []


def test_a_drain_is_called_off_that_would_mend_no_more_than_is_lost() -> None:
    life = serving([node(6, HIGH)])
    assert len(life.wait(TIMES.mend_after_s + TIMES.plan_every_s)) == 2
    life.others = []
    assert life.go_on() == [AnnounceReady(HIGH)] and life.auto.own.is_ready


def test_a_drain_goes_on_that_mends_more_than_is_lost() -> None:
    life = serving([node(6, LayerRange(8, 12), 4), node(7, LayerRange(12, 16), 4)])
    assert len(life.wait(TIMES.mend_after_s + TIMES.plan_every_s)) == 2
    life.others = [node(7, LayerRange(12, 16), 4)]
    assert life.go_on() == [] and life.auto.phase is Phase.DRAINING


class Village:
    """Nodes that see each other's announcements at once, load in no time that is asked about, and may crash."""

    def __init__(self, nodes: list[MeshNode]) -> None:
        self.now = 0.0
        self.autos = [AutoSpan(one, 0.0) for one in nodes]
        self.loading: dict[PeerId, float] = {}
        self.draining: dict[PeerId, float] = {}
        self.num_lost = 0

    def mesh(self) -> Mesh:
        return Mesh(NUM_LAYERS, [auto.own for auto in self.autos if auto.layers])

    def served(self) -> int:
        ready = [auto.own.layers for auto in self.autos if auto.own.is_ready and auto.own.layers]
        return NUM_LAYERS - sum(map(len, gaps(ready, LayerRange(0, NUM_LAYERS))))

    def run(self, seconds: float) -> None:
        """Let time pass, a second at a time."""
        for _ in range(round(seconds)):
            self.now += 1.0
            for auto in self.autos:
                before = self.served() if self.turn(auto) else None
                if before is not None:
                    auto.handle_deadline(self.mesh(), self.now)
                    self.carry_out(auto)
                    self.num_lost += self.served() < before == NUM_LAYERS

    def turn(self, auto: AutoSpan) -> bool:
        """Tell a node what is done; whether it has something to decide."""
        name = auto.own.peer
        if self.loading.get(name, self.now + 1) <= self.now:
            del self.loading[name]
            auto.loaded(self.now)
            self.carry_out(auto)
        if self.draining.get(name, self.now + 1) <= self.now:
            del self.draining[name]
            auto.drained(self.now)
            self.carry_out(auto)
        due = auto.next_deadline()
        return due is not None and due <= self.now

    def carry_out(self, auto: AutoSpan) -> None:
        name = auto.own.peer
        auto.check_integrity()
        for output in auto.take_outputs():
            match output:
                case Load():
                    self.loading[name] = self.now + 7
                case Drain(grace_s):
                    self.draining[name] = self.now + grace_s / 2
                case AnnounceReady():
                    self.draining.pop(name, None)


@given(st.integers(0, 10_000), st.integers(2, 7))
@settings(max_examples=8, deadline=None)
def test_a_village_covers_what_it_can_comes_to_rest_and_breaks_nothing_by_moving(seed: int, size: int) -> None:
    draw = random.Random(seed)
    nodes = [
        MeshNode(PeerId(draw.randbytes(22)), None, draw.choice([0.001, 0.002, 0.01]), draw.choice([4, 8, 16]))
        for _ in range(size)
    ]
    village = Village(nodes)
    village.run(250)
    room = sum(one.max_layers for one in nodes)
    assert village.served() == NUM_LAYERS or room < 2 * NUM_LAYERS
    moves = sum(auto.num_moves for auto in village.autos)
    if size > 2:  # one crashes
        village.autos.pop(draw.randrange(len(village.autos)))
        served = village.served()
        village.run(300)
        assert village.served() >= served
    rest = sum(auto.num_moves for auto in village.autos)
    village.run(300)
    assert sum(auto.num_moves for auto in village.autos) == rest and moves <= 2 * size
    assert village.num_lost == 0
