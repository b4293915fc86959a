"""Embed, Span and Head: the three parts of a Llama. The whole model is the three in a row; a node may hold any of them.

Legend: T new tokens, R rows whose logits are wanted, E hidden_size, V vocab_size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import Linear
from .batch import ForwardBatch
from .config import ModelConfig
from .kv_cache import KVCache, KVShape
from .layers import Layer
from .rotary import Rotary


class Embed:
    """Token ids to hidden states."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight  # [V, E]

    def __call__(self, token_ids: Tensor) -> Tensor:
        """token_ids: int64 [T] -> [T, E]."""
        return F.embedding(token_ids, self.weight)


class Span:
    """The layers ``start .. end`` of a model, half-open."""

    def __init__(self, start: int, layers: Sequence[Layer], rotary: Rotary) -> None:
        self.start = start
        self.end = start + len(layers)
        self.layers = list(layers)
        self.rotary = rotary

    def __call__(self, hidden: Tensor, batch: ForwardBatch, cache: KVCache) -> Tensor:
        """hidden: [T, E] -> [T, E]; the new tokens' keys and values are in ``cache`` afterwards."""
        rotation = self.rotary(batch)
        for layer, pages in zip(self.layers, cache.layers, strict=True):
            hidden = layer(hidden, batch, rotation, pages)
        return hidden


class Head:
    """The last norm and the projection to the vocabulary."""

    def __init__(self, norm: Tensor, projection: Linear, rms_norm_eps: float) -> None:
        self.norm = norm
        self.projection = projection
        self.rms_norm_eps = rms_norm_eps

    def __call__(self, hidden: Tensor) -> Tensor:
        """hidden: [R, E] -> logits f32 [R, V]."""
        return self.projection.normed(hidden, self.norm, self.rms_norm_eps).float()


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model, or the part of it that a node holds: no embed in a later hop, no head in an earlier one."""

    config: ModelConfig
    dtype: torch.dtype
    device: torch.device
    embed: Embed | None
    span: Span
    head: Head | None

    @property
    def kv_shape(self) -> KVShape:
        """What the span's keys and values take in the model's own dtype."""
        config = self.config
        return KVShape(self.span.end - self.span.start, config.num_kv_heads, config.head_dim, self.dtype)
