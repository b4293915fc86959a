"""KVCache: the key and value tensors of a span's layers, in pages. Which page is whose: pages.py and sequences.py.

docs/kv-layout.md defines the layout. Kernels see ``[num_pages, num_kv_heads, page_size, head_dim]`` and its strides.
On a GPU that is also how it lies in memory; on a CPU the heads are outermost, so that pages with consecutive ids are
one strided view of a head's keys. Address space for all pages is reserved at once. On a CPU the operating system
commits memory as pages are first written, so the cache grows without moving what it holds.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

DEFAULT_PAGE_SIZE = 64  # tokens; one page of one head is 16 KiB at head_dim 128 in bf16 (shared/kernels.md's default)
_SCALE_DTYPE = torch.float32


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one token needs: ``num_layers`` x 2 x ``num_kv_heads`` x ``head_dim`` elements of ``dtype``, and its scales.

    ``dtype`` is the model's, or a narrower one to which keys and values are quantised: int8 has a scale for each head
    of each token, fp8 none.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def has_scales(self) -> bool:
        """Whether keys and values come with scales."""
        return self.dtype == torch.int8

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys, values and scales that one token takes in all layers."""
        scale_bytes = _SCALE_DTYPE.itemsize if self.has_scales else 0
        return 2 * self.num_layers * self.num_kv_heads * (self.head_dim * self.dtype.itemsize + scale_bytes)


@dataclass(frozen=True, slots=True)
class KVPages:
    """One layer's pages: P pages, K num_kv_heads, S page_size, D head_dim.

    Attributes:
        k_pages, v_pages: [P, K, S, D] of KVShape.dtype.
        k_scales, v_scales: f32 [P, K, S], what a token's key and value of a head are multiplied by; None without.
    """

    k_pages: Tensor
    v_pages: Tensor
    k_scales: Tensor | None
    v_scales: Tensor | None

    def tensors(self) -> Iterator[Tensor]:
        """Those that there are; the first axis of each is the page."""
        for tensor in (self.k_pages, self.v_pages, self.k_scales, self.v_scales):
            if tensor is not None:
                yield tensor


class KVCache:
    """The pages' tensors.

    Attributes:
        layers: each layer's pages; page p is the same p in all of them.
        page_size: tokens in a page.
        shape: what a token takes.
    """

    def __init__(self, shape: KVShape, num_pages: int, page_size: int, device: torch.device) -> None:
        self.page_size = page_size
        self.shape = shape
        self.layers = [_empty_pages(shape, num_pages, page_size, device) for _ in range(shape.num_layers)]

    def part(self, start: int, end: int) -> "KVCache":
        """The same pages, of the layers ``start .. end`` of those here."""
        part = copy(self)
        part.layers = self.layers[start:end]
        part.shape = replace(self.shape, num_layers=end - start)
        return part

    def copy_pages(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole pages, (source, target) each, one after another since a target may be a later source."""
        for source, target in copies:
            for layer in self.layers:
                for tensor in layer.tensors():
                    tensor[target].copy_(tensor[source])


def _empty_pages(shape: KVShape, num_pages: int, page_size: int, device: torch.device) -> KVPages:
    """One layer's pages, uninitialised."""

    def empty(dtype: torch.dtype, *inner: int) -> Tensor:
        """[num_pages, num_kv_heads, page_size, *inner]."""
        if device.type != "cpu":
            return torch.empty(num_pages, shape.num_kv_heads, page_size, *inner, dtype=dtype, device=device)
        return torch.empty(shape.num_kv_heads, num_pages, page_size, *inner, dtype=dtype).transpose(0, 1)

    k_pages, v_pages = empty(shape.dtype, shape.head_dim), empty(shape.dtype, shape.head_dim)
    if not shape.has_scales:
        return KVPages(k_pages, v_pages, None, None)
    return KVPages(k_pages, v_pages, empty(_SCALE_DTYPE), empty(_SCALE_DTYPE))
