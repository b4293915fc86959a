"""The families of questions: each can ask one, with every answer that is right, and ask the same again in short.

A family draws from the random generator it is handed and keeps no state of its own. ``held_out`` asks in a phrasing
that training never sees; pairs and starts of numbers that training never sees are chosen by ``HELD_OUT_PAIRS`` and
``HELD_OUT_STARTS``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from . import facts, phrasings, remarks, stories
from .phrasings import Phrasings

SMALL = 20  # most sums are of numbers up to here
LARGEST = 99

# Of the 5050 pairs with a <= b <= 99 one in ten is never trained, in neither order, neither added nor subtracted.
HELD_OUT_PAIRS = frozenset(
    pair
    for pair in random.Random(17).sample([(a, b) for a in range(LARGEST + 1) for b in range(a, LARGEST + 1)], 505)
    if pair not in {(2, 3), (4, 4)}  # the README's own examples
)
HELD_OUT_STARTS = frozenset(random.Random(18).sample(range(11, 90), 8))


@dataclass(frozen=True, slots=True)
class Turn:
    """One question with the answers that are right; ``result`` is the number that "add 3 to that" goes on from."""

    family: str
    question: str
    accepted: tuple[str, ...]
    result: int | None = None
    keeps_case: bool = False  # its answer repeats a made-up word as it was typed


class Family(Protocol):
    """Asks questions of one kind."""

    def ask(self, rng: random.Random, held_out: bool) -> Turn:
        """A whole question."""

    def follow(self, rng: random.Random, held_out: bool) -> Turn | None:
        """The same question about something else, in short, or None when this family has no short form."""


def _follow_up(rng: random.Random, held_out: bool, x: str) -> str:
    frames = phrasings.HELD_OUT_FOLLOW_UPS if held_out else phrasings.FOLLOW_UPS
    return rng.choice(frames).replace("{x}", x)


def _phrase(rng: random.Random, family: Phrasings, held_out: bool) -> str:
    """Half of the time one of the family's own whole questions, which are fewer than what the frames make."""
    own = family.whole(held_out)
    return rng.choice(own if not family.nouns or rng.random() < 0.5 else family.all(held_out))


