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
from .attention_tile import attend_tile
from .backend import dtype_name, inlined, jit, next_power_of_2, tl
from .launch_configs import LaunchConfig, find_config

# Packed rows of a tile: few where each sequence has a single query; more reach 16 queries of 4 heads in one tile.
_FEWEST_ROWS, _MOST_ROWS = 16, 64


def paged_decode(q: torch.Tensor, pages: LayerPages, plan: AttentionPlan, scoring: Scoring, out: torch.Tensor) -> None:
    """Write the rows of ``out`` that belong to sequences of few queries; already checked."""
    num_kv_heads, _, head_dim = pages.k.shape[1:]
    group_size = q.shape[1] // num_kv_heads
    block_m = _packed_rows(plan, group_size)
    config = find_config(
        "decode",
        dtype=dtype_name(q.dtype),
        kv_dtype=dtype_name(pages.k.dtype),
        block_d=next_power_of_2(head_dim),
        block_m=block_m,
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
        q if pages.k_scales is None else pages.k_scales,
        q if pages.v_scales is None else pages.v_scales,
        out,
        partial,
        lse,
        splits.counters,
        plan.block_table,
        splits.seq_lens,
        splits.cu_seqlens_q,
        splits.splits,
        splits.bounds,
        scoring.softmax_scale,
        scoring.softcap,
        *q.stride()[:2],
        *out.stride()[:2],
        *pages.k.stride()[:3],
        *pages.v.stride()[:3],
        *pages.scale_strides,
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


def _packed_rows(plan: AttentionPlan, group_size: int) -> int:
    """BLOCK_M: the rows of a tile. A batch-invariant plan's are always as many, as its results may depend on it."""
    group = next_power_of_2(group_size)
    if plan.batch_invariant:
        return max(_MOST_ROWS, group)
    queries = min(plan.max_query_len or MAX_DECODE_QUERIES, MAX_DECODE_QUERIES)
    return max(_FEWEST_ROWS, group, min(_MOST_ROWS, next_power_of_2(queries * group_size)))


@jit
def _decode_kernel(  # type: ignore[no-untyped-def]
    q_ptr,
    k_ptr,
    v_ptr,
    k_scales_ptr,
    v_scales_ptr,
    out_ptr,
    partial_ptr,
    lse_ptr,
    counters_ptr,
    table_ptr,
    seq_lens_ptr,
    cu_seqlens_ptr,
    splits_ptr,
    bounds_ptr,
    scale,
    softcap,
    q_stride_t,
    q_stride_h,
    out_stride_t,
    out_stride_h,
    k_stride_p,
    k_stride_h,
    k_stride_s,
    v_stride_p,
    v_stride_h,
    v_stride_s,
    scale_stride_p,
    scale_stride_h,
    scale_stride_s,
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
    last_split = tl.load(bounds_ptr + tile + 1)

    packed = tl.arange(0, BLOCK_M)
    query = first_query + packed // GROUP_SIZE
    head = kv_head * GROUP_SIZE + packed % GROUP_SIZE
    row = (first_row + query).to(tl.int64)
    at = tl.arange(0, BLOCK_D)
    is_row = (packed < BLOCK_Q * GROUP_SIZE) & (query >= 0) & (query < num_queries)
    inside = is_row[:, None] & (at < HEAD_DIM)[None, :]
    q = tl.load(q_ptr + row[:, None] * q_stride_t + head[:, None] * q_stride_h + at[None, :], mask=inside, other=0.0)
    if IS_FP8:  # every code is an fp16
        q = tl.clamp(q.to(tl.float32), -65504.0, 65504.0).to(tl.float16)

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)  # noqa: E741
    acc = tl.zeros([BLOCK_D, BLOCK_M] if TRANSPOSED else [BLOCK_M, BLOCK_D], tl.float32)
    first_key = 0
    if WINDOW > 0:
        first_key = tl.maximum(context + first_query + 1 - WINDOW, 0)
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
            k_scales_ptr,
            v_scales_ptr,
            table_ptr + sequence.to(tl.int64) * table_stride,
            kv_head,
            scale,
            softcap,
            (k_stride_p, k_stride_h, k_stride_s),
            (v_stride_p, v_stride_h, v_stride_s),
            (scale_stride_p, scale_stride_h, scale_stride_s),
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
    out_at = out_ptr + row[:, None] * out_stride_t + head[:, None] * out_stride_h + at[None, :]
    num_parts = last_split - first_split
    if num_parts == 1:
        tl.store(out_at, y.to(out_ptr.dtype.element_ty), mask=inside)
    else:
        slot = (split * num_kv_heads + kv_head) * BLOCK_M + packed
        tl.store(partial_ptr + slot[:, None] * HEAD_DIM + at[None, :], y, mask=inside)
        tl.store(lse_ptr + slot, tl.where(l == 0.0, float("-inf"), m + tl.log2(safe_l)), mask=is_row)
        tl.debug_barrier()  # all threads' stores before the one thread's count
        counter_ptr = counters_ptr + tile * num_kv_heads + kv_head
        if tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") == num_parts - 1:
            tl.debug_barrier()
            slot = (first_split.to(tl.int64) * num_kv_heads + kv_head) * BLOCK_M + packed
            step = num_kv_heads * BLOCK_M
            y = _merge(partial_ptr, lse_ptr, slot, step, num_parts, is_row, inside, HEAD_DIM, BLOCK_M, BLOCK_D)
            tl.store(out_at, y.to(out_ptr.dtype.element_ty), mask=inside)
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
