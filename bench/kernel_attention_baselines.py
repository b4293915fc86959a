"""What paged attention is measured against: PyTorch's own attention over contiguous keys and values.

q [B, H, M, D]   k, v [B, K, N, D], N the longest sequence   mask [B, 1, M, N], where lengths differ
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..llama.kv_cache import KVPages
from .contender import Absent
from .kernel_baselines import attempt, compiled
from .kernel_case import Implementation

# All that torch has on a GPU but its plain products, which nobody runs. The efficient one needs the most memory, and so
# comes last: it does not share keys and values among query heads.
GPU_BACKENDS = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
}
FLEX = "flex_attention"


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """The sequences of a case as ours gets them.

    Attributes:
        q: [B * M, H, D].
        table: [B, max_pages].
        lengths: tokens of each sequence.
        num_queries: M, each sequence's last.
    """

    q: torch.Tensor
    pages: KVPages
    table: torch.Tensor
    lengths: Sequence[int]
    num_queries: int
    scale: float


@dataclass(frozen=True, slots=True)
class DenseBatch:
    """The same for whoever cannot read pages, in the module's legend.

    Attributes:
        lengths: [B] int64.
        is_even: whether all sequences are equally long, so that nothing is padded.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    lengths: torch.Tensor
    is_even: bool
    scale: float

    @classmethod
    def of(cls, batch: PagedBatch) -> "DenseBatch":
        """Gather every sequence's pages."""

        def gather(pages: torch.Tensor) -> torch.Tensor:
            gathered = pages[batch.table.long()].transpose(1, 2).flatten(2, 3)  # [B, K, max_pages * S, D]
            return gathered[:, :, : max(batch.lengths)].contiguous()

        return cls(
            batch.q.unflatten(0, (-1, batch.num_queries)).transpose(1, 2).contiguous(),
            gather(batch.pages.k_pages),
            gather(batch.pages.v_pages),
            torch.tensor(batch.lengths, device=batch.q.device),
            min(batch.lengths) == max(batch.lengths),
            batch.scale,
        )

    @property
    def is_prefill(self) -> bool:
        """Whether every token is a query of its own; otherwise each sequence has one."""
        assert self.q.shape[2] in (1, self.k.shape[2]) and (self.q.shape[2] == 1 or self.is_even)
        return self.q.shape[2] > 1

    @staticmethod
    def as_ours(result: torch.Tensor) -> torch.Tensor:
        """[B, H, M, D] -> [B * M, H, D]."""
        return result.transpose(1, 2).flatten(0, 1)


def dense_baselines(paged: PagedBatch, tolerance: float = 0.02) -> tuple[Implementation | Absent, ...]:
    """Those of the batch's device, all on one copy of its keys and values."""
    is_gpu = paged.q.device.type == "cuda"
    try:
        batch = DenseBatch.of(paged)
    except torch.OutOfMemoryError:
        names = (*GPU_BACKENDS, FLEX) if is_gpu else ("SDPA",)
        return tuple(Absent(name, "not enough memory for contiguous keys and values") for name in names)
    if not is_gpu:
        return (attempt("SDPA", partial(sdpa_baseline, batch, "SDPA", None, tolerance)),)
    flex = attempt(FLEX, partial(flex_baseline, batch, tolerance))
    return (
        flex,
        *(attempt(name, partial(sdpa_baseline, batch, name, kind, tolerance)) for name, kind in GPU_BACKENDS.items()),
    )


def sdpa_baseline(batch: DenseBatch, name: str, backend: SDPBackend | None, tolerance: float) -> Implementation:
    """torch's attention by one backend, or by the one that it chooses."""
    q, k, v = batch.q, batch.k, batch.v
    mask = None
    if not batch.is_even:
        mask = torch.arange(k.shape[2], device=q.device) < batch.lengths[:, None, None, None]  # [B, 1, 1, N]
    if backend is SDPBackend.EFFICIENT_ATTENTION:
        k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], 1) for part in (k, v))

    def run() -> torch.Tensor:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=batch.is_prefill, scale=batch.scale, enable_gqa=k.shape[1] < q.shape[1]
        )

    def run_with_backend() -> torch.Tensor:
        assert backend is not None
        with sdpa_kernel(backend):
            return run()

    return Implementation(name, run if backend is None else run_with_backend, batch.as_ours, tolerance)


def flex_baseline(batch: DenseBatch, tolerance: float) -> Implementation:
    """flex_attention, compiled, which skips the blocks that its mask hides."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    lengths = batch.lengths

    def is_causal(b: torch.Tensor, h: torch.Tensor, row: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return row >= key

    def is_inside(b: torch.Tensor, h: torch.Tensor, row: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return key < lengths[b]

    mask = None
    rows, keys = batch.q.shape[2], batch.k.shape[2]
    if batch.is_prefill:
        mask = create_block_mask(is_causal, None, None, rows, keys, device=str(batch.q.device))
    elif not batch.is_even:
        mask = create_block_mask(is_inside, len(lengths), None, rows, keys, device=str(batch.q.device))

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = flex_attention(q, k, v, block_mask=mask, scale=batch.scale, enable_gqa=True)
        return found

    return Implementation(FLEX, partial(compiled(attend), batch.q, batch.k, batch.v), batch.as_ours, tolerance)
