"""How an announcement lies in a TXT record. What two nodes hear of each other: tests/integration/test_lan.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopformer.net.announcement import MAX_ANNOUNCEMENT_BYTES
from hopformer.net.lan import from_text, to_text


def strings(text: bytes) -> list[bytes]:
    """As any other program reads a TXT record."""
    found = []
    while text:
        found.append(text[1 : 1 + text[0]])
        text = text[1 + text[0] :]
    return found


@given(st.binary(min_size=1, max_size=1000) | st.integers(1, MAX_ANNOUNCEMENT_BYTES).map(lambda size: b"\xff" * size))
def test_an_announcement_comes_back_from_its_text(blob: bytes) -> None:
    assert from_text(to_text(blob)) == blob
    assert b"".join(one.partition(b"=")[2] for one in strings(to_text(blob))) == blob


def test_it_is_cut_into_strings_that_have_names_and_255_bytes_at_most() -> None:
    found = strings(to_text(bytes(600)))
    assert [len(one) for one in found] == [255, 255, 96]
    assert [one.partition(b"=")[0] for one in found] == [b"0", b"1", b"2"]


def test_the_longest_announcement_is_taken_and_none_beyond() -> None:
    assert from_text(to_text(bytes(MAX_ANNOUNCEMENT_BYTES))) == bytes(MAX_ANNOUNCEMENT_BYTES)
    assert from_text(to_text(bytes(MAX_ANNOUNCEMENT_BYTES + 1))) is None
    assert from_text(to_text(bytes(65_000))) is None


@pytest.mark.parametrize("text", [b"", b"\0", b"\4path", b"\3p=1", b"\3" + b"1=a", b"\2" + b"0=", to_text(b"a") * 2])
def test_a_text_of_something_else_holds_none(text: bytes) -> None:
    assert from_text(text) is None


@given(st.binary(max_size=600))
def test_any_text_is_read_or_left(text: bytes) -> None:
    found = from_text(text)
    assert found is None or 0 < len(found) <= len(text)
