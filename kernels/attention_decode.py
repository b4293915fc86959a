"""Paged attention for single queries, in Triton: decode, its keys split over the device.

A decode step reads every key once and computes little, so it runs at the speed of memory when enough programs read at
once. The schedule cuts each sequence's keys into splits; one program attends over one split for the G heads of one KV
head, and where a sequence has several splits a second kernel merges them in a fixed order:

    out = sum_i 2^(lse_i - M) out_i / sum_i 2^(lse_i - M),   M = max lse_i

    q, out [T, H, D]   k_pages, v_pages [P, K, S, D]   G = H / K   W splits
    partial [W, H, D] f32, lse [W, H] f32 in base 2: what a split found, used only when it is not alone

Dao et al., "Flash-Decoding", 2023.
"""

from dataclasses import dataclass

import torch

from .attention_plan import AttentionPlan
from .attention_schedule_gpu import build_decode_splits
from .attention_tile import load_page_rows, score_tile, softmax_step
from .backend import INTERPRETED, jit, next_power_of_2, tl


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """How the kernel is launched: keys of a tile, warps, stages of the pipeline."""

    block_n: int
    num_warps: int
    num_stages: int


def decode_config(dtype: torch.dtype, head_dim: int) -> DecodeConfig:
    """The configuration for one dtype and head_dim; each compiles for sm_80 to sm_90 without spilling a register."""
    if INTERPRETED:  # its time goes by operations, whatever their size
        return DecodeConfig(128, 1, 1)
    if dtype == torch.float32:
        return DecodeConfig(16, 4, 2)
    return DecodeConfig(64, 4, 3) if head_dim <= 128 else DecodeConfig(32, 4, 2)


