"""A contender in a process of its own computes as one here does, and its end is told in a line."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from hopformer.bench.baseline_llama_cpp import open_llama_cpp
from hopformer.bench.contender import Absent, HopformerContender, Workload
from hopformer.bench.contender_process import ContenderProcess, open_in_process
from hopformer.errors import UsageError

MakeWorkload = Callable[..., Workload]
PROMPT = [5, 1, 4, 1, 3]


@pytest.mark.slow
def test_a_process_draws_what_is_drawn_here_and_is_missed_when_it_is_killed(workload: MakeWorkload) -> None:
    load = workload()
    here, there = HopformerContender.open(load), open_in_process("ours", HopformerContender.open, load)
    assert isinstance(there, ContenderProcess)
    assert (there.name, there.version, there.weights) == (here.name, here.version, here.weights)
    for one in (here, there):
        one.reset()
    assert [there.prefill(PROMPT), *there.decode(4)] == [here.prefill(PROMPT), *here.decode(4)]
    pid = there._process.pid
    assert pid is not None and pid != os.getpid()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(UsageError, match="hopformer: it was ended by SIGKILL while it computed; leave it out with"):
        there.decode(1)
    there.close()


@pytest.mark.slow
def test_what_is_missing_or_crashes_is_absent_and_leaves_no_process(workload: MakeWorkload) -> None:
    before = active_children()
    load = workload()
    elsewhere = replace(load, device=torch.device("cuda"))
    assert open_in_process("llama.cpp", open_llama_cpp, elsewhere) == open_llama_cpp(elsewhere)
    absent = open_in_process("ours", HopformerContender.open, replace(load, folder=Path("/nowhere")))
    assert absent == Absent("ours", "it ended with exit code 1 while it loaded the model")
    assert active_children() == before
