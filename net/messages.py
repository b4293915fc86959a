"""What peers say to each other: one dataclass a message. How each lies in bytes: wire.py and docs/wire-format.md.

A session is one sequence's keys and values along a route of hops. Its caller opens it on every hop, and tells each who
its neighbours are; steps then go from the caller to the first hop, from hop to hop, and from the last to the caller,
who alone samples. A step says at which position it starts and has a number that only grows, so that

    a step at a hop's own length    goes on,
    at less, with a higher number   rolls back first (drafts that were refused; a step that is sent again),
    at more                         waits for what is missing, which is on its way,
    with a number already done      is a duplicate and is dropped.

Each hop keeps the rows that it sent on. When a hop is lost, the one before it, or the caller, sends them again to the
hop that takes its place, and that one sends on what it computes of them, as a replay too. Where the connection between
two hops was lost and made again, steps may be missing unseen, so the later one takes none that does not begin at 0
until the caller reroutes or a replay comes.
"""

from dataclasses import dataclass
from enum import IntEnum

from .identity import PeerId


class Dtype(IntEnum):
    """Of activations."""

    BFLOAT16 = 1
    FLOAT16 = 2
    FLOAT32 = 3

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return 4 if self is Dtype.FLOAT32 else 2


class Codec(IntEnum):
    """How activations are packed."""

    EXACT = 0  # the elements as they are
    INT8 = 1  # rounded in groups of a row, docs/wire-format.md; only where both ends agreed at open


class Reason(IntEnum):
    """Why a node refuses or ends a session."""

    BUSY = 1  # no pages or no session left under the caller's quota; another peer, or later, may do
    MODEL = 2  # another fingerprint, dtype or span
    UNKNOWN_SESSION = 3  # never opened here, or closed
    EVICTED = 4  # idle beyond its lease while pages were needed
    PROTOCOL = 5  # the message makes no sense here
    DRAINING = 6  # the node is going away
    FAILED = 7  # the step could not be computed


@dataclass(frozen=True, slots=True, order=True)
class SessionKey:
    """A session's name everywhere: whose it is and the number that the caller gave it."""

    caller: PeerId
    number: int


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Who sends a hop its steps and who gets its rows; the caller itself at either end of the route.

    Attributes:
        next_addrs: HOST:PORT each, where ``next`` may be dialled; empty where it is the caller, who is connected.
    """

    previous: PeerId
    next: PeerId
    next_addrs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Open:
    """Caller to hop: make room for a session. Answered by Opened or Refuse.

    Attributes:
        fingerprint: 32 bytes of the model, see llama/fingerprint.py.
        start, end: the layers, half-open; all that the hop serves or a part of it.
        max_tokens: that the session may have.
        lease_s: how long it is kept without a word from the caller.
    """

    session: SessionKey
    fingerprint: bytes
    start: int
    end: int
    dtype: Dtype
    codec: Codec
    max_tokens: int
    lease_s: int
    neighbours: Neighbours


@dataclass(frozen=True, slots=True)
class Opened:
    """Hop to caller: the session is there, empty."""

    session: SessionKey


@dataclass(frozen=True, slots=True)
class Step:
    """Activations of ``num_tokens`` tokens from ``position`` on, to the hop that computes them next, or to the caller.

    Attributes:
        step: greater than that of every step sent before it; those of one route are numbered by the caller, from 1 on.
            Replays have 0: they are known by their positions.
        num_wanted: how many of the last rows the caller wants; a hop before the last sends all rows on.
        is_replay: rows that were sent before, for a hop that takes another's place; nobody wants results of them, and a
            hop that has their positions drops them.
        width: elements in a row.
        payload: rows packed by ``codec``: num_tokens of them, towards the caller num_wanted, and no step if that is 0.
        is_drawn: the last hop draws the tokens behind the wanted rows, as a Draw says, and sends those and no rows.
    """

    session: SessionKey
    step: int
    position: int
    num_tokens: int
    num_wanted: int
    is_replay: bool
    dtype: Dtype
    codec: Codec
    width: int
    payload: bytes | memoryview
    is_drawn: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """Hop to caller, after a step or a replay: that it went on, how long it took; what a caller blames a silent hop by.

    Attributes:
        queue_us, compute_us: microseconds from its arrival to its start, and to its end.
        batch_size: sequences that were computed together.
    """

    session: SessionKey
    step: int
    queue_us: int
    compute_us: int
    batch_size: int


@dataclass(frozen=True, slots=True)
class Reroute:
    """Caller to hop: new neighbours. With ``replay_to``, send the rows of positions 0 .. replay_to to the new next."""

    session: SessionKey
    neighbours: Neighbours
    replay_to: int


@dataclass(frozen=True, slots=True)
class Rollback:
    """Caller to hop: forget the tokens from ``position`` on, as of the steps below ``step``."""

    session: SessionKey
    step: int
    position: int


@dataclass(frozen=True, slots=True)
class Close:
    """Caller to hop: the session is over."""

    session: SessionKey


@dataclass(frozen=True, slots=True)
class Refuse:
    """Hop to caller: an open that is refused, or a session that is ended; ``text`` for a person to read."""

    session: SessionKey
    reason: Reason
    text: str


@dataclass(frozen=True, slots=True)
class Lease:
    """Caller to hop: I am still here; the lease begins again."""

    session: SessionKey


@dataclass(frozen=True, slots=True)
class Context:
    """Caller to last hop: the session's tokens from position ``start`` on, for a Draw with a repetition penalty."""

    session: SessionKey
    start: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Draw:
    """Caller to last hop, before or after the step gets there: how to draw the tokens behind its wanted rows.

    The settings are those of llama/sampling.py's SamplingParams.
    """

    session: SessionKey
    step: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    num_logprobs: int


@dataclass(frozen=True, slots=True)
class DrawnToken:
    """A token, and the likeliest ones as (id, log-probability), best first."""

    token_id: int
    logprobs: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Last hop to caller: the tokens that were drawn behind the rows of the positions from ``position`` on."""

    session: SessionKey
    step: int
    position: int
    tokens: tuple[DrawnToken, ...]


@dataclass(frozen=True, slots=True)
class Goodbye:
    """Node to everybody connected: no new sessions; those that are open are kept for ``grace_s`` more."""

    grace_s: int


@dataclass(frozen=True, slots=True)
class Ask:
    """To a node: what do you serve? Answered by Serving."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A node's answer to Ask.

    Attributes:
        model: its name, for people.
        start, end: layers, half-open; empty (0, 0) where the peer serves none.
        dtype: of the activations it takes; None where it serves none.
        codecs: that it takes.
        free_tokens: that its pages still have room for.
        step_us: a decode step of its span, measured lately; 0 if there was none.
        version: of the software.
        has_head: it can draw tokens, where its span ends with the model's last layer.
    """

    model: str
    fingerprint: bytes
    start: int
    end: int
    dtype: Dtype | None
    codecs: tuple[Codec, ...]
    free_tokens: int
    step_us: int
    version: str
    has_head: bool = False


ToLastHop = Context | Draw
Message = (
    Open
    | Opened
    | Step
    | Done
    | Reroute
    | Rollback
    | Close
    | Refuse
    | Lease
    | Context
    | Draw
    | Drawn
    | Goodbye
    | Ask
    | Serving
)
