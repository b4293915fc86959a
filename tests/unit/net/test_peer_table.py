"""What a caller knows of its peers: who can be used, what they cost, and how long they are left alone."""

import pytest

from hopformer.net.identity import PeerId
from hopformer.net.layer_range import LayerRange
from hopformer.net.messages import Codec, Done, Dtype, Serving, SessionKey
from hopformer.net.peer_table import (
    DIAL_TIMEOUT_S,
    FIRST_BACKOFF_S,
    LINK_BACKOFF_S,
    MAX_BACKOFF_S,
    Patience,
    PeerTable,
    Wanted,
)
from hopformer.net.routes import Ends, Hop
from hopformer.net.switchboard import PeerStats

CALLER, A, B, C = (PeerId(bytes([index]) * 22) for index in range(4))
ENDS = Ends(CALLER, CALLER)
FINGERPRINT = bytes(8) + b"\x77" * 24
WHOLE = LayerRange(0, 8)
KEY = SessionKey(CALLER, 1)


def serving(start: int, end: int, step_us: int = 0, **changes: object) -> Serving:
    answer = {
        "model": "m",
        "fingerprint": FINGERPRINT,
        "start": start,
        "end": end,
        "dtype": Dtype.FLOAT32,
        "codecs": (Codec.EXACT,),
        "free_tokens": 1000,
        "step_us": step_us,
        "version": "1",
    }
    return Serving(**(answer | changes))  # type: ignore[arg-type]


@pytest.fixture
def table() -> PeerTable:
    """A has the first half, B and C the second."""
    listed = {A: LayerRange(0, 4), B: LayerRange(4, 8), C: LayerRange(4, 8)}
    return PeerTable(Wanted(FINGERPRINT, 8, Dtype.FLOAT32, 16), listed, {A: ("a:1",)})


def all_up(table: PeerTable) -> PeerTable:
    table.to_dial(0.0)
    for peer, (start, end) in {A: (0, 4), B: (4, 8), C: (4, 8)}.items():
        table.connected(peer, 0.0)
        table.serves(peer, serving(start, end), 0.0)
    return table


def route(table: PeerTable, now: float = 0.0) -> list[PeerId] | None:
    found = table.route(WHOLE, now, ENDS)
    return None if found is None else [hop.peer for hop in found]


def done(compute_us: int, queue_us: int = 0) -> Done:
    return Done(KEY, 1, queue_us, compute_us, 1)


def test_everybody_is_dialled_at_once_and_only_once(table: PeerTable) -> None:
    assert table.to_dial(0.0) == [A, B, C] and table.to_dial(0.0) == []
    assert table.addrs(A) == ("a:1",) and table.addrs(B) == table.addrs(CALLER) == ()
    table.check_integrity()


def test_a_peer_is_used_once_it_said_what_it_serves(table: PeerTable) -> None:
    table.to_dial(0.0)
    for peer in (A, B):
        table.connected(peer, 0.0)
    assert route(table) is None and table.missing(WHOLE, 0.0) == [WHOLE] and not table.is_settled
    table.serves(A, serving(0, 4), 0.0)
    assert table.missing(WHOLE, 0.0) == [LayerRange(4, 8)]
    table.serves(B, serving(4, 8), 0.0)
    assert route(table) == [A, B] and table.missing(WHOLE, 0.0) == []
    table.disconnected(C, "no node listens there", 0.0)
    assert table.is_settled


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (serving(0, 0, dtype=None), "serves no layers"),
        (serving(4, 8, fingerprint=bytes(8) + b"\x78" * 24, model="other"), "serves another model, other"),
        (serving(4, 8, fingerprint=b"\x01" * 32), "serves another model"),
        (serving(4, 8, dtype=Dtype.BFLOAT16), "takes bfloat16 activations, and these are float32"),
        (serving(0, 3), "serves layers 0:3, and not 4:8"),
    ],
)
def test_a_peer_that_serves_something_else_is_not_used(table: PeerTable, answer: Serving, reason: str) -> None:
    table.to_dial(0.0)
    table.connected(B, 0.0)
    table.serves(B, answer, 0.0)
    assert reason in table.why([LayerRange(4, 8)], 0.0)
    assert table.candidates(0.0) == []


