"""Matrix product with weights of 8 or 4 bits: the activations keep their dtype, the weights are widened on the way.

    y = x W^T,   8 bits: W[n, k] = scale[n] * code,                codes -127 .. 127, one scale a row
                 4 bits: W[n, k] = scale[n, g] * code + low[n, g], codes 0 .. 15, g = k // group_size

    x        [M, K]        y [M, N]
    codes    [N, B * 128] int8, or [N, B * 64] uint8, B = ceil(K / 128): a span of 128 columns of a row is
             8 bits: byte 2 j + h holds column j + 64 h of it, j = 0 .. 63
             4 bits: byte 2 j + h holds columns j + 64 h in its low half and j + 64 h + 32 in its high, j = 0 .. 31
    scales, lows   [N, K / group_size], in the dtype that W had

For the few rows of a decode step the bytes of the weights are what counts: a tile of codes is read once for all rows of
x, and K is split among programs until they fill the device. The splits write F32 sums that a second kernel adds up,
always in the same order, so results are the same every time. The weights are the left side of the tensor cores'
product, whose right side has room for 16 rows of x at the least.

Words of 16 bits hold columns that lie a plane of 64 or 32 columns apart, so two words in a register widen to neighbours
of each plane at once, by putting the codes into the last bits of a number: 0x4300 | code is 128 + code in bf16, 0x6400
| code is 1024 + code in fp16. Scales and low ends of groups are applied to the sums of a group, not to its weights,

    sum_k W x = scale sum_k (base + code) x + (low - base scale) sum_k x,   base = 128 or 1024

and sum_k x is a product with ones, which the tensor cores do beside the other.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..errors import KernelError
from .backend import (
    INTERPRETED,
    current_target,
    dtype_name,
    inlined,
    jit,
    next_power_of_2,
    num_processors,
    runs_triton,
    tl,
)
from .launch_configs import find_config

_SPAN = 128  # columns whose codes share words
# Blocks of 64 features and a split that each processor gets: 3 stages of 4 to 8 KiB on the way for each keep memory
# busy. A program may take more features; the splits of a weight are the same for any number of rows.
_BLOCKS_PER_PROCESSOR = 4
_FEATURES_OF_BLOCK = 64
_MIN_SPANS = 4  # of a split: its sums are written and read once more, in F32
_MAX_ROWS = 256  # beyond, weights are widened once and multiplied as they are
_MAX_BLOCK_M = 64
# The bits into whose last four a code is put, and the number that they are; in f32 a code is converted.
_BASE = {torch.bfloat16: (0x4300, 128.0), torch.float16: (0x6400, 1024.0), torch.float32: (0, 0.0)}


@dataclass(frozen=True, slots=True)
class QuantWeight:
    """A weight as codes and scales, in the module's layout; made by `quantize_weight`.

    Attributes:
        codes: [N, 128 B] int8 for 8 bits, [N, 64 B] uint8 for 4; made of [N, K] by `pack_codes`.
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
            codes = self.codes.unflatten(1, (-1, _SPAN // 2, 2)).mT  # [N, B, 2, 64]
            return (codes.flatten(1)[:, : self.in_features].float() * self.scales.float()).to(dtype)
        halves = self.codes.unflatten(1, (-1, _SPAN // 4, 2)).mT  # [N, B, 2, 32]
        codes = torch.stack([halves & 15, halves >> 4], dim=3)  # [N, B, 2, 2, 32]
        groups = codes.flatten(1)[:, : self.in_features].unflatten(1, (-1, self.group_size)).float()
        values = groups * self.scales.float().unsqueeze(2) + self.lows.float().unsqueeze(2)
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
        return QuantWeight(pack_codes(codes), scales, None, weight.shape[1])
    if group_size < 32 or group_size & (group_size - 1) or weight.shape[1] % group_size:
        raise KernelError(
            f"group_size is {group_size} for rows of {weight.shape[1]}; pass a power of two >= 32 that divides them"
        )
    groups = values.unflatten(1, (-1, group_size))  # [N, G, group_size]
    lows = groups.amin(2).to(weight.dtype)
    # Codes are found for the rounded scale and low end, so that rounding these costs nothing.
    scales = ((groups.amax(2) - lows.float()) / 15).clamp(min=1e-8).to(weight.dtype)
    codes = (groups - lows.float().unsqueeze(2)) / scales.float().unsqueeze(2)
    return QuantWeight(pack_codes(codes.round_().clamp_(0, 15).to(torch.uint8).flatten(1)), scales, lows, group_size)


def pack_codes(codes: torch.Tensor) -> torch.Tensor:
    """Codes ``[N, K]``, int8 of 8 bits or uint8 of 4, in the module's layout."""
    spans = F.pad(codes, (0, -codes.shape[1] % _SPAN)).unflatten(1, (-1, 2, _SPAN // 2))  # [N, B, 2, 64]
    if codes.dtype == torch.uint8:
        low, high = spans.unflatten(3, (2, -1)).unbind(3)
        spans = low | high << 4  # [N, B, 2, 32]
    return spans.mT.flatten(1)


def quant_matmul(x: torch.Tensor, weight: QuantWeight) -> torch.Tensor:
    """``x W^T``: x [M, K] bf16, fp16 or f32 -> y [M, N] of the same dtype.

    Raises:
        KernelError: x of another width, dtype, device or layout.
    """
    if x.ndim != 2 or x.shape[1] != weight.in_features or x.stride(1) != 1 or x.device != weight.codes.device:
        raise KernelError(
            f"quant_matmul got x {list(x.shape)} with strides {x.stride()} on {x.device}; the weight takes "
            f"[M, {weight.in_features}] with a contiguous last axis on {weight.codes.device}"
        )
    if x.dtype not in _BASE:
        raise KernelError(f"quant_matmul got x {x.dtype}; pass bf16, fp16 or f32")
    if not runs_triton(x) or x.shape[0] > _MAX_ROWS:
        return F.linear(x, weight.dequantize(x.dtype))
    return _launch(x, weight)


def _launch(x: torch.Tensor, weight: QuantWeight) -> torch.Tensor:
    """Launch a program for each tile of features, rows and columns; then, where columns are split, add up."""
    rows, size = x.shape
    features = weight.codes.shape[0]
    y = torch.empty(rows, features, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    bits = 8 if weight.lows is None else 4
    # F32 is multiplied without tensor cores; larger tiles would spill registers.
    block_m = 16 if x.dtype == torch.float32 else min(_MAX_BLOCK_M, max(16, next_power_of_2(rows)))
    config = find_config(f"quant_matmul_int{bits}", dtype=dtype_name(x.dtype), block_m=block_m)
    split, num_splits = _split(size, features, x.device)
    partial = torch.empty(num_splits, rows, features, dtype=torch.float32, device=x.device) if num_splits > 1 else y
    has_asm = x.dtype != torch.float32 and not INTERPRETED and current_target().backend == "cuda"
    constants = {"ASM": _widen_asm(bits, x.dtype) if has_asm else "", "SPAN": _SPAN, "BLOCK_M": block_m}
    if weight.lows is not None:
        magic, base = _BASE[x.dtype]
        constants |= {"GROUP_SIZE": weight.group_size, "MAGIC": magic, "BASE": base}
    kernel = _int8_kernel if weight.lows is None else _int4_kernel
    kernel[(-(-features // config.block["BLOCK_N"]), -(-rows // block_m), num_splits)](
        x,
        weight.codes.view(torch.int16),
        weight.scales,
        x if weight.lows is None else weight.lows,
        partial,
        rows,
        features,
        size,
        split,
        x.stride(0),
        **constants,
        **config.keywords,
    )
    if num_splits > 1:
        _sum_splits(partial, y)
    return y


def _split(size: int, features: int, device: torch.device) -> tuple[int, int]:
    """(spans of a split, number of splits) of a weight [features, size]."""
    wanted = max(1, _BLOCKS_PER_PROCESSOR * num_processors(device) * _FEATURES_OF_BLOCK // features)
    num_spans = -(-size // _SPAN)
    spans = max(_MIN_SPANS, -(-num_spans // wanted))
    return spans, -(-num_spans // spans)


def _widen_asm(bits: int, dtype: torch.dtype) -> str:
    """PTX that widens two words, $0 .. $n = the planes of $n, each two neighbours in a register."""
    step = {
        (4, torch.bfloat16): "lop3.b32 {0}, t, 0x000f000f, 0x43004300, 0xea;",  # t & .. | ..
        (4, torch.float16): "lop3.b32 {0}, t, 0x000f000f, 0x64006400, 0xea;",
        # bf16 has room for 7 bits: 128 + those, less 128, or less 256 where the sign is set.
        (8, torch.bfloat16): "lop3.b32 u, t, 0x007f007f, 0x43004300, 0xea; mov.b32 v, 0x3f803f80; "
        "lop3.b32 t, t, 0x00800080, 0xc300c300, 0xea; fma.rn.bf16x2 {0}, u, v, t;",
        # 1152 + code, t & .. ^ .., less 1152
        (8, torch.float16): "lop3.b32 u, t, 0x00ff00ff, 0x64806480, 0x6a; mov.b32 v, 0x64806480; sub.f16x2 {0}, u, v;",
    }[bits, dtype]
    planes = 16 // bits
    steps = [f"shr.b32 t, ${planes}, {bits * plane}; {step.format(f'${plane}')}" for plane in range(planes)]
    return "{ .reg .b32 t, u, v; " + " ".join(steps) + " }"


@jit
def _int8_kernel(  # type: ignore[no-untyped-def]
    x_ptr,  # [M, K]
    words_ptr,  # [N, 64 B]
    scales_ptr,  # [N]
    lows_ptr,  # unused
    out_ptr,  # [splits, M, N]
    num_rows,
    num_features,
    size,
    split,
    x_stride,
    ASM: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Grid: blocks of features x blocks of rows x splits of K; a step takes a span of columns."""
    PLANE: tl.constexpr = SPAN // 2
    feature = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.arange(0, SPAN)
    num_spans = tl.cdiv(size, SPAN)
    first = tl.program_id(2) * split
    last = tl.minimum(first + split, num_spans)
    words_at = words_ptr + feature.to(tl.int64)[:, None] * (num_spans * PLANE) + tl.arange(0, PLANE)[None, :]
    x_at = x_ptr + row.to(tl.int64)[None, :] * x_stride + column[:, None]
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for span in range(first, last):
        inside = (feature < num_features)[:, None]
        words = tl.load(words_at + span * PLANE, mask=inside, other=0, eviction_policy="evict_first")
        x_inside = (row < num_rows)[None, :] & (span * SPAN + column < size)[:, None]
        x = tl.load(x_at + span * SPAN, mask=x_inside, other=0.0)  # [SPAN, M]
        low, high = _widen_int8(words, x_ptr, ASM)  # [N, PLANE] each
        codes = tl.reshape(tl.permute(tl.join(low, high), [0, 2, 1]), [BLOCK_N, SPAN])
        acc = tl.dot(codes, x, acc, input_precision="ieee")
    scale = tl.load(scales_ptr + feature, mask=feature < num_features, other=0.0).to(tl.float32)
    _store_tile(out_ptr, acc * scale[:, None], feature, row, num_features, num_rows)


@jit
def _int4_kernel(  # type: ignore[no-untyped-def]
    x_ptr,  # [M, K]
    words_ptr,  # [N, 32 B]
    scales_ptr,  # [N, K / GROUP_SIZE]
    lows_ptr,
    out_ptr,  # [splits, M, N]
    num_rows,
    num_features,
    size,
    split,
    x_stride,
    GROUP_SIZE: tl.constexpr,
    MAGIC: tl.constexpr,
    BASE: tl.constexpr,
    ASM: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Grid as above; a step takes a span of columns, at once where a group holds it, or else plane by plane."""
    PLANE: tl.constexpr = SPAN // 4
    STEP: tl.constexpr = SPAN if GROUP_SIZE >= SPAN and MAGIC > 0 else PLANE  # a span of f32 would not fit registers
    feature = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.arange(0, STEP)
    num_spans = tl.cdiv(size, SPAN)
    first = tl.program_id(2) * split
    last = tl.minimum(first + split, num_spans)
    words_at = words_ptr + feature.to(tl.int64)[:, None] * (num_spans * PLANE) + tl.arange(0, PLANE)[None, :]
    x_at = x_ptr + row.to(tl.int64)[None, :] * x_stride + column[:, None]
    num_groups = size // GROUP_SIZE
    feature_at = feature.to(tl.int64) * num_groups
    ones = tl.full([BLOCK_N, STEP], 1.0, tl.float32).to(x_ptr.dtype.element_ty)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for span in range(first, last):
        inside = (feature < num_features)[:, None]
        words = tl.load(words_at + span * PLANE, mask=inside, other=0, eviction_policy="evict_first")
        planes = _widen_int4(words, x_ptr, MAGIC, ASM)  # four [N, PLANE]
        if STEP == SPAN:
            pairs = tl.join(tl.join(planes[0], planes[1]), tl.join(planes[2], planes[3]))  # [N, PLANE, 2, 2]
            planes = (tl.reshape(tl.permute(pairs, [0, 3, 2, 1]), [BLOCK_N, SPAN]),)
        for step in tl.static_range(SPAN // STEP):
            k = span * SPAN + step * STEP
            x = tl.load(x_at + k, mask=(row < num_rows)[None, :] & (k + column < size)[:, None], other=0.0)
            group_at = feature_at + tl.minimum(k // GROUP_SIZE, num_groups - 1)  # past the last column x is 0
            scale = tl.load(scales_ptr + group_at, mask=feature < num_features, other=0.0).to(tl.float32)
            low = tl.load(lows_ptr + group_at, mask=feature < num_features, other=0.0).to(tl.float32)
            product = tl.dot(planes[step], x, input_precision="ieee")
            x_sum = tl.dot(ones, x, input_precision="ieee")
            acc += product * scale[:, None] + x_sum * (low - BASE * scale)[:, None]
    _store_tile(out_ptr, acc, feature, row, num_features, num_rows)


@inlined
def _widen_int8(words, x_ptr, ASM: tl.constexpr):  # type: ignore[no-untyped-def]
    """The two planes of codes in words [N, PLANE] int16, in the dtype of x."""
    dtype = x_ptr.dtype.element_ty
    if ASM == "":
        planes = ((words << 8) >> 8).to(tl.float32).to(dtype), (words >> 8).to(tl.float32).to(dtype)
    else:  # two words at once
        planes = tl.inline_asm_elementwise(ASM, "=r,=r,r", [words], dtype=(dtype, dtype), is_pure=True, pack=2)
    return planes


@inlined
def _widen_int4(words, x_ptr, MAGIC: tl.constexpr, ASM: tl.constexpr):  # type: ignore[no-untyped-def]
    """The four planes of codes in words [N, PLANE] int16, as base + code in the dtype of x."""
    dtype = x_ptr.dtype.element_ty
    if ASM == "":
        planes = (
            _put_code(words & 15, dtype, MAGIC),
            _put_code((words >> 4) & 15, dtype, MAGIC),
            _put_code((words >> 8) & 15, dtype, MAGIC),
            _put_code((words >> 12) & 15, dtype, MAGIC),
        )
    else:  # two words at once
        planes = tl.inline_asm_elementwise(
            ASM, "=r,=r,=r,=r,r", [words], dtype=(dtype, dtype, dtype, dtype), is_pure=True, pack=2
        )
    return planes


@inlined
def _put_code(codes, dtype: tl.constexpr, MAGIC: tl.constexpr):  # type: ignore[no-untyped-def]
    """base + code in ``dtype``, of codes in int16."""
    return codes.to(dtype) if MAGIC == 0 else (codes | MAGIC).to(dtype, bitcast=True)


@inlined
def _store_tile(out_ptr, tile, feature, row, num_features, num_rows):  # type: ignore[no-untyped-def]
    """Store ``tile: [N, M]`` as these rows and features of this program's split."""
    split_row = tl.program_id(2).to(tl.int64) * num_rows + row
    out_at = out_ptr + split_row[None, :] * num_features + feature[:, None]
    inside = (feature < num_features)[:, None] & (row < num_rows)[None, :]
    tl.store(out_at, tile.to(out_ptr.dtype.element_ty), mask=inside)


def _sum_splits(partial: torch.Tensor, y: torch.Tensor) -> None:
    """Write to ``y: [M, N]`` the sum of ``partial: [splits, M, N]`` over the splits, always in the same order."""
    config = find_config("quant_matmul_sum", dtype=dtype_name(y.dtype))
    grid = (-(-y.numel() // config.block["BLOCK"]),)
    _sum_splits_kernel[grid](partial, y, y.numel(), partial.shape[0], **config.keywords)


@jit
def _sum_splits_kernel(  # type: ignore[no-untyped-def]
    partial_ptr,  # [splits, M * N]
    y_ptr,  # [M * N]
    size,
    num_splits,
    BLOCK_S: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program adds up BLOCK columns, BLOCK_S splits at once: one wait for memory, not one a split."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, num_splits, BLOCK_S):
        split = start + tl.arange(0, BLOCK_S)
        inside = (split < num_splits)[:, None] & (at < size)[None, :]
        total += tl.sum(tl.load(partial_ptr + split.to(tl.int64)[:, None] * size + at, mask=inside, other=0.0), 0)
    tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), mask=at < size)
