"""Projections: packed and plain agree with float64, alone and with what is fused behind them."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hopformer.errors import KernelError
from hopformer.kernels import linear, pack_linear
from hopformer.kernels.linear import LeftLinear, Linear, PackedLinear, PlainLinear, can_pack

CLASSES = [PackedLinear, PlainLinear, LeftLinear]
DTYPES = [torch.bfloat16, torch.float32]


@pytest.fixture
def _packing(request: pytest.FixtureRequest) -> None:
    if not can_pack(torch.bfloat16) or not can_pack(torch.float32):
        pytest.skip("this build of torch has no oneDNN operators to pack with")


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative Frobenius error of a tensor against a float64 one."""
    assert found.shape == expected.shape
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.usefixtures("_packing")
@pytest.mark.parametrize("make", CLASSES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 24, 40), (17, 37, 101), (2, 300, 7), (97, 64, 256), (129, 64, 256)])
def test_every_operation_agrees_with_float64(
    make: type, dtype: torch.dtype, has_bias: bool, shape: tuple[int, int, int], tolerances: Any
) -> None:
    tokens, in_features, out_features = shape
    weight = torch.randn(out_features, in_features).to(dtype)
    bias = torch.randn(out_features).to(dtype) if has_bias else None
    x = torch.randn(tokens, in_features + 3).to(dtype)[:, :in_features]
    other = torch.randn(tokens, out_features).to(dtype)
    kept = other.clone()
    projection: Linear = make(weight, bias)
    y = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    tolerance = 2 * tolerances[dtype]  # the product is rounded before what follows, unless that is fused
    assert relative_error(projection(x), y) < tolerance
    assert relative_error(projection.add(x, other), other.double() + y) < tolerance
    assert relative_error(projection.swish(x), F.silu(y)) < tolerance
    assert relative_error(projection.mul(x, other), y * other.double()) < tolerance
    norm_weight = torch.randn(in_features).to(dtype)
    normed = F.rms_norm(x.double(), (in_features,), norm_weight.double(), 1e-5)
    expected = F.linear(normed, weight.double(), None if bias is None else bias.double())
    # The norm is rounded before its weight and after it, as Hugging Face's models have it.
    assert relative_error(projection.normed(x, norm_weight, 1e-5), expected) < 2 * tolerance
    assert torch.equal(other, kept)
    assert (projection.in_features, projection.out_features) == (in_features, out_features)
    assert projection.nbytes == weight.nbytes + (0 if bias is None else bias.nbytes)


@pytest.mark.usefixtures("_packing")
@pytest.mark.parametrize("make", CLASSES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_without_rows_gives_none(make: type, dtype: torch.dtype) -> None:
    projection: Linear = make(torch.randn(40, 24).to(dtype))
    x, other = torch.empty(0, 24, dtype=dtype), torch.empty(0, 40, dtype=dtype)
    for y in (projection(x), projection.add(x, other), projection.swish(x), projection.mul(x, other)):
        assert y.shape == (0, 40)


@pytest.mark.usefixtures("_packing")
@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [
        (torch.bfloat16, (256, 64), PackedLinear),
        (torch.float32, (1024, 512), PackedLinear),
        (torch.bfloat16, (16, 64), PlainLinear),
        (torch.float32, (256, 64), PlainLinear),
        (torch.float16, (1024, 512), PlainLinear),
    ],
)
def test_weights_are_packed_where_that_is_faster(dtype: torch.dtype, shape: tuple[int, int], expected: type) -> None:
    assert type(pack_linear(torch.zeros(shape, dtype=dtype))) is expected


@pytest.mark.parametrize(
    ("amx", "dtype", "size", "expected"),
    [
        (True, torch.bfloat16, 1024, LeftLinear),
        (False, torch.bfloat16, 1024, PackedLinear),
        (True, torch.bfloat16, 1000, PackedLinear),
        (True, torch.float32, 1024, PackedLinear),
    ],
)
@pytest.mark.usefixtures("_packing")
def test_large_weights_stand_on_the_left_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, amx: bool, dtype: torch.dtype, size: int, expected: type
) -> None:
    monkeypatch.setattr(linear, "has_amx", lambda: amx)
    assert type(pack_linear(torch.zeros(size, size, dtype=dtype))) is expected


