"""`hopformer bench kernels --sweep`: tries launch configurations on this GPU; the fastest go to the committed table.

For each row of the table that the chosen cases speak for, every candidate runs every case. Those that do not compile,
or whose result is another, are out; the few fastest are then timed against the one in the table, in turns.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ..errors import KernelError, UsageError
from ..kernels.backend import HAS_TRITON
from ..kernels.launch_configs import FOLDER, LaunchConfig, Table, as_config, family, override, read_table
from .kernel_case import Implementation, KernelCase, Tuning
from .kernel_suite import KernelPlan, Progress, compare, on_device
from .kernel_timing import Effort, Run, Stopwatch, open_stopwatch, time_in_turns

Use = Mapping[str, Any]  # a row's "use": constexprs, num_warps, num_stages
Timings = Sequence[float | None]  # seconds of each candidate on one case; None: it did not run, or ran wrongly

SPACES: Mapping[str, Mapping[str, tuple[int | bool, ...]]] = {
    "decode": {
        "BLOCK_N": (16, 32, 64, 128),
        "TRANSPOSED": (False, True),
        "num_warps": (2, 4, 8),
        "num_stages": (2, 3, 4, 5),
    },
    "prefill": {
        "BLOCK_M": (64, 128),
        "BLOCK_N": (32, 64, 128),
        "DESCRIPTORS": (False, True),
        "num_warps": (4, 8),
        "num_stages": (2, 3, 4, 5),
    },
    "gemv": {"BLOCK_N": (4, 8, 16), "BLOCK_K": (256, 512, 1024), "num_warps": (2, 4, 8), "num_stages": (1,)},
    "quant_matmul_int8": {"BLOCK_N": (32, 64, 128), "num_warps": (4, 8), "num_stages": (2, 3, 4, 5)},
    "quant_matmul_int4": {"BLOCK_N": (32, 64, 128), "num_warps": (4, 8), "num_stages": (2, 3, 4, 5)},
    "sample": {"BLOCK": (1024, 2048, 4096, 8192), "CANDIDATES": (2048,), "num_warps": (8, 16, 32), "num_stages": (1,)},
}
_FINALISTS = 6
_WORTH = 0.98  # of the present time: a gain of less is within what a median repeats, and keeps the table as it is
_FIRST_LOOK = Effort(trials_s=0.0, warm_up_s=0.0, fewest=5)


def sweep(plan: KernelPlan, progress: Progress | None = None) -> tuple[Path, list[str]]:
    """Measure, and write the device family's table.

    Returns:
        The file, and a line for each row that was looked for.

    Raises:
        UsageError: the device is not a GPU, or none of the kernels has a configuration to choose.
    """
    if plan.device.type != "cuda":
        raise UsageError(
            "--sweep needs a GPU, and the device is the CPU; run it on the GPU whose table it should write"
        )
    cases = [case for case in plan.cases() if case.tuning is not None and case.tuning.table in SPACES]
    if not cases:
        raise UsageError(f"none of {', '.join(plan.kernels)} has a launch configuration to sweep")
    tunings = list(dict.fromkeys(case.tuning for case in cases if case.tuning is not None))
    lines: list[str] = []
    with on_device(plan.device, plan.num_threads):
        table, path = read_table(family()), FOLDER / f"{family()}.json"
        stopwatch = open_stopwatch(plan.device)
        for index, tuning in enumerate(tunings):
            own = [case for case in cases if case.tuning == tuning]
            present = find_row(table, tuning)
            best, gain = best_config(own, tuning, present, stopwatch, plan.effort)
            table = merge(table, tuning, best)
            lines.append(f"{tuning.table} {dict(tuning.conditions)}: {dict(best)}, {gain:.2f} of the time before")
            if progress is not None:
                progress(index + 1, len(tunings))
    path.write_text(format_table(table), encoding="utf-8")
    return path, lines


def candidates(table: str) -> list[Use]:
    """Every combination of a kernel's space."""
    space = SPACES[table]
    return [dict(zip(space, values, strict=True)) for values in product(*space.values())]


def find_row(table: Table, tuning: Tuning) -> Use:
    """What the table uses now for what ``tuning`` says, where unsaid conditions do not hold.

    Raises:
        KernelError: no row fits.
    """
    given = dict(tuning.conditions)
    for row in table.get(tuning.table, []):
        if all(given.get(name) == value for name, value in row["for"].items()):
            return row["use"]
    raise KernelError(f"the table has no row of {tuning.table} for {given}; add one before a sweep")


