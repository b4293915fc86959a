"""The fused products of few rows on a GPU: against float64, and the same bits twenty times."""

from collections.abc import Callable

import pytest
import torch

from hopformer.kernels import MAX_ROWS, add_rms_norm, linear_add, norm_linear, norm_swiglu, swiglu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("uninitialised_memory_is_nan"),
    pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation"),
    pytest.mark.filterwarnings("ignore:Deterministic behavior was enabled"),  # of cuBLAS
]

REPEATS = 20  # a race shows in one of them, or as another result
EPS = 1e-5
# Largest relative Frobenius error against float64 on the rounded inputs, as in the unit tests
TOLERANCES = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 3e-3}
DTYPES = list(TOLERANCES)
# N, E: odd sizes, one program, and the projections of an 8B model
SHAPES = [(33, 1), (70, 97), (18, 2048), (9, 1100), (6144, 4096), (4096, 14336), (512, 16384)]


def same_every_time(call: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What ``call`` returns, and returns again."""
    first = call()
    for _ in range(REPEATS - 1):
        assert torch.equal(call(), first)
    return first


def strided(*shape: int, device: torch.device) -> torch.Tensor:
    """Random numbers with sixteen more in memory behind each row."""
    return torch.randn(*shape[:-1], shape[-1] + 16, device=device)[..., : shape[-1]]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative Frobenius error of a tensor against a float64 one."""
    assert found.shape == expected.shape
    return float((found.double() - expected).norm() / expected.norm())


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", range(1, MAX_ROWS + 1))
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("features", "size"), SHAPES)
def test_norm_linear_agrees_with_float64(
    device: torch.device, dtype: torch.dtype, rows: int, has_bias: bool, features: int, size: int
) -> None:
    x, weight = (strided(rows, size, device=device) * 3).to(dtype), strided(features, size, device=device).to(dtype)
    norm_weight = torch.randn(size, device=device).to(dtype)
    bias = (torch.randn(features, device=device) * 9).to(dtype) if has_bias else None
    # The norm is rounded, as the specification says, before the product; its own error is test_elementwise.py's.
    normed = add_rms_norm(x, norm_weight, EPS).double()
    expected = normed @ weight.double().T + (0 if bias is None else bias.double())
    found = same_every_time(lambda: norm_linear(x, norm_weight, EPS, weight, bias))
    assert relative_error(found, expected) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", range(1, MAX_ROWS + 1))
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("features", "size"), SHAPES)
def test_linear_add_agrees_with_float64(
    device: torch.device, dtype: torch.dtype, rows: int, has_bias: bool, features: int, size: int
) -> None:
    x, weight = strided(rows, size, device=device).to(dtype), strided(features, size, device=device).to(dtype)
    residual = (strided(rows, features, device=device) * 9).to(dtype)
    bias = torch.randn(features, device=device).to(dtype) if has_bias else None
    kept = residual.clone()
    expected = residual.double() + x.double() @ weight.double().T + (0 if bias is None else bias.double())
    found = same_every_time(lambda: linear_add(x, weight, residual, bias))
    assert torch.equal(residual, kept)
    assert relative_error(found, expected) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", range(1, MAX_ROWS + 1))
@pytest.mark.parametrize(("features", "size"), [*SHAPES[:4], (14336, 4096)])
def test_norm_swiglu_is_nearer_to_float64_than_its_parts(
    device: torch.device, dtype: torch.dtype, rows: int, features: int, size: int
) -> None:
    x = strided(rows, size, device=device).to(dtype)
    gate_up = (strided(2 * features, size, device=device) / size**0.5).to(dtype)
    norm_weight = torch.randn(size, device=device).to(dtype)
    normed = add_rms_norm(x, norm_weight, EPS).double()
    gate, up = (normed @ gate_up.double().T).chunk(2, 1)
    expected = gate / (1 + torch.exp(-gate)) * up
    found = same_every_time(lambda: norm_swiglu(x, norm_weight, EPS, gate_up))
    assert relative_error(found, expected) < TOLERANCES[dtype]
    parts = swiglu((normed @ gate_up.double().T).to(dtype))
    assert dtype == torch.float32 or relative_error(found, expected) < relative_error(parts, expected)
