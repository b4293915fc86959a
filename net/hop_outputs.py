"""What HopSessions asks of its shell: messages, dials, sequences to cut or to forget, steps to compute, and tokens to
draw (draws.py).
"""

from dataclasses import dataclass

from .draws import DrawRows
from .identity import PeerId
from .messages import Message, Step
from .row_layout import RowLayout


@dataclass(frozen=True, slots=True)
class Send:
    """Send ``message`` to ``peer``."""

    peer: PeerId
    message: Message


@dataclass(frozen=True, slots=True)
class Dial:
    """Connect to ``peer``; peer_up or peer_down is told how it went."""

    peer: PeerId
    addrs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Truncate:
    """Forget the sequence's tokens from ``length`` on."""

    sequence_id: int
    length: int


@dataclass(frozen=True, slots=True)
class Release:
    """Forget the sequence, of which perhaps nothing was computed yet."""

    sequence_id: int


Output = Send | Dial | Truncate | Release | DrawRows


@dataclass(frozen=True, slots=True)
class ReadyStep:
    """A step to be computed now.

    Attributes:
        sequence_id: its session's name in the pages.
        start, end: the layers.
        num_rows: how many of the last rows ``finish`` wants.
        arrived: when it came, in seconds.
    """

    step: Step
    sequence_id: int
    start: int
    end: int
    layout: RowLayout
    num_rows: int
    arrived: float


@dataclass(frozen=True, slots=True)
class Timing:
    """When a batch was computed, in seconds, and of how many sequences it was."""

    started: float
    ended: float
    batch_size: int


@dataclass(frozen=True, slots=True)
class HopLoad:
    """How busy a node is, for whoever chooses among several.

    Attributes:
        free_tokens: that its pages still have room for.
        layer_us: microseconds that a decode step takes in one layer; 0 before the first.
        queue_us: that a step waits for its turn, lately.
    """

    free_tokens: int
    layer_us: int
    queue_us: int
    num_sessions: int
