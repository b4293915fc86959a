"""Tokenizer: the ids that transformers' AutoTokenizer gives on the same folder, and one clear line when it cannot."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from tokenizers import processors

from hopformer.errors import TokenizerError
from hopformer.llama.tokenizer import Tokenizer

FolderMaker = Callable[..., Path]
KINDS = ["byte-level", "byte-fallback", "metaspace"]
TEXTS = [
    "",
    " ",
    "hello world",
    "  two spaces before, three   inside, one after ",
    "line\nbreaks\n\n\r\n\ttabs",
    "naïve café 日本語 한국 👨‍👩‍👧‍👦 e\u0301 \u00a0",
    "<s>hello</s>\nworld</s> there <s>",
    "[INST] hi [/INST]",
    "a<|end|>b <|end|> c",
]


@pytest.fixture(autouse=True)
def quiet_transformers() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


def assert_same_ids(folder: Path) -> Tokenizer:
    ours, theirs = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        for add_special_tokens in (True, False):
            ids = theirs.encode(text, add_special_tokens=add_special_tokens)
            assert ours.encode(text, add_special_tokens=add_special_tokens) == ids, text
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.vocab_size == len(theirs)
    return ours


@pytest.mark.parametrize("kind", KINDS)
def test_ids_equal_those_of_transformers(kind: str, tokenizer_folder: FolderMaker) -> None:
    assert_same_ids(tokenizer_folder(kind, added=("<|end|>",), unk_token="<unk>", pad_token="</s>"))


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_that_only_the_config_names_are_added_in_the_same_order(
    kind: str, tokenizer_folder: FolderMaker
) -> None:
    folder = tokenizer_folder(
        kind,
        pad_token="<pad>",
        eos_token={"__type": "AddedToken", "content": "<|end|>", "lstrip": False, "rstrip": True, "normalized": False},
        image_token="<image>",
        additional_special_tokens=["<|one|>", "<|two|>"],
        added_tokens_decoder={
            "900": {"content": "<late>", "lstrip": False, "rstrip": False, "normalized": False, "special": True},
            "899": {"content": "[INST]", "lstrip": False, "rstrip": False, "normalized": False, "special": False},
        },
    )
    tokenizer = assert_same_ids(folder)
    assert tokenizer.eos_token_id == tokenizer.token_id("<|end|>")
    assert tokenizer.is_special(tokenizer.encode("<late>", add_special_tokens=False)[-1])


def test_special_tokens_map_counts_where_the_config_lists_no_added_tokens(tokenizer_folder: FolderMaker) -> None:
    folder = tokenizer_folder("byte-level", eos_token=None)
    special = {"eos_token": {"content": "<|end|>", "lstrip": True, "rstrip": False, "normalized": False}}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    assert assert_same_ids(folder).special_tokens["eos_token"] == "<|end|>"


@pytest.mark.parametrize(
    "config",
    [{}, {"legacy": False}, {"legacy": True}, {"add_prefix_space": False}, {"add_bos_token": False}],
    ids=lambda config: json.dumps(config),
)
@pytest.mark.parametrize("model_type", [None, "llama", "mistral"])
def test_spaces_follow_the_class_that_a_llama_folder_declares(
    config: dict[str, Any], model_type: str | None, tokenizer_folder: FolderMaker
) -> None:
    folder = tokenizer_folder("byte-fallback", ("<|end|>",), tokenizer_class="LlamaTokenizer", unk_token=None, **config)
    if model_type is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        if model_type == "mistral":
            config_path = folder / "tokenizer_config.json"
            config_path.write_text(json.dumps({**json.loads(config_path.read_text()), "unk_token": "<unk>"}))
    assert_same_ids(folder)


def test_a_byte_level_folder_that_declares_llama_tokenizer_stays_byte_level(tokenizer_folder: FolderMaker) -> None:
    assert_same_ids(tokenizer_folder("byte-level", tokenizer_class="LlamaTokenizer"))


@pytest.mark.parametrize("add_bos_token", [True, False, None])
def test_the_beginning_token_is_the_post_processors_matter(
    add_bos_token: bool | None, tokenizer_folder: FolderMaker
) -> None:
    assert not assert_same_ids(tokenizer_folder("byte-level", add_bos_token=add_bos_token)).adds_bos
    assert assert_same_ids(tokenizer_folder("byte-fallback", add_bos_token=add_bos_token)).adds_bos


def test_padding_and_truncation_left_on_in_the_file_change_nothing(tokenizer_folder: FolderMaker) -> None:
    folder = tokenizer_folder("byte-level")
    path = str(folder / "tokenizer.json")
    backend = tokenizers.Tokenizer.from_file(path)
    backend.enable_padding(length=64)
    backend.enable_truncation(max_length=4)
    backend.save(path)
    tokenizer = Tokenizer.load(folder)
    text = "hello world, how are you? hello there"
    ids = tokenizer.encode(text, add_special_tokens=True)
    assert tokenizer.decode(ids) == text
    assert 4 < len(ids) < 64


def test_a_folder_without_config_has_ids_but_no_named_tokens(tokenizer_folder: FolderMaker) -> None:
    folder = tokenizer_folder("byte-level")
    (folder / "tokenizer_config.json").unlink()
    tokenizer = assert_same_ids(folder)
    assert tokenizer.bos_token_id is None and tokenizer.eos_token_id is None


def test_byte_tokens_are_those_that_decode_as_bytes(tokenizer_folder: FolderMaker) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder("byte-fallback"))
    assert sorted(tokenizer.byte_tokens.values()) == list(range(256))
    assert tokenizer.byte_tokens[tokenizer.encode("\x07", add_special_tokens=False)[-1]] == 7
    assert not Tokenizer.load(tokenizer_folder("byte-level")).byte_tokens


def test_stop_texts_that_are_special_tokens_become_ids(tokenizer_folder: FolderMaker) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder("byte-level", ("<|end|>",)))
    assert tokenizer.stop_ids(["\n", "hello", "<|end|>", "<|unheard|>"]) == ((tokenizer.token_id("<|end|>"),),)


def test_lone_surrogates_count_as_replacement_characters(tokenizer_folder: FolderMaker) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder("byte-level"))
    ids = tokenizer.encode("a\udc80b \ud83d\ude42", add_special_tokens=False)
    assert tokenizer.decode(ids) == "a\N{REPLACEMENT CHARACTER}b 🙂"


def test_ids_beyond_the_vocabulary_have_no_text(tokenizer_folder: FolderMaker) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder("byte-level"))
    assert tokenizer.decode([tokenizer.vocab_size, 10**6]) == ""


def assert_one_line(folder: Path, *words: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_folder_without_a_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    assert_one_line(tmp_path, "tokenizer.json", str(tmp_path))


def test_a_folder_with_only_a_sentencepiece_model_says_how_to_get_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\x00")
    assert_one_line(tmp_path, "tokenizer.model", "tokenizer.json", "save_pretrained")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"not json",
        b"\xff\xfe",
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}',
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}',
    ],
)
def test_a_malformed_tokenizer_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert_one_line(tmp_path, "tokenizer.json")


@pytest.mark.parametrize("content", ["{", "[1, 2]", '{"added_tokens_decoder": {"x": {}}}'])
def test_a_malformed_config_is_one_line(content: str, tokenizer_folder: FolderMaker) -> None:
    folder = tokenizer_folder("byte-level")
    (folder / "tokenizer_config.json").write_text(content)
    assert_one_line(folder, "tokenizer_config.json")


def test_a_post_processor_with_an_end_token_is_followed(tokenizer_folder: FolderMaker) -> None:
    folder = tokenizer_folder("byte-level")
    path = str(folder / "tokenizer.json")
    backend = tokenizers.Tokenizer.from_file(path)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    backend.save(path)
    assert assert_same_ids(folder).encode("hello", add_special_tokens=True)[-1] == 1
