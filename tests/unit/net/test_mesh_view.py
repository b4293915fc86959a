"""What callers and people make of a directory: whom to reach for a model, and what a mesh has of which."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopformer.net.announcement import Announcement
from hopformer.net.directory import Entry, Via
from hopformer.net.identity import PeerId
from hopformer.net.layer_range import LayerRange
from hopformer.net.mesh_view import MAX_NAMED, MAX_REACHED, MAX_REPLICAS, MeshView, dial_addrs, offers, why_nobody
from hopformer.net.messages import Codec, Dtype, Serving
from hopformer.net.peer_table import PeerTable, Wanted

FINGERPRINT = bytes(8) + b"\x77" * 24
OTHER_WEIGHTS = bytes(8) + b"\x66" * 24
RELAY = f"{PeerId(bytes(22))}@relay.example:4433"
NUM_LAYERS = 8


def key(index: int) -> bytes:
    return index.to_bytes(32, "big")


def peer(index: int) -> PeerId:
    return PeerId.of(key(index))


def entry(index: int, layers: str | None, is_ready: bool = True, **changes: object) -> Entry:
    """Peer number ``index`` with layers such as "0:4"."""
    span = None if layers is None else LayerRange.parse(layers)
    dtype = None if layers is None else Dtype.FLOAT32
    one = Announcement(key(index), 0, 60, "demo", FINGERPRINT, NUM_LAYERS, span, is_ready and span is not None, dtype)
    one = replace(one, addrs=(f"10.0.0.{index % 256}:1",), layer_us=100)
    return Entry(replace(one, **changes), b"", Via.LAN, 0.0, 60.0)  # type: ignore[arg-type]


@pytest.fixture
def view() -> MeshView:
    return MeshView(FINGERPRINT, NUM_LAYERS, own=peer(0))


# ---- for callers


def test_peers_that_serve_layers_of_the_model_are_reached_once(view: MeshView) -> None:
    entries = [entry(1, "0:4"), entry(2, "4:8")]
    changes = view.update(entries)
    assert changes.reach == {peer(1): ("10.0.0.1:1",), peer(2): ("10.0.0.2:1",)} and changes.gone == changes.ask == ()
    again = view.update(entries)
    assert (again.reach, again.ask, again.gone) == ({}, (), ())
    assert view.reached == {peer(1), peer(2)}


def test_the_node_itself_who_is_loading_and_who_has_another_model_are_left_alone(view: MeshView) -> None:
    others = [
        entry(0, "0:8"),
        entry(1, "0:4", is_ready=False),
        entry(2, None),
        entry(3, "0:4", fingerprint=OTHER_WEIGHTS),
        entry(4, "0:4", num_layers=9),
    ]
    assert view.update(others).reach == {} and view.reached == frozenset()


def test_a_peer_that_is_ready_later_is_reached_then(view: MeshView) -> None:
    view.update([entry(1, "0:4", is_ready=False)])
    assert set(view.update([entry(1, "0:4")]).reach) == {peer(1)}


def test_a_peer_that_is_announced_no_longer_or_serves_another_model_now_is_gone(view: MeshView) -> None:
    view.update([entry(1, "0:4"), entry(2, "4:8")])
    assert view.update([entry(1, "0:4", fingerprint=OTHER_WEIGHTS)]).gone == (peer(1), peer(2))
    assert view.reached == frozenset()


def test_new_addresses_and_new_layers_are_told_and_nothing_else_is(view: MeshView) -> None:
    view.update([entry(1, "0:4"), entry(2, "4:8")])
    moved = view.update([entry(1, "0:4", addrs=("10.9.9.9:1",)), entry(2, "2:8")])
    assert moved.reach == {peer(1): ("10.9.9.9:1",)} and moved.ask == (peer(2),)
    busy = view.update([entry(1, "0:4", addrs=("10.9.9.9:1",), queue_us=9000), entry(2, "2:8", free_tokens=5)])
    assert (busy.reach, busy.ask, busy.gone) == ({}, (), ())


def test_relays_come_after_addresses_and_are_never_pushed_out_by_them() -> None:
    many = entry(1, "0:4", addrs=tuple(f"10.0.0.{index}:1" for index in range(16)), relays=(RELAY, RELAY)).announcement
    assert dial_addrs(many) == (*many.addrs[:14], RELAY, RELAY)
    assert dial_addrs(entry(1, "0:4", relays=(RELAY,)).announcement) == ("10.0.0.1:1", RELAY)


def test_of_many_replicas_the_fastest_few_are_reached(view: MeshView) -> None:
    slow = [entry(index, "0:8", layer_us=1000 + index) for index in range(1, 40)]
    fast = [entry(index, "0:8", layer_us=index) for index in range(100, 100 + MAX_REPLICAS)]
    unknown = [entry(300, "0:8", layer_us=0)]
    entries = [*unknown, *slow, *fast]
    random.Random(1).shuffle(entries)
    assert set(view.update(entries).reach) == {peer(index) for index in range(100, 100 + MAX_REPLICAS)}


def test_a_queue_counts_as_slowness(view: MeshView) -> None:
    busy = [entry(index, "0:8", queue_us=80_000) for index in range(1, 1 + MAX_REPLICAS)]
    idle = [entry(index, "0:8", layer_us=9_000) for index in range(50, 50 + MAX_REPLICAS)]
    assert view.update([*busy, *idle]).reach.keys() == {one.announcement.peer for one in idle}


def test_those_it_has_are_kept_although_others_are_faster(view: MeshView) -> None:
    first = [entry(index, "0:8") for index in range(1, 1 + MAX_REPLICAS)]
    view.update(first)
    faster = [entry(index, "0:8", layer_us=1) for index in range(50, 60)]
    assert view.update([*first, *faster]).reach == {} and len(view.reached) == MAX_REPLICAS


def test_in_place_of_those_that_fail_others_are_reached(view: MeshView) -> None:
    entries = [entry(index, "0:8", layer_us=index) for index in range(1, 30)]
    view.update(entries)
    changes = view.update(entries, unusable={peer(1), peer(2)})
    assert set(changes.reach) == {peer(MAX_REPLICAS + 1), peer(MAX_REPLICAS + 2)} and changes.gone == ()


def test_no_more_peers_are_reached_than_a_caller_can_have_use_for() -> None:
    num_layers = 4096
    view = MeshView(FINGERPRINT, num_layers)
    entries = [entry(index, f"{index}:{index + 1}", num_layers=num_layers) for index in range(MAX_REACHED + 50)]
    assert len(view.update(entries).reach) == MAX_REACHED
    view.check_integrity()


spans = st.tuples(st.integers(0, 7), st.integers(1, 8)).map(lambda two: f"{two[0]}:{min(two[0] + two[1], 8)}")


@given(st.lists(st.lists(st.tuples(st.integers(0, 60), spans, st.booleans()), max_size=80), min_size=1, max_size=6))
def test_a_caller_never_lacks_a_layer_that_somebody_serves(turns: list[list[tuple[int, str, bool]]]) -> None:
    view = MeshView(FINGERPRINT, NUM_LAYERS, own=peer(0))
    reached: set[PeerId] = set()
    for turn in turns:
        by_peer = {index: entry(index, layers, is_ready) for index, layers, is_ready in turn}
        changes = view.update(by_peer.values())
        view.check_integrity()
        assert reached.isdisjoint(changes.reach)
        reached = (reached - set(changes.gone)) | changes.reach.keys()
        assert reached == view.reached
        ready = {
            peer(index): one.announcement.layers
            for index, one in by_peer.items()
            if index and one.announcement.is_ready
        }
        assert reached <= ready.keys()
        for layer in range(NUM_LAYERS):
            served = {who for who, span in ready.items() if span and span.start <= layer < span.end}
            assert len(served & reached) >= min(len(served), MAX_REPLICAS)


def test_a_peer_table_takes_what_a_view_says(view: MeshView) -> None:
    table = PeerTable(Wanted(FINGERPRINT, NUM_LAYERS, Dtype.FLOAT32, 16), {}, {})
    for who, addrs in view.update([entry(1, "0:8", relays=(RELAY,))]).reach.items():
        table.add(who, addrs)
    assert table.to_dial(0.0) == [peer(1)] and table.addrs(peer(1)) == ("10.0.0.1:1", RELAY)
    table.connected(peer(1), 0.0)
    table.serves(peer(1), Serving("demo", FINGERPRINT, 0, 8, Dtype.FLOAT32, (Codec.EXACT,), 9, 0, "1"), 0.0)
    assert table.missing(LayerRange(0, 8), 0.0) == []


# ---- for people


def test_the_models_of_a_mesh_are_told_complete_ones_first() -> None:
    entries = [
        entry(1, "0:4", model="part"),
        entry(2, "6:8", model="part"),
        entry(3, "4:6", is_ready=False, model="part"),
        entry(4, "0:4"),
        entry(5, "4:8"),
        entry(6, None, model="coming"),
    ]
    assert [str(one) for one in offers(entries)] == [
        "demo (layers 0:8 complete)",
        "part (layers 0:4 and 6:8 of 8, 1 loading)",
        "coming (no layers yet, 1 loading)",
    ]
    demo, part, _ = offers(entries)
    assert demo.is_complete and (demo.num_ready, demo.num_loading, demo.missing) == (2, 0, ())
    assert part.missing == (LayerRange(4, 6),)


def test_models_of_one_name_with_other_configs_are_not_one() -> None:
    other = b"\1" * 8 + bytes(24)
    assert len(offers([entry(1, "0:4"), entry(2, "4:8", fingerprint=other), entry(3, "4:9", num_layers=9)])) == 3


@pytest.mark.parametrize(
    ("entries", "line"),
    [
        ([], "nobody serves demo here; no peer is announced at all"),
        (
            [entry(1, "0:8", model="X", fingerprint=b"\1" * 32)],
            "nobody serves demo here; there are: X (layers 0:8 complete)",
        ),
        ([entry(1, "0:4"), entry(2, "6:8")], "nobody serves layers 4:6 of demo"),
        (
            [entry(1, "0:4"), entry(2, "4:8", is_ready=False)],
            "nobody serves layers 4:8 of demo; layers of it are being loaded by 1 peer",
        ),
        (
            [entry(1, "0:8", fingerprint=OTHER_WEIGHTS)],
            "nobody serves this demo here; peers announce a model of that name with another config or weights",
        ),
        ([entry(1, "0:8")], "demo is announced with all its layers, by 1 peer"),
    ],
)
def test_why_nobody_serves_a_model_is_said_in_one_line(entries: list[Entry], line: str) -> None:
    assert why_nobody("demo", FINGERPRINT, NUM_LAYERS, entries) == line


def test_a_line_names_a_few_models_and_counts_the_others() -> None:
    entries = [entry(index, "0:4", model=f"m{index:02}", fingerprint=OTHER_WEIGHTS) for index in range(MAX_NAMED + 2)]
    line = why_nobody("demo", FINGERPRINT, NUM_LAYERS, entries)
    assert "m07 (layers 0:4 of 8), and 2 more" in line and "m08" not in line
