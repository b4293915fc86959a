"""What a step must read and compute, from the model's config alone: the same for whoever carries it out.

bytes read in a decode step   every weight once, but for the embedding, of which it reads a row, and all keys and values
operations of a prefill       2 for each weight of a projection and token, 4 D for each query head and key it sees; the
                              head computes one row
"""

from dataclasses import dataclass
from math import prod

import torch

from ..llama.config import ModelConfig
from ..llama.kv_cache import KVShape
from ..llama.weights import NamedShape, head_tensors, layer_tensors


@dataclass(frozen=True, slots=True)
class ModelWork:
    """Reads and operations of a model whose weights, keys and values are ``dtype``."""

    config: ModelConfig
    dtype: torch.dtype

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a decode step reads."""
        config = self.config
        layers = sum(_count(list(layer_tensors(config, index).values())) for index in range(config.num_layers))
        return (layers + _count(list(head_tensors(config).values())) + config.hidden_size) * self.dtype.itemsize

    def decode_bytes(self, context: float) -> float:
        """Bytes that a decode step reads when its sequence has ``context`` tokens, the new one included."""
        config = self.config
        per_layer = KVShape(1, config.num_kv_heads, config.head_dim, self.dtype).bytes_per_token
        seen = sum(min(context, window) if window else context for window in config.sliding_windows)
        return self.weight_bytes + per_layer * seen

    def prefill_operations(self, num_tokens: int) -> int:
        """Additions and multiplications for a prompt of ``num_tokens`` on an empty cache."""
        config = self.config
        in_layers = sum(
            prod(shape)
            for index in range(config.num_layers)
            for _, shape in layer_tensors(config, index).values()
            if len(shape) == 2
        )
        pairs = sum(_visible_pairs(num_tokens, window) for window in config.sliding_windows)
        head = config.vocab_size * config.hidden_size
        return 2 * in_layers * num_tokens + 4 * config.head_dim * config.num_heads * pairs + 2 * head


def _count(tensors: list[NamedShape]) -> int:
    """Elements in all."""
    return sum(prod(shape) for _, shape in tensors)


def _visible_pairs(num_tokens: int, window: int) -> int:
    """Pairs of a query and a key that it sees."""
    width = min(num_tokens, window) if window else num_tokens
    return width * (width + 1) // 2 + (num_tokens - width) * width
