"""Decode steps over fixed buffers, uncaptured: padding changes no answer, and writes nothing.

Captured in CUDA graphs they are tested in tests/gpu/test_cuda_graphs.py.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from hopformer.llama.assemble import ModelPart, Placement, load_model
from hopformer.llama.config import load_config
from hopformer.llama.decode_step import DecodeRow, Launch, StaticDecode, decode_batch_sizes
from hopformer.llama.engine import Engine, Request
from hopformer.llama.kv_cache import KVCache
from hopformer.llama.model import Model
from hopformer.llama.runner import LocalRunner, StepItem, is_static_decode
from hopformer.llama.sampling import SamplingParams

VOCAB_SIZE = 61
TRAINED_CONTEXT = 48  # beyond it the dynamic kind of RoPE stretches
MAX_CONTEXT = 96
PAGE_SIZE = 4
GREEDY = SamplingParams()
SEEDED = SamplingParams(temperature=1.2, top_k=40, top_p=0.97, min_p=0.01, seed=7)
SETTINGS = [
    GREEDY,
    SEEDED,
    SamplingParams(temperature=1.0, seed=1),
    SamplingParams(temperature=0.8, min_p=0.05, seed=2),
    SamplingParams(temperature=1.5, top_p=0.9, seed=3),
]

MakeModel = Callable[[str], Model]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The model is so small that a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """A random model in float32 with a kind of RoPE; made once a kind."""
    made: dict[str, Model] = {}

    def make(rope_type: str = "default") -> Model:
        if rope_type not in made:
            torch.manual_seed(3)
            oracle = transformers.LlamaForCausalLM(
                transformers.LlamaConfig(
                    vocab_size=VOCAB_SIZE,
                    hidden_size=32,
                    intermediate_size=48,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    max_position_embeddings=TRAINED_CONTEXT if rope_type == "dynamic" else MAX_CONTEXT,
                    rope_parameters={"rope_type": rope_type, "rope_theta": 10000.0, "factor": 4.0},
                    initializer_range=0.25,
                )
            )
            folder: Path = tmp_path_factory.mktemp(rope_type)
            oracle.save_pretrained(folder)
            config = load_config(folder)
            placement = Placement(torch.device("cpu"), torch.float32, MAX_CONTEXT)
            made[rope_type] = load_model(folder, config, ModelPart.whole(config), placement)
        return made[rope_type]

    return make


@pytest.fixture
def model(make_model: MakeModel) -> Model:
    return make_model("default")


class CountingCapture:
    """Stands where a GraphPool would: a "captured" step runs as it is, and each run is counted by its size."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.runs: list[int] = []

    def __call__(self, step: StaticDecode) -> Launch:
        self.sizes.append(step.batch_size)

        def launch() -> None:
            self.runs.append(step.batch_size)
            step.run()

        return launch


def make_runner(
    model: Model,
    capture: CountingCapture | None,
    max_sequences: int = 24,
    num_pages: int = 600,
    kv_dtype: torch.dtype | None = None,
) -> LocalRunner:
    """A runner of the ordinary path, or with every decode step prepared."""
    runner = LocalRunner(model, num_pages, PAGE_SIZE, min(MAX_CONTEXT, num_pages * PAGE_SIZE), kv_dtype)
    if capture is not None:
        runner.prepare_decode(max_sequences, capture)
    return runner


