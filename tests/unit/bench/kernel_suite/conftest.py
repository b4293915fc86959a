"""Tiny shapes and sizes, so that every case runs for real in milliseconds; nothing here looks at a time."""

import pytest
import torch

from hopformer.bench import kernel_baselines, kernel_cases, kernel_timing, random_model
from hopformer.bench.kernel_case import CaseSizes, LayerShape, Setting
from hopformer.bench.random_model import SHAPES

TINY_SIZES = CaseSizes(((3, 70), (1, 64)), (5, 300), (17, 97), 33, (1, 4), 3, 1, (16, 65))
TINY_SHAPE = {
    **SHAPES["tinyllama"],
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 131,
}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default model and the default sizes are tiny, caches are small, and nothing is compiled."""
    monkeypatch.setattr(random_model, "SHAPES", {"tinyllama": TINY_SHAPE, "other": TINY_SHAPE})
    monkeypatch.setattr(kernel_cases, "CPU_SIZES", TINY_SIZES)
    monkeypatch.setattr(kernel_timing, "last_level_cache_bytes", lambda: 1 << 12)
    monkeypatch.setattr(kernel_baselines, "why_not_compiled", lambda: "no compiler in these tests")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def setting(request: pytest.FixtureRequest) -> Setting:
    """The tiny model on the CPU, in each dtype."""
    return Setting("tinyllama", LayerShape.of("tinyllama"), request.param, torch.device("cpu"), TINY_SIZES)
