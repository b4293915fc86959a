"""The CPU's packed products against float64 of what the codes stand for, and the probes that guard them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hopformer.kernels import quant_matmul_cpu
from hopformer.kernels.quant_matmul_cpu import (
    DEQUANTIZED_FROM_ROWS,
    LeftInt8,
    PackedInt4,
    PackedInt8,
    can_pack_int4,
    int4_block_rows,
    int8_steps,
    round_to_int4,
    round_to_int8,
)

DTYPES = [torch.bfloat16, torch.float32]
ROWS = [1, 2, 3, 4, 5, 47, 48, 97, DEQUANTIZED_FROM_ROWS - 1, DEQUANTIZED_FROM_ROWS, DEQUANTIZED_FROM_ROWS + 31]


@pytest.fixture
def _packing() -> None:
    products = [int8_steps(torch.bfloat16), can_pack_int4(torch.bfloat16), hasattr(torch, "_int_mm")]
    if not all(products):
        pytest.skip("this build of torch has no operators to pack for")


def from_int8(weight: torch.Tensor) -> torch.Tensor:
    """float64 [N, K] of an 8-bit weight's codes."""
    codes, scales = round_to_int8(weight)
    return codes.double() * scales.double()[:, None]


def from_int4(weight: torch.Tensor) -> torch.Tensor:
    """float64 [N, K] of a 4-bit weight's codes."""
    codes, scales, middles = round_to_int4(weight)
    widened = codes.double().unflatten(1, (-1, 32)) * scales.double()[:, :, None] + middles.double()[:, :, None]
    return widened.flatten(1)


def pack_int8(weight: torch.Tensor) -> PackedInt8:
    """As `quantize_linear` does."""
    return PackedInt8(weight, int8_steps(weight.dtype))


