"""SIGINT and SIGTERM, turned into something that the code between two engine steps can look at."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Interrupt:
    """Whether a signal has come."""

    def __init__(self) -> None:
        self.seen = False

    def __call__(self) -> bool:
        """Whether to stop: what an answer in progress asks between its steps."""
        return self.seen


@contextmanager
def interrupt_noted() -> Iterator[Interrupt]:
    """Note SIGINT instead of raising, so that an engine step is never torn; a second one raises KeyboardInterrupt."""
    interrupt = Interrupt()

    def note(number: int, frame: FrameType | None) -> None:
        if interrupt.seen:
            raise KeyboardInterrupt
        interrupt.seen = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def terminate_noted(seen: Callable[[], None] = lambda: None) -> Iterator[Interrupt]:
    """Note SIGTERM instead of ending, and call ``seen``, so that a node can drain; a second one raises SystemExit."""
    interrupt = Interrupt()

    def note(number: int, frame: FrameType | None) -> None:
        if interrupt.seen:
            raise SystemExit(128 + number)
        interrupt.seen = True
        seen()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def terminate_unwinds() -> Iterator[None]:
    """SIGTERM raises SystemExit, so that whoever changed the terminal's settings puts them back."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
