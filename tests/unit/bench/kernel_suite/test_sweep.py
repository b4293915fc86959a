"""What a sweep decides, given times; the times themselves need a GPU."""

import json
import os
import subprocess
import sys

import pytest
import torch

from hopformer.bench.kernel_case import Built, Implementation, KernelCase, Tuning, Work
from hopformer.bench.kernel_timing import Effort, Run
from hopformer.bench.sweep import SPACES, best_config, candidates, choose, find_row, format_table, merge, shortlist
from hopformer.errors import KernelError
from hopformer.kernels.launch_configs import FAMILIES, FOLDER, Table, as_config, find_config, override

SLOW = {"BLOCK_N": 32, "num_warps": 4, "num_stages": 2}
FAST = {"BLOCK_N": 64, "num_warps": 4, "num_stages": 3}
BF16 = Tuning("decode", (("dtype", "bfloat16"), ("block_d", 128)))
GIVEN: Table = {
    "decode": [{"for": {"dtype": "float32"}, "use": FAST}, {"for": {}, "use": SLOW}],
    "prefill": [{"for": {}, "use": FAST}],
}


def test_the_fastest_over_all_cases_come_first_and_failures_are_out() -> None:
    timings = [[2.0, 1.0, 0.1, 1.3], [2.0, 1.0, None, 0.7]]
    assert shortlist(timings, 3) == [3, 1, 0]  # products 0.91, 1 and 4
    assert shortlist([[None, None]], 2) == []


def test_what_is_used_is_replaced_only_by_something_clearly_faster() -> None:
    assert choose([[1.0, 0.5], [1.0, 0.8]]) == (1, pytest.approx(0.4**0.5))
    assert choose([[1.0, 0.99]]) == (0, 1.0)
    assert choose([[1.0, 1.2]]) == (0, 1.0)
    assert choose([[None, 1.2]]) == (1, 1.0)  # what is in the table does not run here
    assert choose([[None, None]]) == (0, 1.0)


def test_a_winner_stands_before_the_rows_it_is_an_exception_to() -> None:
    merged = merge(GIVEN, BF16, FAST)
    row = {"for": {"dtype": "bfloat16", "block_d": 128}, "use": FAST}
    assert merged == {**GIVEN, "decode": [row, *GIVEN["decode"]]}
    assert find_row(merged, BF16) == FAST
    assert find_row(merged, Tuning("decode", (("dtype", "bfloat16"), ("block_d", 64)))) == SLOW


def test_a_second_winner_takes_the_place_of_the_first() -> None:
    twice = merge(merge(GIVEN, BF16, FAST), BF16, {**FAST, "num_warps": 8})
    assert len(twice["decode"]) == 3 and twice["decode"][0]["use"]["num_warps"] == 8


def test_what_the_table_says_already_changes_nothing() -> None:
    assert merge(GIVEN, BF16, SLOW) is GIVEN
    assert find_row(GIVEN, BF16) == SLOW


def test_a_kernel_without_a_row_is_named() -> None:
    with pytest.raises(KernelError, match="gemv"):
        find_row(GIVEN, Tuning("gemv", ()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_is_written_as_it_was_committed(family: str) -> None:
    text = (FOLDER / f"{family}.json").read_text(encoding="utf-8")
    assert format_table(json.loads(text)) == text


@pytest.mark.parametrize("kernel", SPACES)
def test_candidates_have_the_names_that_the_tables_use(kernel: str) -> None:
    found = candidates(kernel)
    assert len(found) == len({json.dumps(use) for use in found})
    for family in FAMILIES:
        table = json.loads((FOLDER / f"{family}.json").read_text(encoding="utf-8"))
        for row in table[kernel]:
            assert row["use"].keys() == found[0].keys()
    assert all(as_config(use).num_warps >= 1 for use in found)


PRESENT = {"BLOCK_N": 8, "BLOCK_K": 1024, "num_warps": 4, "num_stages": 1}


class ConfigStopwatch:
    """Says of a run what its configuration says of itself."""

    def warm_up(self, run: Run, seconds: float) -> None:
        run()

    def cool(self) -> None: ...

    def time(self, run: Run) -> float:
        return float(run()[1])


def tuned_case(tuning: Tuning) -> KernelCase:
    """A kernel that is faster with a larger BLOCK_K, wrong with 2 warps, and does not compile with 8 warps."""

    def run() -> torch.Tensor:
        config = find_config("gemv")
        if config.num_warps == 8:
            raise RuntimeError("out of resource: shared memory")
        seconds = 1.0 / (int(config.block["BLOCK_K"]) + int(config.block["BLOCK_N"] == 16))
        return torch.tensor([9.0 if config.num_warps == 2 else 1.0, seconds])

    ours = Implementation("hopformer", run, lambda result: result[:1])
    return KernelCase("gemv", "1", "tiny", "", "", Work(1, 1), lambda: Built(ours, tuple), tuning=tuning)


def test_candidates_that_fail_or_compute_something_else_are_never_chosen() -> None:
    tuning = Tuning("gemv", ())
    slow = {**PRESENT, "BLOCK_K": 256}
    with override("gemv", as_config(slow)):  # what the table says, which needs a GPU's driver to be asked
        best, share = best_config([tuned_case(tuning)], tuning, slow, ConfigStopwatch(), Effort(trials_s=0.0))
    assert best == {"BLOCK_N": 16, "BLOCK_K": 1024, "num_warps": 4, "num_stages": 1}
    assert share == pytest.approx(256 / 1025)


def test_the_present_one_stays_when_none_is_clearly_better() -> None:
    tuning = Tuning("gemv", ())
    with override("gemv", as_config(PRESENT)):
        best, share = best_config([tuned_case(tuning)], tuning, PRESENT, ConfigStopwatch(), Effort(trials_s=0.0))
    assert best == PRESENT and share == 1.0


# In Triton's interpreter, which has to be chosen before the kernels are defined: what each case asks the tables for.
ASKED = """
import torch
from hopformer.bench.kernel_case import CaseSizes, LayerShape, Setting
from hopformer.bench.kernel_cases import KERNELS, make_cases
from hopformer.kernels import launch_configs

asked, find = [], launch_configs._find
launch_configs._find = lambda name, kernel, key: (asked.append((kernel, dict(key))), find(name, kernel, key))[1]
sizes = CaseSizes(((3, 70),), (5, 97), (17,), 3, (1, 4, 33), 2, 1, (16,))
setting = Setting("tiny", LayerShape(256, 384, 8, 2, 32, 131, 1e-5), torch.float16, torch.device("cpu"), sizes)
for case in make_cases([setting], list(KERNELS)):
    if case.tuning is not None:
        asked.clear()
        case.build().ours.run()
        conditions = dict(case.tuning.conditions).items()
        assert any(kernel == case.tuning.table and conditions <= key.items() for kernel, key in asked), (case, asked)
        print(case.tuning.table)
"""


@pytest.mark.slow
def test_a_case_asks_the_table_for_the_row_that_it_speaks_for() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True, env=environment, timeout=250)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == set(SPACES)
