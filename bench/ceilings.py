"""Ceilings: how fast this machine reads memory and multiplies, measured beside the models in every round.

A percentage of a ceiling says how much of the machine a step uses, also on a machine whose speed changes between two
rounds, as a shared one's does.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..kernels import pack_linear

# Larger than the last-level caches of all but a few servers (tens to hundreds of MiB), read once a trial
READ_BYTES = 1 << 29
# A projection as in a prefill: 512 tokens through 4096 x 4096, enough for full speed on a few dozen cores
MATMUL_TOKENS, MATMUL_SIZE = 512, 4096
TRIALS = 3


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Bytes read and operations a second."""

    bytes_per_s: float
    operations_per_s: float


class CeilingMeter:
    """The memory that the measurements need, allocated once.

    Args:
        dtype: of the matrices that are multiplied.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._data = torch.ones(READ_BYTES // 4)
        self._x = torch.ones(MATMUL_TOKENS, MATMUL_SIZE, dtype=dtype)
        self._projection = pack_linear(torch.ones(MATMUL_SIZE, MATMUL_SIZE, dtype=dtype))

    def measure(self) -> Ceilings:
        """The best of a few trials each: a ceiling is what the machine can do, not what it does on average."""
        operations = 2 * MATMUL_TOKENS * MATMUL_SIZE * MATMUL_SIZE
        return Ceilings(
            bytes_per_s=self._data.nbytes / _shortest(self._read),
            operations_per_s=operations / _shortest(lambda: self._projection(self._x)),
        )

    def _read(self) -> torch.Tensor:
        return self._data.amax()  # one comparison an element in vectors: it waits for memory alone


def _shortest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of TRIALS."""
    seconds = []
    for _ in range(TRIALS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
