"""Tiny models with random weights, in Hugging Face layout, that llama.cpp takes too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hopformer.bench import ceilings, random_model
from hopformer.bench.contender import Workload
from hopformer.bench.random_model import SHAPES, write_random_model
from hopformer.llama.config import load_config

TINY = {
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 131,
    "max_position_embeddings": 256,
    "torch_dtype": "float32",
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("tinyllama", {}),
    "biased": ("tinyllama", {"attention_bias": True, "mlp_bias": True}),
    "wide-heads": ("tinyllama", {"head_dim": 32}),
    "linear-rope": ("tinyllama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama3-rope": ("llama-3.2-1b", {"rope_scaling": LLAMA3_ROPE}),
    "mistral": ("mistral-7b-v0.3", {}),
    "qwen2": ("qwen2.5-0.5b", {}),
    "qwen3": ("qwen3-0.6b", {}),
}

MakeFolder = Callable[..., Path]


@pytest.fixture(autouse=True)
def _low_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ceilings are measured on little, since nothing here looks at a time."""
    monkeypatch.setattr(ceilings, "READ_BYTES", 1 << 16)
    monkeypatch.setattr(ceilings, "MATMUL_SIZE", 128)


@pytest.fixture
def tiny_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeFolder:
    """``tiny_folder(kind, **changes)``: a folder with a model of that kind, ``changes`` made to its config.json."""
    monkeypatch.setattr(random_model, "WEIGHT_STD", 0.2)  # far from uniform, so that a wrong layer changes the ids

    def make(kind: str = "llama", **changes: Any) -> Path:
        shape, more = KINDS[kind]
        folder = tmp_path / f"model-{kind}"
        write_random_model(folder, {**SHAPES[shape], **TINY, **more, **changes})
        return folder

    return make


@pytest.fixture
def workload(tiny_folder: MakeFolder, tmp_path: Path) -> Callable[..., Workload]:
    """``workload(kind)``: that model in float32, for 256 tokens."""

    def make(kind: str = "llama", **changes: Any) -> Workload:
        folder = tiny_folder(kind, **changes)
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        return Workload(folder, load_config(folder), torch.float32, 256, 2, scratch)

    return make
