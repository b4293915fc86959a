"""Runner: what an engine needs from whoever computes, and LocalRunner, which computes here.

An engine speaks in sequence ids, positions and token counts, never in pages, so a runner that works over a network is
the same to it. SpanRunner is the part of LocalRunner that knows layers and pages but no tokens: what a node that serves
a span is built on.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import Chunk, ForwardBatch, cut
from .decode_step import Capture, DecodeRow, PaddedDecode, Progress, StaticDecode
from .kv_cache import KVCache
from .model import Model, Span
from .pages import PagePool
from .prefix_cache import PrefixCache
from .sampling import SampledToken
from .sequences import SequenceTable
from .step_sampler import StepItem, StepSampler

# A batch-invariant pass: as many as a GPU's matrix-vector kernel and a CPU's registers take at once, so that a decode
# step of one token costs little more than one row; a prompt costs a reading of the weights for each pass.
INVARIANT_ROWS = 16


def is_static_decode(items: Sequence[StepItem], stretches_at: Callable[[int], bool]) -> bool:
    """Whether a StaticDecode can compute ``items``: one token and one draw each, and nothing that only the host knows.

    That is a repetition penalty, logprobs, and frequencies that depend on the longest sequence (Rotary.stretches_at).
    """
    return all(
        len(item.token_ids) == item.num_samples == 1
        and item.sampling.repetition_penalty == 1.0
        and item.sampling.logprobs == 0
        and not stretches_at(item.position + 1)
        for item in items
    )


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
    """A span's layers with the KV memory of the sequences that pass through them.

    Args:
        batch_invariant: compute INVARIANT_ROWS rows at a time, never more and never fewer, so that each token's result
            is the same to the last bit in any company and however its sequence is cut into steps.
    """

    def __init__(
        self,
        span: Span,
        cache: KVCache,
        sequences: SequenceTable,
        device: torch.device,
        batch_invariant: bool = False,
    ) -> None:
        self.span = span
        self.cache = cache
        self.sequences = sequences
        self.device = device
        self.batch_invariant = batch_invariant

    def forward(self, chunks: Sequence[Chunk], hidden: Tensor) -> Tensor:
        """hidden: [T, E], the chunks' tokens one behind the other -> [T, E]. Room must be reserved.

        The caller records the tokens with ``sequences.append`` afterwards.
        """
        self.make_writable(chunks)
        if self.batch_invariant:
            return self._forward_in_rows(chunks, hidden)
        batch = ForwardBatch.build(chunks, self.sequences, self.device)
        return self.span(hidden, batch, self.cache)

    def _forward_in_rows(self, chunks: Sequence[Chunk], hidden: Tensor) -> Tensor:
        """`forward` in passes of INVARIANT_ROWS rows, the last one filled up: every kernel always sees one shape."""
        passed = []
        for group, rows in zip(cut(chunks, INVARIANT_ROWS), hidden.split(INVARIANT_ROWS), strict=True):
            batch = ForwardBatch.build(group, self.sequences, self.device, INVARIANT_ROWS)
            padded = F.pad(rows, (0, 0, 0, INVARIANT_ROWS - rows.shape[0]))
            passed.append(self.span(padded, batch, self.cache)[: rows.shape[0]])
        return torch.cat(passed)

    def part(self, start: int, end: int) -> "SpanRunner":
        """Its layers ``start .. end`` alone, over the same pages and sequences, none of which may share a page."""
        first, last = start - self.span.start, end - self.span.start
        span = Span(start, self.span.layers[first:last], self.span.rotary)
        return SpanRunner(span, self.cache.part(first, last), self.sequences, self.device, self.batch_invariant)

    def make_writable(self, chunks: Sequence[Chunk]) -> None:
        """Copy the pages that ``chunks`` will write to and others still read; ``forward`` does it by itself."""
        self.cache.copy_pages(self.sequences.take_copies())
        for chunk in chunks:
            length = self.sequences.length(chunk.sequence_id)
            assert chunk.position == length, f"a step at {chunk.position} of a sequence of {length}: roll back first"


class LocalRunner:
    """A whole model on this machine. It knows the tokens, so it keeps a prefix cache.

    Args:
        kv_dtype: of the keys and values; None for the model's.
    """

    def __init__(
        self, model: Model, num_pages: int, page_size: int, max_context: int, kv_dtype: torch.dtype | None = None
    ) -> None:
        assert model.embed is not None and model.head is not None, "a LocalRunner needs the whole model"
        assert max_context <= num_pages * page_size, "a sequence of max_context tokens must fit"
        self._model = model
        self._embed = model.embed
        self._device = model.device
        self._max_context = max_context
        pool = PagePool(num_pages, page_size)
        self.sequences = SequenceTable(pool, PrefixCache(pool))
        shape = replace(model.kv_shape, dtype=kv_dtype or model.dtype)
        cache = KVCache(shape, num_pages, page_size, model.device)
        self._span = SpanRunner(model.span, cache, self.sequences, model.device)
        self._sampler = StepSampler(model.head, model.config.vocab_size, model.device, self.sequences.token_ids)
        self._decode: PaddedDecode | None = None

    @property
    def max_context(self) -> int:
        """Tokens that one sequence may have."""
        return self._max_context

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        return self._model.config.vocab_size

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
        self._sampler.forget(sequence_id)

    def release(self, sequence_id: int) -> None:
        """See Runner.release."""
        self.sequences.release(sequence_id)
        self._sampler.forget(sequence_id)

    def prepare_decode(self, max_sequences: int, capture: Capture, progress: Progress | None = None) -> None:
        """From now on run decode steps of up to ``max_sequences`` sequences as StaticDecodes, each as ``capture`` says.

        Steps that ask for more than a StaticDecode knows go the ordinary way; the results are the same.
        """

        def build(batch_size: int) -> StaticDecode:
            return StaticDecode(self._model, self._span.cache, self._max_context, batch_size)

        self._decode = PaddedDecode(build, max_sequences, capture, progress)

    @torch.inference_mode()
    def step(self, items: Sequence[StepItem]) -> list[list[SampledToken]]:
        """See Runner.step."""
        decode = self._decode
        if decode is not None and decode.holds(len(items)) and is_static_decode(items, self._stretches_at):
            return self._step_static(decode, items)
        chunks = [Chunk(item.sequence_id, item.position, len(item.token_ids)) for item in items]
        token_ids = torch.tensor([token_id for item in items for token_id in item.token_ids], dtype=torch.int64)
        hidden = self._embed(token_ids.to(self._device))  # [T, E]
        hidden = self._span.forward(chunks, hidden)  # [T, E]
        for item in items:
            self.sequences.append(item.sequence_id, item.token_ids)
        wanted: list[int] = []
        end = 0
        for item in items:
            end += len(item.token_ids)
            wanted.extend(range(end - item.num_samples, end))
        if len(wanted) < hidden.shape[0]:
            hidden = hidden[torch.tensor(wanted, dtype=torch.int64, device=self._device)]  # [R, E]
        return self._sampler.draw(hidden, items)

    def check_integrity(self) -> None:
        """Assert every invariant of the sequences, the pool and the prefix cache."""
        self.sequences.check_integrity()

    def _step_static(self, decode: PaddedDecode, items: Sequence[StepItem]) -> list[list[SampledToken]]:
        """`step` by one that is prepared; reading the ids is all that waits for the device."""
        self._span.make_writable([Chunk(item.sequence_id, item.position, 1) for item in items])
        step = decode.launch(
            [
                DecodeRow(item.token_ids[0], item.position, self.sequences.block_row(item.sequence_id), item.sampling)
                for item in items
            ]
        )
        for item in items:
            self.sequences.append(item.sequence_id, item.token_ids)
        return [[SampledToken(token_id)] for token_id in step.drawn(len(items))]

    def _stretches_at(self, seq_len: int) -> bool:
        return self._model.span.rotary.stretches_at(seq_len)
