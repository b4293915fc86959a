"""What a last hop draws, and when: a step and its Draw in either order, and limits on what waits."""

import pytest

from hopformer.net.draws import MAX_WAITING_DRAWS, MAX_WAITING_ROWS, HopDraws
from hopformer.net.identity import PeerId
from hopformer.net.messages import Codec, Context, Draw, Dtype, SessionKey, Step
from hopformer.net.row_layout import RowLayout
from hopformer.net.wire import MAX_DRAWN_TOKENS

KEY = SessionKey(PeerId(bytes(22)), 1)
LAYOUT = RowLayout(Dtype.BFLOAT16, Codec.EXACT, 1)
VOCAB_SIZE, MAX_TOKENS = 50, 100


@pytest.fixture
def draws() -> HopDraws:
    return HopDraws(LAYOUT, VOCAB_SIZE, MAX_TOKENS)


def step(number: int, position: int = 0, count: int = 1, wanted: int = 1) -> Step:
    return Step(KEY, number, position, count, wanted, False, *kinds(), bytes(2 * wanted), True)


def kinds() -> tuple[Dtype, Codec, int]:
    return LAYOUT.dtype, LAYOUT.codec, LAYOUT.width


def draw(number: int, penalty: float = 1.0, logprobs: int = 0) -> Draw:
    return Draw(KEY, number, 0.5, 0, 1.0, 0.0, penalty, 7, logprobs)


def taken(draws: HopDraws) -> list[tuple[int, int]]:
    """The number of each step that can be drawn now, and where its first row is."""
    return [(one.step.step, one.first) for one in draws.take()]


@pytest.mark.parametrize("draw_first", [True, False])
def test_a_step_and_its_draw_meet_in_either_order(draws: HopDraws, draw_first: bool) -> None:
    acts = [lambda: draws.tell(draw(3)), lambda: draws.computed(step(3, 5, 4, 2))]
    for index, act in enumerate(acts if draw_first else reversed(acts)):
        assert act() is None
        assert taken(draws) == ([(3, 7)] if index else [])
    assert taken(draws) == []


def test_what_is_older_than_a_step_that_is_drawn_is_void(draws: HopDraws) -> None:
    for number in (1, 2, 3):
        draws.tell(draw(number))
    draws.computed(step(2))
    assert taken(draws) == [(2, 0)]
    draws.computed(step(1))
    assert taken(draws) == []
    draws.computed(step(3))
    assert taken(draws) == [(3, 0)]


def test_a_penalty_gets_the_tokens_up_to_its_step_and_no_more(draws: HopDraws) -> None:
    draws.tell(Context(KEY, 0, (1, 2, 3)))
    draws.tell(Context(KEY, 2, (4, 5)))
    draws.tell(draw(1, penalty=1.2))
    draws.computed(step(1, 0, 3))
    (found,) = draws.take()
    assert found.context == (1, 2, 4)
    draws.tell(draw(2))
    draws.computed(step(2, 3))
    (found,) = draws.take()
    assert found.context == ()


def test_a_context_that_cannot_be_is_told(draws: HopDraws) -> None:
    assert draws.tell(Context(KEY, 1, (1,))) == "a context has the tokens 1 to 2; 0 are known before it"
    assert draws.tell(Context(KEY, 0, (VOCAB_SIZE,))) == "a context has a token beyond the model's 50"
    assert draws.tell(Context(KEY, 0, (VOCAB_SIZE - 1,) * MAX_TOKENS)) is None
    assert draws.tell(Context(KEY, MAX_TOKENS, (1,))) is not None


def test_a_penalty_without_its_tokens_is_told(draws: HopDraws) -> None:
    draws.tell(Context(KEY, 0, (1, 2)))
    draws.tell(draw(1, penalty=1.2))
    draws.computed(step(1, 0, 3))
    with pytest.raises(ValueError, match="a penalty needs the 3 tokens so far, and 2 are known"):
        draws.take()


def test_as_many_tokens_are_drawn_of_a_step_as_may_be(draws: HopDraws) -> None:
    assert draws.computed(step(1, 0, 70, MAX_DRAWN_TOKENS)) is None
    assert draws.computed(step(2, 0, 70, MAX_DRAWN_TOKENS + 1)) is not None


def test_as_many_logprobs_as_a_message_takes(draws: HopDraws) -> None:
    draws.tell(draw(1, logprobs=100))
    draws.computed(step(1, 0, 9, 9))
    assert taken(draws) == [(1, 0)]
    draws.tell(draw(2, logprobs=100))
    draws.computed(step(2, 9, 10, 10))
    with pytest.raises(ValueError, match="100 logprobs of 10 tokens"):
        draws.take()


def test_the_newest_draws_wait_for_their_steps(draws: HopDraws) -> None:
    for number in range(1, MAX_WAITING_DRAWS + 2):
        assert draws.tell(draw(number)) is None
    draws.computed(step(1))
    assert taken(draws) == []
    draws.computed(step(2))
    assert taken(draws) == [(2, 0)]


def test_as_many_steps_wait_for_their_draws_as_may(draws: HopDraws) -> None:
    for number in range(1, MAX_WAITING_ROWS + 1):
        assert draws.computed(step(number)) is None
    assert draws.computed(step(MAX_WAITING_ROWS + 1)) == "too many steps wait for what is to be drawn"
