"""A state machine over Scheduler and SequenceTable, with a made-up model that draws a token from all tokens before it.

The made-up model reads the state it goes on from out of the slots of paged memory, as attention reads keys and
values. So whatever chunking, batching, preemption, prefix caching and page copying do, a request must end with
exactly the tokens that it would get alone; and it must end.
"""

from dataclasses import dataclass

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hopformer.llama.pages import PagePool
from hopformer.llama.prefix_cache import PrefixCache
from hopformer.llama.scheduler import Scheduled, ScheduledSequence, Scheduler
from hopformer.llama.sequences import SequenceTable

VOCAB_SIZE = 3
STORY = [0, 1, 1, 0, 2] * 8  # what most prompts begin with, so that the prefix cache has something to find


def next_state(state: int, token_id: int) -> int:
    """What the made-up model keeps in a token's slot: a hash of it and of everything before."""
    return (state * 1_000_003 + token_id + 1) % 2_147_483_647


def drawn_from(state: int) -> int:
    """The token that follows."""
    return state // 7 % VOCAB_SIZE


def answer_alone(prompt: list[int], num_tokens: int) -> list[int]:
    """The answer to ``prompt`` by the definition of the made-up model."""
    state = 0
    for token_id in prompt:
        state = next_state(state, token_id)
    answer: list[int] = []
    while len(answer) < num_tokens:
        answer.append(drawn_from(state))
        state = next_state(state, answer[-1])
    return answer


class PagedModel:
    """Computes steps on a SequenceTable's pages."""

    def __init__(self, table: SequenceTable) -> None:
        self.table = table
        self.slots = [-1] * (table.pool.num_pages * table.pool.page_size)

    def step(self, plan: list[Scheduled]) -> list[int]:
        """Write the planned tokens' states; returns what each sequence's last state draws."""
        size = self.table.pool.page_size
        for source, target in self.table.take_copies():
            self.slots[target * size : (target + 1) * size] = self.slots[source * size : (source + 1) * size]
        last_states = [self._write(scheduled) for scheduled in plan]
        for scheduled in plan:
            first = scheduled.sequence.num_computed
            new = scheduled.sequence.token_ids[first : first + scheduled.num_tokens]
            self.table.append(scheduled.sequence.sequence_id, new)
        return [drawn_from(state) for state in last_states]

    def _write(self, scheduled: Scheduled) -> int:
        sequence, first = scheduled.sequence, scheduled.sequence.num_computed
        assert first == self.table.length(sequence.sequence_id)
        end = first + scheduled.num_tokens
        slots = self.table.slots(sequence.sequence_id, 0, end).tolist()
        state = self.slots[slots[first - 1]] if first else 0
        for position in range(first, end):
            state = self.slots[slots[position]] = next_state(state, sequence.token_ids[position])
        return state


