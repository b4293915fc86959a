"""Which implementation a tensor gets: Triton for CUDA and ROCm, PyTorch for the rest.

Tensors of the meta device, which have a shape and no memory, launch Triton kernels too: into the hands of whichever
driver is active, which may be one that only compiles (bench/offline_driver.py).

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


__all__ = [
    "HAS_TRITON",
    "INTERPRETED",
    "current_target",
    "dtype_name",
    "inlined",
    "jit",
    "next_power_of_2",
    "num_processors",
    "runs_triton",
    "tl",
]

# Multiprocessors of devices that cannot be asked: an interpreter's, few enough to be quick and enough to split, and an
# H100's where nothing is launched
_INTERPRETED_PROCESSORS = 4
_ABSENT_PROCESSORS = 132


def inlined(function: Any) -> Any:
    """`jit` for a function that kernels call, which the interpreter runs as plain Python: a millisecond less a call."""
    return function if INTERPRETED else jit(function)


def runs_triton(x: torch.Tensor) -> bool:
    """Whether an operation on ``x`` launches a Triton kernel; otherwise it runs the PyTorch path."""
    return HAS_TRITON and (INTERPRETED or x.device.type in ("cuda", "meta"))


def current_target() -> Any:
    """What the active driver compiles for: backend ("cuda" or "hip"), arch and warp_size."""
    return triton.runtime.driver.active.get_current_target()


def num_processors(device: torch.device) -> int:
    """How many multiprocessors ``device`` has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return _INTERPRETED_PROCESSORS if INTERPRETED else _ABSENT_PROCESSORS


def dtype_name(dtype: torch.dtype) -> str:
    """ "bfloat16" for torch.bfloat16, as launch_configs/ names it."""
    return str(dtype).removeprefix("torch.")


def next_power_of_2(n: int) -> int:
    """The smallest power of two >= n, the size of a Triton block that covers n elements."""
    return 1 << max(0, n - 1).bit_length()
