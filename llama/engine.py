"""Engine: requests in, text and token ids out, as many at a time as memory allows.

One thread calls ``step`` (or iterates ``stream``); each step is one pass of the runner over whatever the scheduler
chose. Every request that was added ends in exactly one Output with a finish_reason: "stop" (an end-of-sequence token
or a stop sequence), "length" (max_tokens or the context is full) or "aborted" (cancelled).
"""

import secrets
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ..errors import RequestError
from .runner import Runner
from .sampling import SampledToken, SamplingParams
from .scheduler import DEFAULT_MAX_BATCH_TOKENS, DEFAULT_MAX_SEQUENCES, Scheduled, ScheduledSequence, Scheduler
from .step_sampler import StepItem
from .text_stream import TextStream

FinishReason = Literal["stop", "length", "aborted"]
TopLogprobs = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate.

    Attributes:
        request_id: unique among the requests in flight.
        prompt_token_ids: at least one.
        max_tokens: tokens to generate at most; the context's end may come first.
        eos_token_ids: tokens that end the answer; they are never shown. Empty to go on to max_tokens.
        stop: texts that end the answer; no part of one is ever shown.
        stop_ids: token-id sequences that do the same.
    """

    request_id: str
    prompt_token_ids: Sequence[int]
    max_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    eos_token_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    stop_ids: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Output:
    """What a step added to one request.

    Attributes:
        text: what may be shown now; it never contains half a character or part of a stop sequence.
        token_ids: the generated tokens, those that ended the answer included.
        logprobs: for each of them the most likely tokens, if the request asked.
        finish_reason: None while the request goes on.
        num_cached: tokens of the prompt that the prefix cache had.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TopLogprobs, ...]
    finish_reason: FinishReason | None
    num_cached: int


@dataclass(slots=True, eq=False)
class _Answer:
    """A request in flight."""

    request: Request
    sequence: ScheduledSequence
    text: TextStream
    max_tokens: int
    unread: deque[Output] | None = None  # its outputs, where somebody reads them as a stream

    @property
    def num_generated(self) -> int:
        return len(self.sequence.token_ids) - len(self.request.prompt_token_ids)


