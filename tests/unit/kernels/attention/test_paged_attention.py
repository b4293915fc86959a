"""paged_attention against float64 on ragged batches, through either path; see conftest.py for the table of cases."""

from typing import Any

import pytest
import torch

from hopformer.errors import KernelError
from hopformer.kernels import attention_cpu, paged_attention, plan_attention
from hopformer.kernels.backend import INTERPRETED
from hopformer.kernels.launch_configs import LaunchConfig, override


def tolerance(case: Any, tolerances: dict[torch.dtype, float]) -> float:
    """The table's, and one F32 rounding of the largest score: an error of a score is a relative error of its weight."""
    largest_score = case.query_scale * 4 * case.head_dim**0.5
    return tolerances[case.dtype] + (largest_score * 2.0**-24 if case.query_scale > 100 else 0.0)


def test_attention_agrees_with_float64(path: str, make_batch: Any, case: Any, tolerances: Any) -> None:
    batch = make_batch(case)
    assert batch.worst_error(batch.run()) < tolerance(case, tolerances)


def test_attention_writes_into_a_strided_output(path: str, make_batch: Any, tolerances: Any) -> None:
    batch = make_batch(lens=[70, 40, 0], query_lens=[5, 1, 1], dtype=torch.bfloat16)
    rows = torch.full((7, 10, 64), float("nan"), dtype=torch.bfloat16)
    found = batch.run(out=rows[:, 2:])
    assert found.data_ptr() == rows[:, 2:].data_ptr()
    assert batch.worst_error(found) < tolerances[torch.bfloat16]
    assert rows[:, :2].isnan().all()


def test_one_plan_serves_layers_with_and_without_a_window(path: str, make_batch: Any, tolerances: Any) -> None:
    lens, query_lens = [300, 64, 17], [40, 1, 1]
    windowed = make_batch(lens=lens, query_lens=query_lens, window=33)
    full = make_batch(lens=lens, query_lens=query_lens)
    plan = plan_attention(full.block_table, full.seq_lens, full.cu_seqlens_q, page_size=16)
    for _ in range(2):  # the second layer of each kind finds its schedule made
        assert windowed.worst_error(windowed.run(plan)) < tolerances[torch.float32]
        assert full.worst_error(full.run(plan)) < tolerances[torch.float32]


