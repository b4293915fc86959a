"""RoPE's frequencies and tables against transformers' own functions, bit for bit or nearly."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from hopformer.llama.rope import ROPE_KINDS, RopeConfig, inv_frequencies, rope_tables

TRAINED = 64
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": TRAINED}
KINDS: dict[str, dict[str, object]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.5},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": TRAINED,
    },
    "yarn": YARN,
    "yarn-mscale": YARN | {"mscale": 1.0, "mscale_all_dim": 0.7},
    "yarn-mscale-alone": YARN | {"mscale": 0.7},
    "yarn-attention-factor": YARN | {"attention_factor": 1.3},
    "yarn-betas": YARN | {"beta_fast": 16.0, "beta_slow": 2.0},
    "yarn-untruncated": YARN | {"truncate": False},
    "yarn-one-dimension": YARN | {"beta_fast": 2.0, "beta_slow": 2.0, "truncate": False},
}


def both(name: str, head_dim: int, theta: float) -> tuple[RopeConfig, LlamaConfig]:
    """Our config and transformers' for a kind of RoPE."""
    parameters = KINDS[name] | {"rope_theta": theta}
    theirs = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=TRAINED,
        rope_parameters=dict(parameters),
    )
    fields = {key: value for key, value in KINDS[name].items() if key != "rope_type"}
    fields.setdefault("original_max_position_embeddings", TRAINED)
    return RopeConfig(kind=str(KINDS[name]["rope_type"]), theta=theta, **fields), theirs  # type: ignore[arg-type]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("head_dim", [16, 48, 80, 128])
@pytest.mark.parametrize("theta", [10000.0, 1e6])
def test_frequencies_equal_those_of_transformers(name: str, head_dim: int, theta: float) -> None:
    ours, theirs = both(name, head_dim, theta)
    inv_freq, factor = inv_frequencies(ours, head_dim)
    rotary = LlamaRotaryEmbedding(theirs)
    torch.testing.assert_close(inv_freq, rotary.inv_freq, rtol=1e-6, atol=0)
    assert factor == pytest.approx(rotary.attention_scaling, rel=1e-12)
    assert inv_freq.dtype == torch.float32 and inv_freq.shape == (head_dim // 2,)


@pytest.mark.parametrize("name", KINDS)
def test_tables_equal_those_of_transformers(name: str) -> None:
    ours, theirs = both(name, 48, 10000.0)
    num_positions = TRAINED if name == "dynamic" else 5 * TRAINED + 1
    cos, sin = rope_tables(ours, 48, num_positions)
    their_cos, their_sin = LlamaRotaryEmbedding(theirs)(torch.zeros(1), torch.arange(num_positions)[None])
    assert cos.shape == sin.shape == (num_positions, 24)
    torch.testing.assert_close(cos, their_cos[0, :, :24], rtol=0, atol=2e-5)
    torch.testing.assert_close(sin, their_sin[0, :, :24], rtol=0, atol=2e-5)


@pytest.mark.parametrize("seq_len", [1, TRAINED - 1, TRAINED, TRAINED + 1, 3 * TRAINED, 1000])
def test_dynamic_frequencies_follow_the_length_as_in_transformers(seq_len: int) -> None:
    ours, theirs = both("dynamic", 48, 10000.0)
    inv_freq, factor = inv_frequencies(ours, 48, seq_len)
    expected, expected_factor = ROPE_INIT_FUNCTIONS["dynamic"](theirs, torch.device("cpu"), seq_len=seq_len)
    torch.testing.assert_close(inv_freq, expected, rtol=1e-6, atol=0)
    assert factor == expected_factor
    assert ours.stretches_at(seq_len) == (seq_len > TRAINED)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "dynamic"])
def test_only_the_dynamic_kind_depends_on_the_length(name: str) -> None:
    ours, _ = both(name, 48, 10000.0)
    assert not ours.stretches_at(10**6)
    assert torch.equal(inv_frequencies(ours, 48, 10**6)[0], inv_frequencies(ours, 48)[0])


def test_every_kind_is_compared() -> None:
    assert {str(parameters["rope_type"]) for parameters in KINDS.values()} == set(ROPE_KINDS)
