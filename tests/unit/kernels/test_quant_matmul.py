"""Weights of 8 and 4 bits: the codes, and the product with them against float64."""

from typing import Any

import pytest
import torch

from hopformer.errors import KernelError
from hopformer.kernels import QuantWeight, quant_matmul, quantize_weight
from hopformer.kernels.quant_matmul import pack_codes

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "group_size"), [(8, 128), (4, 128), (4, 32), (4, 64), (4, 256)])
@pytest.mark.parametrize(
    ("rows", "features", "size"), [(1, 70, 2304), (16, 1, 256), (17, 5, 768), (64, 65, 1280), (97, 64, 512)]
)
def test_product_agrees_with_float64(
    path: str, dtype: torch.dtype, bits: int, group_size: int, rows: int, features: int, size: int, tolerances: Any
) -> None:
    weight = quantize_weight(torch.randn(features, size).to(dtype), bits, group_size)
    x = torch.randn(rows, size + 8).to(dtype)[:, :size]
    expected = x.double() @ weight.dequantize(torch.float64).T
    found = quant_matmul(x, weight)
    assert found.dtype == dtype
    assert float((found.double() - expected).norm() / expected.norm()) < tolerances[dtype]


@pytest.mark.parametrize(("bits", "largest_step"), [(8, 1 / 127), (4, 2 / 15)])
def test_a_weight_moves_by_half_a_step_at_most(bits: int, largest_step: float) -> None:
    weight = torch.rand(6, 256) * 2 - 1
    quantized = quantize_weight(weight, bits)
    assert (quantized.dequantize(torch.float32) - weight).abs().max() <= largest_step / 2 * 1.001


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_4_bit_code_in_every_place_comes_out(path: str, dtype: torch.dtype) -> None:
    size, group_size = 192, 32  # a span and a half
    codes = (torch.arange(size) * 3 % 64 // 4 + torch.arange(16)[:, None]) % 16
    scales = torch.tensor([[0.5, 2.0, 1.0, 0.25, 4.0, 1.0]], dtype=dtype).expand(16, 6).contiguous()
    lows = torch.tensor([[-4.0, 1.0, 0.0, -1.0, 2.0, -8.0]], dtype=dtype).expand(16, 6).contiguous()
    expected = codes * scales.repeat_interleave(group_size, 1) + lows.repeat_interleave(group_size, 1)
    weight = QuantWeight(pack_codes(codes.to(torch.uint8)), scales, lows, group_size)
    assert torch.equal(weight.dequantize(dtype), expected)
    assert torch.equal(quant_matmul(torch.eye(size, dtype=dtype), weight), expected.T)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_8_bit_code_comes_out(path: str, dtype: torch.dtype) -> None:
    size = 160
    codes = ((torch.arange(size) * 7 + torch.arange(255)[:, None]) % 255 - 127).to(torch.int8)
    weight = QuantWeight(pack_codes(codes), torch.full((255, 1), 0.25, dtype=dtype), None, size)
    assert torch.equal(weight.dequantize(dtype), 0.25 * codes.to(dtype))
    assert torch.equal(quant_matmul(torch.eye(size, dtype=dtype), weight), 0.25 * codes.T.to(dtype))


def test_columns_lie_where_the_layout_says() -> None:
    codes = torch.arange(130, dtype=torch.uint8)[None] % 16
    packed = pack_codes(codes)[0].tolist()
    assert len(packed) == 128
    for column in range(130):
        span, j = divmod(column, 128)
        h, j = divmod(j, 64)
        is_high, j = divmod(j, 32)
        assert packed[64 * span + 2 * j + h] >> 4 * is_high & 15 == column % 16
    columns = torch.arange(130).to(torch.int8)
    packed = pack_codes(columns[None])[0].tolist()
    assert [packed[2 * j + h] for h in (0, 1) for j in range(64)] == columns[:128].tolist()
    assert packed[128:132] == [-128, 0, -127, 0]


def test_a_split_is_summed_in_order_whatever_the_rows(path: str) -> None:
    x = torch.randn(33, 4096)
    for bits in (8, 4):
        weight = quantize_weight(torch.randn(9, 4096), bits)
        together = quant_matmul(x, weight)
        assert torch.equal(quant_matmul(x, weight), together)
        assert torch.allclose(quant_matmul(x[7:8], weight), together[7:8], rtol=1e-4, atol=1e-4)


def test_a_nan_beside_the_rows_is_not_read(path: str) -> None:
    x = torch.full((4, 96), torch.nan)[:3, :64]
    x.fill_(1.0)
    codes = torch.ones(5, 64, dtype=torch.uint8)
    ones = torch.ones(5, 2)
    assert torch.equal(quant_matmul(x, QuantWeight(pack_codes(codes), ones, ones, 32)), torch.full((3, 5), 128.0))


def test_many_rows_are_multiplied_by_the_widened_weight(path: str) -> None:
    x, weight = torch.randn(257, 128), quantize_weight(torch.randn(7, 128), 4)
    assert torch.equal(quant_matmul(x, weight), x @ weight.dequantize(torch.float32).T)


def test_no_rows_give_none(path: str) -> None:
    assert quant_matmul(torch.ones(0, 128), quantize_weight(torch.ones(3, 128), 8)).shape == (0, 3)


def test_rows_of_one_value_are_exact() -> None:
    for bits in (4, 8):
        weight = torch.tensor([0.0, 1.0, -3.0])[:, None].expand(3, 128).contiguous()
        assert torch.allclose(quantize_weight(weight, bits).dequantize(torch.float32), weight, rtol=1e-6, atol=1e-6)


def test_bytes_are_those_of_codes_and_scales() -> None:
    weight = torch.randn(16, 256, dtype=torch.bfloat16)
    assert quantize_weight(weight, 8).nbytes == 16 * 256 + 16 * 2
    assert quantize_weight(weight, 4).nbytes == 16 * 128 + 16 * 2 * 2 * 2


@pytest.mark.parametrize(("bits", "group_size", "message"), [(3, 128, "3 bits"), (4, 48, "is 48"), (4, 512, "is 512")])
def test_what_cannot_be_quantized_is_refused(bits: int, group_size: int, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        quantize_weight(torch.zeros(4, 256), bits, group_size)


def test_activations_of_another_width_are_refused(path: str) -> None:
    with pytest.raises(KernelError, match=r"x \[2, 64\].*\[M, 128\]"):
        quant_matmul(torch.zeros(2, 64), quantize_weight(torch.zeros(4, 128), 8))


def test_activations_of_another_type_are_refused(path: str) -> None:
    with pytest.raises(KernelError, match=r"x torch\.float64; pass bf16"):
        quant_matmul(torch.zeros(2, 128).double(), quantize_weight(torch.zeros(4, 128), 8))
