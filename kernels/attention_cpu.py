"""Paged attention in PyTorch: the CPU path, and the specification of the Triton kernels.

A schedule (attention_schedule_cpu.py) says where each sequence's keys lie. Where they are one run of slots and the pool
is laid out [K, P * S, D], K and V are views; otherwise they are gathered. Heads that share K and V are never expanded
in memory: they are folded into the query axis, or read K and V with stride 0.

Torch's fused attention does most of it. What it lacks, a soft-cap and exact sums over very many keys, is put together
from products. So is a prefill in bf16 on CPUs without AMX, where its products run at the speed of F32: F32 scores and
softmax, then bf16 weights times V, take three quarters of its time. With AMX it takes half of theirs.

Pages of int8 or fp8 are widened to F32 as they are read, and attention is F32 then. A batch-invariant plan takes each
query by itself, over parts of INVARIANT_PART keys at fixed places, so that nothing it computes depends on its company.

    q [T, H, D]   G = H / K query heads a KV head   N keys of a sequence   R rows of a tile, over n keys
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F

from .attention_inputs import LayerPages, Scoring
from .attention_plan import AttentionPlan
from .attention_schedule_cpu import TILE_ROWS, CpuSchedule, DecodeGroup, SequenceWork, build_cpu_schedule

# A single F32 sum over more keys than this loses its last digits (6e-6 at 100,000), so it is taken in parts.
LONG_KEYS = 8192
# Scores that a bf16 prefill may hold at once, with their weights 96 MiB: tiles of 32 heads over 16,384 keys.
MAX_SCORES = 1 << 24
# Keys that a batch-invariant plan sums at once.
INVARIANT_PART = 512


def paged_attention_cpu(
    q: torch.Tensor, pages: LayerPages, plan: AttentionPlan, scoring: Scoring, out: torch.Tensor | None
) -> torch.Tensor:
    """The PyTorch path of `paged_attention`, whose arguments these are; already checked."""
    window = scoring.sliding_window
    if q.shape[0] == 1 and out is None and not (pages.is_narrow or scoring.softcap or plan.batch_invariant):
        geometry = (pages.k.shape, pages.k.stride(), pages.v.stride())
        run = plan.schedule(("cpu run", window, geometry), lambda: _find_run(pages, plan, window))
        if run is not None:
            return run.attend(q, pages, scoring.softmax_scale)
    layer = _Layer(q, pages, scoring)
    schedule = plan.schedule(("cpu", window, layer.is_flat), lambda: build_cpu_schedule(plan, window, layer.is_flat))
    schedule.check_fits(q.shape[0], pages.k.shape[0])
    if out is None:
        if q.shape[0] == 1 and schedule.sequences and not plan.batch_invariant:
            return layer.decode(schedule.sequences[0]).to(q.dtype)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if plan.batch_invariant:
        layer.run_invariant(plan, scoring.sliding_window, out)
    else:
        layer.run(schedule, out, plan)
    return out


@dataclass(frozen=True, slots=True)
class _Run:
    """The keys of a step's only query where they are views: what is the same in all layers whose pages lie alike.

    A step of one token runs this once a layer, and the Python around the products costs as much as these.
    """

    size: tuple[int, int, int, int]  # (K, 1, N, D), of the views of k and v
    k_strides: tuple[int, int, int, int]
    v_strides: tuple[int, int, int, int]
    first_slot: int

    def attend(self, q: torch.Tensor, pages: LayerPages, scale: float) -> torch.Tensor:
        """q [1, H, D] -> [1, H, D]."""
        k, v, (num_kv_heads, _, _, head_dim) = pages.k, pages.v, self.size
        k_strides, v_strides = self.k_strides, self.v_strides
        k = k.as_strided(self.size, k_strides, k.storage_offset() + self.first_slot * k_strides[2])  # [K, 1, N, D]
        v = v.as_strided(self.size, v_strides, v.storage_offset() + self.first_slot * v_strides[2])
        grouped = q.view(num_kv_heads, 1, -1, head_dim)  # [K, 1, G, D]
        return F.scaled_dot_product_attention(grouped, k, v, scale=scale).view(q.shape)


def _find_run(pages: LayerPages, plan: AttentionPlan, window: int) -> _Run | None:
    """The step's single query over one run of slots, if that is what it is and the pool makes views of it."""
    k, v = pages.k, pages.v
    page_size = k.shape[2]
    if any(tensor.stride(0) != page_size * tensor.stride(2) for tensor in (k, v)):
        return None
    schedule = plan.schedule(("cpu", window, True), lambda: build_cpu_schedule(plan, window, True))
    schedule.check_fits(1, k.shape[0])
    if not schedule.sequences:
        return None
    work = schedule.sequences[0]
    if work.slots is not None or (k.dtype == torch.float32 and work.num_keys > LONG_KEYS):
        return None
    strides = [(t.stride(1), 0, t.stride(2), t.stride(3)) for t in (k, v)]
    return _Run((k.shape[1], 1, work.num_keys, k.shape[3]), strides[0], strides[1], work.first_slot)


