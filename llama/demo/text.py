"""The demo model's training text: dialogues of many turns, and the held-out questions it is measured on.

Everything is drawn from a seeded generator, so the same seed is the same text. A dialogue mixes the families, asks
again in short ("And Spain?"), goes on from a result ("Add 3 to that."), tells and asks the user's name, and writes as
people type: without capitals, without a question mark, with a slip of the finger.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from . import facts, phrasings
from .families import (
    COUNTING,
    DIFFERENCES,
    FAMILIES,
    HELD_OUT_STARTS,
    LARGEST,
    SMALL,
    SUMS,
    Family,
    Turn,
    made_up_word,
)

Message = dict[str, str]

_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a friendly and helpful assistant.",
    "Answer shortly.",
    "You are the demo model of hopformer.",
    "Be kind.",
)
_SLIPS = ("capital", "opposite", "colour", "greeting", "who", "thanks", "goodbye", "unknown")
_NO_NAME = "You have not told me your name."


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A conversation that ends with a question training never saw, and every right answer to it."""

    family: str
    messages: list[Message]
    accepted: tuple[str, ...]


class Dialogue:
    """One endless conversation; remembers the topic, the last result and the name the user gave."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._topic: Family | None = None
        self._result: int | None = None
        self._name: str | None = None

    def turn(self) -> Turn:
        """The next trained question with its answers, its text already as sloppy as people type."""
        turn = self._continued() or self._asked_or_told_name() or self._new_topic()
        self._result = turn.result
        return Turn(turn.family, sloppy(self._rng, turn), turn.accepted)

    def _continued(self) -> Turn | None:
        """A short question about the topic of the last turn, one time in five."""
        if self._topic is None or self._rng.random() > 0.2:
            return None
        if self._result is not None and self._rng.random() < 0.4:
            return self._rng.choice((SUMS, DIFFERENCES)).go_on(self._rng, self._result, held_out=False)
        return self._topic.follow(self._rng, held_out=False)

    def _asked_or_told_name(self) -> Turn | None:
        """The name is asked for more often when it was told, or "you have not told me" would be the safe answer."""
        chance = self._rng.random()
        if chance < 0.03:
            self._topic = None
            self._name = draw_name(self._rng)
            return name_told(self._rng, self._name, held_out=False)
        if chance < (0.04 if self._name is None else 0.13):
            self._topic = None
            return name_asked(self._rng, self._name, held_out=False)
        return None

    def _new_topic(self) -> Turn:
        families, shares = zip(*FAMILIES, strict=True)
        self._topic = self._rng.choices(families, shares)[0]
        return self._topic.ask(self._rng, held_out=False)


def draw_name(rng: random.Random) -> str:
    """A listed name or a made-up one, half and half."""
    return rng.choice(facts.NAMES) if rng.random() < 0.5 else made_up_word(rng).capitalize()


def name_told(rng: random.Random, name: str, held_out: bool) -> Turn:
    """``My name is Tom.``"""
    template = rng.choice(phrasings.NAME_IS.whole(held_out))
    return Turn(
        "name", template.replace("{x}", name), (f"Nice to meet you, {name}.",), keeps_case=name not in facts.NAMES
    )


def name_asked(rng: random.Random, name: str | None, held_out: bool) -> Turn:
    """``What is my name?``"""
    question = rng.choice(phrasings.NAME_ASKED.all(held_out)).replace("{n}", "my name")
    return Turn("name", question, (_NO_NAME if name is None else f"Your name is {name}.",))


def sloppy(rng: random.Random, turn: Turn) -> str:
    """The question as somebody types it: half of the time without capitals, a full stop, or with a slip."""
    text = turn.question
    if rng.random() < 0.5:
        return text[:1].upper() + text[1:]
    if not turn.keeps_case and rng.random() < 0.6:
        text = text.lower()
    elif not turn.keeps_case and rng.random() < 0.2:
        text = text.upper()
    if text[-1] in ".?!" and len(text) > 3 and rng.random() < 0.6:
        text = text[:-1] + rng.choice(("", "", "", "", " ?", "!", "??", "."))
    elif rng.random() < 0.1:
        text += " please"
    if turn.family in _SLIPS and len(text) > 8 and rng.random() < 0.08:
        slip = rng.randrange(len(text))  # one letter is missing, or comes twice
        text = text[:slip] + text[slip + 1 :] if rng.random() < 0.5 else text[: slip + 1] + text[slip:]
    return text


def training_messages(rng: random.Random) -> Iterator[Message]:
    """The messages of one endless dialogue: perhaps a system prompt, then user and assistant in turn."""
    if rng.random() < 0.1:
        yield {"role": "system", "content": rng.choice(_SYSTEM_PROMPTS)}
    dialogue = Dialogue(rng)
    while True:
        turn = dialogue.turn()
        yield {"role": "user", "content": turn.question}
        yield {"role": "assistant", "content": rng.choice(turn.accepted)}


def held_out(seed: int = 1, rounds: int = 40) -> Iterator[HeldOut]:
    """``rounds`` questions of each kind: held-out phrasings of every family, and held-out pairs and starts of numbers.

    One in two opens the conversation; before the others stand one to four trained turns.
    """
    rng = random.Random(seed)
    for _ in range(rounds):
        for turn in _held_out_turns(rng):
            messages = _earlier(rng) if rng.random() < 0.5 else []
            messages.append({"role": "user", "content": sloppy(rng, turn)})
            yield HeldOut(turn.family, messages, turn.accepted)
        yield _held_out_name(rng)
        yield _held_out_follow_up(rng)


def _held_out_turns(rng: random.Random) -> Iterator[Turn]:
    for arithmetic in (SUMS, DIFFERENCES):
        for limit in (SMALL, LARGEST):
            yield arithmetic.ask_pair(rng, *arithmetic.draw(rng, held_out=True, limit=limit), held_out=False)
            yield arithmetic.ask_pair(rng, *arithmetic.draw(rng, limit=limit), held_out=True)
    yield COUNTING.ask_from(rng, rng.choice(sorted(HELD_OUT_STARTS)), held_out=False)
    for family, _ in FAMILIES[2:]:
        yield family.ask(rng, held_out=True)


def _earlier(rng: random.Random) -> list[Message]:
    """One to four trained turns about whatever; the user's name is not among them."""
    messages: list[Message] = []
    dialogue = Dialogue(rng)
    for _ in range(rng.randrange(1, 5)):
        turn = dialogue.turn()
        messages.append({"role": "user", "content": turn.question})
        messages.append({"role": "assistant", "content": rng.choice(turn.accepted)})
    return messages


