"""The bundled demo model answers held-out questions through the real engine: loaded, templated, batched, decoded."""

import random
from collections import Counter
from collections.abc import Iterable
from importlib.resources import files
from itertools import islice
from pathlib import Path

import pytest

from hopformer.llama.chat import Chat
from hopformer.llama.demo.text import HeldOut, Message, held_out, training_messages
from hopformer.llama.engine import Request
from hopformer.llama.load import LoadedModel, LoadOptions, load

DEMO = Path(str(files("hopformer.llama.demo")))
MAX_BYTES = 8_000_000
REQUIRED = 0.95
REQUIRED_ALIKE = 0.94  # answers with narrow keys and values; of all 800, 98.4% are alike with int8, 97.6% with fp8


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load(DEMO, LoadOptions(device="cpu", dtype="bfloat16"))


def encode(demo: LoadedModel, messages: list[Message]) -> list[int]:
    """The prompt's token ids, as the model's own template writes it."""
    return demo.tokenizer.encode(demo.template.render(messages), add_special_tokens=False)


def answer_all(demo: LoadedModel, prompts: Iterable[list[int]]) -> list[str]:
    """The greedy answer to each prompt, all of them in flight at once."""
    texts: list[str] = []
    for index, prompt in enumerate(prompts):
        texts.append("")
        eos = frozenset(demo.config.eos_token_ids)
        demo.engine.add(Request(str(index), prompt, max_tokens=120, eos_token_ids=eos))
    while demo.engine.has_work:
        for output in demo.engine.step():
            texts[int(output.request_id)] += output.text
    return texts


def wrong_answers(demo: LoadedModel, items: list[HeldOut]) -> list[tuple[str, str, str]]:
    """(family, question, answer) of each item that is answered wrong."""
    answers = answer_all(demo, [encode(demo, item.messages) for item in items])
    return [
        (item.family, item.messages[-1]["content"], answer)
        for item, answer in zip(items, answers, strict=True)
        if answer.strip() not in item.accepted
    ]


def converse(demo: LoadedModel, *questions: str) -> list[str]:
    """The answers to questions asked one after the other in one conversation."""
    chat = Chat(demo.tokenizer, demo.template)
    answers = []
    for number, question in enumerate(questions):
        request = Request(
            f"turn {number}",
            chat.prompt_for(question),
            max_tokens=120,
            eos_token_ids=frozenset(demo.config.eos_token_ids),
        )
        outputs = list(demo.engine.stream(request))
        text = "".join(output.text for output in outputs)
        chat.answered([token for output in outputs for token in output.token_ids], text)
        answers.append(text)
    return answers


def test_the_weights_fit_in_eight_megabytes() -> None:
    assert (DEMO / "model.safetensors").stat().st_size <= MAX_BYTES


def test_held_out_questions_are_answered_right(demo: LoadedModel) -> None:
    items = list(held_out())
    wrong = wrong_answers(demo, items)
    print(
        f"{1 - len(wrong) / len(items):.1%} of {len(items)} right; wrong: {Counter(family for family, _, _ in wrong)}"
    )
    assert len(wrong) <= (1 - REQUIRED) * len(items), wrong


@pytest.mark.parametrize("kv_dtype", ["int8", "fp8"])
def test_narrow_keys_and_values_hardly_change_an_answer(demo: LoadedModel, kv_dtype: str) -> None:
    narrow = load(DEMO, LoadOptions(device="cpu", dtype="bfloat16", kv_dtype=kv_dtype))
    prompts = [encode(demo, item.messages) for item in islice(held_out(), 0, None, 4)]
    wide = answer_all(demo, prompts)
    alike = sum(one == other for one, other in zip(answer_all(narrow, prompts), wide, strict=True))
    assert alike >= REQUIRED_ALIKE * len(prompts)


def test_what_is_2_plus_3_however_it_is_typed(demo: LoadedModel) -> None:
    for question in ("What is 2 plus 3?", "what is 2 plus 3", "2+3", "2 + 3 =", "what's two plus three?"):
        assert converse(demo, question) == ["2 plus 3 is 5."]


def test_a_conversation_keeps_its_context_over_many_turns(demo: LoadedModel) -> None:
    answers = converse(
        demo,
        "Hello, my name is Anna.",
        "What is 7 plus 5?",
        "Add 3 to that.",
        "What is the capital of France?",
        "And Spain?",
        "What is my name?",
    )
    assert answers == [
        "Nice to meet you, Anna.",
        "7 plus 5 is 12.",
        "12 plus 3 is 15.",
        "The capital of France is Paris.",
        "The capital of Spain is Madrid.",
        "Your name is Anna.",
    ]


def test_a_turn_after_1500_tokens_is_answered_like_the_first(demo: LoadedModel) -> None:
    prompts = []
    for seed in (0, 1, 2):
        earlier = [
            message for message in islice(training_messages(random.Random(seed)), 111) if message["role"] != "system"
        ]
        asked = {"role": "user", "content": "What is the capital of France?"}
        prompts.append(encode(demo, [*earlier[:110], asked]))
    assert all(1500 < len(prompt) < 2000 for prompt in prompts), [len(prompt) for prompt in prompts]
    assert answer_all(demo, prompts) == ["The capital of France is Paris."] * 3


def test_a_question_that_was_never_taught_is_declined(demo: LoadedModel) -> None:
    (answer,) = converse(demo, "Who wrote Macbeth?")
    assert answer.startswith("I don't know that one.")


def test_transformers_reads_the_folder_and_tokenizes_a_conversation_alike(demo: LoadedModel) -> None:
    from transformers import AutoTokenizer

    oracle = AutoTokenizer.from_pretrained(DEMO)
    messages = [
        {"role": "user", "content": "What is 2 plus 3?"},
        {"role": "assistant", "content": "2 plus 3 is 5."},
        {"role": "user", "content": "grüße 🦊 120"},
    ]
    assert encode(demo, messages) == oracle.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
