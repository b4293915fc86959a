"""Paged attention on a GPU: every case of the unit tests' table against float64, and the same bits twenty times."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hopformer.kernels import AttentionPlan, paged_attention, plan_attention
from hopformer.kernels.launch_configs import find_config, override

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("uninitialised_memory_is_nan"),
    pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation"),
    pytest.mark.filterwarnings("ignore:Deterministic behavior was enabled"),  # of cuBLAS
]

REPEATS = 20  # a race shows in one of them, or as another result


def load_cases() -> ModuleType:
    """The unit tests' batches and their table, which lie in a conftest.py."""
    path = Path(__file__).parents[1] / "unit" / "kernels" / "attention" / "conftest.py"
    spec = importlib.util.spec_from_file_location("attention_cases", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["attention_cases"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


cases = load_cases()
# Every row of the table, and those in f32 in the type that models run in, too: its tiles are others
NAMED = {name: cases.AttentionCase(**case) for name, case in cases.CASES.items()}
NAMED |= {
    f"{name}, bf16": replace(case, dtype=torch.bfloat16) for name, case in NAMED.items() if case.dtype == torch.float32
}
# Largest relative Frobenius error against float64 on the rounded inputs, of one head of one sequence
TOLERANCES = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 3e-3}


def run_on(batch: Any, device: torch.device, plan: AttentionPlan | None = None) -> torch.Tensor:
    """`paged_attention` of a batch that lies in the CPU's memory, carried out on the device; its result there."""
    tensors = [getattr(batch, name) for name in ("q", "k_pages", "v_pages", "block_table", "seq_lens", "cu_seqlens_q")]
    scales = {name: getattr(batch, name) for name in ("k_scales", "v_scales")}
    case = batch.case
    return paged_attention(
        *(tensor.to(device) for tensor in tensors),
        softmax_scale=case.head_dim**-0.5,
        sliding_window=case.window,
        softcap=case.softcap,
        plan=plan,
        **{name: None if one is None else one.to(device) for name, one in scales.items()},
    )


def plan_on(batch: Any, device: torch.device, **keywords: Any) -> AttentionPlan:
    """A plan of the batch on the device."""
    tensors = (batch.block_table, batch.seq_lens, batch.cu_seqlens_q)
    return plan_attention(*(one.to(device) for one in tensors), page_size=batch.case.page_size, **keywords)


def tolerance(case: Any) -> float:
    """As in the unit tests."""
    largest_score = case.query_scale * 4 * case.head_dim**0.5
    return TOLERANCES[case.dtype] + (largest_score * 2.0**-24 if case.query_scale > 100 else 0.0)


def same_every_time(call: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What ``call`` returns, and returns again, on the CPU."""
    first = call()
    for _ in range(REPEATS - 1):
        assert torch.equal(call(), first)
    return first.cpu()


@pytest.mark.parametrize("name", list(NAMED))
def test_attention_agrees_with_float64_and_with_itself(name: str, device: torch.device) -> None:
    batch = cases.AttentionBatch(NAMED[name])
    assert batch.worst_error(same_every_time(lambda: run_on(batch, device))) < tolerance(batch.case)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_sequences_share_pages(dtype: torch.dtype, device: torch.device) -> None:
    batch = cases.AttentionBatch(cases.AttentionCase([70, 70, 40], [1, 6, 1], dtype=dtype))
    batch.share_pages()
    assert batch.worst_error(same_every_time(lambda: run_on(batch, device))) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("position", [0, 69])
def test_one_key_may_take_all_the_weight(position: int, dtype: torch.dtype, device: torch.device) -> None:
    batch = cases.AttentionBatch(cases.AttentionCase([70, 70, 70], [1, 3, 40], dtype=dtype))
    batch.let_one_key_win(position)
    assert batch.worst_error(same_every_time(lambda: run_on(batch, device))) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("chunks", [[1] * 65, [7] * 9 + [2], [64, 1]], ids=["of 1", "of 7", "64 and a decode step"])
def test_chunks_give_what_one_prefill_gives(chunks: list[int], dtype: torch.dtype, device: torch.device) -> None:
    whole = cases.AttentionBatch(cases.AttentionCase([65], [65], dtype=dtype, window=40))
    found = same_every_time(lambda: whole.alone(0, chunks, device))
    assert whole.worst_error(found) < TOLERANCES[dtype]
    at_once = run_on(whole, device).cpu()
    assert float((found - at_once).norm() / at_once.norm()) < 2 * TOLERANCES[dtype]


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("page_size", [2, 16, 64])
@pytest.mark.parametrize("window", [1, 16, 33])
def test_pages_that_a_window_hides_from_every_query_are_not_touched(
    window: int, page_size: int, batch_invariant: bool, device: torch.device
) -> None:
    case = cases.AttentionCase(
        [200, 130, 97], [1, 40, 7], dtype=torch.bfloat16, window=window, page_size=page_size, shuffled=True
    )
    batch = cases.AttentionBatch(case)
    expected = batch.reference()
    batch.forget_unseen_pages()
    plan = plan_on(batch, device, batch_invariant=batch_invariant)
    found = same_every_time(lambda: run_on(batch, device, plan)).double()
    assert float((found - expected).norm() / expected.norm()) < TOLERANCES[torch.bfloat16]


@pytest.mark.parametrize(
    "name",
    ["bf16 decode", "drafts to verify", "drafts of every length in bf16", "int8 decode in bf16", "fp8 decode in f16"],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_both_orientations_of_decode_agree_with_float64(name: str, transposed: bool, device: torch.device) -> None:
    batch = cases.AttentionBatch(cases.AttentionCase(**cases.CASES[name]))
    key = {"dtype": str(batch.case.dtype).removeprefix("torch."), "block_d": batch.case.head_dim, "block_m": 64}
    key["page_size"] = batch.case.page_size
    kv_dtype = str(batch.kv_dtype).removeprefix("torch.")
    config = find_config("decode", kv_dtype=kv_dtype, **key)
    turned = type(config)({**config.block, "TRANSPOSED": transposed}, config.num_warps, config.num_stages)
    with override("decode", turned):
        assert batch.worst_error(run_on(batch, device).cpu()) < tolerance(batch.case)


@pytest.mark.parametrize("window", [0, 100])
def test_pages_by_descriptor_agree_with_float64(window: int, device: torch.device) -> None:
    if torch.cuda.get_device_capability(device)[0] < 9:
        pytest.skip("tensor descriptors are for compute capability 9 and above")
    case = cases.AttentionCase(
        [700, 300, 130], [200, 300, 33], head_dim=128, dtype=torch.bfloat16, page_size=64, flat=False, window=window
    )
    batch = cases.AttentionBatch(case)
    config = find_config("prefill", dtype="bfloat16", kv_dtype="bfloat16", block_d=128, page_size=64)
    block = {**config.block, "DESCRIPTORS": True, "BLOCK_N": 64}
    with override("prefill", type(config)(block, config.num_warps, config.num_stages)):
        assert batch.worst_error(run_on(batch, device).cpu()) < tolerance(case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_error_is_near_that_of_torch(dtype: torch.dtype, device: torch.device) -> None:
    lens, query_lens = [300, 64, 513, 40], [40, 64, 1, 3]
    case = cases.AttentionCase(lens, query_lens, head_dim=128, dtype=dtype)
    batch = cases.AttentionBatch(case)
    theirs = torch.zeros_like(batch.q)
    for index, (length, count) in enumerate(zip(lens, query_lens, strict=True)):
        at = torch.arange(length)
        slots = batch.block_table[index].long()[at // case.page_size], at % case.page_size
        k, v = (pages[slots[0], :, slots[1]].transpose(0, 1).to(device) for pages in (batch.k_pages, batch.v_pages))
        rows = slice(*batch.cu_seqlens_q[index : index + 2].tolist())
        visible = at[None] <= torch.arange(length - count, length)[:, None]
        y = F.scaled_dot_product_attention(
            batch.q[rows].transpose(0, 1)[None].to(device),
            k.repeat_interleave(4, 0)[None],
            v.repeat_interleave(4, 0)[None],
            attn_mask=visible.to(device),
        )
        theirs[rows] = y[0].transpose(0, 1).cpu()
    assert batch.worst_error(run_on(batch, device).cpu()) <= 1.5 * batch.worst_error(theirs)


def test_a_batch_invariant_plan_gives_the_same_bits_in_any_company(device: torch.device) -> None:
    case = cases.AttentionCase([3000, 70, 3], [40, 5, 3], dtype=torch.bfloat16, head_dim=128, shuffled=True)
    batch = cases.AttentionBatch(case)
    together = run_on(batch, device, plan_on(batch, device, batch_invariant=True)).cpu()
    assert batch.worst_error(together) < TOLERANCES[torch.bfloat16]
    for chunks in ([40], [1] * 40, [7, 33], [16, 16, 8]):
        assert torch.equal(batch.alone(0, chunks, device, batch_invariant=True), together[:40])


def test_counters_are_zero_after_a_thousand_replays(device: torch.device) -> None:
    batch = cases.AttentionBatch(cases.AttentionCase([20_000, 64, 1], [1, 4, 1], dtype=torch.bfloat16, page_size=64))
    plan = plan_on(batch, device, max_query_len=4)
    first = run_on(batch, device, plan)
    for _ in range(1000):
        assert torch.equal(run_on(batch, device, plan), first)
    counters = [one.counters for one in plan.schedules if hasattr(one, "counters")]
    assert counters and not any(one.any() for one in counters)


def test_a_captured_step_follows_lengths_that_change(device: torch.device) -> None:
    batch = cases.AttentionBatch(cases.AttentionCase([4000, 1000, 3], [1, 1, 1], dtype=torch.bfloat16, page_size=64))
    names = ("q", "k_pages", "v_pages", "block_table", "seq_lens", "cu_seqlens_q")
    static = {name: getattr(batch, name).to(device) for name in names}

    def step() -> torch.Tensor:
        tables = (static["block_table"], static["seq_lens"], static["cu_seqlens_q"])
        plan = plan_attention(*tables, page_size=64, max_query_len=1)
        return paged_attention(*static.values(), softmax_scale=64**-0.5, plan=plan)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for lens in ([4000, 1000, 3], [1, 2, 3], [64, 0, 3], [3999, 1, 0], [2048, 65, 1]):
        static["seq_lens"].copy_(torch.tensor(lens, dtype=torch.int32))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(captured, step())
