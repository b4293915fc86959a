"""Rows to payloads and back, and payloads cut and joined in between."""

import pytest
import torch
from torch import Tensor

from hopformer.net.activations import TORCH_DTYPES, pack, unpack, wire_dtype
from hopformer.net.messages import Codec, Dtype
from hopformer.net.row_layout import RowLayout
from hopformer.net.wire import INT8_GROUP

WIDTHS = [1, 17, 97, 128, 129, 256, 300]
EVERY_LAYOUT = [RowLayout(dtype, codec, width) for dtype in Dtype for codec in Codec for width in WIDTHS]


def random_rows(layout: RowLayout, num_rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(layout.width)
    return (torch.randn(num_rows, layout.width, generator=generator) * 3).to(TORCH_DTYPES[layout.dtype])


def bits(rows: Tensor) -> list[int]:
    return rows.contiguous().view(torch.uint8).flatten().tolist()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", Dtype)
def test_exact_rows_come_back_bit_for_bit(dtype: Dtype, width: int) -> None:
    layout = RowLayout(dtype, Codec.EXACT, width)
    rows = random_rows(layout, 5)
    rows[0, 0], rows[1, 0], rows[2, 0] = torch.nan, -0.0, torch.inf
    payload = pack(rows, layout)
    assert len(payload) == layout.num_bytes(5) == 5 * width * dtype.itemsize
    assert bits(unpack(payload, layout)) == bits(rows)


def test_exact_elements_lie_row_by_row_and_little_endian() -> None:
    rows = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
    assert pack(rows, RowLayout(Dtype.FLOAT32, Codec.EXACT, 2)).hex(" ", 4) == "0000803f 000000c0 0000003f 00000000"


def test_int8_scales_of_all_rows_come_before_the_elements() -> None:
    rows = torch.tensor([[127.0, -127.0, 3.0], [0.0, 0.0, 0.0]])
    payload = pack(rows, RowLayout(Dtype.FLOAT32, Codec.INT8, 3))
    assert payload.hex(" ") == "00 00 80 3f 00 00 00 00 7f 81 03 00 00 00"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", Dtype)
def test_int8_is_off_by_half_a_scale_at_most(dtype: Dtype, width: int) -> None:
    layout = RowLayout(dtype, Codec.INT8, width)
    rows = random_rows(layout, 7)
    payload = pack(rows, layout)
    assert len(payload) == layout.num_bytes(7)
    back = unpack(payload, layout)
    assert back.dtype == rows.dtype
    for start in range(0, width, INT8_GROUP):
        group, found = rows[:, start : start + INT8_GROUP].double(), back[:, start : start + INT8_GROUP].double()
        greatest = group.abs().amax(1, keepdim=True)
        rounding = greatest * torch.finfo(rows.dtype).eps  # of the result to the model's dtype
        assert ((group - found).abs() <= greatest / 254 + rounding).all()


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_a_group_that_is_not_finite_comes_back_as_nan_and_its_neighbours_whole(poison: float) -> None:
    layout = RowLayout(Dtype.FLOAT32, Codec.INT8, 300)
    rows = torch.ones(2, 300)
    rows[1, 130] = poison
    back = unpack(pack(rows, layout), layout)
    assert back[1, INT8_GROUP : 2 * INT8_GROUP].isnan().all()
    assert torch.equal(back[0], rows[0]) and torch.equal(back[1, :INT8_GROUP], rows[1, :INT8_GROUP])


@pytest.mark.parametrize("layout", EVERY_LAYOUT, ids=str)
def test_rows_taken_from_a_payload_are_those_that_were_packed(layout: RowLayout) -> None:
    rows = random_rows(layout, 6)
    payload = pack(rows, layout)
    for start, stop in [(0, 6), (0, 1), (2, 5), (5, 6)]:
        assert bytes(layout.take(payload, start, stop)) == pack(rows[start:stop], layout)
    assert layout.take(payload, 3, 3) == b""


@pytest.mark.parametrize("layout", EVERY_LAYOUT, ids=str)
def test_joined_payloads_are_the_payload_of_all_rows(layout: RowLayout) -> None:
    rows = random_rows(layout, 6)
    payloads = [pack(part, layout) for part in rows.split([1, 3, 2])]
    assert bytes(layout.join(payloads)) == pack(rows, layout)
    assert bytes(layout.join(payloads[:1])) == payloads[0]
    assert bits(unpack(layout.join([memoryview(one) for one in payloads]), layout)) == bits(
        unpack(pack(rows, layout), layout)
    )


def test_rows_that_are_a_view_of_a_larger_tensor_are_packed_alone() -> None:
    layout = RowLayout(Dtype.BFLOAT16, Codec.EXACT, 4)
    whole = torch.arange(40, dtype=torch.bfloat16).view(5, 8)
    assert bits(unpack(pack(whole[1:3, 2:6], layout), layout)) == bits(whole[1:3, 2:6])


def test_every_dtype_of_the_wire_is_one_of_torch() -> None:
    assert [wire_dtype(TORCH_DTYPES[dtype]) for dtype in Dtype] == list(Dtype)
