"""How much memory a layer takes, and how many layers a machine has room for. Nothing is loaded to know it."""

from dataclasses import dataclass
from math import prod

import torch

from .config import ModelConfig
from .kv_cache import DEFAULT_PAGE_SIZE, KVShape
from .load import MEMORY_SHARE
from .weights import layer_tensors

CONTEXTS_OF_A_SPAN = 4  # whole ones, that a node makes room for before it takes one more layer
_SCALE_BYTES = 8  # of a row of 8-bit weights: a scale and, on a CPU, what its operators add
_GROUP_SIZE = 32  # weights of 4 bits: columns with a scale and a low end of their own, at the least
_SPAN = 128  # columns of codes are stored in so many


@dataclass(frozen=True, slots=True)
class LayerMemory:
    """Of a model's largest layer.

    Attributes:
        weight_bytes: as they are kept.
        kv_bytes: keys and values of a token.
    """

    weight_bytes: int
    kv_bytes: int

    def with_context(self, num_tokens: int) -> int:
        """Bytes of the weights, and of the keys and values of ``num_tokens``."""
        return self.weight_bytes + self.kv_bytes * num_tokens

    def num_fitting(self, free_bytes: int, max_context: int, num_contexts: int = CONTEXTS_OF_A_SPAN) -> int:
        """How many layers fit into what is free, with pages for so many contexts, as load.py's count_pages has it.

        Below 1, not even one layer does; it may be more than the model has.
        """
        num_tokens = -(-max_context // DEFAULT_PAGE_SIZE) * DEFAULT_PAGE_SIZE * num_contexts
        return int(free_bytes * MEMORY_SHARE // (self.weight_bytes * MEMORY_SHARE + self.kv_bytes * num_tokens))


def layer_memory(
    config: ModelConfig, dtype: torch.dtype, kv_dtype: torch.dtype | None = None, weight_bits: int | None = None
) -> LayerMemory:
    """What the largest layer of the model takes.

    Args:
        kv_dtype: of keys and values; None for ``dtype``.
        weight_bits: of the projections; None leaves them as they are.
    """
    weight_bytes = max(
        sum(_tensor_bytes(shape, dtype, weight_bits) for _, shape in layer_tensors(config, index).values())
        for index in range(config.num_layers)
    )
    return LayerMemory(
        weight_bytes, KVShape(1, config.num_kv_heads, config.head_dim, kv_dtype or dtype).bytes_per_token
    )


def _tensor_bytes(shape: tuple[int, ...], dtype: torch.dtype, weight_bits: int | None) -> int:
    """At most: which form a quantised weight gets is decided where it is loaded."""
    if weight_bits is None or len(shape) < 2:
        return prod(shape) * dtype.itemsize
    num_rows, num_columns = shape
    num_codes = num_rows * -(-num_columns // _SPAN) * _SPAN
    if weight_bits == 4 and num_columns % _GROUP_SIZE == 0:
        return num_codes // 2 + num_rows * (num_columns // _GROUP_SIZE) * 2 * dtype.itemsize
    return num_codes + num_rows * _SCALE_BYTES
