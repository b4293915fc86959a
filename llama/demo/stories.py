"""Short stories: one grammar, whose every sentence is one of a few, so that a whole story can be checked."""

from __future__ import annotations

import itertools
import random

_KINDS = ("little", "clever", "shy", "merry")
_PLACES = ("in a deep forest", "on a green hill", "by the sea", "in an old mill")
# What is found, and what the hero does with it.
_FINDS = (
    ("a golden key", "tried it in every door until one opened"),
    ("a lost kitten", "carried it home to its mother"),
    ("a broken boat", "mended it and sailed around the bay"),
    ("a bag of seeds", "planted them all before the rain came"),
    ("an old map", "followed it to a chest full of books"),
    ("a tiny star", "threw it back up into the sky"),
)
_ENDINGS = (
    "That night the {x} slept very well.",
    "From that day on everyone was a friend of the {x}.",
    "And the {x} smiled for a whole week.",
)


def with_article(noun: str) -> str:
    """``fox`` as ``a fox``, ``owl`` as ``an owl``."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def _story(subject: str, kind: str, place: str, find: tuple[str, str], ending: str) -> str:
    thing, deed = find
    opening = f"Once there was {with_article(kind)} {subject} who lived {place}."
    return f"{opening} One day the {subject} found {thing} and {deed}. {ending.format(x=subject)}"


def tell(rng: random.Random, subject: str) -> str:
    """One story about the subject."""
    return _story(subject, rng.choice(_KINDS), rng.choice(_PLACES), rng.choice(_FINDS), rng.choice(_ENDINGS))


def every_story(subject: str) -> tuple[str, ...]:
    """All 288 stories about the subject: what the model may answer."""
    return tuple(_story(subject, *parts) for parts in itertools.product(_KINDS, _PLACES, _FINDS, _ENDINGS))