def make_requests(count: int, max_tokens: int = 40) -> list[Request]:
    """Prompts of very different lengths, some of which begin alike, with every kind of sampling."""
    story = [(7 * index + index // 3) % VOCAB_SIZE for index in range(50)]
    return [
        Request(str(index), [*story[: index * 5 % 29], index, 2], max_tokens, SETTINGS[index % len(SETTINGS)])
        for index in range(count)
    ]


def answers(runner: LocalRunner, requests: Sequence[Request], **options: int) -> dict[str, list[int]]:
    """The ids of every request's answer, all of them in flight at once."""
    engine = Engine(runner, lambda ids: "", **options)
    for request in requests:
        engine.add(request)
    token_ids: dict[str, list[int]] = {request.request_id: [] for request in requests}
    while engine.has_work:
        for output in engine.step():
            token_ids[output.request_id].extend(output.token_ids)
        runner.check_integrity()
    return token_ids


@pytest.mark.parametrize(
    ("max_sequences", "sizes"),
    [
        (1, [1]),
        (2, [1, 2]),
        (3, [1, 2, 3]),
        (8, [1, 2, 4, 8]),
        (9, [1, 2, 4, 8, 9]),
        (33, [1, 2, 4, 8, 16, 24, 32, 33]),
        (64, [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]),
    ],
)
def test_sizes_rise_by_doubling_and_then_by_eights_up_to_the_most(max_sequences: int, sizes: list[int]) -> None:
    assert decode_batch_sizes(max_sequences) == sizes


def test_the_largest_size_is_captured_first(model: Model) -> None:
    capture = CountingCapture()
    done: list[tuple[int, int]] = []
    make_runner(model, None).prepare_decode(19, capture, lambda *progress: done.append(progress))
    assert capture.sizes == [19, 16, 8, 4, 2, 1]
    assert done == [(count, 6) for count in range(1, 7)]


def item(position: int = 9, num_tokens: int = 1, num_samples: int = 1, **settings: float) -> StepItem:
    return StepItem(0, position, [5] * num_tokens, num_samples, SamplingParams(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([item()], True),
        ([item(), item(temperature=1.0, top_k=3, top_p=0.5, min_p=0.1, seed=1)], True),
        ([item(num_tokens=2)], False),  # a drafted token behind the last one, or a prompt
        ([item(num_tokens=2, num_samples=2)], False),
        ([item(num_samples=0)], False),  # the last chunk but one of a prompt may be of a single token
        ([item(), item(num_tokens=7), item()], False),
        ([item(logprobs=1)], False),
        ([item(), item(repetition_penalty=1.1)], False),
        ([item(position=19)], True),
        ([item(), item(position=20)], False),  # the 21st token
    ],
)
def test_a_static_step_is_one_token_and_one_draw_a_sequence_with_nothing_else(
    items: list[StepItem], expected: bool
) -> None:
    assert is_static_decode(items, lambda length: length > 20) is expected


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 9, 17])
def test_answers_are_those_of_the_ordinary_path(model: Model, count: int) -> None:
    requests = make_requests(count)
    capture = CountingCapture()
    expected = answers(make_runner(model, None), requests)
    assert len({tuple(one) for one in expected.values()}) == count, "answers that are alike show little"
    assert answers(make_runner(model, capture), requests) == expected
    assert len(capture.runs) >= 38, "most steps were decode steps"
    assert set(capture.runs) == {next(size for size in (1, 2, 4, 8, 16, 24) if size >= count)}


@pytest.mark.parametrize("kv_dtype", [torch.int8, torch.float8_e4m3fn])
def test_answers_are_those_of_the_ordinary_path_with_narrow_pages(model: Model, kv_dtype: torch.dtype) -> None:
    requests = make_requests(5)
    found = answers(make_runner(model, CountingCapture(), kv_dtype=kv_dtype), requests)
    assert found == answers(make_runner(model, None, kv_dtype=kv_dtype), requests)


def test_a_batch_that_shrinks_takes_smaller_steps(model: Model) -> None:
    requests = [replace(request, max_tokens=4 * index + 2) for index, request in enumerate(make_requests(12))]
    capture = CountingCapture()
    assert answers(make_runner(model, capture), requests) == answers(make_runner(model, None), requests)
    assert list(dict.fromkeys(capture.runs)) == [16, 8, 4, 2, 1]


def test_prompts_and_batches_that_are_too_large_go_the_ordinary_way(model: Model) -> None:
    requests = [replace(request, max_tokens=3 * index + 2) for index, request in enumerate(make_requests(6))]
    capture = CountingCapture()
    runner = make_runner(model, capture, max_sequences=4)
    assert answers(runner, requests) == answers(make_runner(model, None), requests)
    assert set(capture.runs) == {4, 2, 1}


@pytest.mark.parametrize("settings", [{"logprobs": 3}, {"repetition_penalty": 1.3}])
def test_what_only_the_host_knows_goes_the_ordinary_way(model: Model, settings: dict[str, float]) -> None:
    requests = make_requests(3)
    requests[1] = replace(requests[1], sampling=replace(SEEDED, **settings), max_tokens=10)  # type: ignore[arg-type]
    capture = CountingCapture()
    assert answers(make_runner(model, capture), requests) == answers(make_runner(model, None), requests)
    assert len(capture.runs) == 30, "from the 10th token on nobody asks for it any more"


