"""The model against transformers: greedy ids and log-probabilities of random models of every kind, in float32."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from hopformer.llama.assemble import ModelPart, Placement, load_model
from hopformer.llama.batch import Chunk
from hopformer.llama.config import load_config
from hopformer.llama.engine import Engine, Output, Request
from hopformer.llama.kv_cache import KVCache
from hopformer.llama.pages import PagePool
from hopformer.llama.runner import LocalRunner, SpanRunner
from hopformer.llama.sampling import SamplingParams
from hopformer.llama.sequences import SequenceTable

LOGPROB_TOLERANCE = 2e-3  # the issue's own bound
PROMPT_LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 97, 150)
NUM_NEW_TOKENS = 8
MAX_CONTEXT = 256
VOCAB_SIZE = 131

BASE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_CONTEXT,
    "initializer_range": 0.15,  # far from uniform, so that a wrong layer changes the ids
    "bos_token_id": 1,
    "eos_token_id": None,  # so that every answer has all its tokens
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}

KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "mha": ("Llama", {"num_key_value_heads": 4}),
    "gqa": ("Llama", {}),
    "mqa": ("Llama", {"num_key_value_heads": 1}),
    "ratio-7": ("Llama", {"num_attention_heads": 7, "num_key_value_heads": 1, "hidden_size": 112}),
    "head-dim-48": ("Llama", {"head_dim": 48}),
    "head-dim-80": ("Llama", {"head_dim": 80}),
    "tied": ("Llama", {"tie_word_embeddings": True}),
    "biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "windowed": ("Mistral", {"sliding_window": 24}),
    "some-windowed": ("Qwen2", {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}),
    "llama3-rope": ("Llama", {"rope_parameters": LLAMA3}),
    "linear-rope": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "yarn-rope": ("Llama", {"rope_parameters": YARN}),
    "dynamic-rope": (
        "Llama",
        {
            "max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        },
    ),
}

MakeModel = Callable[[str], tuple[transformers.PreTrainedModel, Path]]


@pytest.fixture(scope="module")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """A random model of a kind, and the folder that it was saved to; made once a kind."""
    made: dict[str, tuple[transformers.PreTrainedModel, Path]] = {}

    def make(kind: str) -> tuple[transformers.PreTrainedModel, Path]:
        if kind not in made:
            family, changes = KINDS[kind]
            torch.manual_seed(sum(map(ord, kind)))
            config = getattr(transformers, f"{family}Config")(**{**BASE, **changes})
            model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
            for name, parameter in model.named_parameters():  # transformers starts norms at 1 and biases at 0
                if name.endswith(("norm.weight", "bias")):
                    torch.nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.2)
            folder = tmp_path_factory.mktemp(kind)
            model.save_pretrained(folder, max_shard_size="100KB")
            made[kind] = (model, folder)
        return made[kind]

    return make


def load_engine(folder: Path, dtype: torch.dtype = torch.float32, **options: int) -> Engine:
    config = load_config(folder)
    model = load_model(folder, config, ModelPart.whole(config), Placement(torch.device("cpu"), dtype, MAX_CONTEXT))
    runner = LocalRunner(model, num_pages=200, page_size=16, max_context=MAX_CONTEXT)
    return Engine(runner, lambda ids: "", **options)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist()


def greedy(name: str, prompt: list[int], max_tokens: int = NUM_NEW_TOKENS) -> Request:
    return Request(name, prompt, max_tokens, SamplingParams(logprobs=5))


def run_all(engine: Engine, requests: list[Request]) -> dict[str, list[Output]]:
    """Every request's outputs, all of them in flight at once."""
    for request in requests:
        engine.add(request)
    outputs: dict[str, list[Output]] = {request.request_id: [] for request in requests}
    while engine.has_work:
        for output in engine.step():
            outputs[output.request_id].append(output)
        engine.check_integrity()
    return outputs


def expected_steps(model: transformers.PreTrainedModel, prompt: list[int], count: int) -> list[torch.Tensor]:
    """transformers' log-probabilities [V] of each of its greedy steps."""
    generated = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        generation_config=transformers.GenerationConfig(
            max_new_tokens=count, do_sample=False, output_logits=True, return_dict_in_generate=True, pad_token_id=0
        ),
    )
    return [logits[0].float().log_softmax(-1) for logits in generated.logits]


