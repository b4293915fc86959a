"""StepsInFlight: a session's steps that are on their way, one behind the other, and how far all hops are. Pure."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from .identity import PeerId

NUM_RECENT = 16  # completed steps that are remembered: the last hop says Done behind the rows, which complete a step


@dataclass(slots=True, eq=False)
class InFlight:
    """A step that is on its way, or waits for a route.

    Attributes:
        step: its number now; 0 before it is sent.
        done_at: when each hop said Done, in seconds.
        is_complete: the last hop is done, and the rows that were wanted are here.
    """

    position: int
    num_tokens: int
    num_wanted: int
    step: int = 0
    sent_at: float = 0.0
    done_at: dict[PeerId, float] = field(default_factory=dict)
    is_complete: bool = False


class StepsInFlight:
    """Owner of the steps.

    Attributes:
        length: tokens that every hop has computed.
    """

    def __init__(self) -> None:
        self.length = 0
        self._steps: list[InFlight] = []
        self._recent: deque[InFlight] = deque(maxlen=NUM_RECENT)
        self._last_number = 0

    def __iter__(self) -> Iterator[InFlight]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def first(self) -> InFlight:
        """What everything else waits for."""
        return self._steps[0]

    @property
    def end(self) -> int:
        """The position behind the last one."""
        return self._steps[-1].position + self._steps[-1].num_tokens if self._steps else self.length

    @property
    def has_sent(self) -> bool:
        """Whether any step was ever numbered."""
        return self._last_number > 0

    def add(self, num_tokens: int, num_wanted: int) -> InFlight:
        """A step behind all others."""
        assert 0 <= num_wanted <= num_tokens and num_tokens > 0
        self._steps.append(InFlight(self.end, num_tokens, num_wanted))
        return self._steps[-1]

    def sent(self, step: InFlight, now: float) -> None:
        """Number a step that goes out now. One whose rows are here already is only computed for the hops' sake."""
        if step.is_complete:
            step.num_wanted, step.is_complete = 0, False
        self._last_number += 1
        step.step, step.sent_at = self._last_number, now
        step.done_at.clear()

    def find(self, number: int) -> InFlight | None:
        """The step that has this number now."""
        return next((one for one in self._steps if one.step == number > 0), None)

    def num_tokens(self, number: int) -> int | None:
        """Of a step that has this number, or was completed lately under it; None for any other."""
        known = self.find(number) or next((one for one in self._recent if one.step == number > 0), None)
        return known.num_tokens if known else None

    def complete(self, step: InFlight) -> None:
        """All hops are done with a step and what was wanted is here."""
        step.is_complete = True
        while self._steps and self._steps[0].is_complete:
            done = self._steps.pop(0)
            self.length += done.num_tokens
            self._recent.append(done)

    def rollback(self, length: int) -> int:
        """Forget the tokens from ``length`` on, and those before it that are in one step with them; returns ``end``."""
        self._steps = [one for one in self._steps if one.position + one.num_tokens <= length]
        self.length = min(self.length, length)
        return self.end

    def check_integrity(self) -> None:
        """Assert every invariant."""
        position = self.length
        for one in self._steps:
            assert one.position == position, "steps in flight are not one behind the other"
            position += one.num_tokens
        assert not (self._steps and self._steps[0].is_complete), "a complete step is still in flight"
        numbers = [one.step for one in self._steps if one.step]
        assert numbers == sorted(set(numbers)) and max(numbers, default=0) <= self._last_number
