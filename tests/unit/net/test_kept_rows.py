"""Rows that are kept, cut off and given out again."""

import itertools

import pytest

from hopformer.net.kept_rows import KeptRows
from hopformer.net.messages import Codec, Dtype
from hopformer.net.row_layout import RowLayout

BYTE_ROWS = RowLayout(Dtype.BFLOAT16, Codec.EXACT, 1)  # a row has two bytes


def rows(start: int, stop: int) -> bytes:
    """Rows that say their position."""
    return b"".join(position.to_bytes(2, "little") for position in range(start, stop))


def kept(*lengths: int) -> KeptRows:
    found = KeptRows(BYTE_ROWS)
    for start, stop in itertools.pairwise([0, *itertools.accumulate(lengths)]):
        found.append(rows(start, stop))
    return found


@pytest.mark.parametrize("max_rows", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("stop", [0, 1, 4, 5, 11, 12, 99])
def test_pieces_are_the_rows_in_order_whatever_they_came_in(stop: int, max_rows: int) -> None:
    pieces = list(kept(4, 1, 1, 6).pieces(stop, max_rows))
    assert b"".join(bytes(payload) for _, payload in pieces) == rows(0, min(stop, 12))
    assert [position for position, _ in pieces] == list(range(0, min(stop, 12), max_rows))


@pytest.mark.parametrize("length", range(14))
def test_what_is_kept_after_a_cut_is_what_was_before_it(length: int) -> None:
    found = kept(4, 1, 1, 6)
    found.truncate(length)
    found.check_integrity()
    assert found.length == min(length, 12)
    assert b"".join(bytes(payload) for _, payload in found.pieces(99, 5)) == rows(0, min(length, 12))
    found.append(rows(found.length, 15))
    found.check_integrity()
    assert b"".join(bytes(payload) for _, payload in found.pieces(99, 5)) == rows(0, 15)


def test_int8_rows_are_cut_and_joined_too() -> None:
    layout = RowLayout(Dtype.BFLOAT16, Codec.INT8, 3)  # a row: a scale of 4 bytes, 3 elements
    found = KeptRows(layout)
    found.append(b"AAAABBBBaaabbb")
    found.append(b"CCCCccc")
    assert [bytes(payload) for _, payload in found.pieces(3, 2)] == [b"AAAABBBBaaabbb", b"CCCCccc"]
    assert [bytes(payload) for _, payload in found.pieces(3, 3)] == [b"AAAABBBBCCCCaaabbbccc"]
    found.truncate(1)
    assert [bytes(payload) for _, payload in found.pieces(3, 3)] == [b"AAAAaaa"]
