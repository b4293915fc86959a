"""Conversations kept in files: what save writes, what load takes, and what both refuse."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hopformer.errors import UsageError
from hopformer.llama.chat import Chat
from hopformer.llama.templates import load_chat_template
from hopformer.llama.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(chat_folder: Callable[..., Path]) -> Tokenizer:
    return Tokenizer.load(chat_folder("byte-level", "chatml"))


@pytest.fixture
def open_chat(chat_folder: Callable[..., Path], tokenizer: Tokenizer) -> Callable[[], Chat]:
    template = load_chat_template(chat_folder("byte-level", "chatml"), tokenizer)
    return lambda: Chat(tokenizer, template)


@pytest.fixture
def chat(open_chat: Callable[[], Chat], tokenizer: Tokenizer) -> Chat:
    """A conversation of one turn."""
    chat = open_chat()
    chat.prompt_for("hello")
    chat.answered(tokenizer.encode("hello there<|im_end|>", add_special_tokens=False), "hello there")
    return chat


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def test_a_saved_conversation_is_one_line_of_ids_and_goes_on_when_loaded(
    chat: Chat, open_chat: Callable[[], Chat], here: Path, tokenizer: Tokenizer
) -> None:
    chat.save(here, "talk.csv")
    assert (here / "talk.csv").read_text() == ",".join(map(str, chat.token_ids)) + "\n"
    other = open_chat()
    other.load(here, "talk.csv")
    assert other.token_ids == chat.token_ids
    for question in ["how are you?", "bye"]:
        assert other.prompt_for(question) == chat.prompt_for(question)
        for each in (chat, other):
            each.answered(tokenizer.encode("naïve<|im_end|>", add_special_tokens=False), "naïve")
    other.save(here, "talk.csv")
    assert (here / "talk.csv").read_text() == ",".join(map(str, chat.token_ids)) + "\n"


def test_an_unanswered_question_is_not_saved(chat: Chat, here: Path) -> None:
    answered = chat.token_ids
    chat.prompt_for("wait")
    chat.save(here, "talk.csv")
    assert (here / "talk.csv").read_text() == ",".join(map(str, answered)) + "\n"


def test_loading_drops_what_was_said_before_and_clear_drops_what_was_loaded(
    chat: Chat, open_chat: Callable[[], Chat], here: Path
) -> None:
    first = open_chat().prompt_for("hello")
    (here / "talk.csv").write_text("5,6,7")
    chat.load(here, "talk.csv")
    assert chat.token_ids == (5, 6, 7)
    assert chat.prompt_for("more")[:3] == [5, 6, 7]
    chat.clear()
    assert chat.prompt_for("hello") == first


def test_a_conversation_goes_on_when_the_template_cannot_continue_it(
    tokenizer_folder: Callable[..., Path], here: Path
) -> None:
    source = "{% for m in messages %}{{ '<' + m.content | upper + '>' }}{% endfor %}"
    folder = tokenizer_folder("byte-level", chat_template=source)
    tokenizer = Tokenizer.load(folder)
    chat = Chat(tokenizer, load_chat_template(folder, tokenizer))
    (here / "talk.csv").write_text("5,6,7\n")
    chat.load(here, "talk.csv")
    prompt = chat.prompt_for("more")
    assert prompt[:3] == [5, 6, 7]
    assert tokenizer.decode(prompt[3:]) == "<MORE>"


BAD_NAMES = ["", ".", "..", "a/b", "../talk", "/talk", "a\\b", "talk\0", "a/", "x" * 300]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_not_a_plain_file_name_is_refused(name: str, chat: Chat, here: Path) -> None:
    before = chat.token_ids
    for use in (chat.save, chat.load):
        with pytest.raises(UsageError) as caught:
            use(here, name)
        assert "\n" not in str(caught.value)
    assert chat.token_ids == before
    assert list(here.iterdir()) == []
    assert not (here.parent / "talk").exists()


def test_an_empty_conversation_is_not_saved(open_chat: Callable[[], Chat], here: Path) -> None:
    with pytest.raises(UsageError, match="nothing to save"):
        open_chat().save(here, "talk.csv")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("content", ["notes to myself", "", "1,2\n3,4\n", "1,2,x"])
def test_a_file_that_is_something_else_is_not_overwritten(content: str, chat: Chat, here: Path) -> None:
    (here / "notes").write_text(content)
    with pytest.raises(UsageError, match="notes exists"):
        chat.save(here, "notes")
    assert (here / "notes").read_text() == content


def test_a_folder_and_a_dangling_link_are_neither_overwritten_nor_loaded(chat: Chat, here: Path) -> None:
    (here / "folder").mkdir()
    (here / "link").symlink_to(here.parent / "elsewhere")
    for name in ("folder", "link"):
        with pytest.raises(UsageError, match=name):
            chat.save(here, name)
        with pytest.raises(UsageError, match=name):
            chat.load(here, name)
    assert not (here.parent / "elsewhere").exists()


@pytest.mark.parametrize(
    "content",
    ["", "\n", "hello", "1,,2", "1,2,", "-1", "1.5", "1 2", "1;2", "1\n2", "0x10", "٣", "1,99999999999", "\x00"],
)
def test_a_file_that_is_not_a_conversation_is_refused_and_the_present_one_kept(
    content: str, chat: Chat, here: Path
) -> None:
    before = chat.token_ids
    (here / "talk.csv").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=r"talk\.csv") as caught:
        chat.load(here, "talk.csv")
    assert "\n" not in str(caught.value)
    assert chat.token_ids == before


def test_an_id_of_another_model_is_named(chat: Chat, here: Path, tokenizer: Tokenizer) -> None:
    (here / "talk.csv").write_text(f"1,{tokenizer.vocab_size - 1}")
    chat.load(here, "talk.csv")
    assert chat.token_ids == (1, tokenizer.vocab_size - 1)
    (here / "talk.csv").write_text(f"1,{tokenizer.vocab_size}")
    with pytest.raises(UsageError, match=f"token id {tokenizer.vocab_size},"):
        chat.load(here, "talk.csv")
    assert chat.token_ids == (1, tokenizer.vocab_size - 1)


def test_a_missing_file_is_one_line(chat: Chat, here: Path) -> None:
    with pytest.raises(UsageError, match=r"talk\.csv is not a file"):
        chat.load(here, "talk.csv")


def test_a_file_larger_than_any_context_is_refused(chat: Chat, here: Path) -> None:
    (here / "talk.csv").write_bytes(b"1," * (8 * 2**20) + b"1")
    with pytest.raises(UsageError, match="not a saved conversation"):
        chat.load(here, "talk.csv")
