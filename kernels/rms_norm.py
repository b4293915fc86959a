"""RMSNorm with the residual addition before it.

    r' = residual + x                             only when a residual is given; rounded to the dtype
    y  = w * round(r' / sqrt(mean(r'^2) + eps))   mean over the last axis, F32 up to `round`

    x, residual, y    [..., E]   one dtype; E is the hidden size, or head_dim for a norm per head
    w                 [E]

Rounded where Hugging Face's models round (to the dtype before the product with w), so bf16 logits agree with theirs.
"""

from typing import overload

import torch

from ..errors import KernelError
from .backend import jit, next_power_of_2, runs_triton, tl


@overload
def add_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor: ...
@overload
def add_rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]: ...
def add_rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """RMSNorm over the last axis, after adding the residual if there is one.

    Args:
        x: [..., E] floating, last axis contiguous.
        weight: [E], the same dtype and device.
        eps: added to the mean square.
        residual: [..., E] like ``x``, or None; it is left as it was.

    Returns:
        y: [..., E], or (y, residual + x) when a residual is given.

    Raises:
        KernelError: shapes, dtypes, devices or strides that do not fit.
    """
    _check(x, weight, residual)
    if not runs_triton(x):
        if residual is None:
            return rms_norm_torch(x, weight, eps)
        total = residual + x
        return rms_norm_torch(total, weight, eps), total
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    summed = None if residual is None else torch.empty_like(y)
    _launch(x, weight, eps, residual, summed, y)
    return y if summed is None else (y, summed)


def rms_norm_torch(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """PyTorch twin without the residual: x [..., E], weight [E] -> y [..., E]."""
    size = x.shape[-1]
    if x.numel() == size:  # one row: a Python scalar multiplies in F32 and rounds once, without an F32 copy of x
        norm = torch.linalg.vector_norm(x, dtype=torch.float32).item()
        return x.mul((norm * norm / size + eps) ** -0.5).mul_(weight)
    exact = x.to(torch.float32, copy=True)  # the only F32 copy: each one of a long prompt is megabytes of fresh memory
    norm = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
    scale = norm.square_().div_(size).add_(eps).rsqrt_()  # [..., 1]
    return exact.mul_(scale).to(x.dtype).mul_(weight)


@jit
def _rms_norm_kernel(  # type: ignore[no-untyped-def]
    x_ptr,  # [T, I, E] strided
    residual_ptr,  # [T, I, E] contiguous
    weight_ptr,  # [E]
    total_ptr,  # [T, I, E] contiguous
    y_ptr,  # [T, I, E] contiguous
    x_stride_t,
    x_stride_i,
    num_inner,
    size,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program normalises one row of E elements."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < size
    x_row = x_ptr + (row // num_inner) * x_stride_t + (row % num_inner) * x_stride_i
    x = tl.load(x_row + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + row * size + at, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + row * size + at, rounded, mask=inside)
        x = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / size + eps)
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0)
    rounded_y = (x * scale).to(y_ptr.dtype.element_ty).to(tl.float32)
    y = rounded_y * weight.to(tl.float32)
    tl.store(y_ptr + row * size + at, y.to(y_ptr.dtype.element_ty), mask=inside)


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None,
    total: torch.Tensor | None,
    y: torch.Tensor,
) -> None:
    """Launch one program a row; without a residual the two unused pointers are ``x``."""
    size = x.shape[-1]
    rows = x.numel() // size
    if rows == 0:
        return
    x3 = x if x.ndim == 3 else x.reshape(-1, 1, size)  # [T, I, E]; a 3-D slice of a fused qkv stays a view
    block = next_power_of_2(size)
    _rms_norm_kernel[(rows,)](
        x3,
        x if residual is None else residual.contiguous(),
        weight,
        x if total is None else total,
        y,
        x3.stride(0),
        x3.stride(1),
        x3.shape[1],
        size,
        eps,
        HAS_RESIDUAL=residual is not None,
        BLOCK=block,
        num_warps=min(16, max(1, block // 512)),
        enable_fp_fusion=True,
    )


def _check(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None) -> None:
    """Raise KernelError unless the arguments make a norm."""
    if x.ndim == 0 or weight.shape != x.shape[-1:] or weight.dtype != x.dtype or weight.device != x.device:
        raise KernelError(
            f"add_rms_norm got x {x.dtype} {list(x.shape)} on {x.device} and weight {weight.dtype} "
            f"{list(weight.shape)} on {weight.device}; the weight must be [{x.shape[-1] if x.ndim else 'E'}] like x"
        )
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        raise KernelError(f"add_rms_norm got x with strides {x.stride()}; its last axis must be contiguous")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype or residual.device != x.device):
        raise KernelError(
            f"add_rms_norm got a residual {residual.dtype} {list(residual.shape)} on {residual.device}; "
            f"x is {x.dtype} {list(x.shape)} on {x.device}, pass one like it"
        )
