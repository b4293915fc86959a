"""The baseline that everybody has: transformers, in eager mode, with its default attention and key-value cache.

Its weights are never quantised: it is what the others save time over, and what they lose accuracy against.

The loop is written here, around the model's forward pass, because `generate` adds work of its own to every step: what
is compared is the model, at its best.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from .contender import Absent, Workload
from .work import name_of_dtype

NAME = "transformers"
HOW_TO_GET = "not installed; pip install 'hopformer[bench]'"
_ROOT = Path(__file__).resolve().parents[1]


class TransformersContender:
    """AutoModelForCausalLM with a DynamicCache."""

    name = NAME

    def __init__(self, model: Any, weights: str) -> None:
        self.weights = weights
        self.version = version("transformers")
        self._model = model
        # Before transformers 5.24 the argument had another name, which later ones warn of
        parameters = signature(model.forward).parameters
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"
        self._cache: Any
        self._last: torch.Tensor = torch.empty(1, 0, dtype=torch.int64)  # the token drawn last, [1, 1]
        self.reset()

    def reset(self) -> None:
        """See Contender."""
        from transformers import DynamicCache

        self._cache = DynamicCache(config=self._model.config)

    def prefill(self, token_ids: Sequence[int]) -> int:
        """See Contender."""
        return self._step(torch.tensor([token_ids], device=self._model.device))

    def decode(self, num_tokens: int) -> list[int]:
        """See Contender."""
        return [self._step(self._last) for _ in range(num_tokens)]

    def close(self) -> None:
        """See Contender."""
        self._model = self._cache = None

    @torch.inference_mode()
    def _step(self, token_ids: torch.Tensor) -> int:
        """token_ids: int64 [1, T] -> the token drawn behind them."""
        cache = {self._cache_argument: self._cache}  # the model appends to it
        output = self._model(input_ids=token_ids, use_cache=True, logits_to_keep=1, return_dict=True, **cache)
        self._last = output.logits[:, -1].argmax(dim=-1, keepdim=True)  # [1, 1]
        return int(self._last)


def open_transformers(workload: Workload) -> TransformersContender | Absent:
    """Load the model, or say what is missing."""
    if find_spec("transformers") is None:
        return Absent(NAME, HOW_TO_GET)
    with _without_our_root():
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()  # the command has its own
        model: Any = AutoModelForCausalLM.from_pretrained(workload.folder, dtype=workload.dtype, local_files_only=True)
    return TransformersContender(model.to(workload.device).eval(), name_of_dtype(workload.dtype))


@contextmanager
def _without_our_root() -> Iterator[None]:
    """Take the repository root off the path, where ``python -m hopformer`` puts it when it runs there.

    With it, our kernels/ is found as the distribution of that name, which transformers looks for, and importing a
    model fails.
    """
    before = sys.path[:]
    sys.path[:] = [entry for entry in before if Path(entry or ".").resolve() != _ROOT]
    try:
        yield
    finally:
        sys.path[:] = before
