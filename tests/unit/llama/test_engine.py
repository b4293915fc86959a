"""Engine: how requests start, stop, are cancelled and are read as streams, over a runner that only counts.

What a real model answers: test_model.py; that seeds, batches and preemption do not change it: test_runner.py.
"""

from collections.abc import Iterator, Sequence

import pytest

from hopformer.errors import RequestError
from hopformer.llama.engine import Engine, Output, Request
from hopformer.llama.pages import PagePool
from hopformer.llama.prefix_cache import PrefixCache
from hopformer.llama.runner import StepItem
from hopformer.llama.sampling import SampledToken, SamplingParams
from hopformer.llama.sequences import SequenceTable

PAGE_SIZE = 4
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


class CountingRunner:
    """After the token n it always draws n + 1; pages are real, tensors are not."""

    def __init__(self, num_pages: int, max_context: int) -> None:
        pool = PagePool(num_pages, PAGE_SIZE)
        self.sequences = SequenceTable(pool, PrefixCache(pool))
        self.max_context = max_context
        self.vocab_size = len(ALPHABET)
        self.steps: list[list[StepItem]] = []
        self.open = self.sequences.open
        self.reserve = self.sequences.reserve
        self.fork = self.sequences.fork
        self.rollback = self.sequences.rollback
        self.release = self.sequences.release

    def step(self, items: Sequence[StepItem]) -> list[list[SampledToken]]:
        self.steps.append(list(items))
        results = []
        for item in items:
            assert item.position == self.sequences.length(item.sequence_id)
            self.sequences.append(item.sequence_id, item.token_ids)
            token_id = (item.token_ids[-1] + 1) % self.vocab_size
            results.append([SampledToken(token_id, ((token_id, -0.5),))] * item.num_samples)
        return results


def make_engine(num_pages: int = 32, max_context: int = 64, **options: int) -> tuple[Engine, CountingRunner]:
    runner = CountingRunner(num_pages, max_context)
    return Engine(runner, lambda ids: "".join(ALPHABET[one] for one in ids), **options), runner


def request(name: str = "one", prompt: str = "a", max_tokens: int = 5, **settings: object) -> Request:
    return Request(name, [ALPHABET.index(letter) for letter in prompt], max_tokens, **settings)  # type: ignore[arg-type]


def finish(engine: Engine, *requests: Request) -> dict[str, list[Output]]:
    """All outputs of requests that are in flight together."""
    outputs: dict[str, list[Output]] = {}
    for one in requests:
        engine.add(one)
        outputs[one.request_id] = []
    while engine.has_work:
        for output in engine.step():
            outputs[output.request_id].append(output)
        engine.check_integrity()
    assert engine.step() == []
    for one in outputs.values():
        assert [output.finish_reason is None for output in one] == [True] * (len(one) - 1) + [False]
    return outputs


def text_of(outputs: list[Output]) -> str:
    return "".join(output.text for output in outputs)