def test_a_context_that_stretches_the_frequencies_goes_the_ordinary_way(make_model: MakeModel) -> None:
    model = make_model("dynamic")
    requests = [Request("one", [5, 17, 3], 70, SEEDED)]
    capture = CountingCapture()
    assert answers(make_runner(model, capture), requests) == answers(make_runner(model, None), requests)
    assert len(capture.runs) == TRAINED_CONTEXT - 3


def test_preemption_changes_no_answer(model: Model) -> None:
    requests = make_requests(5)
    capture = CountingCapture()
    alone = {name: ids for one in requests for name, ids in answers(make_runner(model, None), [one]).items()}
    assert answers(make_runner(model, capture, num_pages=24), requests) == alone
    assert {1, 2, 4} <= set(capture.runs), "memory never was short"


def decode(runner: LocalRunner, sequence_id: int, token_id: int) -> int:
    """Compute one token; returns the next."""
    position = runner.sequences.length(sequence_id)
    runner.reserve(sequence_id, position + 1)
    ((token,),) = runner.step([StepItem(sequence_id, position, [token_id], 1, SEEDED)])
    runner.check_integrity()
    return token.token_id


def test_a_page_that_a_fork_still_reads_is_copied_before_the_step_writes(model: Model) -> None:
    prompt = [5, 17, 3, 44, 44, 9]  # ends within a page
    drawn: list[list[int]] = []
    for capture in (None, CountingCapture()):
        runner = make_runner(model, capture)
        runner.open(0, prompt)
        runner.reserve(0, len(prompt))
        runner.step([StepItem(0, 0, prompt, 1, SEEDED)])
        runner.fork(0, 1)
        tokens = [11, 12]
        drawn.append([])
        for _ in range(9):
            tokens = [decode(runner, index, token_id) for index, token_id in enumerate(tokens)]
            drawn[-1] += tokens
        assert runner.sequences.block_row(0)[1] != runner.sequences.block_row(1)[1]
    assert drawn[0] == drawn[1]


def filled_cache(model: Model, num_pages: int, kv_dtype: torch.dtype) -> KVCache:
    """A cache in whose pages every value is ordinary."""
    cache = KVCache(replace(model.kv_shape, dtype=kv_dtype), num_pages, PAGE_SIZE, model.device)
    generator = torch.Generator().manual_seed(0)
    for layer in cache.layers:
        for tensor in layer.tensors():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return cache


def snapshot(cache: KVCache) -> list[torch.Tensor]:
    """What is in the cache, as bytes: [num_pages, K, page_size, bytes of a token]."""
    return [
        tensor.contiguous().view(torch.uint8).view(*tensor.shape[:3], -1)
        for layer in cache.layers
        for tensor in layer.tensors()
    ]


def rows_at(*positions: int) -> list[DecodeRow]:
    """A row at each position, of sequences with four pages each."""
    return [
        DecodeRow(20 + index, position, np.arange(4 * index, 4 * index + 4, dtype=np.int32), SEEDED)
        for index, position in enumerate(positions)
    ]


KV_DTYPES = [torch.float32, torch.int8, torch.float8_e4m3fn]


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_padded_rows_write_nothing(model: Model, kv_dtype: torch.dtype) -> None:
    cache = filled_cache(model, 24, kv_dtype)
    step = StaticDecode(model, cache, MAX_CONTEXT, batch_size=6)
    step.fill(rows_at(3, 9, 14, 0, 7, 11))  # what a fuller step left behind must not come back
    step.run()
    for positions in ((10, 4, 15), (5,)):
        old = snapshot(cache)
        step.fill(rows_at(*positions))
        step.run()
        for before, after in zip(old, snapshot(cache), strict=True):
            for index, position in enumerate(positions):
                page, offset = 4 * index + position // PAGE_SIZE, position % PAGE_SIZE
                assert not torch.equal(after[page, :, offset], before[page, :, offset])
                after[page, :, offset] = before[page, :, offset]
            assert torch.equal(after, before)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_an_empty_step_writes_nothing(model: Model, kv_dtype: torch.dtype) -> None:
    cache = filled_cache(model, 3, kv_dtype)
    old = snapshot(cache)
    step = StaticDecode(model, cache, 3 * PAGE_SIZE, batch_size=5)
    step.fill(())  # what a capture runs
    step.run()
    assert all(torch.equal(before, after) for before, after in zip(old, snapshot(cache), strict=True))
    assert len(step.drawn(5)) == 5
