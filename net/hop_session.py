"""HopSession: one session at one hop. Which of its steps comes next, by the rules of messages.py, and what is kept.

Numbers and positions only decide; rows pass through as payloads. Whose session it is, how many there may be and whether
there are pages for it is hop_sessions.py's.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .draws import HopDraws
from .identity import PeerId
from .kept_rows import KeptRows
from .messages import Neighbours, Open, SessionKey, Step
from .row_layout import Payload
from .served_span import ServedSpan
from .wire import max_rows

MAX_REPLAY_ROWS = 512  # in a step: as many as a prefill chunk, so that a replay is computed as fast as a prompt


@dataclass(frozen=True, slots=True)
class Waiting:
    """A step that is not computed yet; ``arrived`` in seconds."""

    step: Step
    arrived: float

    @property
    def end(self) -> int:
        """The position behind its last token."""
        return self.step.position + self.step.num_tokens


class HopSession:
    """A session's state.

    Attributes:
        opening: what its caller asked for.
        sequence_id: its name in the pages, never used again.
        layout: of its rows.
        neighbours: who sends its steps and gets its rows.
        length: tokens whose keys and values are here.
        claimed: tokens that it has pages for: more than ``length`` while a step is computed.
        end: its length once all that is ready is computed.
        ready: steps in order, each beginning at or before the end of the one before it.
        early: steps that begin behind ``end``.
        draws: what is to be drawn, where the last hop does that.
        kept: the rows that were sent on; None in the model's last layers, behind which no hop can come.
        is_cut: the connection to ``previous`` was lost, and steps with it, perhaps one that rolled back. Nothing but a
            replay, or a step that begins anew, is taken until the caller reroutes.
        is_dialling: ``next`` is being connected; until then nothing is computed.
        replay_to: what the caller's last Reroute asked for, while ``next`` is being connected.
        last_word: when the session was last used, in seconds.
        lost_at: when the connection to its caller was lost; None while there is one.
        was_lost: whether that ever happened.
    """

    def __init__(self, opening: Open, sequence_id: int, served: ServedSpan, now: float) -> None:
        self.opening = opening
        self.sequence_id = sequence_id
        self.layout = layout = served.layout(opening.codec)
        self.draws = HopDraws(layout, served.vocab_size, opening.max_tokens) if served.vocab_size else None
        self.neighbours = opening.neighbours
        self.length = self.claimed = self.end = 0
        self.ready: deque[Waiting] = deque()
        self.early: list[Waiting] = []
        self.kept = KeptRows(layout) if opening.end < served.num_layers else None
        self.is_cut = self.is_dialling = False
        self.replay_to = 0
        self.last_word = now
        self.lost_at: float | None = None
        self.was_lost = False
        self._accepted = -1  # the greatest number of a step that is or was ready
        self._void = (0, 0)  # of the last Rollback: steps below this number are void from this position on

    @property
    def key(self) -> SessionKey:
        """Its name everywhere."""
        return self.opening.session

    @property
    def caller(self) -> PeerId:
        """Whose it is."""
        return self.opening.session.caller

    @property
    def is_last(self) -> bool:
        """Whether its rows go to the caller."""
        return self.neighbours.next == self.caller

    @property
    def can_start(self) -> bool:
        """Whether it has a step that may be computed now."""
        return bool(self.ready) and not self.is_dialling

    @property
    def waiting(self) -> Iterator[Waiting]:
        """Steps that are not computed yet."""
        yield from self.ready
        yield from self.early

    @property
    def num_waiting(self) -> int:
        """How many there are."""
        return len(self.ready) + len(self.early)

    @property
    def waiting_bytes(self) -> int:
        """Of their payloads."""
        return sum(len(one.step.payload) for one in self.waiting)

    def is_idle(self, now: float) -> bool:
        """Whether its lease is over and nothing is to be done for it."""
        return self.num_waiting == 0 and now >= self.last_word + self.opening.lease_s

    def fault_of(self, step: Step, max_step_tokens: int) -> str | None:
        """What is wrong with a step; None for nothing."""
        layout, num_tokens = self.layout, step.num_tokens
        if (step.dtype, step.codec, step.width) != (layout.dtype, layout.codec, layout.width):
            return f"a step has rows of {step.width} {step.dtype.name} {step.codec.name}; {layout} was agreed on"
        if not (1 <= num_tokens <= max_step_tokens and 0 <= step.num_wanted <= num_tokens):
            return f"a step has {num_tokens} tokens, {step.num_wanted} of them wanted; it may have {max_step_tokens}"
        if step.is_drawn and self.is_last and self.draws is None:
            return "tokens were to be drawn here, and this node has no head; restart it with --head"
        if not 0 <= step.position <= self.opening.max_tokens - num_tokens:
            end, allowed = step.position + num_tokens, self.opening.max_tokens
            return f"a step ends at position {end}; the session was opened for {allowed} tokens"
        if len(step.payload) != layout.num_bytes(num_tokens):
            return f"a step of {num_tokens} tokens has {len(step.payload)} bytes, not {layout.num_bytes(num_tokens)}"
        return None

    def arrive(self, waiting: Waiting) -> None:
        """Take a step in: it is ready, early, or dropped."""
        step = waiting.step
        if self.is_cut and not step.is_replay and step.position > 0:
            return
        self.is_cut = False
        if self._is_old(step):
            return
        if step.position <= self.end:
            self._accept(waiting)
            self._admit_early()
        elif all((one.step.step, one.step.position) != (step.step, step.position) for one in self.early):
            self.early.append(waiting)

    def start(self) -> Step:
        """Take the next step to compute it; the session's length is then where it begins."""
        step = self.ready.popleft().step
        assert self.claimed == self.length >= step.position
        self._truncate(step.position)
        self.claimed = step.position + step.num_tokens
        return step

    def finish(self, step: Step, rows: Payload) -> None:
        """The step is computed; where rows are kept, ``rows`` are all of its."""
        assert step.position == self.length and self.claimed == step.position + step.num_tokens
        self.length = self.claimed
        if self.kept is not None:
            self.kept.append(rows)
            assert self.kept.length == self.length

    def roll_back(self, number: int, position: int) -> None:
        """Forget the tokens from ``position`` on, unless a step with this number or a higher one is here already."""
        if number <= self._accepted:
            return
        self._void = (number, position)
        self._drop_ready(position)
        self._truncate(position)
        self.end = self.ready[-1].end if self.ready else self.length
        self.early = [one for one in self.early if not self._is_old(one.step)]

    def reroute(self, neighbours: Neighbours) -> None:
        """Take steps from, and send rows to, others from now on."""
        if neighbours.previous != self.neighbours.previous:
            self.early.clear()
        self.neighbours = neighbours
        self.is_cut = False

    def lose_previous(self) -> None:
        """The connection to ``previous`` is gone; the caller needs no telling when it is the caller's own."""
        if self.neighbours.previous != self.caller:
            self.is_cut = True
            self.early.clear()

    def replay(self, stop: int) -> Iterator[Step]:
        """The kept rows of the positions ``0 .. stop``, as steps.

        Their number is 0: steps that were computed, and sent on, before the caller's word came must not count as older.
        """
        assert self.kept is not None
        layout = self.layout
        most = min(MAX_REPLAY_ROWS, max_rows(layout.width, layout.dtype, layout.codec))
        for position, payload in self.kept.pieces(stop, most):
            num_rows = layout.num_rows(payload)
            kinds = layout.dtype, layout.codec, layout.width
            yield Step(self.key, 0, position, num_rows, 0, True, *kinds, payload)

    def check_integrity(self) -> None:
        """Assert every invariant."""
        end, last = self.claimed, -1  # a step that is computed now is no longer ready
        for one in self.ready:
            assert last < one.step.position <= end, "a ready step leaves a gap, or makes the one before it void"
            last, end = one.step.position, one.end
        assert end == self.end
        assert all(one.step.position > self.end and not self._is_old(one.step) for one in self.early)
        assert len({(one.step.step, one.step.position) for one in self.early}) == len(self.early)
        assert self.length <= self.claimed <= self.opening.max_tokens
        if self.kept is not None:
            self.kept.check_integrity()
            assert self.kept.length == self.length

    def _is_old(self, step: Step) -> bool:
        """Whether the step brings nothing: done already, here already, or void by the caller's word."""
        if step.is_replay:
            return step.position + step.num_tokens <= self.end
        number, position = self._void
        return step.step <= self._accepted or (step.step < number and step.position >= position)

    def _accept(self, waiting: Waiting) -> None:
        step = waiting.step
        if step.is_replay and step.position < self.end:
            rest = self.layout.take(step.payload, self.end - step.position, step.num_tokens)
            step = replace(step, position=self.end, num_tokens=waiting.end - self.end, payload=rest)
        self._drop_ready(step.position)
        self.ready.append(Waiting(step, waiting.arrived))
        self.end = waiting.end
        self._accepted = max(self._accepted, step.step)

    def _admit_early(self) -> None:
        """Accept what is no longer early, in the order of its numbers."""
        while True:
            self.early = [one for one in self.early if not self._is_old(one.step)]
            due = [one for one in self.early if one.step.position <= self.end]
            if not due:
                return
            first = min(due, key=lambda one: (one.step.step, one.step.position))
            self.early.remove(first)
            self._accept(first)

    def _drop_ready(self, position: int) -> None:
        """Forget the ready steps that begin at ``position`` or behind."""
        while self.ready and self.ready[-1].step.position >= position:
            self.ready.pop()

    def _truncate(self, length: int) -> None:
        if length < self.length:
            self.length = self.claimed = length
            if self.kept is not None:
                self.kept.truncate(length)
