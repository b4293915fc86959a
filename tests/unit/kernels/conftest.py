"""What the kernel tests share: the two paths, the tolerances, and bf16 made right in Triton's interpreter.

Every numerical test runs on CPU tensors twice: through the PyTorch path, and, in a process started with
TRITON_INTERPRET=1, through the Triton kernels in Triton's interpreter (marker `interpreter`).
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from hopformer.kernels.backend import INTERPRETED

# Largest relative Frobenius error against float64 on the same rounded inputs (attention: of one head of one sequence).
TOLERANCES = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 3e-3}


@pytest.fixture(params=["pytorch", pytest.param("triton", marks=pytest.mark.interpreter)])
def path(request: pytest.FixtureRequest) -> str:
    """Which implementation the test exercises; the other one needs another process."""
    if (request.param == "triton") != INTERPRETED:
        pytest.skip("Triton runs in a process with TRITON_INTERPRET=1, the PyTorch path in one without")
    return str(request.param)


@pytest.fixture(scope="session")
def tolerances() -> dict[torch.dtype, float]:
    """The one table of tolerances."""
    return TOLERANCES


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time() -> None:
    """Seed torch, so that a tolerance holds today because it held yesterday."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan() -> Iterator[None]:
    """Make torch.empty return NaN, so that an output or a workspace that is read before it is written shows."""
    torch.set_deterministic_debug_mode("error")
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.set_deterministic_debug_mode("default")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Keep to one thread: the tensors are too small to share, and on a busy host threads wait long for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=INTERPRETED)
def _bf16_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round F32 to bf16 to nearest even, and multiply bf16 matrices as the numbers they are.

    Triton 3.6 to 3.9 hold bf16 as uint16 in the interpreter: a conversion from F32 truncates, and tl.dot multiplies bit
    patterns (triton issue 11584, declined). So does other arithmetic, which our kernels do in F32 only.
    """
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    original = {name: getattr(InterpreterBuilder, name) for name in ("cast_impl", "create_fp_to_fp", "create_dot")}

    def widen(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def convert(name: str) -> Callable[..., Any]:
        def method(self: Any, source: Any, target: Any, *rest: Any) -> Any:
            if source.dtype.scalar != tl.float32 or target.scalar != tl.bfloat16:
                return original[name](self, source, target, *rest)
            bits = np.ascontiguousarray(source.data).view(np.uint32)
            rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
            return TensorHandle(np.where(np.isnan(source.data), np.uint16(0x7FC0), rounded), tl.bfloat16)

        return method

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return original["create_dot"](self, widen(a), widen(b), *rest)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", convert("cast_impl"))
    monkeypatch.setattr(InterpreterBuilder, "create_fp_to_fp", convert("create_fp_to_fp"))
    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)