def assert_equals_transformers(model: transformers.PreTrainedModel, prompt: list[int], outputs: list[Output]) -> None:
    steps = expected_steps(model, prompt, len(outputs))
    token_ids = [output.token_ids[0] for output in outputs]
    assert token_ids == [int(logprobs.argmax()) for logprobs in steps]
    for output, logprobs in zip(outputs, steps, strict=True):
        for token_id, logprob in output.logprobs[0]:
            assert abs(logprob - float(logprobs[token_id])) < LOGPROB_TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_a_random_model_answers_as_transformers_does(kind: str, make_model: MakeModel) -> None:
    model, folder = make_model(kind)
    engine = load_engine(folder)
    for length in PROMPT_LENGTHS:
        prompt = prompt_of(length)
        outputs = run_all(engine, [greedy("one", prompt)])["one"]
        # transformers' dynamic frequencies remember the longest sequence so far: start from a model that has seen none
        assert_equals_transformers(copy.deepcopy(model) if "dynamic" in kind else model, prompt, outputs)


@pytest.mark.parametrize("kind", ["gqa", "windowed", "qwen3", "ratio-7"])
def test_requests_in_one_batch_answer_as_each_would_alone(kind: str, make_model: MakeModel) -> None:
    model, folder = make_model(kind)
    engine = load_engine(folder, max_batch_tokens=37)  # so that prompts are cut into chunks among decoding requests
    prompts = {str(length): prompt_of(length, seed=1) for length in PROMPT_LENGTHS}
    outputs = run_all(engine, [greedy(name, prompt) for name, prompt in prompts.items()])
    for name, prompt in prompts.items():
        assert_equals_transformers(model, prompt, outputs[name])


def test_a_follow_up_prefills_only_its_new_tokens(make_model: MakeModel) -> None:
    model, folder = make_model("gqa")
    engine = load_engine(folder)
    prompt = prompt_of(45)
    first = run_all(engine, [greedy("first", prompt)])["first"]
    answer = [output.token_ids[0] for output in first]
    follow_up = [*prompt, *answer, *prompt_of(9, seed=2)]
    second = run_all(engine, [greedy("second", follow_up)])["second"]
    assert second[-1].num_cached == len(prompt) + len(answer) - 1  # the last token was drawn but never computed
    assert_equals_transformers(model, follow_up, second)


def test_pages_running_out_changes_no_answer(make_model: MakeModel) -> None:
    model, folder = make_model("gqa")
    config = load_config(folder)
    loaded = load_model(
        folder, config, ModelPart.whole(config), Placement(torch.device("cpu"), torch.float32, MAX_CONTEXT)
    )
    runner = LocalRunner(loaded, num_pages=16, page_size=16, max_context=MAX_CONTEXT)
    engine = Engine(runner, lambda ids: "", max_batch_tokens=50)
    prompts = {str(index): prompt_of(60 + index, seed=3) for index in range(6)}
    outputs = run_all(engine, [greedy(name, prompt, max_tokens=40) for name, prompt in prompts.items()])
    runner.check_integrity()
    for name, prompt in prompts.items():
        assert len(outputs[name]) == 40
        assert_equals_transformers(model, prompt, outputs[name])


def test_a_span_of_layers_then_the_rest_equals_the_whole(make_model: MakeModel) -> None:
    model, folder = make_model("gqa")
    config = load_config(folder)
    placement = Placement(torch.device("cpu"), torch.float32, MAX_CONTEXT)
    prompt = prompt_of(70)
    first = load_model(folder, config, ModelPart(0, 1, head=False), placement)
    last = load_model(folder, config, ModelPart(1, 3, embed=False), placement)
    assert first.head is None and last.embed is None and first.embed is not None and last.head is not None
    hidden = first.embed(torch.tensor(prompt))
    with torch.inference_mode():
        for part in (first, last):
            sequences = SequenceTable(PagePool(8, 16))
            runner = SpanRunner(part.span, KVCache(part.kv_shape, 8, 16, part.device), sequences, part.device)
            sequences.open(7)
            sequences.reserve(7, len(prompt))
            hidden = torch.cat([span_step(runner, hidden, 0, 33), span_step(runner, hidden, 33, 70)])
        logits = last.head(hidden)
        expected = model(torch.tensor([prompt])).logits[0]
    assert torch.allclose(logits.log_softmax(-1), expected.log_softmax(-1), atol=LOGPROB_TOLERANCE)


def span_step(runner: SpanRunner, hidden: torch.Tensor, start: int, end: int) -> torch.Tensor:
    out = runner.forward([Chunk(7, start, end - start)], hidden[start:end])
    runner.sequences.append(7, end - start)
    return out
