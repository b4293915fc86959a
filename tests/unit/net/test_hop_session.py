"""The order of one session's steps: what goes on, rolls back, waits and is dropped."""

import itertools

import pytest

from hopformer.net.hop_session import HopSession, Waiting
from hopformer.net.identity import PeerId
from hopformer.net.messages import Codec, Dtype, Neighbours, Open, SessionKey, Step
from hopformer.net.row_layout import RowLayout
from hopformer.net.served_span import ServedSpan

CALLER, PREVIOUS, NEXT, OTHER = (PeerId(name * 22) for name in (b"c", b"p", b"n", b"o"))
KEY = SessionKey(CALLER, 1)
LAYOUT = RowLayout(Dtype.BFLOAT16, Codec.EXACT, 1)
SERVED = ServedSpan("demo", b"", 0, 2, 4, 1, Dtype.BFLOAT16, (Codec.EXACT,), 1000, "1")
OPENING = Open(KEY, b"", 0, 2, Dtype.BFLOAT16, Codec.EXACT, 1000, 60, Neighbours(PREVIOUS, NEXT, ()))


def rows(number: int, count: int) -> bytes:
    """Rows that say which step they are of."""
    return number.to_bytes(2, "little") * count


def step(number: int, position: int, count: int = 1, is_replay: bool = False) -> Step:
    kinds = LAYOUT.dtype, LAYOUT.codec, LAYOUT.width
    return Step(KEY, number, position, count, 0, is_replay, *kinds, rows(number, count))


@pytest.fixture
def session() -> HopSession:
    return HopSession(OPENING, 0, SERVED, now=0.0)


def arrive(session: HopSession, *steps: Step) -> None:
    for one in steps:
        session.arrive(Waiting(one, 0.0))
        session.check_integrity()


def compute(session: HopSession) -> list[tuple[int, int, int]]:
    """Compute all that is ready; returns number, position and tokens of each step."""
    done = []
    while session.ready:
        one = session.start()
        session.finish(one, one.payload)
        session.check_integrity()
        done.append((one.step, one.position, one.num_tokens))
    return done


def kept(session: HopSession) -> list[int]:
    """Of which step the kept row of each position is."""
    assert session.kept is not None
    payload = b"".join(bytes(part) for _, part in session.kept.pieces(1000, 7))
    return [int.from_bytes(payload[at : at + 2], "little") for at in range(0, len(payload), 2)]


def test_steps_at_the_end_go_on(session: HopSession) -> None:
    arrive(session, step(1, 0, 5), step(2, 5, 2), step(3, 7))
    assert compute(session) == [(1, 0, 5), (2, 5, 2), (3, 7, 1)]
    assert (session.length, session.end) == (8, 8)
    assert kept(session) == [1] * 5 + [2] * 2 + [3]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_whatever_order_steps_come_in_they_are_computed_in_theirs(session: HopSession, order: tuple[int, ...]) -> None:
    steps = [step(1, 0, 3), step(2, 3, 2), step(3, 5), step(4, 6, 4)]
    arrive(session, *(steps[index] for index in order))
    assert compute(session) == [(1, 0, 3), (2, 3, 2), (3, 5, 1), (4, 6, 4)]


def test_a_number_already_done_is_dropped_and_one_that_waits_too(session: HopSession) -> None:
    arrive(session, step(1, 0, 3), step(1, 0, 3), step(3, 9), step(3, 9))
    assert session.num_waiting == 2
    compute(session)
    arrive(session, step(1, 0, 3), step(1, 3, 3))
    assert compute(session) == [] and session.length == 3


def test_a_lower_position_with_a_higher_number_rolls_back_what_is_computed(session: HopSession) -> None:
    arrive(session, step(1, 0, 5))
    compute(session)
    arrive(session, step(2, 3, 1))
    assert session.end == 4 and session.length == 5
    assert compute(session) == [(2, 3, 1)]
    assert kept(session) == [1, 1, 1, 2]


def test_a_rollback_makes_steps_void_that_are_not_computed_yet(session: HopSession) -> None:
    arrive(session, step(1, 0, 4), step(2, 4, 4), step(3, 8, 1), step(4, 6, 1), step(5, 7))
    assert compute(session) == [(1, 0, 4), (2, 4, 4), (4, 6, 1), (5, 7, 1)]
    assert kept(session) == [1] * 4 + [2] * 2 + [4, 5]


def test_early_steps_that_a_later_one_replaced_are_dropped(session: HopSession) -> None:
    arrive(session, step(1, 0, 2), step(5, 10), step(4, 9), step(6, 2, 7))
    assert compute(session) == [(1, 0, 2), (6, 2, 7)]
    assert session.num_waiting == 0


