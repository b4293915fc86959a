"""Following one request through the engine, and how fast it came."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from hopformer.cli.answer import Answer, AnswerSettings, follow
from hopformer.cli.options import StopFlags
from hopformer.errors import NoRouteError
from hopformer.llama.engine import Engine, Output, Request
from hopformer.llama.runner import StepItem
from hopformer.llama.sampling import SampledToken, SamplingParams


class Counting:
    """A runner whose next token is the one before plus 1."""

    max_context = 1000
    vocab_size = 1000

    def __init__(self) -> None:
        self.opened: set[int] = set()
        self.num_steps = 0

    def open(self, sequence_id: int, token_ids: Sequence[int]) -> int:
        self.opened.add(sequence_id)
        return min(1, len(token_ids) - 1)

    def reserve(self, sequence_id: int, num_tokens: int) -> None:
        assert num_tokens <= self.max_context

    def step(self, items: Sequence[StepItem]) -> list[list[SampledToken]]:
        self.num_steps += 1
        return [[SampledToken(item.token_ids[-1] + 1, ((7, -0.5),))] * item.num_samples for item in items]

    def fork(self, sequence_id: int, new_id: int) -> None:
        raise AssertionError("nobody forks here")

    def rollback(self, sequence_id: int, length: int) -> None:
        raise AssertionError("nobody rolls back here")

    def release(self, sequence_id: int) -> None:
        self.opened.remove(sequence_id)


@pytest.fixture
def runner() -> Counting:
    return Counting()


@pytest.fixture
def engine(runner: Counting) -> Engine:
    return Engine(runner, lambda token_ids: "".join(f"{one}." for one in token_ids))


def never() -> bool:
    return False


def after(num_calls: int) -> Callable[[], bool]:
    """Says yes from its ``num_calls``-th call on."""
    left = [num_calls]

    def stopped() -> bool:
        left[0] -= 1
        return left[0] <= 0

    return stopped


def test_an_answer_holds_what_was_shown(engine: Engine) -> None:
    shown: list[str] = []
    params = SamplingParams(logprobs=1)
    answer = follow(engine, Request("a", (5, 6), 3, params), shown.append, never)
    assert answer.token_ids == [7, 8, 9]
    assert answer.text == "".join(shown) == "7.8.9."
    assert answer.logprobs == [((7, -0.5),)] * 3
    assert (answer.finish_reason, answer.num_prompt, answer.num_cached) == ("length", 2, 1)
    assert answer.ttft_s is not None and answer.ttft_s > 0 and answer.decode_s > 0


def test_an_answer_that_is_stopped_keeps_what_was_said(engine: Engine, runner: Counting) -> None:
    answer = follow(engine, Request("a", (5,), 100), lambda text: None, after(4))
    assert answer.token_ids == [6, 7, 8, 9] and answer.text == "6.7.8.9."
    assert answer.finish_reason == "aborted"
    assert not engine.has_work and not runner.opened


def test_a_long_prompt_can_be_stopped_between_its_chunks(runner: Counting) -> None:
    engine = Engine(runner, lambda token_ids: "", max_batch_tokens=10)
    answer = follow(engine, Request("a", range(100), 5), lambda text: None, after(2))
    assert runner.num_steps == 2
    assert (answer.token_ids, answer.ttft_s, answer.finish_reason) == ([], None, "aborted")
    assert answer.prefill_tokens_per_s == answer.decode_tokens_per_s == 0.0


def test_the_request_is_withdrawn_when_nobody_can_be_shown_the_text(engine: Engine, runner: Counting) -> None:
    def broken(text: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        follow(engine, Request("a", (5,), 100), broken, never)
    assert not engine.has_work and not runner.opened


def test_rates_count_only_what_was_computed() -> None:
    answer = Answer(num_prompt=100)
    answer.take(Output("a", "x", (1,), (), None, num_cached=80), 0.5)
    answer.take(Output("a", "y", (2,), (), None, num_cached=80), 0.75)
    answer.take(Output("a", "", (), (), "aborted", num_cached=80), 9.0)
    assert answer.prefill_tokens_per_s == pytest.approx(40.0)
    assert answer.decode_tokens_per_s == pytest.approx(4.0)


def settings(flags: StopFlags, **kwargs: Any) -> AnswerSettings:
    """Settings on a model with a text and a special token as its template's stops; <end> is token 9."""

    def stop_ids(stop: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        return tuple((9,) for text in stop if text == "<end>")

    model: Any = SimpleNamespace(
        tokenizer=SimpleNamespace(stop_ids=stop_ids),
        template=SimpleNamespace(stops=("<end>", "User:")),
        config=SimpleNamespace(eos_token_ids=(2, 3)),
    )
    return AnswerSettings.of(model, SamplingParams(), flags, **kwargs)


def test_the_models_own_stops_are_joined_by_the_users() -> None:
    found = settings(StopFlags(stop=["END"], stop_ids=["4,5"]))
    assert found.eos_token_ids == {2, 3, 9}
    assert set(found.stop) >= {"END", "User:"}
    assert found.stop_ids == ((4, 5),)


def test_a_special_token_named_by_the_user_stops_by_its_id() -> None:
    assert settings(StopFlags(stop=["<end>"]), eos=False).stop_ids == ((9,),)


def test_a_raw_prompt_has_no_template_to_stop_it() -> None:
    found = settings(StopFlags(), template_stops=False)
    assert (found.eos_token_ids, found.stop) == ({2, 3}, ())


def test_ignoring_the_end_leaves_only_the_users_stops() -> None:
    found = settings(StopFlags(stop=["END"]), eos=False)
    assert (found.eos_token_ids, found.stop) == (frozenset(), ("END",))


def test_requests_have_names_of_their_own_and_the_context_as_their_length() -> None:
    unlimited, limited = settings(StopFlags()), settings(StopFlags(max_tokens=4))
    first, second = unlimited.request((1,), 50), limited.request((1,), 50)
    assert first.request_id != second.request_id
    assert (first.max_tokens, second.max_tokens) == (50, 4)


def test_an_answer_whose_layers_are_lost_keeps_what_there_is(engine: Engine, runner: Counting) -> None:
    steps = runner.step

    def step(items: Sequence[StepItem]) -> list[list[SampledToken]]:
        if runner.num_steps == 3:
            raise NoRouteError("layers 4:8 are served by nobody")
        return steps(items)

    runner.step = step  # type: ignore[method-assign]
    shown: list[str] = []
    answer = follow(engine, Request("a", [5, 6], 20), shown.append, never)
    assert answer.token_ids == [7, 8, 9] and "".join(shown) == answer.text == "7.8.9."
    assert answer.finish_reason == "aborted" and "4:8" in str(answer.error)
    assert runner.opened == set() and not engine.has_work
