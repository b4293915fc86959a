"""The Triton schedule, which is plain tensor arithmetic: tiles and splits cover everything once, in bounded number."""

import pytest
import torch

from hopformer.kernels import AttentionPlan, plan_attention
from hopformer.kernels.attention_schedule_gpu import build_decode_splits, build_prefill_tiles

LENS = [0, 1, 700, 64, 65, 3, 0, 129, 33]
QUERY_LENS = [1, 1, 1, 64, 1, 0, 2, 40, 1]


def plan() -> AttentionPlan:
    """A step with decodes, prefills, empty sequences and one that only waits."""
    return plan_attention(
        torch.zeros(len(LENS), 50, dtype=torch.int32),
        torch.tensor(LENS, dtype=torch.int32),
        torch.tensor([0, *QUERY_LENS]).cumsum(0).int(),
        page_size=16,
    )


@pytest.mark.parametrize("size", [1, 7, 16, 64, 1000])
@pytest.mark.parametrize("padding", [0, 1, 5])
def test_tiles_cover_every_query_of_every_prefill_once(size: int, padding: int) -> None:
    rows = sum(QUERY_LENS) + padding
    tiles = build_prefill_tiles(plan(), rows, size)
    covered = []
    for sequence, first in zip(tiles.sequence.tolist(), tiles.first_query.tolist(), strict=True):
        if sequence >= 0:
            start, end = tiles.cu_seqlens_q[sequence].item(), tiles.cu_seqlens_q[sequence + 1].item()
            covered += range(start + first, min(start + first + size, end))
    decodes = {sum(QUERY_LENS[:index]) for index, count in enumerate(QUERY_LENS) if count == 1}
    assert sorted(covered) == sorted(set(range(rows)) - decodes)
    assert len(tiles.sequence) <= rows // size + len(LENS) + 1


def test_the_longest_tiles_of_a_sequence_come_first() -> None:
    tiles = build_prefill_tiles(plan(), sum(QUERY_LENS), 16)
    assert tiles.first_query[tiles.sequence == 3].tolist() == [48, 32, 16, 0]


def test_rows_behind_the_last_sequence_see_no_keys() -> None:
    tiles = build_prefill_tiles(plan(), sum(QUERY_LENS) + 5, 64)
    assert tiles.seq_lens[-1] == 0
    assert tiles.cu_seqlens_q[-2:].tolist() == [sum(QUERY_LENS), sum(QUERY_LENS) + 5]


@pytest.mark.parametrize("window", [0, 1, 50])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 100])
def test_splits_cover_the_visible_keys_of_every_decode_once(window: int, num_kv_heads: int) -> None:
    splits = build_decode_splits(plan(), window, num_kv_heads, 16)
    for index, (length, count) in enumerate(zip(LENS, QUERY_LENS, strict=True)):
        own = (splits.sequence == index).nonzero().squeeze(1)
        first, last = splits.bounds[index].item(), splits.bounds[index + 1].item()
        assert own.tolist() == list(range(first, last))
        if count != 1:
            assert first == last
            continue
        keys = [key for s in own.tolist() for key in range(int(splits.start[s]), int(splits.end[s]))]
        assert keys == list(range(max(0, length - window) if window else 0, length))
        assert last > first  # a sequence without keys still has a program that writes zeros


def test_a_long_sequence_is_split_and_short_ones_are_not() -> None:
    splits = build_decode_splits(plan(), 0, 1, 16)
    counts = splits.bounds.diff().tolist()
    assert counts[2] > 4
    assert [counts[index] for index in (0, 1, 4, 8)] == [1, 1, 1, 1]
