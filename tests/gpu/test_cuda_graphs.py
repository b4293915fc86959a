"""Captured decode steps: the same tokens as without a graph, and nothing that waits for the device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from hopformer.llama.assemble import ModelPart, Placement, load_model
from hopformer.llama.config import load_config
from hopformer.llama.cuda_graphs import GraphPool
from hopformer.llama.decode_step import Capture, DecodeRow, Launch, PaddedDecode, StaticDecode, decode_batch_sizes
from hopformer.llama.engine import Engine, Request
from hopformer.llama.kv_cache import KVCache
from hopformer.llama.load import LoadOptions, load
from hopformer.llama.model import Model
from hopformer.llama.runner import LocalRunner
from hopformer.llama.sampling import SamplingParams
from hopformer.llama.scheduler import DEFAULT_MAX_SEQUENCES

pytestmark = pytest.mark.gpu

VOCAB_SIZE = 509
MAX_CONTEXT = 1024
PAGE_SIZE = 16
NUM_STEPS = 200
SETTINGS = [
    SamplingParams(),
    SamplingParams(temperature=1.0, seed=1),
    SamplingParams(temperature=1.2, top_k=40, top_p=0.97, seed=2),
    SamplingParams(temperature=0.8, min_p=0.05, seed=3),
]

MakeModel = Callable[[torch.dtype], Model]


@pytest.fixture(scope="module")
def make_model(tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> MakeModel:
    """A random model on the GPU, in a dtype."""
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_CONTEXT,
        initializer_range=0.1,
    )
    folder: Path = tmp_path_factory.mktemp("random")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)

    def make(dtype: torch.dtype) -> Model:
        loaded = load_config(folder)
        return load_model(folder, loaded, ModelPart.whole(loaded), Placement(device, dtype, MAX_CONTEXT))

    return make


def uncaptured(step: StaticDecode) -> Launch:
    """The same padded step, launch by launch."""
    return step.run


def answers(
    model: Model, capture: Capture | None, count: int, kv_dtype: torch.dtype | None = None
) -> dict[str, list[int]]:
    """The ids of ``count`` requests in flight together; prompts are of 1 to 700 tokens, answers of uneven length."""
    runner = LocalRunner(model, 2000, PAGE_SIZE, MAX_CONTEXT, kv_dtype)
    if capture is not None:
        runner.prepare_decode(count, capture)
    engine = Engine(runner, lambda ids: "")
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[int]] = {}
    for index in range(count):
        prompt = torch.randint(VOCAB_SIZE, (1 + 233 * index % 700,), generator=generator).tolist()
        sampling = SETTINGS[index % len(SETTINGS)]
        engine.add(Request(str(index), prompt, NUM_STEPS - 7 * (index % 11), sampling))
        found[str(index)] = []
    while engine.has_work:
        for output in engine.step():
            found[output.request_id].extend(output.token_ids)
    return found


@pytest.mark.parametrize("count", [1, 5, 19])
def test_replays_draw_what_the_ordinary_path_draws(make_model: MakeModel, device: torch.device, count: int) -> None:
    model = make_model(torch.float32)  # in which the number of rows changes no answer
    assert answers(model, GraphPool(device).capture, count) == answers(model, None, count)


@pytest.mark.parametrize("kv_dtype", [None, torch.int8], ids=["bf16", "int8"])
def test_replays_draw_what_the_same_steps_draw_uncaptured(
    make_model: MakeModel, device: torch.device, kv_dtype: torch.dtype | None
) -> None:
    model = make_model(torch.bfloat16)
    captured = answers(model, GraphPool(device).capture, 19, kv_dtype)
    assert captured == answers(model, uncaptured, 19, kv_dtype)


def test_a_model_is_loaded_with_its_graphs_unless_told_otherwise(device: torch.device) -> None:
    demo = Path(str(files("hopformer.llama.demo")))
    texts = []
    for cuda_graphs in (True, False):
        done: list[tuple[int, int]] = []
        options = LoadOptions(device=str(device), dtype="float32", cuda_graphs=cuda_graphs)
        model = load(demo, options, lambda *progress, done=done: done.append(progress))
        num_graphs = len(decode_batch_sizes(DEFAULT_MAX_SEQUENCES)) if cuda_graphs else 0
        total = model.config.num_layers + 2 + num_graphs
        assert done == [(count, total) for count in range(1, total + 1)]
        prompt = model.tokenizer.encode("What is 2 plus 3?", add_special_tokens=True)
        texts.append("".join(output.text for output in model.engine.stream(Request("one", prompt, 60))))
    assert texts[0] == texts[1]


@contextmanager
def no_waiting() -> Iterator[None]:
    """Make every operation that waits for the device raise."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("is_captured", [False, True], ids=["uncaptured", "captured"])
def test_a_step_does_not_wait_for_the_device(make_model: MakeModel, device: torch.device, is_captured: bool) -> None:
    model = make_model(torch.float32)  # so that a row may be compared beside others
    cache = KVCache(model.kv_shape, 200, PAGE_SIZE, device)
    for layer in cache.layers:
        for tensor in layer.tensors():
            tensor.normal_()
    capture = GraphPool(device).capture if is_captured else uncaptured
    decode = PaddedDecode(lambda size: StaticDecode(model, cache, MAX_CONTEXT, size), 8, capture)
    rows = [
        DecodeRow(7 * index, 90 * index, np.arange(40 * index, 40 * index + 40, dtype=np.int32), SETTINGS[index])
        for index in range(4)
    ]
    for count in (3, 4):  # every kernel is compiled, every library is loaded
        decode.launch(rows[:count]).drawn(count)
    with no_waiting():
        step = decode.launch(rows[:3])
    first = step.drawn(3)
    with no_waiting():
        step = decode.launch(rows)
    assert step.drawn(4)[:3] == first