class Engine:
    """Continuous batching over a Runner.

    Args:
        runner: who computes.
        decode: token ids to text, without special tokens (Tokenizer.decode).
        byte_tokens: the tokens that stand for one byte each, where there are any (Tokenizer.byte_tokens).
        max_batch_tokens: tokens in a step at most.
        max_sequences: requests computed at once at most; more may wait.
    """

    def __init__(
        self,
        runner: Runner,
        decode: Callable[[Sequence[int]], str],
        *,
        byte_tokens: Mapping[int, int] | None = None,
        max_batch_tokens: int = DEFAULT_MAX_BATCH_TOKENS,
        max_sequences: int = DEFAULT_MAX_SEQUENCES,
    ) -> None:
        self._runner = runner
        self._decode = decode
        self._byte_tokens = byte_tokens or {}
        self._scheduler = Scheduler(runner, max_batch_tokens, max_sequences)
        self._answers: dict[str, _Answer] = {}
        self._by_sequence: dict[int, _Answer] = {}
        self._next_sequence_id = 0
        self._unclaimed: list[Output] = []

    @property
    def has_work(self) -> bool:
        """Whether ``step`` has something to do or to tell."""
        return self._scheduler.has_work or bool(self._unclaimed)

    @property
    def max_context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self._runner.max_context

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            RequestError: it can never run: an empty or too long prompt, an unknown id, a stop sequence of nothing.
        """
        self._check(request)
        if request.sampling.seed is None:
            request = replace(request, sampling=replace(request.sampling, seed=secrets.randbits(63)))
        text = TextStream(self._decode, request.stop, request.stop_ids, byte_tokens=self._byte_tokens)
        sequence = ScheduledSequence(self._next_sequence_id, list(request.prompt_token_ids))
        self._next_sequence_id += 1
        room = self._runner.max_context - len(request.prompt_token_ids)
        answer = _Answer(request, sequence, text, min(request.max_tokens, room))
        self._answers[request.request_id] = answer
        self._by_sequence[sequence.sequence_id] = answer
        self._scheduler.add(sequence)

    def step(self) -> list[Output]:
        """Run one pass; returns what it, and passes that streams ran, added to each request that is not a stream's."""
        self._pass()
        outputs, self._unclaimed = self._unclaimed, []
        return outputs

    def cancel(self, request_id: str) -> Output | None:
        """End a request now; what was held back of its text is in the Output. None if it is not in flight."""
        answer = self._answers.get(request_id)
        return None if answer is None else self._finish(answer, "aborted", answer.text.finish(), ())

    def stream(self, request: Request) -> Iterator[Output]:
        """Add a request and step until it ends. Other streams may be read in between; leaving the loop cancels.

        Raises:
            RequestError: as ``add``, at once and not when the first output is asked for.
        """
        self.add(request)
        answer = self._answers[request.request_id]
        unread: deque[Output] = deque()
        answer.unread = unread
        return self._outputs_of(answer, unread)

    def check_integrity(self) -> None:
        """Assert every invariant of the engine and its scheduler."""
        self._scheduler.check_integrity()
        assert len(self._answers) == len(self._by_sequence)
        assert self._scheduler.has_work == bool(self._answers), "a request is in flight that nobody computes"

    def _pass(self) -> None:
        """Compute what the scheduler chooses; outputs go to their streams, or wait for ``step``."""
        plan = self._scheduler.schedule()
        if not plan:
            return
        results = self._runner.step([self._item(scheduled) for scheduled in plan])
        for scheduled, drawn in zip(plan, results, strict=True):
            self._scheduler.computed(scheduled)
            if drawn:
                answer = self._by_sequence[scheduled.sequence.sequence_id]
                output = self._accept(answer, drawn)
                if answer.unread is None:
                    self._unclaimed.append(output)

    def _outputs_of(self, answer: _Answer, unread: deque[Output]) -> Iterator[Output]:
        request_id = answer.request.request_id
        try:
            while True:
                while not unread:
                    self._pass()
                output = unread.popleft()
                yield output
                if output.finish_reason is not None:
                    return
        finally:
            if self._answers.get(request_id) is answer:  # a later request may have the same id
                self.cancel(request_id)

    def _item(self, scheduled: Scheduled) -> StepItem:
        sequence = scheduled.sequence
        first = sequence.num_computed
        return StepItem(
            sequence_id=sequence.sequence_id,
            position=first,
            token_ids=sequence.token_ids[first : first + scheduled.num_tokens],
            num_samples=1 if scheduled.draws else 0,
            sampling=self._by_sequence[sequence.sequence_id].request.sampling,
        )

    def _accept(self, answer: _Answer, drawn: Sequence[SampledToken]) -> Output:
        """Take the tokens that a step drew for a request."""
        (token,) = drawn
        answer.sequence.token_ids.append(token.token_id)
        if token.token_id in answer.request.eos_token_ids:
            return self._finish(answer, "stop", answer.text.finish(), drawn)
        text = answer.text.push(token.token_id)
        if answer.text.stopped:
            return self._finish(answer, "stop", text, drawn)
        if answer.num_generated >= answer.max_tokens:
            return self._finish(answer, "length", text + answer.text.finish(), drawn)
        return self._output(answer, None, text, drawn)

    def _finish(self, answer: _Answer, reason: FinishReason, text: str, drawn: Sequence[SampledToken]) -> Output:
        self._scheduler.remove(answer.sequence)
        del self._answers[answer.request.request_id]
        del self._by_sequence[answer.sequence.sequence_id]
        return self._output(answer, reason, text, drawn)

    def _output(self, answer: _Answer, reason: FinishReason | None, text: str, drawn: Sequence[SampledToken]) -> Output:
        output = Output(
            request_id=answer.request.request_id,
            text=text,
            token_ids=tuple(token.token_id for token in drawn),
            logprobs=tuple(token.logprobs for token in drawn) if answer.request.sampling.logprobs else (),
            finish_reason=reason,
            num_cached=answer.sequence.num_cached,
        )
        if answer.unread is not None:
            answer.unread.append(output)
        return output

    def _check(self, request: Request) -> None:
        num_prompt, limit = len(request.prompt_token_ids), self._runner.max_context
        if request.request_id in self._answers:
            raise RequestError(f"request {request.request_id!r} is in flight already")
        if num_prompt == 0:
            raise RequestError("the prompt is empty; generation needs at least one token to go on from")
        if num_prompt >= limit:
            raise RequestError(
                f"the prompt has {num_prompt} tokens and the context holds {limit}; "
                "shorten the conversation or raise --max-context"
            )
        if request.max_tokens < 1:
            raise RequestError(f"max_tokens is {request.max_tokens}; it must be 1 or more")
        unknown = next((one for one in request.prompt_token_ids if not 0 <= one < self._runner.vocab_size), None)
        if unknown is not None:
            raise RequestError(f"token id {unknown} is not below the vocabulary's size {self._runner.vocab_size}")