def test_sequences_share_pages(path: str, make_batch: Any, tolerances: Any) -> None:
    batch = make_batch(lens=[70, 70, 40], query_lens=[1, 6, 1])
    batch.share_pages()
    assert batch.worst_error(batch.run()) < tolerances[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("position", [0, 69])
def test_one_key_may_take_all_the_weight(
    path: str, make_batch: Any, tolerances: Any, position: int, dtype: torch.dtype
) -> None:
    batch = make_batch(lens=[70, 70], query_lens=[1, 3], dtype=dtype)
    batch.let_one_key_win(position)
    assert batch.worst_error(batch.run()) < tolerances[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_chunks_give_what_one_prefill_gives(
    path: str, make_batch: Any, tolerances: Any, size: int, dtype: torch.dtype
) -> None:
    whole = make_batch(lens=[65], query_lens=[65], window=40, dtype=dtype)
    found = whole.alone(0, [min(size, 65 - start) for start in range(0, 65, size)])
    assert whole.worst_error(found) < tolerances[dtype]
    at_once = whole.run()
    assert float((found - at_once).norm() / at_once.norm()) < 2 * tolerances[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [16, 33, 64])
def test_a_prefill_and_a_decode_step_give_what_a_prefill_of_one_more_gives(
    path: str, make_batch: Any, tolerances: Any, count: int, dtype: torch.dtype
) -> None:
    whole = make_batch(lens=[count + 1], query_lens=[count + 1], dtype=dtype)
    found = whole.alone(0, [count, 1])
    assert whole.worst_error(found) < tolerances[dtype]
    assert float((found[-1] - whole.run()[-1]).norm() / found[-1].norm()) < 2 * tolerances[dtype]


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("page_size", [2, 16, 64])
@pytest.mark.parametrize("window", [1, 16, 33])
def test_pages_that_a_window_hides_from_every_query_are_not_touched(
    path: str, make_batch: Any, tolerances: Any, window: int, page_size: int, batch_invariant: bool
) -> None:
    batch = make_batch(lens=[200, 130, 97], query_lens=[1, 40, 7], window=window, page_size=page_size, shuffled=True)
    expected = batch.reference()
    batch.forget_unseen_pages()
    tables = (batch.block_table, batch.seq_lens, batch.cu_seqlens_q)
    found = batch.run(plan_attention(*tables, page_size=page_size, batch_invariant=batch_invariant))
    assert float((found.double() - expected).norm() / expected.norm()) < tolerances[torch.float32]


@pytest.mark.parametrize("has_tiles", [False, True])
def test_a_prefill_in_bf16_agrees_with_float64_on_cpus_of_either_kind(
    path: str, make_batch: Any, tolerances: Any, monkeypatch: pytest.MonkeyPatch, has_tiles: bool
) -> None:
    if path == "triton":
        pytest.skip("the Triton kernel asks no CPU")
    monkeypatch.setattr(attention_cpu, "multiplies_tiles", lambda: has_tiles)
    batch = make_batch(lens=[300, 64, 1023], query_lens=[40, 64, 70], dtype=torch.bfloat16, head_dim=128)
    assert batch.worst_error(batch.run()) < tolerances[torch.bfloat16]
    # 1/16320 lies in the middle between two bf16: weights that are all alike are all rounded alike
    alike = make_batch(
        lens=[16336], query_lens=[32], dtype=torch.bfloat16, num_heads=2, num_kv_heads=1, page_size=128, query_scale=0.0
    )
    assert alike.worst_error(alike.run()) < tolerances[torch.bfloat16]


def test_a_tensor_whose_strides_are_padded_is_read_right(path: str, make_batch: Any, tolerances: Any) -> None:
    batch = make_batch(lens=[70, 33], query_lens=[3, 1], flat=False)
    for name in ("k_pages", "v_pages"):
        pages = getattr(batch, name)
        roomy = torch.full((2 * pages.shape[0], *pages.shape[1:3], 72), float("nan"))[::2, ..., :64]
        setattr(batch, name, roomy.copy_(pages))
    assert batch.worst_error(batch.run()) < tolerances[torch.float32]


def test_a_plan_for_decode_only_gives_the_same(path: str, make_batch: Any, tolerances: Any) -> None:
    batch = make_batch(lens=[70, 33, 0], query_lens=[1, 1, 1])
    plan = plan_attention(batch.block_table, batch.seq_lens, batch.cu_seqlens_q, page_size=16, max_query_len=1)
    assert batch.worst_error(batch.run(plan)) < tolerances[torch.float32]


interpreted = pytest.mark.skipif(not INTERPRETED, reason="Triton runs in a process with TRITON_INTERPRET=1")
SMALL_DECODE = {"BLOCK_N": 16, "TRANSPOSED": False}
SMALL_PREFILL = {"BLOCK_M": 32, "BLOCK_N": 16, "DESCRIPTORS": False}


@pytest.mark.interpreter
@interpreted
@pytest.mark.parametrize("window", [0, 33])
@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.int8])
@pytest.mark.parametrize("page_size", [8, 16, 64])
def test_tiles_as_small_as_those_of_a_gpu_give_the_same(
    make_batch: Any, tolerances: Any, window: int, kv_dtype: torch.dtype, page_size: int
) -> None:
    batch = make_batch(
        lens=[130, 70, 5, 60],
        query_lens=[40, 1, 5, 12],
        num_kv_heads=1,
        num_heads=3,
        window=window,
        kv_dtype=kv_dtype,
        page_size=page_size,
        shuffled=True,
    )
    with override("decode", LaunchConfig(SMALL_DECODE, 1, 1)), override("prefill", LaunchConfig(SMALL_PREFILL, 1, 1)):
        assert batch.worst_error(batch.run()) < tolerances[torch.float32]


