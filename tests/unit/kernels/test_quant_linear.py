"""Projections of 8 and 4 bits, whoever multiplies: near the weight they were made from, exact in bias and shape."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from hopformer.errors import KernelError
from hopformer.kernels import QuantLinear, quant_linear, quantize_linear
from hopformer.kernels.linear import Linear
from hopformer.kernels.quant_matmul_cpu import LeftInt8, PackedInt4, PackedInt8, can_pack_int4, int8_steps

# Largest relative error of a product with a Gaussian weight: half a step of 127 or 15 over the range of a row or a
# group of up to 128, for 8 bits on a CPU with as much again from rounding x.
LARGEST_ERRORS = {8: 0.02, 4: 0.12}


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative Frobenius error of a tensor against a float64 one."""
    assert found.shape == expected.shape
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 96, 70), (3, 37, 101), (17, 160, 64), (101, 256, 40)])
def test_every_operation_is_near_that_of_the_weight_before_rounding(
    path: str, bits: int, dtype: torch.dtype, has_bias: bool, shape: tuple[int, int, int]
) -> None:
    tokens, in_features, out_features = shape
    weight = torch.randn(out_features, in_features).to(dtype)
    bias = torch.randn(out_features).to(dtype) if has_bias else None
    x, other = torch.randn(tokens, in_features).to(dtype), torch.randn(tokens, out_features).to(dtype)
    before = [tensor.clone() for tensor in (weight, x, other)]
    projection: Linear = quantize_linear(weight, bias, bits)
    bias_or_none = None if bias is None else bias.double()
    y = F.linear(x.double(), weight.double(), bias_or_none)
    norm_weight = torch.randn(in_features).to(dtype)
    normed = F.rms_norm(x.double(), (in_features,), norm_weight.double(), 1e-5)
    operations = [
        (projection(x), y),
        (projection.normed(x, norm_weight, 1e-5), F.linear(normed, weight.double(), bias_or_none)),
        (projection.add(x, other), other.double() + y),
        (projection.swish(x), F.silu(y)),
        (projection.mul(x, other), y * other.double()),
    ]
    for found, expected in operations:
        assert found.dtype == dtype and found.is_contiguous()
        assert relative_error(found, expected) < LARGEST_ERRORS[bits]
    assert all(torch.equal(now, then) for now, then in zip((weight, x, other), before, strict=True))
    assert (projection.in_features, projection.out_features) == (in_features, out_features)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_bias_is_added_as_it_is(path: str, bits: int) -> None:
    weight, bias = torch.randn(40, 64), torch.randn(40)
    without, with_bias = quantize_linear(weight, None, bits), quantize_linear(weight, bias, bits)
    x = torch.randn(3, 64)
    assert torch.equal(with_bias(x), without(x) + bias)
    assert with_bias.nbytes == without.nbytes + 40 * 4


@pytest.mark.parametrize("bits", [8, 4])
def test_a_step_without_rows_gives_none(path: str, bits: int) -> None:
    projection = quantize_linear(torch.randn(40, 64), None, bits)
    x, other = torch.empty(0, 64), torch.empty(0, 40)
    for y in (projection(x), projection.add(x, other), projection.swish(x), projection.mul(x, other)):
        assert y.shape == (0, 40)


@pytest.mark.parametrize(("bits", "packed"), [(8, PackedInt8), (4, PackedInt4)])
def test_a_cpu_multiplies_with_packed_weights(bits: int, packed: type) -> None:
    if not (int8_steps(torch.bfloat16) and can_pack_int4(torch.bfloat16)) or quant_linear.runs_triton(torch.empty(0)):
        pytest.skip("this build of torch has no operators to pack for, or Triton's interpreter is asked for")
    projection = quantize_linear(torch.randn(64, 64, dtype=torch.bfloat16), None, bits)
    assert isinstance(projection, QuantLinear)
    assert type(projection.multiply.__self__) is packed  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("amx", "size", "expected"), [(True, 1024, LeftInt8), (True, 64, PackedInt8), (False, 1024, PackedInt8)]
)
def test_large_weights_of_8_bits_stand_on_the_left_with_amx(
    amx: bool, size: int, expected: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not int8_steps(torch.bfloat16) or quant_linear.runs_triton(torch.empty(0)):
        pytest.skip("this build of torch has no operators to pack for, or Triton's interpreter is asked for")
    monkeypatch.setattr(quant_linear, "can_stand_left", lambda dtype: amx)
    projection = quantize_linear(torch.randn(size, size, dtype=torch.bfloat16), None, 8)
    assert isinstance(projection, QuantLinear)
    assert type(projection.multiply.__self__) is expected  # type: ignore[attr-defined]


@pytest.mark.parametrize(("bits", "name"), [(8, "int8_steps"), (4, "can_pack_int4")])
def test_where_the_operators_fail_the_plain_product_is_taken(
    bits: int, name: str, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(quant_linear, name, lambda dtype: 0)
    weight, x = torch.randn(40, 64), torch.randn(5, 64)
    projection = quantize_linear(weight, None, bits)
    assert isinstance(projection, QuantLinear) and isinstance(projection.multiply, partial)
    coded = projection.multiply.keywords["weight"]
    assert relative_error(projection(x), x.double() @ coded.dequantize(torch.float64).T) < 2e-6
    assert projection.nbytes == coded.nbytes


def test_a_slow_product_is_pointed_out_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(quant_linear, "int8_steps", lambda dtype: 0)
    monkeypatch.setattr(quant_linear, "runs_triton", lambda x: False)
    quant_linear._warn_of_slow_product.cache_clear()
    for _ in range(2):
        quantize_linear(torch.randn(8, 64), None, 8)
    assert caplog.text.count("no fast product of torch.float32 with weights of 8 bits") == 1


@pytest.mark.parametrize(
    ("in_features", "bits", "group_size"), [(256, 4, 128), (192, 4, 64), (96, 4, 32), (40, 4, 40), (40, 8, 40)]
)
def test_rows_that_no_group_divides_get_8_bits(
    in_features: int, bits: int, group_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("int8_steps", "can_pack_int4"):
        monkeypatch.setattr(quant_linear, name, lambda dtype: 0)
    projection = quantize_linear(torch.randn(8, in_features), None, bits)
    assert isinstance(projection, QuantLinear) and isinstance(projection.multiply, partial)
    coded = projection.multiply.keywords["weight"]
    assert coded.group_size == group_size
    assert (coded.lows is None) == (bits == 8 or in_features == 40)


def test_four_bits_are_half_the_bytes_of_eight(path: str) -> None:
    weight = torch.randn(128, 1024, dtype=torch.bfloat16)
    eight, four = (quantize_linear(weight, None, bits).nbytes for bits in (8, 4))
    assert weight.nbytes / 2 < eight < weight.nbytes * 0.51
    assert weight.nbytes / 4 < four < weight.nbytes / 3


@pytest.mark.parametrize(
    ("weight", "bias", "bits", "message"),
    [
        (torch.zeros(4, 64), None, 3, "3 bits; pass 8 or 4"),
        (torch.zeros(4), None, 8, r"\[4\]; pass a floating tensor"),
        (torch.zeros(4, 64), torch.zeros(5), 4, r"bias is torch.float32 \[5\]"),
    ],
)
def test_what_is_no_projection_is_refused(
    weight: torch.Tensor, bias: torch.Tensor | None, bits: int, message: str
) -> None:
    with pytest.raises(KernelError, match=message):
        quantize_linear(weight, bias, bits)
