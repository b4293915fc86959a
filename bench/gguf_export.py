"""A model folder as a GGUF file, so that llama.cpp computes the very same weights.

Weights of two axes keep the benchmark's dtype, vectors are F32, as llama.cpp's own converter has it. There is no
vocabulary: the file is for token ids in and logits out. Key and tensor names are the `gguf` package's.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..llama.config import ModelConfig
from ..llama.rope import RopeConfig, inv_frequencies
from ..llama.weights import NamedShape, TensorFiles, embed_tensor, head_tensors, layer_tensors

# model_type -> llama.cpp's name of the architecture
_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
# Our roles -> llama.cpp's names within a layer; a role's bias has the same name with another ending
_NAMES = {
    "input_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "o": "attn_output",
    "post_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}


def why_not_exported(config: ModelConfig) -> str | None:
    """What of the model this export has no words for; None if it has them all."""
    if config.model_type not in _ARCHITECTURES:
        return f"the GGUF export does not know model_type {config.model_type}"
    if config.rope.kind not in ("default", "linear", "llama3"):
        return f"the GGUF export does not know rope_type {config.rope.kind}"
    if any(config.sliding_windows):
        return "the GGUF export does not know sliding windows"
    return None


def export_gguf(folder: Path, config: ModelConfig, dtype: torch.dtype, path: Path) -> None:
    """Write the model in ``folder`` to ``path``, a tensor at a time, its matrices as ``dtype``.

    Raises:
        WeightsError: a tensor of the folder is missing or damaged.
    """
    assert why_not_exported(config) is None
    import gguf

    export = _Export(TensorFiles.open(folder), config, dtype)
    writer = gguf.GGUFWriter(path, _ARCHITECTURES[config.model_type])
    _add_keys(writer, config)
    for name, shape in export.shapes():
        kind = export.stored_as(shape)
        nbytes = int(np.prod(shape)) * kind.itemsize
        writer.add_tensor_info(name, shape, _numpy_dtype(kind), nbytes, raw_dtype=_gguf_type(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in export.tensors():
        writer.write_tensor_data(_as_numpy(tensor))
    writer.close()


class _Export:
    """The tensors of a GGUF file, in the order in which they are written."""

    def __init__(self, files: TensorFiles, config: ModelConfig, dtype: torch.dtype) -> None:
        self._files = files
        self._config = config
        self._dtype = dtype
        self._rope_freqs = _rope_divisors(config.rope, config.head_dim)

    def stored_as(self, shape: tuple[int, ...]) -> torch.dtype:
        """The dtype that a tensor of this shape has in the file."""
        return self._dtype if len(shape) == 2 else torch.float32

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names in the file and shapes."""
        if self._rope_freqs is not None:
            yield "rope_freqs.weight", tuple(self._rope_freqs.shape)
        for name, (_, shape), _ in self._entries():
            yield name, shape

    def tensors(self) -> Iterator[Tensor]:
        """The tensors themselves, as they are stored."""
        if self._rope_freqs is not None:
            yield self._rope_freqs
        for _, (source, shape), num_heads in self._entries():
            with self._files.scope():
                tensor = self._files.read(source, shape, self.stored_as(shape))
                yield tensor if num_heads is None else _interleave_halves(tensor, num_heads)

    def _entries(self) -> Iterator[tuple[str, NamedShape, int | None]]:
        """Name in the file, source, and for rows to be rearranged by heads the number of these."""
        config = self._config
        yield "token_embd.weight", embed_tensor(config), None
        head = head_tensors(config)
        yield "output_norm.weight", head["norm"], None
        if not config.tie_word_embeddings:
            yield "output.weight", head["head"], None
        # llama.cpp rotates neighbours where Hugging Face rotates halves; its llama architecture alone has it so
        rotates_neighbours = _ARCHITECTURES[config.model_type] == "llama"
        heads = {"q": config.num_heads, "k": config.num_kv_heads} if rotates_neighbours else {}
        for index in range(config.num_layers):
            for role, source in layer_tensors(config, index).items():
                base = role.removesuffix("_bias")
                ending = "bias" if role.endswith("_bias") else "weight"
                yield f"blk.{index}.{_NAMES[base]}.{ending}", source, heads.get(base)


def _add_keys(writer: Any, config: ModelConfig) -> None:
    """The sizes of the model, in the words of the `gguf` package."""
    import gguf

    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    if config.rope.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope.factor)
    writer.add_tokenizer_model("no_vocab")


def _rope_divisors(rope: RopeConfig, head_dim: int) -> Tensor | None:
    """What llama.cpp divides each frequency by, f32 [D/2]; None but for the llama3 kind."""
    if rope.kind != "llama3":
        return None
    plain, _ = inv_frequencies(RopeConfig(theta=rope.theta), head_dim)
    stretched, _ = inv_frequencies(rope, head_dim)
    return plain / stretched


def _interleave_halves(tensor: Tensor, num_heads: int) -> Tensor:
    """Rows [H * D, ...] of each head from (first half, second half) to pairs of one row of either."""
    halves = tensor.view(num_heads, 2, -1, *tensor.shape[1:])  # [H, 2, D/2, ...]
    return halves.transpose(1, 2).reshape(tensor.shape)


def _gguf_type(dtype: torch.dtype) -> Any:
    import gguf

    kinds = gguf.GGMLQuantizationType
    return {torch.bfloat16: kinds.BF16, torch.float16: kinds.F16, torch.float32: kinds.F32}[dtype]


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """What numpy calls the elements; bf16, which it does not have, goes as int16."""
    names = {torch.bfloat16: "int16", torch.float16: "float16", torch.float32: "float32"}
    return np.dtype(names[dtype])


def _as_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
