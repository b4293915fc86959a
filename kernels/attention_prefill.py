"""Paged attention for sequences of more than one query, in Triton: prefill, its chunks, drafts to verify.

One program takes BLOCK_Q consecutive queries of one sequence and all G heads of one KV head, packed into BLOCK_M rows,
over the keys up to its last query, straight from the pages. So a first prefill, a later chunk and a prefill behind a
cached prefix are the same kernel. Dao, "FlashAttention-2", arXiv 2307.08691; pages: Kwon et al., arXiv 2309.06180.

    q, out [T, H, D]   k_pages, v_pages [P, K, S, D]   G = H / K
"""

from dataclasses import dataclass

import torch

from .attention_plan import AttentionPlan
from .attention_schedule_gpu import build_prefill_tiles
from .attention_tile import load_page_rows, score_tile, softmax_step
from .backend import INTERPRETED, jit, next_power_of_2, tl


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """How the kernel is launched: packed rows and keys of a tile, warps, stages of the pipeline."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def prefill_config(dtype: torch.dtype, head_dim: int, capability: int) -> PrefillConfig:
    """The configuration for a dtype and head_dim on a device of CUDA's major ``capability``.

    Compiled for sm_80 and sm_90 none spills a register. 64 keys a tile at head_dim 128 do only where accumulators of
    the tensor cores are spread over a whole warp group (9) or have a memory of their own (10).
    """
    if INTERPRETED:  # its time goes by operations, whatever their size
        return PrefillConfig(256, 128, 1, 1)
    if dtype == torch.float32:
        return PrefillConfig(64, 32, 8, 2) if head_dim <= 64 else PrefillConfig(32, 16, 4 if head_dim <= 128 else 8, 2)
    if head_dim > 128:
        return PrefillConfig(64, 32, 8, 2)
    return PrefillConfig(128, 64 if head_dim <= 64 or capability in (9, 10) else 32, 8, 3)


def paged_prefill(
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
    """Write the rows of ``out`` that belong to sequences of more than one query or to none; already checked."""
    num_kv_heads, page_size, head_dim = k_pages.shape[1:]
    group_size = q.shape[1] // num_kv_heads
    capability = torch.cuda.get_device_capability(q.device)[0] if q.is_cuda else 0
    config = prefill_config(q.dtype, head_dim, capability)
    block_m = max(config.block_m, next_power_of_2(group_size))
    block_q = block_m // group_size
    key = ("prefill tiles", len(q), block_q)
    tiles = plan.schedule(key, lambda: build_prefill_tiles(plan, len(q), block_q))
    _prefill_kernel[(len(tiles.sequence), num_kv_heads)](
        q,
        k_pages,
        v_pages,
        out,
        plan.block_table,
        tiles.seq_lens,
        tiles.cu_seqlens_q,
        tiles.sequence,
        tiles.first_query,
        softmax_scale,
        softcap,
        *q.stride()[:2],
        *out.stride()[:2],
        *k_pages.stride()[:3],
        *v_pages.stride()[:3],
        plan.block_table.stride(0),
        GROUP_SIZE=group_size,
        HEAD_DIM=head_dim,
        PAGE_SIZE=page_size,
        WINDOW=sliding_window,
        HAS_SOFTCAP=softcap > 0,
        BLOCK_M=block_m,
        BLOCK_Q=block_q,
        BLOCK_N=config.block_n,
        BLOCK_D=max(16, next_power_of_2(head_dim)),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


@jit
def _prefill_kernel(  # type: ignore[no-untyped-def]
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    table_ptr,
    seq_lens_ptr,
    cu_seqlens_ptr,
    tile_sequence_ptr,
    tile_query_ptr,
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
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid: tiles x KV heads."""
    sequence = tl.load(tile_sequence_ptr + tl.program_id(0))
    if sequence < 0:
        return
    kv_head = tl.program_id(1).to(tl.int64)
    first_query = tl.load(tile_query_ptr + tl.program_id(0))
    first_row = tl.load(cu_seqlens_ptr + sequence)
    num_queries = tl.load(cu_seqlens_ptr + sequence + 1) - first_row
    seq_len = tl.load(seq_lens_ptr + sequence)
    context = seq_len - num_queries  # the position of the first query; negative when it stands before all keys

    packed = tl.arange(0, BLOCK_M)
    query = first_query + packed // GROUP_SIZE
    head = kv_head * GROUP_SIZE + packed % GROUP_SIZE
    row = (first_row + query).to(tl.int64)
    at = tl.arange(0, BLOCK_D)
    inside = ((packed < BLOCK_Q * GROUP_SIZE) & (query < num_queries))[:, None] & (at < HEAD_DIM)[None, :]
    q_at = q_ptr + row[:, None] * q_stride_t + head[:, None] * q_stride_h + at[None, :]
    q = tl.load(q_at, mask=inside, other=0.0)  # [BLOCK_M, BLOCK_D]

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)  # noqa: E741
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    position = context + query
    end = tl.minimum(seq_len, context + first_query + BLOCK_Q)
    start = 0
    if WINDOW > 0:
        start = tl.maximum(context + first_query - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
    sequence_table_ptr = table_ptr + sequence.to(tl.int64) * table_stride
    k_head_ptr = k_ptr + kv_head * k_stride_h
    v_head_ptr = v_ptr + kv_head * v_stride_h
    for tile_start in range(start, end, BLOCK_N):
        keys = tile_start + tl.arange(0, BLOCK_N)
        held = keys < end
        k = load_page_rows(
            k_head_ptr, sequence_table_ptr, keys, held, k_stride_p, k_stride_s, PAGE_SIZE, HEAD_DIM, BLOCK_D
        )
        v = load_page_rows(
            v_head_ptr, sequence_table_ptr, keys, held, v_stride_p, v_stride_s, PAGE_SIZE, HEAD_DIM, BLOCK_D
        )
        visible = keys[None, :] <= position[:, None]
        if WINDOW > 0:
            visible = visible & (keys[None, :] > position[:, None] - WINDOW)
        scores = tl.where(visible, score_tile(q, k, scale, softcap, HAS_SOFTCAP), float("-inf"))
        m, l, acc = softmax_step(scores, v, m, l, acc)  # noqa: E741
    y = acc / tl.where(l == 0.0, 1.0, l)[:, None]
    out_at = out_ptr + row[:, None] * out_stride_t + head[:, None] * out_stride_h + at[None, :]
    tl.store(out_at, y.to(out_ptr.dtype.element_ty), mask=inside)
