"""HopDraws: what a last hop that holds the head is to draw for one session. Which settings belong to which step, rows
that wait for theirs, and the tokens so far where a repetition penalty asks for them.

A Draw comes straight from the caller, its step through all hops; either may be first. Steps and their Draws have the
same numbers, which only grow, so whatever is older than a step that is drawn is void. Pure: the head is not here.
"""

from dataclasses import dataclass

from .messages import Context, Draw, Step
from .row_layout import RowLayout
from .wire import MAX_DRAWN_PAIRS, MAX_DRAWN_TOKENS

MAX_WAITING_DRAWS = 64  # the newest, whose steps are not here; a caller has few in flight of which it wants a token
MAX_WAITING_ROWS = 8  # steps whose Draw is not here: one packet overtook another


@dataclass(frozen=True, slots=True)
class DrawRows:
    """Draw tokens now, and send them to the caller: behind each row of the step, whose payload is the wanted rows.

    Attributes:
        context: the session's tokens up to the step's end, where there is a repetition penalty; else empty.
    """

    step: Step
    draw: Draw
    layout: RowLayout
    context: tuple[int, ...]

    @property
    def first(self) -> int:
        """The position of the first of the rows."""
        return self.step.position + self.step.num_tokens - self.step.num_wanted


class HopDraws:
    """One session's.

    Args:
        vocab_size: token ids are below it.
        max_tokens: of the session.
    """

    def __init__(self, layout: RowLayout, vocab_size: int, max_tokens: int) -> None:
        self._layout = layout
        self._vocab_size = vocab_size
        self._max_tokens = max_tokens
        self._context: list[int] = []
        self._draws: dict[int, Draw] = {}
        self._rows: dict[int, Step] = {}

    def tell(self, message: Context | Draw) -> str | None:
        """Take a word of the caller; returns what is wrong with it, None for nothing."""
        if isinstance(message, Draw):
            self._draws[message.step] = message
            if len(self._draws) > MAX_WAITING_DRAWS:
                del self._draws[min(self._draws)]
            return None
        end = message.start + len(message.token_ids)
        if message.start > len(self._context) or end > self._max_tokens:
            return f"a context has the tokens {message.start} to {end}; {len(self._context)} are known before it"
        if any(token_id >= self._vocab_size for token_id in message.token_ids):
            return f"a context has a token beyond the model's {self._vocab_size}"
        self._context[message.start :] = message.token_ids
        return None

    def computed(self, step: Step) -> str | None:
        """A step is computed whose tokens are to be drawn; returns what is wrong with it, None for nothing."""
        if step.num_wanted > MAX_DRAWN_TOKENS:
            return f"{step.num_wanted} tokens of a step were to be drawn; {MAX_DRAWN_TOKENS} may be"
        self._rows[step.step] = step
        return "too many steps wait for what is to be drawn" if len(self._rows) > MAX_WAITING_ROWS else None

    def take(self) -> list[DrawRows]:
        """What can be drawn now, in order.

        Raises:
            ValueError: the caller asks for what cannot be; its text says what.
        """
        numbers = sorted(self._rows.keys() & self._draws.keys())
        found = [self._ready(self._rows[number], self._draws[number]) for number in numbers]
        if numbers:
            self._rows = {number: step for number, step in self._rows.items() if number > numbers[-1]}
            self._draws = {number: draw for number, draw in self._draws.items() if number > numbers[-1]}
        return found

    def _ready(self, step: Step, draw: Draw) -> DrawRows:
        if draw.num_logprobs * step.num_wanted > MAX_DRAWN_PAIRS:
            raise ValueError(f"{draw.num_logprobs} logprobs of {step.num_wanted} tokens are more than a message takes")
        if draw.repetition_penalty == 1.0:
            return DrawRows(step, draw, self._layout, ())
        end = step.position + step.num_tokens
        if end > len(self._context):
            raise ValueError(f"a penalty needs the {end} tokens so far, and {len(self._context)} are known")
        return DrawRows(step, draw, self._layout, tuple(self._context[:end]))
