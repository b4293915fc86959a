"""Paged attention for few queries a sequence, in Triton: decode and drafts to verify, keys split over the device.

A decode step reads every key once and computes little, so it runs at the speed of memory when enough programs read at
once. A schedule cuts the queries of each sequence into tiles and the keys of each tile into splits; one program attends
over one split for BLOCK_Q queries and the G heads of one KV head. Where a tile has several splits, whichever program
comes last merges them, in the order of the splits:

    out = sum_i 2^(lse_i - M) out_i / sum_i 2^(lse_i - M),   M = max lse_i

    q, out [T, H, D]   k_pages, v_pages [P, K, S, D]   G = H / K   Q tiles of queries   W splits
    partial [W, K, BLOCK_M, D] f32, lse [W, K, BLOCK_M] f32 in base 2: what a split found, used when it is not alone

Dao et al., "Flash-Decoding", 2023. Splits of a fixed size at fixed places, a batch-invariant plan's, make a query's
result independent of its batch: He et al., "Defeating Nondeterminism in LLM Inference", 2025.
"""

import torch

from .attention_inputs import LayerPages, Scoring
from .attention_plan import AttentionPlan
from .attention_schedule_gpu import MAX_DECODE_QUERIES, DecodeShape, DecodeSplits, build_decode_splits
from .attention_tile import attend_tile, load_queries
from .backend import dtype_name, inlined, jit, next_power_of_2, tl
from .launch_configs import LaunchConfig, find_config

# Packed rows of a tile: few where each sequence has a single query; more reach 16 queries of 4 heads in one tile.
_FEWEST_ROWS, _MOST_ROWS = 16, 64
# Rows of more bytes, f32 at head_dim 256, leave no registers for more than the fewest; nor do codes widened to f32
_WIDE_ROW_BYTES = 512


def paged_decode(q: torch.Tensor, pages: LayerPages, plan: AttentionPlan, scoring: Scoring, out: torch.Tensor) -> None:
    """Write the rows of ``out`` that belong to sequences of few queries; already checked."""
    num_kv_heads, page_size, head_dim = pages.k.shape[1:]
    group_size = q.shape[1] // num_kv_heads
    row_bytes = next_power_of_2(head_dim) * q.itemsize
    has_room = row_bytes <= _WIDE_ROW_BYTES and not (pages.is_narrow and q.dtype == torch.float32)
    block_m = _packed_rows(plan, group_size, _MOST_ROWS if has_room else _FEWEST_ROWS)
    config = find_config(
        "decode",
        dtype=dtype_name(q.dtype),
        kv_dtype=dtype_name(pages.k.dtype),
        block_d=next_power_of_2(head_dim),
        block_m=block_m,
        page_size=page_size,
    )
    shape = DecodeShape(
        scoring.sliding_window, num_kv_heads, block_m // group_size, int(config.block["BLOCK_N"]), len(q)
    )
    splits = plan.schedule(("decode splits", shape), lambda: build_decode_splits(plan, shape))
    size = (splits.splits.shape[1], num_kv_heads, block_m, head_dim)
    partial = plan.schedule(("decode partial", size), lambda: q.new_empty(size, dtype=torch.float32))
    lse = plan.schedule(("decode lse", size[:3]), lambda: q.new_empty(size[:3], dtype=torch.float32))
    _launch(q, pages, plan, scoring, out, (splits, partial, lse), (group_size, block_m), config)


def _launch(
    q: torch.Tensor,
    pages: LayerPages,
    plan: AttentionPlan,
    scoring: Scoring,
    out: torch.Tensor,
    workspace: tuple[DecodeSplits, torch.Tensor, torch.Tensor],
    rows: tuple[int, int],
    config: LaunchConfig,
) -> None:
    """Launch one program for every split and KV head."""
    splits, partial, lse = workspace
    group_size, block_m = rows
    num_kv_heads, page_size, head_dim = pages.k.shape[1:]
    _decode_kernel[(splits.splits.shape[1], num_kv_heads)](
        q,
        pages.k,
        pages.v,
        (q, q) if pages.k_scales is None else (pages.k_scales, pages.v_scales),
        out,
        (partial, lse, splits.counters),
        plan.block_table,
        (splits.splits, splits.bounds, splits.cu_seqlens_q, splits.seq_lens),
        scoring.softmax_scale,
        scoring.softcap,
        q.stride()[:2],
        out.stride()[:2],
        pages.strides,
        plan.block_table.stride(0),
        PAGE_SIZE=page_size,
        WINDOW=scoring.sliding_window,
        HAS_SOFTCAP=scoring.softcap > 0,
        HAS_SCALES=pages.k_scales is not None,
        IS_FP8=pages.is_fp8,
        GROUP_SIZE=group_size,
        HEAD_DIM=head_dim,
        BLOCK_Q=block_m // group_size,
        BLOCK_M=block_m,
        BLOCK_D=max(16, next_power_of_2(head_dim)),
        **config.keywords,
    )


def _packed_rows(plan: AttentionPlan, group_size: int, most: int) -> int:
    """BLOCK_M: the rows of a tile. A batch-invariant plan's are always as many, as its results may depend on it."""
    queries = min(plan.max_query_len or MAX_DECODE_QUERIES, MAX_DECODE_QUERIES)
    rows = most if plan.batch_invariant else min(most, next_power_of_2(queries * group_size))
    return max(_FEWEST_ROWS, next_power_of_2(group_size), rows)


