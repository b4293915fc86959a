"""The CPU path's schedule of one step: where each sequence's keys lie, and how its queries are cut into tiles.

Worked out on the host once a step, so that a layer runs no Python but the calls themselves. Positions and slots are
those of kernels/paged_attention.py: slot = page id * page_size + offset.

    b sequences of a decode group   N keys of its longest   R rows of a tile
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import KernelError
from .attention_plan import AttentionPlan

# Rows of a prefill tile: fewer save work above the diagonal, more share each read of K and V. At 32 query heads and
# 512 to 8192 keys, 16 to 64 rows are within a few percent and 128 is slower.
TILE_ROWS = 32
# Single queries over at most this many keys become one padded batch when there are this many of them: the calls saved
# are then worth more than the copy (at 8 sequences of 16, 64 and 128 keys 0.6, 0.8 and 0.9 of the time, at 256 three
# times it).
GROUPED_KEYS = 128
GROUPED_SEQUENCES = 4


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows ``row_start .. row_end`` of q over the keys ``key_start .. key_end`` of their sequence's work."""

    row_start: int
    row_end: int
    key_start: int
    key_end: int
    mask: torch.Tensor | None  # [R, keys] f32, 0 or -inf; None when every row sees every key
    unmasked: int  # the first so many keys, which every row sees

    @property
    def rows(self) -> slice:
        """Its rows of q."""
        return slice(self.row_start, self.row_end)

    @property
    def keys(self) -> slice:
        """Its keys among those of its sequence's work."""
        return slice(self.key_start, self.key_end)


