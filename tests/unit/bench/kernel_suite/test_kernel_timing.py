"""Trials are taken in turns, with cold caches before each."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from hopformer.bench import kernel_ceilings, kernel_timing
from hopformer.bench.kernel_ceilings import GpuCeilingMeter
from hopformer.bench.kernel_timing import CpuStopwatch, Effort, GpuStopwatch, time_in_turns


class FakeStopwatch:
    """Says that run i takes i + 1 seconds, and keeps a record."""

    def __init__(self) -> None:
        self.record: list[tuple[str, int]] = []

    def warm_up(self, run: Callable[[], Any], seconds: float) -> None:
        self.record.append(("warm up", run()))

    def cool(self) -> None:
        raise AssertionError("time does it")

    def time(self, run: Callable[[], Any]) -> float:
        self.record.append(("time", run()))
        return float(run() + 1)


RUNS = [lambda: 0, lambda: 1, lambda: 2]


def test_everybody_warms_up_then_each_round_begins_with_another() -> None:
    stopwatch = FakeStopwatch()
    seconds = time_in_turns(RUNS, stopwatch, Effort(trials_s=0.0, fewest=4))
    assert stopwatch.record[:3] == [("warm up", 0), ("warm up", 1), ("warm up", 2)]
    order = [index for _, index in stopwatch.record[3:]]
    assert order == [0, 1, 2, 1, 2, 0, 2, 0, 1, 0, 1, 2]
    assert seconds == [[1.0] * 4, [2.0] * 4, [3.0] * 4]


@pytest.mark.parametrize(
    ("effort", "rounds"), [((12.0, 0.0, 2, 99), 6), ((1.0, 0.0, 5, 99), 5), ((99.0, 0.0, 1, 7), 7)]
)
def test_rounds_are_bounded_by_time_and_by_number(effort: tuple[float, float, int, int], rounds: int) -> None:
    seconds = time_in_turns(RUNS, FakeStopwatch(), Effort(*effort))
    assert [len(trials) for trials in seconds] == [rounds] * 3


def test_a_cpu_trial_starts_with_another_buffer_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    stopwatch = CpuStopwatch()
    record: list[str] = []
    monkeypatch.setattr(CpuStopwatch, "cool", lambda self: record.append("cool"))
    assert stopwatch.time(lambda: record.append("run")) > 0
    stopwatch.warm_up(lambda: record.append("warm"), 0.0)
    assert record == ["cool", "run", "warm", "warm"]


@pytest.mark.parametrize(
    ("sizes", "expected"), [(["48K", "2048K", "32M"], 32 << 20), ([], 32 << 20), (["1G"], 1 << 30)]
)
def test_the_last_level_cache_is_the_largest(
    sizes: list[str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the one of these tests
    for index, size in enumerate(sizes):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    monkeypatch.setattr(kernel_timing, "_CPU_CACHES", tmp_path)
    assert kernel_timing.last_level_cache_bytes() == expected


class FakeEvent:
    """Keeps a record of what a stream was asked for, and says that two milliseconds pass."""

    record_of_all: ClassVar[list[str]] = []

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.record_of_all.append("event")

    def synchronize(self) -> None:
        self.record_of_all.append("wait")

    def elapsed_time(self, other: "FakeEvent") -> float:
        return 2.0


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A GPU that is none: its record."""
    FakeEvent.record_of_all.clear()
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=1 << 10))
    monkeypatch.setattr(kernel_timing, "_LEAST_GPU_BYTES", 1 << 12)
    return FakeEvent.record_of_all


def test_a_gpu_trial_keeps_the_device_busy_for_as_long_as_the_launch_takes(
    stream: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopwatch = GpuStopwatch(torch.device("cpu"))
    clock = iter(range(100))
    monkeypatch.setattr(kernel_timing.time, "perf_counter", lambda: 4e-3 * next(clock))  # a launch takes two passes
    stopwatch.warm_up(lambda: None, 0.0)
    stream.clear()
    monkeypatch.setattr(GpuStopwatch, "cool", lambda self: stream.append("cool"))
    assert stopwatch.time(lambda: stream.append("run")) == pytest.approx(2e-3)
    assert stream == ["cool"] * 4 + ["event", "run", "event", "wait"]  # half as long again as needed


def test_a_gpus_ceilings_count_reads_and_writes(stream: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_ceilings, "COPY_BYTES", 1 << 10)
    monkeypatch.setattr(kernel_ceilings, "MATMUL_SIZE", 16)
    ceilings = GpuCeilingMeter(torch.device("cpu"), torch.float32).measure()
    assert ceilings.bytes_per_s == pytest.approx(2 * 1024 / 2e-3)
    assert ceilings.operations_per_s == pytest.approx(2 * 16**3 / 2e-3)
