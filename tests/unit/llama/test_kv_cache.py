"""KVCache: layout, page copies, and memory that is not there before it is written."""

import sys
from pathlib import Path

import pytest
import torch

from hopformer.llama.kv_cache import KVCache, KVShape

CPU = torch.device("cpu")
SHAPE = KVShape(num_layers=2, num_kv_heads=3, head_dim=5, dtype=torch.float32)
MIB = 2**20


def numbered_cache(num_pages: int) -> KVCache:
    """A cache in which every element is different."""
    cache = KVCache(SHAPE, num_pages, 4, CPU)
    start = 0
    for pages in (*cache.k_pages, *cache.v_pages):
        pages.copy_(torch.arange(start, start + pages.numel(), dtype=torch.float32).view(pages.shape))
        start += pages.numel()
    return cache


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (SHAPE, 2 * 2 * 3 * 5 * 4),
        (KVShape(32, 8, 128, torch.bfloat16), 128 * 1024),  # Llama 3 8B: 128 KiB a token
    ],
)
def test_a_token_takes_keys_and_values_of_every_layer(shape: KVShape, expected: int) -> None:
    assert shape.bytes_per_token == expected


def test_every_layer_has_pages_of_the_documented_shape() -> None:
    cache = KVCache(SHAPE, 7, 4, CPU)
    assert len(cache.k_pages) == len(cache.v_pages) == 2
    for pages in (*cache.k_pages, *cache.v_pages):
        assert pages.shape == (7, 3, 4, 5) and pages.dtype == torch.float32
        assert pages.stride()[2:] == (5, 1)
    assert len({pages.data_ptr() for pages in (*cache.k_pages, *cache.v_pages)}) == 4


def test_pages_with_consecutive_ids_are_one_view_of_a_head_on_a_cpu() -> None:
    pages = numbered_cache(7).k_pages[1]
    tokens = pages[2:6, 1].view(16, 5)  # raises if it would have to be copied
    assert tokens.data_ptr() == pages[2, 1].data_ptr() and tokens.is_contiguous()
    assert torch.equal(tokens[4:8], pages[3, 1])


def test_a_page_is_copied_with_all_heads_and_layers_and_nothing_else_is() -> None:
    cache = numbered_cache(6)
    before = [pages.clone() for pages in (*cache.k_pages, *cache.v_pages)]
    cache.copy_pages([(4, 1)])
    for pages, old in zip((*cache.k_pages, *cache.v_pages), before, strict=True):
        assert torch.equal(pages[1], old[4])
        others = [0, 2, 3, 4, 5]
        assert torch.equal(pages[others], old[others])


def test_copies_are_carried_out_in_order() -> None:
    cache = numbered_cache(4)
    old = cache.v_pages[0].clone()
    cache.copy_pages([(0, 1), (2, 0), (1, 3)])
    pages = cache.v_pages[0]
    assert torch.equal(pages, torch.stack((old[2], old[0], old[2], old[0])))


def test_no_copies_change_nothing() -> None:
    cache = numbered_cache(3)
    old = cache.k_pages[0].clone()
    cache.copy_pages([])
    assert torch.equal(cache.k_pages[0], old)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident size from /proc")
def test_memory_is_committed_as_pages_are_written() -> None:
    shape = KVShape(num_layers=1, num_kv_heads=2, head_dim=128, dtype=torch.float32)
    start = resident_bytes()
    cache = KVCache(shape, num_pages=8192, page_size=64, device=CPU)
    assert 8192 * 64 * shape.bytes_per_token == 1024 * MIB
    assert resident_bytes() - start < 16 * MIB
    for pages in (*cache.k_pages, *cache.v_pages):
        pages[3000:3008] = 1.0
    assert resident_bytes() - start < 48 * MIB  # the system may commit whole huge pages
    for pages in (*cache.k_pages, *cache.v_pages):
        pages[3000:4024] = 1.0
    assert 120 * MIB < resident_bytes() - start < 192 * MIB


def resident_bytes() -> int:
    """What this process occupies in memory."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024
