"""Rows of `hopformer bench net`, and the arithmetic from seconds to figures. ``measures`` says which kind a row is:

    step      activations there and back over one hop, by payload
    bulk      a prefill over one hop, alone, and with decode steps beside it
    link      steps of 8 KiB and bulk over an emulated link
    decode    a model's decode steps over several hops, and on one machine
    codec     what rounding the activations does to the logits
    memory    what a node's memory and handles come to, see net_memory.py

Times are medians over the rounds. Ratios are medians of each round's own ratio, because only within a round are two
times comparable; 2.0 means that ours takes half of that contender's time.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, ClassVar

from ..net.row_layout import RowLayout
from ..net.wire import STEP_HEADER_BYTES
from .machine import Machine
from .net_decode import DecodeTurn
from .net_emulator import EmulatedLink
from .net_hop import HopTurn, LinkTurn
from .net_lines import Line
from .net_memory import MemoryTurn
from .net_wire_error import WireError

STEP_BYTES = 8192  # a token of 4,096 elements in bfloat16, an 8B model's


@dataclass(frozen=True, slots=True)
class NetConditions:
    """What all rows of a run share.

    Attributes:
        hopformer, aioquic, cryptography: their versions.
        num_threads: of each node of a decode, and of the model beside it.
    """

    machine: Machine
    hopformer: str
    aioquic: str | None
    cryptography: str | None
    num_threads: int
    is_quick: bool


@dataclass(frozen=True, slots=True)
class NetRow:
    """What every row has. ``rounds``: turns that each contender took."""

    measures: ClassVar[str]
    conditions: NetConditions
    runs: str
    rounds: int

    def as_json(self) -> dict[str, Any]:
        """Flat: the machine, the conditions, the measures."""
        fields = asdict(self)
        conditions = fields.pop("conditions")
        return {"bench": "net", "measures": self.measures, **conditions.pop("machine"), **conditions, **fields}


@dataclass(frozen=True, slots=True)
class StepRow(NetRow):
    """``payload_bytes`` there and back, ``num_steps`` times a round; ``datagram_bytes`` is 0 for TCP.

    Attributes:
        cpu_us: of all processes at both ends, for a step.
    """

    measures: ClassVar[str] = "step"
    version: str | None
    datagram_bytes: int
    num_processes: int
    payload_bytes: int
    num_steps: int
    p50_us: float
    p99_us: float
    cpu_us: float
    ours_over_it: float | None


@dataclass(frozen=True, slots=True)
class BulkRow(NetRow):
    """One way; then again, with steps of 8 KiB beside it, whose round trips are ``busy_p50_ms`` and ``busy_p99_ms``."""

    measures: ClassVar[str] = "bulk"
    version: str | None
    datagram_bytes: int
    num_processes: int
    bulk_bytes: int
    mib_per_s: float
    ours_over_it: float | None
    busy_bulk_bytes: int
    busy_num_steps: int
    busy_mib_per_s: float
    busy_p50_ms: float
    busy_p99_ms: float


@dataclass(frozen=True, slots=True)
class LinkRow(NetRow):
    """A contender over an emulated link; ``jitter_ms`` is what a round trip may take less or more."""

    measures: ClassVar[str] = "link"
    version: str | None
    datagram_bytes: int
    payload_bytes: int
    rtt_ms: float
    jitter_ms: float
    loss_percent: float
    num_steps: int
    p50_ms: float
    p99_ms: float
    mib_per_s: float
    ours_over_it: float | None


@dataclass(frozen=True, slots=True)
class MemoryRow(NetRow):
    """A node's processes together, before, at most during, and after ``amount`` of a case; ``runs`` is the case."""

    measures: ClassVar[str] = "memory"
    amount: str
    before_mib: float
    most_mib: float
    after_mib: float
    before_handles: int
    after_handles: int


@dataclass(frozen=True, slots=True)
class DecodeRow(NetRow):
    """A model's decode over ``hops`` hops, or on this machine alone, which is 0 hops.

    Attributes:
        beside_hops: the same but for 0 hops: that of the rows whose rounds this one's were.
        bytes_per_token: of activations and their headers, on all wires of a decode step together.
        prefill_ms: of the prompt, and the first token.
        ms_per_hop: what a hop adds to a decode step: the difference from 0 hops in the same round, over the hops.
        same_tokens_percent: of those drawn, how many are those of the model on this machine.
    """

    measures: ClassVar[str] = "decode"
    model: str
    dtype: str
    wire_dtype: str | None
    hops: int
    beside_hops: int
    bytes_per_token: int
    prompt_tokens: int
    decode_tokens: int
    prefill_ms: float
    p50_ms: float
    p99_ms: float
    tokens_per_s: float
    ms_per_hop: float | None
    same_tokens_percent: float | None


@dataclass(frozen=True, slots=True)
class CodecRow(NetRow):
    """See WireError; ``percent_of_bytes`` is what a row takes of its exact one's bytes."""

    measures: ClassVar[str] = "codec"
    model: str
    dtype: str
    hops: int
    percent_of_bytes: float
    num_positions: int
    logit_error: float
    kl_nats: float
    same_top_percent: float


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which so many percent lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def hop_rows(conditions: NetConditions, turns: Sequence[tuple[Line, Sequence[HopTurn]]]) -> list[NetRow]:
    """Every contender's steps by payload, then every contender's bulk.

    Ratios are of our endpoint with datagrams of the same size, and with the largest ones for TCP.
    """
    ours = {line.datagram_bytes: found for line, found in turns if line.kind == "hopformer"}
    beside = [(line, found, ours.get(line.datagram_bytes, ours[max(ours)])) for line, found in turns]
    payloads = list(turns[0][1][0].steps_s)
    steps = [_step_row(conditions, line, found, own, size) for size in payloads for line, found, own in beside]
    return [*steps, *(_bulk_row(conditions, line, found, own) for line, found, own in beside)]


