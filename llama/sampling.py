"""From logits to token ids, for many requests with different settings at once.

Randomness is a function of (seed, position), not a stream: the token at a position is drawn with the same number
whether it is computed now, again after a preemption, or on another peer. Which draw a number selects is
kernels/sample.py's.

Legend: R rows, V vocab_size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import RequestError
from ..kernels import sample

MAX_LOGPROBS = 100  # per step; each costs a pair in every output
_MASK64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request picks its tokens.

    Attributes:
        temperature: 0 is greedy; the other settings but repetition_penalty then change nothing.
        top_k: keep the k most likely; 0 keeps all.
        top_p: keep the most likely until their probability reaches p; 1 keeps all.
        min_p: keep those at least min_p times as likely as the most likely; 0 keeps all.
        repetition_penalty: divides positive logits of tokens already in the context, multiplies negative ones; 1 is off
            (Keskar et al. 2019, arXiv 1909.05858).
        seed: same seed, same text; None draws one when the request is added.
        logprobs: how many of the most likely tokens to report a step, with log-probabilities before sampling.

    Raises:
        RequestError: a value is out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    logprobs: int = 0

    def __post_init__(self) -> None:
        checks = (
            ("temperature", self.temperature, 0.0 <= self.temperature <= 100.0, "between 0 and 100"),
            ("top_k", self.top_k, 0 <= self.top_k < 2**31, "0 (off) or more"),
            ("top_p", self.top_p, 0.0 <= self.top_p <= 1.0, "between 0 and 1"),
            ("min_p", self.min_p, 0.0 <= self.min_p <= 1.0, "between 0 and 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                0.0 < self.repetition_penalty <= 100.0,
                "above 0, at most 100",
            ),
            ("seed", self.seed, self.seed is None or 0 <= self.seed <= _MASK64, "between 0 and 2^64 - 1"),
            ("logprobs", self.logprobs, 0 <= self.logprobs <= MAX_LOGPROBS, f"between 0 and {MAX_LOGPROBS}"),
        )
        for name, value, allowed, expected in checks:
            if not allowed:
                raise RequestError(f"{name} is {value}; it must be {expected}")


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One row of logits: whose settings, which position its token will have, and which tokens are in its context.

    ``seen`` is bool [V] and only needed with a repetition penalty.
    """

    params: SamplingParams
    position: int
    seen: Tensor | None = None


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A drawn token and the most likely ones as (id, log-probability), best first."""

    token_id: int
    logprobs: tuple[tuple[int, float], ...] = ()


def sample_rows(logits: Tensor, rows: Sequence[SampleRow]) -> list[SampledToken]:
    """Draw one token a row from ``logits``: f32 [R, V]."""
    logprobs = _top_logprobs(logits, rows)
    logits = _penalised(logits, rows)
    greedy = all(row.params.temperature == 0.0 for row in rows)
    token_ids = logits.argmax(dim=-1) if greedy else _draw(logits, rows)
    return [SampledToken(token_id, best) for token_id, best in zip(token_ids.tolist(), logprobs, strict=True)]


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from (seed, position) alone: SplitMix64 (Steele et al. 2014) of both, top 53 bits."""
    return (_splitmix64(_splitmix64(seed) ^ position) >> 11) * 2.0**-53


def draw_number(params: SamplingParams, position: int) -> float:
    """The number that decides which token is drawn for ``position``; 0 in greedy decoding, which draws nothing."""
    if params.temperature == 0.0:
        return 0.0
    assert params.seed is not None, "the engine resolves a missing seed"
    return uniform(params.seed, position)


def _draw(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    def column(values: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=logits.device)

    params = [row.params for row in rows]
    return sample(
        logits,
        temperature=column([one.temperature for one in params]),
        top_k=column([one.top_k for one in params], torch.int64),
        top_p=column([one.top_p for one in params]),
        min_p=column([one.min_p for one in params]),
        uniform=column([draw_number(row.params, row.position) for row in rows], torch.float64),
    )


def _top_logprobs(logits: Tensor, rows: Sequence[SampleRow]) -> list[tuple[tuple[int, float], ...]]:
    """The most likely tokens of the rows that ask for them."""
    asked = [index for index, row in enumerate(rows) if row.params.logprobs]
    result: list[tuple[tuple[int, float], ...]] = [()] * len(rows)
    if not asked:
        return result
    count = min(max(rows[index].params.logprobs for index in asked), logits.shape[-1])
    values, ids = torch.log_softmax(logits[asked], dim=-1).topk(count, dim=-1)
    for index, best_ids, best_values in zip(asked, ids.tolist(), values.tolist(), strict=True):
        wanted = rows[index].params.logprobs
        result[index] = tuple(zip(best_ids[:wanted], best_values[:wanted], strict=True))
    return result


def _penalised(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """The logits with each row's repetition penalty; the same tensor when no row has one."""
    penalised = [index for index, row in enumerate(rows) if row.params.repetition_penalty != 1.0]
    if not penalised:
        return logits
    logits = logits.clone()
    for index in penalised:
        row, seen = logits[index], rows[index].seen
        assert seen is not None, "a repetition penalty needs to know which tokens were seen"
        penalty = rows[index].params.repetition_penalty
        row.copy_(torch.where(seen, torch.where(row > 0, row / penalty, row * penalty), row))
    return logits


def _splitmix64(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
    return state ^ (state >> 31)
