"""Which layers a node takes, and which node moves: small meshes by hand, and what must hold in every mesh."""

import random
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hopformer.net.identity import PeerId
from hopformer.net.layer_range import LayerRange, gaps
from hopformer.net.placement import MAX_MOVES, MAX_NODES, NODES_PER_MOVE, Mesh, MeshNode, choose_span, plan_move

NUM_LAYERS = 16


def peer(index: int) -> PeerId:
    return PeerId(index.to_bytes(22, "big"))


def node(index: int, layers: str | None = None, max_layers: int = NUM_LAYERS, layer_s: float = 0.001) -> MeshNode:
    return MeshNode(peer(index), LayerRange.parse(layers) if layers else None, layer_s, max_layers)


def chosen(nodes: Iterable[MeshNode], own: MeshNode) -> str:
    return str(choose_span(NUM_LAYERS, nodes, own))


def moves(nodes: Iterable[MeshNode]) -> list[tuple[int, str, bool]]:
    found = Mesh(NUM_LAYERS, nodes).moves
    return [(int.from_bytes(move.peer.digest, "big"), str(move.layers), move.mends) for move in found]


def covered(nodes: Iterable[MeshNode]) -> int:
    served = [one.layers for one in nodes if one.layers is not None and one.is_ready]
    return NUM_LAYERS - sum(map(len, gaps(served, LayerRange(0, NUM_LAYERS))))


@pytest.mark.parametrize(
    ("nodes", "own", "expected"),
    [
        ([], node(9), "0:16"),
        ([node(1, "0:8")], node(9, max_layers=8), "8:16"),
        ([node(1, "0:8")], node(9, max_layers=10), "8:16"),
        ([node(1, "0:6"), node(2, "12:16")], node(9, max_layers=6), "6:12"),
        ([node(1, "0:6"), node(2, "12:16")], node(9, max_layers=3), "9:12"),
        ([node(1, "0:8"), node(2, "0:8"), node(3, "8:16")], node(9, max_layers=8), "8:16"),
        ([node(1, "0:8", layer_s=0.001), node(2, "8:16", layer_s=0.004)], node(9, max_layers=8), "8:16"),
        ([node(1, "0:8"), node(2, "8:16")], node(9), "0:16"),
        ([node(1, "0:8"), replace(node(2, "8:12"), is_ready=False)], node(9, max_layers=4), "12:16"),
    ],
    ids=["empty", "hole", "edges", "inner hole", "part of it", "fewest", "slowest", "whole", "intent"],
)
def test_a_node_goes_where_it_is_needed_most(nodes: list[MeshNode], own: MeshNode, expected: str) -> None:
    assert chosen(nodes, own) == expected


def test_a_choice_keeps_to_the_boundaries_of_others() -> None:
    nodes = [node(1, "0:5"), node(2, "5:10"), node(3, "10:16"), node(4, "0:16", layer_s=0.0001)]
    for max_layers in (5, 6, 7):
        start, end = map(int, chosen(nodes, node(9, max_layers=max_layers)).split(":"))
        assert {start, end} <= {0, 5, 10, 16}, max_layers


def test_a_layer_that_one_fast_node_serves_needs_another_more_than_one_that_two_serve() -> None:
    nodes = [node(1, "0:8", layer_s=0.001), node(2, "8:16", layer_s=0.002), node(3, "8:16", layer_s=0.002)]
    assert {chosen(nodes, node(index, max_layers=8)) for index in range(10, 20)} == {"0:8"}


@pytest.mark.parametrize(("replicas", "layer_s", "expected"), [(3, 0.004, "0:16"), (6, 0.002, "8:16")])
def test_the_whole_model_is_taken_unless_a_part_gains_much_more(replicas: int, layer_s: float, expected: str) -> None:
    fast = [node(index, "0:8") for index in range(replicas)]
    slow = [node(20 + index, "8:16", layer_s=0.005) for index in range(replicas)]
    assert chosen([*fast, *slow], node(99, layer_s=layer_s)) == expected


def test_those_who_join_an_empty_mesh_at_once_do_not_all_choose_the_same() -> None:
    assert {chosen([], node(index, max_layers=4)) for index in range(8)} == {"0:4", "12:16"}