@dataclass(frozen=True, slots=True)
class Table:
    """Questions about one thing whose answer stands in a table."""

    name: str
    phrasings: Phrasings
    answers: Mapping[str, str]

    def ask(self, rng: random.Random, held_out: bool) -> Turn:
        """Which entry of the table, in any phrasing."""
        x = rng.choice(tuple(self.answers))
        question = _phrase(rng, self.phrasings, held_out).replace("{c}", rng.choice(("colour", "color")))
        return Turn(self.name, question.replace("{x}", x), (self.answers[x],))

    def follow(self, rng: random.Random, held_out: bool) -> Turn:
        """``And Spain?``"""
        x = rng.choice(tuple(self.answers))
        return Turn(self.name, _follow_up(rng, held_out, x), (self.answers[x],))


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Sums (sign 1) and differences (sign -1) of two numbers."""

    name: str
    phrasings: Phrasings
    sign: int

    def ask(self, rng: random.Random, held_out: bool) -> Turn:
        """A trained pair in a trained or held-out phrasing."""
        return self.ask_pair(rng, *self.draw(rng), held_out)

    def draw(self, rng: random.Random, held_out: bool = False, limit: int | None = None) -> tuple[int, int]:
        """Two numbers in either order; of the differences below zero four in five are turned around."""
        a, b = draw_pair(rng, held_out, limit)
        return (b, a) if self.sign < 0 and a < b and rng.random() < 0.8 else (a, b)

    def ask_pair(self, rng: random.Random, a: int, b: int, held_out: bool) -> Turn:
        """This very pair; small numbers are sometimes written as words."""
        template = _phrase(rng, self.phrasings, held_out)
        spelled = max(a, b) <= SMALL and "+" not in template and "-" not in template and rng.random() < 0.2
        left, right = (facts.NUMBER_WORDS[a], facts.NUMBER_WORDS[b]) if spelled else (str(a), str(b))
        return self.turn(template.replace("{a}", left).replace("{b}", right), a, b)

    def follow(self, rng: random.Random, held_out: bool) -> Turn:
        """``And 4 plus 4?``"""
        a, b = self.draw(rng)
        form = rng.choice(("{a} plus {b}", "{a} + {b}") if self.sign > 0 else ("{a} minus {b}", "{a} - {b}"))
        return self.turn(_follow_up(rng, held_out, form.format(a=a, b=b)), a, b)

    def go_on(self, rng: random.Random, result: int, held_out: bool) -> Turn | None:
        """``Add 3 to that.``, or None when there is no trained pair with a result of zero or more."""
        b = rng.randrange(SMALL + 1)
        if result > LARGEST or (min(result, b), max(result, b)) in HELD_OUT_PAIRS or result + self.sign * b < 0:
            return None
        family = phrasings.ADD_TO_THAT if self.sign > 0 else phrasings.TAKE_FROM_THAT
        return self.turn(_phrase(rng, family, held_out).replace("{b}", str(b)), result, b)

    def turn(self, question: str, a: int, b: int) -> Turn:
        """The question with its one right answer; a difference below zero is only said to be one."""
        result = a + self.sign * b
        said = f"{a} {'plus' if self.sign > 0 else 'minus'} {b} is"
        if result < 0:
            return Turn(self.name, question, (f"{said} less than zero.",))
        return Turn(self.name, question, (f"{said} {result}.",), result)


def draw_pair(rng: random.Random, held_out: bool = False, limit: int | None = None) -> tuple[int, int]:
    """Two numbers in either order; six in ten pairs are small, unless a limit says how large they get."""
    while True:
        top = limit if limit is not None else SMALL if rng.random() < 0.6 else LARGEST
        a, b = rng.randrange(top + 1), rng.randrange(top + 1)
        if not held_out and rng.random() < 0.05:
            b = a  # else one pair in sixty would be of equal numbers, too few to learn what is special about them
        if ((min(a, b), max(a, b)) in HELD_OUT_PAIRS) == held_out:
            return a, b


@dataclass(frozen=True, slots=True)
class Counting:
    """What comes after or before a number, and counting on, down, and from one number to another."""

    name: str = "counting"

    def ask(self, rng: random.Random, held_out: bool) -> Turn:
        """Any kind, from a trained start."""
        starts = [a for a in range(SMALL if rng.random() < 0.5 else LARGEST + 1) if a not in HELD_OUT_STARTS]
        return self.ask_from(rng, rng.choice(starts), held_out)

    def ask_from(self, rng: random.Random, a: int, held_out: bool) -> Turn:
        """Any kind, from this very start."""
        kind = rng.choice(("after", "before", "on", "to", "to", "to", "down" if a <= 10 else "to"))
        if kind in ("after", "before") and not (kind == "before" and a == 0):
            family = phrasings.AFTER if kind == "after" else phrasings.BEFORE
            answer = f"{a + 1} comes after {a}." if kind == "after" else f"{a - 1} comes before {a}."
            return self._turn(_phrase(rng, family, held_out), a, answer)
        if kind == "down" and a > 0:
            return self._turn(_phrase(rng, phrasings.COUNT_DOWN, held_out), a, _listed(range(a, -1, -1)))
        if kind == "to":
            end = a + rng.randrange(2, 10)
            question = _phrase(rng, phrasings.COUNT_TO, held_out).replace("{b}", str(end))
            return self._turn(question, a, _listed(range(a, end + 1)))
        return self._turn(_phrase(rng, phrasings.COUNT_ON, held_out), a, _listed(range(a + 1, a + 6)))

    def follow(self, rng: random.Random, held_out: bool) -> None:
        """Counting has no short form."""
        return None

    def _turn(self, template: str, a: int, answer: str) -> Turn:
        return Turn(self.name, template.replace("{a}", str(a)), (answer,))


def _listed(numbers: range) -> str:
    return ", ".join(map(str, numbers)) + "."


@dataclass(frozen=True, slots=True)
class Stories:
    """Stories about a named animal or person, or about any."""

    name: str = "story"

    def ask(self, rng: random.Random, held_out: bool) -> Turn:
        """Seven in ten name their subject; one in five of those in training is a made-up word."""
        if rng.random() < 0.3:
            question = _phrase(rng, phrasings.ANY_STORY, held_out)
            told = facts.STORY_SUBJECTS if held_out else (rng.choice(facts.STORY_SUBJECTS),)
            return Turn(self.name, question, tuple(story for x in told for story in stories.every_story(x)))
        subject = self._subject(rng, held_out)
        question = _phrase(rng, phrasings.STORY, held_out).replace("{x}", stories.with_article(subject))
        return Turn(self.name, question, stories.every_story(subject))

    def follow(self, rng: random.Random, held_out: bool) -> Turn:
        """``And one about a fox?``"""
        subject = self._subject(rng, held_out)
        question = _follow_up(rng, held_out, f"one about {stories.with_article(subject)}")
        return Turn(self.name, question, stories.every_story(subject))

    def _subject(self, rng: random.Random, held_out: bool) -> str:
        if held_out:
            return rng.choice(facts.STORY_SUBJECTS + facts.HELD_OUT_SUBJECTS)
        return made_up_word(rng) if rng.random() < 0.2 else rng.choice(facts.STORY_SUBJECTS)


def made_up_word(rng: random.Random) -> str:
    """Two or three syllables that mean nothing: what teaches copying instead of remembering."""
    return "".join(rng.choice("bdfghjklmnprstvw") + rng.choice("aeiou") for _ in range(rng.randrange(2, 4)))


@dataclass(frozen=True, slots=True)
class SmallTalk:
    """Greetings, who are you, thanks and goodbye."""

    def ask(self, rng: random.Random, held_out: bool) -> Turn:
        """Any remark."""
        remark = rng.choice(remarks.SMALL_TALK)
        return Turn(remark.family, rng.choice(remark.held_out if held_out else remark.trained), (remark.answer,))

    def follow(self, rng: random.Random, held_out: bool) -> None:
        """A remark has no short form."""
        return None


@dataclass(frozen=True, slots=True)
class Untaught:
    """Questions that the model cannot answer: off-topic ones, and taught phrasings about what is not in the tables."""

    name: str = "unknown"

    def ask(self, rng: random.Random, held_out: bool) -> Turn:
        """Half are off-topic; every other one of these in training is put together from a pattern."""
        if rng.random() < 0.6:
            if held_out:
                return self._turn(rng.choice(remarks.HELD_OUT_UNTAUGHT))
            return self._turn(rng.choice(remarks.UNTAUGHT) if rng.random() < 0.5 else _off_topic(rng))
        family, table = rng.choice(
            (
                (phrasings.CAPITAL, facts.UNTAUGHT_COUNTRIES),
                (phrasings.OPPOSITE, facts.UNTAUGHT_WORDS),
                (phrasings.COLOUR, facts.UNTAUGHT_WORDS),
                (phrasings.BACKWARDS, facts.UNTAUGHT_WORDS),
            )
        )
        x = rng.choice(table) if held_out or rng.random() < 0.6 else made_up_word(rng)
        return self._turn(_phrase(rng, family, held_out).replace("{x}", x).replace("{c}", "colour"))

    def follow(self, rng: random.Random, held_out: bool) -> None:
        """What was not known cannot be gone on with."""
        return None

    def _turn(self, question: str) -> Turn:
        return Turn(self.name, question, (facts.UNKNOWN,))


def _off_topic(rng: random.Random) -> str:
    """A question made of a pattern and words; what it means does not matter."""
    noun, other = rng.sample(remarks.UNTAUGHT_NOUNS, 2)
    verb = rng.choice(remarks.UNTAUGHT_VERBS)
    a, b = rng.randrange(LARGEST + 1), rng.randrange(LARGEST + 1)
    return rng.choice(remarks.UNTAUGHT_PATTERNS).format(noun=noun, other=other, verb=verb, a=a, b=b)


def _opposites() -> dict[str, str]:
    both = [pair for a, b in facts.OPPOSITES for pair in ((a, b), (b, a))]
    return {word: f"The opposite of {word} is {other}." for word, other in both}


SUMS = Arithmetic("sum", phrasings.SUM, 1)
DIFFERENCES = Arithmetic("difference", phrasings.DIFFERENCE, -1)
COUNTING = Counting()

# Each family with its share of the questions.
FAMILIES: tuple[tuple[Family, float], ...] = (
    (SUMS, 0.23),
    (DIFFERENCES, 0.28),
    (COUNTING, 0.13),
    (Table("capital", phrasings.CAPITAL, {x: f"The capital of {x} is {c}." for x, c in facts.CAPITALS}), 0.05),
    (Table("capital", phrasings.CAPITAL_OF, {c: f"{c} is the capital of {x}." for x, c in facts.CAPITALS}), 0.04),
    (Table("opposite", phrasings.OPPOSITE, _opposites()), 0.06),
    (
        Table(
            "colour",
            phrasings.COLOUR,
            {f"{the} {x}": f"{the.capitalize()} {x} is {colour}." for the, x, colour in facts.COLOURS},
        ),
        0.03,
    ),
    (Table("backwards", phrasings.BACKWARDS, {x: f"{x} backwards is {x[::-1]}." for x in facts.BACKWARDS}), 0.03),
    (Stories(), 0.03),
    (SmallTalk(), 0.05),
    (Untaught(), 0.07),
)
