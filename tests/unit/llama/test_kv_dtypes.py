"""Keys and values in int8 and fp8: logits hardly change, and batches, chunks, forks and preemption change no answer."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from hopformer.llama.assemble import ModelPart, Placement, load_model
from hopformer.llama.batch import Chunk
from hopformer.llama.config import load_config
from hopformer.llama.engine import Engine, Request
from hopformer.llama.kv_cache import KVCache
from hopformer.llama.model import Model
from hopformer.llama.pages import PagePool
from hopformer.llama.runner import LocalRunner, SpanRunner, StepItem
from hopformer.llama.sampling import SamplingParams
from hopformer.llama.sequences import SequenceTable

VOCAB_SIZE = 131
MAX_CONTEXT = 160
PAGE_SIZE = 8
SEEDED = SamplingParams(temperature=1.2, top_k=40, top_p=0.97, seed=7)
PROMPT = [5, 17, 3, 44, 44, 9, 28, 2, 61, 33, 7]
# Relative Frobenius error of the logits against those of wide pages; 0.016 and 0.091 were measured on these models.
TOLERANCES = {torch.int8: 0.03, torch.float8_e4m3fn: 0.15}
# The same between chunks of other sizes: rounding, unless it happens to move a number to the next code.
CHUNK_TOLERANCE = 3e-3


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The model is so small that a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["default", "windowed"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A random model in float32, also one whose layers see 24 tokens."""
    torch.manual_seed(5)
    config = transformers.MistralConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_CONTEXT,
        initializer_range=0.15,
        sliding_window=24 if request.param == "windowed" else None,
        eos_token_id=None,
    )
    folder: Path = tmp_path_factory.mktemp(request.param)
    transformers.MistralForCausalLM(config).save_pretrained(folder)
    loaded = load_config(folder)
    placement = Placement(torch.device("cpu"), torch.float32, MAX_CONTEXT)
    return load_model(folder, loaded, ModelPart.whole(loaded), placement)


@pytest.fixture(params=TOLERANCES, ids=["int8", "fp8"])
def kv_dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each narrow dtype in turn."""
    return request.param


def make_runner(model: Model, kv_dtype: torch.dtype, num_pages: int = 300) -> LocalRunner:
    return LocalRunner(model, num_pages, PAGE_SIZE, min(MAX_CONTEXT, num_pages * PAGE_SIZE), kv_dtype)


def logits_of(model: Model, kv_dtype: torch.dtype, token_ids: list[int], *chunks: int) -> torch.Tensor:
    """The logits [T, V] behind each token, computed in chunks of so many tokens."""
    assert model.embed is not None and model.head is not None
    sequences = SequenceTable(PagePool(40, PAGE_SIZE))
    cache = KVCache(replace(model.kv_shape, dtype=kv_dtype), 40, PAGE_SIZE, model.device)
    runner = SpanRunner(model.span, cache, sequences, model.device)
    sequences.open(0)
    sequences.reserve(0, len(token_ids))
    parts = []
    with torch.inference_mode():
        for part in torch.tensor(token_ids).split(list(chunks)):
            hidden = runner.forward([Chunk(0, sequences.length(0), len(part))], model.embed(part))
            sequences.append(0, len(part))
            parts.append(model.head(hidden))
    return torch.cat(parts)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_logits_are_close_to_those_of_wide_pages(model: Model, kv_dtype: torch.dtype) -> None:
    token_ids = torch.randint(VOCAB_SIZE, (150,), generator=torch.Generator().manual_seed(1)).tolist()
    wide = logits_of(model, torch.float32, token_ids, 150)
    narrow = logits_of(model, kv_dtype, token_ids, 150)
    assert 1e-3 < relative_error(narrow, wide) < TOLERANCES[kv_dtype]


def test_chunks_change_nothing_but_rounding(model: Model, kv_dtype: torch.dtype) -> None:
    token_ids = torch.randint(VOCAB_SIZE, (60,), generator=torch.Generator().manual_seed(2)).tolist()
    whole = logits_of(model, kv_dtype, token_ids, 60)
    assert relative_error(logits_of(model, kv_dtype, token_ids, 7, 1, 1, 33, 18), whole) < CHUNK_TOLERANCE


def answer(model: Model, kv_dtype: torch.dtype, request: Request, *others: Request, num_pages: int = 300) -> list[int]:
    """The ids of a request's answer, computed together with others."""
    runner = make_runner(model, kv_dtype, num_pages)
    engine = Engine(runner, lambda ids: "", max_batch_tokens=37)
    for one in (*others, request):
        engine.add(one)
    token_ids: list[int] = []
    while engine.has_work:
        for output in engine.step():
            if output.request_id == request.request_id:
                token_ids.extend(output.token_ids)
        runner.check_integrity()
    return token_ids


def crowd(count: int) -> list[Request]:
    """Other requests, some of which begin as PROMPT does."""
    return [
        Request(f"other {index}", PROMPT[: index % 8] + [index] * 9, 60, SamplingParams(temperature=1.0, seed=index))
        for index in range(count)
    ]


def test_an_answer_is_the_same_alone_in_a_batch_and_after_preemption(model: Model, kv_dtype: torch.dtype) -> None:
    request = Request("mine", PROMPT, 60, SEEDED)
    alone = answer(model, kv_dtype, request)
    assert len(set(alone)) > 15, "an answer that repeats itself shows nothing"
    assert answer(model, kv_dtype, request, *crowd(7)) == alone
    assert answer(model, kv_dtype, request, *crowd(4), num_pages=20) == alone  # for five, 45 pages are needed


def test_prompts_that_part_inside_a_page_are_answered_as_each_alone(model: Model, kv_dtype: torch.dtype) -> None:
    engine = Engine(make_runner(model, kv_dtype), lambda ids: "")
    story = [(7 * index + index // 3) % VOCAB_SIZE for index in range(43)]
    num_hits = 0
    for end in (43, 43, 29, 18, 37, 5):
        request = Request("mine", [*story[:end], 1, 2], 9, SEEDED)
        outputs = list(engine.stream(request))
        num_hits += outputs[0].num_cached > 0
        assert [token for output in outputs for token in output.token_ids] == answer(model, kv_dtype, request)
    assert num_hits == 5


def test_a_fork_and_its_source_go_on_as_two_sequences_of_their_own(model: Model, kv_dtype: torch.dtype) -> None:
    runner = make_runner(model, kv_dtype)
    expected = {token: answer(model, kv_dtype, Request("mine", [*PROMPT, token], 9, SEEDED)) for token in (11, 12)}
    runner.open(0, PROMPT)
    step(runner, 0, PROMPT)
    runner.fork(0, 1)
    drawn = {11: [step(runner, 0, [11])], 12: [step(runner, 1, [12])]}
    for _ in range(8):
        drawn[11].append(step(runner, 0, drawn[11][-1:]))
        drawn[12].append(step(runner, 1, drawn[12][-1:]))
    assert drawn == expected
    assert runner.sequences.block_row(0)[1] != runner.sequences.block_row(1)[1], "no page was copied"


def step(runner: LocalRunner, sequence_id: int, token_ids: list[int]) -> int:
    """Compute tokens behind a sequence's end; returns the one drawn behind them."""
    position = runner.sequences.length(sequence_id)
    runner.reserve(sequence_id, position + len(token_ids))
    ((token,),) = runner.step([StepItem(sequence_id, position, token_ids, 1, SEEDED)])
    runner.check_integrity()
    return token.token_id
