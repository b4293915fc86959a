"""Random folders of real shapes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hopformer.bench import random_model
from hopformer.bench.random_model import SHAPES, find_shape, write_random_model
from hopformer.bench.work import ModelWork
from hopformer.errors import UsageError
from hopformer.llama.config import load_config

# Parameters as published, the embedding counted once where it is tied
PUBLISHED = {
    "tinyllama": 1.100e9,
    "llama-3.2-1b": 1.236e9,
    "llama-3.2-3b": 3.213e9,
    "llama-3.1-8b": 8.030e9,
    "mistral-7b-v0.3": 7.248e9,
    "qwen2.5-0.5b": 0.494e9,
    "qwen3-0.6b": 0.596e9,
    "qwen3-8b": 8.191e9,
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_as_many_parameters_as_the_published_model(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(random_model.json.dumps(find_shape(name)))
    config = load_config(tmp_path)
    parameters = ModelWork(config, torch.bfloat16).weight_bytes / 2 - config.hidden_size
    if not config.tie_word_embeddings:
        parameters += config.vocab_size * config.hidden_size
    assert parameters == pytest.approx(PUBLISHED[name], rel=1e-3)


def test_the_same_shape_is_the_same_model(tmp_path: Path) -> None:
    shape = {**SHAPES["tinyllama"], "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96}
    shape |= {"num_attention_heads": 4, "head_dim": 16, "vocab_size": 131}
    parts: list[tuple[int, int]] = []
    write_random_model(tmp_path / "a", shape, lambda done, total: parts.append((done, total)))
    write_random_model(tmp_path / "b", shape)
    assert parts == [(1, 3), (2, 3), (3, 3)]
    files = sorted(path.name for path in (tmp_path / "a").glob("*.safetensors"))
    assert len(files) == 3
    for file in files:
        first, second = load_file(tmp_path / "a" / file), load_file(tmp_path / "b" / file)
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_shape_that_nobody_published_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="tinyllama"):
        find_shape("gpt-5")


def test_a_short_name_finds_the_same_shape() -> None:
    assert find_shape("mistral-7b") is SHAPES["mistral-7b-v0.3"]
