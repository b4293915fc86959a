"""Chat: prompts that equal transformers' ids, and a context that only grows."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import transformers

from hopformer.errors import TemplateError
from hopformer.llama.chat import Chat
from hopformer.llama.templates import ChatTemplate, Message, load_chat_template
from hopformer.llama.tokenizer import Tokenizer

FolderMaker = Callable[..., Path]
QUESTIONS = ["hello", "  how are\n\nyou? ", "日本語 👨‍👩‍👧‍👦 e\u0301", "<|im_end|></s> and ### Instruction:"]
ANSWERS = ["hello there", "naïve café.", "🙂 日本"]
ENDS = {"chatml": "<|im_end|>", "gemma": "<end_of_turn>", "llama3": "<|eot_id|>", "phi3": "<|end|>"}  # else </s>


@pytest.fixture(autouse=True)
def quiet_transformers() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


def open_chat(folder: Path, system: str | None = None) -> Chat:
    tokenizer = Tokenizer.load(folder)
    return Chat(tokenizer, load_chat_template(folder, tokenizer), system)


def expected_ids(folder: Path, messages: list[Message]) -> list[int]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def say(role: str, content: str) -> Message:
    return {"role": role, "content": content}


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback", "metaspace"])
def test_the_first_prompt_has_the_ids_of_transformers(
    family: str, kind: str, question: str, chat_folder: FolderMaker
) -> None:
    folder = chat_folder(kind, family)
    assert open_chat(folder).prompt_for(question) == expected_ids(folder, [say("user", question)])


def end_id(tokenizer: Tokenizer, family: str) -> int:
    found = tokenizer.token_id(ENDS.get(family, "</s>"))
    assert found is not None
    return found


def letters(tokenizer: Tokenizer, text: str) -> list[int]:
    """One token a letter, as no tokenizer would encode a word, but as a model may generate it."""
    found = [tokenizer.token_id(letter) for letter in text]
    return [token_id for token_id in found if token_id is not None]


@pytest.mark.parametrize("family_name", ["chatml", "gemma", "llama2", "llama3", "mistral", "phi3", "zephyr"])
@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_a_conversation_in_canonical_tokens_has_the_ids_of_transformers(
    family_name: str, kind: str, chat_folder: FolderMaker
) -> None:
    folder = chat_folder(kind, family_name)
    tokenizer = Tokenizer.load(folder)
    messages = [say("system", "Be brief.")] if family_name != "gemma" else []
    chat = open_chat(folder, "Be brief." if messages else None)
    for question, answer in zip(QUESTIONS, ANSWERS, strict=False):
        messages.append(say("user", question))
        prompt = chat.prompt_for(question)
        assert prompt == expected_ids(folder, messages)
        messages.append(say("assistant", answer))
        whole = expected_ids(folder, messages)
        if whole[: len(prompt)] == prompt:  # the answer as it is encoded between its neighbours
            generated = whole[len(prompt) :]
            generated = generated[: generated.index(end_id(tokenizer, family_name)) + 1]
        else:
            assert family_name == "mistral"  # the system message moves to the newest turn
            generated = [*tokenizer.encode(answer, add_special_tokens=False), end_id(tokenizer, family_name)]
        chat.answered(generated, tokenizer.decode(generated))
    assert chat.prompt_for("bye") == expected_ids(folder, [*messages, say("user", "bye")])


@pytest.mark.parametrize("family_name", ["chatml", "llama3", "gemma", "phi3", "zephyr"])
@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
@pytest.mark.parametrize("ended", [True, False])
def test_the_next_prompt_is_the_last_one_and_what_was_generated_and_the_new_turn(
    family_name: str, kind: str, ended: bool, chat_folder: FolderMaker
) -> None:
    folder = chat_folder(kind, family_name)
    tokenizer = Tokenizer.load(folder)
    template = load_chat_template(folder, tokenizer)
    chat = Chat(tokenizer, template)
    messages: list[Message] = []
    context: list[int] = []
    for question in ["hello", "how are you?", "naïve café"]:
        messages.append(say("user", question))
        prompt = chat.prompt_for(question)
        assert prompt[: len(context)] == context
        if kind == "byte-level":
            assert tokenizer.decode(prompt, skip_special_tokens=False) == template.render(messages)
        answer = letters(tokenizer, "hello")
        if ended:
            answer.append(end_id(tokenizer, family_name))
        chat.answered(answer, tokenizer.decode(answer))
        messages.append(say("assistant", "hello"))
        context = prompt + answer
        assert list(chat.token_ids) == context
        assert chat.num_tokens == len(context)


def test_a_thought_that_the_template_forgets_stays_in_the_context(chat_folder: FolderMaker) -> None:
    folder = chat_folder("byte-level", "thinking")
    tokenizer = Tokenizer.load(folder)
    chat = open_chat(folder)
    answer = [*tokenizer.encode("so</think>hello", add_special_tokens=False), end_id(tokenizer, "thinking")]
    context = chat.prompt_for("hello") + answer
    chat.answered(answer, "so</think>hello")
    for _ in range(2):
        prompt = chat.prompt_for("more")
        assert prompt[: len(context)] == context
        assert tokenizer.decode(prompt[len(context) :], False) == "<|user|>more<|assistant|><think>\n"
        chat.answered(answer, "so</think>hello")
        context = prompt + answer


def test_an_aborted_answer_without_tokens_is_an_empty_turn(chat_folder: FolderMaker) -> None:
    folder = chat_folder("byte-level", "chatml")
    tokenizer = Tokenizer.load(folder)
    chat = open_chat(folder)
    prompt = chat.prompt_for("hello")
    chat.answered([], "")
    suffix = tokenizer.decode(chat.prompt_for("again")[len(prompt) :], skip_special_tokens=False)
    assert suffix == "<|im_end|>\n<|im_start|>user\nagain<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_that_changes_answers_is_rendered_afresh(tokenizer_folder: FolderMaker) -> None:
    source = "{% for m in messages %}{{ m.role + ': ' + m.content | upper + '\\n' }}{% endfor %}"
    folder = tokenizer_folder("byte-level", chat_template=source)
    chat = open_chat(folder)
    chat.prompt_for("hello")
    chat.answered(Tokenizer.load(folder).encode("there", add_special_tokens=False), "there")
    messages = [say("user", "hello"), say("assistant", "there"), say("user", "bye")]
    assert chat.prompt_for("bye") == expected_ids(folder, messages)


def test_the_tokens_of_a_stop_text_do_not_stay_in_the_context(tokenizer_folder: FolderMaker) -> None:
    folder = tokenizer_folder("byte-level")
    tokenizer = Tokenizer.load(folder)
    chat = open_chat(folder)
    assert load_chat_template(folder, tokenizer).name == "plain"
    prompt = chat.prompt_for("hello")
    answer = tokenizer.encode(" there", add_special_tokens=False)
    chat.answered([*answer, *letters(tokenizer, "ĊUser:")], " there")
    assert list(chat.token_ids) == prompt + answer
    text = tokenizer.decode(chat.prompt_for("bye"))
    assert text == "User: hello\nAssistant: there\nUser: bye\nAssistant:"


def test_the_text_behind_an_answer_gets_no_space_before_its_first_word(tokenizer_folder: FolderMaker) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder("byte-fallback"))
    chat = Chat(tokenizer, ChatTemplate("bare", "{% for m in messages %}{{ m.content + '/' }}{% endfor %}"))
    chat.prompt_for("hello")
    chat.answered(tokenizer.encode("there", add_special_tokens=False), "there")
    assert tokenizer.decode(chat.prompt_for("world")) == "hello/ there/world/"


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_a_token_with_the_end_of_the_answer_and_the_start_of_a_stop_is_split(
    kind: str, tokenizer_folder: FolderMaker
) -> None:
    folder = tokenizer_folder(kind, ("<|user|>", "<|assistant|>"))
    tokenizer = Tokenizer.load(folder)
    chat = open_chat(folder)
    chat.prompt_for("hello")
    chat.answered(tokenizer.encode("hello there", add_special_tokens=False), "hello th")
    text = tokenizer.decode(chat.prompt_for("bye"), skip_special_tokens=False)
    assert "hello th</s>" in text and "there" not in text


def test_undo_drops_the_question_and_clear_drops_everything_but_the_system_message(chat_folder: FolderMaker) -> None:
    folder = chat_folder("byte-level", "chatml")
    chat = open_chat(folder, "Be brief.")
    first = chat.prompt_for("hello")
    assert chat.num_tokens == len(first)
    chat.undo()
    assert chat.num_tokens == 0
    assert chat.prompt_for("hello") == first
    chat.answered(letters(Tokenizer.load(folder), "hello"), "hello")
    before = chat.token_ids
    chat.prompt_for("again")
    chat.undo()
    assert chat.token_ids == before
    chat.clear()
    assert chat.num_tokens == 0
    assert chat.prompt_for("hello") == first


def test_a_template_that_refuses_a_question_leaves_the_conversation_as_it_was(chat_folder: FolderMaker) -> None:
    folder = chat_folder("byte-level", "gemma")
    chat = open_chat(folder, system="Be brief.")
    with pytest.raises(TemplateError, match="System role not supported"):
        chat.prompt_for("hello")
    assert chat.num_tokens == 0


def test_text_that_looks_like_the_mark_of_an_answer_is_only_text(chat_folder: FolderMaker) -> None:
    folder = chat_folder("byte-level", "chatml")
    tokenizer = Tokenizer.load(folder)
    chat = open_chat(folder)
    context: list[int] = []
    for question in ["hopformer-answer-0-ends", "hopformer-answer-x-1-ends", "hello"]:
        prompt = chat.prompt_for(question)
        assert prompt[: len(context)] == context
        assert question in tokenizer.decode(prompt[len(context) :])
        answer = [*letters(tokenizer, "hello"), end_id(tokenizer, "chatml")]
        chat.answered(answer, "hello")
        context = prompt + answer
