"""Makes the demo model: ``python -m hopformer.llama.demo.train --out DIR``, on two cores in under an hour.

Tokenizer, weights and configuration are all made from the text that text.py generates; nothing is downloaded. Only the
assistant's tokens are learned. Every row of a batch is a dialogue from its beginning, so most rows are short, and some
are as long as the context that later turns need.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import logging
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from tokenizers import Tokenizer
from torch import Tensor

from .measure import Score, score
from .network import DemoLlama, DemoShape
from .text import held_out, training_messages
from .vocabulary import ChatEncoder, save_tokenizer, train_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast to train; ``minutes`` is wall time and decides the learning rate's course too."""

    minutes: float = 50.0
    seed: int = 0
    num_workers: int = 2
    batch_tokens: int = 1024  # of each worker
    # Rows of so many tokens, and how often: short ones teach first turns, long ones far memory.
    lengths: tuple[tuple[int, float], ...] = ((64, 0.38), (128, 0.4), (256, 0.12), (1024, 0.07), (2048, 0.03))
    peak_rate: float = 2e-3
    final_rate: float = 5e-5
    warmup: float = 0.02
    weight_decay: float = 0.1
    average_decay: float = 0.995  # of the averaged weights that are saved
    report_s: float = 360.0

    def rate(self, progress: float) -> float:
        """Learning rate after this share of the time: linear up, then linear down."""
        if progress < self.warmup:
            return self.peak_rate * (progress / self.warmup + 0.01)
        left = max(0.0, 1 - (progress - self.warmup) / (1 - self.warmup))
        return self.final_rate + (self.peak_rate - self.final_rate) * left


def batches(encoder: ChatEncoder, plan: Plan) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (ids, learned): [B, N] int64 and [B, N] bool, where learned marks the tokens to be predicted."""
    rng = random.Random(plan.seed)
    lengths, shares = zip(*plan.lengths, strict=True)
    while True:
        length = rng.choices(lengths, shares)[0]
        rows = [_row(encoder, rng, length) for _ in range(max(1, plan.batch_tokens // length))]
        yield torch.tensor([ids for ids, _ in rows]), torch.tensor([learned for _, learned in rows])


def _row(encoder: ChatEncoder, rng: random.Random, length: int) -> tuple[list[int], list[bool]]:
    ids: list[int] = []
    learned: list[bool] = []
    for message in training_messages(rng):
        more_ids, more_learned = encoder.message(message)
        ids += more_ids
        learned += more_learned
        if len(ids) >= length:
            break
    return ids[:length], learned[:length]


def loss_of(model: DemoLlama, ids: Tensor, learned: Tensor) -> Tensor:
    """Mean cross entropy of the learned tokens. ids: [B, N] int64; learned: [B, N] bool."""
    targets = learned[:, 1:]
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.logits(model(ids)[:, :-1][targets])  # [T, V]
    return F.cross_entropy(logits.float(), ids[:, 1:][targets])


def set_gradients(model: DemoLlama, parts: Sequence[tuple[Tensor, Tensor]], workers: ThreadPoolExecutor) -> float:
    """Sets every weight's gradient to its mean over the parts, one part a worker; returns the mean loss.

    One thread a part meets the others once in a step, where one operator over all threads would meet in each.
    """
    weights = list(model.parameters())

    def one(part: tuple[Tensor, Tensor]) -> tuple[float, tuple[Tensor, ...]]:
        loss = loss_of(model, *part)
        return loss.item(), torch.autograd.grad(loss, weights)

    results = list(workers.map(one, parts))
    for weight, *gradients in zip(weights, *(gradients for _, gradients in results), strict=True):
        weight.grad = torch.stack(gradients).mean(0)
    return sum(loss for loss, _ in results) / len(results)


def train(model: DemoLlama, encoder: ChatEncoder, plan: Plan, out: Path) -> DemoLlama:
    """Trains for the planned time and returns the averaged model, written to ``out`` at every report."""
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(_groups(model, plan), betas=(0.9, 0.98), fused=True)
    sample = list(held_out(seed=2, rounds=6))
    stream, step, progress = batches(encoder, plan), 0, 0.0
    began = reported = time.monotonic()
    with ThreadPoolExecutor(plan.num_workers, initializer=torch.set_num_threads, initargs=(1,)) as workers:
        while progress < 1:
            for group in optimizer.param_groups:
                group["lr"] = plan.rate(progress)
            loss = set_gradients(model, [next(stream) for _ in range(plan.num_workers)], workers)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            _average(average, model, min(plan.average_decay, (step + 1) / (step + 10)))
            now = time.monotonic()
            if step % 50 == 0:
                logger.info("step=%d %.1f min loss=%.4f", step, (now - began) / 60, loss)
            if now - reported > plan.report_s:
                save_weights(average, out)
                logger.info("step=%d held out: %s", step, score(rounded(average), encoder, sample).table())
                reported = time.monotonic()
            step += 1
            progress = (time.monotonic() - began) / (plan.minutes * 60)
    return average


def _groups(model: DemoLlama, plan: Plan) -> list[dict[str, object]]:
    """Matrices decay, norms and the embedding do not."""
    decayed = [weight for name, weight in model.named_parameters() if weight.dim() == 2 and "embed" not in name]
    others = [weight for name, weight in model.named_parameters() if weight.dim() != 2 or "embed" in name]
    return [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}]


@torch.no_grad()
def _average(average: DemoLlama, model: DemoLlama, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def rounded(model: DemoLlama) -> DemoLlama:
    """A copy whose weights and arithmetic are bf16, as the saved model's are."""
    return copy.deepcopy(model).to(torch.bfloat16)