@pytest.mark.interpreter
@interpreted
@pytest.mark.parametrize(
    "keywords",
    [
        {"lens": [300, 1, 64, 17], "query_lens": [1, 1, 1, 1]},
        {"lens": [300, 64, 40], "query_lens": [16, 9, 3], "window": 21, "softcap": 5.0},
        {"lens": [16 + 9 * index for index in range(16)], "query_lens": list(range(1, 17)), "dtype": torch.bfloat16},
        {"lens": [130, 40], "query_lens": [1, 4], "kv_dtype": torch.int8, "head_dim": 80},
        {"lens": [130, 40], "query_lens": [1, 4], "kv_dtype": torch.float8_e4m3fn, "dtype": torch.bfloat16},
    ],
    ids=["decode", "drafts with window and soft-cap", "drafts of every length", "int8", "fp8"],
)
def test_keys_on_the_other_side_of_the_product_give_the_same(
    make_batch: Any, tolerances: Any, keywords: dict[str, Any]
) -> None:
    batch = make_batch(**keywords)
    with override("decode", LaunchConfig({"BLOCK_N": 32, "TRANSPOSED": True}, 1, 1)):
        assert batch.worst_error(batch.run()) < tolerances[batch.case.dtype]


@pytest.mark.interpreter
@interpreted
@pytest.mark.parametrize(("head_dim", "window"), [(64, 0), (64, 50), (80, 0), (128, 0)])
def test_tiles_loaded_by_descriptor_give_the_same(make_batch: Any, tolerances: Any, head_dim: int, window: int) -> None:
    batch = make_batch(
        lens=[130, 70, 100], query_lens=[40, 70, 33], head_dim=head_dim, window=window, flat=False, page_size=32
    )
    config = LaunchConfig({"BLOCK_M": 64, "BLOCK_N": 32, "DESCRIPTORS": True}, 1, 1)
    with override("prefill", config):
        assert batch.worst_error(batch.run()) < tolerances[torch.float32]


@pytest.mark.interpreter
@interpreted
def test_the_counters_of_splits_are_zero_after_a_hundred_replays(make_batch: Any) -> None:
    batch = make_batch(lens=[20], query_lens=[1], num_kv_heads=1, num_heads=1, head_dim=16)
    plan = plan_attention(batch.block_table, batch.seq_lens, batch.cu_seqlens_q, page_size=16, max_query_len=1)
    with override("decode", LaunchConfig({"BLOCK_N": 16, "TRANSPOSED": False}, 1, 1)):
        first = batch.run(plan)
        (counters,) = (one.counters for one in plan.schedules if hasattr(one, "counters"))
        (splits,) = (one for one in plan.schedules if hasattr(one, "bounds"))
        assert int(splits.bounds.diff().max()) > 1, "a case with one split a tile counts nothing"
        for _ in range(100):
            assert torch.equal(batch.run(plan), first) and not counters.any()