def shortlist(timings: Sequence[Timings], count: int) -> list[int]:
    """The ``count`` fastest candidates over all cases, best first.

    A candidate's score is the geometric mean, over the cases, of its time as a multiple of the best one's; one that
    failed anywhere is out.

    Args:
        timings: for each case, the seconds of every candidate.
    """
    scores = {}
    for index in range(len(timings[0])):
        times = [case[index] for case in timings]
        if any(time is None for time in times):
            continue
        best = [min(time for time in case if time is not None) for case in timings]
        logs = [log(time / least) for time, least in zip(times, best, strict=True) if time is not None]
        scores[index] = exp(sum(logs) / len(logs))
    return sorted(scores, key=lambda index: scores[index])[:count]


def choose(timings: Sequence[Timings]) -> tuple[int, float]:
    """(the candidate to use, its time as a share of candidate 0's), candidate 0 being the one in use.

    Another one is chosen only if it is faster by more than the noise.
    """
    best = shortlist(timings, 1)
    if not best or any(case[0] is None for case in timings):
        return (best[0] if best else 0), 1.0
    logs = []
    for case in timings:
        chosen, present = case[best[0]], case[0]
        assert chosen is not None and present is not None
        logs.append(log(chosen / present))
    share = exp(sum(logs) / len(logs))
    return (best[0], share) if share < _WORTH else (0, 1.0)


def merge(table: Table, tuning: Tuning, use: Use) -> Table:
    """The table with a row for ``tuning``: in place of the one for the same conditions, or before all others.

    What the table gives now is left alone.
    """
    rows = table.get(tuning.table, [])
    if rows and find_row(table, tuning) == use:
        return table
    row = {"for": dict(tuning.conditions), "use": dict(use)}
    others = [other for other in rows if other["for"] != row["for"]]
    place = next((at for at, other in enumerate(rows) if other["for"] == row["for"]), 0)
    return {**table, tuning.table: [*others[:place], row, *others[place:]]}


def format_table(table: Table) -> str:
    """JSON with a line for each row, as the tables are committed."""
    parts = []
    for kernel, rows in table.items():
        lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        parts.append(f' "{kernel}": [\n{lines}\n ]')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def best_config(
    cases: Sequence[KernelCase], tuning: Tuning, present: Use, stopwatch: Stopwatch, effort: Effort
) -> tuple[Use, float]:
    """The configuration for ``cases``, which are all ``tuning``'s, and its time as a share of the ``present`` one's."""
    uses = [present, *(use for use in candidates(tuning.table) if use != present)]
    looks = [_time_apart(case, tuning.table, uses, stopwatch) for case in cases]
    finalists = [uses[index] for index in shortlist(looks, _FINALISTS) if index]
    uses = [present, *finalists]
    finals = [_time_together(case, tuning.table, uses, stopwatch, effort) for case in cases]
    chosen, share = choose(finals)
    return uses[chosen], share


def _time_apart(case: KernelCase, table: str, uses: Sequence[Use], stopwatch: Stopwatch) -> list[float | None]:
    """A first look: seconds of each, or None where it does not compile or gives another result."""
    ours = case.build().ours
    expected = ours.as_ours(ours.run()).float()
    found: list[float | None] = []
    for use in uses:
        run = _with_config(ours, table, as_config(use))
        if not _runs_right(replace(ours, run=run), expected):
            found.append(None)
            continue
        found.append(median(time_in_turns([run], stopwatch, _FIRST_LOOK)[0]))
    return found


def _time_together(
    case: KernelCase, table: str, uses: Sequence[Use], stopwatch: Stopwatch, effort: Effort
) -> list[float | None]:
    """Median seconds of each, in turns."""
    ours = case.build().ours
    runs = [_with_config(ours, table, as_config(use)) for use in uses]
    return [median(seconds) for seconds in time_in_turns(runs, stopwatch, effort)]


def _with_config(ours: Implementation, table: str, config: LaunchConfig) -> Run:
    def run() -> Any:
        with override(table, config):
            return ours.run()

    return run


def _runs_right(one: Implementation, expected: torch.Tensor) -> bool:
    """Whether it runs here, and gives what the present configuration gives."""
    try:
        result = one.as_ours(one.run()).float()
        return compare(one, [], result, expected).note is None  # which waits for the device
    except _launch_failures():
        return False


def _launch_failures() -> tuple[type[Exception], ...]:
    """What a configuration that does not fit the device raises."""
    if not HAS_TRITON:
        return (RuntimeError,)
    from triton.errors import TritonError

    return (TritonError, RuntimeError)