@dataclass(frozen=True, slots=True)
class SequenceWork:
    """One sequence's queries and the keys they see.

    Attributes:
        first_row: its first query's row of q.
        num_keys: how many keys its queries see between them.
        first_slot: where these keys start when they are one run of slots and the pool makes a view of it.
        slots: [num_keys] int64 otherwise.
        tiles: its queries in blocks; empty for a single query, which sees every key.
    """

    first_row: int
    num_keys: int
    first_slot: int
    slots: torch.Tensor | None
    tiles: tuple[Tile, ...]

    @property
    def fills_tiles(self) -> bool:
        """Whether it has queries for one whole tile at least."""
        return bool(self.tiles) and self.tiles[0].row_end - self.tiles[0].row_start == TILE_ROWS


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Single queries over few keys each, done as one padded batch.

    Attributes:
        rows: [b] int64 rows of q.
        slots: [b, N] int64; a place past a sequence's end repeats its last slot, so that no unused memory is read.
        mask: [1, b, 1, N] f32, -inf past a sequence's end; None when all are equally long.
    """

    rows: torch.Tensor
    slots: torch.Tensor
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class CpuSchedule:
    """Everything that one kind of layer does in one step.

    Attributes:
        num_rows: rows of q that the sequences account for; rows behind them give 0.
        num_pages: one past the largest page id in use.
        unseen: half-open ranges of rows whose queries see no key.
        sequences, groups: the rest of the rows.
    """

    num_rows: int
    num_pages: int
    unseen: tuple[tuple[int, int], ...]
    sequences: tuple[SequenceWork, ...]
    groups: tuple[DecodeGroup, ...]

    def check_fits(self, num_rows: int, num_pages: int) -> None:
        """Raise KernelError unless q has all the rows and the pool all the pages."""
        if num_rows < self.num_rows:
            raise KernelError(f"paged_attention got {num_rows} queries; cu_seqlens_q counts {self.num_rows}")
        if num_pages < self.num_pages:
            raise KernelError(
                f"block_table has page {self.num_pages - 1} within a sequence's length; the pool has {num_pages} pages"
            )


def build_cpu_schedule(plan: AttentionPlan, sliding_window: int, runs_are_views: bool) -> CpuSchedule:
    """The schedule of ``plan`` for layers with ``sliding_window`` (0: none) over a pool whose runs are views or not.

    Raises:
        KernelError: cu_seqlens_q decreases, a block table is too short, or a page id within a length is negative.
    """
    lengths = plan.seq_lens.tolist()
    bounds = plan.cu_seqlens_q.tolist()
    table = plan.block_table.numpy(force=True)
    window = sliding_window if sliding_window < max(lengths, default=0) else 0  # one that reaches all keys hides none
    builder = _Builder(plan.page_size, window, runs_are_views)
    for index, length in enumerate(lengths):
        builder.add(bounds[index], bounds[index + 1], length, table[index])
    return builder.finish(bounds[-1])


@dataclass(frozen=True, slots=True)
class _Keys:
    """Where the visible keys of one sequence lie: the slots of positions ``start .. end`` in ``pages``."""

    row: int
    start: int
    end: int
    pages: np.ndarray  # int32, the pages of positions start // page_size * page_size .. end

    def slots(self, page_size: int) -> torch.Tensor:
        """[end - start] int64."""
        first = self.start % page_size
        grid = self.pages.astype(np.int64)[:, None] * page_size + np.arange(page_size)
        return torch.from_numpy(grid.reshape(-1)[first : first + self.end - self.start])


class _Builder:
    """Collects one step's sequences."""

    def __init__(self, page_size: int, window: int, runs_are_views: bool) -> None:
        self._page_size = page_size
        self._window = window
        self._runs_are_views = runs_are_views
        self._num_pages = 0
        self._unseen: list[tuple[int, int]] = []
        self._short: list[_Keys] = []  # single queries over few keys
        self._long: list[tuple[_Keys, int]] = []  # the rest, with the row after their last query

    def add(self, row_start: int, row_end: int, length: int, table: np.ndarray) -> None:
        """Take one sequence: its rows of q, its length, its row of the block table."""
        if row_end < row_start or length < 0 or math.ceil(length / self._page_size) > len(table):
            raise KernelError(
                f"a sequence has queries {row_start} to {row_end}, length {length} and {len(table)} pages of "
                f"{self._page_size}; cu_seqlens_q must not decrease, and the pages must hold the length"
            )
        first_seen = max(row_start, row_end - length)
        if row_start < first_seen:
            self._unseen.append((row_start, first_seen))
        if first_seen == row_end:
            return
        num_queries = row_end - first_seen
        keys = self._find(first_seen, length - num_queries, length, table)
        if num_queries == 1 and keys.end - keys.start <= GROUPED_KEYS:
            self._short.append(keys)
        else:
            self._long.append((keys, row_end))

    def finish(self, num_rows: int) -> CpuSchedule:
        """The schedule of all the sequences taken."""
        if len(self._short) < GROUPED_SEQUENCES:
            self._long.extend((keys, keys.row + 1) for keys in self._short)
            self._short.clear()
        masks = _Masks(self._window, max((keys.end - keys.start for keys, _ in self._long), default=0))
        return CpuSchedule(
            num_rows,
            self._num_pages,
            tuple(self._unseen),
            tuple(self._work(keys, row_end, masks) for keys, row_end in self._long),
            (self._group(),) if self._short else (),
        )

    def _find(self, row: int, first_position: int, length: int, table: np.ndarray) -> _Keys:
        """The keys that queries at ``first_position .. length`` see between them."""
        start = max(0, first_position - self._window + 1) if self._window else 0
        pages = table[start // self._page_size : -(-length // self._page_size)]
        if pages.min() < 0:
            raise KernelError(f"block_table has page {pages.min()} within a sequence's length; page ids start at 0")
        self._num_pages = max(self._num_pages, int(pages.max()) + 1)
        return _Keys(row, start, length, pages)

    def _work(self, keys: _Keys, row_end: int, masks: "_Masks") -> SequenceWork:
        """One sequence by itself."""
        is_run = self._runs_are_views and bool((np.diff(keys.pages) == 1).all())
        first_slot = int(keys.pages[0]) * self._page_size + keys.start % self._page_size
        slots = None if is_run else keys.slots(self._page_size)
        num_keys = keys.end - keys.start
        if row_end - keys.row == 1:
            return SequenceWork(keys.row, num_keys, first_slot, slots, ())
        tiles = []
        for start in range(keys.row, row_end, TILE_ROWS):
            end = min(start + TILE_ROWS, row_end)
            key_end = num_keys - (row_end - end)
            rows = end - start
            key_start = max(0, key_end - rows - self._window + 1) if self._window else 0
            unmasked = 0 if self._window else key_end - rows
            tiles.append(Tile(start, end, key_start, key_end, masks.cut(rows, key_end - key_start), unmasked))
        return SequenceWork(keys.row, num_keys, first_slot, slots, tuple(tiles))

    def _group(self) -> DecodeGroup:
        """The short sequences as one batch."""
        lengths = torch.tensor([keys.end - keys.start for keys in self._short])
        longest = int(lengths.max())
        slots = torch.empty(len(self._short), longest, dtype=torch.int64)
        for row, keys in zip(slots, self._short, strict=True):
            own = keys.slots(self._page_size)
            row[: len(own)] = own
            row[len(own) :] = own[-1]
        mask = None
        if int(lengths.min()) < longest:
            hidden = torch.arange(longest) >= lengths[:, None]  # [b, N]
            mask = torch.zeros(hidden.shape).masked_fill_(hidden, -math.inf)[None, :, None]
        return DecodeGroup(torch.tensor([keys.row for keys in self._short]), slots, mask)


class _Masks:
    """Additive causal masks for tiles: all of them are right-aligned cuts of one, made when first asked for."""

    def __init__(self, window: int, num_keys: int) -> None:
        self._window = window
        self._num_keys = num_keys
        self._whole: torch.Tensor | None = None  # [TILE_ROWS, num_keys]

    def cut(self, rows: int, keys: int) -> torch.Tensor | None:
        """The mask [rows, keys] of a tile whose last row sees its last key; None for a single row."""
        if rows == 1:
            return None
        if self._whole is None:
            width = self._num_keys if not self._window else min(self._num_keys, self._window + TILE_ROWS - 1)
            # How far each key lies behind each query; negative ahead of it.
            behind = torch.arange(width - TILE_ROWS, width)[:, None] - torch.arange(width)
            hidden = (behind < 0) | (behind >= self._window) if self._window else behind < 0
            self._whole = torch.zeros(hidden.shape).masked_fill_(hidden, -math.inf)
        return self._whole[TILE_ROWS - rows :, self._whole.shape[1] - keys :]