def _version(conditions: NetConditions, line: Line) -> str | None:
    """Of what runs; Python's own TLS has the interpreter's."""
    if line.kind in ("hopformer", "switchboard"):
        return conditions.hopformer
    return conditions.aioquic if line.kind == "aioquic" else conditions.machine.python


def _step_row(
    conditions: NetConditions, line: Line, turns: Sequence[HopTurn], own: Sequence[HopTurn], size: int
) -> StepRow:
    return StepRow(
        conditions,
        line.name,
        len(turns),
        version=_version(conditions, line),
        datagram_bytes=line.datagram_bytes,
        num_processes=line.num_processes,
        payload_bytes=size,
        num_steps=len(turns[0].steps_s[size]),
        p50_us=1e6 * median(percentile(turn.steps_s[size], 50) for turn in turns),
        p99_us=1e6 * median(percentile(turn.steps_s[size], 99) for turn in turns),
        cpu_us=1e6 * median(turn.cpu_s[size] for turn in turns),
        ours_over_it=_ratio(turns, own, lambda turn: percentile(turn.steps_s[size], 50)),
    )


def _bulk_row(conditions: NetConditions, line: Line, turns: Sequence[HopTurn], own: Sequence[HopTurn]) -> BulkRow:
    return BulkRow(
        conditions,
        line.name,
        len(turns),
        version=_version(conditions, line),
        datagram_bytes=line.datagram_bytes,
        num_processes=line.num_processes,
        bulk_bytes=turns[0].effort.bulk_bytes,
        mib_per_s=median(turn.bulk_bytes_per_s for turn in turns) / 2**20,
        ours_over_it=_ratio(turns, own, lambda turn: 1 / turn.bulk_bytes_per_s),
        busy_bulk_bytes=turns[0].effort.busy_bulk_bytes,
        busy_num_steps=sum(len(turn.busy_steps_s) for turn in turns),
        busy_mib_per_s=median(turn.busy_bulk_bytes_per_s for turn in turns) / 2**20,
        busy_p50_ms=1e3 * median(percentile(turn.busy_steps_s, 50) for turn in turns),
        busy_p99_ms=1e3 * median(percentile(turn.busy_steps_s, 99) for turn in turns),
    )


def link_row(
    conditions: NetConditions, line: Line, link: EmulatedLink, turns: Sequence[LinkTurn], own: Sequence[LinkTurn]
) -> LinkRow:
    """A contender over one link; ``own`` are our turns over it."""
    least = 1.0  # bytes a second, where nothing came through
    return LinkRow(
        conditions,
        line.name,
        len(turns),
        version=_version(conditions, line),
        datagram_bytes=line.datagram_bytes,
        payload_bytes=STEP_BYTES,
        rtt_ms=1e3 * link.rtt_s,
        jitter_ms=1e3 * link.jitter_s,
        loss_percent=100 * link.loss,
        num_steps=len(turns[0].steps_s),
        p50_ms=1e3 * median(percentile(turn.steps_s, 50) for turn in turns),
        p99_ms=1e3 * median(percentile(turn.steps_s, 99) for turn in turns),
        mib_per_s=median(turn.bulk_bytes_per_s for turn in turns) / 2**20,
        ours_over_it=_ratio(turns, own, lambda turn: 1 / max(turn.bulk_bytes_per_s, least)),
    )


def decode_row(
    conditions: NetConditions,
    about: dict[str, Any],
    layout: RowLayout | None,
    turns: Sequence[DecodeTurn],
    local: Sequence[DecodeTurn],
) -> DecodeRow:
    """``about``: model, dtype, wire_dtype, hops, beside_hops, prompt_tokens. layout: of rows on the wire, if any."""
    hops: int = about["hops"]
    pairs = list(zip(turns, local, strict=True))
    drawn = [one == other for turn, own in pairs for one, other in zip(turn.token_ids, own.token_ids, strict=True)]
    typical = median(median(turn.steps_s) for turn in turns)
    return DecodeRow(
        conditions,
        "hopformer",
        len(turns),
        **about,
        bytes_per_token=0 if layout is None else (hops + 1) * (STEP_HEADER_BYTES + layout.num_bytes(1)),
        decode_tokens=len(turns[0].steps_s),
        prefill_ms=1e3 * median(turn.prefill_s for turn in turns),
        p50_ms=1e3 * typical,
        p99_ms=1e3 * median(percentile(turn.steps_s, 99) for turn in turns),
        tokens_per_s=1 / typical,
        ms_per_hop=1e3 * median(median(a.steps_s) - median(b.steps_s) for a, b in pairs) / hops if hops else None,
        same_tokens_percent=100 * sum(drawn) / len(drawn) if hops else None,
    )


def codec_row(
    conditions: NetConditions, model: str, dtype: str, hops: int, percent_of_bytes: float, error: WireError
) -> CodecRow:
    """What int8 does."""
    return CodecRow(conditions, "int8", 1, model, dtype, hops, percent_of_bytes, **asdict(error))


def _ratio(turns: Sequence[Any], own: Sequence[Any], seconds: Callable[[Any], float]) -> float | None:
    """How many times as fast ours was; None for ours."""
    if turns is own:
        return None
    return median(seconds(one) / seconds(ours) for one, ours in zip(turns, own, strict=True))


def memory_row(conditions: NetConditions, turn: MemoryTurn) -> MemoryRow:
    """Of one case."""
    before, after = turn.before, turn.after
    sizes = before.mib, turn.most_mib, after.mib
    return MemoryRow(conditions, turn.case, 1, turn.amount, *sizes, before.handles, after.handles)
