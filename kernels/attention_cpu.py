"""Paged attention in PyTorch: the CPU path, and the specification of the Triton kernels.

A schedule (attention_schedule_cpu.py) says where each sequence's keys lie. Where they are one run of slots and the pool
is laid out [K, P * S, D], K and V are views; otherwise they are gathered. Heads that share K and V are never expanded
in memory: they are folded into the query axis, or read K and V with stride 0.

Torch's fused attention does most of it. What it lacks, a soft-cap and exact sums over very many keys, is put together
from products. So is a prefill in bf16, where its products run at the speed of F32: F32 scores and softmax, then bf16
weights times V, take three quarters of its time.

    q [T, H, D]   G = H / K query heads a KV head   N keys of a sequence   R rows of a tile, over n keys
"""

import math

import torch
import torch.nn.functional as F

from .attention_plan import AttentionPlan
from .attention_schedule_cpu import TILE_ROWS, CpuSchedule, DecodeGroup, SequenceWork, build_cpu_schedule

# A single F32 sum over more keys than this loses its last digits (6e-6 at 100,000), so it is taken in parts.
LONG_KEYS = 8192
# Scores that a bf16 prefill may hold at once, with their weights 96 MiB: tiles of 32 heads over 16,384 keys.
MAX_SCORES = 1 << 24


def paged_attention_cpu(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    plan: AttentionPlan,
    *,
    softmax_scale: float,
    sliding_window: int,
    softcap: float,
    out: torch.Tensor | None,
) -> torch.Tensor:
    """The PyTorch path of `paged_attention`, whose arguments these are; already checked."""
    layer = _Layer(q, k_pages, v_pages, softmax_scale, softcap)
    key = ("cpu", sliding_window, layer.is_flat)
    schedule = plan.schedule(key, lambda: build_cpu_schedule(plan, sliding_window, layer.is_flat))
    schedule.check_fits(q.shape[0], k_pages.shape[0])
    if out is None:
        if q.shape[0] == 1 and schedule.sequences:
            return layer.decode(schedule.sequences[0])
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    layer.run(schedule, out, plan)
    return out


class _Layer:
    """The tensors of one layer, and the ways to attend over parts of them."""

    __slots__ = ("group_size", "head_dim", "is_flat", "k_pages", "num_kv_heads", "q", "scale", "softcap", "v_pages")

    def __init__(
        self, q: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor, scale: float, softcap: float
    ) -> None:
        self.q = q
        self.k_pages = k_pages
        self.v_pages = v_pages
        self.scale = scale
        self.softcap = softcap
        self.num_kv_heads, page_size, self.head_dim = k_pages.shape[1:]
        self.group_size = q.shape[1] // self.num_kv_heads
        k_strides, v_strides = k_pages.stride(), v_pages.stride()
        self.is_flat = k_strides[0] == page_size * k_strides[2] and v_strides[0] == page_size * v_strides[2]

    def run(self, schedule: CpuSchedule, out: torch.Tensor, plan: AttentionPlan) -> None:
        """Write every row of ``out: [T, H, D]``."""
        for start, end in schedule.unseen:
            out[start:end] = 0
        if schedule.num_rows < out.shape[0]:
            out[schedule.num_rows :] = 0
        is_bf16 = self.q.dtype == torch.bfloat16 and not self.softcap
        for work in schedule.sequences:
            if not work.tiles:
                out[work.first_row] = self.decode(work)[0]
            elif is_bf16 and self.q.shape[1] * TILE_ROWS * work.num_keys <= MAX_SCORES:
                self.prefill_bf16(work, out, plan)
            else:
                self.prefill(work, out)
        for group in schedule.groups:
            self.decode_group(group, out)

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
        """`prefill` for bf16 without a soft-cap."""
        kv, group, rows = self.num_kv_heads, self.group_size, slice(work.tiles[0].row_start, work.tiles[-1].row_end)
        k, v = self._keys_and_values(work)  # [K, N, D]
        k = k.float().transpose(1, 2)  # [K, D, N]
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
            out[:, own] = torch.bmm(p, v_tile).view_as(q_tile)

    def decode_group(self, group: DecodeGroup, out: torch.Tensor) -> None:
        """One query each of ``b`` sequences over keys gathered slot by slot and padded to the longest."""
        batch, longest = group.slots.shape
        q = self.q[group.rows].view(batch, self.num_kv_heads, self.group_size, self.head_dim)
        k = self._gather(self.k_pages, group.slots.flatten()).unflatten(1, (batch, longest))  # [K, b, N, D]
        v = self._gather(self.v_pages, group.slots.flatten()).unflatten(1, (batch, longest))
        y = self._attend(q.transpose(0, 1), k, v, group.mask)  # [K, b, G, D]
        out[group.rows] = y.transpose(0, 1).reshape(batch, -1, self.head_dim)

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
        if work.slots is None:
            first, count = work.first_slot, work.num_keys
            return self._run(self.k_pages, first, count), self._run(self.v_pages, first, count)
        return self._gather(self.k_pages, work.slots), self._gather(self.v_pages, work.slots)

    def _run(self, pages: torch.Tensor, first_slot: int, num_keys: int) -> torch.Tensor:
        """``num_keys`` consecutive slots of a flat pool as a view [K, N, D]."""
        _, head_stride, slot_stride, _ = pages.stride()
        offset = pages.storage_offset() + first_slot * slot_stride
        return pages.as_strided((self.num_kv_heads, num_keys, self.head_dim), (head_stride, slot_stride, 1), offset)

    def _gather(self, pages: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """The rows at ``slots: [n]`` copied to [K, n, D]."""
        if self.is_flat:
            flat = self._run(pages, 0, pages.shape[0] * pages.shape[2])  # [K, P * S, D]
            return flat.index_select(1, slots)
        page_size = pages.shape[2]
        return pages.transpose(0, 1)[:, slots // page_size, slots % page_size]
