"""ForwardBatch: what one pass through the layers needs to know about the sequences in it. Passed, never global.

A batch is ragged: any mix of prefill chunks, decode tokens and draft tokens, one row per new token, sequences one
behind the other. T new tokens, B sequences, S page_size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..kernels import AttentionPlan, plan_attention
from .sequences import SequenceTable


@dataclass(frozen=True, slots=True)
class Chunk:
    """The part of one sequence that a step computes: ``num_tokens`` from ``position`` on."""

    sequence_id: int
    position: int
    num_tokens: int


def cut(chunks: Sequence[Chunk], num_tokens: int) -> Iterator[list[Chunk]]:
    """The same tokens in order, in groups of ``num_tokens``; the last one may have fewer."""
    group: list[Chunk] = []
    room = num_tokens
    for chunk in chunks:
        start, end = chunk.position, chunk.position + chunk.num_tokens
        while start < end:
            count = min(room, end - start)
            group.append(Chunk(chunk.sequence_id, start, count))
            start, room = start + count, room - count
            if room == 0:
                yield group
                group, room = [], num_tokens
    if group:
        yield group


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """The tensors of one step, on the model's device.

    Attributes:
        positions: int64 [T], each new token's position in its sequence.
        slot_mapping: int64 [T], page * page_size + offset, where its keys and values go.
        block_table: int32 [B, max_pages], each sequence's pages; what lies behind a sequence's length is undefined.
        seq_lens: int32 [B], tokens of each sequence including the new ones.
        cu_seqlens_q: int32 [B + 1], where each sequence's new tokens begin among the T.
        plan: how attention is carried out, made once for all layers.
        longest: the greatest of seq_lens; 0 where the host does not know them, as in a captured step.
    """

    positions: Tensor
    slot_mapping: Tensor
    block_table: Tensor
    seq_lens: Tensor
    cu_seqlens_q: Tensor
    plan: AttentionPlan
    longest: int

    @classmethod
    def build(
        cls, chunks: Sequence[Chunk], sequences: SequenceTable, device: torch.device, invariant_rows: int = 0
    ) -> "ForwardBatch":
        """Lay out ``chunks``, for which pages are reserved already.

        With ``invariant_rows`` the batch has that many tokens, those behind the chunks' being padding that sees nothing
        and writes nothing, and each token's attention is the same to the last bit whatever else is there.
        """
        size = sequences.pool.page_size
        ends = [chunk.position + chunk.num_tokens for chunk in chunks]
        num_padding = max(invariant_rows - sum(chunk.num_tokens for chunk in chunks), 0)
        rows = [
            sequences.block_row(chunk.sequence_id)[: -(-end // size)] for chunk, end in zip(chunks, ends, strict=True)
        ]
        table = np.zeros((len(chunks) + num_padding, max(len(row) for row in rows)), dtype=np.int32)
        for index, row in enumerate(rows):
            table[index, : len(row)] = row
        positions = [np.arange(chunk.position, end) for chunk, end in zip(chunks, ends, strict=True)]
        slots = [sequences.slots(chunk.sequence_id, chunk.position, chunk.num_tokens) for chunk in chunks]
        if num_padding:  # each row a sequence of no tokens, as in decode_step.py
            positions.append(np.zeros(num_padding, dtype=np.int64))
            slots.append(np.full(num_padding, -1, dtype=np.int64))
        starts = np.cumsum([0, *(chunk.num_tokens for chunk in chunks), *[1] * num_padding], dtype=np.int32)
        lengths = np.array([*ends, *[0] * num_padding], dtype=np.int32)
        block_table, seq_lens, cu_seqlens_q = (torch.from_numpy(array).to(device) for array in (table, lengths, starts))
        return cls(
            positions=torch.from_numpy(np.concatenate(positions)).to(device),
            slot_mapping=torch.from_numpy(np.concatenate(slots)).to(device),
            block_table=block_table,
            seq_lens=seq_lens,
            cu_seqlens_q=cu_seqlens_q,
            plan=plan_attention(
                block_table,
                seq_lens,
                cu_seqlens_q,
                page_size=size,
                max_query_len=max(chunk.num_tokens for chunk in chunks),
                batch_invariant=invariant_rows > 0,
            ),
            longest=max(ends),
        )