def test_the_own_announcement_is_no_reason_to_go_elsewhere() -> None:
    others = [node(1, "0:8")]
    assert chosen([*others, node(9, "8:16", 8)], node(9, max_layers=8)) == "8:16"


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([node(1, "0:8", 8), node(2, "8:16", 8)], []),
        ([node(1, "0:8", 8), node(2, "0:8", 8)], [(1, "8:16", True), (2, "8:16", True)]),
        ([node(1, "0:8", 8), node(2, "0:8", 8), node(3, "8:16", 8)], []),
        ([node(1, "0:8", 8), node(2, "0:8", 8), node(3, "0:8", 8), node(4, "8:16", 8, 0.004)], [(1, "8:16", False)]),
        ([node(1, "0:4", 8), node(2, "8:16", 8)], [(1, "0:8", True)]),
        ([node(1, "0:4", 4), node(2, "8:16", 8)], []),
        ([node(1, "0:4", 4), node(2, "4:6", 6)], [(2, "4:10", True)]),
    ],
    ids=["fine", "hole", "spare", "slow", "longer", "no room", "worse hole"],
)
def test_nodes_move_when_it_is_worth_it(nodes: list[MeshNode], expected: list[tuple[int, str, bool]]) -> None:
    found = moves(nodes)
    assert found[: len(expected)] == expected and bool(found) == bool(expected)
    own = expected[0][0] if expected else 1
    assert plan_move(NUM_LAYERS, nodes, peer(own)) == (LayerRange.parse(expected[0][1]) if expected else None)
    assert all(plan_move(NUM_LAYERS, nodes, one.peer) is None for one in nodes if one.peer != peer(own))


def test_whoever_disturbs_fewer_sessions_goes_first() -> None:
    nodes = [replace(node(1, "0:8", 8), load=2), node(2, "0:8", 8), replace(node(3, "0:8", 8), load=1)]
    assert [index for index, _, _ in moves(nodes)] == [2, 3, 1]


@pytest.mark.parametrize("change", [{"is_ready": False}, {"is_movable": False}, {"max_layers": 0}])
def test_who_loads_or_was_told_its_layers_or_has_no_room_stays(change: dict[str, bool]) -> None:
    nodes = [node(1, "0:8", 8), node(2, "0:8", 8), node(3, "0:8", 8)]
    assert [index for index, _, _ in moves(nodes)] == [1, 2, 3]
    assert [index for index, _, _ in moves([replace(nodes[0], **change), *nodes[1:]])] == [2, 3]


def test_nobody_leaves_layers_whose_other_replica_is_still_loading() -> None:
    fast, slow = node(1, "0:8", 8, 0.0001), node(3, "8:16", 8, 0.01)
    loading = replace(node(2, "0:8", 8, 0.0001), is_ready=False)
    extra = [node(index, "8:16", 1, 1.0) for index in range(10, 10 + NODES_PER_MOVE)]
    assert moves([fast, replace(loading, is_ready=True), slow, *extra])[0][0] in (1, 2)
    assert moves([fast, loading, slow, *extra]) == []


def test_balancing_waits_for_those_who_are_on_their_way() -> None:
    nodes = [node(index, "0:8", 8) for index in range(3)] + [node(4, "8:16", 8, 0.004)]
    coming = replace(node(5, "0:16", 16, 10.0), is_ready=False)
    assert moves(nodes) and not moves([*nodes, coming])
    many = [node(index, "0:16", 16, 50.0) for index in range(10, 10 + NODES_PER_MOVE)]
    assert moves([*nodes, *many, coming])


def test_a_ranking_is_short_and_a_mesh_has_a_limit() -> None:
    nodes = [node(index, "0:8", 8) for index in range(MAX_NODES + 5)]
    mesh = Mesh(NUM_LAYERS, nodes)
    assert len(mesh.nodes) == MAX_NODES and len(mesh.moves) == MAX_MOVES
    assert mesh.node(peer(MAX_NODES - 1)) is not None and mesh.node(peer(MAX_NODES)) is None


@pytest.mark.parametrize("layer_s", [float("nan"), float("inf"), -1.0, 0.0, 1e-300, 1e300])
def test_an_absurd_speed_is_clamped(layer_s: float) -> None:
    nodes = [node(1, "0:16", layer_s=layer_s), node(2, "0:16"), node(3, "0:8", 8)]
    mesh = Mesh(NUM_LAYERS, nodes)
    assert 0 < mesh.burden_s < 1e6 and len(mesh.moves) <= MAX_MOVES
    assert choose_span(NUM_LAYERS, nodes, node(9, max_layers=8, layer_s=layer_s))


@pytest.mark.parametrize("layers", [LayerRange(3, 3), LayerRange(-1, 4), LayerRange(8, 17), None])
def test_layers_that_the_model_lacks_are_not_counted(layers: LayerRange | None) -> None:
    mesh = Mesh(NUM_LAYERS, [replace(node(1), layers=layers), node(2, "0:8")])
    assert mesh.node(peer(1)) is None and mesh.num_unserved == 8


