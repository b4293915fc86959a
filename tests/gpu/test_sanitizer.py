"""compute-sanitizer over one case of every kernel, where the CUDA toolkit has brought it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
# One test for each kernel, by the names that pytest gives them; a sanitizer makes each launch tens of times slower
CASES = {
    "decode": "test_attention.py::test_attention_agrees_with_float64_and_with_itself[drafts to verify, bf16]",
    "prefill": "test_attention.py::test_attention_agrees_with_float64_and_with_itself[bf16 prefill and decode]",
    "prefill by descriptor": "test_attention.py::test_pages_by_descriptor_agree_with_float64[100]",
    "rope_kv_write": "test_elementwise.py::test_int8_rows_are_within_half_a_code_of_float64[dtype1]",
    "rms_norm": "test_elementwise.py::test_norm_agrees_with_float64[shape1-dtype2]",
    "swiglu": "test_elementwise.py::test_swiglu_agrees_with_float64[3-1500-dtype2]",
    "gemv": "test_gemv.py::test_norm_linear_agrees_with_float64[70-97-True-3-dtype2]",
    "quant_matmul_int8": "test_quant_matmul.py::test_product_agrees_with_float64[5-256-17-8-128-dtype2]",
    "quant_matmul_int4": "test_quant_matmul.py::test_product_agrees_with_float64[129-14336-1-4-128-dtype2]",
    "sample": "test_sample.py::test_ids_are_those_of_the_twin[3.0-4097]",
}


@pytest.mark.slow
def test_every_case_is_a_test() -> None:
    """So that a renamed test is missed at once, and not only where there is a GPU."""
    tests = [f"tests/gpu/{name}" for name in CASES.values()]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "gpu", *tests]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    found = [line for line in done.stdout.splitlines() if "::" in line]
    assert found == tests, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.gpu
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
@pytest.mark.parametrize("kernel", list(CASES))
def test_a_kernel_does_nothing_that_a_sanitizer_reports(kernel: str, tool: str, device: torch.device) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    # torch's own pool hands out parts of large blocks, between which memcheck sees no border
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    tests = [sys.executable, "-m", "pytest", f"tests/gpu/{CASES[kernel]}", "-m", "gpu", "-x", "-o", "timeout=0"]
    done = subprocess.run(
        [sanitizer, "--tool", tool, "--error-exitcode", "86", *tests],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "1 passed" in done.stdout, done.stdout[-3000:]
