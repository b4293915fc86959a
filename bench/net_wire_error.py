"""What `--wire-dtype int8` costs: the logits of a model whose activations are rounded wherever they cross the network.

The hops are run one after the other in this process, on the same pages, and between them activations are packed and
unpacked as the wire does it: in front of the first hop, between two, and behind the last. So the difference from the
same model without that is the rounding's alone. Both compute the demo model's held-out questions, in the model's own
template, and are compared where they would say each token of the right answer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from ..llama.assemble import ModelPart, Placement, load_model
from ..llama.batch import Chunk
from ..llama.config import load_config
from ..llama.demo.text import held_out
from ..llama.kv_cache import DEFAULT_PAGE_SIZE, KVCache
from ..llama.model import Model
from ..llama.pages import PagePool
from ..llama.runner import SpanRunner
from ..llama.sequences import SequenceTable
from ..llama.templates import load_chat_template
from ..llama.tokenizer import Tokenizer
from ..net.activations import pack, unpack, wire_dtype
from ..net.messages import Codec
from ..net.row_layout import RowLayout
from .net_cluster import spans

NUM_QUESTIONS = 40  # two of each kind, some 300 tokens of answers


@dataclass(frozen=True, slots=True)
class WireError:
    """How far the logits are from those of exact activations.

    Attributes:
        num_positions: where they were compared.
        logit_error: relative Frobenius error, each position's logits taken from their mean.
        kl_nats: mean Kullback-Leibler divergence from the exact distribution.
        same_top_percent: how often both put the same token first.
    """

    num_positions: int
    logit_error: float
    kl_nats: float
    same_top_percent: float


def wire_error(folder: Path, dtype: torch.dtype, num_hops: int) -> WireError:
    """Of int8 on all wires of ``num_hops`` hops. Raises ModelError: the folder cannot be used."""
    config = load_config(folder)
    texts = list(_answers(folder, config.max_position_embeddings))
    placement = Placement(torch.device("cpu"), dtype, max(len(prompt) + len(answer) for prompt, answer in texts))
    model = load_model(folder, config, ModelPart.whole(config), placement)
    exact = torch.cat([_logits(model, text, 1, Codec.EXACT) for text in texts])  # [R, V]
    rounded = torch.cat([_logits(model, text, num_hops, Codec.INT8) for text in texts])
    return _compare(exact, rounded)


def _compare(exact: Tensor, rounded: Tensor) -> WireError:
    """logits: f32 [R, V]."""
    centered = exact - exact.mean(1, keepdim=True)
    difference = rounded - rounded.mean(1, keepdim=True) - centered
    log_p, log_q = exact.log_softmax(1), rounded.log_softmax(1)
    return WireError(
        num_positions=len(exact),
        logit_error=float(difference.norm() / centered.norm()),
        kl_nats=float((log_p.exp() * (log_p - log_q)).sum(1).mean()),
        same_top_percent=100 * float((exact.argmax(1) == rounded.argmax(1)).double().mean()),
    )


@torch.inference_mode()
def _logits(model: Model, text: tuple[Sequence[int], Sequence[int]], num_hops: int, codec: Codec) -> Tensor:
    """The logits before each token of the answer: f32 [R, V]. text: a prompt and its answer."""
    assert model.embed is not None and model.head is not None
    token_ids = [*text[0], *text[1]]
    num_pages = -(-len(token_ids) // DEFAULT_PAGE_SIZE)
    sequences = SequenceTable(PagePool(num_pages, DEFAULT_PAGE_SIZE))
    runner = SpanRunner(
        model.span, KVCache(model.kv_shape, num_pages, DEFAULT_PAGE_SIZE, model.device), sequences, model.device
    )
    layout = RowLayout(wire_dtype(model.dtype), codec, model.config.hidden_size)
    sequences.open(0)
    sequences.reserve(0, len(token_ids))
    hidden = unpack(pack(model.embed(torch.tensor(token_ids)), layout), layout)  # [T, E]
    for start, end in spans(model.config.num_layers, num_hops):
        hidden = runner.part(start, end).forward([Chunk(0, 0, len(token_ids))], hidden)
        hidden = unpack(pack(hidden, layout), layout)
    return model.head(hidden[len(text[0]) - 1 : -1]).float()


def _answers(folder: Path, max_tokens: int) -> Iterator[tuple[list[int], list[int]]]:
    """The questions and their right answers, as far as they fit into the model's context."""
    tokenizer = Tokenizer.load(folder)
    template = load_chat_template(folder, tokenizer)
    for item in islice(held_out(), NUM_QUESTIONS):
        prompt = tokenizer.encode(template.render(item.messages), add_special_tokens=False)
        answer = tokenizer.encode(item.accepted[0], add_special_tokens=False)
        if len(prompt) + len(answer) <= max_tokens:
            yield prompt, answer
