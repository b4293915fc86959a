"""compute-sanitizer over one case of every kernel, where the CUDA toolkit has brought it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
# One case a kernel, by the names that pytest selects with
CASES = {
    "test_attention.py": "bf16 and prefill and decode and agrees",
    "test_gemv.py": "bfloat16",
    "test_quant_matmul.py": "bfloat16",
    "test_sample.py": "ties",
    "test_elementwise.py": "bfloat16",
}


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
@pytest.mark.parametrize("file", list(CASES))
def test_a_kernel_does_nothing_that_a_sanitizer_reports(file: str, tool: str, device: torch.device) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    tests = [sys.executable, "-m", "pytest", str(ROOT / "tests" / "gpu" / file), "-m", "gpu", "-k", CASES[file], "-x"]
    done = subprocess.run(
        [sanitizer, "--tool", tool, "--error-exitcode", "86", *tests],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-3000:]