class _Layer:
    """The tensors of one layer, and the ways to attend over parts of them."""

    __slots__ = ("group_size", "head_dim", "is_flat", "is_narrow", "num_kv_heads", "pages", "q", "scale", "softcap")

    def __init__(self, q: torch.Tensor, pages: LayerPages, scoring: Scoring) -> None:
        self.pages = pages
        self.is_narrow = pages.is_narrow
        self.q = q.float() if self.is_narrow else q
        self.scale = scoring.softmax_scale
        self.softcap = scoring.softcap
        self.num_kv_heads, page_size, self.head_dim = pages.k.shape[1:]
        self.group_size = q.shape[1] // self.num_kv_heads
        tensors = (pages.k, pages.v, pages.k_scales, pages.v_scales)
        strides = [tensor.stride() for tensor in tensors if tensor is not None]
        self.is_flat = all(stride[0] == page_size * stride[2] for stride in strides)

    def run(self, schedule: CpuSchedule, out: torch.Tensor, plan: AttentionPlan) -> None:
        """Write every row of ``out: [T, H, D]``."""
        for start, end in schedule.unseen:
            out[start:end] = 0
        if schedule.num_rows < out.shape[0]:
            out[schedule.num_rows :] = 0
        by_products = self.q.dtype == torch.bfloat16 and not self.softcap and not multiplies_tiles()
        for work in schedule.sequences:
            if not work.tiles:
                out[work.first_row] = self.decode(work)[0]
            elif by_products and work.fills_tiles and self.q.shape[1] * TILE_ROWS * work.num_keys <= MAX_SCORES:
                self.prefill_bf16(work, out, plan)
            else:
                self.prefill(work, out)
        for group in schedule.groups:
            self.decode_group(group, out)

    def run_invariant(self, plan: AttentionPlan, window: int, out: torch.Tensor) -> None:
        """Write every row of ``out``, each from its own query and keys alone."""
        out.zero_()
        bounds, page_size = plan.cu_seqlens_q.tolist(), plan.page_size
        for index, length in enumerate(plan.seq_lens.tolist()):
            table = plan.block_table[index].long()
            for row in range(bounds[index], bounds[index + 1]):
                end = length - bounds[index + 1] + row + 1
                start = max(end - window, 0) if window else 0
                if end > 0:
                    out[row] = self._attend_in_parts(row, table, range(start, end), page_size)

    def _attend_in_parts(self, row: int, table: torch.Tensor, keys: range, page_size: int) -> torch.Tensor:
        """The query ``row`` over ``keys``, part by part: [H, D]. Always gathered, so that every operand is alike."""
        q = self.q[row].float().view(self.num_kv_heads, self.group_size, self.head_dim)
        outs, sums, largest = [], [], []
        for first in range(keys.start // INVARIANT_PART * INVARIANT_PART, keys.stop, INVARIANT_PART):
            at = torch.arange(max(first, keys.start), min(first + INVARIANT_PART, keys.stop))
            slots = table[at // page_size] * page_size + at % page_size
            k = self._gather(self.pages.k, self.pages.k_scales, slots).float().contiguous()  # [K, n, D]
            v = self._gather(self.pages.v, self.pages.v_scales, slots).float().contiguous()
            scores = torch.bmm(q, k.transpose(1, 2)).mul_(self.scale)  # [K, G, n]
            if self.softcap:
                scores = scores.div_(self.softcap).tanh_().mul_(self.softcap)
            top = scores.amax(2, keepdim=True)
            weights = scores.sub_(top).exp_()
            outs.append(torch.bmm(weights, v))  # [K, G, D]
            sums.append(weights.sum(2, keepdim=True))
            largest.append(top)
        tops = torch.stack(largest)  # [parts, K, G, 1]
        shares = (tops - tops.amax(0)).exp()
        y = (torch.stack(outs) * shares).sum(0) / (torch.stack(sums) * shares).sum(0)
        return y.view(-1, self.head_dim)

    def decode(self, work: SequenceWork) -> torch.Tensor:
        """One query over all the keys of ``work`` -> [1, H, D]."""
        q = self.q.select(0, work.first_row).view(self.num_kv_heads, 1, self.group_size, self.head_dim)
        k, v = self._keys_and_values(work)  # [K, N, D]
        out = self._attend(q, k.unsqueeze(1), v.unsqueeze(1), None)  # [K, 1, G, D]
        return out.view(1, self.q.shape[1], self.head_dim)

    def prefill(self, work: SequenceWork, out: torch.Tensor) -> None:
        """The queries of one sequence, tile by tile, each over the keys up to its own end."""
        heads = (self.num_kv_heads, self.group_size)
        q, out = self.q.unflatten(1, heads), out.unflatten(1, heads)  # [T, K, G, D]
        k, v = self._keys_and_values(work)  # [K, N, D]
        k = k[:, None].expand(-1, self.group_size, -1, -1)
        v = v[:, None].expand(-1, self.group_size, -1, -1)
        for tile in work.tiles:
            k_tile, v_tile = k[:, :, tile.keys], v[:, :, tile.keys]  # [K, G, n, D]
            y = self._attend(q[tile.rows].permute(1, 2, 0, 3), k_tile, v_tile, tile.mask)  # [K, G, R, D]
            out[tile.rows] = y.permute(2, 0, 1, 3)

    def prefill_bf16(self, work: SequenceWork, out: torch.Tensor, plan: AttentionPlan) -> None:
        """`prefill` for bf16 without a soft-cap, put together from products."""
        kv, group, rows = self.num_kv_heads, self.group_size, slice(work.tiles[0].row_start, work.tiles[-1].row_end)
        k, v = self._keys_and_values(work)  # [K, N, D]
        k = k.float().transpose(1, 2)  # [K, D, N]
        v_sums = v.float().cumsum_(1)
        q = self.q[rows].unflatten(1, (kv, group)).transpose(0, 1).float().mul_(self.scale)  # [K, rows, G, D]
        out = out[rows].unflatten(1, (kv, group)).transpose(0, 1)
        size = self.q.shape[1] * TILE_ROWS * work.num_keys
        scores = plan.schedule(("cpu scores", size), lambda: torch.empty(size))
        weights = plan.schedule(("cpu weights", size), lambda: torch.empty(size, dtype=torch.bfloat16))
        for tile in work.tiles:
            own = slice(tile.row_start - rows.start, tile.row_end - rows.start)
            q_tile, k_tile, v_tile = q[:, own], k[:, :, tile.keys], v[:, tile.keys]
            shape = (*q_tile.shape[:3], k_tile.shape[2])  # [K, R, G, n]
            s = scores[: math.prod(shape)].view(shape)
            p = weights[: math.prod(shape)].view(shape).flatten(1, 2)
            torch.bmm(q_tile.flatten(1, 2), k_tile, out=s.view(p.shape))
            if tile.mask is not None:
                s[..., tile.unmasked :] += tile.mask[:, None, tile.unmasked :]
            p.copy_(torch.softmax(s, -1, out=s).view(p.shape))
            # Weights that are all alike are all rounded alike: what their sum lacks goes to the mean of the values.
            lacking = 1 - p.sum(2, keepdim=True, dtype=torch.float32)  # [K, R * G, 1]
            mean = v_sums[:, tile.key_end - 1, None] - (v_sums[:, tile.key_start - 1, None] if tile.key_start else 0)
            rest = (lacking * mean.div_(tile.key_end - tile.key_start)).bfloat16()
            out[:, own] = torch.baddbmm(rest, p, v_tile).view_as(q_tile)

    def decode_group(self, group: DecodeGroup, out: torch.Tensor) -> None:
        """One query each of ``b`` sequences over keys gathered slot by slot and padded to the longest."""
        batch, longest = group.slots.shape
        q = self.q[group.rows].view(batch, self.num_kv_heads, self.group_size, self.head_dim)
        pages, slots = self.pages, group.slots.flatten()
        k = self._gather(pages.k, pages.k_scales, slots).unflatten(1, (batch, longest))  # [K, b, N, D]
        v = self._gather(pages.v, pages.v_scales, slots).unflatten(1, (batch, longest))
        y = self._attend(q.transpose(0, 1), k, v, group.mask)  # [K, b, G, D]
        out[group.rows] = y.transpose(0, 1).reshape(batch, -1, self.head_dim).to(out.dtype)

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """q [a, b, M, D] over k, v [a, b, N, D] with an additive f32 mask or none -> [a, b, M, D]."""
        is_long = mask is None and k.shape[2] > LONG_KEYS and q.dtype == torch.float32
        if not self.softcap and not is_long:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        scores = torch.matmul(q.float(), k.float().transpose(2, 3)).mul_(self.scale)
        if self.softcap:
            scores = scores.div_(self.softcap).tanh_().mul_(self.softcap)
        if mask is not None:
            scores.add_(mask)
        parts = zip(scores.softmax(-1).split(LONG_KEYS, 3), v.float().split(LONG_KEYS, 2), strict=True)
        return torch.stack([torch.matmul(weights, values) for weights, values in parts]).sum(0).to(q.dtype)

    def _keys_and_values(self, work: SequenceWork) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V at the positions that ``work`` covers, [K, N, D] each: views of one run, or gathered."""
        pages = self.pages
        if work.slots is None:
            run = slice(work.first_slot, work.first_slot + work.num_keys)
            return self._run(pages.k, pages.k_scales, run), self._run(pages.v, pages.v_scales, run)
        return self._gather(pages.k, pages.k_scales, work.slots), self._gather(pages.v, pages.v_scales, work.slots)

    def _run(self, pages: torch.Tensor, scales: torch.Tensor | None, slots: slice) -> torch.Tensor:
        """Consecutive slots of a flat pool: [K, N, D], a view unless the pages are narrow."""
        rows = _flat(pages)[:, slots]
        if not self.is_narrow:
            return rows
        return _widened(rows, None if scales is None else _flat(scales)[:, slots])

    def _gather(self, pages: torch.Tensor, scales: torch.Tensor | None, slots: torch.Tensor) -> torch.Tensor:
        """The rows at ``slots: [n]`` copied to [K, n, D]."""
        rows = _rows_at(pages, slots, self.is_flat)
        if not self.is_narrow:
            return rows
        return _widened(rows, None if scales is None else _rows_at(scales, slots, self.is_flat))


@cache
def multiplies_tiles() -> bool:
    """Whether this CPU multiplies whole tiles of bf16, which it does several times as fast as rows: AMX."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def _flat(pages: torch.Tensor) -> torch.Tensor:
    """Pages [P, K, S, ...] whose slots lie behind one another as a view [K, P * S, ...]."""
    num_pages, num_kv_heads, page_size = pages.shape[:3]
    size = (num_kv_heads, num_pages * page_size, *pages.shape[3:])
    return pages.as_strided(size, pages.stride()[1:], pages.storage_offset())


def _rows_at(pages: torch.Tensor, slots: torch.Tensor, is_flat: bool) -> torch.Tensor:
    """The rows of pages [P, K, S, ...] at ``slots: [n]``, copied: [K, n, ...]."""
    if is_flat:
        return _flat(pages).index_select(1, slots)
    page_size = pages.shape[2]
    return pages.transpose(0, 1)[:, slots // page_size, slots % page_size]


def _widened(rows: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    """Narrow rows [K, n, D] as F32, times their scales [K, n] if they have them."""
    wide = rows.float()
    return wide if scales is None else wide.mul_(scales.unsqueeze(2))
