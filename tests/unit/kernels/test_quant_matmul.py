"""Weights of 8 and 4 bits: the codes, and the product with them against float64."""

from typing import Any

import pytest
import torch

from hopformer.errors import KernelError
from hopformer.kernels import QuantWeight, quant_matmul, quantize_weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bits", "group_size"), [(8, 128), (4, 128), (4, 32)])
@pytest.mark.parametrize(("rows", "features", "size"), [(1, 70, 256), (17, 5, 128), (65, 64, 384)])
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


def test_every_4_bit_code_in_every_place_comes_out(path: str) -> None:
    size, group_size = 64, 32
    codes = torch.randint(16, (8, size))
    codes[0], codes[1] = torch.arange(size) % 16, 15 - torch.arange(size) % 16
    halves = codes.unflatten(1, (-1, 2, group_size // 2)).to(torch.uint8)
    packed = (halves[:, :, 0] | halves[:, :, 1] << 4).flatten(1)
    scales = torch.tensor([[0.5, 2.0]]).expand(8, 2).contiguous()
    lows = torch.tensor([[-4.0, 1.0]]).expand(8, 2).contiguous()
    expected = codes * scales.repeat_interleave(group_size, 1) + lows.repeat_interleave(group_size, 1)
    weight = QuantWeight(packed, scales, lows, group_size)
    assert torch.equal(weight.dequantize(torch.float32), expected)
    assert torch.equal(quant_matmul(torch.eye(size), weight), expected.T)


def test_every_8_bit_code_comes_out(path: str) -> None:
    codes = torch.arange(-127, 128, dtype=torch.int8)[:, None].expand(255, 32).contiguous()
    weight = QuantWeight(codes, torch.full((255, 1), 0.25), None, 32)
    assert torch.equal(quant_matmul(torch.eye(32), weight), 0.25 * codes.T.float())


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
