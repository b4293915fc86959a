"""Loading the layers that a node serves, and computing some of them alone."""

from pathlib import Path

import pytest
import torch
import transformers

from hopformer.errors import UsageError
from hopformer.llama.batch import Chunk
from hopformer.llama.config import load_config
from hopformer.llama.kv_cache import DEFAULT_PAGE_SIZE
from hopformer.llama.load import LoadOptions
from hopformer.llama.load_span import MAX_CONTEXTS_SERVED, find_layers, load_span

NUM_LAYERS = 3
MAX_POSITIONS = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    config = transformers.LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
    )
    folder = tmp_path_factory.mktemp("model")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_span_has_its_layers_and_pages_for_many_contexts(folder: Path) -> None:
    loaded = load_span(folder, (1, 3), LoadOptions(device="cpu"))
    assert (loaded.runner.span.start, loaded.runner.span.end) == (1, 3)
    assert (loaded.max_context, loaded.dtype) == (MAX_POSITIONS, torch.float32)
    assert loaded.runner.sequences.pool.num_pages == MAX_CONTEXTS_SERVED * MAX_POSITIONS // DEFAULT_PAGE_SIZE
    assert loaded.runner.cache.shape.num_layers == 2


def test_options_are_obeyed(folder: Path) -> None:
    options = LoadOptions(device="cpu", dtype="bfloat16", max_context=64, kv_dtype="int8", quantize="int8")
    loaded = load_span(folder, (0, 1), options)
    assert (loaded.max_context, loaded.dtype, loaded.runner.cache.shape.dtype) == (64, torch.bfloat16, torch.int8)


def test_the_head_comes_with_the_last_layers_and_with_no_others(folder: Path) -> None:
    loaded = load_span(folder, (1, 3), LoadOptions("cpu", head=True))
    assert loaded.head is not None and loaded.head.projection.out_features == 61
    assert load_span(folder, (1, 3), LoadOptions("cpu")).head is None
    with pytest.raises(UsageError, match="--head is for a span that ends with the last layer, 3, and not with 2"):
        load_span(folder, (0, 2), LoadOptions("cpu", head=True))


@pytest.mark.parametrize("layers", [(0, 4), (3, 3), (2, 1)])
def test_layers_that_the_model_lacks_are_refused(folder: Path, layers: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="this model has the layers 0:3"):
        find_layers(layers, load_config(folder))


def test_without_a_wish_all_layers_are_served(folder: Path) -> None:
    assert find_layers(None, load_config(folder)) == (0, 3)


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_parts_one_behind_the_other_compute_what_the_whole_span_does(folder: Path, kv_dtype: str) -> None:
    options = LoadOptions(device="cpu", kv_dtype=kv_dtype)
    whole, split = (load_span(folder, (0, 3), options).runner for _ in range(2))
    parts = [split.part(0, 1), split.part(1, 3)]
    hidden = torch.randn(70, 32, generator=torch.Generator().manual_seed(1))
    for runner in (whole, split):
        runner.sequences.open(0)
        runner.sequences.reserve(0, 70)
    for start, end in ((0, 69), (69, 70)):
        chunk = Chunk(0, start, end - start)
        with torch.inference_mode():
            expected = whole.forward([chunk], hidden[start:end])
            found = hidden[start:end]
            for part in parts:
                found = part.forward([chunk], found)
        assert torch.equal(found, expected)
        for runner in (whole, split):
            runner.sequences.append(0, end - start)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"kv_dtype": "int8"}, {"quantize": "int8"}], ids=["plain", "int8-kv", "int8"])
def test_a_batch_invariant_span_gives_the_same_bits_in_any_company_and_any_chunks(
    folder: Path, dtype: str, options: dict[str, str]
) -> None:
    runner = load_span(folder, (0, 3), LoadOptions("cpu", dtype, batch_invariant=True, **options)).runner
    generator = torch.Generator().manual_seed(4)
    hidden, others = (torch.randn(49, 32, generator=generator).to(getattr(torch, dtype)) for _ in range(2))

    @torch.inference_mode()
    def rows(sequence_id: int, counts: list[int], companion: int | None = None) -> torch.Tensor:
        """The rows of ``hidden``, in steps of ``counts`` tokens, each behind a token of a companion if there is one."""
        position, found = 0, []
        for index, count in enumerate(counts):
            chunks, own = [Chunk(sequence_id, position, count)], hidden[position : position + count]
            if companion is not None:
                chunks, own = [Chunk(companion, index, 1), *chunks], torch.cat([others[index : index + 1], own])
            for chunk in chunks:
                if chunk.position == 0:
                    runner.sequences.open(chunk.sequence_id)
                runner.sequences.reserve(chunk.sequence_id, chunk.position + chunk.num_tokens)
            found.append(runner.forward(chunks, own)[-count:])
            for chunk in chunks:
                runner.sequences.append(chunk.sequence_id, chunk.num_tokens)
            position += count
        return torch.cat(found)

    alone = rows(0, [49])
    assert torch.equal(rows(1, [1] * 49), alone)
    assert torch.equal(rows(2, [17, 16, 15, 1]), alone)
    assert torch.equal(rows(3, [31, *[1] * 18], companion=4), alone)
    assert runner.part(1, 2).batch_invariant