def ids_of(outputs: list[Output]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


def assert_nothing_is_held(engine: Engine, runner: CountingRunner) -> None:
    engine.check_integrity()
    runner.sequences.check_integrity()
    assert not engine.has_work and list(runner.sequences) == []


def test_an_answer_ends_at_max_tokens() -> None:
    engine, runner = make_engine()
    outputs = finish(engine, request(max_tokens=5))["one"]
    assert text_of(outputs) == "bcdef" and ids_of(outputs) == [1, 2, 3, 4, 5]
    assert outputs[-1].finish_reason == "length"
    assert_nothing_is_held(engine, runner)


def test_an_answer_of_one_token_is_whole() -> None:
    engine, _ = make_engine()
    (output,) = finish(engine, request(max_tokens=1))["one"]
    assert (output.text, output.token_ids, output.finish_reason) == ("b", (1,), "length")


def test_an_answer_ends_where_the_context_does() -> None:
    engine, runner = make_engine(max_context=8)
    outputs = finish(engine, request(prompt="abcde", max_tokens=50))["one"]
    assert text_of(outputs) == "fgh" and outputs[-1].finish_reason == "length"
    assert_nothing_is_held(engine, runner)


def test_a_context_as_large_as_the_pool_can_be_filled() -> None:
    engine, runner = make_engine(num_pages=2, max_context=8)
    finish(engine, request("before", prompt="xyxyx"))  # leaves pages in the prefix cache
    assert text_of(finish(engine, request(max_tokens=50))["one"]) == "bcdefgh"
    assert_nothing_is_held(engine, runner)


def test_an_end_token_stops_and_is_not_shown() -> None:
    engine, runner = make_engine()
    outputs = finish(engine, request(eos_token_ids=frozenset({3, 20})))["one"]
    assert text_of(outputs) == "bc" and ids_of(outputs) == [1, 2, 3]
    assert outputs[-1].finish_reason == "stop"
    assert_nothing_is_held(engine, runner)


def test_an_end_token_as_the_last_allowed_token_is_a_stop() -> None:
    engine, _ = make_engine()
    outputs = finish(engine, request(max_tokens=3, eos_token_ids=frozenset({3})))["one"]
    assert outputs[-1].finish_reason == "stop" and text_of(outputs) == "bc"


def test_a_stop_text_is_never_shown_not_even_in_part() -> None:
    engine, _ = make_engine()
    outputs = finish(engine, request(max_tokens=9, stop=("def",)))["one"]
    assert [output.text for output in outputs] == ["b", "c", "", "", ""]
    assert outputs[-1].finish_reason == "stop" and ids_of(outputs) == [1, 2, 3, 4, 5]


def test_text_that_only_began_like_a_stop_is_shown_in_the_end() -> None:
    engine, _ = make_engine()
    assert text_of(finish(engine, request(max_tokens=4, stop=("deq", "efz")))["one"]) == "bcde"
    ended = finish(engine, request(max_tokens=9, stop=("fgz",), eos_token_ids=frozenset({7})))["one"]
    assert text_of(ended) == "bcdefg" and ended[-1].finish_reason == "stop"


def test_a_stop_sequence_of_token_ids_is_never_shown() -> None:
    engine, _ = make_engine()
    outputs = finish(engine, request(max_tokens=9, stop_ids=((9, 9), (3, 4))))["one"]
    assert text_of(outputs) == "bc" and ids_of(outputs) == [1, 2, 3, 4]
    assert outputs[-1].finish_reason == "stop"


def test_a_prompt_is_not_searched_for_stops() -> None:
    engine, _ = make_engine()
    outputs = finish(engine, request(prompt="abc", max_tokens=3, stop=("bc", "cd"), stop_ids=((2, 3),)))["one"]
    assert text_of(outputs) == "def"


def test_requests_in_flight_together_answer_as_each_alone() -> None:
    engine, runner = make_engine(num_pages=16, max_batch_tokens=5, max_sequences=3)
    outputs = finish(
        engine,
        request("long prompt", prompt=ALPHABET[:17], max_tokens=6),
        request("short", prompt="x", max_tokens=2),
        request("stops", prompt="m", max_tokens=20, stop=("rs",)),
        request("ends", prompt="t", max_tokens=20, eos_token_ids=frozenset({25})),
        request("long answer", prompt="ab", max_tokens=30),
    )
    texts = {name: text_of(one) for name, one in outputs.items()}
    assert texts == {
        "long prompt": "rstuvw",
        "short": "yz",
        "stops": "nopq",
        "ends": "uvwxy",
        "long answer": ALPHABET[2:] + "abcdef",
    }
    assert max(sum(len(item.token_ids) for item in step) for step in runner.steps) == 5
    assert max(len(step) for step in runner.steps) == 3
    assert_nothing_is_held(engine, runner)


def test_a_step_reports_only_the_requests_that_got_a_token() -> None:
    engine, runner = make_engine(max_batch_tokens=4)
    engine.add(request(prompt="abcdefghij"))
    assert engine.step() == [] and engine.step() == []
    assert [output.text for output in engine.step()] == ["k"]
    assert [item.num_samples for step in runner.steps for item in step] == [0, 0, 1]


def test_a_follow_up_says_how_much_of_its_prompt_was_cached() -> None:
    engine, _ = make_engine()
    first = finish(engine, request(prompt="abcdef", max_tokens=4))["one"]
    assert {output.num_cached for output in first} == {0}
    second = finish(engine, request(prompt="abcdefghijzz"))["one"]
    assert {output.num_cached for output in second} == {9}  # the last token of the answer was drawn, never computed


def test_the_prompt_a_request_was_made_of_is_not_changed() -> None:
    engine, _ = make_engine()
    prompt = [0, 1, 2]
    finish(engine, Request("one", prompt, 5))
    assert prompt == [0, 1, 2]


def test_log_probabilities_come_only_where_they_were_asked_for() -> None:
    engine, _ = make_engine()
    outputs = finish(engine, request("asked", sampling=SamplingParams(logprobs=1)), request("silent"))
    assert [output.logprobs for output in outputs["asked"]] == [(((token, -0.5),),) for token in (1, 2, 3, 4, 5)]
    assert {output.logprobs for output in outputs["silent"]} == {()}


def test_a_request_without_a_seed_is_given_one_that_it_keeps() -> None:
    engine, runner = make_engine()
    finish(engine, request("first", prompt="x"), request("second"), request("own", sampling=SamplingParams(seed=7)))
    seeds: dict[int, set[int | None]] = {}
    for item in (item for step in runner.steps for item in step):
        seeds.setdefault(item.sequence_id, set()).add(item.sampling.seed)
    (first,), (second,), (own,) = seeds.values()
    assert own == 7 and None not in (first, second) and first != second


def test_a_request_is_cancelled_while_it_waits() -> None:
    engine, runner = make_engine(max_sequences=1)
    engine.add(request("running"))
    engine.add(request("waiting"))
    engine.step()
    output = engine.cancel("waiting")
    assert output == Output("waiting", "", (), (), "aborted", 0)
    engine.check_integrity()
    assert engine.has_work
    assert engine.cancel("running") is not None
    assert_nothing_is_held(engine, runner)


def test_a_request_is_cancelled_inside_its_prompt() -> None:
    engine, runner = make_engine(max_batch_tokens=4)
    engine.add(request(prompt="abcdefghij"))
    engine.step()
    assert engine.cancel("one") == Output("one", "", (), (), "aborted", 0)
    assert_nothing_is_held(engine, runner)


def test_cancelling_shows_the_text_that_was_held_back() -> None:
    engine, runner = make_engine()
    engine.add(request(stop=("cdz",)))
    assert "".join(output.text for _ in range(3) for output in engine.step()) == "b"
    output = engine.cancel("one")
    assert output is not None and (output.text, output.token_ids, output.finish_reason) == ("cd", (), "aborted")
    assert_nothing_is_held(engine, runner)


def test_what_is_not_in_flight_cannot_be_cancelled() -> None:
    engine, _ = make_engine()
    assert engine.cancel("never added") is None
    finish(engine, request())
    assert engine.cancel("one") is None


def test_a_preempted_request_is_cancelled_while_it_waits() -> None:
    engine, runner = make_engine(num_pages=4, max_context=16)
    engine.add(request("first", prompt="abcdefg", max_tokens=9))
    engine.add(request("second", prompt="hijklm", max_tokens=9))
    while len(list(runner.sequences)) == 2 or not runner.steps:
        engine.step()
    assert engine.cancel("second") is not None
    engine.check_integrity()
    while engine.has_work:
        engine.step()
    assert_nothing_is_held(engine, runner)


def test_a_stream_yields_every_output_and_ends() -> None:
    engine, runner = make_engine()
    outputs = list(engine.stream(request()))
    assert [output.text for output in outputs] == ["b", "c", "d", "e", "f"]
    assert outputs[-1].finish_reason == "length"
    assert_nothing_is_held(engine, runner)


def test_two_streams_are_read_in_turns() -> None:
    engine, runner = make_engine()
    first, second = engine.stream(request("first")), engine.stream(request("second", prompt="k", max_tokens=3))
    texts = [(one.text, other.text) for one, other in zip(first, second, strict=False)]
    assert texts == [("b", "l"), ("c", "m"), ("d", "n")]
    assert text_of(list(first)) == "f"  # zip had read "e" before it saw that the other stream was over
    assert len(runner.steps) == 5, "both were computed in the same steps"
    assert_nothing_is_held(engine, runner)


def test_a_stream_read_late_has_missed_nothing() -> None:
    engine, _ = make_engine()
    late = engine.stream(request("late"))
    assert text_of(list(engine.stream(request("early", max_tokens=9)))) == ALPHABET[1:10]
    assert text_of(list(late)) == "bcdef"


def test_a_stream_gets_what_others_stepped_for_it() -> None:
    engine, _ = make_engine()
    stream = engine.stream(request())
    while engine.has_work:
        engine.step()
    assert text_of(list(stream)) == "bcdef"


def test_leaving_the_loop_over_a_stream_cancels() -> None:
    engine, runner = make_engine()
    for output in engine.stream(request(max_tokens=50)):
        if output.text == "d":
            break
    assert_nothing_is_held(engine, runner)


def test_an_error_in_the_loop_over_a_stream_cancels() -> None:
    engine, runner = make_engine()
    with pytest.raises(ZeroDivisionError):
        for output in engine.stream(request(max_tokens=50)):
            assert 1 / (output.text != "d")
    assert_nothing_is_held(engine, runner)


def test_closing_a_stream_leaves_the_others_alone() -> None:
    engine, runner = make_engine()
    first, second = engine.stream(request("first")), engine.stream(request("second", prompt="k"))
    next(first), next(second)
    close(first)
    assert text_of(list(second)) == "mnop"
    assert_nothing_is_held(engine, runner)


def test_a_stream_that_is_cancelled_elsewhere_ends() -> None:
    engine, runner = make_engine()
    stream = engine.stream(request(stop=("cdz",)))
    assert next(stream).text == "b"
    engine.step()
    assert engine.cancel("one") is not None
    rest = list(stream)
    assert [(output.text, output.finish_reason) for output in rest] == [("", None), ("c", "aborted")]
    assert_nothing_is_held(engine, runner)


def test_closing_a_finished_stream_does_not_cancel_a_later_request_of_the_same_name() -> None:
    engine, _ = make_engine()
    old = engine.stream(request(max_tokens=1))
    assert next(old).finish_reason == "length"
    new = engine.stream(request(prompt="k"))
    close(old)
    assert text_of(list(new)) == "lmnop"


def close(stream: Iterator[Output]) -> None:
    stream.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "abcdefgh"}, "the prompt has 8 tokens and the context holds 8"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"stop": ("x", "")}, "a stop text is empty"),
        ({"stop_ids": ((1,), ())}, "a stop sequence has no token ids"),
    ],
)
def test_a_request_that_can_never_run_is_refused(settings: dict[str, object], message: str) -> None:
    engine, runner = make_engine(max_context=8)
    with pytest.raises(RequestError, match=message):
        engine.add(request(**settings))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=message):
        engine.stream(request(**settings))  # type: ignore[arg-type]
    assert_nothing_is_held(engine, runner)
    assert text_of(finish(engine, request())["one"]) == "bcdef"


@pytest.mark.parametrize("token_id", [-1, 26])
def test_a_token_id_that_is_not_in_the_vocabulary_is_refused(token_id: int) -> None:
    engine, _ = make_engine()
    with pytest.raises(RequestError, match=f"token id {token_id} is not below the vocabulary's size 26"):
        engine.add(Request("one", [0, token_id], 5))
    assert not engine.has_work


def test_a_name_in_flight_is_refused_and_the_first_request_goes_on() -> None:
    engine, _ = make_engine()
    engine.add(request())
    with pytest.raises(RequestError, match="'one' is in flight already"):
        engine.add(request(prompt="k"))
    assert text_of([output for _ in range(5) for output in engine.step()]) == "bcdef"


def test_the_longest_prompt_that_fits_gets_one_token() -> None:
    engine, _ = make_engine(max_context=8)
    outputs = finish(engine, request(prompt="abcdefg"))["one"]
    assert text_of(outputs) == "h" and outputs[-1].finish_reason == "length"
