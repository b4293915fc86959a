"""Rotary position embedding of Q and K, and the write of K and V into their pages.

    (x1, x2) = the halves of one head's vector;  c, s = cos and sin of the token's position, [D/2]
    rope(x)  = (x1 * c - x2 * s, x2 * c + x1 * s)      the "rotate half" convention of Hugging Face's Llama, in F32

    qkv         [T, (H + 2K) * D]   a row is H query heads, then K key heads, then K value heads
    cos, sin    [R, D/2] f32        scaled by the RoPE variant already (llama3, yarn: the caller's table)
    positions   [T] int64           the row of cos and sin for each token
    slots       [T] int64           page * S + offset; -1 writes nothing (a padded row of a CUDA graph)
    k_pages, v_pages   [P, K, S, D]   any strides, last axis contiguous; qkv's dtype, int8 or fp8
    k_scales, v_scales [P, K, S] f32  with int8 pages

int8: a row x of one token and head becomes code = floor(x / scale + 1/2) with scale = max |x| / 127. fp8: x, no farther
from 0 than the largest fp8, rounded. A scale a row has a quarter of e4m3's error.

Su et al., "RoFormer", arXiv 2104.09864. The page layout is defined in docs/kv-layout.md.
"""

from functools import cache

import torch

from ..errors import KernelError
from .attention_inputs import LayerPages
from .backend import inlined, jit, next_power_of_2, runs_triton, tl

# The least that stands for a row's largest magnitude: a row of zeros has the scale 0 and codes of 0.
MIN_LARGEST = 1e-30