def test_an_explicit_rollback_cuts_at_once(session: HopSession) -> None:
    arrive(session, step(1, 0, 5))
    compute(session)
    arrive(session, step(2, 5, 1), step(3, 6, 1))
    session.roll_back(4, 3)
    session.check_integrity()
    assert (session.length, session.end, session.num_waiting) == (3, 3, 0)
    arrive(session, step(2, 5, 1), step(3, 3, 1))
    assert session.num_waiting == 0, "the caller has taken these back"
    arrive(session, step(4, 3, 2))
    assert compute(session) == [(4, 3, 2)]


def test_an_explicit_rollback_that_overtook_steps_it_keeps_lets_them_in(session: HopSession) -> None:
    arrive(session, step(1, 0, 4))
    session.roll_back(4, 8)
    arrive(session, step(2, 4, 4), step(3, 8, 4), step(4, 8, 1))
    assert compute(session) == [(1, 0, 4), (2, 4, 4), (4, 8, 1)]


def test_an_explicit_rollback_that_comes_too_late_changes_nothing(session: HopSession) -> None:
    arrive(session, step(1, 0, 4), step(2, 2, 4))
    session.roll_back(2, 2)
    assert compute(session) == [(1, 0, 4), (2, 2, 4)]
    session.roll_back(2, 2)
    assert session.length == 6


def test_a_replay_fills_an_empty_session_and_the_next_step_goes_on(session: HopSession) -> None:
    arrive(session, step(9, 0, 4, is_replay=True), step(9, 4, 4, is_replay=True), step(12, 7, 1))
    assert compute(session) == [(9, 0, 4), (9, 4, 4), (12, 7, 1)]


def test_a_step_that_overtook_a_replay_waits_for_it(session: HopSession) -> None:
    arrive(session, step(12, 7, 1), step(9, 4, 4, is_replay=True), step(9, 0, 4, is_replay=True))
    assert compute(session) == [(9, 0, 4), (9, 4, 4), (12, 7, 1)]


def test_replayed_rows_that_are_here_already_are_dropped_or_cut_off(session: HopSession) -> None:
    arrive(session, step(3, 0, 5))
    compute(session)
    arrive(session, step(2, 0, 4, is_replay=True), step(2, 1, 4, is_replay=True), step(2, 4, 3, is_replay=True))
    assert compute(session) == [(2, 5, 2)]
    assert kept(session) == [3] * 5 + [2] * 2


def test_a_replay_has_the_kept_rows_in_large_steps_without_a_number(session: HopSession) -> None:
    arrive(session, step(1, 0, 600), *(step(number, 598 + number) for number in range(2, 30)))
    compute(session)
    arrive(session, step(30, 628))
    replayed = list(session.replay(620))
    assert [(one.position, one.num_tokens) for one in replayed] == [(0, 512), (512, 108)]
    assert all(one.is_replay and one.step == 0 and one.num_wanted == 0 for one in replayed)
    copy = HopSession(OPENING, 1, SERVED, now=0.0)
    arrive(copy, *replayed, step(30, 620))
    compute(copy)
    assert kept(copy) == [*kept(session)[:620], 30]


def test_after_a_lost_connection_only_a_replay_or_a_new_beginning_is_taken(session: HopSession) -> None:
    arrive(session, step(1, 0, 4), step(5, 9))
    session.lose_previous()
    arrive(session, step(6, 4), step(7, 2))
    assert compute(session) == [(1, 0, 4)]
    arrive(session, step(1, 0, 4, is_replay=True), step(8, 3, 1))
    assert compute(session) == [(8, 3, 1)]
    session.lose_previous()
    arrive(session, step(9, 0, 2))
    assert compute(session) == [(9, 0, 2)]


def test_after_a_lost_connection_the_caller_s_reroute_lets_steps_in(session: HopSession) -> None:
    arrive(session, step(1, 0, 4))
    session.lose_previous()
    session.reroute(Neighbours(OTHER, NEXT, ()))
    arrive(session, step(2, 4))
    assert compute(session) == [(1, 0, 4), (2, 4, 1)]


def test_a_caller_knows_what_its_own_lost_connection_lost(session: HopSession) -> None:
    session.reroute(Neighbours(CALLER, NEXT, ()))
    arrive(session, step(1, 0, 4))
    session.lose_previous()
    arrive(session, step(2, 4))
    assert compute(session) == [(1, 0, 4), (2, 4, 1)]


def test_a_new_previous_does_not_go_on_with_the_early_steps_of_the_old(session: HopSession) -> None:
    arrive(session, step(1, 0, 4), step(3, 6))
    session.reroute(Neighbours(OTHER, NEXT, ()))
    arrive(session, step(4, 4, 2))
    assert compute(session) == [(1, 0, 4), (4, 4, 2)]
