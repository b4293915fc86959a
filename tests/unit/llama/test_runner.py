"""LocalRunner on a small random model: batches, pages, forks and preemption must not change what is drawn."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

from hopformer.llama.assemble import ModelPart, Placement, load_model
from hopformer.llama.config import load_config
from hopformer.llama.engine import Engine, Request
from hopformer.llama.model import Model
from hopformer.llama.runner import LocalRunner, StepItem
from hopformer.llama.sampling import SamplingParams

VOCAB_SIZE = 61
MAX_CONTEXT = 96
PAGE_SIZE = 4
GREEDY = SamplingParams()
SEEDED = SamplingParams(temperature=1.2, top_k=40, top_p=0.97, seed=7)
PROMPT = [5, 17, 3, 44, 44, 9, 28]

Loaded = tuple[transformers.PreTrainedModel, Model]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The model is so small that a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A random model as transformers has it and as hopformer does, in float32."""
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_CONTEXT,
        initializer_range=0.25,
    )
    oracle = transformers.LlamaForCausalLM(config).eval()
    folder: Path = tmp_path_factory.mktemp("random")
    oracle.save_pretrained(folder)
    config = load_config(folder)
    placement = Placement(torch.device("cpu"), torch.float32, MAX_CONTEXT)
    return oracle, load_model(folder, config, ModelPart.whole(config), placement)


@pytest.fixture
def model(loaded: Loaded) -> Model:
    return loaded[1]


def make_runner(model: Model, num_pages: int = 100) -> LocalRunner:
    return LocalRunner(model, num_pages, PAGE_SIZE, MAX_CONTEXT if num_pages >= 24 else num_pages * PAGE_SIZE)


def answer(model: Model, request: Request, *others: Request, num_pages: int = 100, **options: int) -> list[int]:
    """The ids of a request's answer, computed together with others."""
    runner = make_runner(model, num_pages)
    engine = Engine(runner, lambda ids: "", **options)
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
        Request(f"other {index}", PROMPT[: index % 8] + [index] * 9, 20, SamplingParams(temperature=1.0, seed=index))
        for index in range(count)
    ]


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_an_answer_is_the_same_alone_and_in_a_batch(model: Model, sampling: SamplingParams) -> None:
    request = Request("mine", PROMPT, 40, sampling)
    alone = answer(model, request)
    assert len(set(alone)) > 5, "an answer that repeats itself shows nothing"
    assert answer(model, request) == alone
    assert answer(model, request, *crowd(9)) == alone
    assert answer(model, request, *crowd(9), max_batch_tokens=5, max_sequences=4) == alone


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_an_answer_is_the_same_after_preemption(model: Model, penalty: float, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = SamplingParams(temperature=1.2, seed=7, repetition_penalty=penalty)
    request = Request("mine", PROMPT, 40, sampling)
    alone = answer(model, request)
    reopened: list[int] = []
    real_open = LocalRunner.open

    def counting_open(runner: LocalRunner, sequence_id: int, token_ids: list[int]) -> int:
        if len(token_ids) > len(PROMPT) and token_ids[: len(PROMPT)] == PROMPT:
            reopened.append(sequence_id)
        return real_open(runner, sequence_id, token_ids)

    monkeypatch.setattr(LocalRunner, "open", counting_open)
    assert answer(model, request, *crowd(3), num_pages=16) == alone
    assert reopened, "the request was never preempted"


def test_a_seed_decides_the_answer(model: Model) -> None:
    answers = {tuple(answer(model, Request("mine", PROMPT, 12, SamplingParams(1.0, seed=seed)))) for seed in range(6)}
    assert len(answers) == 6


def test_without_a_seed_answers_differ(model: Model) -> None:
    request = Request("mine", PROMPT, 20, SamplingParams(temperature=1.0))
    assert answer(model, request) != answer(model, request)


@pytest.mark.parametrize("num_pages", [100, 16])
def test_the_repetition_penalty_sees_prompt_and_answer_as_transformers_does(loaded: Loaded, num_pages: int) -> None:
    oracle, model = loaded
    expected = oracle.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long),
        generation_config=transformers.GenerationConfig(
            max_new_tokens=24, do_sample=False, repetition_penalty=1.4, pad_token_id=0
        ),
    )[0, len(PROMPT) :].tolist()
    request = Request("mine", PROMPT, 24, SamplingParams(repetition_penalty=1.4))
    assert answer(model, request, *crowd(3), num_pages=num_pages) == expected
    assert answer(model, Request("mine", PROMPT, 24)) != expected


