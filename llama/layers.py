"""One transformer layer: the arithmetic of a Llama block over a ragged batch, on weights that are already loaded.

Legend: T new tokens of all sequences, E hidden_size, H num_heads, K num_kv_heads, D head_dim, F intermediate_size.
Weights lie as docs/architecture.md says: q, k and v merged into one projection, gate and up merged too unless the
CPU's fused projections serve them better apart.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..kernels import Linear, add_rms_norm, normed_swiglu, paged_attention, rope_and_write_kv
from .batch import ForwardBatch
from .kv_cache import KVPages

Rotation = tuple[Tensor, Tensor]  # cosines and sines of the new tokens, f32 [T, D/2] each


class GateUp(Protocol):
    """silu(y Wg^T) * (y Wu^T) of y = the RMSNorm of x: [T, E] -> [T, F]."""

    def __call__(self, x: Tensor, norm: Tensor, eps: float) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class MergedGateUp:
    """One projection to [T, 2F], then the SwiGLU kernel."""

    gate_up: Linear

    def __call__(self, x: Tensor, norm: Tensor, eps: float) -> Tensor:
        return normed_swiglu(self.gate_up, x, norm, eps)


@dataclass(frozen=True, slots=True)
class FusedGateUp:
    """Two projections that carry the activation and the product with them, so that neither result is read again."""

    gate: Linear
    up: Linear

    def __call__(self, x: Tensor, norm: Tensor, eps: float) -> Tensor:
        y = add_rms_norm(x, norm, eps)
        return self.up.mul(y, self.gate.swish(y))


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The parameters of one layer; norms are [E], or [D] for the heads' norms of Qwen3."""

    input_norm: Tensor
    qkv: Linear  # E -> (H + 2K) * D, in the order q, k, v
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Linear  # H * D -> E
    post_norm: Tensor
    gate_up: GateUp
    down: Linear  # F -> E


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What a layer's arithmetic depends on beside its weights. sliding_window 0 sees everything."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    sliding_window: int

    @property
    def softmax_scale(self) -> float:
        """1 / sqrt(head_dim)."""
        return self.head_dim**-0.5


class Layer:
    """Attention and MLP with their norms and residuals."""

    def __init__(self, shape: LayerShape, weights: LayerWeights) -> None:
        self.shape = shape
        self.weights = weights

    def __call__(self, hidden: Tensor, batch: ForwardBatch, rotation: Rotation, pages: KVPages) -> Tensor:
        """hidden: [T, E] -> [T, E]; writes the new tokens' keys and values into the layer's pages."""
        weights, eps = self.weights, self.shape.rms_norm_eps
        qkv = weights.qkv.normed(hidden, weights.input_norm, eps)  # [T, (H + 2K) * D]
        hidden = weights.o.add(self._attend(qkv, batch, rotation, pages), hidden)
        return weights.down.add(weights.gate_up(hidden, weights.post_norm, eps), hidden)

    def _attend(self, qkv: Tensor, batch: ForwardBatch, rotation: Rotation, pages: KVPages) -> Tensor:
        """qkv: [T, (H + 2K) * D] -> [T, H * D]."""
        shape = self.shape
        if self.weights.q_norm is not None:
            self._norm_heads(qkv)
        q = rope_and_write_kv(  # [T, H, D]
            qkv,
            *rotation,
            None,
            batch.slot_mapping,
            pages.k_pages,
            pages.v_pages,
            k_scales=pages.k_scales,
            v_scales=pages.v_scales,
        )
        attended = paged_attention(
            q,
            pages.k_pages,
            pages.v_pages,
            batch.block_table,
            batch.seq_lens,
            batch.cu_seqlens_q,
            softmax_scale=shape.softmax_scale,
            sliding_window=shape.sliding_window,
            plan=batch.plan,
            k_scales=pages.k_scales,
            v_scales=pages.v_scales,
        )
        return attended.view(qkv.shape[0], shape.num_heads * shape.head_dim)

    def _norm_heads(self, qkv: Tensor) -> None:
        """Qwen3: RMSNorm over each head of q and of k, in place in qkv: [T, (H + 2K) * D]."""
        shape = self.shape
        heads = qkv.view(qkv.shape[0], -1, shape.head_dim)  # [T, H + 2K, D]
        q_end, k_end = shape.num_heads, shape.num_heads + shape.num_kv_heads
        for norm, part in ((self.weights.q_norm, heads[:, :q_end]), (self.weights.k_norm, heads[:, q_end:k_end])):
            assert norm is not None
            part.copy_(add_rms_norm(part, norm, shape.rms_norm_eps))