def _held_out_name(rng: random.Random) -> HeldOut:
    """The name is told in a held-out phrasing and asked for in another, after up to four turns."""
    name = draw_name(rng)
    told, asked = name_told(rng, name, held_out=True), name_asked(rng, name, held_out=True)
    messages = [{"role": "user", "content": told.question}, {"role": "assistant", "content": told.accepted[0]}]
    between = _earlier(rng) if rng.random() < 0.5 else []
    if any("Nice to meet you" in message["content"] for message in between):
        between = []
    return HeldOut("name", [*messages, *between, {"role": "user", "content": asked.question}], asked.accepted)


def _held_out_follow_up(rng: random.Random) -> HeldOut:
    """A trained question, its answer, and in a held-out short form the same about something else, or what is next."""
    while True:
        family = rng.choice(FAMILIES)[0]
        first = family.ask(rng, held_out=False)
        if first.result is not None and rng.random() < 0.5:
            second = rng.choice((SUMS, DIFFERENCES)).go_on(rng, first.result, held_out=True)
        else:
            second = family.follow(rng, held_out=True)
        if second is not None:
            answer = rng.choice(first.accepted)
            messages = [{"role": "user", "content": first.question}, {"role": "assistant", "content": answer}]
            return HeldOut("follow-up", [*messages, {"role": "user", "content": second.question}], second.accepted)
