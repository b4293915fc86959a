"""SwiGLU against float64."""

from typing import Any

import pytest
import torch

from hopformer.errors import KernelError
from hopformer.kernels import swiglu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "size"), [(1, 17), (3, 1500), (97, 64)])
def test_swiglu_agrees_with_float64(path: str, dtype: torch.dtype, rows: int, size: int, tolerances: Any) -> None:
    gate_up = (torch.randn(rows, 2 * size + 3) * 3).to(dtype)[:, : 2 * size]
    gate, up = gate_up[:, :size].double(), gate_up[:, size:].double()
    expected = gate / (1 + torch.exp(-gate)) * up
    found = swiglu(gate_up)
    assert found.dtype == dtype
    assert float((found.double() - expected).norm() / expected.norm()) < tolerances[dtype]


def test_far_gates_neither_overflow_nor_leave_a_trace(path: str) -> None:
    found = swiglu(torch.tensor([[-1e4, 1e4, 0.0, 2.0, 2.0, 2.0]]))
    assert torch.equal(found, torch.tensor([[0.0, 2e4, 0.0]]))


def test_no_rows_give_none(path: str) -> None:
    assert swiglu(torch.empty(0, 8)).shape == (0, 4)


@pytest.mark.parametrize("broken", [torch.zeros(2, 5), torch.zeros(4), torch.zeros(2, 8)[:, ::2]])
def test_what_is_no_pair_of_halves_is_refused(path: str, broken: torch.Tensor) -> None:
    with pytest.raises(KernelError, match=r"pass \[T, 2F\]"):
        swiglu(broken)
