"""The Triton path's schedule of one step: tiles of queries for prefill, splits of keys for decode.

Everything is computed on the device from the index tensors, without waiting for it: grids are upper bounds that the
host knows, and a program beyond the real number finds sequence -1 and returns.

    B sequences   T rows of q   W splits
"""

from dataclasses import dataclass

import torch

from .attention_plan import AttentionPlan

_INTERPRETED_PROGRAMS = 8  # a "GPU" of the interpreter: enough to split and to merge


@dataclass(frozen=True, slots=True)
class PrefillTiles:
    """Blocks of consecutive queries of one sequence, for every sequence of more than one query.

    Rows of q behind the last sequence are the queries of one more, number B, of length 0.

    Attributes:
        sequence: [num_tiles] int32, -1 past the last tile.
        first_query: [num_tiles] int32, counted from the sequence's first.
        cu_seqlens_q: [B + 2] int32.
        seq_lens: [B + 1] int32.
    """

    sequence: torch.Tensor
    first_query: torch.Tensor
    cu_seqlens_q: torch.Tensor
    seq_lens: torch.Tensor


@dataclass(frozen=True, slots=True)
class DecodeSplits:
    """Ranges of keys, each for the single query of one sequence.

    Attributes:
        sequence: [W] int32, -1 past the last split.
        start, end: [W] int32 positions.
        bounds: [B + 1] int32; sequence b has the splits bounds[b] .. bounds[b + 1], none unless it is a single query.
    """

    sequence: torch.Tensor
    start: torch.Tensor
    end: torch.Tensor
    bounds: torch.Tensor


def build_prefill_tiles(plan: AttentionPlan, num_rows: int, tile_queries: int) -> PrefillTiles:
    """Cut every sequence of more than one query into tiles of ``tile_queries``, the latest and so longest first."""
    end = plan.cu_seqlens_q.new_full((1,), num_rows)
    bounds = torch.cat([plan.cu_seqlens_q, end])  # [B + 2]
    query_lens = bounds.diff().clamp_(min=0)
    query_lens[:-1].masked_fill_(query_lens[:-1] == 1, 0)
    counts = (query_lens + (tile_queries - 1)) // tile_queries
    num_tiles = num_rows // tile_queries + len(counts)
    sequence, place = _spread(counts, num_tiles)
    first_query = (counts[sequence.clamp(min=0)] - 1 - place) * tile_queries
    seq_lens = torch.cat([plan.seq_lens, torch.zeros_like(end)])
    return PrefillTiles(sequence, first_query.int(), bounds, seq_lens)


def build_decode_splits(plan: AttentionPlan, window: int, num_kv_heads: int, tile_keys: int) -> DecodeSplits:
    """Split the keys of the single queries evenly over the device, in whole tiles of ``tile_keys``.

    With S keys in all and P programs wanted a split is S / P keys, rounded up to tiles, so a long sequence gets many
    splits and a short one gets one; there are at most P + B.
    """
    wanted = max(1, _num_programs(plan.seq_lens.device) // num_kv_heads)
    is_decode = plan.cu_seqlens_q.diff() == 1
    first = (plan.seq_lens - window).clamp(min=0) if window else torch.zeros_like(plan.seq_lens)
    num_keys = torch.where(is_decode, plan.seq_lens - first, 0)
    wanted_tiles = (num_keys.sum(dtype=torch.int64) + (wanted * tile_keys - 1)) // (wanted * tile_keys)
    split = wanted_tiles.clamp(min=1).int() * tile_keys  # a scalar
    counts = torch.where(is_decode, ((num_keys + split - 1) // split).clamp(min=1), 0)  # none has keys: still writes 0
    sequence, place = _spread(counts, wanted + len(counts))
    at = sequence.clamp(min=0)
    start = first[at] + place * split
    end = torch.minimum(start + split, plan.seq_lens[at])
    bounds = torch.cat([torch.zeros_like(counts[:1]), counts.cumsum(0)])
    return DecodeSplits(sequence, start.int(), end.int(), bounds.int())


def _spread(counts: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``counts: [n]`` items of each owner in a row -> owner [size] int32 (-1 past the last), place among its own."""
    ends = counts.cumsum(0)
    item = torch.arange(size, device=counts.device)
    owner = torch.searchsorted(ends, item, right=True)
    inside = owner < len(counts)
    own = owner.clamp(max=len(counts) - 1)
    place = item - (ends - counts)[own]
    return torch.where(inside, owner, -1).int(), torch.where(inside, place, 0)


def _num_programs(device: torch.device) -> int:
    """How many decode programs fill the device: two for each multiprocessor."""
    if device.type != "cuda":
        return _INTERPRETED_PROGRAMS
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count