def test_what_is_lost_and_what_is_mended_is_counted_without_oneself() -> None:
    mesh = Mesh(NUM_LAYERS, [node(1, "0:8"), node(2, "4:8"), replace(node(3, "8:12"), is_ready=False)])
    assert mesh.num_lost(peer(1), LayerRange(0, 8)) == 4 and mesh.num_lost(peer(2), LayerRange(4, 8)) == 0
    assert mesh.num_holes(peer(1), LayerRange(0, 16)) == 8 and mesh.num_holes(peer(3), LayerRange(8, 16)) == 8


spans = st.tuples(st.integers(0, NUM_LAYERS - 1), st.integers(1, NUM_LAYERS)).map(
    lambda pair: LayerRange(pair[0], min(pair[0] + pair[1], NUM_LAYERS))
)


@st.composite
def meshes(draw: st.DrawFn, max_size: int = 8) -> list[MeshNode]:
    nodes = []
    for index in range(draw(st.integers(1, max_size))):
        layers = draw(spans)
        speed, room = draw(st.sampled_from([0.0003, 0.001, 0.002, 0.01])), draw(st.integers(len(layers), NUM_LAYERS))
        found = MeshNode(peer(index), layers, speed, room, load=draw(st.sampled_from([0, 0, 3])))
        nodes.append(replace(found, is_ready=draw(st.booleans()) or draw(st.booleans())))
    return nodes


@given(meshes(), st.randoms(use_true_random=False))
def test_the_order_of_announcements_does_not_matter(nodes: list[MeshNode], shuffle: random.Random) -> None:
    other = nodes.copy()
    shuffle.shuffle(other)
    assert moves(nodes) == moves(other)
    assert chosen(nodes, node(99, max_layers=5)) == chosen(other, node(99, max_layers=5))


@given(meshes())
def test_leaving_never_costs_layers_but_to_mend_more(nodes: list[MeshNode]) -> None:
    for move in Mesh(NUM_LAYERS, nodes).moves:
        own = next(one for one in nodes if one.peer == move.peer)
        left = covered(one for one in nodes if one is not own)  # while it loads
        after = covered([replace(one, layers=move.layers) if one is own else one for one in nodes])
        before = covered(nodes)
        assert own.is_ready and move.layers != own.layers and len(move.layers) <= own.max_layers
        assert after > before or (left == before and after == before and not move.mends)


@given(meshes())
@settings(max_examples=60)
def test_a_mesh_that_nobody_joins_or_leaves_comes_to_rest(nodes: list[MeshNode]) -> None:
    mesh = Mesh(NUM_LAYERS, [replace(one, is_ready=True) for one in nodes])
    for _ in range(4 * len(nodes) + 1):
        if not mesh.moves:
            return
        move = mesh.moves[0]
        moved = [replace(one, layers=move.layers) if one.peer == move.peer else one for one in mesh.nodes]
        after = Mesh(NUM_LAYERS, moved)
        assert (after.num_unserved, after.burden_s) < (mesh.num_unserved, mesh.burden_s) or move.mends
        assert after.num_unserved < mesh.num_unserved or not move.mends
        mesh = after
    raise AssertionError("it still moves")


@given(meshes(), st.integers(1, NUM_LAYERS), st.integers(100, 200))
def test_who_joins_mends_as_much_as_it_has_room_for(nodes: list[MeshNode], max_layers: int, index: int) -> None:
    own = node(index, max_layers=max_layers)
    layers = choose_span(NUM_LAYERS, nodes, own)
    assert 0 <= layers.start < layers.end <= NUM_LAYERS and max_layers <= 2 * len(layers) <= 2 * max_layers
    mesh = Mesh(NUM_LAYERS, nodes)
    most = max(
        mesh.num_holes(own.peer, LayerRange(start, start + max_layers)) for start in range(NUM_LAYERS - max_layers + 1)
    )
    assert mesh.num_holes(own.peer, layers) == most


def test_nodes_that_join_one_after_the_other_balance_a_large_mesh() -> None:
    draw, nodes = random.Random(1), []
    for index in range(200):
        own = MeshNode(peer(index), None, draw.choice([0.0005, 0.001, 0.004]), draw.choice([4, 8, 16, 40, 80]))
        nodes.append(replace(own, layers=choose_span(80, nodes, own)))
    rates = [
        sum(1 / (one.layer_s * len(one.layers)) for one in nodes if one.layers.start <= layer < one.layers.end)
        for layer in range(80)
    ]
    assert min(rates) > 0.8 * sum(rates) / 80
