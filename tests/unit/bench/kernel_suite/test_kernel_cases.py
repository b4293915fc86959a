"""Every case runs, its baselines compute what ours does, and its bytes and operations are those of its tensors."""

import shutil
import warnings
from collections import Counter

import pytest
import torch
from torch.nn.attention import SDPBackend

from hopformer.bench import kernel_attention_baselines, kernel_baselines, kernel_cases_attention
from hopformer.bench.contender import Absent
from hopformer.bench.kernel_attention_baselines import DenseBatch, PagedBatch, flex_baseline, sdpa_baseline
from hopformer.bench.kernel_case import CPU_SIZES, GPU_SIZES, Implementation, KernelCase, LayerShape, Setting, thousands
from hopformer.bench.kernel_cases import KERNELS, default_kernels, default_model, make_cases, make_settings
from hopformer.bench.kernel_cases_attention import context_cases, uneven_lengths
from hopformer.bench.kernel_cases_matmul import projection_sizes, quant_cases
from hopformer.bench.kernel_suite import compare
from hopformer.errors import UsageError
from hopformer.kernels.quant_linear import quantize_linear

CPU = torch.device("cpu")


def cases_of(setting: Setting) -> list[KernelCase]:
    return [*make_cases([setting], list(KERNELS)), *context_cases(setting)]


def find(setting: Setting, kernel: str, name: str) -> KernelCase:
    return next(case for case in KERNELS[kernel](setting) if case.name == name)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_baselines_of_every_case_compute_what_ours_does(kernel: str, setting: Setting) -> None:
    for case in KERNELS[kernel](setting):
        built = case.build()
        ours = built.ours.as_ours(built.ours.run()).float()
        assert bool(torch.isfinite(ours).all())
        ran = 0
        for baseline in built.make_baselines():
            if isinstance(baseline, Absent):
                assert baseline.name == "torch.compile" and baseline.reason == "no compiler in these tests"
                continue
            ran += 1
            result = baseline.as_ours(baseline.run()).float()
            assert result.shape == ours.shape
            assert compare(baseline, [1.0], result, ours).note is None, f"{kernel} {case.name} {baseline.name}"
        assert ran


def test_points_of_the_curve_run_too(setting: Setting) -> None:
    cases = list(context_cases(setting))
    assert [case.context for case in cases] == [16, 65]
    for case in cases:
        built = case.build()
        assert built.ours.run().shape == (1, 4, 32)


def test_names_are_unique_and_fit_an_identifier(setting: Setting) -> None:
    names = Counter((case.kernel, case.name) for case in cases_of(setting))
    assert set(names.values()) == {1}
    assert all(" " not in name for _, name in names)


def test_decode_reads_every_key_and_value_once(setting: Setting) -> None:
    size = setting.dtype.itemsize
    case = find(setting, "decode_attention", "B3x70")
    keys_and_values = 2 * 3 * 70 * 2 * 32
    queries_and_results = 2 * 3 * 4 * 32
    assert case.work.num_bytes == (keys_and_values + queries_and_results) * size
    assert case.work.num_operations == 3 * 70 * 4 * 2 * (32 + 32)  # heads, scores and weighted sums
    narrow = find(setting, "decode_attention", "B3x70-int8")
    assert narrow.work.num_bytes == keys_and_values + 4 * keys_and_values // 32 + queries_and_results * size


def test_prefill_counts_the_pairs_that_see_each_other(setting: Setting) -> None:
    case = find(setting, "prefill_attention", "17")
    assert case.work.num_operations == sum(seen * 4 * 2 * (32 + 32) for seen in range(1, 18))


def test_row_by_row_kernels_are_charged_with_their_tensors(setting: Setting) -> None:
    size, tokens = setting.dtype.itemsize, 33
    assert find(setting, "rms_norm", "T33").work.num_bytes == (4 * tokens + 1) * 256 * size
    assert find(setting, "swiglu", "T33").work.num_bytes == tokens * 3 * 384 * size
    qkv, q, kv = tokens * 8 * 32, tokens * 4 * 32, 2 * tokens * 2 * 32
    tables = tokens * (32 * 4 + 16)
    assert find(setting, "rope_kv_write", "T33").work.num_bytes == (qkv + q + kv) * size + tables
    assert find(setting, "sample", "B3-greedy").work.num_bytes == 3 * 131 * 4


