"""The CPU's matrix product with weights of 8 or 4 bits, through operators internal to torch that no other file names.

    x [T, K]    y [T, N]    bf16 or f32
    8 bits    W[n, k] = scale[n] * code, codes -127 .. 127. The product is one of integers, so that each row of x is
              rounded as well, to 127 steps on either side of zero (63 on CPUs without VNNI, whose sums saturate).
    4 bits    W[n, k] = scale[n, g] * code + middle[n, g], codes -8 .. 7, g = k // 32. Scales and middles are
              bf16, and so is a few rows' x: the operator takes 50 times as long in f32, and 4 bits are coarser.

PackedInt8 and PackedInt4 hold a weight in the operators' own layout and nothing else of it; LeftInt8 holds plain codes.
Before they are used, `int8_steps`, `can_stand_left` and `can_pack_int4` run them on a small case: a torch without the
operators, or with another layout, gets what quant_matmul.py does on a CPU.
"""

from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F

from .linear import has_amx, multiplies_bf16

INT4_GROUP_SIZE = 32  # the operator's smallest; 64 and 128 are as fast and lose more
# Rows from which 4-bit weights are dequantised first. Per 1,000 weights the operator takes 12 ns a row; dequantising
# takes 540 ns, and then 4 ns a row (5632 x 2048 on one Zen 5 core).
DEQUANTIZED_FROM_ROWS = 72
# Weights are dequantised this many elements at a time, in F32 and then in bf16: enough that two threads share the work
# at little cost, few enough for the cache (256 rows of 2048).
_STRIP_ELEMENTS = 1 << 19
# Weights are rounded this many rows at a time, so that their F32 copies stay small beside a layer.
_CHUNK_ROWS = 1024
# The operator packs 4-bit codes in blocks of 64 or 32 rows, and what is left at the end otherwise: rows are filled up.
_ROW_MULTIPLE = 64
# With AMX the packed product reads codes at 8 to 15 GB/s for one row, as a shared Xeon has it, plain ones on the left
# at 12 to 15; with 64 rows both take as long, with 512 the packed product is up to 1.5x as quick. Decode counts more.
_INT8_LEFT_UP_TO_ROWS = 32
_SMALLEST_SCALE = 1e-10  # what a row or a group of zeros is divided by
_DTYPES = (torch.bfloat16, torch.float32)  # of activations


