"""From rows that were computed to the tokens drawn behind them, at a last hop that holds the head.

The same arithmetic as a caller's own: the rows are unpacked as it would unpack them, and randomness is a function of
seed and position, so the tokens are the same wherever they are drawn.

Legend: R rows of all sessions, V vocab_size.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..llama.model import Head
from ..llama.sampling import SampledToken, SampleRow, SamplingParams, sample_rows
from .activations import unpack
from .draws import DrawRows
from .messages import Draw, DrawnToken


def draw_tokens(head: Head, draws: Sequence[DrawRows], device: torch.device) -> list[tuple[DrawnToken, ...]]:
    """Each of ``draws``' tokens, all computed in one pass of the head.

    Raises:
        ValueError: the model has run away, and log-probabilities that were asked for are no numbers.
    """
    hidden = torch.cat([unpack(one.step.payload, one.layout) for one in draws]).to(device)
    logits = head(hidden)  # [R, V]
    rows = [row for one in draws for row in _sample_rows(one, logits)]
    drawn = iter(sample_rows(logits, rows))
    return [tuple(_told(next(drawn)) for _ in range(one.step.num_wanted)) for one in draws]


def params_of(draw: Draw) -> SamplingParams:
    """The settings, as the sampler takes them."""
    return SamplingParams(
        temperature=draw.temperature,
        top_k=draw.top_k,
        top_p=draw.top_p,
        min_p=draw.min_p,
        repetition_penalty=draw.repetition_penalty,
        seed=draw.seed,
        logprobs=draw.num_logprobs,
    )


def _sample_rows(one: DrawRows, logits: Tensor) -> list[SampleRow]:
    params = params_of(one.draw)
    positions = range(one.first + 1, one.first + 1 + one.step.num_wanted)  # of the tokens, each behind its row
    if not one.context:
        return [SampleRow(params, position) for position in positions]
    seen = torch.zeros(one.step.num_wanted, logits.shape[1], dtype=torch.bool, device=logits.device)
    for row, position in zip(seen, positions, strict=True):
        row[torch.tensor(one.context[:position], device=logits.device)] = True
    return [SampleRow(params, position, row) for position, row in zip(positions, seen, strict=True)]


def _told(token: SampledToken) -> DrawnToken:
    if any(math.isnan(logprob) for _, logprob in token.logprobs):
        raise ValueError("the model's log-probabilities are no numbers")
    return DrawnToken(token.token_id, token.logprobs)
