"""The line that a chat begins with."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hopformer.cli.conversation import Conversation


@pytest.mark.parametrize(("quantize", "weights"), [("none", "bfloat16"), ("int4", "bfloat16 with int4 weights")])
def test_the_greeting_names_the_weights_as_they_run(quantize: str, weights: str) -> None:
    model: Any = SimpleNamespace(
        config=SimpleNamespace(num_layers=3),
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
        quantize=quantize,
        engine=SimpleNamespace(max_context=64),
        tokenizer=None,
        template=None,
    )
    settings: Any = None
    greeting = Conversation("demo", model, settings).greeting()
    assert greeting == f"demo: 3 layers, {weights} on cpu, a context of 64 tokens"
