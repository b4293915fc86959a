"""What a step must read and compute, from the model's config and the format of the weights.

bytes read in a decode step   every weight once, but for the embedding, of which it reads a row, and all keys and values
operations of a prefill       2 for each weight of a projection and token, 4 D for each query head and key it sees; the
                              head computes one row
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import torch

from ..llama.config import ModelConfig
from ..llama.kv_cache import KVShape
from ..llama.weights import NamedShape, head_tensors, layer_tensors


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """Bits for each weight, scales included, and for each row beside that: of the layers' matrices, and of the head."""

    layer_bits: float
    head_bits: float
    layer_row_bits: int = 0
    head_row_bits: int = 0


# Ours on a CPU: 8 bits with an f32 scale a row; 4 bits with a bf16 scale and middle for each 32, and a head of 8.
# llama.cpp's: a 16-bit scale for each 32; Q4_0's head is Q6_K, 210 bytes for 256.
QUANTIZED: Mapping[str, WeightFormat] = {
    "int8": WeightFormat(8, 8, layer_row_bits=32, head_row_bits=32),
    "int4": WeightFormat(5, 8, head_row_bits=32),
    "Q8_0": WeightFormat(8.5, 8.5),
    "Q4_0": WeightFormat(4.5, 6.5625),
}


def name_of_dtype(dtype: torch.dtype) -> str:
    """bfloat16 for torch.bfloat16: the name of a format that is not quantised."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class ModelWork:
    """Reads and operations of a model whose keys, values and vectors are ``dtype``, and its matrices ``weights``.

    Attributes:
        weights: a name in QUANTIZED; anything else stands for ``dtype``.
    """

    config: ModelConfig
    dtype: torch.dtype
    weights: str = ""

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a decode step reads."""
        config, dtype_bits = self.config, 8 * self.dtype.itemsize
        stored = QUANTIZED.get(self.weights, WeightFormat(dtype_bits, dtype_bits))
        bits: float = config.hidden_size * dtype_bits  # a row of the embedding
        for index in range(config.num_layers):
            bits += _bits_of(
                layer_tensors(config, index).values(), stored.layer_bits, stored.layer_row_bits, dtype_bits
            )
        bits += _bits_of(head_tensors(config).values(), stored.head_bits, stored.head_row_bits, dtype_bits)
        return round(bits / 8)

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


def _bits_of(tensors: Iterable[NamedShape], weight_bits: float, row_bits: int, vector_bits: int) -> float:
    """Bits of matrices and vectors in all."""
    shapes = [shape for _, shape in tensors]
    matrices = sum(prod(shape) * weight_bits + shape[0] * row_bits for shape in shapes if len(shape) == 2)
    return matrices + sum(prod(shape) * vector_bits for shape in shapes if len(shape) != 2)


def _visible_pairs(num_tokens: int, window: int) -> int:
    """Pairs of a query and a key that it sees."""
    width = min(num_tokens, window) if window else num_tokens
    return width * (width + 1) // 2 + (num_tokens - width) * width
