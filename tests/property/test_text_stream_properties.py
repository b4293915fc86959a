"""Streams of text against brute force over whole strings, through tokenizers that tests/conftest.py trains."""

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from hopformer.llama.incremental_decoder import IncrementalDecoder
from hopformer.llama.text_stream import TextStream
from hopformer.llama.tokenizer import Tokenizer

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
MAX_RUN = 32  # byte tokens; the decoder's own limit, up to which its text is exact


@pytest.fixture(scope="module", params=["byte-level", "byte-fallback", "metaspace"])
def tokenizer(request: pytest.FixtureRequest, trained_tokenizers: dict[str, tokenizers.Tokenizer]) -> Tokenizer:
    return Tokenizer(trained_tokenizers[request.param], {})


emoji = st.sampled_from(
    ["👨‍👩‍👧‍👦", "🇫🇷", "👍🏽", "🙂", "e\u0301", "한국", "漢字", "ไทย", UNKNOWN, "\n\n", "  ", "\u00a0"]
)
texts = st.lists(st.one_of(st.text(max_size=4), emoji, st.sampled_from(["hello", " world", "STOP"])), max_size=12).map(
    "".join
)


def seeds(max_size: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, 10_000), max_size=max_size)


def as_ids(tokenizer: Tokenizer, numbers: list[int]) -> list[int]:
    """Ids of the vocabulary; half of the numbers are bent to its first 300 ids, where the bytes lie."""
    return [n % tokenizer.vocab_size if n % 2 else n // 2 % min(300, tokenizer.vocab_size) for n in numbers]


def whole(text: str) -> str:
    """Without a character that its tokens have not completed."""
    return text.rstrip(UNKNOWN)


@given(text=texts)
@settings(deadline=None)
def test_the_pieces_of_any_text_join_to_its_decoding(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    decoder = IncrementalDecoder(tokenizer.decode, tokenizer.byte_tokens)
    pieces = [decoder.push(token_id) for token_id in ids]
    shown = "".join(pieces)
    assert shown + decoder.finish() == tokenizer.decode(ids)


@given(text=texts, places=st.lists(st.integers(0, 40), max_size=12))
@settings(deadline=None)
def test_special_tokens_that_are_skipped_leave_no_mark_wherever_they_stand(
    tokenizer: Tokenizer, text: str, places: list[int]
) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    for place in places:
        ids[place:place] = tokenizer.encode("</s>", add_special_tokens=False)[-1:] * (1 + place % 6)
    decoder = IncrementalDecoder(tokenizer.decode, tokenizer.byte_tokens)
    shown = "".join(decoder.push(token_id) for token_id in ids)
    assert shown + decoder.finish() == tokenizer.decode(ids)


@given(numbers=seeds(MAX_RUN))
@settings(max_examples=300, deadline=None)
def test_the_pieces_of_any_tokens_join_to_their_decoding(tokenizer: Tokenizer, numbers: list[int]) -> None:
    ids = as_ids(tokenizer, numbers)
    decoder = IncrementalDecoder(tokenizer.decode, tokenizer.byte_tokens)
    shown = ""
    for count, token_id in enumerate(ids, start=1):
        shown += decoder.push(token_id)
        assert shown + decoder.rest() == tokenizer.decode(ids[:count])
        assert tokenizer.decode(ids).startswith(shown)
    assert shown + decoder.finish() == tokenizer.decode(ids)


def cut_by_brute_force(
    tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...], stop_ids: tuple[tuple[int, ...], ...]
) -> tuple[str, int | None]:
    """The text before the first stop and the number of tokens that were needed, or all the text and None."""
    for count in range(1, len(ids) + 1):
        seen = ids[:count]
        matched = [len(stopper) for stopper in stop_ids if tuple(seen[-len(stopper) :]) == stopper]
        cuts = [tokenizer.decode(seen[: -max(matched)])] if matched else []
        text = whole(tokenizer.decode(seen))
        starts = [text.find(stopper) for stopper in stop if stopper in text]
        if starts:
            cuts.append(text[: min(starts)])
        if cuts:
            return min(cuts, key=len), count
    return tokenizer.decode(ids), None


@st.composite
def answers_with_stops(
    draw: st.DrawFn, tokenizer: Tokenizer
) -> tuple[list[int], tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Tokens of a small pool, so that they repeat, and stops taken from them and from what they decode to."""
    pool = as_ids(tokenizer, draw(st.lists(st.integers(0, 10_000), min_size=1, max_size=4)))
    pool += tokenizer.encode(draw(st.sampled_from(["a", "STOP", "🙂", " the", "ab\nab"])), add_special_tokens=False)
    ids = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=20))
    text = tokenizer.decode(ids)
    slices = st.tuples(st.integers(0, max(len(text) - 1, 0)), st.integers(1, 5)).map(lambda s: text[s[0] : sum(s)])
    stops = st.one_of(slices, st.tuples(slices, slices).map("".join), st.text("aab STO\n", min_size=1, max_size=3))
    sequences = st.lists(st.sampled_from(pool), min_size=1, max_size=4).map(tuple)
    stop = draw(st.lists(stops.filter(lambda s: s and UNKNOWN not in s), max_size=3))
    stop_ids = draw(st.lists(sequences, max_size=2))
    return ids, tuple(stop), tuple(stop_ids)


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_a_stream_ends_where_brute_force_finds_the_first_stop(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids, stop, stop_ids = data.draw(answers_with_stops(tokenizer))
    expected, num_needed = cut_by_brute_force(tokenizer, ids, stop, stop_ids)
    stream = TextStream(tokenizer.decode, stop, stop_ids, byte_tokens=tokenizer.byte_tokens)
    shown = ""
    stopped_after = None
    for count, token_id in enumerate(ids, start=1):
        shown += stream.push(token_id)
        assert expected.startswith(shown)
        if stream.stopped and stopped_after is None:
            stopped_after = count
    assert stopped_after == num_needed
    assert shown + stream.finish() == expected
    assert stream.stopped == (num_needed is not None)


@given(numbers=seeds(MAX_RUN))
@settings(deadline=None)
def test_a_stream_without_stops_shows_as_much_as_its_decoder(tokenizer: Tokenizer, numbers: list[int]) -> None:
    stream = TextStream(tokenizer.decode, byte_tokens=tokenizer.byte_tokens)
    decoder = IncrementalDecoder(tokenizer.decode, tokenizer.byte_tokens)
    for token_id in as_ids(tokenizer, numbers):
        assert stream.push(token_id) == decoder.push(token_id)
    assert stream.finish() == decoder.finish()
    assert not stream.stopped
