"""Chat templates for models that ship none, and which of them fits a tokenizer.

Each is a format that a family of models was trained on, written as Jinja for templates.py's sandbox. ``plain`` is for
models that were trained on no format at all.
"""

from dataclasses import dataclass

from .tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class BuiltinTemplate:
    """One chat format.

    Attributes:
        source: Jinja; besides a model's own variables it may use ``turn_end``, the token that closes a turn.
        stops: texts that end an answer, besides the tokenizer's end-of-sequence token.
        has_bos: whether the source writes the beginning-of-sequence token itself.
    """

    source: str
    stops: tuple[str, ...]
    has_bos: bool = False


_CHATML = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""

_CHATML_TAGS = """
{%- for message in messages %}
    {{- '<|' + message.role + '|>\n' + message.content + turn_end + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\n' }}
{%- endif %}
"""

_LLAMA3 = """
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

_LLAMA2 = """
{%- set ns = namespace(system='') %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set ns.system = '<<SYS>>\n' + message.content | trim + '\n<</SYS>>\n\n' %}
    {%- elif message.role == 'user' %}
        {{- bos_token + '[INST] ' + ns.system + message.content | trim + ' [/INST]' }}
        {%- set ns.system = '' %}
    {%- else %}
        {{- ' ' + message.content | trim + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
"""

_MISTRAL = """
{%- set ns = namespace(system='') %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set ns.system = message.content + '\n\n' %}
    {%- elif message.role == 'user' %}
        {{- '[INST] ' + ns.system + message.content + '[/INST]' }}
        {%- set ns.system = '' %}
    {%- else %}
        {{- ' ' + message.content | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""

_GEMMA = """
{%- set ns = namespace(system='') %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set ns.system = message.content | trim + '\n\n' %}
    {%- else %}
        {%- set role = 'model' if message.role == 'assistant' else message.role %}
        {{- '<start_of_turn>' + role + '\n' + ns.system + message.content | trim + '<end_of_turn>\n' }}
        {%- set ns.system = '' %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\n' }}
{%- endif %}
"""

_ALPACA = """
{%- set ns = namespace(system='Below is an instruction that describes a task. '
        + 'Write a response that appropriately completes the request.') %}
{%- if messages and messages[0].role == 'system' %}
    {%- set ns.system = messages[0].content %}
{%- endif %}
{{- ns.system + '\n\n' }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '### Instruction:\n' + message.content + '\n\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '### Response:\n' + message.content + eos_token + '\n\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '### Response:\n' }}
{%- endif %}
"""

_PLAIN = """
{%- for message in messages %}
    {{- message.role | capitalize + ': ' + message.content + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant:' }}
{%- endif %}
"""

BUILTIN_TEMPLATES = {
    "chatml": BuiltinTemplate(_CHATML, ("<|im_end|>",)),
    "chatml-tags": BuiltinTemplate(_CHATML_TAGS, ("<|end|>", "<|user|>")),
    "llama3": BuiltinTemplate(_LLAMA3, ("<|eot_id|>", "<|eom_id|>"), has_bos=True),
    "llama2": BuiltinTemplate(_LLAMA2, ("[INST]",), has_bos=True),
    "mistral": BuiltinTemplate(_MISTRAL, ("[INST]",), has_bos=True),
    "gemma": BuiltinTemplate(_GEMMA, ("<end_of_turn>",), has_bos=True),
    "alpaca": BuiltinTemplate(_ALPACA, ("\n### Instruction:",)),
    "plain": BuiltinTemplate(_PLAIN, ("\nUser:", "\nSystem:")),
}

# The first row of which the tokenizer has every token; what is more telling comes first.
_MARKS = (
    ("chatml", ("<|im_start|>",)),
    ("llama3", ("<|start_header_id|>",)),
    ("chatml-tags", ("<|user|>", "<|assistant|>")),
    ("gemma", ("<start_of_turn>",)),
    ("llama2", ("<<SYS>>",)),
    ("mistral", ("[INST]",)),
    ("alpaca", ("### Instruction:",)),
)
_LLAMA2_SIZES = range(32000, 32064)  # Llama 2's vocabulary; fine-tunes add a padding token or a few


def detect(tokenizer: Tokenizer) -> str:
    """Name of the built-in template that the tokenizer's special tokens speak for; ``plain`` if none does."""
    for name, marks in _MARKS:
        if all(tokenizer.is_added(mark) for mark in marks):
            return name
    ends = (tokenizer.token_id("<s>"), tokenizer.token_id("</s>"))
    if ends == (1, 2) and tokenizer.byte_tokens and tokenizer.vocab_size in _LLAMA2_SIZES:
        return "alpaca" if tokenizer.is_added("[PAD]") else "llama2"  # Alpaca added that token to Llama's vocabulary
    return "plain"


def turn_end(tokenizer: Tokenizer) -> str:
    """The token that closes a turn between role tags: Phi's own, or the end of sequence as Zephyr and TinyLlama do."""
    return "<|end|>" if tokenizer.is_added("<|end|>") else tokenizer.special_tokens.get("eos_token", "")
