"""AttentionPlan: what one step's attention needs to know, worked out once and used by every layer.

The plan keeps the step's index tensors and, for each kind of attention that a layer asks for (a window, a group size),
one schedule made by whichever implementation runs: runs of pages and batches of sequences on a CPU, tiles and splits on
a GPU. A model that mixes layers with and without a window so has one plan with two schedules.
"""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

from ..errors import KernelError

Schedule = TypeVar("Schedule")


class AttentionPlan:
    """One step's sequences, and the schedules made for them so far.

    Attributes:
        block_table: [B, max_pages] int32.
        seq_lens: [B] int32.
        cu_seqlens_q: [B + 1] int32.
        page_size: tokens in a page.
        max_query_len: at least the longest query of the step, when the caller knows it.
        batch_invariant: whether a sequence's results are the same to the last bit in any batch and any chunking.
    """

    __slots__ = (
        "_schedules",
        "batch_invariant",
        "block_table",
        "cu_seqlens_q",
        "max_query_len",
        "page_size",
        "seq_lens",
    )

    def __init__(
        self,
        block_table: torch.Tensor,
        seq_lens: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        page_size: int,
        max_query_len: int | None,
        batch_invariant: bool = False,
    ) -> None:
        self.block_table = block_table
        self.seq_lens = seq_lens
        self.cu_seqlens_q = cu_seqlens_q
        self.page_size = page_size
        self.max_query_len = max_query_len
        self.batch_invariant = batch_invariant
        self._schedules: dict[Hashable, Any] = {}

    def schedule(self, key: Hashable, build: Callable[[], Schedule]) -> Schedule:
        """The schedule kept under ``key``, built on the first call."""
        found = self._schedules.get(key)
        if found is None:
            found = self._schedules[key] = build()
        return found

    @property
    def schedules(self) -> list[Any]:
        """What has been made for the step so far."""
        return list(self._schedules.values())

    def check_matches(self, block_table: torch.Tensor, cu_seqlens_q: torch.Tensor, page_size: int) -> None:
        """Raise KernelError unless the plan is for a batch of this shape."""
        if page_size != self.page_size or block_table.shape != self.block_table.shape:
            raise KernelError(
                f"paged_attention got pages of {page_size} and block_table {list(block_table.shape)}, its plan is for "
                f"pages of {self.page_size} and {list(self.block_table.shape)}; make one plan a step"
            )
        if cu_seqlens_q.shape != self.cu_seqlens_q.shape:
            raise KernelError(
                f"paged_attention got cu_seqlens_q {list(cu_seqlens_q.shape)}, its plan is for "
                f"{list(self.cu_seqlens_q.shape)}; make one plan a step"
            )


def plan_attention(
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    *,
    page_size: int,
    max_query_len: int | None = None,
    batch_invariant: bool = False,
) -> AttentionPlan:
    """Check a step's index tensors and wrap them for all its layers.

    Args:
        block_table: [B, max_pages] int32; entries past a sequence's length may be anything.
        seq_lens: [B] int32, the new tokens included.
        cu_seqlens_q: [B + 1] int32, from 0.
        page_size: tokens in a page.
        max_query_len: an upper bound of the step's query lengths. With 16 or less, which asks that every row of q
            belongs to a sequence, a GPU launches no prefill.
        batch_invariant: give each query the same result to the last bit whatever else is in the step and however its
            prompt is cut into chunks: its keys are summed in parts of a fixed size, in one order, by one kernel. Decode
            is about as fast, prefill slower.

    Raises:
        KernelError: shapes, dtypes or devices that do not belong together.
    """
    batch = seq_lens.shape[0]
    shapes_fit = block_table.ndim == 2 and block_table.shape[0] == batch and cu_seqlens_q.shape == (batch + 1,)
    if not shapes_fit or {block_table.dtype, seq_lens.dtype, cu_seqlens_q.dtype} != {torch.int32}:
        raise KernelError(
            f"plan_attention got block_table {block_table.dtype} {list(block_table.shape)}, seq_lens {seq_lens.dtype} "
            f"{list(seq_lens.shape)} and cu_seqlens_q {cu_seqlens_q.dtype} {list(cu_seqlens_q.shape)}; "
            "pass int32 [B, max_pages], [B] and [B + 1]"
        )
    if not block_table.device == seq_lens.device == cu_seqlens_q.device:
        raise KernelError(
            f"plan_attention got block_table on {block_table.device}, seq_lens on {seq_lens.device} and cu_seqlens_q "
            f"on {cu_seqlens_q.device}; pass all on the device of the pages"
        )
    tables = block_table.contiguous(), seq_lens.contiguous(), cu_seqlens_q.contiguous()
    return AttentionPlan(*tables, page_size, max_query_len, batch_invariant)
