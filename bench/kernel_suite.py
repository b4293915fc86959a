"""`hopformer bench kernels`: every case built, checked, timed in turns with its baselines, and dropped again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from .. import __version__
from ..errors import UsageError
from ..kernels.backend import runs_triton
from .ceilings import Ceilings
from .contender import Absent
from .kernel_case import CaseSizes, Implementation, KernelCase
from .kernel_cases import make_cases, make_settings
from .kernel_ceilings import highest, open_meter
from .kernel_rows import KernelConditions, KernelRow, Measured, make_kernel_rows
from .kernel_timing import Effort, Stopwatch, open_stopwatch, time_in_turns
from .machine import Machine

Progress = Callable[[int, int], None]  # cases done, cases in all


@dataclass(frozen=True, slots=True)
class KernelPlan:
    """What to measure.

    Attributes:
        kernels: names of kernel_cases.KERNELS; none for those that the engine uses on the device.
        models: names of random_model.SHAPES; none for the device's default.
        dtype: of activations, weights, keys and values.
        num_threads: of PyTorch on a CPU.
        with_contexts: also decode by context, for the plot.
        sizes: of the cases; None for the device's.
    """

    device: torch.device
    dtype: torch.dtype
    num_threads: int
    kernels: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    effort: Effort = field(default_factory=Effort)
    with_contexts: bool = False
    sizes: CaseSizes | None = None

    def cases(self) -> list[KernelCase]:
        """All of them.

        Raises:
            UsageError: a name or a number that means nothing.
        """
        for flag, value, most in (("--threads", self.num_threads, 1024), ("--seconds", self.effort.trials_s, 3600)):
            if not 0 < value <= most:
                raise UsageError(f"{flag} is {value:g}; it must be more than 0 and at most {most}")
        settings = make_settings(self.models, self.device, self.dtype, self.sizes)
        return make_cases(settings, self.kernels, self.with_contexts)

    def conditions(self) -> KernelConditions:
        """What every row says."""
        path = "Triton" if runs_triton(torch.empty(0, device=self.device)) else "PyTorch"
        return KernelConditions(Machine.here(self.device), __version__, path, self.num_threads)


def bench_kernels(plan: KernelPlan, progress: Progress | None = None) -> list[KernelRow]:
    """Carry out ``plan``: case after case, ours before its baselines.

    Raises:
        UsageError: the plan means nothing.
    """
    cases = plan.cases()
    conditions = plan.conditions()  # before anything runs: a commit made meanwhile is not what was measured
    found: list[tuple[KernelCase, list[Measured], list[Absent]]] = []
    ceilings: list[Ceilings] = []
    with on_device(plan.device, plan.num_threads):
        stopwatch, meter = open_stopwatch(plan.device), open_meter(plan.device, plan.dtype)
        for index, case in enumerate(cases):
            ceilings.append(meter.measure())
            found.append((case, *_measure(case, stopwatch, plan.effort)))
            if progress is not None:
                progress(index + 1, len(cases))
    top = highest(ceilings)
    return [
        row for case, measured, absent in found for row in make_kernel_rows(conditions, case, top, measured, absent)
    ]


def _measure(case: KernelCase, stopwatch: Stopwatch, effort: Effort) -> tuple[list[Measured], list[Absent]]:
    """One case: ours first among those that ran, then who could not."""
    built = case.build()
    baselines = built.make_baselines()
    present = [built.ours, *(one for one in baselines if isinstance(one, Implementation))]
    absent = [one for one in baselines if isinstance(one, Absent)]
    results = [one.as_ours(one.run()).float() for one in present]
    seconds = time_in_turns([one.run for one in present], stopwatch, effort)
    measured = [
        compare(one, times, result, results[0]) for one, times, result in zip(present, seconds, results, strict=True)
    ]
    return measured, absent


def compare(one: Implementation, seconds: list[float], result: torch.Tensor, ours: torch.Tensor) -> Measured:
    """``one``'s trials, with how far its result is from ours, which is said where it is too far."""
    if one.tolerance is None:
        return Measured(one.name, seconds)
    difference = float((result - ours).norm() / ours.norm().clamp(min=1e-30))
    if difference <= one.tolerance:
        return Measured(one.name, seconds, difference)
    return Measured(one.name, seconds, difference, f"its result lies {difference:.2g} from ours: not the same work")


@contextmanager
def on_device(device: torch.device, num_threads: int) -> Iterator[None]:
    """For a while no autograd, ``device`` as the GPU that Triton launches on, and so many threads of PyTorch's."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        with torch.inference_mode(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            yield
    finally:
        torch.set_num_threads(before)
