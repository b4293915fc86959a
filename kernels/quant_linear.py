"""Projections with weights of 8 or 4 bits: `quantize_linear` rounds a weight and picks who multiplies with it here.

    bf16 and f32 on a CPU    quant_matmul_cpu.py: 8 bits with a scale a row, 4 bits in groups of 32
    anything else            quant_matmul.py: 8 bits with a scale a row, 4 bits in groups of 128

Nothing is fused behind these products; legend and `Linear` are linear.py's.
"""

import logging
from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F

from ..errors import KernelError
from .backend import runs_triton
from .linear import LARGE_FROM, Linear, check_projection
from .quant_matmul import quant_matmul, quantize_weight
from .quant_matmul_cpu import LeftInt8, PackedInt4, PackedInt8, can_pack_int4, can_stand_left, int8_steps
from .rms_norm import add_rms_norm

log = logging.getLogger(__name__)

_GROUP_SIZES = (128, 64, 32)  # what quant_matmul.py may be asked for, in the order in which it is


class QuantLinear:
    """A projection whose product with the weight is ``multiply``: [T, in_features] -> [T, out_features]."""

    __slots__ = ("bias", "in_features", "multiply", "nbytes", "out_features")

    def __init__(
        self,
        shape: tuple[int, int],
        multiply: Callable[[torch.Tensor], torch.Tensor],
        weight_bytes: int,
        bias: torch.Tensor | None = None,
    ) -> None:
        """shape: (out_features, in_features). ``weight_bytes``: of codes and scales."""
        self.out_features, self.in_features = shape
        self.multiply = multiply
        self.nbytes = weight_bytes + (0 if bias is None else bias.nbytes)
        self.bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``x W^T + b``: [T, in_features] -> [T, out_features]."""
        y = self.multiply(x)
        return y if self.bias is None else y.add_(self.bias)

    def normed(self, x: torch.Tensor, norm_weight: torch.Tensor, eps: float) -> torch.Tensor:
        """``add_rms_norm(x, norm_weight, eps) W^T + b``."""
        return self(add_rms_norm(x, norm_weight, eps))

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """``residual + x W^T + b``; ``residual: [T, out_features]`` is left as it was."""
        return self(x).add_(residual)

    def swish(self, x: torch.Tensor) -> torch.Tensor:
        """``silu(x W^T + b)``."""
        return F.silu(self(x), inplace=True)

    def mul(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """``(x W^T + b) * other``, ``other: [T, out_features]``."""
        return self(x).mul_(other)


def quantize_linear(weight: torch.Tensor, bias: torch.Tensor | None, bits: int) -> Linear:
    """The projection with its weight rounded to ``bits``, in the fastest form for the device where the weight lies.

    The weight itself is not kept; the bias is, as it is. 4 bits need groups of 32 at least: where in_features is no
    multiple of 32, that one weight gets 8.

    Args:
        weight: [out_features, in_features] floating.
        bias: [out_features] of the same dtype and device, or None.
        bits: 8 or 4.

    Raises:
        KernelError: another number of bits, or shapes, dtypes or devices that do not belong together.
    """
    check_projection(weight, bias)
    if bits not in (4, 8):
        raise KernelError(f"quantize_linear got {bits} bits; pass 8 or 4")
    shape = (weight.shape[0], weight.shape[1])
    group_size = next((size for size in _GROUP_SIZES if shape[1] % size == 0), None)
    if group_size is None:
        bits = 8
    if weight.device.type == "cpu" and not runs_triton(weight):
        packed = _pack(weight, bits)
        if packed is not None:
            return QuantLinear(shape, packed.matmul, packed.nbytes, bias)
    coded = quantize_weight(weight, bits) if group_size is None else quantize_weight(weight, bits, group_size)
    return QuantLinear(shape, partial(quant_matmul, weight=coded), coded.nbytes, bias)


def _pack(weight: torch.Tensor, bits: int) -> PackedInt8 | LeftInt8 | PackedInt4 | None:
    """The weight as the CPU's operators want it; None where there are none for its dtype."""
    if bits == 8 and weight.numel() >= LARGE_FROM and can_stand_left(weight.dtype):
        return LeftInt8(weight)
    if bits == 8 and (steps := int8_steps(weight.dtype)):
        return PackedInt8(weight, steps)
    if bits == 4 and can_pack_int4(weight.dtype):
        return PackedInt4(weight)
    _warn_of_slow_product(bits, weight.dtype)
    return None


@cache
def _warn_of_slow_product(bits: int, dtype: torch.dtype) -> None:
    """Once, not for every weight."""
    log.warning(
        "this CPU or build of torch has no fast product of %s with weights of %d bits: they save memory, but every "
        "step widens them, which takes longer than unquantised ones",
        dtype,
        bits,
    )
