"""Which implementation runs, and that the kernels can be imported where Triton is not installed."""

import subprocess
import sys

import pytest
import torch

from hopformer.kernels.backend import INTERPRETED, next_power_of_2, runs_triton


def test_cpu_tensors_run_triton_only_in_the_interpreter(path: str) -> None:
    assert runs_triton(torch.zeros(1)) is INTERPRETED
    assert INTERPRETED is (path == "triton")


@pytest.mark.parametrize(("n", "expected"), [(1, 1), (2, 2), (3, 4), (64, 64), (80, 128)])
def test_a_block_is_the_next_power_of_two(n: int, expected: int) -> None:
    assert next_power_of_2(n) == expected


def test_kernels_work_without_triton() -> None:
    """In a process where importing Triton fails, as on a machine that has none."""
    script = """
import sys
sys.modules["triton"] = None
import torch
from hopformer.kernels import add_rms_norm, backend, swiglu
assert not backend.HAS_TRITON and not backend.runs_triton(torch.zeros(1))
assert swiglu(torch.ones(2, 6)).shape == (2, 3)
assert add_rms_norm(torch.ones(2, 6), torch.ones(6), 1e-5).shape == (2, 6)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
