"""Matrix product with weights of 8 or 4 bits: the activations keep their dtype, the weights are widened on the way.

    y = x W^T,   8 bits: W[n, k] = scale[n] * code,              codes -127 .. 127, one scale a row
                 4 bits: W[n, k] = scale[n, g] * code + low[n, g], codes 0 .. 15, g = k // group_size

    x        [M, K]        y [M, N]
    codes    [N, K] int8, or [N, K / 2] uint8: byte g * group_size / 2 + i of a row holds the code of
             k = g * group_size + i in its low half, and of k + group_size / 2 in its high half
    scales, lows   [N, K / group_size], in the dtype that W had

A tile of codes is read once for all rows of x, so for the few rows of a decode step the bytes of the weights are what
counts. Products accumulate in F32.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..errors import KernelError
from .backend import jit, next_power_of_2, runs_triton, tl

_BLOCK_N = 64


@dataclass(frozen=True, slots=True)
class QuantWeight:
    """A weight as codes and scales, in the module's layout; made by `quantize_weight`.

    Attributes:
        codes: [N, K] int8 for 8 bits, [N, K / 2] uint8 for 4.
        scales: [N, K / group_size].
        lows: [N, K / group_size] for 4 bits, None for 8.
        group_size: weights of a row that share a scale; K for 8 bits.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    lows: torch.Tensor | None
    group_size: int

    @property
    def nbytes(self) -> int:
        """Bytes that one pass reads."""
        return self.codes.nbytes + self.scales.nbytes + (0 if self.lows is None else self.lows.nbytes)

    @property
    def in_features(self) -> int:
        """K."""
        return self.scales.shape[1] * self.group_size

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight that the codes stand for: [N, K]."""
        if self.lows is None:
            return (self.codes.float() * self.scales.float()).to(dtype)
        halves = self.codes.unflatten(1, (-1, self.group_size // 2))  # [N, G, group_size / 2]
        codes = torch.cat([halves & 15, halves >> 4], dim=2).float()  # [N, G, group_size]
        values = codes * self.scales.float().unsqueeze(2) + self.lows.float().unsqueeze(2)
        return values.flatten(1).to(dtype)


def quantize_weight(weight: torch.Tensor, bits: int, group_size: int = 128) -> QuantWeight:
    """Round a weight to 8 bits with one scale a row, or to 4 bits with a scale and a low end for each group.

    Args:
        weight: [N, K] floating.
        bits: 8 or 4.
        group_size: for 4 bits, a power of two >= 32 that divides K.

    Raises:
        KernelError: another number of bits, or a group size that does not fit.
    """
    if weight.ndim != 2 or bits not in (4, 8):
        raise KernelError(f"quantize_weight got {list(weight.shape)} and {bits} bits; pass [N, K] and 8 or 4")
    values = weight.float()
    if bits == 8:
        scales = (values.abs().amax(1, keepdim=True) / 127).clamp(min=1e-10).to(weight.dtype)
        codes = (values / scales.float()).round_().clamp_(-127, 127).to(torch.int8)
        return QuantWeight(codes, scales, None, weight.shape[1])
    if group_size < 32 or group_size & (group_size - 1) or weight.shape[1] % group_size:
        raise KernelError(
            f"group_size is {group_size} for rows of {weight.shape[1]}; pass a power of two >= 32 that divides them"
        )
    groups = values.unflatten(1, (-1, group_size))  # [N, G, group_size]
    lows = groups.amin(2).to(weight.dtype)
    # Codes are found for the rounded scale and low end, so that rounding these costs nothing.
    scales = ((groups.amax(2) - lows.float()) / 15).clamp(min=1e-8).to(weight.dtype)
    codes = (groups - lows.float().unsqueeze(2)) / scales.float().unsqueeze(2)
    low_half, high_half = codes.round_().clamp_(0, 15).to(torch.uint8).chunk(2, dim=2)
    return QuantWeight((low_half | high_half << 4).flatten(1), scales, lows, group_size)


def quant_matmul(x: torch.Tensor, weight: QuantWeight) -> torch.Tensor:
    """``x W^T``: x [M, K] floating -> y [M, N] of the same dtype.

    Raises:
        KernelError: x of another width, device or layout.
    """
    if x.ndim != 2 or x.shape[1] != weight.in_features or x.stride(1) != 1 or x.device != weight.codes.device:
        raise KernelError(
            f"quant_matmul got x {list(x.shape)} with strides {x.stride()} on {x.device}; the weight takes "
            f"[M, {weight.in_features}] with a contiguous last axis on {weight.codes.device}"
        )
    if not runs_triton(x):
        return F.linear(x, weight.dequantize(x.dtype))
    return _launch(x, weight)


def _launch(x: torch.Tensor, weight: QuantWeight) -> torch.Tensor:
    """Launch one program for BLOCK_M rows of x and BLOCK_N rows of the weight."""
    rows, size = x.shape
    features = weight.codes.shape[0]
    y = torch.empty(rows, features, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    # F32 tiles are multiplied without tensor cores; larger ones would spill registers.
    max_block_m, block_k, num_stages = (16, 64, 2) if x.dtype == torch.float32 else (64, 128, 3)
    block_m = min(max_block_m, max(16, next_power_of_2(rows)))
    grid = (-(-features // _BLOCK_N), -(-rows // block_m))
    common = {"BLOCK_M": block_m, "BLOCK_N": _BLOCK_N, "num_warps": 4, "num_stages": num_stages}
    if weight.lows is None:
        _w8_kernel[grid](
            x, weight.codes, weight.scales, y, rows, features, size, x.stride(0), BLOCK_K=block_k, **common
        )
    else:
        tensors = (x, weight.codes, weight.scales, weight.lows, y)
        _w4_kernel[grid](
            *tensors, rows, features, size, x.stride(0), GROUP_SIZE=weight.group_size, BLOCK_J=block_k // 2, **common
        )
    return y


@jit
def _w8_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    codes_ptr,
    scales_ptr,
    y_ptr,
    num_rows,
    num_features,
    size,
    x_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid: blocks of features x blocks of rows; the weights are the left side of the product."""
    feature = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    codes_at = codes_ptr + feature.to(tl.int64)[:, None] * size
    x_at = x_ptr + row.to(tl.int64)[None, :] * x_stride
    for start in range(0, size, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        codes = tl.load(codes_at + k[None, :], mask=(feature < num_features)[:, None] & (k < size)[None, :], other=0)
        x = tl.load(x_at + k[:, None], mask=(row < num_rows)[None, :] & (k < size)[:, None], other=0.0)
        acc = tl.dot(codes.to(tl.float32).to(x.dtype), x, acc, input_precision="ieee")
    scale = tl.load(scales_ptr + feature, mask=feature < num_features, other=0.0).to(tl.float32)
    y_at = y_ptr + row.to(tl.int64)[None, :] * num_features + feature[:, None]
    inside = (feature < num_features)[:, None] & (row < num_rows)[None, :]
    tl.store(y_at, (acc * scale[:, None]).to(y_ptr.dtype.element_ty), mask=inside)


@jit
def _w4_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    codes_ptr,
    scales_ptr,
    lows_ptr,
    y_ptr,
    num_rows,
    num_features,
    size,
    x_stride,
    GROUP_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """Grid as above; a step takes BLOCK_J bytes of each row of codes, and the two k's that each byte stands for."""
    feature = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    half: tl.constexpr = GROUP_SIZE // 2
    codes_at = codes_ptr + feature.to(tl.int64)[:, None] * (size // 2)
    groups_at = feature.to(tl.int64)[:, None] * (size // GROUP_SIZE)
    x_at = x_ptr + row.to(tl.int64)[None, :] * x_stride
    for start in range(0, size // 2, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        inside = (feature < num_features)[:, None] & (j < size // 2)[None, :]
        group = j // half
        k = group * GROUP_SIZE + j % half
        x_inside = (row < num_rows)[None, :] & (j < size // 2)[:, None]
        x_low = tl.load(x_at + k[:, None], mask=x_inside, other=0.0)
        x_high = tl.load(x_at + (k + half)[:, None], mask=x_inside, other=0.0)
        codes = tl.load(codes_at + j[None, :], mask=inside, other=0)
        scale = tl.load(scales_ptr + groups_at + group[None, :], mask=inside, other=0.0).to(tl.float32)
        low = tl.load(lows_ptr + groups_at + group[None, :], mask=inside, other=0.0).to(tl.float32)
        w_low = ((codes & 15).to(tl.float32) * scale + low).to(x_low.dtype)
        w_high = ((codes >> 4).to(tl.float32) * scale + low).to(x_low.dtype)
        acc = tl.dot(w_low, x_low, acc, input_precision="ieee")
        acc = tl.dot(w_high, x_high, acc, input_precision="ieee")
    y_at = y_ptr + row.to(tl.int64)[None, :] * num_features + feature[:, None]
    inside = (feature < num_features)[:, None] & (row < num_rows)[None, :]
    tl.store(y_at, acc.to(y_ptr.dtype.element_ty), mask=inside)