def step(runner: LocalRunner, sequence_id: int, token_ids: list[int], num_samples: int = 1) -> list[int]:
    """Compute tokens behind a sequence's end; returns what is drawn behind the last ``num_samples`` of them."""
    position = runner.sequences.length(sequence_id)
    runner.reserve(sequence_id, position + len(token_ids))
    (drawn,) = runner.step([StepItem(sequence_id, position, token_ids, num_samples, SEEDED)])
    runner.check_integrity()
    return [token.token_id for token in drawn]


def generate(runner: LocalRunner, sequence_id: int, token_ids: list[int], count: int) -> list[int]:
    """``count`` tokens one by one, the last of which is not computed."""
    drawn = step(runner, sequence_id, token_ids)
    while len(drawn) < count:
        drawn += step(runner, sequence_id, drawn[-1:])
    return drawn


def test_drafted_tokens_are_verified_in_one_step(model: Model) -> None:
    runner = make_runner(model)
    runner.open(0, PROMPT)
    expected = generate(runner, 0, PROMPT, 12)
    runner.open(1, [VOCAB_SIZE - 1])
    first = step(runner, 1, PROMPT)
    assert step(runner, 1, first + expected[1:5], num_samples=5) == expected[1:6]
    wrong = (expected[7] + 1) % VOCAB_SIZE
    drawn = step(runner, 1, [*expected[5:7], wrong, wrong], num_samples=4)
    assert drawn[:2] == expected[6:8]
    runner.rollback(1, len(PROMPT) + 7)
    assert generate(runner, 1, [expected[7]], 4) == expected[8:12]


def test_a_fork_and_its_source_go_on_as_two_sequences_of_their_own(model: Model) -> None:
    runner = make_runner(model)
    runner.open(0, PROMPT)
    step(runner, 0, PROMPT)
    expected = {}
    for token in (11, 12):
        other = make_runner(model)
        other.open(0, PROMPT)
        expected[token] = generate(other, 0, [*PROMPT, token], 9)
    runner.fork(0, 1)
    drawn = {11: step(runner, 0, [11]), 12: step(runner, 1, [12])}
    while len(drawn[11]) < 9:
        drawn[11] += step(runner, 0, drawn[11][-1:])
        drawn[12] += step(runner, 1, drawn[12][-1:])
    assert drawn == expected


def test_prompts_that_part_inside_a_page_are_answered_as_each_alone(model: Model) -> None:
    runner = make_runner(model)
    engine = Engine(runner, lambda ids: "")
    story = [(7 * index + index // 3) % VOCAB_SIZE for index in range(21)]
    num_hits = 0
    for end in (21, 21, 14, 9, 18, 3):
        request = Request("mine", [*story[:end], 1, 2], 9, SEEDED)
        outputs = list(engine.stream(request))
        num_hits += outputs[0].num_cached > 0
        assert [token for output in outputs for token in output.token_ids] == answer(model, request)
        runner.check_integrity()
    assert num_hits == 5


def test_a_step_that_does_not_go_on_where_the_sequence_ends_is_a_bug(model: Model) -> None:
    runner = make_runner(model)
    runner.open(0, PROMPT)
    step(runner, 0, PROMPT)
    runner.reserve(0, 12)
    with pytest.raises(AssertionError, match="roll back first"):
        runner.step([StepItem(0, 3, [1], 1, GREEDY)])


def test_a_runner_needs_memory_for_one_whole_context(model: Model) -> None:
    with pytest.raises(AssertionError, match="a sequence of max_context tokens must fit"):
        LocalRunner(model, num_pages=3, page_size=4, max_context=13)
