"""ForwardBatch: what one pass through the layers needs to know about the sequences in it. Passed, never global.

A batch is ragged: any mix of prefill chunks, decode tokens and draft tokens, one row per new token, sequences one
behind the other. T new tokens, B sequences, S page_size.
"""

from collections.abc import Sequence
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
    def build(cls, chunks: Sequence[Chunk], sequences: SequenceTable, device: torch.device) -> "ForwardBatch":
        """Lay out ``chunks``, for which pages are reserved already."""
        size = sequences.pool.page_size
        ends = [chunk.position + chunk.num_tokens for chunk in chunks]
        rows = [
            sequences.block_row(chunk.sequence_id)[: -(-end // size)] for chunk, end in zip(chunks, ends, strict=True)
        ]
        table = np.zeros((len(chunks), max(len(row) for row in rows)), dtype=np.int32)
        for index, row in enumerate(rows):
            table[index, : len(row)] = row
        positions = [np.arange(chunk.position, end) for chunk, end in zip(chunks, ends, strict=True)]
        slots = [sequences.slots(chunk.sequence_id, chunk.position, chunk.num_tokens) for chunk in chunks]
        starts = np.cumsum([0, *(chunk.num_tokens for chunk in chunks)], dtype=np.int32)
        block_table, seq_lens, cu_seqlens_q = (
            torch.from_numpy(array).to(device) for array in (table, np.array(ends, dtype=np.int32), starts)
        )
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
            ),
            longest=max(ends),
        )
