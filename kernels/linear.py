"""Projections: ``y = x W^T + b`` with what follows fused where the device allows it.

    x         [T, in_features]    the activations of one step
    W         [out_features, in_features], b [out_features]
    residual, other   [T, out_features]

`pack_linear` turns a weight into a `Linear`, the one shape in which the model sees any projection. On a CPU a bf16 or
f32 weight is packed once by oneDNN, through operators internal to torch: packed, a single row reads the weight at close
to the speed of memory, where `F.linear` reaches a quarter of it. Before they are used the operators are run on a small
case; where they are missing or wrong, and on every other device, the weight stays as it is. So does a large bf16 weight
on a CPU with AMX, whose product with few rows is quicker with the weight on the left. This is the only file that names
those operators. On a GPU a step of a few rows takes the norm before it and the residual behind it into the same kernel
(gemv.py).
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F

from ..errors import KernelError
from .backend import runs_triton
from .gemv import MAX_ROWS, linear_add, norm_linear, norm_swiglu
from .rms_norm import add_rms_norm
from .swiglu import swiglu

# What oneDNN packs for: one row, the decode step of one chat. In f32 a packing for more rows takes 1.4x as long at one
# row, and the one-row packing 1.4x as long at 16; in bf16 the hint changes nothing.
_PACKED_FOR_ROWS = 1
# Weights of fewer elements stay plain: a oneDNN call costs 13 to 18 us, F.linear 3 us plus its reading, and as long as
# a weight sits in cache that is the smaller sum (measured from 64 x 64 to 1024 x 512; other dtypes are never packed).
_PACKED_FROM = {torch.bfloat16: 1 << 13, torch.float32: 1 << 19}
# Steps of fewer rows are filled up to this many where the CPU multiplies bf16 itself and the weight comes from memory:
# there oneDNN's kernel for 4 rows reads it 1.3x as fast as its kernel for one (5632 x 2048 on two Zen 4 cores: 40 and
# 31 GB/s; in cache it would be 83 and 117). The sums of 2 to 16 rows were equal to the last bit, that of one row not.
_FILLED_TO_ROWS = 4
LARGE_FROM = 1 << 20  # elements: a model of weights this large has hundreds of MiB of them, which no cache holds
# On a CPU with AMX packed weights are read at 9 or at 23 GB/s, which changes within seconds on a shared Xeon, plain
# ones on the left at 15 or at 23, up to here; with 256 rows neither is quicker, with 512 F.linear is (2048 x 2048 to
# 32000 x 2048, two cores of a Sapphire Rapids).
_LEFT_UP_TO_ROWS = 128


class Linear(Protocol):
    """A projection, whatever form its weight is kept in."""

    in_features: int
    out_features: int

    @property
    def nbytes(self) -> int:
        """Bytes that one pass reads: weight and bias."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``x W^T + b``: [T, in_features] -> [T, out_features]."""

    def normed(self, x: torch.Tensor, norm_weight: torch.Tensor, eps: float) -> torch.Tensor:
        """``add_rms_norm(x, norm_weight, eps) W^T + b``."""

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """``residual + x W^T + b``; ``residual: [T, out_features]`` is left as it was."""

    def swish(self, x: torch.Tensor) -> torch.Tensor:
        """``silu(x W^T + b)``."""

    def mul(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """``(x W^T + b) * other``, ``other: [T, out_features]``."""


class PlainLinear:
    """A projection whose weight stays a plain tensor: any device, any floating dtype."""

    __slots__ = ("bias", "in_features", "out_features", "weight")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias
        self.out_features, self.in_features = weight.shape

    @property
    def nbytes(self) -> int:
        """Bytes that one pass reads: weight and bias."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``x W^T + b``: [T, in_features] -> [T, out_features]."""
        return F.linear(x, self.weight, self.bias)

    def normed(self, x: torch.Tensor, norm_weight: torch.Tensor, eps: float) -> torch.Tensor:
        """``add_rms_norm(x, norm_weight, eps) W^T + b``."""
        if takes_gemv(x):
            return norm_linear(x, norm_weight, eps, self.weight, self.bias)
        return self(add_rms_norm(x, norm_weight, eps))

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """``residual + x W^T + b``; ``residual: [T, out_features]`` is left as it was."""
        if takes_gemv(x):
            return linear_add(x, self.weight, residual, self.bias)
        if self.bias is None:
            return torch.addmm(residual, x, self.weight.t())
        return F.linear(x, self.weight, self.bias).add_(residual)

    def swish(self, x: torch.Tensor) -> torch.Tensor:
        """``silu(x W^T + b)``."""
        return F.silu(self(x), inplace=True)

    def mul(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """``(x W^T + b) * other``, ``other: [T, out_features]``."""
        return self(x).mul_(other)


class LeftLinear(PlainLinear):
    """A plain weight that stands on the left in products with few rows: y^T = W x^T."""

    __slots__ = ()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``x W^T + b``: [T, in_features] -> [T, out_features]."""
        rows = x.shape[0]
        if not 0 < rows <= _LEFT_UP_TO_ROWS:
            return super().__call__(x)
        y = torch.mv(self.weight, x[0])[None] if rows == 1 else torch.mm(self.weight, x.t()).t().contiguous()
        return y if self.bias is None else y.add_(self.bias)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """``residual + x W^T + b``; ``residual: [T, out_features]`` is left as it was."""
        return self(x).add_(residual) if x.shape[0] <= _LEFT_UP_TO_ROWS else super().add(x, residual)


class PackedLinear:
    """A projection packed by oneDNN for a CPU, bf16 or f32; the weight it was made from is not kept."""

    __slots__ = ("_fewest_rows", "_packed", "bias", "in_features", "nbytes", "out_features")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACKED_FOR_ROWS)
        self.bias = bias
        self.out_features, self.in_features = weight.shape
        self.nbytes = weight.nbytes + (0 if bias is None else bias.nbytes)
        is_filled = weight.dtype == torch.bfloat16 and weight.numel() >= LARGE_FROM and multiplies_bf16()
        self._fewest_rows = _FILLED_TO_ROWS if is_filled else 1

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``x W^T + b``: [T, in_features] -> [T, out_features]."""
        return self._unary(x, "none")

    def normed(self, x: torch.Tensor, norm_weight: torch.Tensor, eps: float) -> torch.Tensor:
        """``add_rms_norm(x, norm_weight, eps) W^T + b``."""
        return self(add_rms_norm(x, norm_weight, eps))

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """``residual + x W^T + b``; ``residual: [T, out_features]`` is left as it was."""
        return self._binary(x, residual, "add")

    def swish(self, x: torch.Tensor) -> torch.Tensor:
        """``silu(x W^T + b)``."""
        return self._unary(x, "swish")

    def mul(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """``(x W^T + b) * other``, ``other: [T, out_features]``."""
        return self._binary(x, other, "mul")

    def _unary(self, x: torch.Tensor, activation: str) -> torch.Tensor:
        rows = x.shape[0]
        if rows >= self._fewest_rows:
            return _pointwise()(x, self._packed, self.bias, activation, [], "")
        return _pointwise()(self._filled(x), self._packed, self.bias, activation, [], "")[:rows]

    def _binary(self, x: torch.Tensor, other: torch.Tensor, operation: str) -> torch.Tensor:
        rows = x.shape[0]
        if rows >= self._fewest_rows:
            return _pointwise_binary()(x, other, self._packed, self.bias, operation)
        filled = _pointwise_binary()(self._filled(x), self._filled(other), self._packed, self.bias, operation)
        return filled[:rows]

    def _filled(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, n] -> [rows, n], where only the first T matter."""
        if x.shape[0] == 1:
            return x.expand(self._fewest_rows, -1)
        return F.pad(x, (0, 0, 0, self._fewest_rows - x.shape[0]))


def normed_swiglu(projection: Linear, x: torch.Tensor, norm_weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``swiglu(projection.normed(x, norm_weight, eps))`` of a merged gate and up: [T, E] -> [T, F]."""
    if isinstance(projection, PlainLinear) and projection.bias is None and takes_gemv(x):
        return norm_swiglu(x, norm_weight, eps, projection.weight)
    return swiglu(projection.normed(x, norm_weight, eps))


def takes_gemv(x: torch.Tensor) -> bool:
    """Whether a product with so few rows is a fused matrix-vector product here."""
    return 0 < x.shape[0] <= MAX_ROWS and runs_triton(x)


@cache
def multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bf16; others convert first, and every row keeps them busy."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


@cache
def has_amx() -> bool:
    """Whether this CPU multiplies tiles of bf16 (Intel's AMX), and torch may use it."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def pack_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """The fastest form of a projection on the device where ``weight`` lies.

    A packed weight is a copy: drop your own reference and only the copy stays in memory.

    Args:
        weight: [out_features, in_features], floating.
        bias: [out_features] of the same dtype and device, or None.

    Raises:
        KernelError: shapes, dtypes or devices that do not belong together.
    """
    check_projection(weight, bias)
    if weight.device.type != "cpu":
        return PlainLinear(weight, bias)
    if weight.dtype == torch.bfloat16 and weight.numel() >= LARGE_FROM and has_amx():
        return LeftLinear(weight, bias)
    if weight.numel() >= _PACKED_FROM.get(weight.dtype, math.inf) and can_pack(weight.dtype):
        return PackedLinear(weight, bias)
    return PlainLinear(weight, bias)


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch has the packed operators and they give what `F.linear` gives, tried once on 3 x 40 x 24."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 24, generator=generator).to(dtype)
    bias = torch.randn(40, generator=generator).to(dtype)
    x = torch.randn(3, 24, generator=generator).to(dtype)
    other = torch.randn(3, 40, generator=generator).to(dtype)
    try:
        packed = PackedLinear(weight, bias)
        found = [packed(x), packed.add(x, other), packed.swish(x), packed.mul(x, other)]
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    y = F.linear(x.double(), weight.double(), bias.double())
    expected = [y, other + y, F.silu(y), y * other]
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5  # 2^-8 for each of a few roundings; 24 products in f32
    return all(
        torch.allclose(f.double(), e, rtol=tolerance, atol=tolerance) for f, e in zip(found, expected, strict=True)
    )


@cache
def _pointwise() -> Callable[..., torch.Tensor]:
    """(x, packed, bias, activation, scalars, algorithm) -> activation(x W^T + b)."""
    return torch.ops.mkldnn._linear_pointwise.default


@cache
def _pointwise_binary() -> Callable[..., torch.Tensor]:
    """(x, other, packed, bias, "add" or "mul") -> (x W^T + b) and other, combined."""
    return torch.ops.mkldnn._linear_pointwise.binary


def check_projection(weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Raise KernelError unless ``weight`` and ``bias`` make a projection."""
    if weight.ndim != 2 or not weight.dtype.is_floating_point:
        raise KernelError(
            f"a projection's weight is {weight.dtype} {list(weight.shape)}; "
            "pass a floating tensor [out_features, in_features]"
        )
    if bias is None:
        return
    if bias.shape != weight.shape[:1] or bias.dtype != weight.dtype or bias.device != weight.device:
        raise KernelError(
            f"a projection's bias is {bias.dtype} {list(bias.shape)} on {bias.device}; its weight asks for "
            f"{weight.dtype} [{weight.shape[0]}] on {weight.device}"
        )
