"""RMSNorm against float64, against Hugging Face's rounding, and with its residual."""

from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from hopformer.errors import KernelError
from hopformer.kernels import add_rms_norm

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative Frobenius error of a tensor against a float64 one."""
    assert found.shape == expected.shape
    return float((found.double() - expected).norm() / expected.norm())


def norm64(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The formula in float64."""
    x = x.double()
    return weight.double() * x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 64), (17, 97), (3, 1), (2, 2048), (5, 3, 128)])
def test_norm_agrees_with_float64(path: str, dtype: torch.dtype, shape: tuple[int, ...], tolerances: Any) -> None:
    x = (torch.randn(shape) * 3).to(dtype)
    weight = torch.randn(shape[-1]).to(dtype)
    assert relative_error(add_rms_norm(x, weight, 1e-5), norm64(x, weight, 1e-5)) < tolerances[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 17])
def test_residual_is_added_rounded_and_returned(path: str, dtype: torch.dtype, rows: int, tolerances: Any) -> None:
    x, residual = torch.randn(rows, 97).to(dtype), torch.randn(rows, 97).to(dtype)
    weight = torch.randn(97).to(dtype)
    kept = residual.clone()
    y, total = add_rms_norm(x, weight, 1e-5, residual)
    assert torch.equal(total, x + residual)
    assert torch.equal(residual, kept)
    assert relative_error(y, norm64(total, weight, 1e-5)) < tolerances[dtype]


@pytest.mark.parametrize("rows", [1, 9])
def test_bf16_is_rounded_where_hugging_face_rounds(path: str, rows: int) -> None:
    x = torch.randn(rows, 2048).bfloat16()
    oracle = LlamaRMSNorm(2048, eps=1e-5).bfloat16()
    oracle.weight.data.copy_(torch.randn(2048))
    with torch.no_grad():
        different = (add_rms_norm(x, oracle.weight.data, 1e-5) != oracle(x)).float().mean()
    assert different < 0.002  # F32 sums in another order move a value across a rounding boundary now and then


def test_heads_in_a_slice_of_a_fused_projection_are_normed(path: str, tolerances: Any) -> None:
    fused = torch.randn(5, 12, 32)
    heads = fused[:, 2:6]
    weight = torch.randn(32)
    assert relative_error(add_rms_norm(heads, weight, 1e-6), norm64(heads, weight, 1e-6)) < tolerances[torch.float32]


def test_a_row_of_zeros_gives_zeros_and_no_rows_give_none(path: str) -> None:
    assert torch.equal(add_rms_norm(torch.zeros(2, 8), torch.ones(8), 1e-5), torch.zeros(2, 8))
    assert add_rms_norm(torch.zeros(0, 8), torch.ones(8), 1e-5).shape == (0, 8)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"weight": torch.ones(7)}, r"weight must be \[8\]"),
        ({"weight": torch.ones(8, dtype=torch.float16)}, "weight torch.float16"),
        ({"x": torch.ones(3, 16)[:, ::2]}, "last axis must be contiguous"),
        ({"residual": torch.ones(2, 8)}, r"residual torch.float32 \[2, 8\]"),
    ],
)
def test_what_does_not_fit_is_refused(path: str, broken: dict[str, torch.Tensor], message: str) -> None:
    arguments = {"x": torch.ones(3, 8), "weight": torch.ones(8)} | broken
    with pytest.raises(KernelError, match=message):
        add_rms_norm(eps=1e-5, **arguments)
