"""Decode over 1, 2 or 4 hops beside the same model on one machine, token for token, in turns.

Nodes, caller and the local model have the same number of threads, and compute the same prompts greedily. What a hop
adds is the difference of two turns of the same round, so that a machine that is slow for a while is slow for both.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ..llama.config import load_config
from ..llama.load import LoadOptions, load
from ..net.messages import Codec
from .contender import HopformerContender
from .net_cluster import opened, served, spans

LOCAL = "local"
CODECS: Mapping[str, Codec] = {"exact": Codec.EXACT, "int8": Codec.INT8}
_WARM_TOKENS = 4


@dataclass(frozen=True, slots=True)
class DecodeEffort:
    """What a turn computes, and how many turns everybody takes."""

    prompt_tokens: int
    decode_tokens: int
    rounds: int


@dataclass(frozen=True, slots=True)
class DecodeTurn:
    """Seconds of the prefill and of each decode step, and the tokens that were drawn."""

    prefill_s: float
    steps_s: Sequence[float]
    token_ids: Sequence[int]


def decode_over_hops(
    folder: Path, dtype: str, num_hops: int, num_threads: int, effort: DecodeEffort
) -> dict[str, list[DecodeTurn]]:
    """Turns of LOCAL and of each codec, by name; turn i of all was made in round i, on the same prompt.

    Raises:
        HopformerError: the model cannot be loaded, or its nodes are not reached.
    """
    max_context = effort.prompt_tokens + 1 + max(effort.decode_tokens, _WARM_TOKENS)
    options = LoadOptions(device="cpu", dtype=dtype, max_context=max_context)
    vocab_size = load_config(folder).vocab_size
    with ExitStack() as stack:
        stack.enter_context(_threads(num_threads))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hopformer-bench-")))
        layers = spans(load_config(folder).num_layers, num_hops)
        nodes = stack.enter_context(served(folder, layers, options, num_threads, scratch))
        contenders = {LOCAL: HopformerContender(load(folder, options).engine, dtype)}
        for name, codec in CODECS.items():
            remote = stack.enter_context(opened(folder, options, nodes, codec))
            contenders[name] = HopformerContender(remote.model.engine, dtype)
        prompts = _prompts(vocab_size, effort.prompt_tokens)
        first = next(prompts)
        for contender in contenders.values():
            _take_turn(contender, first, _WARM_TOKENS)
        turns: dict[str, list[DecodeTurn]] = {name: [] for name in contenders}
        for number in range(effort.rounds):
            prompt, order = next(prompts), list(contenders)
            for name in order[number % len(order) :] + order[: number % len(order)]:
                turns[name].append(_take_turn(contenders[name], prompt, effort.decode_tokens))
        for contender in contenders.values():
            contender.reset()
    return turns


def _take_turn(contender: HopformerContender, prompt: Sequence[int], decode_tokens: int) -> DecodeTurn:
    contender.reset()
    began = time.perf_counter()
    token_ids = [contender.prefill(prompt)]
    prefill_s = time.perf_counter() - began
    steps_s = []
    for _ in range(decode_tokens):
        began = time.perf_counter()
        token_ids += contender.decode(1)
        steps_s.append(time.perf_counter() - began)
    return DecodeTurn(prefill_s, steps_s, token_ids)


def _prompts(vocab_size: int, num_tokens: int) -> Iterator[list[int]]:
    """Random prompts, each with another first token, so that no prefix cache knows any of it."""
    generator = torch.Generator().manual_seed(0)
    for first in range(vocab_size):
        yield [first, *torch.randint(vocab_size, (num_tokens - 1,), generator=generator).tolist()]


@contextmanager
def _threads(num_threads: int) -> Iterator[None]:
    """PyTorch's number of threads, for a while; it is the process's."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
