"""The fused products of few rows, against float64 and against the operations they fuse."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hopformer.errors import KernelError
from hopformer.kernels import MAX_ROWS, add_rms_norm, linear_add, norm_linear, norm_swiglu, swiglu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 33, 1), (1, 70, 97), (2, 18, 2048), (3, 9, 1024), (4, 33, 1100)]  # T, N, E
EPS = 1e-5


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative Frobenius error of a tensor against a float64 one."""
    assert found.shape == expected.shape
    return float((found.double() - expected).norm() / expected.norm())


def strided(*shape: int) -> torch.Tensor:
    """Random numbers with three more in memory behind each row."""
    return torch.randn(*shape[:-1], shape[-1] + 3)[..., : shape[-1]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("rows", "features", "size"), SHAPES)
def test_norm_linear_agrees_with_float64(
    path: str, dtype: torch.dtype, has_bias: bool, rows: int, features: int, size: int, tolerances: Any
) -> None:
    x, weight = (strided(rows, size) * 3).to(dtype), strided(features, size).to(dtype)
    norm_weight = torch.randn(size).to(dtype)
    bias = (torch.randn(features) * 9).to(dtype) if has_bias else None
    # The norm is rounded, as the specification says, before the product.
    expected = add_rms_norm(x, norm_weight, EPS).double() @ weight.double().T + (0 if bias is None else bias.double())
    found = norm_linear(x, norm_weight, EPS, weight, bias)
    assert found.dtype == dtype
    assert relative_error(found, expected) < tolerances[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("rows", "features", "size"), SHAPES)
def test_linear_add_agrees_with_float64(
    path: str, dtype: torch.dtype, has_bias: bool, rows: int, features: int, size: int, tolerances: Any
) -> None:
    x, weight = strided(rows, size).to(dtype), strided(features, size).to(dtype)
    residual = (strided(rows, features) * 9).to(dtype)
    bias = torch.randn(features).to(dtype) if has_bias else None
    kept = residual.clone()
    expected = residual.double() + x.double() @ weight.double().T + (0 if bias is None else bias.double())
    found = linear_add(x, weight, residual, bias)
    assert found.dtype == dtype
    assert torch.equal(residual, kept)
    assert relative_error(found, expected) < tolerances[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "features", "size"), SHAPES)
def test_norm_swiglu_is_nearer_to_float64_than_its_parts(
    path: str, dtype: torch.dtype, rows: int, features: int, size: int, tolerances: Any
) -> None:
    x, gate_up = strided(rows, size).to(dtype), (strided(2 * features, size) / size**0.5).to(dtype)
    norm_weight = torch.randn(size).to(dtype)
    products = add_rms_norm(x, norm_weight, EPS).double() @ gate_up.double().T
    gate, up = products.chunk(2, 1)
    expected = gate / (1 + torch.exp(-gate)) * up
    error = relative_error(norm_swiglu(x, norm_weight, EPS, gate_up), expected)
    error_of_parts = relative_error(swiglu(products.to(dtype)), expected)
    if path == "triton":
        assert error < tolerances[dtype]
        assert dtype == torch.float32 or error < error_of_parts
    else:
        assert error < error_of_parts * 1.1 + tolerances[torch.float32]


@pytest.mark.parametrize("rows", range(1, MAX_ROWS + 1))
def test_bf16_agrees_with_the_parts_where_they_round(path: str, rows: int) -> None:
    x, norm_weight = torch.randn(rows, 1024).bfloat16(), torch.randn(1024).bfloat16()
    weight, residual = torch.eye(1024)[::8].bfloat16(), torch.randn(rows, 128).bfloat16()
    normed = add_rms_norm(x, norm_weight, EPS)
    different = (norm_linear(x, norm_weight, EPS, weight) != normed[:, ::8]).float().mean()
    assert different < 0.01  # F32 sums in another order move a square mean across a rounding boundary now and then
    assert torch.equal(linear_add(x, weight, residual), residual + x[:, ::8])


def test_rows_do_not_touch_each_other(path: str) -> None:
    x, weight = torch.randn(4, 130), torch.randn(21, 130)
    together = linear_add(x, weight, torch.zeros(4, 21))
    for row in range(4):
        alone = linear_add(x[row : row + 1], weight, torch.zeros(1, 21))
        assert torch.allclose(together[row], alone[0], rtol=1e-5, atol=1e-5)


def test_a_nan_behind_the_rows_is_not_read(path: str) -> None:
    poisoned = torch.full((12, 40), torch.nan)
    x, weight, residual = poisoned[:3, :17], poisoned[3:8, :17], poisoned[8:11, :5]
    x.fill_(1.0), weight.fill_(2.0), residual.fill_(3.0)
    assert torch.equal(linear_add(x, weight, residual), torch.full((3, 5), 37.0))


def test_no_rows_and_no_features_give_none(path: str) -> None:
    assert norm_linear(torch.ones(0, 8), torch.ones(8), EPS, torch.ones(3, 8)).shape == (0, 3)
    assert norm_swiglu(torch.ones(2, 8), torch.ones(8), EPS, torch.ones(0, 8)).shape == (2, 0)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"x": torch.ones(MAX_ROWS + 1, 8)}, f"T <= {MAX_ROWS}"),
        ({"x": torch.ones(8)}, r"x torch.float32 \[8\]"),
        ({"x": torch.ones(2, 8).double()}, "x torch.float64"),
        ({"x": torch.ones(2, 16)[:, ::2]}, "x with strides"),
        ({"x": torch.ones(2, 8).half()}, "weight torch.float32 on cpu; x is torch.float16"),
        ({"weight": torch.ones(6, 7)}, r"takes \[N, 8\]"),
        ({"weight": torch.ones(6, 16)[:, ::2]}, "weight with strides"),
        ({"norm_weight": torch.ones(7)}, r"norm_weight \[7\]; x and weight take \[8\]"),
        ({"bias": torch.ones(5)}, r"bias \[5\]; x and weight take \[6\]"),
        ({"bias": torch.ones(6, device="meta")}, "bias torch.float32 on meta"),
    ],
)
def test_what_does_not_fit_is_refused(path: str, broken: dict[str, torch.Tensor], message: str) -> None:
    arguments: dict[str, Any] = {"x": torch.ones(2, 8), "norm_weight": torch.ones(8), "weight": torch.ones(6, 8)}
    with pytest.raises(KernelError, match=message):
        norm_linear(eps=EPS, **(arguments | broken))


def test_a_residual_or_halves_that_do_not_fit_are_refused(path: str) -> None:
    x, weight = torch.ones(2, 8), torch.ones(5, 8)
    with pytest.raises(KernelError, match=r"residual \[2, 4\]; x and weight take \[2, 5\]"):
        linear_add(x, weight, torch.ones(2, 4))
    with pytest.raises(KernelError, match=r"gate_up \[5, 8\]"):
        norm_swiglu(x, torch.ones(8), EPS, weight)


def test_the_parts_are_the_specification(path: str) -> None:
    x, norm_weight, weight = torch.randn(2, 64), torch.randn(64), torch.randn(10, 64)
    parts = F.linear(add_rms_norm(x, norm_weight, EPS), weight)
    assert torch.allclose(norm_linear(x, norm_weight, EPS, weight), parts, rtol=1e-5, atol=1e-5)
    assert torch.allclose(norm_swiglu(x, norm_weight, EPS, weight), swiglu(parts), rtol=1e-5, atol=1e-5)