@pytest.mark.parametrize(("rows", "expected"), [(1, "mv"), (2, "mm"), (128, "mm"), (129, "linear")])
def test_a_weight_stands_on_the_left_of_few_rows(monkeypatch: pytest.MonkeyPatch, rows: int, expected: str) -> None:
    projection, used = LeftLinear(torch.randn(40, 24)), []
    for module, name in ((torch, "mv"), (torch, "mm"), (F, "linear")):
        call = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, call=call, name=name: used.append(name) or call(*a))
    assert projection(torch.randn(rows, 24)).is_contiguous()
    assert used == [expected]


@pytest.fixture
def _native_bf16() -> Iterator[None]:
    """A CPU with products of bf16, whatever this one is: the operators take any number of rows on all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "multiplies_bf16", lambda: True)
        yield


@pytest.mark.usefixtures("_packing", "_native_bf16")
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_step_of_few_rows_on_a_large_weight_agrees_with_float64(rows: int, has_bias: bool, tolerances: Any) -> None:
    weight = torch.randn(1024, 1024).bfloat16()
    bias = torch.randn(1024).bfloat16() if has_bias else None
    x, other = torch.randn(rows, 1024).bfloat16(), torch.randn(rows, 1024).bfloat16()
    kept = other.clone()
    projection = PackedLinear(weight, bias)
    y = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    operations = [
        (projection(x), y),
        (projection.add(x, other), other.double() + y),
        (projection.swish(x), F.silu(y)),
        (projection.mul(x, other), y * other.double()),
    ]
    for found, expected in operations:
        assert found.shape == expected.shape and found.is_contiguous()
        assert rows == 0 or relative_error(found, expected) < 2 * tolerances[torch.bfloat16]
    assert torch.equal(other, kept)


@pytest.mark.usefixtures("_packing")
@pytest.mark.parametrize(
    ("is_native", "dtype", "size", "expected"),
    [
        (True, torch.bfloat16, 1024, [4, 4, 4, 5]),
        (False, torch.bfloat16, 1024, [1, 2, 4, 5]),
        (True, torch.bfloat16, 1000, [1, 2, 4, 5]),
        (True, torch.float32, 1024, [1, 2, 4, 5]),
    ],
)
def test_few_rows_are_filled_up_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, is_native: bool, dtype: torch.dtype, size: int, expected: list[int]
) -> None:
    monkeypatch.setattr(linear, "multiplies_bf16", lambda: is_native)
    projection = PackedLinear(torch.zeros(size, size, dtype=dtype))
    computed: list[int] = []

    def operator(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
        computed.append(x.shape[0])
        return x

    monkeypatch.setattr(linear, "_pointwise", lambda: operator)
    for rows in (1, 2, 4, 5):
        assert projection(torch.zeros(rows, size, dtype=dtype)).shape == (rows, size)
    assert computed == expected


@pytest.mark.usefixtures("_packing")
def test_packing_does_not_keep_the_weight() -> None:
    weight = torch.randn(256, 256, dtype=torch.bfloat16)
    gone = weakref.ref(weight.untyped_storage())
    projection = pack_linear(weight)
    del weight
    gc.collect()
    assert type(projection) is PackedLinear
    assert gone() is None


@pytest.mark.parametrize("failure", [AttributeError, RuntimeError, None])
def test_operators_that_are_missing_or_wrong_are_not_used(
    monkeypatch: pytest.MonkeyPatch, failure: type[Exception] | None
) -> None:
    def operator(*arguments: Any) -> torch.Tensor:
        if failure:
            raise failure("no such operator")
        return torch.zeros(3, 40, dtype=torch.bfloat16)

    monkeypatch.setattr(linear, "_pointwise", lambda: operator)
    can_pack.cache_clear()
    try:
        projection = pack_linear(torch.randn(256, 64, dtype=torch.bfloat16))
    finally:
        can_pack.cache_clear()
    assert type(projection) is PlainLinear


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        (torch.zeros(4), None, r"\[4\]; pass a floating tensor"),
        (torch.zeros(4, 4, dtype=torch.int8), None, "torch.int8"),
        (torch.zeros(4, 5), torch.zeros(5), r"bias is torch.float32 \[5\].*\[4\]"),
        (torch.zeros(4, 5), torch.zeros(4, dtype=torch.bfloat16), "bias is torch.bfloat16"),
    ],
)
def test_what_is_no_projection_is_refused(weight: torch.Tensor, bias: torch.Tensor | None, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        pack_linear(weight, bias)