class TestBatchInvariance:
    """A batch-invariant plan gives a query the same bits in any company and any chunk."""

    LENS = (1300, 70, 3, 2100)

    @pytest.mark.parametrize(
        "keywords",
        [
            {},
            {"window": 100},
            {"softcap": 5.0, "window": 1000},
            {"dtype": torch.bfloat16, "head_dim": 48},
            {"dtype": torch.float16, "num_heads": 14},
            {"kv_dtype": torch.int8},
            {"kv_dtype": torch.float8_e4m3fn, "dtype": torch.bfloat16},
        ],
        ids=["all keys", "window", "soft-cap and window", "bf16", "f16 in groups of 7", "int8", "fp8"],
    )
    def test_results_are_bit_equal_in_any_batch_and_any_chunking(
        self, path: str, make_batch: Any, tolerances: Any, keywords: dict[str, Any]
    ) -> None:
        keywords = {"num_heads": 4, "num_kv_heads": 2} | keywords
        batch = make_batch(lens=list(self.LENS), query_lens=[23, 5, 3, 1], shuffled=True, **keywords)
        tables = (batch.block_table, batch.seq_lens, batch.cu_seqlens_q)
        together = batch.run(plan_attention(*tables, page_size=16, batch_invariant=True))
        assert batch.worst_error(together) < tolerances[batch.case.dtype]
        bounds = batch.cu_seqlens_q.tolist()
        for index, chunkings in enumerate(([[23], [1, 16, 6], [1] * 23], [[5], [2, 3]], [[3]], [[1]])):
            for chunks in chunkings:
                found = batch.alone(index, chunks, batch_invariant=True)
                assert torch.equal(found, together[bounds[index] : bounds[index + 1]])

    @pytest.mark.interpreter
    @interpreted
    @pytest.mark.parametrize("transposed", [False, True])
    def test_small_tiles_of_either_orientation_are_bit_equal_too(self, make_batch: Any, transposed: bool) -> None:
        batch = make_batch(lens=[1100, 1040, 40], query_lens=[80, 17, 16], num_heads=4, num_kv_heads=1, shuffled=True)
        tables = (batch.block_table, batch.seq_lens, batch.cu_seqlens_q)
        with override("decode", LaunchConfig({"BLOCK_N": 64, "TRANSPOSED": transposed}, 1, 1)):
            together = batch.run(plan_attention(*tables, page_size=16, batch_invariant=True))
            assert batch.worst_error(together) < 2e-6
            bounds = batch.cu_seqlens_q.tolist()
            for index, chunks in enumerate(([1, 63, 16], [9, 8], [3, 13])):
                found = batch.alone(index, chunks, batch_invariant=True)
                assert torch.equal(found, together[bounds[index] : bounds[index + 1]])

    def test_rows_of_no_sequence_give_zero(self, path: str, make_batch: Any) -> None:
        batch = make_batch(lens=[0, 5, 33], query_lens=[1, 1, 4], padding=3)
        tables = (batch.block_table, batch.seq_lens, batch.cu_seqlens_q)
        found = batch.run(plan_attention(*tables, page_size=16, batch_invariant=True))
        assert not found[0].any() and not found[6:].any() and found[1].any()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"q": torch.zeros(1, 5, 64)}, r"q \[1, 5, 64\].*a multiple of 2"),
        ({"q": torch.zeros(1, 8, 64, dtype=torch.float16)}, "for pages q's dtype, int8 or fp8"),
        ({"q": torch.zeros(1, 8, 128)[..., ::2]}, "contiguous last axis"),
        ({"k_pages": torch.zeros(4, 2, 16, 32)}, r"pages \[4, 2, 16, 32\]"),
        ({"k_pages": torch.zeros(4, 2, 24, 64), "v_pages": torch.zeros(4, 2, 24, 64)}, "page_size is 24"),
        ({"block_table": torch.zeros(2, 4, dtype=torch.int32)}, r"block_table torch.int32 \[2, 4\]"),
        ({"seq_lens": torch.zeros(1, dtype=torch.int64)}, "seq_lens torch.int64"),
        ({"sliding_window": -1}, "sliding_window is -1"),
        ({"k_scales": torch.ones(3, 2, 16), "v_scales": torch.ones(3, 2, 16)}, "only int8 pages have them"),
        (
            {"k_pages": torch.zeros(4, 2, 16, 64).char(), "v_pages": torch.zeros(4, 2, 16, 64).char()},
            "int8 pages without k_scales",
        ),
        (
            {
                "k_pages": torch.zeros(4, 2, 16, 64).char(),
                "v_pages": torch.zeros(4, 2, 16, 64).char(),
                "k_scales": torch.ones(4, 2, 8),
                "v_scales": torch.ones(4, 2, 16),
            },
            r"k_scales torch.float32 \[4, 2, 8\]",
        ),
        ({"out": torch.zeros(2, 8, 64)}, r"out torch.float32 \[2, 8, 64\]"),
    ],
)
def test_what_does_not_fit_is_refused(path: str, make_batch: Any, broken: dict[str, Any], message: str) -> None:
    batch = make_batch(lens=[40], query_lens=[1])
    arguments = {
        "q": batch.q,
        "k_pages": batch.k_pages,
        "v_pages": batch.v_pages,
        "block_table": batch.block_table,
        "seq_lens": batch.seq_lens,
        "cu_seqlens_q": batch.cu_seqlens_q,
        "softmax_scale": 1.0,
    }
    with pytest.raises(KernelError, match=message):
        paged_attention(**(arguments | broken))


def test_a_plan_of_another_step_is_refused(path: str, make_batch: Any) -> None:
    batch, other = make_batch(lens=[40], query_lens=[1]), make_batch(lens=[40, 40], query_lens=[1, 1])
    plan = plan_attention(other.block_table, other.seq_lens, other.cu_seqlens_q, page_size=16)
    with pytest.raises(KernelError, match="make one plan a step"):
        batch.run(plan)
