"""Contender: what `hopformer bench decode` times, ours and the baselines alike, and ours.

Every contender computes the same prompt, draws greedily, and computes one token a step. Only `prefill` and `decode` are
timed; loading and `reset` are not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from .. import __version__
from ..llama.assemble import ModelPart, Placement, load_model
from ..llama.config import ModelConfig
from ..llama.cuda_graphs import GraphPool
from ..llama.engine import Engine, Output, Request
from ..llama.kv_cache import DEFAULT_PAGE_SIZE
from ..llama.load import find_weight_bits
from ..llama.runner import LocalRunner
from .work import name_of_dtype

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Workload:
    """The model that all contenders load, and how.

    Attributes:
        folder: in Hugging Face layout.
        dtype: of weights and activations.
        max_context: tokens of a prompt and its answer.
        num_threads: CPU threads.
        scratch: an empty folder for a baseline's own format of the weights.
        quantize: "none", "int8" or "int4"; a baseline takes its own format of that many bits, if it has one.
        device: where everybody computes.
    """

    folder: Path
    config: ModelConfig
    dtype: torch.dtype
    max_context: int
    num_threads: int
    scratch: Path
    quantize: str = "none"
    device: torch.device = CPU


@dataclass(frozen=True, slots=True)
class Absent:
    """A baseline that cannot run here, and what would change that."""

    name: str
    reason: str


class Contender(Protocol):
    """A loaded model.

    Attributes:
        name: what the rows call it.
        version: of the software that runs.
        weights: its format of them, a name in work.py.
    """

    name: str
    version: str
    weights: str

    def reset(self) -> None:
        """Forget the sequence."""
        ...

    def prefill(self, token_ids: Sequence[int]) -> int:
        """Compute a prompt on an empty cache; returns the token drawn behind it."""
        ...

    def decode(self, num_tokens: int) -> list[int]:
        """Compute the token drawn last, draw the next, and so on for ``num_tokens`` steps; returns those drawn."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


OpenContender = Callable[[Workload], Contender | Absent]


class HopformerContender:
    """The engine as a chat uses it: scheduler, pages, sampler and all, but no tokenizer."""

    name = "hopformer"
    version = __version__

    def __init__(self, engine: Engine, weights: str) -> None:
        self.weights = weights
        self._engine = engine
        self._num_requests = 0

    @classmethod
    def open(cls, workload: Workload) -> "HopformerContender":
        """Load the model, with memory for two sequences: the running one, and the last one in the prefix cache."""
        weight_bits = find_weight_bits(workload.quantize)
        placement = Placement(workload.device, workload.dtype, workload.max_context, weight_bits)
        model = load_model(workload.folder, workload.config, ModelPart.whole(workload.config), placement)
        num_pages = 2 * -(-workload.max_context // DEFAULT_PAGE_SIZE)
        runner = LocalRunner(model, num_pages, DEFAULT_PAGE_SIZE, workload.max_context)
        if workload.device.type == "cuda":
            runner.prepare_decode(1, GraphPool(workload.device).capture)
        weights = name_of_dtype(workload.dtype) if weight_bits is None else workload.quantize
        return cls(Engine(runner, lambda token_ids: ""), weights)

    @property
    def _request_id(self) -> str:
        return f"request-{self._num_requests}"

    def reset(self) -> None:
        """See Contender."""
        self._engine.cancel(self._request_id)

    def prefill(self, token_ids: Sequence[int]) -> int:
        """See Contender. The prompt must not begin like an earlier one, which the prefix cache would know."""
        self._num_requests += 1
        self._engine.add(Request(self._request_id, token_ids, max_tokens=self._engine.max_context))
        output = self._next()
        assert output.num_cached == 0, "a prompt that the prefix cache knows measures nothing"
        return output.token_ids[0]

    def decode(self, num_tokens: int) -> list[int]:
        """See Contender."""
        return [self._next().token_ids[0] for _ in range(num_tokens)]

    def close(self) -> None:
        """See Contender."""
        del self._engine

    def _next(self) -> Output:
        """Step until a token is drawn: at once in decode, after all its chunks for a prompt."""
        while True:
            for output in self._engine.step():
                return output
