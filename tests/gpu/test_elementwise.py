"""Norm, SwiGLU, RoPE with the write of K and V on a GPU: against float64, and the same bits twenty times."""

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from hopformer.kernels import add_rms_norm, rope_and_write_kv, swiglu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("uninitialised_memory_is_nan"),
    pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation"),
    pytest.mark.filterwarnings("ignore:Deterministic behavior was enabled"),  # of cuBLAS
]

REPEATS = 20  # a race shows in one of them, or as another result
EPS = 1e-5
# Largest relative Frobenius error against float64 on the rounded inputs, as in the unit tests
TOLERANCES = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 3e-3}
DTYPES = list(TOLERANCES)


def same_every_time(call: Callable[[], tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """What ``call`` returns, and returns again, to the bit: NaN where it was NaN."""
    first = call()
    for _ in range(REPEATS - 1):
        for again, before in zip(call(), first, strict=True):
            assert torch.equal(again.view(torch.uint8), before.view(torch.uint8))
    return first


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative Frobenius error of a tensor against a float64 one."""
    assert found.shape == expected.shape
    return float((found.double() - expected).norm() / expected.norm())


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 64), (17, 97), (3, 1), (2, 2048), (5, 3, 128), (4096, 4096), (3, 16384)])
def test_norm_agrees_with_float64(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, residual = ((torch.randn(shape, device=device) * 3).to(dtype) for _ in range(2))
    weight = torch.randn(shape[-1], device=device).to(dtype)
    (plain,) = same_every_time(lambda: (add_rms_norm(x, weight, EPS),))
    y, total = same_every_time(lambda: add_rms_norm(x, weight, EPS, residual))
    assert torch.equal(total, x + residual)
    for found, normed in ((plain, x), (y, total)):
        exact = normed.double()
        expected = weight.double() * exact * (exact.square().mean(-1, keepdim=True) + EPS).rsqrt()
        assert relative_error(found, expected) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "size"), [(1, 17), (3, 1500), (97, 64), (1024, 14336)])
def test_swiglu_agrees_with_float64(device: torch.device, dtype: torch.dtype, rows: int, size: int) -> None:
    gate_up = (torch.randn(rows, 2 * size + 3, device=device) * 3).to(dtype)[:, : 2 * size]
    gate, up = gate_up[:, :size].double(), gate_up[:, size:].double()
    (found,) = same_every_time(lambda: (swiglu(gate_up),))
    assert relative_error(found, gate / (1 + torch.exp(-gate)) * up) < TOLERANCES[dtype]


def tables(num_rows: int, head_dim: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, [num_rows, head_dim / 2] f32."""
    angles = torch.arange(num_rows)[:, None] * 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    return angles.cos().to(device), angles.sin().to(device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "num_kv_heads", "head_dim"),
    [(1, 4, 2, 64), (17, 3, 1, 48), (5, 7, 7, 80), (2, 16, 2, 128), (1000, 32, 8, 128)],
)
def test_rotation_and_slots_agree_with_float64(
    device: torch.device, dtype: torch.dtype, num_tokens: int, num_heads: int, num_kv_heads: int, head_dim: int
) -> None:
    qkv = torch.randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim, device=device).to(dtype)
    cos, sin = tables(131072, head_dim, device)
    positions = torch.randint(131072, (num_tokens,), device=device)
    positions[0] = 131071
    slots = torch.randperm(70 * 16, device=device)[:num_tokens]
    slots[num_tokens // 2 :: 5] = -1

    def call() -> tuple[torch.Tensor, ...]:
        shape = (70, num_kv_heads, 16, head_dim)
        k_pages, v_pages = (torch.full(shape, torch.nan, dtype=dtype, device=device) for _ in range(2))
        return rope_and_write_kv(qkv, cos, sin, positions, slots, k_pages, v_pages), k_pages, v_pages

    q, k_pages, v_pages = same_every_time(call)
    heads = qkv.unflatten(1, (-1, head_dim))
    x1, x2 = heads[:, : num_heads + num_kv_heads].double().chunk(2, -1)
    c, s = cos[positions].double()[:, None], sin[positions].double()[:, None]
    expected = torch.cat([x1 * c - x2 * s, x2 * c + x1 * s], -1)
    assert relative_error(q, expected[:, :num_heads]) < TOLERANCES[dtype]
    kept = slots >= 0
    page, place = slots[kept] // 16, slots[kept] % 16
    if int(kept.sum()):
        assert relative_error(k_pages[page, :, place], expected[kept, num_heads:]) < TOLERANCES[dtype]
        assert torch.equal(v_pages[page, :, place], heads[kept, num_heads + num_kv_heads :])
    written = int(kept.sum()) * num_kv_heads * head_dim
    assert int(k_pages.isfinite().sum()) == int(v_pages.isfinite().sum()) == written


def test_rotation_is_that_of_transformers_with_llama3_scaling(device: torch.device) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=131072,
        rope_parameters=scaling | {"rope_theta": 500000.0, "original_max_position_embeddings": 8192},
    )
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.tensor([[0, 1, 8191, 131071]]))  # [1, T, D]
    picked = [one[0, :, :32].contiguous().to(device) for one in (cos, sin)]
    qkv = torch.randn(4, 8 * 64)
    heads = qkv.view(1, 4, 8, 64).transpose(1, 2)
    expected_q, expected_k = apply_rotary_pos_emb(heads[:, :4], heads[:, 4:6], cos, sin)

    def call() -> tuple[torch.Tensor, ...]:
        k_pages, v_pages = (torch.zeros(1, 2, 16, 64, device=device) for _ in range(2))
        slots = torch.arange(4, device=device)
        return rope_and_write_kv(qkv.to(device), *picked, None, slots, k_pages, v_pages), k_pages

    q, k_pages = same_every_time(call)
    torch.testing.assert_close(q.cpu(), expected_q[0].transpose(0, 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(k_pages[0, :, :4].cpu(), expected_k[0], rtol=1e-5, atol=1e-5)


def test_fp8_rows_are_the_nearest_fp8_and_never_nan(device: torch.device) -> None:
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < (8, 9):
        pytest.skip("this GPU has no e4m3")
    qkv = torch.randn(5, 9 * 80, device=device).bfloat16()  # 5 heads, 2 KV heads of 80
    qkv[1, 7 * 80 :], qkv[2, 7 * 80 :] = 1e6, -1e6
    cos, sin = tables(5, 80, device)

    def call() -> tuple[torch.Tensor, ...]:
        k_pages, v_pages = (torch.zeros(9, 2, 16, 80, device=device).to(torch.float8_e4m3fn) for _ in range(2))
        slots = torch.arange(5, device=device)
        return rope_and_write_kv(qkv, cos, sin, None, slots, k_pages, v_pages), k_pages, v_pages

    _, _, v_pages = same_every_time(call)
    values = v_pages[0].float()[:, :5].transpose(0, 1)  # [T, K, D]
    rows = qkv.unflatten(1, (-1, 80))[:, 7:].float()
    assert torch.equal(values, rows.clamp(-448, 448).to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_rows_are_within_half_a_code_of_float64(device: torch.device, dtype: torch.dtype) -> None:
    qkv = torch.randn(5, 9 * 80, device=device).to(dtype)
    qkv[0, 5 * 80 : 6 * 80] = 0  # a key of zeros
    qkv[-1, 8 * 80] = 1e4  # a value with an outlier
    cos, sin = tables(64, 80, device)
    positions, slots = torch.arange(5, device=device) * 12, torch.tensor([3, 15, 100, 20, 143], device=device)

    def call() -> tuple[torch.Tensor, ...]:
        pages = [torch.full((9, 2, 16, 80), 99, dtype=torch.int8, device=device) for _ in range(2)]
        scales = [torch.full((9, 2, 16), torch.nan, device=device) for _ in range(2)]
        return rope_and_write_kv(qkv, cos, sin, positions, slots, *pages, *scales), *pages, *scales

    _, k_pages, v_pages, k_scales, v_scales = same_every_time(call)
    heads = qkv.unflatten(1, (-1, 80)).double()
    x1, x2 = heads[:, 5:7].chunk(2, -1)
    c, s = cos[positions].double()[:, None], sin[positions].double()[:, None]
    keys = torch.cat([x1 * c - x2 * s, x2 * c + x1 * s], -1)
    for pages, scales, rows in ((k_pages, k_scales, keys), (v_pages, v_scales, heads[:, 7:])):
        scale = scales[slots // 16, :, slots % 16].double()[..., None]
        difference = pages[slots // 16, :, slots % 16].double() * scale - rows
        assert (difference.abs() <= scale * 0.5001 + 1e-6).all()
