"""RoPE against transformers and float64, and the slots that K and V are written to."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from hopformer.errors import KernelError
from hopformer.kernels import rope_and_write_kv

NAN = float("nan")


def tables(num_rows: int, head_dim: int, theta: float = 10000.0) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, [num_rows, head_dim / 2] f32."""
    angles = torch.arange(num_rows)[:, None] * theta ** (-torch.arange(0, head_dim, 2) / head_dim)
    return angles.cos(), angles.sin()


def pools(num_kv_heads: int, head_dim: int, dtype: torch.dtype, flat: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Two pools of 9 pages of 16 slots, NaN, in either layout."""
    if flat:
        shape = (num_kv_heads, 9, 16, head_dim)
        return tuple(torch.full(shape, NAN, dtype=dtype).transpose(0, 1) for _ in range(2))  # type: ignore[return-value]
    return tuple(torch.full((9, num_kv_heads, 16, head_dim), NAN, dtype=dtype) for _ in range(2))  # type: ignore[return-value]


def rotated(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The formula in float64: heads [T, n, D], cos and sin [T, D/2]."""
    x1, x2 = heads.double().chunk(2, -1)
    cos, sin = cos.double()[:, None], sin.double()[:, None]
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "num_kv_heads", "head_dim"),
    [(1, 4, 2, 64), (17, 3, 1, 48), (5, 7, 7, 80), (2, 16, 2, 128)],
)
def test_rotation_and_slots_agree_with_float64(
    path: str,
    flat: bool,
    dtype: torch.dtype,
    num_tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    tolerances: Any,
) -> None:
    width = (num_heads + 2 * num_kv_heads) * head_dim
    qkv = torch.randn(num_tokens, width + 5).to(dtype)[:, :width]
    kept = qkv.clone()
    cos, sin = tables(131072, head_dim)
    positions = torch.randint(131072, (num_tokens,))
    positions[0] = 131071
    slots = torch.randperm(9 * 16)[:num_tokens]
    k_pages, v_pages = pools(num_kv_heads, head_dim, dtype, flat)
    q = rope_and_write_kv(qkv, cos, sin, positions, slots, k_pages, v_pages)

    heads = qkv.unflatten(1, (-1, head_dim))
    expected = rotated(heads[:, : num_heads + num_kv_heads], cos[positions], sin[positions])
    k, v = k_pages[slots // 16, :, slots % 16], v_pages[slots // 16, :, slots % 16]  # [T, K, D]
    for found, reference in ((q, expected[:, :num_heads]), (k, expected[:, num_heads:])):
        assert found.shape == reference.shape and found.dtype == dtype
        assert float((found.double() - reference).norm() / reference.norm()) < tolerances[dtype]
    assert torch.equal(v, heads[:, num_heads + num_kv_heads :])
    assert torch.equal(qkv, kept)
    assert int(k_pages.isfinite().sum()) == int(v_pages.isfinite().sum()) == num_tokens * num_kv_heads * head_dim


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("slots", [[37], [3, -1, 100, 20, 143]])
def test_int8_rows_are_within_half_a_code_of_float64(
    path: str, flat: bool, dtype: torch.dtype, slots: list[int], tolerances: Any
) -> None:
    num_tokens, at = len(slots), torch.tensor(slots)
    qkv = torch.randn(num_tokens, 9 * 80).to(dtype)  # 5 heads, 2 KV heads of 80
    qkv[0, 5 * 80 : 6 * 80] = 0  # a key of zeros
    qkv[-1, 8 * 80] = 1e4  # a value with an outlier
    cos, sin = tables(64, 80)
    positions = torch.randint(64, (num_tokens,))
    k_pages, v_pages = (pages.new_full(pages.shape, 99, dtype=torch.int8) for pages in pools(2, 80, dtype, True))
    if flat:
        k_pages, v_pages = (p.transpose(0, 1).contiguous().transpose(0, 1) for p in (k_pages, v_pages))
    k_scales, v_scales = (torch.full((2, 9, 16), NAN).transpose(0, 1) for _ in range(2))
    q = rope_and_write_kv(qkv, cos, sin, positions, at, k_pages, v_pages, k_scales, v_scales)
    heads = qkv.unflatten(1, (-1, 80))
    expected = rotated(heads[:, :7], cos[positions], sin[positions])
    assert float((q.double() - expected[:, :5]).norm() / expected[:, :5].norm()) < tolerances[dtype]
    kept = at >= 0
    place = at[kept] // 16, at[kept] % 16
    for pages, scales, rows in ((k_pages, k_scales, expected[:, 5:]), (v_pages, v_scales, heads[:, 7:].double())):
        scale, codes = scales[place[0], :, place[1]].double(), pages[place[0], :, place[1]]
        torch.testing.assert_close(scale, rows[kept].abs().amax(2) / 127, rtol=1e-5, atol=1e-30)
        difference = codes.double() * scale[..., None] - rows[kept]
        assert (difference.abs() <= scale[..., None] * 0.5001 + 1e-6).all()
        assert codes.abs().max() == 127 and int((pages != 99).sum()) <= codes.numel()
        assert int(scales.isfinite().sum()) == int(kept.sum()) * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_rows_are_the_nearest_fp8_and_never_nan(path: str, dtype: torch.dtype) -> None:
    if path == "triton":
        pytest.skip("Triton's interpreter encodes fp8 wrongly; tests/gpu has this case")
    qkv = torch.randn(5, 9 * 80).to(dtype)
    qkv[1, 7 * 80 :] = 1e6
    qkv[2, 7 * 80 :] = -1e6
    cos, sin = tables(5, 80)
    k_pages, v_pages = (torch.zeros(9, 2, 16, 80, dtype=torch.float8_e4m3fn) for _ in range(2))
    rope_and_write_kv(qkv, cos, sin, None, torch.arange(5), k_pages, v_pages)
    values = v_pages[0].float()[:, :5].transpose(0, 1)  # [T, K, D]
    rows = qkv.unflatten(1, (-1, 80))[:, 7:].float()
    assert torch.equal(values, rows.clamp(-448, 448).to(torch.float8_e4m3fn).float())
    assert values[1].eq(448).all() and values[2].eq(-448).all()


def test_rotation_is_that_of_transformers_with_llama3_scaling(path: str) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=131072,
        rope_parameters=scaling | {"rope_theta": 500000.0, "original_max_position_embeddings": 8192},
    )
    positions = torch.tensor([0, 1, 8191, 131071])
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])  # [1, T, D]
    qkv = torch.randn(4, 8 * 64)
    k_pages, v_pages = pools(2, 64, torch.float32, flat=True)
    picked = (cos[0, :, :32].contiguous(), sin[0, :, :32].contiguous())
    q = rope_and_write_kv(qkv, *picked, None, torch.arange(4), k_pages, v_pages)
    heads = qkv.view(1, 4, 8, 64).transpose(1, 2)
    expected_q, expected_k = apply_rotary_pos_emb(heads[:, :4], heads[:, 4:6], cos, sin)
    torch.testing.assert_close(q, expected_q[0].transpose(0, 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(k_pages[0, :, :4], expected_k[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("slots", [[-1], [-1, 5, -1, 20], [-1, -1]])
def test_a_slot_of_minus_one_writes_nothing(path: str, slots: list[int]) -> None:
    cos, sin = tables(8, 32)
    k_pages, v_pages = pools(2, 32, torch.float32, flat=True)
    qkv = torch.randn(len(slots), 8 * 32)
    q = rope_and_write_kv(qkv, cos, sin, torch.arange(len(slots)), torch.tensor(slots), k_pages, v_pages)
    assert q.isfinite().all()
    for pages in (k_pages, v_pages):
        written = pages.isfinite().all(-1).nonzero()[:, [0, 2]].unique(dim=0)  # page, offset
        assert (written[:, 0] * 16 + written[:, 1]).tolist() == [slot for slot in slots if slot >= 0]


def test_no_tokens_write_nothing(path: str) -> None:
    cos, sin = tables(8, 32)
    k_pages, v_pages = pools(2, 32, torch.float32, flat=True)
    none = torch.empty(0, dtype=torch.int64)
    q = rope_and_write_kv(torch.empty(0, 8 * 32), cos, sin, none, none, k_pages, v_pages)
    assert q.shape == (0, 4, 32)
    assert k_pages.isnan().all()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"qkv": torch.zeros(3, 130)}, r"qkv \[3, 130\]"),
        ({"qkv": torch.zeros(3, 4 * 32)}, "H >= 1"),
        ({"qkv": torch.zeros(3, 8 * 32, dtype=torch.bfloat16)}, "torch.bfloat16.*use one dtype"),
        ({"slot_mapping": torch.zeros(2, dtype=torch.int64)}, r"slot_mapping torch.int64 \[2\]"),
        ({"slot_mapping": torch.zeros(3, dtype=torch.int32)}, "slot_mapping torch.int32"),
        ({"positions": None}, "8 positions"),
        ({"cos": torch.zeros(8, 32)}, r"cos torch.float32 \[8, 32\].*\[R, 16\]"),
        ({"sin": torch.zeros(9, 16)}, "tables of the same shape"),
        ({"v_pages": torch.zeros(9, 2, 16, 30)}, r"pages \[9, 2, 16, 32\] and \[9, 2, 16, 30\]"),
    ],
)
def test_what_does_not_fit_is_refused(path: str, broken: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "qkv": torch.zeros(3, 8 * 32),
        "cos": torch.zeros(8, 16),
        "sin": torch.zeros(8, 16),
        "positions": torch.zeros(3, dtype=torch.int64),
        "slot_mapping": torch.arange(3),
        "k_pages": torch.zeros(9, 2, 16, 32),
        "v_pages": torch.zeros(9, 2, 16, 32),
    }
    with pytest.raises(KernelError, match=message):
        rope_and_write_kv(**(arguments | broken))
