"""What a layer takes, beside what is really kept of it, and how many fit."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hopformer.errors import DeviceError
from hopformer.kernels import Linear
from hopformer.llama.config import ModelConfig, load_config
from hopformer.llama.hub import find_config
from hopformer.llama.kv_cache import DEFAULT_PAGE_SIZE, KVShape
from hopformer.llama.layer_memory import CONTEXTS_OF_A_SPAN, LayerMemory, layer_memory
from hopformer.llama.layers import MergedGateUp
from hopformer.llama.load import LoadOptions, count_pages, find_weight_bits
from hopformer.llama.load_span import load_span


@pytest.fixture(scope="module")
def folder() -> Path:
    found = find_config("demo")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def config(folder: Path) -> ModelConfig:
    return load_config(folder)


def test_a_layer_is_its_tensors_and_a_tokens_keys_and_values(config: ModelConfig) -> None:
    hidden, inner = config.hidden_size, config.intermediate_size
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    found = layer_memory(config, torch.bfloat16)
    projections = hidden * heads + config.num_heads * config.head_dim * hidden + 3 * hidden * inner
    norms = 2 * hidden + (2 * config.head_dim if config.qk_norm else 0)
    assert found.weight_bytes == 2 * (projections + norms)
    assert found.kv_bytes == 2 * config.num_kv_heads * config.head_dim * 2
    assert found.with_context(10) == found.weight_bytes + 10 * found.kv_bytes
    assert layer_memory(config, torch.float32, torch.int8).kv_bytes == 2 * config.num_kv_heads * (config.head_dim + 4)


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_quantised_layers_keep_no_more_than_is_said(folder: Path, config: ModelConfig, quantize: str) -> None:
    loaded = load_span(folder, (0, 1), LoadOptions(device="cpu", dtype="float32", quantize=quantize, max_context=64))
    weights = loaded.runner.span.layers[0].weights
    assert isinstance(weights.gate_up, MergedGateUp)
    linears: list[Linear] = [weights.qkv, weights.o, weights.down, weights.gate_up.gate_up]
    kept = sum(one.nbytes for one in linears)
    said = layer_memory(config, torch.float32, weight_bits=find_weight_bits(quantize)).weight_bytes
    assert kept <= said <= 1.5 * kept


@given(
    weight_bytes=st.integers(1, 10**9),
    num_heads=st.integers(1, 8),
    max_context=st.integers(2, 9000),
    num_fitting=st.integers(1, 100),
    spare=st.floats(0, 0.99),
)
def test_so_many_layers_fit_as_the_pages_of_a_loaded_span_need(
    weight_bytes: int, num_heads: int, max_context: int, num_fitting: int, spare: float
) -> None:
    kv_bytes = KVShape(1, num_heads, 16, torch.float32).bytes_per_token
    memory = LayerMemory(weight_bytes, kv_bytes)
    num_pages = -(-max_context // DEFAULT_PAGE_SIZE) * CONTEXTS_OF_A_SPAN
    layer_bytes = weight_bytes + kv_bytes * DEFAULT_PAGE_SIZE * num_pages / 0.8
    free = int((num_fitting + spare) * layer_bytes) + 10
    count = memory.num_fitting(free, max_context)
    assert num_fitting <= count <= num_fitting + 1  # one more where the spare bytes and those 10 make a layer
    shape = KVShape(count, num_heads, 16, torch.float32)
    left = free - count * weight_bytes + count + 10  # what rounding to whole bytes may cost
    assert count_pages(shape, max_context, DEFAULT_PAGE_SIZE, left, CONTEXTS_OF_A_SPAN) == num_pages


def test_where_no_layer_fits_there_is_no_room() -> None:
    memory = LayerMemory(1 << 20, 1 << 10)
    assert memory.num_fitting(1 << 20, 1024) == 0 and memory.num_fitting(0, 1024) == 0
    with pytest.raises(DeviceError):
        count_pages(KVShape(1, 8, 16, torch.float32), 1024, DEFAULT_PAGE_SIZE, 0)
