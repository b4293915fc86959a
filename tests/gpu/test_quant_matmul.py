"""Products with weights of 8 and 4 bits on a GPU: against float64, every code, and the same bits twenty times."""

from collections.abc import Callable

import pytest
import torch

from hopformer.kernels import QuantWeight, quant_matmul, quantize_weight
from hopformer.kernels.quant_matmul import pack_codes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("uninitialised_memory_is_nan"),
    pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation"),
    pytest.mark.filterwarnings("ignore:Deterministic behavior was enabled"),  # of cuBLAS
]

REPEATS = 20  # a race shows in one of them, or as another result
# Largest relative Frobenius error against float64 on the rounded inputs, as in the unit tests
TOLERANCES = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 3e-3}
DTYPES = list(TOLERANCES)


def same_every_time(call: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What ``call`` returns, and returns again."""
    first = call()
    for _ in range(REPEATS - 1):
        assert torch.equal(call(), first)
    return first


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "group_size"), [(8, 128), (4, 128), (4, 32), (4, 64), (4, 256)])
@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 33, 64, 97, 256, 257])
@pytest.mark.parametrize(("features", "size"), [(70, 2304), (5, 256), (64, 1280), (1024, 4096), (129, 14336)])
def test_product_agrees_with_float64(
    device: torch.device, dtype: torch.dtype, bits: int, group_size: int, rows: int, features: int, size: int
) -> None:
    weight = quantize_weight(torch.randn(features, size, device=device).to(dtype), bits, group_size)
    x = torch.randn(rows, size + 8, device=device).to(dtype)[:, :size]
    expected = x.double() @ weight.dequantize(torch.float64).T
    found = same_every_time(lambda: quant_matmul(x, weight))
    assert found.dtype == dtype
    assert float((found.double() - expected).norm() / expected.norm()) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_every_4_bit_code_in_every_place_comes_out(device: torch.device, dtype: torch.dtype, group_size: int) -> None:
    size = 256
    codes = (torch.arange(size, device=device) * 3 % 64 // 4 + torch.arange(16, device=device)[:, None]) % 16
    scales = 2.0 ** torch.arange(size // group_size, device=device).to(dtype).expand(16, -1).contiguous()
    lows = -4 * scales
    expected = codes * scales.repeat_interleave(group_size, 1) + lows.repeat_interleave(group_size, 1)
    weight = QuantWeight(pack_codes(codes.to(torch.uint8)), scales, lows, group_size)
    x = torch.eye(size, dtype=dtype, device=device)
    for rows in (1, 16, 32, 64):
        found = same_every_time(lambda rows=rows: quant_matmul(x[-rows:], weight))  # type: ignore[misc]
        assert torch.equal(found, expected.T[-rows:])
    assert torch.equal(quant_matmul(x, weight), expected.T)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_8_bit_code_comes_out(device: torch.device, dtype: torch.dtype) -> None:
    size = 160
    codes = (torch.arange(size, device=device) * 7 + torch.arange(255, device=device)[:, None]) % 255 - 127
    scales = torch.full((255, 1), 0.25, dtype=dtype, device=device)
    weight = QuantWeight(pack_codes(codes.to(torch.int8)), scales, None, size)
    found = same_every_time(lambda: quant_matmul(torch.eye(size, dtype=dtype, device=device), weight))
    assert torch.equal(found, 0.25 * codes.T.to(dtype))
