"""Rotary: the cosines and sines of a step's tokens, from tables made once. The frequencies themselves: rope.py."""

import torch
from torch import Tensor

from .batch import ForwardBatch
from .rope import RopeConfig, inv_frequencies, rope_tables


class Rotary:
    """Tables for the positions below ``num_positions``, on one device.

    The dynamic kind stretches its frequencies once a sequence is longer than the model was trained for. As in
    transformers, that length is the sequence's at the step which computes the token, so the tables of such a step are
    made for it.
    """

    def __init__(self, rope: RopeConfig, head_dim: int, num_positions: int, device: torch.device) -> None:
        self._rope = rope
        self._head_dim = head_dim
        cos, sin = rope_tables(rope, head_dim, num_positions)
        self._cos, self._sin = cos.to(device), sin.to(device)  # [num_positions, D/2] f32

    def stretches_at(self, seq_len: int) -> bool:
        """Whether a step with a sequence this long has frequencies of its own, which only the host can make."""
        return self._rope.stretches_at(seq_len)

    def __call__(self, batch: ForwardBatch) -> tuple[Tensor, Tensor]:
        """Cosines and sines for the batch's tokens, f32 [T, D/2] each."""
        if self.stretches_at(batch.longest):
            return self._stretched(batch)
        return self._cos[batch.positions], self._sin[batch.positions]

    def _stretched(self, batch: ForwardBatch) -> tuple[Tensor, Tensor]:
        """The same where each sequence's frequencies depend on its length."""
        device = batch.positions.device
        frequencies, factors = [], []
        for length in batch.seq_lens.tolist():
            inv_freq, factor = inv_frequencies(self._rope, self._head_dim, length)
            frequencies.append(inv_freq)
            factors.append(factor)
        query_lens = batch.cu_seqlens_q.diff().long()
        per_token = torch.stack(frequencies).to(device).repeat_interleave(query_lens, dim=0)  # [T, D/2]
        scale = torch.tensor(factors, device=device).repeat_interleave(query_lens)[:, None]  # [T, 1]
        angles = batch.positions[:, None] * per_token
        return angles.cos() * scale, angles.sin() * scale