@jit
def _decode_kernel(  # type: ignore[no-untyped-def]
    q_ptr,
    k_ptr,
    v_ptr,
    scales,
    out_ptr,
    workspace,  # partial, lse and the schedule's counters
    table_ptr,
    schedule,  # splits, bounds, cu_seqlens_q and seq_lens, see DecodeSplits
    scale,
    softcap,
    q_strides,
    out_strides,
    page_strides,
    table_stride,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    IS_FP8: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """Grid: splits x KV heads."""
    split = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    num_splits = tl.num_programs(0)
    num_kv_heads = tl.num_programs(1)
    splits_ptr, bounds_ptr, cu_seqlens_ptr, seq_lens_ptr = schedule
    tile = tl.load(splits_ptr + split)
    if tile < 0:
        return
    sequence = tl.load(splits_ptr + num_splits + split)
    first_query = tl.load(splits_ptr + 2 * num_splits + split)
    start = tl.load(splits_ptr + 3 * num_splits + split)
    end = tl.load(splits_ptr + 4 * num_splits + split)
    first_row = tl.load(cu_seqlens_ptr + sequence)
    num_queries = tl.load(cu_seqlens_ptr + sequence + 1) - first_row
    context = tl.load(seq_lens_ptr + sequence) - num_queries
    first_split = tl.load(bounds_ptr + tile)
    num_parts = tl.load(bounds_ptr + tile + 1) - first_split

    q, query, is_row, inside, out_at = load_queries(
        q_ptr,
        first_row,
        first_query,
        num_queries,
        kv_head,
        q_strides,
        out_strides,
        IS_FP8,
        GROUP_SIZE,
        HEAD_DIM,
        BLOCK_Q,
        BLOCK_M,
        BLOCK_D,
    )
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)  # noqa: E741
    acc = tl.zeros([BLOCK_D, BLOCK_M] if TRANSPOSED else [BLOCK_M, BLOCK_D], tl.float32)
    first_key = 0
    if WINDOW > 0:
        first_key = tl.maximum(context + tl.maximum(first_query, 0) + 1 - WINDOW, 0)
        start = tl.maximum(start, first_key // BLOCK_N * BLOCK_N)
    for tile_start in range(start, end, BLOCK_N):
        m, l, acc = attend_tile(  # noqa: E741
            q,
            m,
            l,
            acc,
            tile_start,
            first_key,
            end,
            context + query,
            k_ptr,
            v_ptr,
            scales,
            table_ptr + sequence.to(tl.int64) * table_stride,
            kv_head,
            scale,
            softcap,
            page_strides,
            PAGE_SIZE,
            WINDOW,
            HAS_SOFTCAP,
            HAS_SCALES,
            True,
            TRANSPOSED,
            False,
            HEAD_DIM,
            BLOCK_N,
            BLOCK_D,
        )

    if TRANSPOSED:
        acc = tl.trans(acc)
    safe_l = tl.where(l == 0.0, 1.0, l)
    y = acc / safe_l[:, None]
    if num_parts == 1:
        tl.store(out_ptr + out_at, y.to(out_ptr.dtype.element_ty), mask=inside)
    else:
        partial_ptr, lse_ptr, counters_ptr = workspace
        at = (split * num_kv_heads + kv_head) * BLOCK_M + tl.arange(0, BLOCK_M)
        tl.store(partial_ptr + at[:, None] * HEAD_DIM + tl.arange(0, BLOCK_D)[None, :], y, mask=inside)
        tl.store(lse_ptr + at, tl.where(l == 0.0, float("-inf"), m + tl.log2(safe_l)), mask=is_row)
        tl.debug_barrier()  # all threads' stores before the one thread's count
        counter_ptr = counters_ptr + tile * num_kv_heads + kv_head
        if tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") == num_parts - 1:
            tl.debug_barrier()
            at += (first_split - split) * num_kv_heads * BLOCK_M
            step = num_kv_heads * BLOCK_M
            y = _merge(partial_ptr, lse_ptr, at, step, num_parts, is_row, inside, HEAD_DIM, BLOCK_M, BLOCK_D)
            tl.store(out_ptr + out_at, y.to(out_ptr.dtype.element_ty), mask=inside)
            tl.store(counter_ptr, 0)


@inlined
def _merge(  # type: ignore[no-untyped-def]
    partial_ptr,
    lse_ptr,
    slot,  # of the first part's rows
    step,  # slots from one part to the next
    num_parts,
    is_row,
    inside,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The parts of one tile as one [BLOCK_M, BLOCK_D]; .cg: other programs wrote them, past this one's L1."""
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for part in range(num_parts):
        lse = tl.load(lse_ptr + slot + part * step, mask=is_row, other=float("-inf"), cache_modifier=".cg")
        m = tl.maximum(m, lse)
    m = tl.where(m == float("-inf"), 0.0, m)
    l = tl.zeros([BLOCK_M], tl.float32)  # noqa: E741
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    at = tl.arange(0, BLOCK_D)
    for part in range(num_parts):
        own = slot + part * step
        lse = tl.load(lse_ptr + own, mask=is_row, other=float("-inf"), cache_modifier=".cg")
        y = tl.load(partial_ptr + own[:, None] * HEAD_DIM + at[None, :], mask=inside, other=0.0, cache_modifier=".cg")
        weight = tl.exp2(lse - m)
        acc += y * weight[:, None]
        l += weight  # noqa: E741
    return acc / tl.where(l == 0.0, 1.0, l)[:, None]
