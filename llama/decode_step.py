"""Decode steps whose tensors never move: one token a sequence, from its id to the next one, over a padded batch.

A CUDA graph repeats the same kernels on the same addresses, so a step that is to be captured needs fixed buffers, a
fixed number of rows, and nothing on its way that waits for the device or depends on a value. That is StaticDecode; it
runs on any device, and cuda_graphs.py captures it. PaddedDecode keeps one for each of a few batch sizes. Rows that no
sequence fills have length 0 and slot -1: they see nothing and write nothing.

Legend: B rows of the padded batch, M pages of a whole context, V vocab_size.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..kernels import plan_attention, sample
from .batch import ForwardBatch
from .kv_cache import KVCache
from .model import Model
from .sampling import SamplingParams, draw_number

Launch = Callable[[], None]  # runs a step on what was filled in
Capture = Callable[["StaticDecode"], Launch]
Progress = Callable[[int, int], None]  # sizes that are ready, sizes in all

SIZE_STEP = (
    8  # sequences: so at most 7 rows are padding; a row of a decode step costs little beside reading the weights
)
_ALIGNMENT = 256  # bytes; every input begins where a kernel may read it at full width
# [B] inputs: dtype, and what a row that no sequence fills holds. The dtypes of the settings are those of sample_rows.
_ROW_INPUTS: dict[str, tuple[torch.dtype, float]] = {
    "token_ids": (torch.int64, 0),
    "positions": (torch.int64, 0),
    "slot_mapping": (torch.int64, -1),
    "seq_lens": (torch.int32, 0),
    "temperature": (torch.float32, 0.0),
    "top_k": (torch.int64, 0),
    "top_p": (torch.float32, 1.0),
    "min_p": (torch.float32, 0.0),
    "uniform": (torch.float64, 0.0),
}


def decode_batch_sizes(max_sequences: int) -> list[int]:
    """The padded sizes for up to ``max_sequences``, rising: 1, 2, 4, multiples of SIZE_STEP, and the most itself."""
    sizes = {1, 2, 4, max_sequences, *range(SIZE_STEP, max_sequences, SIZE_STEP)}
    return sorted(size for size in sizes if size <= max_sequences)


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """One sequence's share of a decode step.

    Attributes:
        token_id: the token to compute, which stands at ``position``.
        pages: int32 [num_pages], the sequence's block table; it has a page for ``position``.
        sampling: how the token behind it is drawn.
    """

    token_id: int
    position: int
    pages: npt.NDArray[np.int32]
    sampling: SamplingParams


class StaticDecode:
    """A decode step of ``batch_size`` rows over fixed buffers: ``fill``, ``run`` or a replay of it, ``drawn``.

    Args:
        model: all three parts of it.
        cache: the pages of its span.
        max_context: tokens that a sequence may have.
    """

    def __init__(self, model: Model, cache: KVCache, max_context: int, batch_size: int) -> None:
        assert model.embed is not None and model.head is not None, "a decode step needs the whole model"
        self.batch_size = batch_size
        self._embed, self._span, self._head = model.embed, model.span, model.head
        self._cache = cache
        self._inputs = _Inputs(batch_size, -(-max_context // cache.page_size), model.device)
        self._cu_seqlens_q = torch.arange(batch_size + 1, dtype=torch.int32, device=model.device)
        self._ids = torch.zeros(batch_size, dtype=torch.int64, device=model.device)

    def fill(self, rows: Sequence[DecodeRow]) -> None:
        """Copy a step's values to the device, without waiting for it. The last step's ids must have been read."""
        assert len(rows) <= self.batch_size
        host, page_size = self._inputs.host, self._cache.page_size
        for index, row in enumerate(rows):
            page, offset = divmod(row.position, page_size)
            host["token_ids"][index] = row.token_id
            host["positions"][index] = row.position
            host["slot_mapping"][index] = int(row.pages[page]) * page_size + offset
            host["seq_lens"][index] = row.position + 1
            host["temperature"][index] = row.sampling.temperature
            host["top_k"][index] = row.sampling.top_k
            host["top_p"][index] = row.sampling.top_p
            host["min_p"][index] = row.sampling.min_p
            host["uniform"][index] = draw_number(row.sampling, row.position + 1)
            host["block_table"][index, : len(row.pages)] = row.pages
        for name, (_, padding) in _ROW_INPUTS.items():
            host[name][len(rows) :] = padding
        self._inputs.upload()

    @torch.inference_mode()
    def run(self) -> None:
        """Compute what was filled in, from token ids to drawn ids. On a GPU it queues kernels and waits for none."""
        values = self._inputs.device
        block_table, seq_lens = values["block_table"], values["seq_lens"]
        plan = plan_attention(
            block_table, seq_lens, self._cu_seqlens_q, page_size=self._cache.page_size, max_query_len=1
        )
        batch = ForwardBatch(
            positions=values["positions"],
            slot_mapping=values["slot_mapping"],
            block_table=block_table,
            seq_lens=seq_lens,
            cu_seqlens_q=self._cu_seqlens_q,
            plan=plan,
            longest=0,
        )
        hidden = self._span(self._embed(values["token_ids"]), batch, self._cache)  # [B, E]
        settings = {name: values[name] for name in ("temperature", "top_k", "top_p", "min_p", "uniform")}
        self._ids.copy_(sample(self._head(hidden), **settings))  # [B, V] -> [B]

    def drawn(self, num_rows: int) -> list[int]:
        """The ids that the first ``num_rows`` rows drew; waits for the device."""
        return self._ids[:num_rows].tolist()


class PaddedDecode:
    """Decode steps of up to ``max_sequences`` sequences, each padded to the next of a few sizes.

    Args:
        build: makes the step of a size.
        capture: turns a step into what runs it, such as a graph's replay; called for the largest size first, whose
            memory then holds the others.
        progress: told how many sizes are ready.
    """

    def __init__(
        self,
        build: Callable[[int], StaticDecode],
        max_sequences: int,
        capture: Capture,
        progress: Progress | None = None,
    ) -> None:
        self._sizes = decode_batch_sizes(max_sequences)
        self._steps: dict[int, tuple[StaticDecode, Launch]] = {}
        for size in reversed(self._sizes):
            step = build(size)
            self._steps[size] = (step, capture(step))
            if progress is not None:
                progress(len(self._steps), len(self._sizes))

    def holds(self, num_rows: int) -> bool:
        """Whether there is a step for so many sequences."""
        return 0 < num_rows <= self._sizes[-1]

    def launch(self, rows: Sequence[DecodeRow]) -> StaticDecode:
        """Begin the step that computes ``rows``; its ``drawn(len(rows))`` waits for the end."""
        step, run = self._steps[self._sizes[bisect_left(self._sizes, len(rows))]]
        step.fill(rows)
        run()
        return step


class _Inputs:
    """A step's inputs, twice: in one host buffer to write to, and in one on the device, which a single copy renews.

    Attributes:
        host: by name, numpy views of the host's buffer, pinned where the device is a GPU.
        device: by name, tensors: those of _ROW_INPUTS [B], and block_table int32 [B, M].
    """

    def __init__(self, batch_size: int, max_pages: int, device: torch.device) -> None:
        shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            name: (dtype, (batch_size,)) for name, (dtype, _) in _ROW_INPUTS.items()
        }
        shapes["block_table"] = (torch.int32, (batch_size, max_pages))
        starts: dict[str, int] = {}
        end = 0
        for name, (dtype, shape) in shapes.items():
            starts[name] = end
            end += -(-prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT

        def views(buffer: Tensor) -> dict[str, Tensor]:
            return {
                name: buffer[starts[name] : starts[name] + prod(shape) * dtype.itemsize].view(dtype).view(shape)
                for name, (dtype, shape) in shapes.items()
            }

        self._host = torch.zeros(end, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device = torch.zeros(end, dtype=torch.uint8, device=device)
        self.host = {name: view.numpy() for name, view in views(self._host).items()}
        self.device = views(self._device)

    def upload(self) -> None:
        """Renew the device's buffer, in the order of its stream."""
        self._device.copy_(self._host, non_blocking=True)
