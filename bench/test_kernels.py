"""The cases of `hopformer bench kernels`, ours only, for pytest-benchmark: how a change compares with a saved run.

    pytest bench --benchmark-only --benchmark-autosave
    pytest bench --benchmark-only --benchmark-compare -k decode_attention

On a CPU every round starts with cold caches, as in the command. On a GPU a round is timed from the host and ends when
the device is done, so launching counts: compare such figures with each other only.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hopformer.bench.kernel_case import KernelCase
from hopformer.bench.kernel_cases import make_cases, make_settings
from hopformer.bench.kernel_timing import open_stopwatch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDS, WARM_UP_ROUNDS = 30, 3
CASES = make_cases(make_settings((), DEVICE, torch.bfloat16), ())


@pytest.fixture(scope="session")
def cool() -> Callable[[], None]:
    """What empties the caches."""
    return open_stopwatch(DEVICE).cool


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kernel}-{case.name}-{case.model}")
def test_kernel(case: KernelCase, benchmark: Any, cool: Callable[[], None]) -> None:
    benchmark.group = case.kernel
    benchmark.extra_info.update(
        shape=case.shape, dtype=case.dtype, num_bytes=case.work.num_bytes, num_operations=case.work.num_operations
    )
    with torch.inference_mode():
        run = case.build().ours.run

        def run_to_the_end() -> None:
            run()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()

        benchmark.pedantic(run_to_the_end, setup=cool, rounds=ROUNDS, warmup_rounds=WARM_UP_ROUNDS)