@dataclass(eq=False)
class Job:
    """A request as its sender sees it."""

    sequence: ScheduledSequence
    expected: list[int]  # prompt and answer

    @property
    def is_complete(self) -> bool:
        return len(self.sequence.token_ids) == len(self.expected)


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come, are computed step by step and are cancelled, in any order."""

    @initialize(
        page_size=st.sampled_from([1, 2, 4]),
        num_pages=st.integers(4, 24),
        max_batch_tokens=st.integers(1, 12),
        max_sequences=st.integers(1, 6),
        has_cache=st.sampled_from([True, True, False]),
    )
    def start(self, page_size: int, num_pages: int, max_batch_tokens: int, max_sequences: int, has_cache: bool) -> None:
        self.pool = PagePool(num_pages, page_size)
        self.cache = PrefixCache(self.pool) if has_cache else None
        self.table = SequenceTable(self.pool, self.cache)
        self.model = PagedModel(self.table)
        self.scheduler = Scheduler(self.table, max_batch_tokens, max_sequences)
        self.max_batch_tokens, self.max_sequences = max_batch_tokens, max_sequences
        self.jobs: dict[int, Job] = {}
        self.next_id = 0
        self.last_admitted = -1
        self.steps_allowed = 0

    @rule(
        length=st.integers(0, 20),
        tail=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=6),
        num_tokens=st.integers(1, 12),
    )
    def add(self, length: int, tail: list[int], num_tokens: int) -> None:
        capacity = self.pool.num_pages * self.pool.page_size
        prompt = (STORY[:length] + tail)[: capacity - 1]
        num_tokens = min(num_tokens, capacity - len(prompt))
        sequence = ScheduledSequence(self.next_id, list(prompt))
        self.jobs[self.next_id] = Job(sequence, prompt + answer_alone(prompt, num_tokens))
        self.next_id += 1
        self.scheduler.add(sequence)
        # A step advances the first of the running by a token at least, which is never lost again, or else its whole
        # budget goes to requests that decode, and then it adds to an answer, which is never lost either.
        self.steps_allowed += len(prompt) + 2 * num_tokens

    @rule(count=st.integers(1, 8))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.compute_one_step()

    @precondition(lambda self: self.jobs)
    @rule(which=st.integers(0, 20))
    def cancel(self, which: int) -> None:
        job = list(self.jobs.values())[which % len(self.jobs)]
        self.finish(job)

    def compute_one_step(self) -> None:
        plan = self.scheduler.schedule()
        assert bool(plan) == bool(self.jobs), "work is waiting and nothing was planned, or the reverse"
        self.check_plan(plan)
        if plan:
            self.steps_allowed -= 1
            assert self.steps_allowed >= 0, "some request makes no progress"
        for scheduled, token_id in zip(plan, self.model.step(plan), strict=True):
            draws = scheduled.draws
            self.scheduler.computed(scheduled)
            if draws:
                self.accept(self.jobs[scheduled.sequence.sequence_id], token_id)

    def check_plan(self, plan: list[Scheduled]) -> None:
        assert sum(scheduled.num_tokens for scheduled in plan) <= self.max_batch_tokens
        assert len(plan) <= self.max_sequences
        ids = [scheduled.sequence.sequence_id for scheduled in plan]
        assert len(set(ids)) == len(ids)
        for scheduled in plan:
            assert 0 < scheduled.num_tokens <= scheduled.sequence.num_remaining
        newcomers = [sequence_id for sequence_id in ids if sequence_id > self.last_admitted]
        assert newcomers == sorted(newcomers), "a later request was admitted before an earlier one"
        self.last_admitted = max([self.last_admitted, *newcomers])
        waiting = [one for one in self.jobs if one <= self.last_admitted and one not in self.table]
        overtaking = [one for one in newcomers for earlier in waiting if earlier < one]
        assert not overtaking, "a request was admitted while an earlier one waits for pages"

    def accept(self, job: Job, token_id: int) -> None:
        job.sequence.token_ids.append(token_id)
        assert job.sequence.token_ids == job.expected[: len(job.sequence.token_ids)]
        if job.is_complete:
            self.finish(job)

    def finish(self, job: Job) -> None:
        self.scheduler.remove(job.sequence)
        del self.jobs[job.sequence.sequence_id]

    @invariant()
    def everything_is_intact(self) -> None:
        self.scheduler.check_integrity()
        self.table.check_integrity()
        assert self.scheduler.has_work == bool(self.jobs)
        open_ids = list(self.table)
        assert len(open_ids) <= self.max_sequences and set(open_ids) <= set(self.jobs)
        for sequence_id, job in self.jobs.items():
            length = self.table.length(sequence_id) if sequence_id in self.table else 0
            assert job.sequence.num_computed == length

    def teardown(self) -> None:
        if not hasattr(self, "jobs"):
            return
        while self.jobs:
            self.compute_one_step()
            self.everything_is_intact()
        assert not self.scheduler.has_work and self.scheduler.schedule() == []
        num_cached = len(self.cache.pages()) if self.cache is not None else 0
        assert self.pool.num_free + num_cached == self.pool.num_pages


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, derandomize=False, print_blob=True
)
