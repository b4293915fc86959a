"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864) and four ways to stretch them over longer contexts.

Frequencies and tables only; rotary.py gathers them for a batch and the kernel applies them. All arithmetic is float32,
in transformers' order, so that the tables are the same to the last bit or nearly.

Legend: D head_dim, N num_positions.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """How positions become angles.

    Attributes:
        kind: one of ROPE_KINDS.
        theta: base of the geometric series of wavelengths.
        factor: how many times longer than trained the context may get; every kind but default.
        original_max_position_embeddings: tokens of the context it was trained on; dynamic, llama3 and yarn.
        low_freq_factor, high_freq_factor: llama3; wavelengths beyond the trained length over these are stretched in
            full, and not at all.
        beta_fast, beta_slow: yarn; the same boundaries, as rotations within the trained length.
        truncate: yarn; whether these boundaries are rounded outwards to whole dimensions.
        attention_factor: yarn; multiplies cosines and sines; None derives it from the three that follow.
        mscale, mscale_all_dim: yarn; 0 is "not given".
    """

    kind: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0

    def __post_init__(self) -> None:
        assert self.kind in ROPE_KINDS

    def stretches_at(self, seq_len: int) -> bool:
        """Whether a sequence this long has frequencies of its own: the dynamic kind, longer than trained."""
        return self.kind == "dynamic" and seq_len > self.original_max_position_embeddings


def rope_tables(rope: RopeConfig, head_dim: int, num_positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the positions ``0 .. num_positions``, f32 [N, D/2] each, the attention factor within.

    The dynamic kind's are those of a sequence within the trained length.
    """
    inv_freq, attention_factor = inv_frequencies(rope, head_dim)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), inv_freq)  # [N, D/2]
    return angles.cos() * attention_factor, angles.sin() * attention_factor


def inv_frequencies(rope: RopeConfig, head_dim: int, seq_len: int | None = None) -> tuple[Tensor, float]:
    """Radians a position for each pair of dimensions, f32 [D/2], and the factor on cosines and sines.

    Args:
        seq_len: length of the sequence; matters to the dynamic kind only, where None is the trained length.
    """
    if rope.kind == "dynamic":
        return _geometric(_dynamic_theta(rope, head_dim, seq_len or 0), head_dim), 1.0
    inv_freq = _geometric(rope.theta, head_dim)
    if rope.kind == "linear":
        return inv_freq / rope.factor, 1.0
    if rope.kind == "llama3":
        return _llama3(rope, inv_freq), 1.0
    if rope.kind == "yarn":
        return _yarn(rope, head_dim), _yarn_attention_factor(rope)
    return inv_freq, 1.0


def _geometric(theta: float, head_dim: int) -> Tensor:
    """theta^(-2i / D) for i of 0 .. D/2."""
    return 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def _dynamic_theta(rope: RopeConfig, head_dim: int, seq_len: int) -> float:
    """NTK-aware: theta grows with the length, so that the longest wavelength grows by as much as is needed."""
    trained = rope.original_max_position_embeddings
    stretch = rope.factor * max(seq_len, trained) / trained - (rope.factor - 1)
    return rope.theta * stretch ** (head_dim / (head_dim - 2))


def _llama3(rope: RopeConfig, inv_freq: Tensor) -> Tensor:
    """Llama 3.1: long wavelengths divided by factor, short ones kept, a blend between. inv_freq: [D/2]."""
    trained = rope.original_max_position_embeddings
    wavelength = 2 * math.pi / inv_freq  # [D/2], in tokens
    blend = (trained / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - blend) * inv_freq / rope.factor + blend * inv_freq
    stretched = torch.where(wavelength > trained / rope.low_freq_factor, inv_freq / rope.factor, blended)
    return torch.where(wavelength < trained / rope.high_freq_factor, inv_freq, stretched)


def _yarn(rope: RopeConfig, head_dim: int) -> Tensor:
    """YaRN (Peng et al. 2023, arXiv 2309.00071, section 3.2): a ramp over the dimensions between kept and divided."""
    powers = rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)  # [D/2]
    low, high = _yarn_dimension(rope, head_dim, rope.beta_fast), _yarn_dimension(rope, head_dim, rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a step instead of a division by zero
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)  # [D/2]
    kept = 1 - ramp
    return 1.0 / (rope.factor * powers) * (1 - kept) + 1.0 / powers * kept


def _yarn_dimension(rope: RopeConfig, head_dim: int, rotations: float) -> float:
    """The dimension that turns ``rotations`` times within the trained length."""
    trained = rope.original_max_position_embeddings
    return head_dim * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))


def _yarn_attention_factor(rope: RopeConfig) -> float:
    """What keeps the attention's entropy as it was: 0.1 ln(factor) + 1 unless the config says otherwise."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    log_factor = math.log(rope.factor) if rope.factor > 1 else 0.0
    if rope.mscale and rope.mscale_all_dim:
        return (0.1 * rope.mscale * log_factor + 1.0) / (0.1 * rope.mscale_all_dim * log_factor + 1.0)
    return 0.1 * log_factor + 1.0
