"""Paged attention for sequences of many queries, in Triton: prefill and its chunks.

One program takes BLOCK_Q consecutive queries of one sequence and all G heads of one KV head, packed into BLOCK_M rows,
over the keys up to its last query, straight from the pages. So a first prefill, a later chunk and a prefill behind a
cached prefix are the same kernel. Tiles of keys that every row sees, most of a long prompt's, are not masked.
Dao, "FlashAttention-2", arXiv 2307.08691; pages: Kwon et al., arXiv 2309.06180.

    q, out [T, H, D]   k_pages, v_pages [P, K, S, D]   G = H / K
"""

from typing import Any

import torch

from .attention_inputs import LayerPages, Scoring
from .attention_plan import AttentionPlan
from .attention_schedule_gpu import build_prefill_tiles
from .attention_tile import attend_tile, load_queries
from .backend import dtype_name, jit, next_power_of_2, tl
from .launch_configs import find_config


def paged_prefill(q: torch.Tensor, pages: LayerPages, plan: AttentionPlan, scoring: Scoring, out: torch.Tensor) -> None:
    """Write the rows of ``out`` that belong to sequences of many queries or to none; already checked."""
    num_kv_heads, page_size, head_dim = pages.k.shape[1:]
    group_size, block_d = q.shape[1] // num_kv_heads, max(16, next_power_of_2(head_dim))
    config = find_config(
        "prefill",
        dtype=dtype_name(q.dtype),
        kv_dtype=dtype_name(pages.k.dtype),
        block_d=block_d,
        page_size=page_size,
    )
    block_m = max(int(config.block["BLOCK_M"]), next_power_of_2(group_size))
    block_q, block_n = block_m // group_size, int(config.block["BLOCK_N"])
    tiles = plan.schedule(("prefill tiles", len(q), block_q), lambda: build_prefill_tiles(plan, len(q), block_q))
    by_descriptor = bool(config.block["DESCRIPTORS"]) and _can_describe(pages, block_n)
    k, v = pages.k, pages.v
    _prefill_kernel[(len(tiles.sequence), num_kv_heads)](
        q,
        _describe(k, block_n, block_d) if by_descriptor else k,
        _describe(v, block_n, block_d) if by_descriptor else v,
        (q, q) if pages.k_scales is None else (pages.k_scales, pages.v_scales),
        out,
        plan.block_table,
        tiles.seq_lens,
        tiles.cu_seqlens_q,
        tiles.sequence,
        tiles.first_query,
        scoring.softmax_scale,
        scoring.softcap,
        q.stride()[:2],
        out.stride()[:2],
        pages.strides,
        plan.block_table.stride(0),
        GROUP_SIZE=group_size,
        HEAD_DIM=head_dim,
        PAGE_SIZE=page_size,
        WINDOW=scoring.sliding_window,
        HAS_SOFTCAP=scoring.softcap > 0,
        HAS_SCALES=pages.k_scales is not None,
        IS_FP8=pages.is_fp8,
        BLOCK_Q=block_q,
        BLOCK_D=block_d,
        **config.keywords | {"BLOCK_M": block_m, "DESCRIPTORS": by_descriptor},
    )


def _can_describe(pages: LayerPages, block_n: int) -> bool:
    """Whether a tile of keys is a box of a descriptor: whole rows of one page, in a pool that is one matrix."""
    _, _, page_size, head_dim = pages.k.shape
    rows_fit = page_size % block_n == 0 and pages.k.numel() // head_dim < 2**31
    return rows_fit and pages.k.is_contiguous() and pages.v.is_contiguous() and head_dim * pages.k.itemsize % 16 == 0


def _describe(pages: torch.Tensor, block_n: int, block_d: int) -> Any:
    """[P, K, S, D] as a descriptor of the matrix [P * K * S, D] with boxes [block_n, block_d]."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    rows, head_dim = pages.numel() // pages.shape[3], pages.shape[3]
    return TensorDescriptor(pages, [rows, head_dim], [head_dim, 1], [block_n, block_d])


@jit
def _prefill_kernel(  # type: ignore[no-untyped-def]
    q_ptr,
    k_pages,
    v_pages,
    scales,
    out_ptr,
    table_ptr,
    seq_lens_ptr,
    cu_seqlens_ptr,
    tile_sequence_ptr,
    tile_query_ptr,
    scale,
    softcap,
    q_strides,
    out_strides,
    page_strides,
    table_stride,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    IS_FP8: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
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

    q, query, _, inside, out_at = load_queries(
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
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    position = context + query
    # Keys in whole tiles: [start, open) some rows' window cuts off, [open, diagonal) all rows see, [diagonal, end) are
    # past some rows' position
    end = tl.minimum(seq_len, context + first_query + BLOCK_Q)
    diagonal = tl.maximum(context + first_query + 1, 0) // BLOCK_N * BLOCK_N
    first_key = 0
    start = 0
    open_start = 0
    if WINDOW > 0:
        first_key = tl.maximum(context + first_query - WINDOW + 1, 0)
        start = first_key // BLOCK_N * BLOCK_N
        last_start = tl.maximum(context + first_query + BLOCK_Q - WINDOW, 0)
        open_start = (last_start + BLOCK_N - 1) // BLOCK_N * BLOCK_N
        diagonal = tl.maximum(diagonal, start)
        open_start = tl.minimum(open_start, diagonal)
    own_table_ptr = table_ptr + sequence.to(tl.int64) * table_stride
    for phase in tl.static_range(3):
        if phase == 0:
            low, high = start, open_start
        elif phase == 1:
            low, high = open_start, diagonal
        else:
            low, high = diagonal, end
        if phase != 0 or WINDOW > 0:
            for tile_start in range(low, high, BLOCK_N):
                m, l, acc = attend_tile(  # noqa: E741
                    q,
                    m,
                    l,
                    acc,
                    tile_start,
                    first_key,
                    end,
                    position,
                    k_pages,
                    v_pages,
                    scales,
                    own_table_ptr,
                    kv_head,
                    scale,
                    softcap,
                    page_strides,
                    PAGE_SIZE,
                    WINDOW,
                    HAS_SOFTCAP,
                    HAS_SCALES,
                    phase != 1,
                    False,
                    DESCRIPTORS,
                    HEAD_DIM,
                    BLOCK_N,
                    BLOCK_D,
                )
    y = acc / tl.where(l == 0.0, 1.0, l)[:, None]
    tl.store(out_ptr + out_at, y.to(out_ptr.dtype.element_ty), mask=inside)
