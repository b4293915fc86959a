"""Rows of `hopformer bench net` about relays and NATs, and the arithmetic from seconds to figures:

    relay_step    activations there and back through a relay, and without one, by payload
    relay_bulk    a prefill the same ways, and what it costs the relay
    dial          until a peer is connected
    change        steps while their way changes from relayed to straight
    nat           dialling by id from behind one NAT to behind another of its kind

See net_rows.py; what a relay adds is the median of each round's own difference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from .machine import installed_version
from .nat_lab import Kind
from .net_dial import Dialled, Ways
from .net_nat import NatTurn
from .net_relay import ChangeTurn, RelayEffort, RelayTurn
from .net_rows import STEP_BYTES, NetConditions, NetRow, percentile

DIRECT, RELAYED = "direct", "relayed"


@dataclass(frozen=True, slots=True)
class RelayStepRow(NetRow):
    """``added_us``: to the p50 of the direct hop with datagrams of that size; None for that one."""

    measures: ClassVar[str] = "relay_step"
    datagram_bytes: int
    payload_bytes: int
    num_steps: int
    p50_us: float
    p99_us: float
    added_us: float | None


@dataclass(frozen=True, slots=True)
class RelayBulkRow(NetRow):
    """One way. What is the relay's is None for the direct hop.

    Attributes:
        percent_of_direct: the rate, of the direct hop's.
        num_datagrams: that the relay passed on in a round, both ways.
        relay_cpu_us: of the relay's processor, for one.
        relay_mib_before, relay_mib_after: its resident memory before the first round's bulk, and after the last one's.
    """

    measures: ClassVar[str] = "relay_bulk"
    datagram_bytes: int
    bulk_bytes: int
    mib_per_s: float
    percent_of_direct: float | None
    num_datagrams: int | None
    relay_cpu_us: float | None
    relay_mib_before: float | None
    relay_mib_after: float | None


@dataclass(frozen=True, slots=True)
class DialRow(NetRow):
    """See net_relay.DIALS for ``runs``; a round is a dial."""

    measures: ClassVar[str] = "dial"
    p50_ms: float
    longest_ms: float


@dataclass(frozen=True, slots=True)
class ChangeRow(NetRow):
    """Steps of 8 KiB one after the other, over a relay and then straight; a round is a change.

    Attributes:
        found_ms: from when a straight way was looked for until it was taken.
        longest_ms: of all steps of all changes, from then to half a second behind it.
    """

    measures: ClassVar[str] = "change"
    payload_bytes: int
    datagram_bytes: int
    before_p50_ms: float
    after_p50_ms: float
    found_ms: float
    longest_ms: float


@dataclass(frozen=True, slots=True)
class NatRow(NetRow):
    """A round is a dial. Where no NAT can be made, ``note`` says why, and the measures are None.

    Attributes:
        version: of aioice, for ice.
        nat: the kind of both ends', see nat_lab.py.
        rtt_ms: of the path between the two.
        connected_ms: over the relay, at which the caller is already.
        num_straight: of the dials, those that found a straight way; straight_ms: how long that took, from the dial.
        num_tokens: first tokens, each of a caller that knows no relay yet and whose model is loaded; first_token_ms:
            from its dial to the token, of a model whose layers are all at the other end.
    """

    measures: ClassVar[str] = "nat"
    version: str | None
    nat: Kind
    rtt_ms: float
    connected_ms: float | None = None
    num_straight: int | None = None
    straight_ms: float | None = None
    num_tokens: int | None = None
    first_token_ms: float | None = None
    note: str | None = None


def relay_rows(
    conditions: NetConditions, effort: RelayEffort, turns: Mapping[tuple[str, int], Sequence[RelayTurn]]
) -> list[NetRow]:
    """``turns`` by DIRECT or RELAYED and by the size of datagrams: steps by payload, then bulk."""
    rows: list[NetRow] = []
    for payload, num_steps in effort.num_steps.items():
        for (name, size), own in turns.items():
            p50s = [percentile(turn.steps_s[payload], 50) for turn in own]
            direct = [percentile(turn.steps_s[payload], 50) for turn in turns[DIRECT, size]]
            rows.append(
                RelayStepRow(
                    conditions,
                    f"{name}, {size}",
                    len(own),
                    datagram_bytes=size,
                    payload_bytes=payload,
                    num_steps=num_steps,
                    p50_us=1e6 * median(p50s),
                    p99_us=1e6 * median(percentile(turn.steps_s[payload], 99) for turn in own),
                    added_us=None
                    if name == DIRECT
                    else 1e6 * median(one - other for one, other in zip(p50s, direct, strict=True)),
                )
            )
    return [*rows, *(_bulk_row(conditions, effort, key, own, turns) for key, own in turns.items())]


def _bulk_row(
    conditions: NetConditions,
    effort: RelayEffort,
    key: tuple[str, int],
    own: Sequence[RelayTurn],
    turns: Mapping[tuple[str, int], Sequence[RelayTurn]],
) -> RelayBulkRow:
    name, size = key
    relayed = name == RELAYED
    shares = [
        100 * one.bulk_bytes_per_s / other.bulk_bytes_per_s for one, other in zip(own, turns[DIRECT, size], strict=True)
    ]
    return RelayBulkRow(
        conditions,
        f"{name}, {size}",
        len(own),
        datagram_bytes=size,
        bulk_bytes=effort.bulk_bytes,
        mib_per_s=median(turn.bulk_bytes_per_s for turn in own) / 2**20,
        percent_of_direct=median(shares) if relayed else None,
        num_datagrams=int(median(turn.num_datagrams for turn in own)) if relayed else None,
        relay_cpu_us=1e6 * median(turn.relay_cpu_s / max(turn.num_datagrams, 1) for turn in own) if relayed else None,
        relay_mib_before=own[0].relay_bytes[0] / 2**20 if relayed else None,
        relay_mib_after=own[-1].relay_bytes[1] / 2**20 if relayed else None,
    )


def dial_rows(conditions: NetConditions, dials: Mapping[str, Sequence[float]]) -> list[NetRow]:
    """A row for each kind."""
    return [
        DialRow(conditions, name, len(seconds), 1e3 * median(seconds), 1e3 * max(seconds))
        for name, seconds in dials.items()
    ]


def change_row(conditions: NetConditions, turns: Sequence[ChangeTurn], datagram_bytes: int) -> NetRow:
    """All changes."""
    return ChangeRow(
        conditions,
        "relayed to direct",
        len(turns),
        payload_bytes=STEP_BYTES,
        datagram_bytes=datagram_bytes,
        before_p50_ms=1e3 * median(percentile(turn.before_s, 50) for turn in turns),
        after_p50_ms=1e3 * median(percentile(turn.after_s, 50) for turn in turns),
        found_ms=1e3 * median(turn.found_s for turn in turns),
        longest_ms=1e3 * max(max(turn.changing_s) for turn in turns),
    )


def nat_rows(conditions: NetConditions, turns: Mapping[Kind, NatTurn], rtt_s: float) -> list[NetRow]:
    """Two for each kind, of which the first has the first token: it is our punching's."""
    rows: list[NetRow] = []
    for kind, turn in turns.items():
        for ways, dialled in turn.dialled.items():
            tokens = turn.tokens_s if ways == "punch" else ()
            rows.append(_nat_row(conditions, kind, ways, dialled, tokens, rtt_s))
    return rows


def no_nat_rows(conditions: NetConditions, kinds: Sequence[Kind], rtt_s: float, note: str) -> list[NetRow]:
    """Where no NAT can be made."""
    return [NatRow(conditions, "punch", 0, None, kind, 1e3 * rtt_s, note=note) for kind in kinds]


def _nat_row(
    conditions: NetConditions,
    kind: Kind,
    ways: Ways,
    dialled: Sequence[Dialled],
    tokens_s: Sequence[float],
    rtt_s: float,
) -> NatRow:
    straight = [one.straight_s for one in dialled if one.straight_s is not None]
    return NatRow(
        conditions,
        ways,
        len(dialled),
        version=installed_version("aioice") if ways == "ice" else conditions.hopformer,
        nat=kind,
        rtt_ms=1e3 * rtt_s,
        connected_ms=1e3 * median(one.connected_s for one in dialled),
        num_straight=len(straight),
        straight_ms=1e3 * median(straight) if straight else None,
        num_tokens=len(tokens_s) or None,
        first_token_ms=1e3 * median(tokens_s) if tokens_s else None,
    )
