"""KVCache: layout, page copies, and memory that is not there before it is written."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hopformer.llama.kv_cache import KVCache, KVShape

CPU = torch.device("cpu")
SHAPE = KVShape(num_layers=2, num_kv_heads=3, head_dim=5, dtype=torch.float32)
LLAMA_8B = KVShape(num_layers=32, num_kv_heads=8, head_dim=128, dtype=torch.bfloat16)
INT8, FP8 = torch.int8, torch.float8_e4m3fn
MIB = 2**20


def tensors_of(cache: KVCache) -> list[torch.Tensor]:
    return [tensor for layer in cache.layers for tensor in layer.tensors()]


def filled_cache(num_pages: int, dtype: torch.dtype = torch.float32) -> KVCache:
    """A cache of random bytes: no two pages are alike."""
    cache = KVCache(replace(SHAPE, dtype=dtype), num_pages, 4, CPU)
    generator = torch.Generator().manual_seed(0)
    for tensor in tensors_of(cache):
        tensor.copy_(torch.randint(-100, 100, tensor.shape, generator=generator))
    return cache


def copies_of(cache: KVCache) -> list[torch.Tensor]:
    """What is in the cache now, as bytes that can be compared."""
    return [tensor.contiguous().view(torch.uint8) for tensor in tensors_of(cache)]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (SHAPE, 2 * 2 * 3 * 5 * 4),
        (LLAMA_8B, 128 * 1024),
        (replace(LLAMA_8B, dtype=FP8), 64 * 1024),
        (replace(LLAMA_8B, dtype=INT8), 66 * 1024),  # 4 bytes of scale to 128 of values
    ],
)
def test_a_token_takes_keys_and_values_of_every_layer(shape: KVShape, expected: int) -> None:
    assert shape.bytes_per_token == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, INT8, FP8])
def test_every_layer_has_pages_of_the_documented_shape(dtype: torch.dtype) -> None:
    cache = KVCache(replace(SHAPE, dtype=dtype), 7, 4, CPU)
    assert len(cache.layers) == 2
    for layer in cache.layers:
        for pages in (layer.k_pages, layer.v_pages):
            assert pages.shape == (7, 3, 4, 5) and pages.dtype == dtype
            assert pages.stride()[2:] == (5, 1)
    assert (
        len({tensor.data_ptr() for tensor in tensors_of(cache)})
        == len(tensors_of(cache))
        == (8 if dtype == INT8 else 4)
    )
    num_bytes = sum(tensor.nbytes for tensor in tensors_of(cache))
    assert num_bytes == 7 * 4 * cache.shape.bytes_per_token


def test_only_int8_pages_have_scales_one_a_token_and_head() -> None:
    for layer in KVCache(replace(SHAPE, dtype=INT8), 7, 4, CPU).layers:
        for scales in (layer.k_scales, layer.v_scales):
            assert scales is not None and scales.shape == (7, 3, 4) and scales.dtype == torch.float32
    for dtype in (torch.float16, FP8):
        (layer, _) = KVCache(replace(SHAPE, dtype=dtype), 7, 4, CPU).layers
        assert layer.k_scales is None and layer.v_scales is None


def test_pages_with_consecutive_ids_are_one_view_of_a_head_on_a_cpu() -> None:
    layer = filled_cache(7, INT8).layers[1]
    tokens = layer.k_pages[2:6, 1].view(16, 5)  # raises if it would have to be copied
    assert tokens.data_ptr() == layer.k_pages[2, 1].data_ptr() and tokens.is_contiguous()
    assert torch.equal(tokens[4:8], layer.k_pages[3, 1])
    assert layer.k_scales is not None
    scales = layer.k_scales[2:6, 1].view(16)
    assert torch.equal(scales[4:8], layer.k_scales[3, 1])


@pytest.mark.parametrize("dtype", [torch.float32, INT8, FP8])
def test_a_page_is_copied_with_all_heads_layers_and_scales_and_nothing_else_is(dtype: torch.dtype) -> None:
    cache = filled_cache(6, dtype)
    before = copies_of(filled_cache(6, dtype))
    cache.copy_pages([(4, 1)])
    for found, old in zip(copies_of(cache), before, strict=True):
        assert torch.equal(found[1], old[4])
        others = [0, 2, 3, 4, 5]
        assert torch.equal(found[others], old[others])


def test_copies_are_carried_out_in_order() -> None:
    cache = filled_cache(4, INT8)
    before = copies_of(filled_cache(4, INT8))
    cache.copy_pages([(0, 1), (2, 0), (1, 3)])
    for found, old in zip(copies_of(cache), before, strict=True):
        assert torch.equal(found, torch.stack((old[2], old[0], old[2], old[0])))


def test_no_copies_change_nothing() -> None:
    cache = filled_cache(3)
    cache.copy_pages([])
    assert all(map(torch.equal, copies_of(cache), copies_of(filled_cache(3))))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident size from /proc")
def test_memory_is_committed_as_pages_are_written() -> None:
    shape = KVShape(num_layers=1, num_kv_heads=2, head_dim=128, dtype=torch.float32)
    start = resident_bytes()
    cache = KVCache(shape, num_pages=8192, page_size=64, device=CPU)
    assert 8192 * 64 * shape.bytes_per_token == 1024 * MIB
    assert resident_bytes() - start < 16 * MIB
    for pages in tensors_of(cache):
        pages[3000:3008] = 1.0
    assert resident_bytes() - start < 48 * MIB  # the system may commit whole huge pages
    for pages in tensors_of(cache):
        pages[3000:4024] = 1.0
    assert 120 * MIB < resident_bytes() - start < 192 * MIB


def resident_bytes() -> int:
    """What this process occupies in memory."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024
