"""Scheduler: which tokens of which requests the next step computes. Pure: no clock, no tensors, no tokens decoded.

Every step takes the running requests in order of arrival: those that decode first, a token each, then prompts, in
chunks, as far as the step's budget of tokens goes; then waiting requests are admitted, as long as pages for their
whole prompt are free. When a running request finds no page, the one that came last gives up its own and waits at the
head of the queue; it is computed again later, as far as the prefix cache has forgotten it.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import OutOfPages

DEFAULT_MAX_BATCH_TOKENS = 512  # a step's compute: big enough for full matmuls, small enough to stop an answer promptly
DEFAULT_MAX_SEQUENCES = 64


class Memory(Protocol):
    """The part of a Runner that a scheduler needs."""

    def open(self, sequence_id: int, token_ids: Sequence[int]) -> int: ...

    def reserve(self, sequence_id: int, num_tokens: int) -> None: ...

    def release(self, sequence_id: int) -> None: ...


@dataclass(slots=True, eq=False)
class ScheduledSequence:
    """A request's tokens, prompt and answer, and how many of them are computed.

    Attributes:
        num_cached: tokens that its first admission found in the prefix cache.
        num_preemptions: how often it gave up its pages.
    """

    sequence_id: int
    token_ids: list[int]
    num_computed: int = 0
    num_cached: int = 0
    num_preemptions: int = 0

    @property
    def num_remaining(self) -> int:
        """Tokens to compute before the next one can be drawn; 1 in decode."""
        return len(self.token_ids) - self.num_computed


@dataclass(frozen=True, slots=True)
class Scheduled:
    """What a step computes of one sequence; with the last of its tokens the next one is drawn."""

    sequence: ScheduledSequence
    num_tokens: int

    @property
    def draws(self) -> bool:
        """Whether the step reaches the sequence's end."""
        return self.num_tokens == self.sequence.num_remaining


class Scheduler:
    """Owner of the waiting and the running sequences.

    Args:
        memory: where sequences have their pages.
        max_batch_tokens: tokens in a step at most.
        max_sequences: running at once at most.
    """

    def __init__(
        self,
        memory: Memory,
        max_batch_tokens: int = DEFAULT_MAX_BATCH_TOKENS,
        max_sequences: int = DEFAULT_MAX_SEQUENCES,
    ) -> None:
        assert max_batch_tokens > 0 and max_sequences > 0
        self._memory = memory
        self._max_batch_tokens = max_batch_tokens
        self._max_sequences = max_sequences
        self._waiting: deque[ScheduledSequence] = deque()
        self._running: list[ScheduledSequence] = []  # in order of admission

    @property
    def has_work(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self._waiting or self._running)

    def add(self, sequence: ScheduledSequence) -> None:
        """Queue a sequence. One that runs alone must fit in memory, up to its last token."""
        self._waiting.append(sequence)

    def remove(self, sequence: ScheduledSequence) -> None:
        """Take out a sequence that is finished or cancelled, wherever it is."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._memory.release(sequence.sequence_id)
        else:
            self._waiting.remove(sequence)

    def schedule(self) -> list[Scheduled]:
        """Choose the next step's work and reserve pages for it. Empty only when there is no work."""
        plan: dict[int, Scheduled] = {}
        num_running = len(self._running)
        self._continue_running(plan)
        if len(self._running) == num_running:  # somebody was preempted otherwise: memory is short
            self._admit_waiting(plan)
        assert plan or not self.has_work, "work is waiting, and none of it can run"
        return list(plan.values())

    def computed(self, scheduled: Scheduled) -> None:
        """Record that a step has computed what was scheduled."""
        scheduled.sequence.num_computed += scheduled.num_tokens

    def check_integrity(self) -> None:
        """Assert every invariant."""
        assert len(self._running) <= self._max_sequences
        everyone = [*self._waiting, *self._running]
        assert len({sequence.sequence_id for sequence in everyone}) == len(everyone)
        assert all(sequence.num_computed == 0 for sequence in self._waiting), "a waiting sequence holds pages"
        assert all(sequence.num_remaining >= 0 for sequence in everyone)

    def _continue_running(self, plan: dict[int, Scheduled]) -> None:
        decoding = [sequence for sequence in self._running if sequence.num_remaining == 1]
        prefilling = [sequence for sequence in self._running if sequence.num_remaining > 1]
        for sequence in (*decoding, *prefilling):
            budget = self._max_batch_tokens - sum(one.num_tokens for one in plan.values())
            num_tokens = min(sequence.num_remaining, budget)
            if num_tokens > 0 and sequence in self._running and self._reserve(sequence, num_tokens, plan):
                plan[sequence.sequence_id] = Scheduled(sequence, num_tokens)

    def _reserve(self, sequence: ScheduledSequence, num_tokens: int, plan: dict[int, Scheduled]) -> bool:
        """Reserve, at the cost of those that came later; False when the sequence itself had to give way."""
        while True:
            try:
                self._memory.reserve(sequence.sequence_id, sequence.num_computed + num_tokens)
                return True
            except OutOfPages:
                victim = self._running[-1]
                assert len(self._running) > 1, "a sequence that runs alone does not fit in memory"
                plan.pop(victim.sequence_id, None)
                self._preempt(victim)
                if victim is sequence:
                    return False

    def _preempt(self, victim: ScheduledSequence) -> None:
        self._running.remove(victim)
        self._memory.release(victim.sequence_id)
        victim.num_computed = 0
        victim.num_preemptions += 1
        self._waiting.appendleft(victim)

    def _admit_waiting(self, plan: dict[int, Scheduled]) -> None:
        budget = self._max_batch_tokens - sum(one.num_tokens for one in plan.values())
        while self._waiting and len(self._running) < self._max_sequences and budget > 0:
            sequence = self._waiting[0]
            num_cached = self._memory.open(sequence.sequence_id, sequence.token_ids)
            try:
                self._memory.reserve(sequence.sequence_id, len(sequence.token_ids))
            except OutOfPages:
                self._memory.release(sequence.sequence_id)
                return
            self._waiting.popleft()
            self._running.append(sequence)
            sequence.num_computed = num_cached
            if sequence.num_preemptions == 0:
                sequence.num_cached = num_cached
            num_tokens = min(sequence.num_remaining, budget)
            plan[sequence.sequence_id] = Scheduled(sequence, num_tokens)
            budget -= num_tokens
