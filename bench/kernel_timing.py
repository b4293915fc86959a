"""Timing of kernels: each trial alone, on cold caches, ours and the baselines in turns.

In a model a layer's weights, keys and values come from memory, since all the other layers' were read after them. So
before every trial the last-level cache is filled with something else.

A stopwatch takes the time of one run. On a CPU it is a clock. On a GPU it is a pair of events, and what fills the cache
also keeps the device busy until the host has launched everything, so that launching is not timed: inside a CUDA graph,
as in a decode step, it costs nothing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

_CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_DEFAULT_CACHE_BYTES = 32 << 20  # where the system does not say: a desktop's last level, or a server's share of it
_CACHE_FACTOR = 4  # of the cache's size is read or written: replacement is not in order, so once its size is too little
_LEAST_GPU_BYTES = 512 << 20  # some GPUs have a cache of 256 MiB behind the one that they report
_LONGEST_HEAD_START = 32  # passes over the buffer; a run that waits for the device cannot be launched ahead of it

Run = Callable[[], Any]


class Stopwatch(Protocol):
    """How a device's time is taken."""

    def warm_up(self, run: Run, seconds: float) -> None:
        """Run for at least so long, and at least twice."""
        ...

    def cool(self) -> None:
        """Fill the caches with something else."""
        ...

    def time(self, run: Run) -> float:
        """Seconds of one run on cold caches."""
        ...


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure.

    Attributes:
        trials_s: of each implementation of a case, without what cools the caches.
        warm_up_s: of each implementation before them.
        fewest, most: trials, whatever time they take.
    """

    trials_s: float = 0.4
    warm_up_s: float = 0.05
    fewest: int = 5
    most: int = 500


class CpuStopwatch:
    """A clock, and a buffer larger than the last-level cache that is read before it starts."""

    def __init__(self) -> None:
        self._buffer = torch.ones(_CACHE_FACTOR * last_level_cache_bytes() // 4)

    def warm_up(self, run: Run, seconds: float) -> None:
        """See Stopwatch."""
        end = time.perf_counter() + seconds
        run()
        run()
        while time.perf_counter() < end:
            run()

    def cool(self) -> None:
        """See Stopwatch."""
        self._buffer.amax()

    def time(self, run: Run) -> float:
        """See Stopwatch."""
        self.cool()
        start = time.perf_counter()
        run()
        return time.perf_counter() - start


class GpuStopwatch:
    """Events on the current stream, and a buffer larger than L2.

    The buffer is written, then another one read: lines that were only written would go back to memory during the run.
    """

    def __init__(self, device: torch.device) -> None:
        size = max(_LEAST_GPU_BYTES, _CACHE_FACTOR * torch.cuda.get_device_properties(device).L2_cache_size)
        self._written, self._read = (torch.ones(size // 4, device=device) for _ in range(2))
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self._num_passes = 1
        self.cool()
        self._pass_s = min(self._seconds(self.cool) for _ in range(5))

    def warm_up(self, run: Run, seconds: float) -> None:
        """See Stopwatch; also finds out for how long the device must be kept busy while ``run`` is launched."""
        end = time.perf_counter() + seconds
        launches: list[float] = []
        while len(launches) < 2 or time.perf_counter() < end:
            start = time.perf_counter()
            run()
            launches.append(time.perf_counter() - start)
            torch.cuda.synchronize()
        needed = int(1.5 * sorted(launches)[len(launches) // 2] / self._pass_s) + 1
        self._num_passes = min(max(self._num_passes, needed), _LONGEST_HEAD_START)

    def time(self, run: Run) -> float:
        """See Stopwatch."""
        for _ in range(self._num_passes):
            self.cool()
        return self._seconds(run)

    def cool(self) -> None:
        """See Stopwatch."""
        self._written.fill_(1.0)
        self._read.amax()

    def _seconds(self, run: Run) -> float:
        start, end = self._events
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def open_stopwatch(device: torch.device) -> Stopwatch:
    """The one for ``device``."""
    return GpuStopwatch(device) if device.type == "cuda" else CpuStopwatch()


def time_in_turns(runs: Sequence[Run], stopwatch: Stopwatch, effort: Effort) -> list[list[float]]:
    """Seconds of every trial, a list for each of ``runs``, all of one length: trial i of all was made in round i.

    Each round begins with another one, so that what a run leaves behind in the caches favours nobody.
    """
    for run in runs:
        stopwatch.warm_up(run, effort.warm_up_s)
    seconds: list[list[float]] = [[] for _ in runs]
    spent = 0.0
    num_rounds = 0
    while num_rounds < effort.fewest or (num_rounds < effort.most and spent < effort.trials_s * len(runs)):
        for turn in range(len(runs)):
            index = (turn + num_rounds) % len(runs)
            seconds[index].append(stopwatch.time(runs[index]))
            spent += seconds[index][-1]
        num_rounds += 1
    return seconds


def last_level_cache_bytes() -> int:
    """Of the first core, as Linux says; elsewhere a usual size."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = [0]
    for path in _CPU_CACHES.glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        sizes.append(int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text or 0))
    return max(sizes) or _DEFAULT_CACHE_BYTES
