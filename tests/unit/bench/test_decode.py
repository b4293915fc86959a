"""The order of turns, and what is refused. Nothing here looks at a time."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hopformer.bench import decode, machine
from hopformer.bench.contender import Absent, HopformerContender, Workload
from hopformer.bench.contender_process import ContenderGone
from hopformer.bench.decode import DecodePlan, bench_decode
from hopformer.errors import UsageError

MakeFolder = Callable[..., Path]


class Recording:
    """A contender that does nothing but remember its turns."""

    version = "7"
    weights = "float32"

    def __init__(self, name: str, turns: list[str]) -> None:
        self.name = name
        self.turns = turns
        self.prompts: list[list[int]] = []
        self.num_decoded: list[int] = []
        self.is_closed = False

    def reset(self) -> None:
        self.turns.append(self.name)

    def prefill(self, token_ids: Sequence[int]) -> int:
        self.prompts.append(list(token_ids))
        return 0

    def decode(self, num_tokens: int) -> list[int]:
        self.num_decoded.append(num_tokens)
        return [0] * num_tokens

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def plan(tiny_folder: MakeFolder) -> DecodePlan:
    return DecodePlan(tiny_folder(), "tiny", torch.float32, 19, 5, 4, 2, ("a", "b"))


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recording]:
    """Baselines "a" and "b", and us, all of whom do nothing."""
    turns: list[str] = []
    made = {name: Recording(name, turns) for name in ("hopformer", "a", "b")}
    monkeypatch.setattr(HopformerContender, "open", lambda workload: made["hopformer"])
    monkeypatch.setattr(decode, "BASELINES", {name: lambda workload, name=name: made[name] for name in ("a", "b")})
    return made


def test_everybody_takes_a_turn_in_every_round_in_an_order_that_moves_on(
    plan: DecodePlan, recording: dict[str, Recording]
) -> None:
    bench_decode(plan)
    turns = recording["a"].turns
    assert [turns[start : start + 3] for start in range(0, len(turns), 3)] == [
        ["hopformer", "a", "b"],  # to warm up
        ["hopformer", "a", "b"],
        ["a", "b", "hopformer"],
        ["b", "hopformer", "a"],
        ["hopformer", "a", "b"],
    ]
    assert recording["b"].num_decoded == [2, 5, 5, 5, 5]
    assert all(one.is_closed for one in recording.values())


def test_a_round_has_one_prompt_for_all_and_no_two_begin_alike(
    plan: DecodePlan, recording: dict[str, Recording]
) -> None:
    bench_decode(plan)
    prompts = recording["hopformer"].prompts
    assert prompts == recording["a"].prompts == recording["b"].prompts
    assert all(len(prompt) == 19 for prompt in prompts)
    assert len({prompt[0] for prompt in prompts}) == len(prompts) == 5


def test_a_baseline_that_crashes_before_it_is_timed_is_left_out_and_the_rows_say_so(
    plan: DecodePlan, recording: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(num_tokens: int) -> list[int]:
        raise ContenderGone("a", "it was ended by SIGILL while it computed")

    monkeypatch.setattr(recording["a"], "decode", crash)
    rows = bench_decode(plan)
    notes = {row.runs: row.note for row in rows}
    assert notes == {"hopformer": None, "a": "it was ended by SIGILL while it computed", "b": None}
    assert recording["b"].num_decoded == [2, 5, 5, 5, 5] and recording["a"].is_closed


def test_the_rows_are_of_those_who_ran_and_the_threads_are_given_back(
    plan: DecodePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bool]] = []

    def absent(workload: Workload) -> Absent:
        seen.append((torch.get_num_threads(), workload.scratch.is_dir()))
        return Absent("a", "it is not here")

    monkeypatch.setattr(decode, "BASELINES", {"a": absent})
    steps: list[tuple[int, int]] = []
    before = torch.get_num_threads()
    one_thread = replace(plan, num_threads=1, against=("a",), rounds=2)
    rows = bench_decode(one_thread, lambda done, total: steps.append((done, total)))
    assert seen == [(1, True)] and torch.get_num_threads() == before
    assert [(row.phase, row.runs) for row in rows] == [
        ("prefill", "hopformer"),
        ("prefill", "a"),
        ("decode", "hopformer"),
        ("decode", "a"),
    ]
    assert rows[1].note == "it is not here" and rows[0].note is None
    assert steps == [(index, 5) for index in range(1, 6)]


def test_the_commit_is_the_one_that_was_checked_out_when_the_run_began(
    plan: DecodePlan, recording: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    def commit() -> str:
        return "later" if recording["a"].turns else "first"

    monkeypatch.setattr(machine, "_commit", commit)
    assert {row.conditions.machine.commit for row in bench_decode(plan)} == {"first"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_tokens": 0}, "--prompt-tokens is 0"),
        ({"decode_tokens": 0}, "--decode-tokens is 0"),
        ({"rounds": 0}, "--rounds is 0"),
        ({"rounds": 131}, "--rounds is 131"),
        ({"num_threads": 0}, "--threads is 0"),
        ({"prompt_tokens": 250, "decode_tokens": 6}, "need a context of 257 tokens; this model has 256"),
        ({"against": ("vllm",)}, "'vllm' is unknown"),
    ],
)
def test_a_plan_that_means_nothing_is_refused(plan: DecodePlan, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bench_decode(replace(plan, **{"against": (), **changes}))  # type: ignore[arg-type]
