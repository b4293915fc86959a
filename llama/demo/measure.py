"""Greedy answers of the training twin to the held-out questions, scored family by family."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from .network import DemoLlama
from .text import HeldOut
from .vocabulary import ChatEncoder

_MAX_ANSWER = 96  # tokens; the longest story has 70
_ROWS = 32  # in one pass


@dataclass(slots=True)
class Score:
    """Right answers of all asked, by family, and some of the wrong ones."""

    right: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[HeldOut, str]] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        """Share of right answers over all families."""
        return self.right.total() / max(1, self.asked.total())

    def add(self, item: HeldOut, answer: str) -> None:
        """Counts one answer."""
        self.asked[item.family] += 1
        if answer.strip() in item.accepted:
            self.right[item.family] += 1
        else:
            self.wrong.append((item, answer))

    def table(self) -> str:
        """One line: the whole, then each family."""
        families = (f"{name} {self.right[name] / asked:.0%}" for name, asked in sorted(self.asked.items()))
        return f"{self.accuracy:.1%} of {self.asked.total()}: " + ", ".join(families)


def score(model: DemoLlama, encoder: ChatEncoder, items: Iterable[HeldOut]) -> Score:
    """Asks every item, greedily, in batches of prompts of like length."""
    prompts = sorted(((encoder.prompt(item.messages), item) for item in items), key=lambda pair: len(pair[0]))
    result = Score()
    for start in range(0, len(prompts), _ROWS):
        rows = prompts[start : start + _ROWS]
        for (_, item), answer in zip(rows, answers(model, encoder, [ids for ids, _ in rows]), strict=True):
            result.add(item, answer)
    return result


@torch.no_grad()
def answers(
    model: DemoLlama, encoder: ChatEncoder, prompts: Sequence[list[int]], max_tokens: int = _MAX_ANSWER
) -> list[str]:
    """The greedy answer to each prompt. Whole rows are run again for each token: simple, and short enough here."""
    rows = [list(prompt) for prompt in prompts]
    running = set(range(len(rows)))
    for _ in range(max_tokens):
        order = sorted(running)
        longest = max(len(rows[index]) for index in order)
        ids = torch.tensor([rows[index] + [encoder.pad_id] * (longest - len(rows[index])) for index in order])
        ends = torch.tensor([len(rows[index]) - 1 for index in order])
        hidden = model(ids)[torch.arange(len(order)), ends]  # [B, E]
        for index, token in zip(order, model.logits(hidden).argmax(-1).tolist(), strict=True):
            if token == encoder.end_id:
                running.discard(index)
            else:
                rows[index].append(token)
        if not running:
            break
    return [encoder.tokenizer.decode(row[len(prompt) :]) for row, prompt in zip(rows, prompts, strict=True)]