class _Int8:
    """What the two products with 8 bits share: how rows of x are rounded."""

    __slots__ = ("_row_scales", "_steps", "nbytes")

    def __init__(self, codes: torch.Tensor, row_scales: torch.Tensor, steps: int) -> None:
        """codes: int8 [N, K], row_scales: f32 [N]. ``steps`` that x is rounded to on either side of zero."""
        self._steps = steps
        self._row_scales = row_scales
        self.nbytes = codes.nbytes + row_scales.nbytes

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """``x W^T``: [T, K] -> [T, N]."""
        if x.shape[0] == 0:
            return x.new_empty(0, self._row_scales.shape[0])
        if x.shape[0] == 1:  # decode: fewer and smaller operations than for rows with a scale each
            low, high = torch.aminmax(x)
            scale = max(-low.item(), high.item(), _SMALLEST_SCALE) / self._steps
            codes = torch.add(_code_offset(self._steps), x.float(), alpha=1 / scale).to(torch.uint8)
            return self._multiply(codes, scale, x.dtype)
        # A scale as narrow as x costs no accuracy: the codes are found for the rounded one. At worst it is 2^-9 too
        # small, and 127 / (1 - 2^-9) + 128.5 is still below 256.
        scales = (x.abs().amax(1, keepdim=True) / self._steps).clamp_(min=_SMALLEST_SCALE)  # [T, 1]
        codes = (x.float() / scales).add_(_code_offset(self._steps)).to(torch.uint8)
        return self._multiply(codes, 1.0, x.dtype).mul_(scales)

    def _multiply(self, codes: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
        """codes: uint8 [T, K], each ``steps`` + 1 more than x / ``scale`` -> ``dtype`` [T, N]."""
        raise NotImplementedError


class PackedInt8(_Int8):
    """A weight of 8 bits, packed by oneDNN."""

    __slots__ = ("_narrow", "_packed", "_row_zeros")

    def __init__(self, weight: torch.Tensor, steps: int) -> None:
        """weight: [N, K] floating. ``steps``: `int8_steps`."""
        codes, row_scales = round_to_int8(weight)
        super().__init__(codes, row_scales, steps)
        self._narrow = _capability() == "AVX512"
        self._row_zeros = torch.zeros(weight.shape[0], dtype=torch.int64)
        self._packed = torch.ops.onednn.qlinear_prepack(codes, None)

    def _multiply(self, codes: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
        packed, scales, zeros = self._packed, self._row_scales, self._row_zeros
        wide = dtype if self._narrow else torch.float32  # with AVX2 oneDNN is quick at F32 results only
        y = _multiply_int8()(codes, scale, self._steps + 1, packed, scales, zeros, None, 1.0, 0, wide, "none", [], "")
        return y.to(dtype)


class LeftInt8(_Int8):
    """A weight of 8 bits whose plain codes stand on the left in products with few rows, for CPUs with AMX."""

    __slots__ = ("_codes",)

    def __init__(self, weight: torch.Tensor) -> None:
        """weight: [N, K] floating."""
        self._codes, row_scales = round_to_int8(weight)
        super().__init__(self._codes, row_scales, 127)

    def _multiply(self, codes: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
        signed = codes.bitwise_xor_(128).view(torch.int8)  # 128 less
        if len(signed) <= _INT8_LEFT_UP_TO_ROWS:
            sums = torch._int_mm(self._codes, signed.t()).t()  # [T, N] int32
        else:
            sums = torch._int_mm(signed, self._codes.t())
        return (sums * (self._row_scales * scale)).to(dtype).contiguous()


class PackedInt4:
    """A weight of 4 bits in groups of 32, packed for torch's own operator.

    The operator widens the weight once for each row of x. So for many rows, strips of the weight are widened here, one
    after the other, and multiplied while they are in cache.
    """

    __slots__ = ("_block_rows", "_num_rows", "_packed", "_scales_and_middles", "nbytes")

    def __init__(self, weight: torch.Tensor) -> None:
        """weight: [N, K] floating, K a multiple of 32."""
        packed, tables = [], []
        for chunk in weight.split(_CHUNK_ROWS):
            filled = F.pad(chunk, (0, 0, 0, -chunk.shape[0] % _ROW_MULTIPLE))
            codes, scales, middles = round_to_int4(filled)
            packed.append(_pack_int4()(codes.add_(8).int(), 1))
            tables.append(torch.stack([scales, middles], dim=2).transpose(0, 1))
        self._packed = torch.cat(packed)  # [N, K / 2] uint8; in truth [N / block, K, block / 2]
        self._scales_and_middles = torch.cat(tables, dim=1)  # [K / 32, N, 2]
        self._num_rows = weight.shape[0]
        self._block_rows = int4_block_rows()
        self.nbytes = self._packed.nbytes + self._scales_and_middles.nbytes

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """``x W^T``: [T, K] -> [T, N]."""
        multiply = self._dequantized_matmul if x.shape[0] >= DEQUANTIZED_FROM_ROWS else self._matmul
        y = multiply(x).to(x.dtype)
        return y if y.shape[1] == self._num_rows else y[:, : self._num_rows].contiguous()

    def _matmul(self, x: torch.Tensor) -> torch.Tensor:
        """By the operator, with the rows that were filled up."""
        narrow = x.to(torch.bfloat16).contiguous()
        return _multiply_int4()(narrow, self._packed, INT4_GROUP_SIZE, self._scales_and_middles)

    def _dequantized_matmul(self, x: torch.Tensor) -> torch.Tensor:
        """Strip by strip, with the rows that were filled up."""
        x = x.to(torch.bfloat16 if multiplies_bf16() else torch.float32)
        num_rows, size = self._packed.shape[0], x.shape[1]
        strip_rows = self._block_rows * max(1, _STRIP_ELEMENTS // (size * self._block_rows))
        y = x.new_empty(x.shape[0], num_rows)
        for start in range(0, num_rows, strip_rows):
            end = min(start + strip_rows, num_rows)
            torch.mm(x, self._widen(start, end, x.dtype), out=y[:, start:end])
        return y

    def _widen(self, start: int, end: int, dtype: torch.dtype) -> torch.Tensor:
        """The rows ``start .. end`` of the weight, whole blocks of them, as columns: ``dtype`` [K, rows]."""
        rows = self._block_rows
        codes = self._packed[start:end].view(-1, self._packed.shape[1] * 2, rows // 2)  # [blocks, K, rows / 2]
        values = torch.empty(*codes.shape[:2], rows)  # F32 is quicker than bf16 here, whose operations convert twice
        values[:, :, : rows // 2] = codes & 15
        values[:, :, rows // 2 :] = codes >> 4
        table = self._scales_and_middles[:, start:end].unflatten(1, (-1, rows))  # [G, blocks, rows, 2]
        scales, middles = table.float().permute(3, 1, 0, 2).contiguous().unsqueeze(3)  # [blocks, G, 1, rows]
        middles.sub_(scales, alpha=8)  # codes are stored as 0 .. 15
        groups = values.unflatten(1, (-1, INT4_GROUP_SIZE))  # [blocks, G, 32, rows]
        torch.addcmul(middles, groups, scales, out=groups)
        return values.transpose(0, 1).to(dtype, memory_format=torch.contiguous_format).flatten(1)


def round_to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [N, K] floating -> codes int8 [N, K] and scales f32 [N]."""
    codes = torch.empty_like(weight, dtype=torch.int8)
    scales = weight.new_empty(weight.shape[0], dtype=torch.float32)
    for start in range(0, weight.shape[0], _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        values = weight[rows].float()
        scales[rows] = (values.abs().amax(1) / 127).clamp_(min=_SMALLEST_SCALE)
        codes[rows] = (values / scales[rows, None]).round_()
    return codes, scales


def round_to_int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """weight [N, K] floating -> codes int8 [N, K], and scales and middles bf16 [N, K / 32]."""
    groups = weight.float().unflatten(1, (-1, INT4_GROUP_SIZE))  # [N, G, 32]
    lows, highs = groups.aminmax(dim=2, keepdim=True)
    # Codes are found for the rounded scale and middle, so that rounding these costs little.
    scales = ((highs - lows) / 15).clamp_(min=_SMALLEST_SCALE).bfloat16()  # [N, G, 1]
    middles = (lows + 8 * scales.float()).bfloat16()
    codes = groups.sub(middles.float()).div_(scales.float()).round_().clamp_(-8, 7).to(torch.int8)
    return codes.flatten(1), scales.squeeze(2), middles.squeeze(2)


@cache
def int8_steps(dtype: torch.dtype) -> int:
    """Steps on either side of zero to which PackedInt8 rounds x so that this CPU adds up exactly; 0 if it never does.

    Without VNNI two products are added in 16 bits: 2 * 255 * 127 is too much for these, 2 * 127 * 127 is not.
    """
    if dtype in _DTYPES and _capability() in ("AVX512", "AVX2"):
        for steps in (127, 63):
            if _gives_what_codes_say(partial(PackedInt8, steps=steps), _from_int8, dtype):
                return steps
    return 0


@cache
def can_stand_left(dtype: torch.dtype) -> bool:
    """Whether this CPU has AMX and this torch multiplies plain codes as LeftInt8 expects."""
    return dtype in _DTYPES and has_amx() and _gives_what_codes_say(LeftInt8, _from_int8, dtype)


@cache
def can_pack_int4(dtype: torch.dtype) -> bool:
    """Whether this torch packs and multiplies as PackedInt4 expects, tried once on 3 x 96 x 64 in both its ways."""
    if dtype not in _DTYPES or int4_block_rows() == 0:
        return False
    return _gives_what_codes_say(PackedInt4, _from_int4, dtype)


@cache
def int4_block_rows() -> int:
    """Rows that the operator packs together: 64 with AVX-512, 32 with AVX2, and 0 where it does something else."""
    codes = (torch.arange(64 * 32) * 5 // 3 % 16).view(64, 32)  # every row and column another one
    try:
        packed = _pack_int4()(codes.int(), 1).view(-1)
    except (AttributeError, NotImplementedError, RuntimeError):
        return 0
    for rows in (64, 32):
        low, high = (
            codes.to(torch.uint8).view(-1, 2, rows // 2, 32).transpose(2, 3).unbind(1)
        )  # [N / rows, 32, rows / 2]
        if torch.equal(packed, (low | high << 4).flatten()):
            return rows
    return 0


def _gives_what_codes_say(
    pack: Callable[[torch.Tensor], PackedInt8 | LeftInt8 | PackedInt4],
    widen: Callable[[torch.Tensor], torch.Tensor],
    dtype: torch.dtype,
) -> bool:
    """Whether a product with a small packed weight, by few rows and by many, is near that with its codes' values."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 64, generator=generator).to(dtype)
    x = torch.randn(DEQUANTIZED_FROM_ROWS, 64, generator=generator).to(dtype)
    x[0] = weight[0] = 1  # the largest codes side by side
    expected = x.double() @ widen(weight).T
    try:
        packed = pack(weight)
        found = [packed.matmul(x[:1]), packed.matmul(x[:3]), packed.matmul(x)]
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    # Rounding x to 8 bits moves a sum of 64 by 1%; what is wrong moves it by its own size.
    return all(
        float((y.double() - expected[: y.shape[0]]).norm() / expected[: y.shape[0]].norm()) < 0.05 for y in found
    )


def _from_int8(weight: torch.Tensor) -> torch.Tensor:
    codes, scales = round_to_int8(weight)
    return codes.double() * scales.double()[:, None]


def _from_int4(weight: torch.Tensor) -> torch.Tensor:
    codes, scales, middles = round_to_int4(weight)
    groups = codes.double().unflatten(1, (-1, INT4_GROUP_SIZE))
    return (groups * scales.double()[:, :, None] + middles.double()[:, :, None]).flatten(1)


def _capability() -> str:
    """The vector instructions that torch uses here."""
    return torch.backends.cpu.get_cpu_capability()


@cache
def _code_offset(steps: int) -> torch.Tensor:
    """What makes the conversion to an unsigned byte, which drops the fraction, round to nearest."""
    return torch.tensor(steps + 1.5)


@cache
def _multiply_int8() -> Callable[..., torch.Tensor]:
    return torch.ops.onednn.qlinear_pointwise.default


@cache
def _pack_int4() -> Callable[..., torch.Tensor]:
    """(codes 0 .. 15 int32 [N, K], ignored) -> uint8 [N, K / 2]."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu.default


@cache
def _multiply_int4() -> Callable[..., torch.Tensor]:
    """(x, packed, group size, scales and middles [K / 32, N, 2]) -> x W^T."""
    return torch.ops.aten._weight_int4pack_mm_for_cpu.default
