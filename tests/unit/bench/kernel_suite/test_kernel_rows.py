"""From seconds to rates, and from runs to rows."""

import json
from types import SimpleNamespace

import pytest
import torch

from hopformer.bench import kernel_suite, machine
from hopformer.bench.ceilings import Ceilings
from hopformer.bench.contender import Absent
from hopformer.bench.kernel_case import Built, Implementation, KernelCase, Work
from hopformer.bench.kernel_ceilings import highest
from hopformer.bench.kernel_rows import KernelConditions, KernelRow, Measured, make_kernel_rows
from hopformer.bench.kernel_suite import KernelPlan, bench_kernels, compare
from hopformer.bench.kernel_timing import Effort
from hopformer.bench.machine import Machine
from hopformer.errors import UsageError

CPU = torch.device("cpu")
CONDITIONS = KernelConditions(Machine.here(), "1.0", "PyTorch", 2)
CEILINGS = Ceilings(bytes_per_s=1e9, operations_per_s=1e12)
QUICK = Effort(trials_s=1e-9, warm_up_s=0.0, fewest=2)


def nothing() -> Built:
    raise AssertionError("rows are made from times alone")


def case_of(num_bytes: int, num_operations: int) -> KernelCase:
    return KernelCase("swiglu", "T1", "tiny", "1 x 2", "bfloat16", Work(num_bytes, num_operations), nothing)


def rows_of(case: KernelCase) -> list[KernelRow]:
    ours = Measured("hopformer", [0.002, 0.001, 0.004])
    theirs = Measured("other", [0.004, 0.003, 0.004], difference=1e-3)
    return make_kernel_rows(CONDITIONS, case, CEILINGS, [ours, theirs], [Absent("third", "no compiler")])


def test_a_time_is_a_median_and_a_ratio_that_of_the_rounds() -> None:
    ours, theirs, third = rows_of(case_of(10**6, 10**6))
    assert (ours.time_us, theirs.time_us) == pytest.approx((2000, 4000))
    assert ours.time_us_p10 == pytest.approx(1200) and ours.time_us_p90 == pytest.approx(3600)
    assert ours.ours_over_it is None and theirs.ours_over_it == pytest.approx(2.0)  # of 2, 3 and 1
    assert ours.trials == 3 and theirs.difference == 1e-3
    assert third.note == "no compiler" and third.time_us is None and third.kernel == "swiglu"


def test_the_ceiling_is_whichever_binds() -> None:
    by_memory = rows_of(case_of(10**6, 10**6))[0]
    assert by_memory.bound == "memory" and by_memory.percent_of_ceiling == pytest.approx(50)
    assert by_memory.gb_per_s == pytest.approx(0.5) and by_memory.tflop_per_s == pytest.approx(0.0005)
    by_matmul = rows_of(case_of(10**6, 10**10 // 5 * 2))[0]  # 4 ms at the ceiling
    assert by_matmul.bound == "matmul" and by_matmul.percent_of_ceiling == pytest.approx(200)


def test_a_row_in_json_is_flat_and_says_where_it_was_measured() -> None:
    content = json.loads(json.dumps(rows_of(case_of(10, 20))[0].as_json()))
    assert not any(isinstance(value, dict | list) for value in content.values())
    assert content["bench"] == "kernels" and content["device"] and content["torch"] == torch.__version__
    assert content["num_bytes"] == 10 and content["num_threads"] == 2 and content["hopformer"] == "1.0"


def test_a_ceiling_is_the_best_of_the_run() -> None:
    assert highest([Ceilings(1, 6), Ceilings(3, 4), Ceilings(2, 5)]) == Ceilings(3, 6)


def test_another_result_is_said_and_a_draw_is_not_compared() -> None:
    one = Implementation("other", lambda: None)
    ours = torch.tensor([3.0, 4.0])
    assert compare(one, [1.0], ours, ours) == Measured("other", [1.0], 0.0)
    wrong = compare(one, [1.0], torch.tensor([3.0, 5.0]), ours)
    assert wrong.difference == pytest.approx(0.2) and wrong.note is not None and "0.2" in wrong.note
    draw = Implementation("other", lambda: None, tolerance=None)
    assert compare(draw, [1.0], ours + 1, ours).difference is None


def test_a_run_gives_rows_case_by_case_with_ours_first() -> None:
    parts: list[tuple[int, int]] = []
    plan = KernelPlan(CPU, torch.float32, 1, ("rms_norm", "prefill_attention"), effort=QUICK)
    rows = bench_kernels(plan, lambda done, total: parts.append((done, total)))
    assert [(row.kernel, row.case, row.runs) for row in rows] == [
        ("rms_norm", "T33", "hopformer"),
        ("rms_norm", "T33", "PyTorch"),
        ("rms_norm", "T33", "torch.compile"),
        ("prefill_attention", "17", "hopformer"),
        ("prefill_attention", "17", "SDPA"),
        ("prefill_attention", "97", "hopformer"),
        ("prefill_attention", "97", "SDPA"),
    ]
    assert parts == [(1, 3), (2, 3), (3, 3)]
    assert rows[0].conditions.path == "PyTorch" and rows[0].conditions.num_threads == 1
    for row in rows:
        if row.note is None:
            assert row.trials == 2 and row.percent_of_ceiling is not None and row.percent_of_ceiling > 0
    assert len({row.ceiling_gb_per_s for row in rows if row.note is None}) == 1


def test_the_number_of_threads_is_set_for_the_run_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = kernel_suite.time_in_turns
    monkeypatch.setattr(
        kernel_suite, "time_in_turns", lambda *given: (seen.append(torch.get_num_threads()), real(*given))[1]
    )
    before = torch.get_num_threads()
    bench_kernels(KernelPlan(CPU, torch.float32, 1, ("swiglu",), effort=QUICK))
    assert seen == [1] and torch.get_num_threads() == before


@pytest.mark.parametrize(("threads", "seconds"), [(0, 1.0), (2000, 1.0), (1, 0.0), (1, -1.0)])
def test_numbers_out_of_range_are_wrong_usage(threads: int, seconds: float) -> None:
    with pytest.raises(UsageError, match="must be more than 0"):
        KernelPlan(CPU, torch.float32, threads, effort=Effort(trials_s=seconds)).cases()


def test_a_gpus_row_names_the_gpu_and_its_software(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(name="A GPU", total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(machine.subprocess, "run", lambda *given, **more: SimpleNamespace(stdout="570.86\n"))
    found = Machine.here(torch.device("cuda"))
    assert (found.device, found.gpu_memory_gib, found.driver) == ("A GPU", 80, "570.86")
    assert found.num_cores >= 1 and Machine.here().gpu_memory_gib is None
