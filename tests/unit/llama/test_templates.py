"""Chat templates: the text that transformers renders, limits on what a template may do, and the built-in ones."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import tokenizers
import transformers
from tokenizers import decoders, models

from hopformer.errors import TemplateError
from hopformer.llama.builtin_templates import BUILTIN_TEMPLATES, detect
from hopformer.llama.templates import MAX_RENDERED_CHARS, ChatTemplate, load_chat_template
from hopformer.llama.tokenizer import Tokenizer

FolderMaker = Callable[..., Path]
SYSTEM = {"role": "system", "content": " Be brief.\n"}
CONVERSATIONS = [
    [("user", "hello")],
    [("user", ""), ("assistant", ""), ("user", " ")],
    [("user", "  two\n\nlines \n"), ("assistant", " naïve café\n"), ("user", "日本語 👨‍👩‍👧‍👦 e\u0301")],
    [("user", "{{ 7 * 7 }} {% if %} <b>&amp;"), ("assistant", "<think>hm</think> 49"), ("user", "'\"\\ <|im_end|>")],
]


def conversation(turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.fixture(autouse=True)
def quiet_transformers() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


@pytest.mark.parametrize("turns", CONVERSATIONS)
@pytest.mark.parametrize("with_system", [False, True])
def test_text_equals_that_of_transformers(
    family: str, turns: list[tuple[str, str]], with_system: bool, chat_folder: FolderMaker
) -> None:
    folder = chat_folder("byte-level", family)
    template = load_chat_template(folder, Tokenizer.load(folder))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [SYSTEM] * (with_system and family != "gemma") + conversation(turns)
    for add_generation_prompt in (True, False):
        expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
        assert template.render(messages, add_generation_prompt) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages | tojson }}",
        "{{ messages | tojson(indent=2, sort_keys=true) }}",
        "{% for m in messages %}\n  {% if loop.index > 1 %}{% break %}{% endif %}\n  {{ m.content }}\n{% endfor %}\n\n",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{{ strftime_now('%Y') }} {{ dict(a=1) }} {{ tools is none }} {{ undefined_thing }}",
        "{% for m in messages %}{% generation %}{% set x = m.role %}{{ x }}{% endgeneration %}{{ x }}{% endfor %}",
        "{%- for m in messages -%} {{ m['content'][:3] ~ '-' * 3 }} {%- endfor -%}",
        "{% macro say(m) %}{{ m.role }}: {{ m.content | trim }}{% endmacro %}{{ messages | map('string') | join }}"
        "{% for m in messages %}{{ say(m) }}{% endfor %}",
    ],
)
def test_every_extension_works_as_in_transformers(source: str, tokenizer_folder: FolderMaker) -> None:
    folder = tokenizer_folder("byte-level", chat_template=source)
    messages = conversation(CONVERSATIONS[2])
    expected = transformers.AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False)
    assert load_chat_template(folder, Tokenizer.load(folder)).render(messages, False) == expected


def assert_one_line(error: TemplateError, *words: str) -> None:
    message = str(error)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "unsafe"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% include 'secret' %}", "loader"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "ange"),
        ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", str(MAX_RENDERED_CHARS)),
        ("{{ 'x' * 10 ** 9 }}", "repeats"),
        ("{{ 10 ** 9 * [1] }}", "repeats"),
        ("{{ 9 ** 999999999 }}", "power"),
    ],
)
def test_a_template_that_fails_or_takes_liberties_is_one_line(source: str, word: str) -> None:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate("model", source).render(conversation([("user", "hello")]))
    assert_one_line(caught.value, word)


def test_a_system_message_that_the_model_refuses_is_said_in_its_words(chat_folder: FolderMaker) -> None:
    folder = chat_folder("byte-level", "gemma")
    with pytest.raises(TemplateError, match="System role not supported"):
        load_chat_template(folder, Tokenizer.load(folder)).render([SYSTEM, *conversation([("user", "hello")])])


@pytest.mark.parametrize("chat_template", ["{% for %}", 7, [{"name": "default"}], ["x"]])
def test_a_malformed_template_is_refused_when_it_is_loaded(
    chat_template: object, tokenizer_folder: FolderMaker
) -> None:
    folder = tokenizer_folder("byte-level", chat_template=chat_template)
    with pytest.raises(TemplateError) as caught:
        load_chat_template(folder, Tokenizer.load(folder))
    assert_one_line(caught.value, "template")


def test_a_template_file_counts_more_than_the_config(tokenizer_folder: FolderMaker) -> None:
    folder = tokenizer_folder("byte-level", chat_template="from the config")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "from the old file"}))
    tokenizer = Tokenizer.load(folder)
    assert load_chat_template(folder, tokenizer).render([]) == "from the config"
    (folder / "chat_template.jinja").write_text("from the file")
    assert load_chat_template(folder, tokenizer).render([]) == "from the file"


def test_the_old_template_file_counts_when_the_config_has_none(tokenizer_folder: FolderMaker) -> None:
    folder = tokenizer_folder("byte-level")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "from the old file"}))
    assert load_chat_template(folder, Tokenizer.load(folder)).render([]) == "from the old file"


def test_of_several_templates_the_default_counts_or_the_one_that_is_named(tokenizer_folder: FolderMaker) -> None:
    both = [{"name": "default", "template": "usual"}, {"name": "rag", "template": "with documents"}]
    folder = tokenizer_folder("byte-level", chat_template=both)
    tokenizer = Tokenizer.load(folder)
    assert load_chat_template(folder, tokenizer).render([]) == "usual"
    assert load_chat_template(folder, tokenizer, "rag").render([]) == "with documents"
    with pytest.raises(TemplateError, match="rag"):
        load_chat_template(folder, tokenizer, "unheard-of")


def test_several_templates_without_a_default_ask_for_a_name(tokenizer_folder: FolderMaker) -> None:
    folder = tokenizer_folder("byte-level", chat_template=[{"name": "rag", "template": "with documents"}])
    with pytest.raises(TemplateError, match="rag"):
        load_chat_template(folder, Tokenizer.load(folder))


@pytest.mark.parametrize(
    ("family", "stops"),
    [
        ("chatml", ("<|im_end|>", "</s>")),
        ("llama3", ("<|eot_id|>", "</s>")),
        ("llama2", ("</s>",)),
        ("mistral", ("</s>",)),
        ("gemma", ("<end_of_turn>", "</s>")),
        ("phi3", ("<|end|>", "</s>")),
    ],
)
def test_the_stops_of_a_models_own_template_are_read_off_it(
    family: str, stops: tuple[str, ...], chat_folder: FolderMaker
) -> None:
    for kind in ("byte-level", "byte-fallback"):
        folder = chat_folder(kind, family)
        assert load_chat_template(folder, Tokenizer.load(folder)).stops == stops


def test_a_template_without_special_tokens_stops_at_the_next_turn(tokenizer_folder: FolderMaker) -> None:
    source = "{% for m in messages %}{{ m.role | upper + '> ' + m.content + '\n' }}{% endfor %}"
    folder = tokenizer_folder("byte-level", chat_template=source)
    assert load_chat_template(folder, Tokenizer.load(folder)).stops == ("\nUSER>", "</s>")


@pytest.mark.parametrize(
    ("added", "name"),
    [
        (("<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>"), "chatml"),
        (("<|user|>", "<|assistant|>", "<|system|>"), "chatml-tags"),
        (("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "llama3"),
        (("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"), "llama2"),
        (("[INST]", "[/INST]"), "mistral"),
        (("<start_of_turn>", "<end_of_turn>"), "gemma"),
        (("### Instruction:", "### Response:"), "alpaca"),
        (("<|user|>",), "plain"),
        ((), "plain"),
    ],
)
def test_a_model_without_a_template_gets_the_one_its_special_tokens_speak_for(
    added: tuple[str, ...], name: str, tokenizer_folder: FolderMaker
) -> None:
    folder = tokenizer_folder("byte-level", added)
    template = load_chat_template(folder, Tokenizer.load(folder))
    assert template.name == name
    assert "</s>" in template.stops
    assert "hello" in template.render(conversation([("user", "hello")]))


@pytest.mark.parametrize(("added", "name"), [((), "llama2"), (("[PAD]",), "alpaca")])
def test_llama_2s_vocabulary_is_known_by_its_size(added: tuple[str, ...], name: str) -> None:
    names = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    vocabulary = {text: i for i, text in enumerate([*names, *(f"piece{i}" for i in range(32000 - len(names)))])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    backend.decoder = decoders.ByteFallback()
    backend.add_special_tokens(list(added))
    assert detect(Tokenizer(backend, {})) == name


TWO_TURNS = conversation([("system", "S"), ("user", "U1"), ("assistant", "A1"), ("user", "U2")])
EXPECTED = {
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
    "<|im_start|>user\nU2<|im_end|>\n<|im_start|>assistant\n",
    "chatml-tags": "<|system|>\nS</s>\n<|user|>\nU1</s>\n<|assistant|>\nA1</s>\n<|user|>\nU2</s>\n<|assistant|>\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    "U1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nU2<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "llama2": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU1 [/INST] A1 </s><s>[INST] U2 [/INST]",
    "mistral": "<s>[INST] S\n\nU1[/INST] A1</s>[INST] U2[/INST]",
    "gemma": "<s><start_of_turn>user\nS\n\nU1<end_of_turn>\n<start_of_turn>model\nA1<end_of_turn>\n"
    "<start_of_turn>user\nU2<end_of_turn>\n<start_of_turn>model\n",
    "alpaca": "S\n\n### Instruction:\nU1\n\n### Response:\nA1</s>\n\n### Instruction:\nU2\n\n### Response:\n",
    "plain": "System: S\nUser: U1\nAssistant: A1\nUser: U2\nAssistant:",
}


@pytest.mark.parametrize("name", list(BUILTIN_TEMPLATES))
def test_a_built_in_template_writes_its_format(name: str, tokenizer_folder: FolderMaker) -> None:
    folder = tokenizer_folder("byte-level", chat_template="the model's own")
    template = load_chat_template(folder, Tokenizer.load(folder), name)
    assert template.name == name
    assert template.render(TWO_TURNS) == EXPECTED[name]


@pytest.mark.parametrize("name", list(BUILTIN_TEMPLATES))
def test_a_built_in_template_begins_once_with_the_beginning_token_if_the_tokenizer_adds_it(
    name: str, tokenizer_folder: FolderMaker
) -> None:
    folder = tokenizer_folder("byte-fallback")
    text = load_chat_template(folder, Tokenizer.load(folder), name).render(TWO_TURNS[:2])
    assert text.startswith("<s>") and text.count("<s>") == 1


@pytest.mark.parametrize("name", list(BUILTIN_TEMPLATES))
def test_a_built_in_template_renders_without_any_named_token(name: str, tokenizer_folder: FolderMaker) -> None:
    folder = tokenizer_folder("byte-level", bos_token=None, eos_token=None)
    template = load_chat_template(folder, Tokenizer.load(folder), name)
    assert template.render(TWO_TURNS) == EXPECTED[name].replace("<s>", "").replace("</s>", "")


def test_role_tags_close_with_the_end_token_of_phi_where_there_is_one(tokenizer_folder: FolderMaker) -> None:
    folder = tokenizer_folder("byte-level", ("<|user|>", "<|assistant|>", "<|end|>"))
    text = load_chat_template(folder, Tokenizer.load(folder)).render(conversation([("user", "U1")]))
    assert text == "<|user|>\nU1<|end|>\n<|assistant|>\n"


def test_an_unknown_name_lists_the_known_ones(tokenizer_folder: FolderMaker) -> None:
    folder = tokenizer_folder("byte-level")
    with pytest.raises(TemplateError) as caught:
        load_chat_template(folder, Tokenizer.load(folder), "unheard-of")
    assert_one_line(caught.value, "unheard-of", *BUILTIN_TEMPLATES)
