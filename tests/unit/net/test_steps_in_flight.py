"""The steps of a session that are on their way."""

import pytest

from hopformer.net.steps_in_flight import StepsInFlight


@pytest.fixture
def steps() -> StepsInFlight:
    """Three steps of 5, 3 and 1 tokens, sent; a row of the last is wanted."""
    found = StepsInFlight()
    for num_tokens, num_wanted in ((5, 0), (3, 0), (1, 1)):
        found.sent(found.add(num_tokens, num_wanted), 1.0)
    return found


def test_steps_lie_one_behind_the_other(steps: StepsInFlight) -> None:
    assert [(one.step, one.position) for one in steps] == [(1, 0), (2, 5), (3, 8)]
    assert (steps.length, steps.end, len(steps), steps.has_sent) == (0, 9, 3, True)
    steps.check_integrity()


def test_the_length_grows_when_the_first_is_complete(steps: StepsInFlight) -> None:
    first, second, third = steps
    steps.complete(second)
    assert steps.length == 0
    steps.complete(first)
    assert steps.length == 8 and steps.first is third
    steps.complete(third)
    assert (steps.length, steps.end, len(steps)) == (9, 9, 0)
    steps.check_integrity()


def test_what_is_sent_again_has_a_higher_number_and_its_rows_are_not_asked_for_twice(steps: StepsInFlight) -> None:
    _, _, third = steps
    steps.complete(third)
    for one in steps:
        steps.sent(one, 2.0)
    assert [(one.step, one.num_wanted, one.is_complete) for one in steps] == [
        (4, 0, False),
        (5, 0, False),
        (6, 0, False),
    ]
    assert steps.find(3) is None and steps.find(6) is third and steps.find(0) is None
    steps.check_integrity()


@pytest.mark.parametrize(("length", "end"), [(9, 9), (8, 8), (7, 5), (5, 5), (4, 0), (0, 0)])
def test_a_rollback_takes_whole_steps(steps: StepsInFlight, length: int, end: int) -> None:
    assert steps.rollback(length) == end == steps.end
    steps.check_integrity()


def test_a_rollback_of_what_is_computed_is_exact(steps: StepsInFlight) -> None:
    for one in list(steps):
        steps.complete(one)
    assert steps.rollback(3) == 3 and steps.length == 3
