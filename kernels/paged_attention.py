"""Attention of ragged queries over keys and values kept in pages: the public call.

    s = softmax_scale * q . k;  with softcap c > 0: s = c * tanh(s / c)
    out = sum(exp(s) v) / sum(exp(s))   over the keys that the query sees

    q, out            [T, H, D]       the new tokens of all sequences, one after another
    k_pages, v_pages  [P, K, S, D]    any strides, last axis contiguous; H is a multiple of K
    block_table       [B, max_pages] int32   entries past a sequence's length may be anything
    seq_lens          [B] int32       tokens in the cache, the new ones included; 0 is allowed
    cu_seqlens_q      [B + 1] int32   sequence b has the queries cu_seqlens_q[b] .. cu_seqlens_q[b + 1]

A sequence's last query stands at position seq_len - 1; the query at position p sees the keys at positions <= p, and
with sliding_window W > 0 those > p - W. A query that sees nothing gives 0. Scores and sums are F32.
"""

from typing import Any

import torch

from ..errors import KernelError
from .attention_cpu import paged_attention_cpu
from .attention_decode import paged_decode
from .attention_plan import AttentionPlan, plan_attention
from .attention_prefill import paged_prefill
from .backend import runs_triton


def paged_attention(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    *,
    softmax_scale: float,
    sliding_window: int = 0,
    softcap: float = 0.0,
    plan: AttentionPlan | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of every sequence's new tokens over its pages; shapes are in the module's legend.

    Args:
        q: may be a slice of a fused projection; its last axis is contiguous.
        softmax_scale: usually head_dim ** -0.5.
        sliding_window: keys a query sees, itself included; 0 for all of them.
        softcap: bound of the scores; 0 for none.
        plan: what `plan_attention` made from the same index tensors, shared by a step's layers; made here if None.
        out: where to write, shaped like ``q``, last axis contiguous; allocated if None.

    Returns:
        out: [T, H, D].

    Raises:
        KernelError: shapes, dtypes, devices or strides that do not fit, or a page id outside the pool (CPU path).
    """
    _check(q, k_pages, v_pages, out)
    if softcap < 0 or sliding_window < 0:
        raise KernelError(
            f"sliding_window is {sliding_window} and softcap {softcap}; pass 0 for none, or a positive one"
        )
    if plan is None:
        plan = plan_attention(block_table, seq_lens, cu_seqlens_q, page_size=k_pages.shape[2])
    plan.check_matches(block_table, cu_seqlens_q, k_pages.shape[2])
    if plan.block_table.device != q.device and runs_triton(q):
        raise KernelError(
            f"paged_attention got q on {q.device} and block_table on {plan.block_table.device}; use one device"
        )
    if not runs_triton(q):
        return paged_attention_cpu(
            q,
            k_pages,
            v_pages,
            plan,
            softmax_scale=softmax_scale,
            sliding_window=sliding_window,
            softcap=softcap,
            out=out,
        )
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not len(q):
        return out
    kind: dict[str, Any] = {"softmax_scale": softmax_scale, "sliding_window": sliding_window, "softcap": softcap}
    if len(plan.seq_lens):
        paged_decode(q, k_pages, v_pages, plan, out, **kind)
    if plan.max_query_len != 1:
        paged_prefill(q, k_pages, v_pages, plan, out, **kind)
    return out


def _check(q: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor, out: torch.Tensor | None) -> None:
    """Raise KernelError unless q, the pages and out fit together."""
    if k_pages.ndim != 4 or v_pages.shape != k_pages.shape or k_pages.stride(3) != 1 or v_pages.stride(3) != 1:
        raise KernelError(
            f"paged_attention got pages {list(k_pages.shape)} and {list(v_pages.shape)} with strides "
            f"{k_pages.stride()} and {v_pages.stride()}; pass two [P, K, S, D] with a contiguous last axis"
        )
    num_kv_heads, page_size, head_dim = k_pages.shape[1:]
    if q.ndim != 3 or q.shape[2] != head_dim or q.shape[1] % num_kv_heads or q.stride(2) != 1:
        raise KernelError(
            f"paged_attention got q {list(q.shape)} with strides {q.stride()}; with {num_kv_heads} KV heads of "
            f"{head_dim} it takes [T, a multiple of {num_kv_heads}, {head_dim}] with a contiguous last axis"
        )
    if page_size & (page_size - 1):
        raise KernelError(f"page_size is {page_size}; paged attention needs a power of two, such as 16, 32 or 64")
    if not q.dtype == k_pages.dtype == v_pages.dtype or not q.device == k_pages.device == v_pages.device:
        raise KernelError(
            f"paged_attention got q {q.dtype} on {q.device}, k_pages {k_pages.dtype} on {k_pages.device} and v_pages "
            f"{v_pages.dtype} on {v_pages.device}; use one dtype and one device"
        )
    if out is not None and (out.shape != q.shape or out.dtype != q.dtype or out.stride(2) != 1):
        raise KernelError(
            f"paged_attention got out {out.dtype} {list(out.shape)} with strides {out.stride()}; "
            f"pass {q.dtype} {list(q.shape)} with a contiguous last axis"
        )
