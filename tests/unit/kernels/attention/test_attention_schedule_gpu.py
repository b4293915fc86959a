"""The Triton schedule, which is plain tensor arithmetic: tiles and splits cover everything once, in bounded number."""

import pytest
import torch

from hopformer.kernels import AttentionPlan, plan_attention
from hopformer.kernels.attention_schedule_gpu import (
    INVARIANT_SPLIT,
    DecodeShape,
    build_decode_splits,
    build_prefill_tiles,
)

LENS = [0, 1, 700, 64, 65, 3, 0, 129, 33, 2500]
QUERY_LENS = [1, 1, 1, 64, 16, 0, 2, 40, 5, 3]


def plan(batch_invariant: bool = False) -> AttentionPlan:
    """A step with decodes, prefills, empty sequences and one that only waits."""
    return plan_attention(
        torch.zeros(len(LENS), 160, dtype=torch.int32),
        torch.tensor(LENS, dtype=torch.int32),
        torch.tensor([0, *QUERY_LENS]).cumsum(0).int(),
        page_size=16,
        batch_invariant=batch_invariant,
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
    decoded = {
        sum(QUERY_LENS[:index]) + query
        for index, count in enumerate(QUERY_LENS)
        for query in range(count)
        if count <= 16
    }
    assert sorted(covered) == sorted(set(range(rows)) - decoded)
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
@pytest.mark.parametrize("tile_queries", [1, 4, 64])
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_splits_cover_the_visible_keys_of_every_decoded_query_once(
    window: int, num_kv_heads: int, tile_queries: int, batch_invariant: bool
) -> None:
    shape = DecodeShape(window, num_kv_heads, tile_queries, 16, sum(QUERY_LENS) + 2)
    splits = build_decode_splits(plan(batch_invariant), shape)
    rows = list(zip(*splits.splits.tolist(), strict=True))
    tiles: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for index, (tile, sequence, first_query, start, end) in enumerate(rows):
        if tile >= 0:
            assert splits.bounds[tile] <= index < splits.bounds[tile + 1]
            tiles.setdefault((sequence, first_query), []).append((start, end))
    lens, query_lens = [*LENS, 0], [*QUERY_LENS, 2]
    expected = set()
    for sequence, count in enumerate(query_lens):
        lead = (lens[sequence] - count) % tile_queries if batch_invariant else 0
        if batch_invariant or (count <= 16 and sequence < len(LENS)):
            expected |= {(sequence, first) for first in range(-lead, count, tile_queries) if count}
    assert tiles.keys() == expected  # one without keys still has a program that writes zeros
    for (sequence, first), ranges in tiles.items():
        context = lens[sequence] - query_lens[sequence]
        last = min(first + tile_queries, query_lens[sequence])
        keys = [key for start, end in ranges for key in range(start, end)]
        needed_from = max(0, context + first + 1 - window) if window else 0
        assert keys == list(range(keys[0], keys[-1] + 1)) if keys else context + last <= 0
        if keys:
            assert keys[0] <= needed_from and keys[-1] == context + last - 1
            assert keys[0] % 16 == 0
    assert not splits.counters.any()


def test_a_long_sequence_is_split_and_short_ones_are_not() -> None:
    splits = build_decode_splits(plan(), DecodeShape(0, 32, 16, 16, sum(QUERY_LENS)))  # 32 heads: 8 programs each
    counts = splits.bounds.diff().tolist()
    by_sequence = dict(zip((0, 1, 2, 4, 6, 8, 9), counts, strict=False))  # the others have no query, or too many
    assert by_sequence[9] > by_sequence[2] > 1
    assert by_sequence[0] == by_sequence[1] == by_sequence[4] == by_sequence[8] == 1


def test_invariant_splits_lie_at_fixed_places() -> None:
    splits = build_decode_splits(plan(True), DecodeShape(0, 1, 16, 16, sum(QUERY_LENS)))
    starts = splits.splits[3][splits.splits[0] >= 0]
    assert (starts % INVARIANT_SPLIT == 0).all() and starts.max() == 2 * INVARIANT_SPLIT
