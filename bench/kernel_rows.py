"""Rows of `hopformer bench kernels`: one implementation of one case, and the arithmetic from seconds to rates.

Ours and the baselines are charged with the same bytes and operations, those of the case. The ceiling of a row is the
roofline's at its intensity: of the times that its bytes and its operations take at the two ceilings the longer one.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

import numpy as np

from .ceilings import Ceilings
from .contender import Absent
from .kernel_case import KernelCase
from .kernel_ceilings import least_seconds
from .machine import Machine

Bound = Literal["memory", "matmul"]


@dataclass(frozen=True, slots=True)
class KernelConditions:
    """What all rows of a run share.

    Attributes:
        hopformer: its version.
        path: "Triton" on a GPU, "PyTorch" for the CPU path.
    """

    machine: Machine
    hopformer: str
    path: str
    num_threads: int


@dataclass(frozen=True, slots=True)
class KernelRow:
    """One implementation of one case. Where a baseline was absent, `note` says why and the measures are None.

    Attributes:
        runs: the implementation; "hopformer" is ours.
        time_us: median over the trials, with the 10th and the 90th percentile.
        gb_per_s, tflop_per_s: 10^9 bytes and 10^12 additions and multiplications a second.
        bound: what limits the case: memory or matmul.
        ceiling_gb_per_s, ceiling_tflop_per_s: of the machine: the highest measured in the run, before each case.
        percent_of_ceiling: of the roofline's time, of the median.
        ours_over_it: how many times as fast as this implementation ours was, median over the rounds.
        difference: of its result from ours, relative Frobenius norm; None where results cannot be compared.
        note: why a baseline is absent, or that it computes something else.
    """

    conditions: KernelConditions
    kernel: str
    case: str
    model: str
    shape: str
    dtype: str
    runs: str
    num_bytes: int
    num_operations: int
    context: int | None = None
    trials: int | None = None
    time_us: float | None = None
    time_us_p10: float | None = None
    time_us_p90: float | None = None
    gb_per_s: float | None = None
    tflop_per_s: float | None = None
    bound: Bound | None = None
    ceiling_gb_per_s: float | None = None
    ceiling_tflop_per_s: float | None = None
    percent_of_ceiling: float | None = None
    ours_over_it: float | None = None
    difference: float | None = None
    note: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Flat: the machine, the conditions, the measures."""
        fields = asdict(self)
        conditions = fields.pop("conditions")
        return {"bench": "kernels", **conditions.pop("machine"), **conditions, **fields}


@dataclass(frozen=True, slots=True)
class Measured:
    """One implementation's trials in a case.

    Attributes:
        seconds: of each trial; trial i of all implementations was made in round i.
        difference: see KernelRow.
        note: None if its result is ours to rounding.
    """

    name: str
    seconds: Sequence[float]
    difference: float | None = None
    note: str | None = None


def make_kernel_rows(
    conditions: KernelConditions,
    case: KernelCase,
    ceilings: Ceilings,
    measured: Sequence[Measured],
    absent: Sequence[Absent],
) -> list[KernelRow]:
    """A row for each of ``measured``, the first of which is ours, then one for each absent."""
    ours = measured[0].seconds
    rows = [_row(conditions, case, ceilings, one, None if one is measured[0] else ours) for one in measured]
    return [*rows, *(KernelRow(conditions, **_about(case), runs=one.name, note=one.reason) for one in absent)]


def _row(
    conditions: KernelConditions,
    case: KernelCase,
    ceilings: Ceilings,
    one: Measured,
    ours: Sequence[float] | None,
) -> KernelRow:
    """``ours`` is None for our own row."""
    low, typical, high = (float(value) for value in np.percentile(one.seconds, (10, 50, 90)))
    by_memory, by_matmul = least_seconds(case.work, ceilings)
    return KernelRow(
        conditions,
        **_about(case),
        runs=one.name,
        trials=len(one.seconds),
        time_us=1e6 * typical,
        time_us_p10=1e6 * low,
        time_us_p90=1e6 * high,
        gb_per_s=case.work.num_bytes / typical / 1e9,
        tflop_per_s=case.work.num_operations / typical / 1e12,
        bound="memory" if by_memory >= by_matmul else "matmul",
        ceiling_gb_per_s=ceilings.bytes_per_s / 1e9,
        ceiling_tflop_per_s=ceilings.operations_per_s / 1e12,
        percent_of_ceiling=100 * max(by_memory, by_matmul) / typical,
        ours_over_it=None if ours is None else median(s / own for s, own in zip(one.seconds, ours, strict=True)),
        difference=one.difference,
        note=one.note,
    )


def _about(case: KernelCase) -> dict[str, Any]:
    return {
        "kernel": case.kernel,
        "case": case.name,
        "model": case.model,
        "shape": case.shape,
        "dtype": case.dtype,
        "num_bytes": case.work.num_bytes,
        "num_operations": case.work.num_operations,
        "context": case.context,
    }