def rounded_rows(x: torch.Tensor, steps: int) -> torch.Tensor:
    """float64 of x with each row rounded to ``steps`` on either side as the 8-bit product does: halves upwards, in F32.

    One row has an f32 scale, several have theirs in the dtype of x.
    """
    if x.shape[0] == 1:
        scale = float(x.abs().max()) / steps
        return (x.float() * (1 / scale) + (steps + 1.5)).floor().sub(steps + 1).double() * scale
    scales = x.abs().amax(1, keepdim=True) / steps
    return (x.float() / scales + (steps + 1.5)).floor().sub(steps + 1).double() * scales.double()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative Frobenius error, of the worst row."""
    assert found.shape == expected.shape
    return float(((found.double() - expected).norm(dim=1) / expected.norm(dim=1)).max())


@pytest.mark.usefixtures("_packing")
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40, 24), (101, 37), (64, 96)])
@pytest.mark.parametrize("is_older", [False, True])
def test_8_bits_multiply_rounded_rows_of_x(
    rows: int, dtype: torch.dtype, shape: tuple[int, int], is_older: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = int8_steps(dtype)
    if is_older:  # as on a CPU without VNNI and AVX-512
        monkeypatch.setattr(quant_matmul_cpu, "_capability", lambda: "AVX2")
        steps = 63
    weight, x = torch.randn(shape).to(dtype), torch.randn(rows, shape[1] + 3).to(dtype)[:, : shape[1]]
    found = PackedInt8(weight, steps).matmul(x)
    assert found.dtype == dtype
    # Two or three roundings to bf16, of the worst row
    assert relative_error(found, rounded_rows(x, steps) @ from_int8(weight).T) < 6e-3


@pytest.mark.usefixtures("_packing")
@pytest.mark.parametrize("rows", [*ROWS, 32, 33])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40, 24), (101, 37), (64, 96)])
def test_8_bits_on_the_left_multiply_rounded_rows_of_x(rows: int, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    weight, x = torch.randn(shape).to(dtype), torch.randn(rows, shape[1] + 3).to(dtype)[:, : shape[1]]
    found = LeftInt8(weight).matmul(x)
    assert found.dtype == dtype and found.is_contiguous()
    assert relative_error(found, rounded_rows(x, 127) @ from_int8(weight).T) < 6e-3


@pytest.mark.usefixtures("_packing")
def test_sums_of_codes_are_exact() -> None:
    """The largest codes side by side, as many as a long row of a large model has."""
    weight, x = torch.ones(3, 28672), torch.ones(2, 28672)
    weight[1] = -1
    assert torch.equal(LeftInt8(weight).matmul(x), torch.tensor([[28672.0, -28672.0, 28672.0]] * 2))


@pytest.mark.usefixtures("_packing")
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(64, 32), (70, 96), (1, 64), (192, 224)])
def test_4_bits_agree_with_float64(rows: int, dtype: torch.dtype, shape: tuple[int, int], tolerances: Any) -> None:
    weight, x = torch.randn(shape).to(dtype), torch.randn(rows, shape[1] + 3).to(dtype)[:, : shape[1]]
    found = PackedInt4(weight).matmul(x)
    assert found.dtype == dtype and found.is_contiguous()
    expected = x.bfloat16().double() @ from_int4(weight).T
    assert float((found.double() - expected).norm() / expected.norm()) < tolerances[torch.bfloat16]


@pytest.mark.usefixtures("_packing")
@pytest.mark.parametrize("make", [pack_int8, LeftInt8, PackedInt4])
@pytest.mark.parametrize("rows", [1, 3, DEQUANTIZED_FROM_ROWS])
def test_rows_of_zeros_and_huge_rows_stay_apart(make: Callable[[torch.Tensor], Any], rows: int) -> None:
    weight = torch.randn(6, 64).bfloat16()
    weight[1], weight[4] = 0, weight[4] * 1e18
    x = torch.randn(rows, 64).bfloat16()
    found = make(weight).matmul(x)
    assert torch.isfinite(found).all() and found[:, 1].abs().max() < 1e-6
    expected = x.double() @ weight.double().T
    for column in (0, 2, 3, 4, 5):
        assert (found[:, column].double() - expected[:, column]).norm() < 0.3 * weight[
            column
        ].double().norm() * rows**0.5


@pytest.mark.usefixtures("_packing")
@pytest.mark.parametrize("rows", [1, 2, DEQUANTIZED_FROM_ROWS])
def test_a_row_of_x_that_is_zero_gives_zero_and_one_with_nan_gives_nan(rows: int) -> None:
    for packed in (pack_int8(torch.randn(8, 64)), LeftInt8(torch.randn(8, 64)), PackedInt4(torch.randn(8, 64))):
        x = torch.randn(rows, 64)
        x[-1] = 0
        assert packed.matmul(x)[-1].abs().max() < 1e-6
        x[-1, 5] = float("nan")
        found = packed.matmul(x)
        assert found[-1].isnan().all() and not found[:-1].isnan().any()


@pytest.mark.usefixtures("_packing")
def test_a_chunk_at_a_time_rounds_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = torch.randn(200, 64).bfloat16(), torch.randn(DEQUANTIZED_FROM_ROWS, 64).bfloat16()
    whole = [make(weight).matmul(x) for make in (pack_int8, PackedInt4)]
    monkeypatch.setattr(quant_matmul_cpu, "_CHUNK_ROWS", 64)
    assert all(torch.equal(make(weight).matmul(x), y) for make, y in zip((pack_int8, PackedInt4), whole, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_moves_by_half_a_step_at_most_and_stays_as_it_was(dtype: torch.dtype) -> None:
    weight = (torch.rand(6, 256) * 2 - 1).to(dtype)
    kept = weight.clone()
    assert (from_int8(weight) - weight.double()).abs().max() <= 1 / 127 / 2 * 1.001
    assert (from_int4(weight) - weight.double()).abs().max() <= 2 / 15 / 2 * 1.03  # scale and middle are bf16
    assert torch.equal(weight, kept)


@pytest.mark.parametrize("probe", [int8_steps, can_pack_int4])
@pytest.mark.parametrize("failure", [AttributeError, NotImplementedError, RuntimeError, None])
def test_operators_that_are_missing_or_wrong_are_not_used(
    probe: Any, failure: type[Exception] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def operator(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
        if failure:
            raise failure("no such operator")
        return torch.zeros(x.shape[0], 128 if probe is can_pack_int4 else 96)

    monkeypatch.setattr(quant_matmul_cpu, "_multiply_int8", lambda: operator)
    monkeypatch.setattr(quant_matmul_cpu, "_multiply_int4", lambda: operator)
    probe.cache_clear()
    try:
        assert not probe(torch.bfloat16)
    finally:
        probe.cache_clear()


@pytest.mark.parametrize("rows", [64, 32, 16])
def test_the_blocks_of_packed_codes_are_recognised(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with AVX-512, with AVX2, and in a way that is unknown here."""

    def pack(codes: torch.Tensor, unused: int) -> torch.Tensor:
        blocks = codes.view(-1, 2, rows // 2, codes.shape[1]).transpose(2, 3)  # [blocks, 2, K, rows / 2]
        return (blocks[:, 0] | blocks[:, 1] << 4).to(torch.uint8).reshape(codes.shape[0], -1)

    monkeypatch.setattr(quant_matmul_cpu, "_pack_int4", lambda: pack)
    int4_block_rows.cache_clear()
    try:
        assert int4_block_rows() == (rows if rows > 16 else 0)
        if rows > 16:  # and what is dequantised from them is right
            weight, x = torch.randn(128, 64), torch.randn(DEQUANTIZED_FROM_ROWS, 64)
            expected = x.bfloat16().double() @ from_int4(weight).T
            found = PackedInt4(weight).matmul(x)
            assert float((found.double() - expected).norm() / expected.norm()) < 3e-3
    finally:
        int4_block_rows.cache_clear()


def test_where_sums_of_two_products_saturate_x_gets_fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = quant_matmul_cpu._multiply_int8()

    def saturating(codes: torch.Tensor, scale: float, zero_point: int, *arguments: Any) -> torch.Tensor:
        y = exact(codes, scale, zero_point, *arguments)
        return y / 2 if int(codes.max()) * 2 * 127 > 2**15 - 1 else y

    monkeypatch.setattr(quant_matmul_cpu, "_multiply_int8", lambda: saturating)
    int8_steps.cache_clear()
    try:
        assert int8_steps(torch.bfloat16) == 63
    finally:
        int8_steps.cache_clear()


def test_a_cpu_that_onednn_has_no_instructions_for_is_left_to_the_plain_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quant_matmul_cpu, "_capability", lambda: "DEFAULT")
    int8_steps.cache_clear()
    try:
        assert int8_steps(torch.bfloat16) == 0
    finally:
        int8_steps.cache_clear()


@pytest.mark.usefixtures("_packing")
@pytest.mark.parametrize("has_bf16", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_strips_of_a_weight_agree_with_the_whole(
    has_bf16: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tolerances: Any
) -> None:
    monkeypatch.setattr(quant_matmul_cpu, "_STRIP_ELEMENTS", 128 * 96)  # two blocks in a strip, and one is left
    monkeypatch.setattr(quant_matmul_cpu, "multiplies_bf16", lambda: has_bf16)
    weight, x = torch.randn(300, 96).to(dtype), torch.randn(DEQUANTIZED_FROM_ROWS + 5, 96).to(dtype)
    found = PackedInt4(weight).matmul(x)
    expected = x.double() @ from_int4(weight).T
    assert found.dtype == dtype
    assert float((found.double() - expected).norm() / expected.norm()) < tolerances[torch.bfloat16]


def test_float16_is_left_to_the_plain_product() -> None:
    assert not int8_steps(torch.float16) and not can_pack_int4(torch.float16)
