"""The GGUF file, read back by the `gguf` package."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hopformer.bench.gguf_export import export_gguf, why_not_exported
from hopformer.llama.config import load_config

gguf = pytest.importorskip("gguf")

MakeFolder = Callable[..., Path]


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def exported(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    path = folder / "model.gguf"
    export_gguf(folder, load_config(folder), dtype, path)
    return gguf.GGUFReader(path)


def values(reader: Any, name: str) -> torch.Tensor:
    (found,) = [tensor for tensor in reader.tensors if tensor.name == name]
    data = torch.from_numpy(found.data.copy())
    return data.view(torch.bfloat16) if found.tensor_type == gguf.GGMLQuantizationType.BF16 else data


def test_matrices_keep_every_bit_of_bf16_and_vectors_become_f32(tiny_folder: MakeFolder) -> None:
    folder = tiny_folder(torch_dtype="bfloat16")
    reader, tensors = exported(folder, torch.bfloat16), stored(folder)
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output.weight": "lm_head.weight",
        "blk.2.ffn_down.weight": "model.layers.2.mlp.down_proj.weight",
        "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
    }
    for name, source in pairs.items():
        found = values(reader, name)
        assert found.dtype == torch.bfloat16 and torch.equal(found, tensors[source])
    norm = values(reader, "blk.1.attn_norm.weight")
    assert norm.dtype == torch.float32 and torch.equal(norm, tensors["model.layers.1.input_layernorm.weight"].float())
    assert len(reader.tensors) == len(tensors)


def test_rotated_halves_become_rotated_neighbours(tiny_folder: MakeFolder) -> None:
    folder = tiny_folder("biased")
    reader, tensors = exported(folder), stored(folder)
    for name, source, heads in (
        ("blk.1.attn_q.weight", "model.layers.1.self_attn.q_proj.weight", 4),
        ("blk.1.attn_k.weight", "model.layers.1.self_attn.k_proj.weight", 2),
        ("blk.1.attn_k.bias", "model.layers.1.self_attn.k_proj.bias", 2),
    ):
        found, original = values(reader, name), tensors[source]
        size = original.shape[0] // heads
        for head in range(heads):
            for index in range(size // 2):
                assert torch.equal(found[head * size + 2 * index], original[head * size + index])
                assert torch.equal(found[head * size + 2 * index + 1], original[head * size + size // 2 + index])


def test_qwen_keeps_its_halves(tiny_folder: MakeFolder) -> None:
    folder = tiny_folder("qwen3")
    reader, tensors = exported(folder), stored(folder)
    assert torch.equal(values(reader, "blk.0.attn_q.weight"), tensors["model.layers.0.self_attn.q_proj.weight"])
    assert reader.fields["general.architecture"].contents() == "qwen3"


def test_tied_embeddings_are_written_once(tiny_folder: MakeFolder) -> None:
    reader = exported(tiny_folder("llama3-rope"))
    names = [tensor.name for tensor in reader.tensors]
    assert "output.weight" not in names and names.count("token_embd.weight") == 1
    assert values(reader, "rope_freqs.weight").shape == (8,)


def test_sizes_are_the_config_files(tiny_folder: MakeFolder) -> None:
    fields = exported(tiny_folder("linear-rope")).fields
    expected = {
        "embedding_length": 64,
        "block_count": 3,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 16,
        "vocab_size": 131,
        "context_length": 256,
        "rope.freq_base": 10000.0,
        "rope.scaling.factor": 4.0,
    }
    assert {key: fields[f"llama.{key}"].contents() for key in expected} == expected
    assert fields["llama.attention.layer_norm_rms_epsilon"].contents() == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "dynamic"),
    ],
)
def test_a_rope_without_words_in_the_export_is_named(
    changes: dict[str, Any], named: str, tiny_folder: MakeFolder
) -> None:
    reason = why_not_exported(load_config(tiny_folder(**changes)))
    assert reason is not None and named in reason
