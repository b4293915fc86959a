"""StepSampler: from the rows that the layers gave to the tokens that a step draws. Whoever computes the layers, here or
elsewhere, draws with this.

Legend: R rows whose logits are wanted, E hidden_size, V vocab_size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .model import Head
from .sampling import SampledToken, SampleRow, SamplingParams, sample_rows


@dataclass(frozen=True, slots=True)
class StepItem:
    """One sequence's share of a step: ``token_ids`` to compute from ``position`` on, and how many tokens to draw.

    ``num_samples`` tokens are drawn, behind each of the last that many rows: 0 inside a prompt, 1 at its end and in
    decode, k when k - 1 drafted tokens are verified.
    """

    sequence_id: int
    position: int
    token_ids: Sequence[int]
    num_samples: int
    sampling: SamplingParams


class StepSampler:
    """Norm, head and sampling, and what they must know of each sequence.

    Args:
        context: the token ids of a sequence, up to the end of its last item.
    """

    def __init__(
        self, head: Head, vocab_size: int, device: torch.device, context: Callable[[int], Sequence[int]]
    ) -> None:
        self._head = head
        self._context = context
        self._seen = _SeenTokens(vocab_size, device)

    def draw(self, hidden: Tensor, items: Sequence[StepItem]) -> list[list[SampledToken]]:
        """hidden: [R, E], the last ``num_samples`` rows of each item, one behind the other -> each item's tokens."""
        if not hidden.shape[0]:
            return [[] for _ in items]
        rows = [row for item in items for row in self._sample_rows(item)]
        drawn = iter(sample_rows(self._head(hidden), rows))
        return [[next(drawn) for _ in range(item.num_samples)] for item in items]

    def forget(self, sequence_id: int) -> None:
        """The sequence is closed, or shorter than it was."""
        self._seen.forget(sequence_id)

    def _sample_rows(self, item: StepItem) -> list[SampleRow]:
        """What the sampler must know for each token that ``item`` draws."""
        end = item.position + len(item.token_ids)
        positions = range(end - item.num_samples + 1, end + 1)
        if item.sampling.repetition_penalty == 1.0:
            return [SampleRow(item.sampling, position) for position in positions]
        context = self._context(item.sequence_id)
        return [
            SampleRow(item.sampling, position, self._seen.mask(item.sequence_id, context, position))
            for position in positions
        ]


class _SeenTokens:
    """Which tokens a sequence's context contains, brought up to date by the tokens that are new."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._masks: dict[int, tuple[Tensor, int]] = {}

    def mask(self, sequence_id: int, context: Sequence[int], length: int) -> Tensor:
        """bool [V]: the tokens among the first ``length`` of ``context``."""
        seen, counted = self._masks.get(sequence_id, (None, 0))
        if seen is None:
            seen = torch.zeros(self._vocab_size, dtype=torch.bool, device=self._device)
        if counted < length:
            seen = seen.clone()  # rows of one step may want different lengths
            seen[torch.tensor(context[counted:length], device=self._device)] = True
        self._masks[sequence_id] = (seen, length)
        return seen

    def forget(self, sequence_id: int) -> None:
        self._masks.pop(sequence_id, None)
