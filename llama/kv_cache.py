"""KVCache: the key and value tensors of a span's layers, in pages. Which page is whose: pages.py and sequences.py.

docs/kv-layout.md defines the layout. Kernels see ``[num_pages, num_kv_heads, page_size, head_dim]`` and its strides.
On a GPU that is also how it lies in memory; on a CPU the heads are outermost, so that pages with consecutive ids are
one strided view of a head's keys. Address space for all pages is reserved at once. On a CPU the operating system
commits memory as pages are first written, so the cache grows without moving what it holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DEFAULT_PAGE_SIZE = 64  # tokens; one page of one head is 16 KiB at head_dim 128 in bf16 (shared/kernels.md's default)


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one token needs: ``num_layers`` x 2 x ``num_kv_heads`` x ``head_dim`` elements of ``dtype``."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values that one token takes in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize


class KVCache:
    """The pages' tensors.

    Attributes:
        k_pages, v_pages: one per layer, each [num_pages, num_kv_heads, page_size, head_dim].
        page_size: tokens in a page.
    """

    def __init__(self, shape: KVShape, num_pages: int, page_size: int, device: torch.device) -> None:
        self.page_size = page_size
        self.shape = shape
        self.k_pages = [_empty_pages(shape, num_pages, page_size, device) for _ in range(shape.num_layers)]
        self.v_pages = [_empty_pages(shape, num_pages, page_size, device) for _ in range(shape.num_layers)]

    def copy_pages(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole pages, (source, target) each, one after another since a target may be a later source."""
        for source, target in copies:
            for pages in (*self.k_pages, *self.v_pages):
                pages[target].copy_(pages[source])


def _empty_pages(shape: KVShape, num_pages: int, page_size: int, device: torch.device) -> Tensor:
    """[num_pages, num_kv_heads, page_size, head_dim], uninitialised."""
    if device.type != "cpu":
        return torch.empty(num_pages, shape.num_kv_heads, page_size, shape.head_dim, dtype=shape.dtype, device=device)
    heads_first = torch.empty(shape.num_kv_heads, num_pages, page_size, shape.head_dim, dtype=shape.dtype)
    return heads_first.permute(1, 0, 2, 3)
