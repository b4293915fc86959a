"""The two ceilings that a kernel's time is held against, on the device that runs it.

On a CPU they are those of ceilings.py: the fastest read of memory, and the matmul of a prefill. On a GPU they are a
copy on the device, read and write counted, and a large square matmul, as GPU kernels' are usually quoted.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from .ceilings import CeilingMeter, Ceilings
from .kernel_case import Work

COPY_BYTES = 1 << 30  # twenty times the largest L2 there is
MATMUL_SIZE = 8192
TRIALS = 5


class Meter(Protocol):
    """What measures the ceilings."""

    def measure(self) -> Ceilings:
        """The best of a few trials each."""
        ...


class GpuCeilingMeter:
    """The memory that the measurements need, allocated once.

    Args:
        dtype: of the matrices that are multiplied.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
        self._target = torch.empty_like(self._source)
        self._a = torch.randn(MATMUL_SIZE, MATMUL_SIZE, device=device).to(dtype)
        self._product = torch.empty_like(self._a)

    def measure(self) -> Ceilings:
        """See Meter."""
        copy_s = min(self._seconds(lambda: self._target.copy_(self._source)) for _ in range(TRIALS))
        matmul_s = min(self._seconds(lambda: torch.mm(self._a, self._a.t(), out=self._product)) for _ in range(TRIALS))
        return Ceilings(2 * COPY_BYTES / copy_s, 2 * MATMUL_SIZE**3 / matmul_s)

    @staticmethod
    def _seconds(run: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def open_meter(device: torch.device, dtype: torch.dtype) -> Meter:
    """The one for ``device``."""
    return GpuCeilingMeter(device, dtype) if device.type == "cuda" else CeilingMeter(dtype)


def highest(measured: Sequence[Ceilings]) -> Ceilings:
    """Of each the highest: a ceiling is what the machine can do, in the best moment of a run."""
    return Ceilings(max(one.bytes_per_s for one in measured), max(one.operations_per_s for one in measured))


def least_seconds(work: Work, ceilings: Ceilings) -> tuple[float, float]:
    """(by memory, by matmul): what the work takes at each ceiling; the longer of them is the roofline's."""
    return work.num_bytes / ceilings.bytes_per_s, work.num_operations / ceilings.operations_per_s
