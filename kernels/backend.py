"""Which implementation a tensor gets: Triton for CUDA and ROCm, PyTorch for the rest.

With TRITON_INTERPRET=1 in the environment, which Triton itself reads when a kernel is defined, CPU tensors run the
Triton kernels in Triton's interpreter. Triton is published for Linux only; elsewhere `jit` and `tl` are stand-ins that
let the kernel files be imported, and every tensor runs the PyTorch path.
"""

from typing import Any

import torch

try:
    import triton
    import triton.language as tl
    from triton import jit

    HAS_TRITON = True
    INTERPRETED = bool(triton.knobs.runtime.interpret)
except ImportError:
    HAS_TRITON = False
    INTERPRETED = False

    class _Absent:
        """Stands in for triton.language in annotations and defaults."""

        def __getattr__(self, name: str) -> "_Absent":
            return self

        def __call__(self, *args: Any) -> "_Absent":
            return self

    tl = _Absent()

    def jit(kernel: Any) -> Any:
        """Leave ``kernel`` undecorated: nothing launches it."""
        return kernel


__all__ = ["HAS_TRITON", "INTERPRETED", "inlined", "jit", "next_power_of_2", "runs_triton", "tl"]


def inlined(function: Any) -> Any:
    """`jit` for a function that kernels call, which the interpreter runs as plain Python: a millisecond less a call."""
    return function if INTERPRETED else jit(function)


def runs_triton(x: torch.Tensor) -> bool:
    """Whether an operation on ``x`` launches a Triton kernel; otherwise it runs the PyTorch path."""
    return HAS_TRITON and (INTERPRETED or x.device.type == "cuda")


def next_power_of_2(n: int) -> int:
    """The smallest power of two >= n, the size of a Triton block that covers n elements."""
    return 1 << max(0, n - 1).bit_length()
