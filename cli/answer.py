"""One answer of the engine: how it is asked for, how it is followed step by step, and how fast it came."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from ..errors import NetworkError
from ..llama.engine import Engine, FinishReason, Output, Request, TopLogprobs
from ..llama.load import LoadedModel
from ..llama.sampling import SamplingParams
from .options import StopFlags


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """What every answer of a command has in common.

    Attributes:
        max_tokens: None for as many as the context holds.
    """

    sampling: SamplingParams
    max_tokens: int | None
    eos_token_ids: frozenset[int]
    stop: tuple[str, ...]
    stop_ids: tuple[tuple[int, ...], ...]

    @classmethod
    def of(
        cls,
        model: LoadedModel,
        sampling: SamplingParams,
        flags: StopFlags,
        template_stops: bool = True,
        eos: bool = True,
    ) -> "AnswerSettings":
        """The user's stops, and the model's own: those of its chat template too, or none of them with ``eos`` false."""
        tokenizer = model.tokenizer
        own = model.template.stops if template_stops and eos else ()
        own_ids = tokenizer.stop_ids(own)
        return cls(
            sampling=sampling,
            max_tokens=flags.max_tokens,
            eos_token_ids=frozenset(model.config.eos_token_ids).union(*own_ids) if eos else frozenset(),
            stop=(*flags.stop, *own),
            stop_ids=(*flags.stop_sequences(), *tokenizer.stop_ids(flags.stop)),
        )

    def request(self, prompt_token_ids: Sequence[int], max_context: int) -> Request:
        """A request of its own name for the answer to a prompt."""
        return Request(
            request_id=f"answer-{next(_NUMBERS)}",
            prompt_token_ids=prompt_token_ids,
            max_tokens=max_context if self.max_tokens is None else self.max_tokens,
            sampling=self.sampling,
            eos_token_ids=self.eos_token_ids,
            stop=self.stop,
            stop_ids=self.stop_ids,
        )


_NUMBERS = count(1)


@dataclass(slots=True)
class Answer:
    """What came back so far, and when.

    Attributes:
        num_prompt: tokens of the prompt; num_cached of them were not computed again.
        error: why it could not go on; what came before is kept.
        ttft_s: seconds to the first token; None before it.
        decode_s: seconds from the first token to the last.
    """

    num_prompt: int
    num_cached: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TopLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: NetworkError | None = None
    ttft_s: float | None = None
    decode_s: float = 0.0

    def take(self, output: Output, elapsed_s: float) -> None:
        """Add what a step brought, ``elapsed_s`` after the request was made."""
        self.text += output.text
        self.token_ids.extend(output.token_ids)
        self.logprobs.extend(output.logprobs)
        self.num_cached = output.num_cached
        self.finish_reason = output.finish_reason
        if output.token_ids and self.ttft_s is None:
            self.ttft_s = elapsed_s
        elif output.token_ids:
            self.decode_s = elapsed_s - (self.ttft_s or 0.0)

    @property
    def prefill_tokens_per_s(self) -> float:
        """Tokens of the prompt that were computed, by the time to the first token; 0 without one."""
        return (self.num_prompt - self.num_cached) / self.ttft_s if self.ttft_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens after the first, by the time they took; 0 if there is none."""
        return (len(self.token_ids) - 1) / self.decode_s if self.decode_s else 0.0


def follow(engine: Engine, request: Request, show: Callable[[str], None], stopped: Callable[[], bool]) -> Answer:
    """Run a request to its end, or until ``stopped`` says so after a step; ``show`` gets the text as it comes.

    Where the layers are served by nobody any more, the answer ends with what there is of it.

    Raises:
        RequestError: it can never run.
    """
    answer = Answer(len(request.prompt_token_ids))
    start = time.perf_counter()
    engine.add(request)
    try:
        while answer.finish_reason is None:
            try:
                outputs = engine.step()
            except NetworkError as error:
                answer.error, outputs = None if stopped() else error, []
            for output in outputs:
                answer.take(output, time.perf_counter() - start)
                show(output.text)
            if answer.finish_reason is None and (answer.error is not None or stopped()):
                final = engine.cancel(request.request_id)
                assert final is not None, "a request that goes on is in flight"
                answer.take(final, time.perf_counter() - start)
                show(final.text)
    finally:
        engine.cancel(request.request_id)
    return answer