def test_a_quantised_weight_is_charged_with_its_codes_and_scales(setting: Setting) -> None:
    features, width = projection_sizes(setting.layer)["gate_up"]
    weight = torch.randn(features, width).to(setting.dtype)
    for case in quant_cases(setting):
        bits, rows = int(case.name[3]), int(case.name.rpartition("-")[2])
        rows_bytes = rows * (features + width) * setting.dtype.itemsize
        assert case.work.num_bytes - rows_bytes == quantize_linear(weight, None, bits).nbytes
        assert case.work.num_operations == 2 * rows * features * width


def test_uneven_lengths_add_up_and_one_is_far_longer_than_most() -> None:
    for batch, total in (CPU_SIZES.uneven, GPU_SIZES.uneven, (1, 7), (5, 300)):
        lengths = uneven_lengths(batch, total)
        assert len(lengths) == batch and sum(lengths) == total and min(lengths) >= 1
    lengths = sorted(uneven_lengths(*GPU_SIZES.uneven))
    assert lengths[-1] > 10 * lengths[32]


def test_the_targets_cases_are_those_of_a_gpu() -> None:
    gpu = Setting(
        "llama", LayerShape(4096, 14336, 32, 8, 128, 128256, 1e-5), torch.bfloat16, torch.device("cuda"), GPU_SIZES
    )
    names = {(case.kernel, case.name) for case in make_cases([gpu], list(KERNELS))}
    for name in ("B16x4k", "B64-uneven-256k", "B1x32k", "B1x8k", "B16x4k-int8", "B16x4k-fp8"):
        assert ("decode_attention", name) in names
    assert {("prefill_attention", "8k"), ("prefill_attention", "16k"), ("rope_kv_write", "T4096")} < names
    assert {("quant_matmul", "int4-gate_up-16"), ("linear", "gate_up-64"), ("gemv", "norm-swiglu-1")} < names


def test_a_device_has_its_own_model_and_kernels() -> None:
    assert default_model(CPU) == "tinyllama" and default_model(torch.device("cuda")) == "llama-3.1-8b"
    assert "gemv" not in default_kernels(CPU) and default_kernels(torch.device("cuda")) == tuple(KERNELS)
    cases = make_cases(make_settings(["tinyllama", "other"], CPU, torch.float32), ["swiglu", "rms_norm"])
    assert [(case.model, case.kernel) for case in cases] == [
        (model, kernel) for model in ("tinyllama", "other") for kernel in ("swiglu", "rms_norm")
    ]


def test_unknown_names_are_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="decode_attention"):
        make_cases(make_settings([], CPU, torch.float32), ["flash"])
    with pytest.raises(UsageError, match="tinyllama"):
        make_settings(["gpt-5"], CPU, torch.float32)


def test_what_cannot_run_is_absent_with_its_reason() -> None:
    def fail() -> Implementation:
        raise RuntimeError("No available kernel.\nAborting execution.")

    absent = kernel_baselines.attempt("SDPA flash", fail)
    assert isinstance(absent, Absent) and absent.reason == "No available kernel."


@pytest.mark.parametrize(("count", "name"), [(512, "512"), (1000, "1000"), (4096, "4k"), (262144, "256k")])
def test_thousands_are_binary(count: int, name: str) -> None:
    assert thousands(count) == name


@pytest.mark.parametrize("name", ["B3x70", "B5-uneven-300", "17"])
def test_what_a_gpu_is_measured_against_computes_the_same(
    name: str, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[PagedBatch] = []
    monkeypatch.setattr(kernel_cases_attention, "dense_baselines", lambda batch: batches.append(batch) or ())
    monkeypatch.setattr(kernel_attention_baselines, "compiled", lambda function: function)
    built = find(setting, "prefill_attention" if name == "17" else "decode_attention", name).build()
    ours = built.ours.run().float()
    built.make_baselines()
    dense = DenseBatch.of(batches[0])
    baselines = [sdpa_baseline(dense, "SDPA math", SDPBackend.MATH, 0.02)]
    if setting.dtype == torch.float32:  # without compiling, flex_attention's bf16 is coarse
        baselines.append(flex_baseline(dense, 0.02))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # flex_attention would rather be compiled
        for one in baselines:
            assert compare(one, [1.0], one.as_ours(one.run()).float(), ours).note is None, one.name


@pytest.mark.slow
def test_a_compiled_baseline_computes_the_same(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(kernel_baselines, "why_not_compiled", lambda: None)
    built = find(setting, "swiglu", "T33").build()
    with torch.inference_mode():
        eager, compiled = built.make_baselines()
        assert isinstance(eager, Implementation) and isinstance(compiled, Implementation), compiled
        ours = built.ours.run().float()
        assert compare(compiled, [1.0], compiled.run().float(), ours).note is None