def test_a_peer_serves_at_most_what_the_map_gives_it(table: PeerTable) -> None:
    table.to_dial(0.0)
    table.connected(B, 0.0)
    table.serves(B, serving(2, 6), 0.0)
    (candidate,) = table.candidates(0.0)
    assert candidate.layers == LayerRange(4, 6)
    table.add(CALLER, ("c:1",))
    table.to_dial(0.0)
    table.connected(CALLER, 0.0)
    table.serves(CALLER, serving(2, 6), 0.0)
    assert table.candidates(0.0)[1].layers == LayerRange(2, 6), "one that no map lists may be used for all it has"


def test_among_replicas_the_fastest_is_taken_by_measured_times(table: PeerTable) -> None:
    all_up(table)
    assert route(table) == [A, B]
    for _ in range(3):
        table.worked(Hop(B, LayerRange(4, 8)), 1, done(40_000))
        table.worked(Hop(C, LayerRange(4, 8)), 1, done(20_000))
    assert route(table) == [A, C]
    table.worked(Hop(C, LayerRange(4, 8)), 1, done(20_000, queue_us=500_000))
    assert route(table) == [A, B], "a queue counts as well"


def test_among_replicas_the_nearest_is_taken_and_measured_again_on_a_new_path(table: PeerTable) -> None:
    all_up(table)
    table.asked(B, 1.0)
    table.serves(B, serving(4, 8), 1.2)
    assert route(table) == [A, C], "how long an answer takes is the first measure"
    near, far = PeerStats("x:1", 0.001, 0, 0, 0), PeerStats("x:2", 0.1, 0, 0, 0)
    assert table.observe({B: far, C: near}) == [] and route(table) == [A, C]
    table.worked(Hop(B, LayerRange(4, 8)), 1, done(1000, queue_us=900_000))
    assert table.observe({B: PeerStats("x:3", 0.0005, 0, 0, 0), C: near}) == [B]
    assert table.entries[B].queue_s == 0.0 and route(table) == [A, B]


def test_a_peer_that_failed_is_left_alone_ever_longer(table: PeerTable) -> None:
    all_up(table)
    now, waits = 0.0, []
    for _ in range(9):
        table.failed(B, "it is silent", now)
        table.failed(B, "it is silent", now)  # another session says the same
        assert route(table, now) == [A, C]
        later = table.next_change(now)
        assert later is not None
        waits.append(later - now)
        now = later
        assert table.route(LayerRange(4, 8), now, ENDS) == (Hop(B, LayerRange(4, 8)),), "and is tried again"
    assert waits[:3] == [FIRST_BACKOFF_S, 2 * FIRST_BACKOFF_S, 4 * FIRST_BACKOFF_S] and max(waits) == MAX_BACKOFF_S
    table.worked(Hop(B, LayerRange(4, 8)), 1, done(1))
    table.failed(B, "it is silent", now)
    assert table.next_change(now) == now + FIRST_BACKOFF_S, "work makes up for failures"


def test_a_lost_connection_is_dialled_again_after_a_while(table: PeerTable) -> None:
    all_up(table)
    table.disconnected(B, "it died", 5.0)
    assert route(table, 5.0) == [A, C] and table.to_dial(5.0) == []
    assert table.why([LayerRange(4, 8)], 5.0) == f"{B}: it died"
    assert table.to_dial(5.0 + FIRST_BACKOFF_S) == [B]
    table.tick(5.0 + FIRST_BACKOFF_S + DIAL_TIMEOUT_S)
    assert "it does not answer" in table.why([WHOLE], 20.0)
    table.check_integrity()


def test_a_broken_link_is_avoided_as_long_as_asked(table: PeerTable) -> None:
    all_up(table)
    table.link_failed((A, B), 0.0)
    assert route(table) == [A, C]
    free = table.route(WHOLE, 0.0, ENDS, avoid_links=False)
    assert free is not None and free[1].peer == B
    assert route(table, LINK_BACKOFF_S) == [A, B]
    table.tick(LINK_BACKOFF_S)
    assert table.next_change(LINK_BACKOFF_S) is None


