"""The Triton path's schedule of one step: tiles of queries for prefill, splits of keys for decode.

Everything is computed on the device from the index tensors, without waiting for it: grids are upper bounds that the
host knows, and a program beyond the real number finds -1 and returns. So a schedule may be built inside a CUDA graph,
and a replay follows the lengths of its day.

    B sequences   T rows of q   Q tiles of queries   W splits of keys
"""

from dataclasses import dataclass

import torch

from .attention_plan import AttentionPlan
from .backend import num_processors

# Sequences of up to this many queries are decoded: keys are read once for them all, at the speed of memory. More is
# prefill, whose tiles are bound by products.
MAX_DECODE_QUERIES = 16
# Keys of a split where results must not depend on the batch. Long enough that 128k keys make 128 partial results, short
# enough that one sequence of 8k keys keeps 8 programs a KV head busy.
INVARIANT_SPLIT = 1024


@dataclass(frozen=True, slots=True)
class PrefillTiles:
    """Blocks of consecutive queries of one sequence, for every sequence of more than MAX_DECODE_QUERIES.

    Rows of q behind the last sequence are the queries of one more, number B, of length 0.

    Attributes:
        sequence: [Q] int32, -1 past the last tile.
        first_query: [Q] int32, counted from the sequence's first.
        cu_seqlens_q: [B + 2] int32.
        seq_lens: [B + 1] int32.
    """

    sequence: torch.Tensor
    first_query: torch.Tensor
    cu_seqlens_q: torch.Tensor
    seq_lens: torch.Tensor


@dataclass(frozen=True, slots=True)
class DecodeSplits:
    """Ranges of keys, each for one tile of a few queries.

    Attributes:
        splits: [5, W] int32: tile, sequence, first query, start and end of the keys; tile is -1 past the last split.
        bounds: [Q + 1] int32; tile i has the splits bounds[i] .. bounds[i + 1].
        counters: [Q * num_kv_heads] int32 of 0: how many of a tile's splits are done. The last one sets it back to 0.
        cu_seqlens_q, seq_lens: as in PrefillTiles.
    """

    splits: torch.Tensor
    bounds: torch.Tensor
    counters: torch.Tensor
    cu_seqlens_q: torch.Tensor
    seq_lens: torch.Tensor


@dataclass(frozen=True, slots=True)
class DecodeShape:
    """What the splits of a kind of layer depend on, beside the step itself."""

    window: int
    num_kv_heads: int
    tile_queries: int
    tile_keys: int
    num_rows: int


def needs_prefill(plan: AttentionPlan) -> bool:
    """Whether a step may have rows that decode leaves: those of many queries, or of no sequence."""
    is_short = plan.max_query_len is not None and plan.max_query_len <= MAX_DECODE_QUERIES
    return not (plan.batch_invariant or is_short)


