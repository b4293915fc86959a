"""What rounding the weights costs: the logits of the quantised model beside those of the same model unquantised.

A model with a tokenizer answers the demo model's held-out questions, in its own chat template, and is looked at where
it would say each token of the right answer. One without a tokenizer, such as a random one, gets random ids and is
looked at everywhere. Both models compute the same tokens, so that the difference is that of the weights (and, on a CPU
with 8 bits, of the activations that are rounded with them).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..llama.assemble import ModelPart, Placement, load_model
from ..llama.batch import Chunk
from ..llama.config import ModelConfig, load_config
from ..llama.demo.text import HeldOut, held_out
from ..llama.kv_cache import DEFAULT_PAGE_SIZE, KVCache
from ..llama.load import find_weight_bits
from ..llama.model import Model
from ..llama.pages import PagePool
from ..llama.runner import SpanRunner
from ..llama.sequences import SequenceTable
from ..llama.templates import load_chat_template
from ..llama.tokenizer import Tokenizer
from .rows import Conditions

NUM_QUESTIONS = 80  # four of each kind, some 600 tokens of answers
NUM_RANDOM, RANDOM_TOKENS = 4, 128
_CONDITIONS = ("model", "shape", "dtype", "quantize")  # of a run's, those that matter here


@dataclass(frozen=True, slots=True)
class Text:
    """Token ids, of which those from ``first`` on are looked at: each by the logits of the position before it."""

    token_ids: list[int]
    first: int


@dataclass(frozen=True, slots=True)
class QuantErrorRow:
    """How far the quantised model's logits are from the unquantised one's.

    Attributes:
        text: what both computed.
        num_positions: where they were compared.
        logit_error: relative Frobenius error, each position's logits taken from their mean.
        kl_nats: mean Kullback-Leibler divergence of the quantised model's distribution from the other's.
        same_top_percent: how often both put the same token first.
        perplexity: of the text's own next tokens; None for random ids.
        perplexity_unquantized: the same without quantisation.
    """

    conditions: Conditions
    text: str
    num_positions: int
    logit_error: float
    kl_nats: float
    same_top_percent: float
    perplexity: float | None
    perplexity_unquantized: float | None

    def as_json(self) -> dict[str, Any]:
        """Flat: the machine, the conditions, the measures."""
        fields = asdict(self)
        conditions = fields.pop("conditions")
        shared = {name: conditions[name] for name in _CONDITIONS}
        return {"bench": "quant_error", **conditions["machine"], **shared, **fields}


def bench_quant_error(
    folder: Path, dtype: torch.dtype, conditions: Conditions, device: torch.device | None = None
) -> QuantErrorRow:
    """Load the model in ``folder`` without and with ``conditions.quantize``, and compare; on a CPU if not told.

    Raises:
        ModelError: the folder cannot be used.
        UsageError: the quantisation means nothing.
    """
    config = load_config(folder)
    has_tokenizer = (folder / "tokenizer.json").exists()
    texts = list(_answers(folder, config) if has_tokenizer else _random_ids(config))
    placement = Placement(device or torch.device("cpu"), dtype, max(len(text.token_ids) for text in texts))
    before = _logits_of(folder, placement, texts)
    after = _logits_of(folder, replace(placement, weight_bits=find_weight_bits(conditions.quantize)), texts)
    targets = torch.tensor([token_id for text in texts for token_id in text.token_ids[text.first :]])
    perplexities = [_perplexity(logits, targets) if has_tokenizer else None for logits in (after, before)]
    return QuantErrorRow(
        conditions,
        f"right answers to {len(texts)} held-out questions" if has_tokenizer else "random ids",
        before.shape[0],
        *_compare(before, after),
        *perplexities,
    )


def _compare(before: Tensor, after: Tensor) -> tuple[float, float, float]:
    """logits f32 [R, V] of either model -> logit_error, kl_nats, same_top_percent."""
    centered = before - before.mean(1, keepdim=True)
    difference = (after - after.mean(1, keepdim=True)) - centered
    log_p, log_q = before.log_softmax(1), after.log_softmax(1)
    kl = (log_p.exp() * (log_p - log_q)).sum(1).mean()
    same = (before.argmax(1) == after.argmax(1)).double().mean()
    return float(difference.norm() / centered.norm()), float(kl), 100 * float(same)


def _perplexity(logits: Tensor, targets: Tensor) -> float:
    """logits: f32 [R, V]; targets: int64 [R]."""
    return math.exp(float(torch.nn.functional.cross_entropy(logits, targets)))


@torch.inference_mode()
def _logits_of(folder: Path, placement: Placement, texts: Sequence[Text]) -> Tensor:
    """The logits before each token that is looked at, of all texts one behind the other: f32 [R, V], on the CPU."""
    config = load_config(folder)
    model = load_model(folder, config, ModelPart.whole(config), placement)
    return torch.cat([_logits(model, text).cpu() for text in texts])


def _logits(model: Model, text: Text) -> Tensor:
    """The logits before each token of ``text`` that is looked at: f32 [R, V]."""
    assert model.embed is not None and model.head is not None
    length = len(text.token_ids)
    num_pages = -(-length // DEFAULT_PAGE_SIZE)
    sequences = SequenceTable(PagePool(num_pages, DEFAULT_PAGE_SIZE))
    cache = KVCache(model.kv_shape, num_pages, DEFAULT_PAGE_SIZE, model.device)
    sequences.open(0)
    sequences.reserve(0, length)
    hidden = model.embed(torch.tensor(text.token_ids, device=model.device))  # [T, E]
    hidden = SpanRunner(model.span, cache, sequences, model.device).forward([Chunk(0, 0, length)], hidden)
    return model.head(hidden[text.first - 1 : -1])


def _answers(folder: Path, config: ModelConfig) -> Iterator[Text]:
    """The held-out questions and their right answers, as far as they fit into the model's context."""
    tokenizer = Tokenizer.load(folder)
    template = load_chat_template(folder, tokenizer)

    def encode(item: HeldOut) -> Text:
        prompt = tokenizer.encode(template.render(item.messages), add_special_tokens=False)
        return Text(prompt + tokenizer.encode(item.accepted[0], add_special_tokens=False), len(prompt))

    texts = (encode(item) for item in islice(held_out(), NUM_QUESTIONS))
    return (text for text in texts if len(text.token_ids) <= config.max_position_embeddings)


def _random_ids(config: ModelConfig) -> Iterator[Text]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(NUM_RANDOM):
        length = min(RANDOM_TOKENS, config.max_position_embeddings)
        yield Text(torch.randint(config.vocab_size, (length,), generator=generator).tolist(), 1)