def test_who_leaves_or_refuses_the_model_gets_no_new_sessions(table: PeerTable) -> None:
    all_up(table)
    table.leaving(B)
    table.refuses_model(C, "other weights")
    assert route(table) is None
    assert table.why([LayerRange(4, 8)], 0.0) == f"{B}: it is leaving; {C}: other weights"
    table.connected(B, 0.0)
    table.serves(B, serving(4, 8), 0.0)
    assert route(table) == [A, B], "a new connection is a new node"


def test_patience_grows_with_what_is_asked_and_with_failures(table: PeerTable) -> None:
    all_up(table)
    hop, patience = Hop(B, LayerRange(4, 8)), Patience()
    assert table.allowance_s(hop, 1) == pytest.approx(patience.unmeasured_s, rel=1e-3)
    table.worked(hop, 1, done(100_000))
    assert table.allowance_s(hop, 1) == pytest.approx(patience.least_s + 8 * 0.1, rel=1e-3)
    assert table.allowance_s(hop, 100) == pytest.approx(patience.least_s + 8 * 10 + 100 * 64 / 1e6)
    table.worked(hop, 100, done(1_000_000))
    assert table.allowance_s(hop, 100) == pytest.approx(patience.least_s + 8 * 1 + 100 * 64 / 1e6)
    before = table.allowance_s(hop, 100)
    table.failed(B, "it is silent", 0.0)
    assert table.allowance_s(hop, 100) == 2 * before
    assert table.allowance_s(Hop(CALLER, WHOLE), 1) >= patience.unmeasured_s


def test_strangers_change_nothing(table: PeerTable) -> None:
    table.connected(CALLER, 0.0)
    table.serves(CALLER, serving(0, 8), 0.0)
    table.disconnected(CALLER, "gone", 0.0)
    table.failed(CALLER, "?", 0.0)
    table.leaving(CALLER)
    table.refuses_model(CALLER, "?")
    assert CALLER not in table.entries and table.candidates(0.0) == []


# ---- peers that no map lists


def test_a_peer_that_is_announced_may_be_used_for_whatever_it_serves(table: PeerTable) -> None:
    table.add(CALLER, ("r:1",))
    assert table.addrs(CALLER) == ("r:1",) and CALLER in table.to_dial(0.0)
    table.connected(CALLER, 0.0)
    table.serves(CALLER, serving(0, 8), 0.0)
    assert route(table) == [CALLER]
    table.check_integrity()


def test_new_addresses_are_tried_at_once(table: PeerTable) -> None:
    table.add(CALLER, ("r:1",))
    table.to_dial(0.0)
    table.disconnected(CALLER, "it does not answer", 0.0)
    assert CALLER not in table.to_dial(0.1)
    table.add(CALLER, ("r:2",))
    assert CALLER in table.to_dial(0.1) and table.addrs(CALLER) == ("r:2",)


def test_who_is_announced_no_longer_is_forgotten_and_whom_a_map_lists_is_not(table: PeerTable) -> None:
    table.add(CALLER, ("r:1",))
    table.forget(CALLER)
    table.forget(A)
    table.forget(PeerId(b"x" * 22))
    assert CALLER not in table.entries and A in table.entries


def test_who_is_forgotten_while_connected_is_used_until_the_connection_ends(table: PeerTable) -> None:
    table.add(CALLER, ("r:1",))
    table.to_dial(0.0)
    table.connected(CALLER, 0.0)
    table.serves(CALLER, serving(0, 8), 0.0)
    table.forget(CALLER)
    assert route(table) == [CALLER]
    table.check_integrity()
    table.disconnected(CALLER, "it was shut down", 1.0)
    assert CALLER not in table.entries
    table.failed(CALLER, "it died", 1.0)
    table.check_integrity()


def test_who_failed_or_serves_nothing_that_is_wanted_is_unusable(table: PeerTable) -> None:
    assert table.unusable(0.0) == set(), "nobody was tried yet"
    all_up(table)
    assert table.unusable(0.0) == set()
    table.failed(A, "it is silent", 0.0)
    table.serves(B, serving(4, 8, dtype=Dtype.BFLOAT16), 0.0)
    assert table.unusable(0.1) == {A, B}
    assert table.unusable(FIRST_BACKOFF_S) == {B}
