"""Rows: what a run measured, with what a reader needs to repeat it, and the arithmetic from seconds to rates.

A row is one phase of one contender. Its time is the median over the rounds; its percentage of the ceiling and our
ratio over it are medians of what each round gave, because only within a round are two times comparable.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, Literal

from .ceilings import Ceilings
from .contender import Absent
from .machine import Machine
from .work import ModelWork

OURS = "hopformer"
Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class Sample:
    """One contender's turn in a round, in seconds: a whole prefill, and the mean of the decode steps."""

    prefill_s: float
    decode_step_s: float

    def seconds(self, phase: Phase) -> float:
        """The one or the other."""
        return self.prefill_s if phase == "prefill" else self.decode_step_s


@dataclass(frozen=True, slots=True)
class Round:
    """The ceilings, and everybody's turn after they were measured."""

    ceilings: Ceilings
    samples: Mapping[str, Sample]


@dataclass(frozen=True, slots=True)
class Software:
    """What a contender is: its version, and the format of its weights, a name in work.py."""

    version: str
    weights: str


@dataclass(frozen=True, slots=True)
class Conditions:
    """What all rows of a run share.

    Attributes:
        model: as the user named it.
        shape: its sizes, in words.
        quantize: what was asked for; how each contender took it is its rows' `weights`.
    """

    machine: Machine
    model: str
    shape: str
    dtype: str
    num_threads: int
    prompt_tokens: int
    decode_tokens: int
    rounds: int
    quantize: str = "none"


@dataclass(frozen=True, slots=True)
class Row:
    """One phase of one contender. Where a baseline was absent, `note` says why and the measures are None.

    Attributes:
        runs: the contender.
        weights: its format of them, "bfloat16", "int8" or "Q4_0" for example.
        context: tokens in the cache: at the end of prefill, in the middle of decode.
        time_ms: of a prefill or a decode step, median over the rounds; with the fastest and the slowest round's.
        gb_per_s: 10^9 bytes of weights, keys and values; decode only.
        tflop_per_s: 10^12 additions and multiplications; prefill only.
        ceiling: what the machine reaches, in the same unit.
        percent_of_ceiling: of the round's own.
        ours_over_it: how many times as fast as this contender we were.
    """

    conditions: Conditions
    phase: Phase
    runs: str
    version: str | None
    context: float
    weights: str | None = None
    time_ms: float | None = None
    time_ms_min: float | None = None
    time_ms_max: float | None = None
    tokens_per_s: float | None = None
    gb_per_s: float | None = None
    tflop_per_s: float | None = None
    ceiling: float | None = None
    percent_of_ceiling: float | None = None
    ours_over_it: float | None = None
    note: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Flat: the machine, the conditions, the measures."""
        fields = asdict(self)
        conditions = fields.pop("conditions")
        return {"bench": "decode", **conditions.pop("machine"), **conditions, **fields}


def make_rows(
    conditions: Conditions,
    work: ModelWork,
    rounds: Sequence[Round],
    software: Mapping[str, Software],
    absent: Sequence[Absent],
) -> list[Row]:
    """Every contender's prefill, ours first, then every contender's decode.

    Args:
        software: by contender, in the order of the rows.
        absent: those who could not take part.
    """
    return [row for phase in PHASES for row in _rows_of(phase, conditions, work, rounds, software, absent)]


def _rows_of(
    phase: Phase,
    conditions: Conditions,
    work: ModelWork,
    rounds: Sequence[Round],
    software: Mapping[str, Software],
    absent: Sequence[Absent],
) -> Iterator[Row]:
    prompt_tokens = conditions.prompt_tokens
    # Decode step i of n computes the token at position prompt_tokens + i - 1, among prompt_tokens + i
    context = float(prompt_tokens) if phase == "prefill" else prompt_tokens + (conditions.decode_tokens + 1) / 2
    for name, one in software.items():
        yield _measured(phase, conditions, replace(work, weights=one.weights), rounds, name, one.version, context)
    for missing in absent:
        yield Row(conditions, phase, missing.name, None, context, note=missing.reason)


def _measured(
    phase: Phase,
    conditions: Conditions,
    work: ModelWork,
    rounds: Sequence[Round],
    name: str,
    version: str,
    context: float,
) -> Row:
    prefill = phase == "prefill"
    seconds = [one.samples[name].seconds(phase) for one in rounds]
    tops = [one.ceilings.operations_per_s if prefill else one.ceilings.bytes_per_s for one in rounds]
    amount = work.prefill_operations(conditions.prompt_tokens) if prefill else work.decode_bytes(context)
    typical = median(seconds)
    unit = 1e12 if prefill else 1e9
    ours = [one.samples[OURS].seconds(phase) for one in rounds]
    return Row(
        conditions,
        phase,
        name,
        version,
        context,
        weights=work.weights,
        time_ms=1e3 * typical,
        time_ms_min=1e3 * min(seconds),
        time_ms_max=1e3 * max(seconds),
        tokens_per_s=(conditions.prompt_tokens if prefill else 1) / typical,
        gb_per_s=None if prefill else amount / typical / unit,
        tflop_per_s=amount / typical / unit if prefill else None,
        ceiling=median(tops) / unit,
        percent_of_ceiling=median(100 * amount / s / top for s, top in zip(seconds, tops, strict=True)),
        ours_over_it=None if name == OURS else median(s / own for s, own in zip(seconds, ours, strict=True)),
    )
