"""Attention of ragged queries over keys and values kept in pages: the public call.

    s = softmax_scale * q . k;  with softcap c > 0: s = c * tanh(s / c)
    out = sum(exp(s) v) / sum(exp(s))   over the keys that the query sees

    q, out            [T, H, D]       the new tokens of all sequences, one after another
    k_pages, v_pages  [P, K, S, D]    any strides, last axis contiguous; H is a multiple of K
    k_scales, v_scales  [P, K, S] f32   with int8 pages: key = code * scale. fp8 pages have none
    block_table       [B, max_pages] int32   entries past a sequence's length may be anything
    seq_lens          [B] int32       tokens in the cache, the new ones included; 0 is allowed
    cu_seqlens_q      [B + 1] int32   sequence b has the queries cu_seqlens_q[b] .. cu_seqlens_q[b + 1]

A sequence's last query stands at position seq_len - 1; the query at position p sees the keys at positions <= p, and
with sliding_window W > 0 those > p - W. A query that sees nothing gives 0. Scores and sums are F32.
"""

import torch

from ..errors import KernelError
from .attention_cpu import paged_attention_cpu
from .attention_decode import paged_decode
from .attention_inputs import LayerPages, Scoring
from .attention_plan import AttentionPlan, plan_attention
from .attention_prefill import paged_prefill
from .attention_schedule_gpu import needs_prefill
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
    k_scales: torch.Tensor | None = None,
    v_scales: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of every sequence's new tokens over its pages; shapes are in the module's legend.

    Args:
        q: may be a slice of a fused projection; its last axis is contiguous.
        softmax_scale: usually head_dim ** -0.5.
        sliding_window: keys a query sees, itself included; 0 for all of them.
        softcap: bound of the scores; 0 for none.
        plan: what `plan_attention` made from the same index tensors, shared by a step's layers; made here if None.
        out: where to write, shaped like ``q``, last axis contiguous; allocated if None.
        k_scales, v_scales: of int8 pages, with the same strides; pages of q's dtype and fp8 ones have none.

    Returns:
        out: [T, H, D].

    Raises:
        KernelError: shapes, dtypes, devices or strides that do not fit, or a page id outside the pool (CPU path).
    """
    pages = LayerPages(k_pages, v_pages, k_scales, v_scales)
    _check(q, pages, out)
    if softcap < 0 or sliding_window < 0:
        raise KernelError(
            f"sliding_window is {sliding_window} and softcap {softcap}; pass 0 for none, or a positive one"
        )
    scoring = Scoring(softmax_scale, sliding_window, softcap)
    if plan is None:
        plan = plan_attention(block_table, seq_lens, cu_seqlens_q, page_size=k_pages.shape[2])
    plan.check_matches(block_table, cu_seqlens_q, k_pages.shape[2])
    if not runs_triton(q):
        return paged_attention_cpu(q, pages, plan, scoring, out)
    if plan.block_table.device != q.device:
        raise KernelError(
            f"paged_attention got q on {q.device} and block_table on {plan.block_table.device}; use one device"
        )
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not len(q):
        return out
    if len(plan.seq_lens):
        paged_decode(q, pages, plan, scoring, out)
    if not len(plan.seq_lens) or needs_prefill(plan):
        paged_prefill(q, pages, plan, scoring, out)
    return out


def _check(q: torch.Tensor, pages: LayerPages, out: torch.Tensor | None) -> None:
    """Raise KernelError unless q, the pages and out fit together."""
    pages.check("paged_attention")
    num_kv_heads, page_size, head_dim = pages.k.shape[1:]
    if q.ndim != 3 or q.shape[2] != head_dim or q.shape[1] % num_kv_heads or q.stride(2) != 1:
        raise KernelError(
            f"paged_attention got q {list(q.shape)} with strides {q.stride()}; with {num_kv_heads} KV heads of "
            f"{head_dim} it takes [T, a multiple of {num_kv_heads}, {head_dim}] with a contiguous last axis"
        )
    if page_size & (page_size - 1):
        raise KernelError(f"page_size is {page_size}; paged attention needs a power of two, such as 16, 32 or 64")
    if not (pages.is_narrow or q.dtype == pages.k.dtype) or q.device != pages.k.device:
        raise KernelError(
            f"paged_attention got q {q.dtype} on {q.device} and pages of {pages.k.dtype} on {pages.k.device}; use one "
            "device, and for pages q's dtype, int8 or fp8"
        )
    if out is not None and (out.shape != q.shape or out.dtype != q.dtype or out.stride(2) != 1):
        raise KernelError(
            f"paged_attention got out {out.dtype} {list(out.shape)} with strides {out.stride()}; "
            f"pass {q.dtype} {list(q.shape)} with a contiguous last axis"
        )