def build_prefill_tiles(plan: AttentionPlan, num_rows: int, tile_queries: int) -> PrefillTiles:
    """Cut every sequence of many queries into tiles of ``tile_queries``, the latest and so longest first."""
    bounds, seq_lens = _with_rest(plan, num_rows)
    query_lens = bounds.diff().clamp_(min=0)
    query_lens[:-1].masked_fill_(query_lens[:-1] <= MAX_DECODE_QUERIES, 0)
    counts = (query_lens + (tile_queries - 1)) // tile_queries
    sequence, place = _spread(counts, num_rows // tile_queries + len(counts))
    first_query = (counts[sequence.clamp(min=0)] - 1 - place) * tile_queries
    return PrefillTiles(sequence, first_query.int(), bounds, seq_lens)


def build_decode_splits(plan: AttentionPlan, shape: DecodeShape) -> DecodeSplits:
    """Split the keys of the sequences of few queries evenly over the device, in whole tiles of ``tile_keys``.

    With S keys in all and P programs wanted a split is S / P keys, rounded up to tiles, so a long sequence gets many
    splits and a short one gets one; there are at most P + Q. A batch-invariant plan cuts keys at multiples of
    INVARIANT_SPLIT instead, and queries at positions that are multiples of ``tile_queries``, so that a query has its
    place in a tile however its prompt was chunked; the first tile of a chunk may begin before it, at a negative query.
    """
    bounds, seq_lens = _with_rest(plan, shape.num_rows)
    query_lens = bounds.diff().clamp_(min=0)
    if not plan.batch_invariant:  # prefill takes the others, and the rows behind the last sequence
        query_lens = torch.where(query_lens <= MAX_DECODE_QUERIES, query_lens, 0)
        query_lens[-1:] = 0
    lead = (seq_lens - query_lens) % shape.tile_queries if plan.batch_invariant else torch.zeros_like(query_lens)
    counts = torch.where(query_lens > 0, (query_lens + lead + (shape.tile_queries - 1)) // shape.tile_queries, 0)
    num_tiles = _most_tiles(plan, shape)
    sequence, place = _spread(counts, num_tiles)  # [Q]
    owner = sequence.clamp(min=0)
    context = seq_lens[owner] - query_lens[owner]
    first_query = place * shape.tile_queries - lead[owner]
    end = (context + torch.minimum(first_query + shape.tile_queries, query_lens[owner])).clamp_(min=0)
    start = (context + first_query + 1 - shape.window).clamp_(min=0) if shape.window else torch.zeros_like(end)
    step = INVARIANT_SPLIT if plan.batch_invariant else shape.tile_keys
    start = torch.minimum(start // step * step, end)
    num_keys = torch.where(sequence >= 0, end - start, 0)

    wanted = max(1, 2 * num_processors(seq_lens.device) // shape.num_kv_heads)
    if plan.batch_invariant:
        split = torch.full_like(num_keys[:1], INVARIANT_SPLIT)
        most_splits = num_tiles * max(1, -(-plan.block_table.shape[1] * plan.page_size // INVARIANT_SPLIT))
    else:
        tiles_each = (num_keys.sum(0, keepdim=True) + (wanted * shape.tile_keys - 1)) // (wanted * shape.tile_keys)
        split = tiles_each.clamp_(min=1) * shape.tile_keys  # [1]
        most_splits = wanted + num_tiles
    counts = torch.where(sequence >= 0, ((num_keys + split - 1) // split).clamp(min=1), 0)  # none has keys: writes 0
    tile, place = _spread(counts, most_splits)  # [W]
    own = tile.clamp(min=0)
    split_start = start[own] + place * split
    split_end = torch.minimum(split_start + split, end[own])
    splits = torch.stack([tile, owner[own], first_query[own], split_start, split_end]).int()
    tile_bounds = torch.cat([torch.zeros_like(counts[:1]), counts.cumsum(0)]).int()
    counters = splits.new_zeros(num_tiles * shape.num_kv_heads)
    return DecodeSplits(splits, tile_bounds, counters, bounds, seq_lens)


def _with_rest(plan: AttentionPlan, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cu_seqlens_q [B + 2] and seq_lens [B + 1] with the rows behind the last sequence as one more, of length 0."""
    end = plan.cu_seqlens_q.new_full((1,), num_rows)
    return torch.cat([plan.cu_seqlens_q, end]), torch.cat([plan.seq_lens, torch.zeros_like(end)])


def _most_tiles(plan: AttentionPlan, shape: DecodeShape) -> int:
    """An upper bound of the tiles of queries that are decoded."""
    by_rows = shape.num_rows // shape.tile_queries + len(plan.seq_lens) + 1
    if plan.batch_invariant:
        return by_rows + len(plan.seq_lens) + 1
    longest = min(MAX_DECODE_QUERIES, plan.max_query_len or MAX_DECODE_QUERIES)
    return min(by_rows, len(plan.seq_lens) * -(-longest // shape.tile_queries))


def _spread(counts: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``counts: [n]`` items of each owner in a row -> owner [size] (-1 past the last), place among its own [size]."""
    ends = counts.cumsum(0)
    item = torch.arange(size, device=counts.device)
    owner = torch.searchsorted(ends, item, right=True)
    inside = owner < len(counts)
    own = owner.clamp(max=len(counts) - 1)
    place = item - (ends - counts)[own]
    return torch.where(inside, owner, -1).int(), torch.where(inside, place, 0)
