"""Chat templates: messages to the text that a model was trained to see.

A model's own template is code from a stranger, so it runs in Jinja's sandbox, set up as transformers sets it up: the
same text comes out. Its output, its ranges and what it may multiply are limited. The sandbox keeps a template away from
files and objects; it does not keep one that means harm from wasting time. What a model without a template gets is in
builtin_templates.py.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from ..errors import TemplateError, TokenizerError
from .builtin_templates import BUILTIN_TEMPLATES, BuiltinTemplate, detect, turn_end
from .foreign_json import read_json_object
from .tokenizer import Tokenizer, read_tokenizer_config

Message = Mapping[str, str]  # role and content

MAX_RENDERED_CHARS = 32 * 2**20  # the longest contexts have about 2**20 tokens, and few tokens have 32 characters
_MAX_REPEATED = 2**20  # items that a template's * may make
_MAX_EXPONENT = 64
_MARK = "hopformer-{}-says"


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template that is ready to render.

    Attributes:
        name: of a built-in template, or ``model`` for the model's own.
        source: Jinja.
        stops: texts that end an answer; those that are one special token show only as ids (``Tokenizer.stop_ids``).
        variables: what the source may use besides the messages: the tokenizer's special tokens by their names.
    """

    name: str
    source: str
    stops: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The text of a conversation, with the opening of the next answer unless that is not wanted.

        Raises:
            TemplateError: the template refuses these messages, or fails.
        """
        given = [dict(message) for message in messages]
        pieces: list[str] = []
        size = 0
        try:
            for piece in _compile(self.source).generate(
                messages=given,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.variables,
            ):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_RENDERED_CHARS:
                    raise SecurityError(f"it writes more than {MAX_RENDERED_CHARS} characters")
        except Exception as error:  # a template can raise whatever Python can
            raise TemplateError(f"the chat template {self.name} cannot be rendered: {_reason(error)}") from error
        return "".join(pieces)


def load_chat_template(folder: Path, tokenizer: Tokenizer, override: str | None = None) -> ChatTemplate:
    """The model's own template, or the built-in one that fits its tokenizer.

    Args:
        override: name of a built-in template, or of one of the model's own where it ships several.

    Raises:
        TemplateError: the name is unknown, or the model's template is malformed.
    """
    if override in BUILTIN_TEMPLATES:
        return _builtin(override, tokenizer)
    own = _own_sources(folder)
    if override is not None:
        if override not in own:
            known = ", ".join([*BUILTIN_TEMPLATES, *sorted(own.keys() - BUILTIN_TEMPLATES.keys() - {"default"})])
            raise TemplateError(f"there is no chat template {override}; choose one of {known}")
        return _own(override, own[override], tokenizer)
    if not own:
        return _builtin(detect(tokenizer), tokenizer)
    if "default" not in own:
        raise TemplateError(f"{folder} has several chat templates, none of them the default; choose: {', '.join(own)}")
    return _own("model", own["default"], tokenizer)


def _builtin(name: str, tokenizer: Tokenizer) -> ChatTemplate:
    builtin: BuiltinTemplate = BUILTIN_TEMPLATES[name]
    source = builtin.source if builtin.has_bos or not tokenizer.adds_bos else "{{- bos_token }}" + builtin.source
    variables = {"bos_token": "", "eos_token": "", "turn_end": turn_end(tokenizer), **tokenizer.special_tokens}
    return ChatTemplate(name, source, _with_eos(builtin.stops, tokenizer), variables)


def _own(name: str, source: str, tokenizer: Tokenizer) -> ChatTemplate:
    try:
        _compile(source)
    except jinja2.TemplateError as error:
        raise TemplateError(f"the model's chat template is malformed: {_reason(error)}") from error
    template = ChatTemplate(name, source, (), tokenizer.special_tokens)
    return ChatTemplate(name, source, _with_eos(_closing(template, tokenizer), tokenizer), tokenizer.special_tokens)


def _with_eos(stops: Sequence[str], tokenizer: Tokenizer) -> tuple[str, ...]:
    eos = tokenizer.special_tokens.get("eos_token")
    return tuple(dict.fromkeys([*stops, eos] if eos else stops))


def _closing(template: ChatTemplate, tokenizer: Tokenizer) -> tuple[str, ...]:
    """What ends an answer in a model's own template: the special token after it, or else the text up to the next turn.

    None where the template does not take such a conversation; the end-of-sequence token is left then.
    """
    question, answer, reply = (_MARK.format(who) for who in ("user", "model", "next-user"))
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": reply},
    ]
    try:
        between = template.render(messages).partition(answer)[2].partition(reply)[0]
    except TemplateError:
        return ()
    first = tokenizer.encode(between.lstrip(), add_special_tokens=False)[:1]
    if first and tokenizer.is_special(first[0]):
        return (tokenizer.decode(first, skip_special_tokens=False),)
    return (between.rstrip(),) if between.strip() else ()


def _own_sources(folder: Path) -> dict[str, str]:
    """The model's templates by name: files of their own count more than tokenizer_config.json."""
    try:
        files = {"default": folder / "chat_template.jinja"}
        files.update({path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))})
        sources = {name: path.read_text(encoding="utf-8") for name, path in files.items() if path.is_file()}
        if sources:
            return sources
        found = read_tokenizer_config(folder).get("chat_template")
        if found is None and (folder / "chat_template.json").is_file():
            found = read_json_object(folder / "chat_template.json", TemplateError).get("chat_template")
    except (OSError, UnicodeDecodeError, TokenizerError) as error:
        raise TemplateError(f"{folder}: the chat template cannot be read: {error}") from error
    return _named(found, folder)


def _named(found: object, folder: Path) -> dict[str, str]:
    """``chat_template`` as tokenizer_config.json spells it: one text, or a list of objects with name and template."""
    if found is None:
        return {}
    if isinstance(found, str):
        return {"default": found}
    if isinstance(found, list) and all(isinstance(entry, dict) for entry in found):
        found = {entry.get("name"): entry.get("template") for entry in found}
    if not isinstance(found, dict) or not all(isinstance(part, str) for pair in found.items() for part in pair):
        raise TemplateError(f"{folder}: chat_template is neither a text nor a list of named texts")
    return found


def _reason(error: Exception) -> str:
    """One line that says what went wrong in a template."""
    text = " ".join(str(error).split())
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"line {error.lineno}: {text}"
    return text if isinstance(error, jinja2.TemplateError) and text else f"{type(error).__name__}: {text}"


class _GenerationTag(Extension):
    """``{% generation %}``: transformers uses it to find a model's own words; here its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 reads the class's attribute)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(list(parser.parse_statements(("name:endgeneration",), drop_needle=True))).set_lineno(line)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which a short expression cannot ask for gigabytes."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and isinstance(right, int | float) and abs(right) > _MAX_EXPONENT:
            raise SecurityError(f"it raises to the power of {right}")
        for items, count in ((left, right), (right, left)):
            if isinstance(items, str | list | tuple) and isinstance(count, int) and len(items) * count > _MAX_REPEATED:
                raise SecurityError(f"it repeats {len(items)} items {count} times")
        return super().call_binop(context, operator, left, right)


@lru_cache(maxsize=8)
def _compile(source: str) -> jinja2.Template:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as a model should read it; Jinja's own filter is for web pages and escapes it."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