def rope_and_write_kv(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor | None,
    slot_mapping: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    k_scales: torch.Tensor | None = None,
    v_scales: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rotate Q and K, write K and V to their slots, return Q.

    Args:
        qkv: [T, (H + 2K) * D], the fused projection; left as it was.
        cos, sin: [R, D/2] f32.
        positions: [T] int64 rows of ``cos`` and ``sin``; None when these hold one row a token already (R = T).
        slot_mapping: [T] int64, each slot at most once; -1 writes nothing.
        k_pages, v_pages: [P, K, S, D] of qkv's dtype, int8 or fp8; written in place.
        k_scales, v_scales: [P, K, S] f32 with the same strides, of int8 pages; written in place.

    Returns:
        q: [T, H, D], rotated, contiguous on the last axis.

    Raises:
        KernelError: shapes, dtypes, devices or strides that do not fit.
    """
    pages = LayerPages(k_pages, v_pages, k_scales, v_scales)
    pages.check("rope_and_write_kv")
    _check(qkv, cos, sin, positions, slot_mapping, pages)
    if runs_triton(qkv):
        return _launch(qkv, cos, sin, positions, slot_mapping, pages)
    if not len(qkv):
        return qkv.new_empty(0, qkv.shape[1] // k_pages.shape[3] - 2 * k_pages.shape[1], k_pages.shape[3])
    if positions is not None:
        cos, sin = cos[positions], sin[positions]  # [T, D/2]
    return _rope_and_write_kv_torch(qkv, cos, sin, slot_mapping, pages)


def _rope_and_write_kv_torch(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, slots: torch.Tensor, pages: LayerPages
) -> torch.Tensor:
    """PyTorch twin, with one row of cos and sin [T, D/2] a token."""
    num_kv_heads, head_dim = pages.k.shape[1], pages.k.shape[3]
    num_tokens, half = qkv.shape[0], head_dim // 2
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    if num_tokens == 1 and not pages.is_narrow:
        return _rope_and_write_row(qkv, cos, sin, int(slots), pages)
    heads = qkv.view(num_tokens, -1, 2, half)
    x = heads.narrow(1, 0, num_heads + num_kv_heads).float()  # [T, H + K, 2, D/2]
    y = x * cos.view(num_tokens, 1, 1, half)
    sin = sin.view(num_tokens, 1, half)
    (x1, x2), (y1, y2) = x.unbind(2), y.unbind(2)  # [T, H + K, D/2]
    y1.addcmul_(x2, sin, value=-1)
    y2.addcmul_(x1, sin)
    q, k = y.view(num_tokens, -1, head_dim).split_with_sizes((num_heads, num_kv_heads), 1)
    v = qkv.narrow(1, -num_kv_heads * head_dim, num_kv_heads * head_dim).view_as(k)
    for rows, target, scales in ((k, pages.k, pages.k_scales), (v, pages.v, pages.v_scales)):
        if scales is not None:
            rows, scale = _to_int8(rows.float())
            _write_slots(scales, slots, scale)
        elif pages.is_fp8:
            limit = torch.finfo(target.dtype).max
            rows = rows.float().clamp(-limit, limit).to(target.dtype).view(torch.uint8)
            target = target.view(torch.uint8)  # torch does not index fp8
        _write_slots(target, slots, rows)
    return q.to(qkv.dtype)


def _rope_and_write_row(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, slot: int, pages: LayerPages
) -> torch.Tensor:
    """The same for one token and pages of qkv's dtype, in half the calls: both halves are rotated at once."""
    _, num_kv_heads, page_size, head_dim = pages.k.shape
    half = head_dim // 2
    num_rotated = qkv.shape[1] // head_dim - num_kv_heads  # H + K
    start = qkv.storage_offset()
    x = qkv.as_strided((num_rotated, 2, half), (head_dim, half, 1), start).float()  # [H + K, 2, D/2]
    y = (x * cos).addcmul_(x.flip(1), sin * _signs())
    num_heads = num_rotated - num_kv_heads
    if slot >= 0:
        page, offset = divmod(slot, page_size)
        size, strides = (num_kv_heads, head_dim), (head_dim, 1)
        k = y.as_strided(size, strides, num_heads * head_dim)  # [K, D]
        v = qkv.as_strided(size, strides, start + num_rotated * head_dim)
        for rows, target in ((k, pages.k), (v, pages.v)):
            stride_p, stride_h, stride_s, _ = target.stride()
            at = target.storage_offset() + page * stride_p + offset * stride_s
            target.as_strided(size, (stride_h, 1), at).copy_(rows)
    return y.as_strided((1, num_heads, head_dim), (num_heads * head_dim, head_dim, 1)).to(qkv.dtype)


@cache
def _signs() -> torch.Tensor:
    """[2, 1] f32: of the sine in the first half of a rotated vector and in the second."""
    return torch.tensor([[-1.0], [1.0]])


def _to_int8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """f32 [T, K, D] -> codes [T, K, D] int8 and scales [T, K] f32."""
    largest = rows.abs().amax(2)
    codes = (rows * (127 / largest.clamp(min=MIN_LARGEST)).unsqueeze(2) + 0.5).floor_()
    return codes.to(torch.int8), largest / 127


def _write_slots(pages: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor) -> None:
    """Write ``rows: [T, K, ...]`` to ``slots: [T]`` of ``pages: [P, K, S, ...]``, without the rows whose slot is -1."""
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


@inlined
def _encode(x1, x2, largest, MODE: tl.constexpr, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """The halves of rows as they are stored: as codes of int8 (MODE 1), of fp8 (MODE 2), or as they are (MODE 0)."""
    if MODE == 1:
        inverse = (127.0 / tl.maximum(largest, 1e-30))[:, None]
        x1 = tl.floor(x1 * inverse + 0.5)
        x2 = tl.floor(x2 * inverse + 0.5)
    elif MODE == 2:
        limit: tl.constexpr = 240.0 if dtype == tl.float8e4b8 else 448.0
        x1 = tl.clamp(x1, -limit, limit)
        x2 = tl.clamp(x2, -limit, limit)
    return x1.to(dtype), x2.to(dtype)


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
    k_scales_ptr,
    v_scales_ptr,
    qkv_stride,
    cos_stride,
    k_stride_p,
    k_stride_h,
    k_stride_s,
    v_stride_p,
    v_stride_h,
    v_stride_s,
    scale_stride_p,
    scale_stride_h,
    scale_stride_s,
    num_heads,
    num_kv_heads,
    page_size,
    HAS_POSITIONS: tl.constexpr,
    MODE: tl.constexpr,  # how K and V are stored, see _encode
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
    x1 = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    x2 = tl.load(source + HEAD_DIM // 2, mask=inside, other=0.0).to(tl.float32)

    row = tl.load(positions_ptr + token) if HAS_POSITIONS else token
    cos = tl.load(cos_ptr + row * cos_stride + at, mask=at < HEAD_DIM // 2, other=0.0)[None, :]
    sin = tl.load(sin_ptr + row * cos_stride + at, mask=at < HEAD_DIM // 2, other=0.0)[None, :]
    y1 = x1 * cos - x2 * sin
    y2 = x2 * cos + x1 * sin
    q_at = q_ptr + (token * num_heads + head[:, None]) * HEAD_DIM + at[None, :]
    tl.store(q_at, y1.to(q_ptr.dtype.element_ty), mask=is_q[:, None] & column)
    tl.store(q_at + HEAD_DIM // 2, y2.to(q_ptr.dtype.element_ty), mask=is_q[:, None] & column)

    slot = tl.load(slots_ptr + token)
    written = tl.zeros([BLOCK_H], tl.int64) <= slot
    page = slot // page_size
    offset = slot % page_size
    y1 = tl.where(is_v[:, None], x1, y1)
    y2 = tl.where(is_v[:, None], x2, y2)
    largest = tl.maximum(tl.max(tl.abs(y1), 1), tl.max(tl.abs(y2), 1))  # [BLOCK_H]
    z1, z2 = _encode(y1, y2, largest, MODE, k_ptr.dtype.element_ty)
    k_head = head - num_heads
    v_head = k_head - num_kv_heads
    k_at = k_ptr + page * k_stride_p + k_head[:, None] * k_stride_h + offset * k_stride_s + at[None, :]
    v_at = v_ptr + page * v_stride_p + v_head[:, None] * v_stride_h + offset * v_stride_s + at[None, :]
    to_k = (is_k & written)[:, None] & column
    to_v = (is_v & written)[:, None] & column
    tl.store(k_at, z1, mask=to_k)
    tl.store(k_at + HEAD_DIM // 2, z2, mask=to_k)
    tl.store(v_at, z1, mask=to_v)
    tl.store(v_at + HEAD_DIM // 2, z2, mask=to_v)
    if MODE == 1:
        scale_at = page * scale_stride_p + offset * scale_stride_s
        tl.store(k_scales_ptr + scale_at + k_head * scale_stride_h, largest / 127.0, mask=is_k & written)
        tl.store(v_scales_ptr + scale_at + v_head * scale_stride_h, largest / 127.0, mask=is_v & written)


def _launch(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor | None,
    slot_mapping: torch.Tensor,
    pages: LayerPages,
) -> torch.Tensor:
    """Launch the kernel on a grid of tokens x blocks of heads."""
    _, num_kv_heads, page_size, head_dim = pages.k.shape
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
        pages.k,
        pages.v,
        q if pages.k_scales is None else pages.k_scales,
        q if pages.v_scales is None else pages.v_scales,
        qkv.stride(0),
        cos.stride(0),
        *pages.k.stride()[:3],
        *pages.v.stride()[:3],
        *pages.scale_strides,
        num_heads,
        num_kv_heads,
        page_size,
        HAS_POSITIONS=positions is not None,
        MODE=1 if pages.k_scales is not None else 2 if pages.is_fp8 else 0,
        HEAD_DIM=head_dim,
        HALF=next_power_of_2(head_dim // 2),
        BLOCK_H=block_h,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return q


def _check(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor | None,
    slot_mapping: torch.Tensor,
    pages: LayerPages,
) -> None:
    """Raise KernelError unless the arguments belong together."""
    k_pages, v_pages = pages.k, pages.v
    num_kv_heads, head_dim = k_pages.shape[1], k_pages.shape[3]
    if head_dim % 2:
        raise KernelError(f"rope_and_write_kv got head_dim {head_dim}; it rotates halves and needs an even one")
    width = qkv.shape[-1]
    if qkv.ndim != 2 or width % head_dim or width // head_dim <= 2 * num_kv_heads or qkv.stride(1) != 1:
        raise KernelError(
            f"rope_and_write_kv got qkv {list(qkv.shape)} with strides {qkv.stride()}; with {num_kv_heads} KV heads of "
            f"{head_dim} it takes [T, (H + {2 * num_kv_heads}) * {head_dim}], H >= 1, with a contiguous last axis"
        )
    if not pages.is_narrow and qkv.dtype != k_pages.dtype:
        raise KernelError(
            f"rope_and_write_kv got qkv {qkv.dtype} and pages of {k_pages.dtype}; use one dtype, or int8 or fp8 pages"
        )
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
