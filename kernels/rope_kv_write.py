"""Rotary position embedding of Q and K, and the write of K and V into their pages.

    (x1, x2) = the halves of one head's vector;  c, s = cos and sin of the token's position, [D/2]
    rope(x)  = (x1 * c - x2 * s, x2 * c + x1 * s)      the "rotate half" convention of Hugging Face's Llama, in F32

    qkv         [T, (H + 2K) * D]   a row is H query heads, then K key heads, then K value heads
    cos, sin    [R, D/2] f32        scaled by the RoPE variant already (llama3, yarn: the caller's table)
    positions   [T] int64           the row of cos and sin for each token
    slots       [T] int64           page * S + offset; -1 writes nothing (a padded row of a CUDA graph)
    k_pages, v_pages   [P, K, S, D]   any strides, last axis contiguous

Su et al., "RoFormer", arXiv 2104.09864. The page layout is defined in docs/kv-layout.md.
"""

import torch

from ..errors import KernelError
from .backend import jit, next_power_of_2, runs_triton, tl


def rope_and_write_kv(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor | None,
    slot_mapping: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
) -> torch.Tensor:
    """Rotate Q and K, write K and V to their slots, return Q.

    Args:
        qkv: [T, (H + 2K) * D], the fused projection; left as it was.
        cos, sin: [R, D/2] f32.
        positions: [T] int64 rows of ``cos`` and ``sin``; None when these hold one row a token already (R = T).
        slot_mapping: [T] int64, each slot at most once; -1 writes nothing.
        k_pages, v_pages: [P, K, S, D] of qkv's dtype; written in place.

    Returns:
        q: [T, H, D], rotated, contiguous on the last axis.

    Raises:
        KernelError: shapes, dtypes, devices or strides that do not fit.
    """
    _check(qkv, cos, sin, positions, slot_mapping, k_pages, v_pages)
    if runs_triton(qkv):
        return _launch(qkv, cos, sin, positions, slot_mapping, k_pages, v_pages)
    if not len(qkv):
        return qkv.new_empty(0, qkv.shape[1] // k_pages.shape[3] - 2 * k_pages.shape[1], k_pages.shape[3])
    if positions is not None:
        cos, sin = cos[positions], sin[positions]  # [T, D/2]
    return _rope_and_write_kv_torch(qkv, cos, sin, slot_mapping, k_pages, v_pages)


def _rope_and_write_kv_torch(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
) -> torch.Tensor:
    """PyTorch twin, with one row of cos and sin [T, D/2] a token."""
    num_kv_heads, head_dim = k_pages.shape[1], k_pages.shape[3]
    num_tokens, half = qkv.shape[0], head_dim // 2
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    heads = qkv.view(num_tokens, -1, 2, half)
    x = heads.narrow(1, 0, num_heads + num_kv_heads).float()  # [T, H + K, 2, D/2]
    y = x * cos.view(num_tokens, 1, 1, half)
    sin = sin.view(num_tokens, 1, half)
    (x1, x2), (y1, y2) = x.unbind(2), y.unbind(2)  # [T, H + K, D/2]
    y1.addcmul_(x2, sin, value=-1)
    y2.addcmul_(x1, sin)
    q, k = y.view(num_tokens, -1, head_dim).split_with_sizes((num_heads, num_kv_heads), 1)
    _write_slots(k_pages, slots, k)
    _write_slots(v_pages, slots, qkv.narrow(1, -num_kv_heads * head_dim, num_kv_heads * head_dim).view_as(k))
    return q.to(qkv.dtype)


def _write_slots(pages: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor) -> None:
    """Write ``rows: [T, K, D]`` to ``slots: [T]`` of ``pages: [P, K, S, D]``, leaving out the rows whose slot is -1."""
    page_size = pages.shape[2]
    if slots.shape[0] == 1:  # one decoding sequence: views and a copy take a third of the time of an index
        slot = int(slots)
        if slot >= 0:
            pages.select(0, slot // page_size).select(1, slot % page_size).copy_(rows[0])
        return
    if int(slots.min()) < 0:
        kept = (slots >= 0).nonzero().squeeze(1)
        slots, rows = slots[kept], rows[kept]
    pages[slots // page_size, :, slots % page_size] = rows.to(pages.dtype)


@jit
def _rope_kv_write_kernel(  # type: ignore[no-untyped-def]
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    positions_ptr,
    slots_ptr,
    q_ptr,  # [T, H, D] contiguous
    k_ptr,
    v_ptr,
    qkv_stride,
    cos_stride,
    k_stride_p,
    k_stride_h,
    k_stride_s,
    v_stride_p,
    v_stride_h,
    v_stride_s,
    num_heads,
    num_kv_heads,
    page_size,
    HAS_POSITIONS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """One program takes BLOCK_H heads of one token, whichever of Q, K and V they are."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    at = tl.arange(0, HALF)
    is_q = head < num_heads
    is_k = (head >= num_heads) & (head < num_heads + num_kv_heads)
    is_v = (head >= num_heads + num_kv_heads) & (head < num_heads + 2 * num_kv_heads)
    column = (at < HEAD_DIM // 2)[None, :]
    inside = (is_q | is_k | is_v)[:, None] & column
    source = qkv_ptr + token * qkv_stride + head[:, None] * HEAD_DIM + at[None, :]
    x1 = tl.load(source, mask=inside, other=0.0)
    x2 = tl.load(source + HEAD_DIM // 2, mask=inside, other=0.0)

    slot = tl.load(slots_ptr + token)
    written = (tl.zeros([BLOCK_H], tl.int64) <= slot)[:, None]
    page = slot // page_size
    offset = slot % page_size
    v_head = head - num_heads - num_kv_heads
    v_at = v_ptr + page * v_stride_p + v_head[:, None] * v_stride_h + offset * v_stride_s + at[None, :]
    tl.store(v_at, x1.to(v_ptr.dtype.element_ty), mask=is_v[:, None] & written & column)
    tl.store(v_at + HEAD_DIM // 2, x2.to(v_ptr.dtype.element_ty), mask=is_v[:, None] & written & column)

    row = tl.load(positions_ptr + token) if HAS_POSITIONS else token
    cos = tl.load(cos_ptr + row * cos_stride + at, mask=at < HEAD_DIM // 2, other=0.0)[None, :]
    sin = tl.load(sin_ptr + row * cos_stride + at, mask=at < HEAD_DIM // 2, other=0.0)[None, :]
    x1 = x1.to(tl.float32)
    x2 = x2.to(tl.float32)
    y1 = x1 * cos - x2 * sin
    y2 = x2 * cos + x1 * sin
    q_at = q_ptr + (token * num_heads + head[:, None]) * HEAD_DIM + at[None, :]
    tl.store(q_at, y1.to(q_ptr.dtype.element_ty), mask=is_q[:, None] & column)
    tl.store(q_at + HEAD_DIM // 2, y2.to(q_ptr.dtype.element_ty), mask=is_q[:, None] & column)
    k_at = k_ptr + page * k_stride_p + (head - num_heads)[:, None] * k_stride_h + offset * k_stride_s + at[None, :]
    tl.store(k_at, y1.to(k_ptr.dtype.element_ty), mask=is_k[:, None] & written & column)
    tl.store(k_at + HEAD_DIM // 2, y2.to(k_ptr.dtype.element_ty), mask=is_k[:, None] & written & column)


def _launch(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor | None,
    slot_mapping: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
) -> torch.Tensor:
    """Launch the kernel on a grid of tokens x blocks of heads."""
    _, num_kv_heads, page_size, head_dim = k_pages.shape
    num_tokens, total_heads = qkv.shape[0], qkv.shape[1] // head_dim
    num_heads = total_heads - 2 * num_kv_heads
    q = torch.empty(num_tokens, num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    if num_tokens == 0:
        return q
    block_h = min(8, next_power_of_2(total_heads))
    _rope_kv_write_kernel[(num_tokens, -(-total_heads // block_h))](
        qkv,
        cos,
        sin,
        slot_mapping if positions is None else positions.contiguous(),
        slot_mapping.contiguous(),
        q,
        k_pages,
        v_pages,
        qkv.stride(0),
        cos.stride(0),
        *k_pages.stride()[:3],
        *v_pages.stride()[:3],
        num_heads,
        num_kv_heads,
        page_size,
        HAS_POSITIONS=positions is not None,
        HEAD_DIM=head_dim,
        HALF=next_power_of_2(head_dim // 2),
        BLOCK_H=block_h,
        num_warps=4,
    )
    return q


def _check(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor | None,
    slot_mapping: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
) -> None:
    """Raise KernelError unless the arguments belong together."""
    if k_pages.ndim != 4 or v_pages.shape != k_pages.shape or k_pages.stride(3) != 1 or v_pages.stride(3) != 1:
        raise KernelError(
            f"rope_and_write_kv got pages {list(k_pages.shape)} and {list(v_pages.shape)} with strides "
            f"{k_pages.stride()} and {v_pages.stride()}; pass two [P, K, S, D] with a contiguous last axis"
        )
    num_kv_heads, head_dim = k_pages.shape[1], k_pages.shape[3]
    if head_dim % 2:
        raise KernelError(f"rope_and_write_kv got head_dim {head_dim}; it rotates halves and needs an even one")
    width = qkv.shape[-1]
    if qkv.ndim != 2 or width % head_dim or width // head_dim <= 2 * num_kv_heads or qkv.stride(1) != 1:
        raise KernelError(
            f"rope_and_write_kv got qkv {list(qkv.shape)} with strides {qkv.stride()}; with {num_kv_heads} KV heads of "
            f"{head_dim} it takes [T, (H + {2 * num_kv_heads}) * {head_dim}], H >= 1, with a contiguous last axis"
        )
    if not qkv.dtype == k_pages.dtype == v_pages.dtype:
        raise KernelError(f"rope_and_write_kv got qkv {qkv.dtype}, pages {k_pages.dtype} and {v_pages.dtype}; use one")
    if not qkv.device == k_pages.device == v_pages.device == cos.device == sin.device == slot_mapping.device:
        raise KernelError(
            f"rope_and_write_kv got qkv on {qkv.device}, pages on {k_pages.device} and {v_pages.device}, tables on "
            f"{cos.device} and {sin.device}, slot_mapping on {slot_mapping.device}; use one device"
        )
    tokens = qkv.shape[0]
    rows = cos.shape[0] if positions is None else positions.shape[0]
    if slot_mapping.shape != (tokens,) or slot_mapping.dtype != torch.int64 or rows != tokens:
        raise KernelError(
            f"rope_and_write_kv got {tokens} tokens, {rows} positions and slot_mapping {slot_mapping.dtype} "
            f"{list(slot_mapping.shape)}; pass one position and one int64 slot a token"
        )
    for name, table in (("cos", cos), ("sin", sin)):
        if table.ndim != 2 or table.shape[1] != head_dim // 2 or table.dtype != torch.float32 or table.stride(1) != 1:
            raise KernelError(
                f"rope_and_write_kv got {name} {table.dtype} {list(table.shape)}; "
                f"pass a contiguous f32 [R, {head_dim // 2}]"
            )
    if cos.shape != sin.shape or cos.stride() != sin.stride():
        raise KernelError(
            f"rope_and_write_kv got cos {list(cos.shape)} and sin {list(sin.shape)}; "
            "pass tables of the same shape and strides"
        )
