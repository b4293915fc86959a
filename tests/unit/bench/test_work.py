"""Bytes and operations of a step, against the files and against counting one by one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hopformer.bench.work import ModelWork
from hopformer.llama.assemble import ModelPart, Placement, load_model
from hopformer.llama.config import load_config
from hopformer.llama.layers import MergedGateUp

MakeFolder = Callable[..., Path]


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("kind", ["llama", "biased", "qwen3", "llama3-rope"])
def test_a_decode_step_reads_every_weight_but_one_row_of_the_embedding(kind: str, tiny_folder: MakeFolder) -> None:
    folder = tiny_folder(kind)
    config, tensors = load_config(folder), stored(folder)
    in_file = sum(tensor.nbytes for tensor in tensors.values())
    embedding = tensors["model.embed_tokens.weight"]
    if not config.tie_word_embeddings:  # a tied one is read whole, as the head
        in_file -= embedding.nbytes
    assert ModelWork(config, torch.float32).weight_bytes == in_file + embedding[0].nbytes


@pytest.mark.parametrize(("bits", "weights"), [(8, "int8"), (4, "int4")])
def test_quantised_weights_are_counted_as_they_are_held(bits: int, weights: str, tiny_folder: MakeFolder) -> None:
    folder = tiny_folder("biased")
    config = load_config(folder)
    placement = Placement(torch.device("cpu"), torch.bfloat16, 64, bits)
    model = load_model(folder, config, ModelPart.whole(config), placement)
    assert model.head is not None
    num_bytes = model.head.projection.nbytes + model.head.norm.nbytes + 2 * config.hidden_size
    for layer in model.span.layers:
        parts = layer.weights
        assert isinstance(parts.gate_up, MergedGateUp)
        num_bytes += sum(one.nbytes for one in (parts.qkv, parts.o, parts.gate_up.gate_up, parts.down))
        num_bytes += parts.input_norm.nbytes + parts.post_norm.nbytes
    assert ModelWork(config, torch.bfloat16, weights).weight_bytes == num_bytes


def test_a_decode_step_reads_the_keys_and_values_that_it_sees(tiny_folder: MakeFolder) -> None:
    whole = ModelWork(load_config(tiny_folder()), torch.bfloat16)
    per_token = 2 * 3 * 2 * 16 * 2  # K and V, layers, KV heads, head_dim, bytes
    assert whole.decode_bytes(100.5) - whole.weight_bytes == pytest.approx(100.5 * per_token)
    windowed = ModelWork(load_config(tiny_folder("mistral", sliding_window=24)), torch.bfloat16)
    assert windowed.decode_bytes(100) - windowed.weight_bytes == 24 * per_token
    assert windowed.decode_bytes(7) - windowed.weight_bytes == 7 * per_token


@pytest.mark.parametrize("num_tokens", [1, 23, 24, 25, 97])
@pytest.mark.parametrize(("kind", "window"), [("llama", None), ("mistral", 24)])
def test_a_prefill_counts_each_projection_and_each_visible_key(
    num_tokens: int, kind: str, window: int | None, tiny_folder: MakeFolder
) -> None:
    folder = tiny_folder(kind, **({} if window is None else {"sliding_window": window}))
    counted = 2 * 131 * 64  # the head's one row
    for name, tensor in stored(folder).items():
        if tensor.ndim == 2 and ".layers." in name:
            counted += 2 * tensor.numel() * num_tokens
    for position in range(num_tokens):
        visible = min(position + 1, window or num_tokens)
        counted += 3 * 4 * visible * 2 * (16 + 16)  # layers, heads; scores and weighted sum
    assert ModelWork(load_config(folder), torch.float32).prefill_operations(num_tokens) == counted
