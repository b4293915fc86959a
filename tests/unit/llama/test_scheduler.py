"""Scheduler: the order of work, the budget, admission and preemption. What comes out in the end: property tests."""

import pytest

from hopformer.llama.pages import PagePool
from hopformer.llama.prefix_cache import PrefixCache
from hopformer.llama.scheduler import Scheduled, ScheduledSequence, Scheduler
from hopformer.llama.sequences import SequenceTable

PAGE_SIZE = 4


def make_scheduler(num_pages: int = 64, budget: int = 16, max_sequences: int = 8) -> tuple[Scheduler, SequenceTable]:
    pool = PagePool(num_pages, PAGE_SIZE)
    table = SequenceTable(pool, PrefixCache(pool))
    return Scheduler(table, budget, max_sequences), table


def prompt(sequence_id: int, length: int) -> ScheduledSequence:
    """A sequence whose prompt begins as no other's does."""
    return ScheduledSequence(sequence_id, [100 + sequence_id] + [0] * (length - 1))


def run(scheduler: Scheduler, table: SequenceTable) -> list[tuple[int, int]]:
    """One step, with 0 drawn for every sequence that reaches its end; returns (sequence_id, num_tokens)."""
    plan = scheduler.schedule()
    for scheduled in plan:
        compute(scheduler, table, scheduled)
    scheduler.check_integrity()
    table.check_integrity()
    return [(scheduled.sequence.sequence_id, scheduled.num_tokens) for scheduled in plan]


def compute(scheduler: Scheduler, table: SequenceTable, scheduled: Scheduled) -> None:
    sequence, draws = scheduled.sequence, scheduled.draws
    end = sequence.num_computed + scheduled.num_tokens
    table.append(sequence.sequence_id, sequence.token_ids[sequence.num_computed : end])
    scheduler.computed(scheduled)
    if draws:
        sequence.token_ids.append(0)


def test_no_work_plans_nothing() -> None:
    scheduler, _ = make_scheduler()
    assert not scheduler.has_work
    assert scheduler.schedule() == []


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    scheduler, table = make_scheduler(budget=16)
    scheduler.add(prompt(0, 37))
    assert [run(scheduler, table) for _ in range(5)] == [[(0, 16)], [(0, 16)], [(0, 5)], [(0, 1)], [(0, 1)]]


def test_only_the_step_that_reaches_the_end_draws() -> None:
    scheduler, table = make_scheduler(budget=16)
    scheduler.add(prompt(0, 20))
    (first,) = scheduler.schedule()
    assert not first.draws
    compute(scheduler, table, first)
    (second,) = scheduler.schedule()
    assert second.draws and second.num_tokens == 4


def test_decoding_requests_come_first_and_prompts_share_what_is_left() -> None:
    scheduler, table = make_scheduler(budget=16)
    for sequence in (prompt(0, 3), prompt(1, 20), prompt(2, 20)):
        scheduler.add(sequence)
    assert run(scheduler, table) == [(0, 3), (1, 13)]
    assert run(scheduler, table) == [(0, 1), (1, 7), (2, 8)]
    assert run(scheduler, table) == [(0, 1), (1, 1), (2, 12)]
    assert run(scheduler, table) == [(0, 1), (1, 1), (2, 1)]


def test_no_more_run_at_once_than_allowed() -> None:
    scheduler, table = make_scheduler(max_sequences=2)
    sequences = [prompt(index, 3) for index in range(3)]
    for sequence in sequences:
        scheduler.add(sequence)
    assert run(scheduler, table) == [(0, 3), (1, 3)]
    assert run(scheduler, table) == [(0, 1), (1, 1)]
    scheduler.remove(sequences[0])
    assert run(scheduler, table) == [(1, 1), (2, 3)]


def test_a_request_waits_until_pages_for_its_whole_prompt_are_free() -> None:
    scheduler, table = make_scheduler(num_pages=6)
    first = prompt(0, 12)
    scheduler.add(first)
    scheduler.add(prompt(1, 16))
    assert run(scheduler, table) == [(0, 12)]
    assert run(scheduler, table) == [(0, 1)]
    assert 1 not in table, "a request that could not be admitted holds nothing"
    scheduler.remove(first)
    assert run(scheduler, table) == [(1, 16)]


