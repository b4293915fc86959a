"""Model folders with the chat template of one family each.

The templates in published_templates/ are written anew from the formats that the families document, for comparison with
transformers: ChatML as Qwen has it, Llama 2 and 3, Mistral, Gemma, Zephyr, Phi 3, and one that hides earlier thoughts.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FAMILIES = {path.stem: path for path in sorted((Path(__file__).parent / "published_templates").glob("*.jinja"))}
_MARK = re.compile(r"<\|\w+\|>|<\w+_of_turn>|<</?SYS>>|\[/?INST\]")


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each family's name in turn."""
    return request.param


@pytest.fixture
def chat_folder(tokenizer_folder: Callable[..., Path]) -> Callable[..., Path]:
    """``chat_folder(kind, family)`` writes a tokenizer that has the family's template and its special tokens."""

    def write(kind: str, family: str, **config: Any) -> Path:
        source = FAMILIES[family].read_text(encoding="utf-8")
        marks = tuple(dict.fromkeys(_MARK.findall(source)))
        return tokenizer_folder(kind, added=marks, **{"chat_template": source, **config})

    return write
