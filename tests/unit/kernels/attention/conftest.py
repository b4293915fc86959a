"""Ragged batches for paged attention, their float64 reference, and the table of cases that every path must pass."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from hopformer.kernels import AttentionPlan, paged_attention, plan_attention


@dataclass(frozen=True)
class AttentionCase:
    """A ragged batch to build: see `AttentionBatch` for what it becomes."""

    lens: list[int]
    query_lens: list[int]
    num_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 64
    page_size: int = 16
    dtype: torch.dtype = torch.float32
    window: int = 0
    softcap: float = 0.0
    query_scale: float = 1.0
    flat: bool = True  # the pool as [K, P * S, D], where a run of pages is a view; else [P, K, S, D]
    shuffled: bool = False  # pages in random order, else one run a sequence
    padding: int = 0  # rows of q that belong to no sequence
    kv_dtype: torch.dtype | None = None  # of the pages, if not dtype


class AttentionBatch:
    """The tensors of a case, with NaN and Inf in every unused slot and nonsense in every unused table entry."""

    def __init__(self, case: AttentionCase, seed: int = 0) -> None:
        self.case = case
        self._random = torch.Generator().manual_seed(seed)
        needed = [-(-length // case.page_size) for length in case.lens]
        num_pages = sum(needed) + 3
        self.kv_dtype = case.kv_dtype or case.dtype
        self.k_pages = self._pool(num_pages, case.head_dim, float("nan"), self.kv_dtype)
        self.v_pages = self._pool(num_pages, case.head_dim, float("inf"), self.kv_dtype)
        self.k_scales = self.v_scales = None
        if self.kv_dtype == torch.int8:
            self.k_scales = self._pool(num_pages, 1, float("nan"), torch.float32).squeeze(3)
            self.v_scales = self._pool(num_pages, 1, float("inf"), torch.float32).squeeze(3)
        order = torch.randperm(num_pages, generator=self._random) if case.shuffled else torch.arange(num_pages)
        self.block_table = torch.full((len(case.lens), max(needed, default=0) + 2), 2**31 - 1, dtype=torch.int32)
        self.block_table[:, -1] = -7
        taken = 1
        for row, length, count in zip(self.block_table, case.lens, needed, strict=True):
            row[:count] = order[taken : taken + count]
            taken += count
            self.fill(row, length)
        self.seq_lens = torch.tensor(case.lens, dtype=torch.int32)
        self.cu_seqlens_q = torch.tensor([0, *case.query_lens]).cumsum(0).int()
        rows = sum(case.query_lens) + case.padding
        # A slice of a fused projection: a row of it is H + 2K heads long, and what is no query is NaN.
        fused = torch.full(
            (rows, case.num_heads + 2 * case.num_kv_heads, case.head_dim), float("nan"), dtype=case.dtype
        )
        self.q = fused[:, : case.num_heads]
        self.q.copy_(torch.randn(self.q.shape, generator=self._random) * case.query_scale)

    def _pool(self, num_pages: int, width: int, poison: float, dtype: torch.dtype) -> torch.Tensor:
        case = self.case
        fill = 99 if dtype == torch.int8 else poison
        if case.flat:
            slots = torch.full((case.num_kv_heads, num_pages * case.page_size, width), fill).to(dtype)
            return slots.unflatten(1, (num_pages, case.page_size)).transpose(0, 1)
        return torch.full((num_pages, case.num_kv_heads, case.page_size, width), fill).to(dtype)

    def fill(self, table: torch.Tensor, length: int) -> None:
        """Write random keys and values to the first ``length`` places of one sequence."""
        for start in range(0, length, self.case.page_size):
            page = int(table[start // self.case.page_size])
            used = min(self.case.page_size, length - start)
            for pages, scales in ((self.k_pages, self.k_scales), (self.v_pages, self.v_scales)):
                rows = torch.randn(pages[page, :, :used].shape, generator=self._random)
                if scales is not None:
                    scales[page, :, :used] = rows.abs().amax(2) / 127
                    rows = (rows / scales[page, :, :used, None]).round()
                pages.view(storage_dtype(pages))[page, :, :used] = rows.to(pages.dtype).view(storage_dtype(pages))

    def share_pages(self) -> None:
        """Give the second sequence all pages of the first, and the third its first two; those behind it are its own."""
        self.block_table[1] = self.block_table[0]
        self.block_table[2, :2] = self.block_table[0, :2]
        for row, length in zip(self.block_table, self.case.lens, strict=True):
            self.fill(row, length)
        self.fill(self.block_table[0], self.case.lens[0])  # what is shared ends up the same for all

    def let_one_key_win(self, position: int) -> None:
        """Turn the key at ``position`` of every sequence towards its last query, so that it takes all the weight."""
        group = self.case.num_heads // self.case.num_kv_heads
        for index, table in enumerate(self.block_table):
            page, offset = int(table[position // self.case.page_size]), position % self.case.page_size
            last = int(self.cu_seqlens_q[index + 1]) - 1
            self.k_pages[page, :, offset] = 20 * self.q[last, ::group]

    def forget_unseen_pages(self) -> None:
        """Fill pages that the window hides from every query with NaN, and their table entries with nonsense."""
        case = self.case
        for index, length in enumerate(case.lens):
            first = max(0, length - case.query_lens[index] - case.window + 1)
            for place in range(first // case.page_size):
                self.k_pages[self.block_table[index, place]] = float("nan")
                self.v_pages[self.block_table[index, place]] = float("inf")
                self.block_table[index, place] = 2**31 - 1 if place % 2 else -7

    def alone(self, index: int, chunks: list[int], device: str | torch.device = "cpu", **plan: Any) -> torch.Tensor:
        """The queries of one sequence, in ``chunks`` with nothing else in the batch: [their number, H, D]."""
        start, end = self.cu_seqlens_q[index : index + 2].tolist()
        assert sum(chunks) == end - start
        held = (self.q, self.k_pages, self.v_pages, self.block_table[index : index + 1])
        q, k_pages, v_pages, table = (tensor.to(device) for tensor in held)
        scales = {
            name: None if scale is None else scale.to(device)
            for name, scale in (("k_scales", self.k_scales), ("v_scales", self.v_scales))
        }
        found, length = [], self.case.lens[index] - (end - start)
        for size in chunks:
            length += size
            lengths, bounds = (torch.tensor(one, dtype=torch.int32, device=device) for one in ([length], [0, size]))
            made = plan_attention(table, lengths, bounds, page_size=self.case.page_size, max_query_len=size, **plan)
            y = paged_attention(
                q[start : start + size],
                k_pages,
                v_pages,
                table,
                lengths,
                bounds,
                softmax_scale=self.case.head_dim**-0.5,
                sliding_window=self.case.window,
                softcap=self.case.softcap,
                plan=made,
                **scales,
            )
            found.append(y)
            start += size
        return torch.cat(found).cpu()

    def values(self, which: str, slots: tuple[torch.Tensor, torch.Tensor], head: int) -> torch.Tensor:
        """The keys ("k") or values ("v") of one head at (pages, offsets), as float64 [N, D]."""
        pages, scales = getattr(self, f"{which}_pages"), getattr(self, f"{which}_scales")
        bits = pages.view(storage_dtype(pages))[slots[0], head, slots[1]]
        rows = bits.view(pages.dtype).float().double()
        return rows if scales is None else rows * scales[slots[0], head, slots[1]].double()[:, None]

    def run(self, plan: AttentionPlan | None = None, out: torch.Tensor | None = None, **changed: Any) -> torch.Tensor:
        """`paged_attention` of the batch, with some of its keywords changed."""
        keywords: dict[str, Any] = {
            "softmax_scale": self.case.head_dim**-0.5,
            "sliding_window": self.case.window,
            "softcap": self.case.softcap,
            "k_scales": self.k_scales,
            "v_scales": self.v_scales,
        }
        tensors = (self.q, self.k_pages, self.v_pages, self.block_table, self.seq_lens, self.cu_seqlens_q)
        return paged_attention(*tensors, plan=plan, out=out, **(keywords | changed))

    def reference(self) -> torch.Tensor:
        """The formula in float64, one sequence and one key-value head at a time: [T, H, D]."""
        case = self.case
        out = torch.zeros(self.q.shape, dtype=torch.float64)
        group = case.num_heads // case.num_kv_heads
        for index, length in enumerate(case.lens):
            rows = slice(int(self.cu_seqlens_q[index]), int(self.cu_seqlens_q[index + 1]))
            queries = torch.arange(length - (rows.stop - rows.start), length)[:, None]
            keys = torch.arange(length)
            hidden = keys > queries
            if case.window:
                hidden |= keys <= queries - case.window
            slots = self.block_table[index].long()[keys // case.page_size], keys % case.page_size
            for head in range(case.num_heads):
                k, v = (self.values(which, slots, head // group) for which in ("k", "v"))  # [N, D]
                scores = self.q[rows, head].double() @ k.T * case.head_dim**-0.5
                if case.softcap:
                    scores = case.softcap * torch.tanh(scores / case.softcap)
                weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
                out[rows, head] = weights.nan_to_num(0.0) @ v
        return out

    def worst_error(self, found: torch.Tensor) -> float:
        """The largest relative error of one head of one sequence; rows that see nothing must be exactly 0."""
        assert found.shape == self.q.shape and found.dtype == self.q.dtype
        expected, worst = self.reference(), 0.0
        assert not found[(expected == 0).all(-1)].any(), "a query that sees no key must give 0"
        for start, end in zip(self.cu_seqlens_q[:-1].tolist(), self.cu_seqlens_q[1:].tolist(), strict=True):
            if expected[start:end].any():
                difference = (found[start:end].double() - expected[start:end]).norm(dim=(0, 2))  # [H]
                worst = max(worst, float((difference / expected[start:end].norm(dim=(0, 2))).max()))
        return worst if found.isfinite().all() else float("nan")


def storage_dtype(pages: torch.Tensor) -> torch.dtype:
    """A dtype of the same size that torch indexes, as it does not index fp8."""
    return torch.uint8 if pages.dtype.itemsize == 1 and pages.dtype.is_floating_point else pages.dtype


# Lengths sit at and around pages of 16, tiles of 32, 64 and 128, windows; what a case is about is its name.
_DECODE = {"lens": [1, 15, 16, 17, 63, 65, 127, 128, 129, 300], "query_lens": [1] * 10}
_MIXED = {"lens": [300, 64, 65, 1, 200, 40], "query_lens": [40, 64, 1, 1, 200, 7]}
_SMALL = {"lens": [70, 40, 17], "query_lens": [5, 1, 17]}
_BF16, _F16, _F8 = torch.bfloat16, torch.float16, torch.float8_e4m3fn
CASES: dict[str, dict[str, Any]] = {
    "decode": _DECODE,
    "decode of one sequence": {"lens": [97], "query_lens": [1]},
    "decode of scattered pages": _DECODE | {"shuffled": True},
    "decode with window": {"lens": [1, 32, 33, 34, 66, 300], "query_lens": [1] * 6, "window": 33},
    "prefill at once": {
        "lens": [1, 15, 16, 17, 31, 32, 33, 65, 129],
        "query_lens": [1, 15, 16, 17, 31, 32, 33, 65, 129],
    },
    "prefill and decode": _MIXED,
    "prefill and decode of scattered pages": _MIXED | {"shuffled": True, "flat": False},
    "prefill and decode with window": _MIXED | {"window": 33},
    "window of one key": _SMALL | {"window": 1},
    "window of a page": _SMALL | {"window": 16},
    "soft-cap far exceeded": _MIXED | {"softcap": 5.0, "query_scale": 20.0},
    "soft-cap and window": _SMALL | {"softcap": 30.0, "window": 9},
    "sequences without keys": {"lens": [0, 5, 0, 33, 0], "query_lens": [1, 1, 0, 4, 3], "padding": 2},
    "queries before all keys": {"lens": [3, 20, 33], "query_lens": [8, 21, 40]},
    "no sequence": {"lens": [], "query_lens": [], "padding": 3},
    "cached sequences without queries": {"lens": [40, 33], "query_lens": [0, 1]},
    "logits of 1e4": _SMALL | {"query_scale": 1e4},
    "logits of 1e4 in bf16": _SMALL | {"query_scale": 1e4, "dtype": _BF16},
    "keys all alike": _SMALL | {"query_scale": 0.0},
    "a thousand keys alike in bf16": {"lens": [1023, 1020], "query_lens": [40, 1], "query_scale": 0.0, "dtype": _BF16},
    "100,000 keys beside 63 of one": {
        "lens": [1] * 31 + [100_000] + [1] * 32,
        "query_lens": [1] * 64,
        "num_heads": 2,
        "num_kv_heads": 1,
        "page_size": 128,
    },
    "pages of 1": _SMALL | {"page_size": 1, "shuffled": True},
    "pages of 128": _MIXED | {"page_size": 128, "shuffled": True, "flat": False},
    "bf16 decode": _DECODE | {"head_dim": 128, "dtype": _BF16},
    "bf16 prefill and decode": _MIXED | {"head_dim": 128, "dtype": _BF16, "window": 0},
    "bf16 with window": _MIXED | {"head_dim": 128, "dtype": _BF16, "window": 65, "shuffled": True},
    "bf16 with soft-cap": _MIXED | {"head_dim": 128, "dtype": _BF16, "softcap": 30.0},
    "f16 prefill and decode": _MIXED | {"dtype": _F16},
    "drafts to verify": {"lens": [300, 64, 16, 130, 9, 17, 1], "query_lens": [16, 2, 16, 5, 9, 17, 1]},
    "drafts of every length": {"lens": [16 + 9 * index for index in range(16)], "query_lens": list(range(1, 17))},
    "drafts of every length in bf16": {
        "lens": [16 + 9 * index for index in range(16)],
        "query_lens": list(range(16, 0, -1)),
        "head_dim": 128,
        "dtype": _BF16,
        "shuffled": True,
    },
    "drafts with window": {"lens": [300, 64, 16, 130, 9], "query_lens": [16, 2, 16, 5, 9], "window": 21},
    "drafts of 8 heads": {"lens": [300, 64, 40], "query_lens": [16, 9, 3], "num_heads": 8, "num_kv_heads": 1},
    "int8 keys and values": _MIXED | {"kv_dtype": torch.int8},
    "int8 scattered in bf16": _MIXED | {"kv_dtype": torch.int8, "dtype": _BF16, "shuffled": True, "flat": False},
    "int8 with window and soft-cap": _SMALL | {"kv_dtype": torch.int8, "window": 9, "softcap": 30.0},
    "int8 decode": _DECODE | {"kv_dtype": torch.int8, "head_dim": 80},
    "int8 decode in bf16": _DECODE | {"kv_dtype": torch.int8, "dtype": _BF16, "head_dim": 128},
    "fp8 keys and values": _MIXED | {"kv_dtype": _F8, "dtype": _BF16},
    "fp8 scattered": _MIXED | {"kv_dtype": _F8, "dtype": _BF16, "shuffled": True, "flat": False, "head_dim": 48},
    "fp8 decode in f16": _DECODE | {"kv_dtype": _F8, "dtype": _F16, "head_dim": 128},
}
CASES |= {f"head_dim {size}": _SMALL | {"head_dim": size} for size in (48, 80, 96, 112, 128, 256)}
CASES |= {f"head_dim {size} in bf16": _SMALL | {"head_dim": size, "dtype": _BF16} for size in (64, 80, 96, 112, 256)}
CASES |= {
    f"group of {heads // kv}": _SMALL | {"num_heads": heads, "num_kv_heads": kv}
    for heads, kv in ((3, 3), (4, 2), (6, 2), (5, 1), (6, 1), (14, 2), (8, 1), (16, 1), (32, 1))
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes ``case`` on every row of the table."""
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", [AttentionCase(**case) for case in CASES.values()], ids=list(CASES))


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., AttentionBatch]:
    """Build a batch from a case, or from a case's keywords."""
    return lambda case=None, **keywords: AttentionBatch(case or AttentionCase(**keywords))