def test_a_small_request_does_not_overtake_a_large_one() -> None:
    scheduler, table = make_scheduler(num_pages=6)
    for sequence in (prompt(0, 12), prompt(1, 16), prompt(2, 2)):
        scheduler.add(sequence)
    run(scheduler, table)
    assert run(scheduler, table) == [(0, 1)]


def test_a_request_that_waits_for_pages_leaves_the_prefix_cache_alone() -> None:
    scheduler, table = make_scheduler(num_pages=8)
    old = prompt(0, 5)
    scheduler.add(old)
    run(scheduler, table)
    scheduler.remove(old)
    scheduler.add(prompt(1, 12))
    scheduler.add(prompt(2, 24))
    for _ in range(3):
        run(scheduler, table)
    assert 2 not in table
    assert table.open(9, [*old.token_ids[:5], 7]) == 5


def test_the_last_to_come_gives_way_when_pages_run_out() -> None:
    scheduler, table = make_scheduler(num_pages=4)
    first, second = prompt(0, 7), prompt(1, 6)
    scheduler.add(first)
    scheduler.add(second)
    assert run(scheduler, table) == [(0, 7), (1, 6)]
    assert run(scheduler, table) == [(0, 1), (1, 1)]
    assert run(scheduler, table) == [(0, 1)]  # a ninth token needs a third page
    assert second.num_preemptions == 1 and second.num_computed == 0 and first.num_preemptions == 0
    assert 1 not in table and scheduler.has_work


def test_a_preempted_request_goes_on_before_those_that_never_ran() -> None:
    scheduler, table = make_scheduler(num_pages=4)
    first, second, third = prompt(0, 7), prompt(1, 6), prompt(2, 1)
    for sequence in (first, second, third):
        scheduler.add(sequence)
    for _ in range(3):
        run(scheduler, table)
    assert second.num_preemptions == 1 and third.num_preemptions == 0
    scheduler.remove(first)
    plan = run(scheduler, table)
    assert [sequence_id for sequence_id, _ in plan] == [1, 2]


def test_a_preempted_request_computes_only_what_the_prefix_cache_has_forgotten() -> None:
    scheduler, table = make_scheduler(num_pages=4)
    first, second = prompt(0, 7), prompt(1, 6)
    scheduler.add(first)
    scheduler.add(second)
    for _ in range(3):
        run(scheduler, table)
    scheduler.remove(first)
    ((sequence_id, num_tokens),) = run(scheduler, table)
    assert sequence_id == 1
    assert num_tokens < len(second.token_ids) - 1
    assert second.num_cached == 0, "only what its first admission found counts"


def test_when_the_last_cannot_go_on_it_gives_way_itself() -> None:
    scheduler, table = make_scheduler(num_pages=5)
    first, second = prompt(0, 5), prompt(1, 12)
    scheduler.add(first)
    scheduler.add(second)
    assert run(scheduler, table) == [(0, 5), (1, 11)]
    assert run(scheduler, table) == [(0, 1), (1, 1)]
    assert run(scheduler, table) == [(0, 1)]
    assert second.num_preemptions == 1


def test_a_sequence_is_removed_wherever_it_is() -> None:
    scheduler, table = make_scheduler(max_sequences=1)
    running, waiting = prompt(0, 3), prompt(1, 3)
    scheduler.add(running)
    scheduler.add(waiting)
    run(scheduler, table)
    scheduler.remove(waiting)
    scheduler.remove(running)
    assert not scheduler.has_work and list(table) == []


def test_the_first_admission_says_how_much_was_cached() -> None:
    scheduler, table = make_scheduler()
    first = prompt(0, 10)
    scheduler.add(first)
    run(scheduler, table)
    scheduler.remove(first)
    again = ScheduledSequence(1, [*first.token_ids[:10], 7, 7])
    scheduler.add(again)
    assert run(scheduler, table) == [(1, 2)]
    assert again.num_cached == 10


def test_a_sequence_that_can_never_fit_is_a_bug_of_the_caller() -> None:
    scheduler, _ = make_scheduler(num_pages=2)
    scheduler.add(prompt(0, 9))
    with pytest.raises(AssertionError, match="none of it can run"):
        scheduler.schedule()
