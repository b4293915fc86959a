"""The stream of an answer's text: examples of what its property tests cover at random, and its bounds."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from hopformer.errors import RequestError
from hopformer.llama.incremental_decoder import IncrementalDecoder
from hopformer.llama.text_stream import TextStream
from hopformer.llama.tokenizer import Tokenizer

FolderMaker = Callable[..., Path]


def spell(ids: Sequence[int]) -> str:
    """A decoder whose tokens are single characters."""
    return "".join(map(chr, ids))


def run(stream: TextStream, tokens: str) -> list[str]:
    return [stream.push(ord(token)) for token in tokens]


def test_a_stop_text_that_straddles_tokens_is_never_shown() -> None:
    stream = TextStream(spell, stop=("STOP",), byte_tokens={})
    assert run(stream, "a SSTOP") == ["a", " ", "", "S", "", "", ""]
    assert stream.stopped


def test_text_that_only_began_like_a_stop_is_shown_when_that_is_clear() -> None:
    stream = TextStream(spell, stop=("STOP",), byte_tokens={})
    assert run(stream, "STOSTx") == ["", "", "", "STO", "", "STx"]
    assert not stream.stopped


def test_a_stop_inside_one_token_cuts_the_token() -> None:
    words = {1: "one two", 2: " three STOP four"}
    stream = TextStream(lambda ids: "".join(words[i] for i in ids), stop=("STOP",), byte_tokens={})
    assert [stream.push(1), stream.push(2)] == ["one two", " three "]
    assert stream.stopped


def test_of_two_stops_in_one_token_the_one_that_begins_first_counts() -> None:
    words = {1: "xabcy"}
    stream = TextStream(lambda ids: "".join(words[i] for i in ids), stop=("b", "abc"), byte_tokens={})
    assert stream.push(1) == "x"


def test_a_stop_sequence_holds_its_tokens_back_until_it_breaks() -> None:
    stream = TextStream(spell, stop_ids=(tuple(map(ord, "aab")),), byte_tokens={})
    assert run(stream, "aaaac") == ["", "", "a", "a", "aac"]
    assert run(stream, "aab") == ["", "", ""]
    assert stream.stopped


def test_a_stop_text_within_held_tokens_stops_at_once() -> None:
    stream = TextStream(spell, stop=("b",), stop_ids=(tuple(map(ord, "abc")),), byte_tokens={})
    assert run(stream, "xab") == ["x", "", "a"]
    assert stream.stopped


def test_a_stop_sequence_takes_with_it_a_stop_text_that_began_before() -> None:
    stream = TextStream(spell, stop=("1234",), stop_ids=(tuple(map(ord, "34")),), byte_tokens={})
    assert run(stream, "01234") == ["0", "", "", "", ""]
    assert stream.stopped


def test_tokens_after_the_stop_and_a_second_finish_add_nothing() -> None:
    stream = TextStream(spell, stop=("b",), byte_tokens={})
    assert run(stream, "abc") == ["a", "", ""]
    assert stream.finish() == ""


def test_finish_shows_what_was_held_back_for_a_stop_that_did_not_come() -> None:
    stream = TextStream(spell, stop=("STOP",), stop_ids=((ord("O"), ord("K")),), byte_tokens={})
    assert run(stream, "aSTO") == ["a", "", "", ""]
    assert stream.finish() == "STO"
    assert stream.finish() == ""
    assert not stream.stopped


@pytest.mark.parametrize("stops", [{"stop": ("",)}, {"stop": ("a", "")}, {"stop_ids": ((),)}])
def test_an_empty_stop_is_refused(stops: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(RequestError, match="stop"):
        TextStream(spell, **stops, byte_tokens={})  # type: ignore[arg-type]


def test_an_emoji_appears_whole_with_its_last_byte(tokenizer_folder: FolderMaker) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder("byte-level"))
    ids = tokenizer.encode("🙂", add_special_tokens=False)
    stream = TextStream(tokenizer.decode, byte_tokens={})
    assert len(ids) == 4
    assert [stream.push(token_id) for token_id in ids] == ["", "", "", "🙂"]


def test_a_half_character_at_the_end_of_an_answer_is_one_replacement_character(tokenizer_folder: FolderMaker) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder("byte-level"))
    stream = TextStream(tokenizer.decode, byte_tokens={})
    ids = tokenizer.encode("a🙂", add_special_tokens=False)[:-1]
    assert "".join(stream.push(token_id) for token_id in ids) == "a"
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


def test_a_stop_of_one_byte_token_stops_without_waiting_for_the_run_to_end(tokenizer_folder: FolderMaker) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder("byte-fallback"))
    stream = TextStream(tokenizer.decode, stop=("\x07",), byte_tokens=tokenizer.byte_tokens)
    ids = tokenizer.encode("hello\x07", add_special_tokens=False)
    assert "".join(stream.push(token_id) for token_id in ids) == "hello"
    assert stream.stopped


def test_a_long_run_of_bytes_streams_in_parts_and_loses_nothing(tokenizer_folder: FolderMaker) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder("byte-fallback"))
    decoder = IncrementalDecoder(tokenizer.decode, tokenizer.byte_tokens)
    ids = tokenizer.encode("hello" + "ไทย" * 30 + " there", add_special_tokens=False)
    shown, held = "", 0
    for count, token_id in enumerate(ids, start=1):
        shown += decoder.push(token_id)
        held = max(held, len(tokenizer.decode(ids[:count]).rstrip("\N{REPLACEMENT CHARACTER}")) - len(shown))
    assert shown + decoder.finish() == tokenizer.decode(ids)
    assert 0 < held <= 32 // 3


def test_a_long_run_that_ends_in_half_a_character_keeps_what_was_shown(tokenizer_folder: FolderMaker) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder("byte-fallback"))
    decoder = IncrementalDecoder(tokenizer.decode, tokenizer.byte_tokens)
    (word,) = tokenizer.encode("hello", add_special_tokens=False)[-1:]
    run_ids = [tokenizer.token_id(f"<0x{byte:02X}>") or 0 for byte in ("ไทย" * 5).encode()[:-1]]
    shown = "".join(decoder.push(token_id) for token_id in [*run_ids, word])
    again = tokenizer.decode([word, word]).removeprefix(tokenizer.decode([word]))  # not as the first word
    assert shown == "ไทย" * 4 + "ไท\N{REPLACEMENT CHARACTER}" + again


def test_bytes_that_never_become_text_are_shown_soon_and_decoded_in_a_short_window(
    tokenizer_folder: FolderMaker,
) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder("byte-level"))
    wrong = tokenizer.token_id("ÿ")  # byte-level tokenizers' letter for the byte 0xFF
    assert wrong is not None
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return tokenizer.decode(ids)

    decoder = IncrementalDecoder(decode, {})
    pieces = [decoder.push(wrong) for _ in range(100)]
    assert len("".join(pieces[:20])) >= 20 - 9
    assert "".join(pieces) + decoder.finish() == "\N{REPLACEMENT CHARACTER}" * 100
    assert longest <= 9


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback", "metaspace"])
def test_the_work_for_a_token_does_not_grow_with_the_answer(kind: str, tokenizer_folder: FolderMaker) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder(kind))
    decoded = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return tokenizer.decode(ids)

    ids = tokenizer.encode("hello world, how are you? " * 40, add_special_tokens=False)
    stream = TextStream(decode, ("STOP",), ((1,),), byte_tokens=tokenizer.byte_tokens)
    for token_id in ids:
        stream.push(token_id)
    assert decoded <= 4 * len(ids)
