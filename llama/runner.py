"""Runner: what an engine needs from whoever computes, and LocalRunner, which computes here.

An engine speaks in sequence ids, positions and token counts, never in pages, so a runner that works over a network is
the same to it. SpanRunner is the part of LocalRunner that knows layers and pages but no tokens: what a node that serves
a span is built on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .batch import Chunk, ForwardBatch
from .kv_cache import KVCache
from .model import Model, Span
from .pages import PagePool
from .prefix_cache import PrefixCache
from .sampling import SampledToken, SampleRow, SamplingParams, sample_rows
from .sequences import SequenceTable


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


class Runner(Protocol):
    """Computes steps of many sequences.

    Attributes:
        max_context: tokens that one sequence may have.
        vocab_size: ids are below it.
    """

    @property
    def max_context(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    def open(self, sequence_id: int, token_ids: Sequence[int]) -> int:
        """Begin a sequence that will start with ``token_ids``; returns how many, not all, need not be computed."""
        ...

    def reserve(self, sequence_id: int, num_tokens: int) -> None:
        """Make room for the sequence's first ``num_tokens`` tokens, or raise OutOfPages and change nothing."""
        ...

    def step(self, items: Sequence[StepItem]) -> list[list[SampledToken]]:
        """Compute the items' tokens, for which room is reserved; returns each item's drawn tokens."""
        ...

    def fork(self, sequence_id: int, new_id: int) -> None:
        """Open ``new_id`` with the same tokens, without computing them again."""
        ...

    def rollback(self, sequence_id: int, length: int) -> None:
        """Forget the sequence's tokens from ``length`` on."""
        ...

    def release(self, sequence_id: int) -> None:
        """Close a sequence."""
        ...


class SpanRunner:
    """A span's layers with the KV memory of the sequences that pass through them."""

    def __init__(self, span: Span, cache: KVCache, sequences: SequenceTable, device: torch.device) -> None:
        self.span = span
        self.cache = cache
        self.sequences = sequences
        self.device = device

    def forward(self, chunks: Sequence[Chunk], hidden: Tensor) -> Tensor:
        """hidden: [T, E], the chunks' tokens one behind the other -> [T, E]. Room must be reserved.

        The caller records the tokens with ``sequences.append`` afterwards.
        """
        self.cache.copy_pages(self.sequences.take_copies())
        for chunk in chunks:
            length = self.sequences.length(chunk.sequence_id)
            assert chunk.position == length, f"a step at {chunk.position} of a sequence of {length}: roll back first"
        batch = ForwardBatch.build(chunks, self.sequences, self.device)
        return self.span(hidden, batch, self.cache)


class LocalRunner:
    """A whole model on this machine. It knows the tokens, so it keeps a prefix cache."""

    def __init__(self, model: Model, num_pages: int, page_size: int, max_context: int) -> None:
        assert model.embed is not None and model.head is not None, "a LocalRunner needs the whole model"
        assert max_context <= num_pages * page_size, "a sequence of max_context tokens must fit"
        self._embed, self._head = model.embed, model.head
        self._device = model.device
        self._vocab_size = model.config.vocab_size
        self._max_context = max_context
        pool = PagePool(num_pages, page_size)
        self.sequences = SequenceTable(pool, PrefixCache(pool))
        cache = KVCache(model.kv_shape, num_pages, page_size, model.device)
        self._span = SpanRunner(model.span, cache, self.sequences, model.device)
        self._seen = _SeenTokens(model.config.vocab_size, model.device)

    @property
    def max_context(self) -> int:
        """Tokens that one sequence may have."""
        return self._max_context

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        return self._vocab_size

    def open(self, sequence_id: int, token_ids: Sequence[int]) -> int:
        """See Runner.open."""
        return self.sequences.open(sequence_id, token_ids)

    def reserve(self, sequence_id: int, num_tokens: int) -> None:
        """See Runner.reserve."""
        self.sequences.reserve(sequence_id, num_tokens)

    def fork(self, sequence_id: int, new_id: int) -> None:
        """See Runner.fork."""
        self.sequences.fork(sequence_id, new_id)

    def rollback(self, sequence_id: int, length: int) -> None:
        """See Runner.rollback."""
        self.sequences.rollback(sequence_id, length)
        self._seen.forget(sequence_id)

    def release(self, sequence_id: int) -> None:
        """See Runner.release."""
        self.sequences.release(sequence_id)
        self._seen.forget(sequence_id)

    @torch.inference_mode()
    def step(self, items: Sequence[StepItem]) -> list[list[SampledToken]]:
        """See Runner.step."""
        chunks = [Chunk(item.sequence_id, item.position, len(item.token_ids)) for item in items]
        token_ids = torch.tensor([token_id for item in items for token_id in item.token_ids], dtype=torch.int64)
        hidden = self._embed(token_ids.to(self._device))  # [T, E]
        hidden = self._span.forward(chunks, hidden)  # [T, E]
        for item in items:
            self.sequences.append(item.sequence_id, item.token_ids)
        wanted: list[int] = []
        rows: list[SampleRow] = []
        end = 0
        for item in items:
            end += len(item.token_ids)
            wanted.extend(range(end - item.num_samples, end))
            rows.extend(self._sample_rows(item))
        if not wanted:
            return [[] for _ in items]
        if len(wanted) < hidden.shape[0]:
            hidden = hidden[torch.tensor(wanted, device=self._device)]  # [R, E]
        drawn = iter(sample_rows(self._head(hidden), rows))
        return [[next(drawn) for _ in range(item.num_samples)] for item in items]

    def check_integrity(self) -> None:
        """Assert every invariant of the sequences, the pool and the prefix cache."""
        self.sequences.check_integrity()

    def _sample_rows(self, item: StepItem) -> list[SampleRow]:
        """What the sampler must know for each token that ``item`` draws."""
        end = item.position + len(item.token_ids)
        positions = range(end - item.num_samples + 1, end + 1)
        if item.sampling.repetition_penalty == 1.0:
            return [SampleRow(item.sampling, position) for position in positions]
        context = self.sequences.token_ids(item.sequence_id)
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