def save_weights(model: DemoLlama, out: Path) -> None:
    """model.safetensors in bf16 with the names of a LlamaForCausalLM; the head is the embedding."""
    tensors = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    (out / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))


def save_configs(encoder: ChatEncoder, shape: DemoShape, out: Path) -> None:
    """config.json, generation_config.json, tokenizer.json and tokenizer_config.json."""
    generation = {"do_sample": False, "eos_token_id": encoder.end_id, "pad_token_id": encoder.pad_id}
    for name, content in (
        ("config.json", shape.config(encoder.end_id, encoder.pad_id)),
        ("generation_config.json", generation),
    ):
        (out / name).write_text(json.dumps(content, indent=2) + "\n")
    save_tokenizer(encoder.tokenizer, out, shape.max_position_embeddings)


def make_tokenizer(shape: DemoShape, seed: int, num_messages: int = 60_000) -> Tokenizer:
    """A tokenizer of exactly the model's vocabulary, from a text of its own."""
    messages = itertools.islice(training_messages(random.Random(seed)), num_messages)
    texts = (f"{message['role']}\n{message['content']}" for message in messages)
    tokenizer = train_tokenizer(texts, shape.vocab_size)
    assert tokenizer.get_vocab_size() == shape.vocab_size
    return tokenizer


def main() -> None:
    """Parses the flags, trains, writes the folder and measures it."""
    parser = argparse.ArgumentParser(prog="python -m hopformer.llama.demo.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write, made if missing")
    parser.add_argument("--minutes", type=float, default=Plan().minutes, help="wall minutes of training")
    parser.add_argument(
        "--start-from", type=Path, help="folder of an earlier run, whose weights and tokenizer are taken"
    )
    parser.add_argument("--peak-rate", type=float, default=Plan().peak_rate, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=Plan().seed)
    flags = parser.parse_args()
    plan = Plan(minutes=flags.minutes, seed=flags.seed, peak_rate=flags.peak_rate)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # the workers are the parallelism; a second team of threads would spin beside them
    flags.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(flags.seed)
    shape = DemoShape()
    model = DemoLlama(shape)
    if flags.start_from is None:
        encoder = ChatEncoder(make_tokenizer(shape, flags.seed + 1000))
    else:
        encoder = ChatEncoder(Tokenizer.from_file(str(flags.start_from / "tokenizer.json")))
        model.load_state_dict(load_file(flags.start_from / "model.safetensors"))
    save_configs(encoder, shape, flags.out)
    model = train(model, encoder, plan, flags.out)
    save_weights(model, flags.out)
    report(score(rounded(model), encoder, held_out()))


def report(result: Score) -> None:
    """Logs the whole measurement and some wrong answers."""
    logger.info("held out: %s", result.table())
    for item, answer in result.wrong[:30]:
        logger.info("%s: %r got %r, wanted %r", item.family, item.messages[-1]["content"], answer, item.accepted[0])


if __name__ == "__main__":
    main()
