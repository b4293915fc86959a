"""Models built with fewer bits: what is rounded and how far, and what they compute then."""

from pathlib import Path

import pytest
import torch
import transformers

from hopformer.kernels import Linear, QuantLinear
from hopformer.kernels.linear import PlainLinear
from hopformer.kernels.quant_matmul_cpu import round_to_int4, round_to_int8
from hopformer.llama import assemble
from hopformer.llama.assemble import HEAD_BITS, ModelPart, Placement, load_model
from hopformer.llama.batch import Chunk
from hopformer.llama.config import load_config
from hopformer.llama.engine import Engine, Request
from hopformer.llama.kv_cache import KVCache
from hopformer.llama.layers import MergedGateUp
from hopformer.llama.model import Model
from hopformer.llama.pages import PagePool
from hopformer.llama.runner import LocalRunner, SpanRunner
from hopformer.llama.sequences import SequenceTable

MAX_CONTEXT = 128
VOCAB_SIZE = 61


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers with biases, untied; 64 and 96 are multiples of a group of 32."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_CONTEXT,
        attention_bias=True,
        initializer_range=0.1,
    )
    path = tmp_path_factory.mktemp("biased")
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


def load(folder: Path, weight_bits: int | None, dtype: torch.dtype = torch.bfloat16) -> Model:
    config = load_config(folder)
    placement = Placement(torch.device("cpu"), dtype, MAX_CONTEXT, weight_bits)
    return load_model(folder, config, ModelPart.whole(config), placement)


@torch.inference_mode()
def logits(model: Model, prompt: list[int]) -> torch.Tensor:
    """f32 [V] behind a prompt."""
    assert model.embed is not None and model.head is not None
    sequences = SequenceTable(PagePool(8, 16))
    sequences.open(0)
    sequences.reserve(0, len(prompt))
    runner = SpanRunner(model.span, KVCache(model.kv_shape, 8, 16, model.device), sequences, model.device)
    hidden = runner.forward([Chunk(0, 0, len(prompt))], model.embed(torch.tensor(prompt)))
    return model.head(hidden[-1:])[0]


def widened(weight: torch.Tensor, bias: torch.Tensor | None, bits: int) -> Linear:
    """What `quantize_linear` stands for: a plain projection with the codes' values."""
    if bits == 8:
        codes, row_scales = round_to_int8(weight)
        return PlainLinear((codes * row_scales[:, None]).to(weight.dtype), bias)
    codes, scales, middles = round_to_int4(weight)
    groups = codes.unflatten(1, (-1, 32)) * scales.float()[:, :, None] + middles.float()[:, :, None]
    return PlainLinear(groups.flatten(1).to(weight.dtype), bias)


@pytest.mark.parametrize("bits", [8, 4])
def test_every_projection_is_rounded_and_the_head_never_below_8_bits(
    bits: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[tuple[int, ...], bool, int]] = []
    quantize = assemble.quantize_linear

    def recorded(weight: torch.Tensor, bias: torch.Tensor | None, bits: int) -> object:
        asked.append((tuple(weight.shape), bias is not None, bits))
        return quantize(weight, bias, bits)

    monkeypatch.setattr(assemble, "quantize_linear", recorded)
    model = load(folder, bits)
    layer = [((128, 64), True, bits), ((64, 64), True, bits), ((192, 64), False, bits), ((64, 96), False, bits)]
    assert asked == [((VOCAB_SIZE, 64), False, HEAD_BITS), *layer, *layer]
    for one in model.span.layers:
        assert isinstance(one.weights.gate_up, MergedGateUp)
        projections = [one.weights.qkv, one.weights.o, one.weights.gate_up.gate_up, one.weights.down]
        assert all(isinstance(projection, QuantLinear) for projection in projections)
        assert one.weights.input_norm.dtype == torch.bfloat16
    assert model.embed is not None and model.embed.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("length", [1, 17, 97])
def test_logits_are_those_of_a_plain_model_with_the_rounded_weights(
    bits: int, dtype: torch.dtype, length: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = [(7 * index + 3) % VOCAB_SIZE for index in range(length)]
    found = logits(load(folder, bits, dtype), prompt)
    monkeypatch.setattr(assemble, "quantize_linear", widened)
    expected = logits(load(folder, bits, dtype), prompt)
    assert float((found - expected).norm() / expected.norm()) < 0.05  # the head's 8 bits round what comes in, too


def test_the_same_prompt_gives_the_same_answer_every_time(folder: Path) -> None:
    answers = set()
    for _ in range(2):
        runner = LocalRunner(load(folder, 4), num_pages=8, page_size=16, max_context=MAX_CONTEXT)
        outputs = Engine(runner, lambda ids: "").stream(Request("one", [5, 6, 7], 12))
        answers.add(tuple(token_id for output in outputs for token_id in output.token_ids))
    assert len(answers) == 1
