"""Planning who runs which layers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopformer.errors import BlocksMapError
from hopformer.net.blocks_map import MapModel, MapPeer, faults
from hopformer.net.blocks_plan import Plan, Provider, plan_blocks
from hopformer.net.identity import PeerId

MODEL = MapModel("demo")
LAYER_BYTES = 100


def provider(index: int, num_layers: int, speed: float) -> Provider:
    """A peer with room for ``num_layers`` and half of another one."""
    return Provider(MapPeer(str(PeerId(bytes([index]) * 22)), ("h:1",)), LAYER_BYTES * num_layers + 50, speed)


def spans(plan: Plan, providers: list[Provider]) -> list[str | None]:
    """What each provider got."""
    found = {route.peer_id: route.layers for route in plan.blocks_map.routes}
    return [found.get(one.peer.peer_id) for one in providers]


@pytest.mark.parametrize(
    ("sizes", "expected", "step_s"),
    [
        ([(8, 100.0)], ["0:8"], 0.08),
        ([(4, 100.0), (6, 200.0)], ["0:2", "2:8"], 2 / 100 + 6 / 200),
        ([(6, 200.0), (4, 100.0)], ["0:6", "6:8"], 2 / 100 + 6 / 200),
        ([(8, 100.0), (8, 200.0), (3, 50.0)], ["0:8", "0:8", "0:3"], 8 / 200),
        ([(0, 900.0), (8, 1.0)], [None, "0:8"], 8.0),
    ],
)
def test_the_fastest_run_what_they_have_room_for(
    sizes: list[tuple[int, float]], expected: list[str | None], step_s: float
) -> None:
    providers = [provider(index, *size) for index, size in enumerate(sizes)]
    plan = plan_blocks(MODEL, 8, LAYER_BYTES, providers)
    assert spans(plan, providers) == expected and plan.step_s == pytest.approx(step_s)
    assert plan.num_unused == expected.count(None)


def test_replicas_go_where_there_are_fewest() -> None:
    providers = [provider(0, 8, 9.0), provider(1, 3, 5.0), provider(2, 3, 4.0), provider(3, 3, 3.0)]
    assert spans(plan_blocks(MODEL, 8, LAYER_BYTES, providers), providers) == ["0:8", "0:3", "3:6", "5:8"]


def test_too_little_room_is_told_in_layers_and_bytes() -> None:
    with pytest.raises(BlocksMapError, match=r"room for 5 of 8 layers; 3\.00 GiB more are needed"):
        plan_blocks(MODEL, 8, 1 << 30, [Provider(MapPeer("self"), 5 << 30, 1.0)])


@given(
    num_layers=st.integers(1, 40),
    sizes=st.lists(st.tuples(st.integers(0, 45), st.floats(0.1, 1000.0)), min_size=1, max_size=8),
)
def test_a_plan_is_a_map_without_faults(num_layers: int, sizes: list[tuple[int, float]]) -> None:
    providers = [provider(index, *size) for index, size in enumerate(sizes)]
    if sum(min(size, num_layers) for size, _ in sizes) < num_layers:
        with pytest.raises(BlocksMapError):
            plan_blocks(MODEL, num_layers, LAYER_BYTES, providers)
        return
    plan = plan_blocks(MODEL, num_layers, LAYER_BYTES, providers)
    assert faults(plan.blocks_map, num_layers) == []
    assert len(plan.blocks_map.routes) == sum(size > 0 for size, _ in sizes) == len(sizes) - plan.num_unused
