"""SwiGLU, the gate of the MLP, on a fused projection.

y = silu(g) * u,    silu(g) = g / (1 + exp(-g)),    (g, u) = the two halves of a row of gate_up

gate_up   [T, 2F]    F is the intermediate size
y         [T, F]     F32 inside, rounded once
"""

import torch
import torch.nn.functional as F

from ..errors import KernelError
from .backend import jit, runs_triton, tl

_BLOCK = 1024
_LOG2_E = 1.4426950408889634


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * up``.

    Args:
        gate_up: [T, 2F] floating, last axis contiguous: the gate's columns, then up's.

    Returns:
        y: [T, F] of the same dtype.

    Raises:
        KernelError: not two-dimensional, an odd width, or a strided last axis.
    """
    if gate_up.ndim != 2 or gate_up.shape[1] % 2 or (gate_up.stride(1) != 1 and gate_up.shape[1] > 1):
        raise KernelError(
            f"swiglu got {list(gate_up.shape)} with strides {gate_up.stride()}; "
            "pass [T, 2F] with a contiguous last axis, the gate's F columns before up's"
        )
    if not runs_triton(gate_up):
        return swiglu_torch(gate_up)
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    y = torch.empty(rows, size, dtype=gate_up.dtype, device=gate_up.device)
    if y.numel():
        grid = (rows, -(-size // _BLOCK))
        block = {"BLOCK": _BLOCK, "num_warps": 4, "enable_fp_fusion": True}
        _swiglu_kernel[grid](gate_up, y, size, gate_up.stride(0), LOG2_E=_LOG2_E, **block)
    return y


def swiglu_torch(gate_up: torch.Tensor) -> torch.Tensor:
    """PyTorch twin: gate_up [T, 2F] -> y [T, F]."""
    gate, up = gate_up.chunk(2, dim=1)  # [T, F] each
    return F.silu(gate.float()).mul_(up).to(gate_up.dtype)


@jit
def _swiglu_kernel(  # type: ignore[no-untyped-def]
    gate_up_ptr,  # [T, 2F]
    y_ptr,  # [T, F]
    size,
    gate_up_stride,
    LOG2_E: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program makes BLOCK columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    gate = tl.load(gate_up_ptr + row * gate_up_stride + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * gate_up_stride + size + at, mask=inside, other=0.0).to(tl.float32)
    decay = tl.exp2(tl.abs(gate) * -LOG2_E)  # at most 1, whatever the gate
    y = gate * tl.where(gate >= 0.0, 1.0, decay) / (1.0 + decay) * up
    tl.store(y_ptr + row * size + at, y.to(y_ptr.dtype.element_ty), mask=inside)
