"""The cheapest route, against all routes there are."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopformer.net.identity import PeerId
from hopformer.net.layer_range import LayerRange
from hopformer.net.routes import Candidate, Ends, Hop, Link, cheapest_route, route_cost_s

CALLER = PeerId(bytes([255]) * 22)
ENDS = Ends(CALLER, CALLER)
WHOLE = LayerRange(0, 8)


def peer(index: int) -> PeerId:
    return PeerId(bytes([index]) * 22)


def candidate(index: int, layers: str, layer_s: float = 0.001, rtt_s: float = 0.01) -> Candidate:
    return Candidate(peer(index), LayerRange.parse(layers), layer_s, rtt_s)


def drawn(route: Sequence[Hop] | None) -> list[tuple[int, str]] | None:
    return None if route is None else [(hop.peer.digest[0], str(hop.layers)) for hop in route]


@pytest.mark.parametrize(
    ("candidates", "route"),
    [
        ([candidate(1, "0:8")], [(1, "0:8")]),
        ([candidate(1, "0:4"), candidate(2, "4:8")], [(1, "0:4"), (2, "4:8")]),
        ([candidate(1, "0:8", 0.002), candidate(2, "0:8", 0.001)], [(2, "0:8")]),
        ([candidate(1, "0:8", rtt_s=0.05), candidate(2, "0:8", rtt_s=0.04)], [(2, "0:8")]),
        ([candidate(1, "0:8"), candidate(2, "0:8")], [(1, "0:8")]),
        ([candidate(1, "0:6"), candidate(2, "3:8")], [(1, "0:3"), (2, "3:8")]),
        ([candidate(1, "0:6", 0.001), candidate(2, "3:8", 0.002)], [(1, "0:6"), (2, "6:8")]),
        ([candidate(1, "0:8", 0.1), candidate(2, "2:6", 0.001)], [(1, "0:8")]),  # nobody is there twice
        ([candidate(1, "0:4"), candidate(2, "5:8")], None),
        ([], None),
        ([candidate(1, "0:20")], [(1, "0:8")]),
    ],
    ids=str,
)
def test_the_cheapest_hops_are_taken(candidates: list[Candidate], route: list[tuple[int, str]] | None) -> None:
    assert drawn(cheapest_route(candidates, WHOLE, ENDS)) == route


def test_broken_links_are_not_taken_from_end_to_end() -> None:
    candidates = [
        candidate(1, "0:4"),
        candidate(2, "4:8"),
        candidate(3, "0:4", rtt_s=1.0),
        candidate(4, "4:8", rtt_s=1.0),
    ]
    ends = Ends(peer(8), peer(9))
    for broken, expected in [
        ((peer(1), peer(2)), [3, 2]),
        ((peer(8), peer(1)), [3, 2]),
        ((peer(2), peer(9)), [1, 4]),
        ((peer(2), peer(1)), [1, 2]),
    ]:
        found = cheapest_route(candidates, WHOLE, ends, {broken})
        assert found is not None and [hop.peer.digest[0] for hop in found] == expected


def all_routes(candidates: Sequence[Candidate], start: int, used: tuple[Hop, ...]) -> Iterator[tuple[Hop, ...]]:
    if start == WHOLE.end:
        yield used
        return
    for one in candidates:
        if one.layers.start <= start < one.layers.end and all(hop.peer != one.peer for hop in used):
            for end in range(start + 1, min(one.layers.end, WHOLE.end) + 1):
                yield from all_routes(candidates, end, (*used, Hop(one.peer, LayerRange(start, end))))


spans = st.tuples(st.integers(0, 7), st.integers(1, 8)).map(lambda pair: LayerRange(pair[0], pair[0] + pair[1]))
costs = st.tuples(spans, st.sampled_from([0.001, 0.002, 0.01]), st.sampled_from([0.0, 0.005, 0.05]))


@given(st.lists(costs, max_size=4), st.booleans())
def test_there_is_a_route_whenever_there_is_one_and_it_is_sound(
    found: list[tuple[LayerRange, float, float]], breaks: bool
) -> None:
    candidates = [Candidate(peer(index), *one) for index, one in enumerate(found)]
    broken: set[Link] = {(peer(0), peer(1))} if breaks else set()
    route = cheapest_route(candidates, WHOLE, ENDS, broken)
    others = [
        other
        for other in all_routes(candidates, 0, ())
        if not broken & {(one.peer, two.peer) for one, two in pairwise(other)}
    ]
    if not breaks:
        assert (route is None) == (not others)
    if route is not None:
        assert route in others, "a hop serves what it does not have, or twice"
        cost_s = route_cost_s(candidates, route)
        if all(
            not one.layers.common(two.layers) or one.layers == two.layers for one in candidates for two in candidates
        ):
            assert cost_s == pytest.approx(min(route_cost_s(candidates, other) for other in others))
