"""What a session may expect of a mesh, in seconds that can be added up by hand."""

import random

import pytest

from hopformer.net.expectation import expect
from hopformer.net.identity import PeerId
from hopformer.net.layer_range import LayerRange
from hopformer.net.placement import MeshNode
from hopformer.net.routes import HOP_S, Candidate, Ends, cheapest_route, route_cost_s


def peer(index: int) -> PeerId:
    return PeerId(index.to_bytes(22, "big"))


def node(index: int, layers: str, layer_s: float, rtt_s: float = 0.0, max_layers: int = 8) -> MeshNode:
    return MeshNode(peer(index), LayerRange.parse(layers), layer_s, max_layers, rtt_s)


def test_a_route_is_the_sum_of_its_hops_and_ones_own_layers_cost_no_hop() -> None:
    found = expect(8, [node(1, "0:4", 0.010), node(2, "4:8", 0.002, 0.030)], peer(1))
    assert found is not None and [(hop.peer, str(hop.layers)) for hop in found.hops] == [
        (peer(1), "0:4"),
        (peer(2), "4:8"),
    ]
    assert found.hops[0].step_s == pytest.approx(0.040) and found.hops[0].network_s == 0
    assert found.hops[1].layers_s == pytest.approx(0.008) and found.hops[1].network_s == pytest.approx(0.030 + HOP_S)
    assert found.step_s == pytest.approx(0.078 + HOP_S) and found.tokens_per_s == pytest.approx(1 / found.step_s)
    assert found.bottleneck is found.hops[0]


def test_one_machine_alone_is_named_when_it_is_faster() -> None:
    near, far = node(1, "0:4", 0.004), node(2, "4:8", 0.001, 0.100)
    found = expect(8, [near, far], peer(1))
    assert found is not None and found.is_alone_faster and found.alone is not None
    assert found.alone.peer == peer(1) and found.alone.step_s == pytest.approx(0.032) and found.with_room is None
    found = expect(8, [near, node(2, "4:8", 0.001, 0.010)], peer(1))
    assert found is not None and found.alone is not None and found.alone.peer == peer(2)
    assert found.alone.step_s == pytest.approx(0.018 + HOP_S)


def test_a_machine_that_lacks_room_is_told_apart() -> None:
    found = expect(8, [node(1, "0:4", 0.004, max_layers=6), node(2, "4:8", 0.001, 0.100, 4)], peer(1))
    assert found is not None and found.alone is None and not found.is_alone_faster
    assert found.with_room is not None and (found.with_room.peer, found.with_room.max_layers) == (peer(1), 6)
    found = expect(8, [node(1, "0:4", 0.004, max_layers=6), node(2, "0:8", 0.001)], peer(1))
    assert found is not None and found.with_room is None and found.alone is not None and len(found.hops) == 1


def test_nothing_is_expected_of_a_mesh_with_a_hole_or_nobody_ready() -> None:
    loading = MeshNode(peer(2), LayerRange(4, 8), 0.001, 8, is_ready=False)
    assert expect(8, []) is None and expect(8, [node(1, "0:4", 0.001), loading]) is None


def test_leaving_out_who_is_bettered_in_all_changes_no_route() -> None:
    draw, caller = random.Random(3), peer(0)
    for _ in range(30):
        nodes = []
        for index in range(1, 12):
            start = draw.randrange(8)
            layers = LayerRange(start, draw.randint(start + 1, 8))
            speed, rtt_s = draw.choice([0.001, 0.002, 0.01]), draw.choice([0.0, 0.005])
            nodes.append(MeshNode(peer(index), layers, speed, 8, rtt_s))
        candidates = [Candidate(one.peer, one.layers, one.layer_s, one.rtt_s) for one in nodes if one.layers]
        best = cheapest_route(candidates, LayerRange(0, 8), Ends(caller, caller))
        found = expect(8, nodes)
        assert (found is None) == (best is None)
        if found is not None and best is not None:
            assert found.step_s == pytest.approx(route_cost_s(candidates, best))