def paged_decode(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    plan: AttentionPlan,
    out: torch.Tensor,
    *,
    softmax_scale: float,
    sliding_window: int,
    softcap: float,
) -> None:
    """Write the rows of ``out`` that belong to sequences of a single query; already checked."""
    num_kv_heads, page_size, head_dim = k_pages.shape[1:]
    num_heads = q.shape[1]
    config = decode_config(q.dtype, head_dim)
    key = ("decode splits", sliding_window, num_kv_heads, config.block_n)
    splits = plan.schedule(key, lambda: build_decode_splits(plan, sliding_window, num_kv_heads, config.block_n))
    num_splits = len(splits.sequence)
    size = (num_splits, num_heads, head_dim)
    partial = plan.schedule(("decode partial", size), lambda: q.new_empty(size, dtype=torch.float32))
    lse = plan.schedule(("decode lse", size[:2]), lambda: q.new_empty(size[:2], dtype=torch.float32))
    shape = {
        "GROUP_SIZE": num_heads // num_kv_heads,
        "HEAD_DIM": head_dim,
        "BLOCK_G": max(16, next_power_of_2(num_heads // num_kv_heads)),
        "BLOCK_D": max(16, next_power_of_2(head_dim)),
    }
    _decode_kernel[(num_splits, num_kv_heads)](
        q,
        k_pages,
        v_pages,
        out,
        partial,
        lse,
        plan.block_table,
        plan.seq_lens,
        plan.cu_seqlens_q,
        splits.sequence,
        splits.start,
        splits.end,
        splits.bounds,
        softmax_scale,
        softcap,
        *q.stride()[:2],
        *out.stride()[:2],
        *k_pages.stride()[:3],
        *v_pages.stride()[:3],
        plan.block_table.stride(0),
        PAGE_SIZE=page_size,
        WINDOW=sliding_window,
        HAS_SOFTCAP=softcap > 0,
        BLOCK_N=config.block_n,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **shape,
    )
    _merge_kernel[(len(plan.seq_lens), num_kv_heads)](
        out, partial, lse, plan.cu_seqlens_q, splits.bounds, *out.stride()[:2], num_warps=4, **shape
    )


@jit
def _decode_kernel(  # type: ignore[no-untyped-def]
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    partial_ptr,
    lse_ptr,
    table_ptr,
    seq_lens_ptr,
    cu_seqlens_ptr,
    split_sequence_ptr,
    split_start_ptr,
    split_end_ptr,
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
    table_stride,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid: splits x KV heads."""
    split = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    num_kv_heads = tl.num_programs(1)
    sequence = tl.load(split_sequence_ptr + split)
    if sequence < 0:
        return
    start = tl.load(split_start_ptr + split)
    end = tl.load(split_end_ptr + split)
    first_visible = 0
    if WINDOW > 0:
        first_visible = tl.load(seq_lens_ptr + sequence) - WINDOW

    group = tl.arange(0, BLOCK_G)
    head = kv_head * GROUP_SIZE + group
    row = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
    at = tl.arange(0, BLOCK_D)
    inside = (group < GROUP_SIZE)[:, None] & (at < HEAD_DIM)[None, :]
    q = tl.load(q_ptr + row * q_stride_t + head[:, None] * q_stride_h + at[None, :], mask=inside, other=0.0)

    m = tl.full([BLOCK_G], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_G], tl.float32)  # noqa: E741
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    sequence_table_ptr = table_ptr + sequence.to(tl.int64) * table_stride
    k_head_ptr = k_ptr + kv_head * k_stride_h
    v_head_ptr = v_ptr + kv_head * v_stride_h
    for tile_start in range(start, end, BLOCK_N):
        keys = tile_start + tl.arange(0, BLOCK_N)
        visible = (keys < end) & (keys >= first_visible)
        k = load_page_rows(
            k_head_ptr, sequence_table_ptr, keys, visible, k_stride_p, k_stride_s, PAGE_SIZE, HEAD_DIM, BLOCK_D
        )
        v = load_page_rows(
            v_head_ptr, sequence_table_ptr, keys, visible, v_stride_p, v_stride_s, PAGE_SIZE, HEAD_DIM, BLOCK_D
        )
        scores = tl.where(visible[None, :], score_tile(q, k, scale, softcap, HAS_SOFTCAP), float("-inf"))
        m, l, acc = softmax_step(scores, v, m, l, acc)  # noqa: E741

    safe_l = tl.where(l == 0.0, 1.0, l)
    y = acc / safe_l[:, None]
    is_alone = tl.load(bounds_ptr + sequence + 1) - tl.load(bounds_ptr + sequence) == 1
    if is_alone:
        out_at = out_ptr + row * out_stride_t + head[:, None] * out_stride_h + at[None, :]
        tl.store(out_at, y.to(out_ptr.dtype.element_ty), mask=inside)
    else:
        slot = (split * num_kv_heads + kv_head) * GROUP_SIZE + group
        tl.store(partial_ptr + slot[:, None] * HEAD_DIM + at[None, :], y, mask=inside)
        tl.store(lse_ptr + slot, tl.where(l == 0.0, float("-inf"), m + tl.log2(safe_l)), mask=group < GROUP_SIZE)


@jit
def _merge_kernel(  # type: ignore[no-untyped-def]
    out_ptr,
    partial_ptr,
    lse_ptr,
    cu_seqlens_ptr,
    bounds_ptr,
    out_stride_t,
    out_stride_h,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid: sequences x KV heads; a sequence of one split has its result already."""
    sequence = tl.program_id(0)
    kv_head = tl.program_id(1).to(tl.int64)
    num_kv_heads = tl.num_programs(1)
    first = tl.load(bounds_ptr + sequence)
    last = tl.load(bounds_ptr + sequence + 1)
    if last - first <= 1:
        return
    group = tl.arange(0, BLOCK_G)
    head = kv_head * GROUP_SIZE + group
    at = tl.arange(0, BLOCK_D)
    inside = (group < GROUP_SIZE)[:, None] & (at < HEAD_DIM)[None, :]
    m = tl.full([BLOCK_G], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_G], tl.float32)  # noqa: E741
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    for split in range(first, last):
        slot = (split * num_kv_heads + kv_head) * GROUP_SIZE + group
        lse = tl.load(lse_ptr + slot, mask=group < GROUP_SIZE, other=float("-inf"))
        y = tl.load(partial_ptr + slot[:, None] * HEAD_DIM + at[None, :], mask=inside, other=0.0)
        new_m = tl.maximum(m, lse)
        safe_m = tl.where(new_m == float("-inf"), 0.0, new_m)
        weight = tl.exp2(lse - safe_m)
        decay = tl.exp2(m - safe_m)
        acc = acc * decay[:, None] + y * weight[:, None]
        l = l * decay + weight  # noqa: E741
        m = new_m
    y = acc / tl.where(l == 0.0, 1.0, l)[:, None]
    row = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
    out_at = out_ptr + row * out_stride_t + head[:, None] * out_stride_h + at[None, :]
    tl.store(out_at, y.to(out_ptr.dtype.element_ty), mask=inside)
