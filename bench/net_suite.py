"""`hopformer bench net`: one hop beside aioquic's own API and TCP with TLS, the same over emulated links, a model's
decode over several hops beside the same model on one machine, and what relays and NATs cost. All of it on this machine.

Everybody takes a turn in every round, in an order that moves on by one; nothing else of the run computes meanwhile.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .. import __version__
from ..errors import UsageError
from ..llama.config import load_config
from ..llama.hub import DEMO, resolve_model
from ..net.activations import wire_dtype
from ..net.messages import Codec
from ..net.row_layout import RowLayout
from .machine import Machine, installed_version
from .net_decode import CODECS, LOCAL, DecodeEffort, decode_over_hops
from .net_emulator import EmulatedLink
from .net_hop import HopEffort, HopTurn, LinkEffort, LinkTurn, take_hop_turn, take_link_turn
from .net_lines import LINES, PATH_LINES, Line
from .net_memory import MemoryEffort, measure_memory
from .net_nat import KINDS, RTT_S, NatEffort, measure_nat
from .net_relay import SIZES, RelayEffort, RelayTurn, relay_running, take_change, take_dials, take_relay_turns
from .net_relay_rows import DIRECT, RELAYED, change_row, dial_rows, nat_rows, no_nat_rows, relay_rows
from .net_rows import NetConditions, NetRow, codec_row, decode_row, hop_rows, link_row, memory_row
from .net_wire_error import wire_error
from .netns import missing

KIB, MIB = 1 << 10, 1 << 20
PARTS = ("hop", "decode", "links", "relay", "nat", "memory")
DTYPE = "bfloat16"  # of the demo model
LINKS = (
    EmulatedLink(0.020),
    EmulatedLink(0.020, loss=0.01),
    EmulatedLink(0.020, loss=0.03),
    EmulatedLink(0.100),
    EmulatedLink(0.100, loss=0.01),
    EmulatedLink(0.020, jitter_s=0.005),
)

Progress = Callable[[int, int], None]  # parts done, parts in all


@dataclass(frozen=True, slots=True)
class NetEffort:
    """How much is measured. This one takes nine minutes on two cores, of which NATs are three."""

    hop: HopEffort = field(
        default_factory=lambda: HopEffort(
            {8 * KIB: 150, 16 * KIB: 75, 64 * KIB: 25, MIB: 4}, bulk_bytes=16 * MIB, busy_bulk_bytes=64 * MIB
        )
    )
    hop_rounds: int = 5
    link: LinkEffort = field(default_factory=lambda: LinkEffort(steps_s=1.5, bulk_s=2.0))
    links: tuple[EmulatedLink, ...] = LINKS
    decode: DecodeEffort = field(default_factory=lambda: DecodeEffort(prompt_tokens=64, decode_tokens=32, rounds=5))
    relay: RelayEffort = field(
        default_factory=lambda: RelayEffort(
            {8 * KIB: 150, 16 * KIB: 75, 64 * KIB: 25}, bulk_bytes=16 * MIB, rounds=3, num_dials=9, num_changes=5
        )
    )
    nat: NatEffort = field(default_factory=lambda: NatEffort(num_dials=3, wait_s=8.0, num_tokens=3))
    memory: MemoryEffort = field(default_factory=MemoryEffort)


QUICK = NetEffort(
    HopEffort({8 * KIB: 60, 16 * KIB: 30, 64 * KIB: 12, MIB: 3}, bulk_bytes=8 * MIB, busy_bulk_bytes=16 * MIB),
    1,
    LinkEffort(steps_s=1.0, bulk_s=1.5),
    LINKS[1:2],
    DecodeEffort(prompt_tokens=64, decode_tokens=12, rounds=3),
    RelayEffort({8 * KIB: 60, 16 * KIB: 30, 64 * KIB: 12}, bulk_bytes=8 * MIB, rounds=1, num_dials=3, num_changes=2),
    NatEffort(num_dials=1, wait_s=6.0, num_tokens=1),
    MemoryEffort(warm_sessions=200, sessions=500, unread_bytes=96 * MIB, garbage_s=1.0),
)


@dataclass(frozen=True, slots=True)
class NetPlan:
    """What to measure.

    Attributes:
        hops: over how many the model is to be computed.
        num_threads: of each of its nodes, and of the model beside them.
        has_links: whether to measure over emulated links.
        parts: of PARTS, those to measure.
    """

    hops: tuple[int, ...] = (1, 2, 4)
    num_threads: int = 1
    has_links: bool = True
    is_quick: bool = False
    lines: tuple[Line, ...] = LINES
    effort: NetEffort | None = None
    parts: tuple[str, ...] = PARTS

    def check(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            UsageError: a number is out of range, or named twice.
        """
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown:
            raise UsageError(f"--only has {unknown[0]!r}; the parts are {', '.join(PARTS)}")
        most = load_config(resolve_model(DEMO)).num_layers
        for hops in self.hops:
            if not 1 <= hops <= most:
                raise UsageError(f"--hops has {hops}; the demo model's {most} layers make 1 to {most} hops")
        if len(set(self.hops)) < len(self.hops):
            raise UsageError(f"--hops {','.join(map(str, self.hops))} names one twice")
        if not 1 <= self.num_threads <= 1024:
            raise UsageError(f"--threads is {self.num_threads}; it must be between 1 and 1024")


def bench_net(plan: NetPlan, progress: Progress | None = None) -> list[NetRow]:
    """Carry out ``plan``: one hop, decode over hops, what rounding does, links, relays, NATs, memory.

    Raises:
        HopformerError: a contender or a node does not start or does not end.
        UsageError: the plan means nothing.
    """
    plan.check()
    effort = plan.effort or (QUICK if plan.is_quick else NetEffort())
    links = effort.links if plan.has_links and "links" in plan.parts else ()
    hops = plan.hops if "decode" in plan.parts else ()
    no_nat = missing()
    num_steps = {
        "hop": effort.hop_rounds * len(plan.lines),
        "decode": 2 * len(hops),
        "links": len(links) * len(PATH_LINES),
        "relay": effort.relay.rounds + 1 + effort.relay.num_changes,
        "nat": 0 if no_nat else len(KINDS),
        "memory": 1,
    }
    total = sum(num_steps[part] for part in plan.parts)
    steps = iter(range(1, total + 1))

    def advance() -> None:
        if progress is not None:
            progress(next(steps), total)

    conditions = NetConditions(  # before anything runs: a commit made meanwhile is not what was measured
        Machine.here(),
        __version__,
        installed_version("aioquic"),
        installed_version("cryptography"),
        plan.num_threads,
        plan.is_quick,
    )
    rows = _hops(conditions, plan.lines, effort, advance) if "hop" in plan.parts else []
    for num_hops in hops:
        rows += _decode(conditions, num_hops, effort.decode)
        advance()
    for num_hops in hops:
        rows.append(_codec(conditions, num_hops))
        advance()
    for number, link in enumerate(links):
        rows += _link(conditions, link, effort.link, number, advance)
    if "relay" in plan.parts:
        rows += _relay(conditions, effort.relay, advance)
    if "nat" in plan.parts and no_nat:
        rows += no_nat_rows(conditions, KINDS, RTT_S, no_nat)
    elif "nat" in plan.parts:
        rows += nat_rows(conditions, measure_nat(resolve_model(DEMO), effort.nat, advance, KINDS), RTT_S)
    if "memory" in plan.parts:
        rows += [memory_row(conditions, turn) for turn in measure_memory(resolve_model(DEMO), effort.memory)]
        advance()
    return rows


def _relay(conditions: NetConditions, effort: RelayEffort, advance: Callable[[], None]) -> list[NetRow]:
    """One relay for all turns, so that its memory is seen to stay as it is."""
    turns: dict[tuple[str, int], list[RelayTurn]] = {(name, size): [] for size in SIZES for name in (DIRECT, RELAYED)}
    with tempfile.TemporaryDirectory(prefix="hopformer-bench-") as scratch, relay_running(Path(scratch)) as relay:
        for number in range(effort.rounds):
            for size in SIZES if number % 2 else SIZES[::-1]:
                direct, relayed = take_relay_turns(relay, size, effort)
                turns[DIRECT, size].append(direct)
                turns[RELAYED, size].append(relayed)
            advance()
        dials = take_dials(relay, effort.num_dials)
        advance()
        changes = []
        for _ in range(effort.num_changes):
            changes.append(take_change(relay))
            advance()
    rows = relay_rows(conditions, effort, turns)
    return [*rows, *dial_rows(conditions, dials), change_row(conditions, changes, SIZES[0])]


def _hops(
    conditions: NetConditions, lines: tuple[Line, ...], effort: NetEffort, advance: Callable[[], None]
) -> list[NetRow]:
    turns: dict[str, list[HopTurn]] = {line.name: [] for line in lines}
    for number in range(effort.hop_rounds):
        first = number % len(lines)
        for line in lines[first:] + lines[:first]:
            turns[line.name].append(take_hop_turn(line, effort.hop))
            advance()
    return hop_rows(conditions, [(line, turns[line.name]) for line in lines])


def _link(
    conditions: NetConditions, link: EmulatedLink, effort: LinkEffort, number: int, advance: Callable[[], None]
) -> list[NetRow]:
    first = number % len(PATH_LINES)
    turns: dict[str, list[LinkTurn]] = {}
    for line in PATH_LINES[first:] + PATH_LINES[:first]:
        turns[line.name] = [take_link_turn(line, link, effort)]
        advance()
    own = turns[PATH_LINES[0].name]
    return [link_row(conditions, line, link, turns[line.name], own) for line in PATH_LINES]


def _decode(conditions: NetConditions, num_hops: int, effort: DecodeEffort) -> list[NetRow]:
    """The model here, which is measured again beside every number of hops, then over them."""
    folder = resolve_model(DEMO)
    turns = decode_over_hops(folder, DTYPE, num_hops, conditions.num_threads, effort)
    about = {"model": DEMO, "dtype": DTYPE, "prompt_tokens": effort.prompt_tokens}
    local = turns[LOCAL]
    rows: list[NetRow] = [
        decode_row(conditions, {**about, "wire_dtype": None, "hops": 0, "beside_hops": num_hops}, None, local, local)
    ]
    for name, codec in CODECS.items():
        layout = _layout(codec)
        own = {**about, "wire_dtype": name, "hops": num_hops, "beside_hops": num_hops}
        rows.append(decode_row(conditions, own, layout, turns[name], local))
    return rows


def _codec(conditions: NetConditions, num_hops: int) -> NetRow:
    bytes_of = {name: _layout(codec).num_bytes(1) for name, codec in CODECS.items()}
    error = wire_error(resolve_model(DEMO), getattr(torch, DTYPE), num_hops)
    return codec_row(conditions, DEMO, DTYPE, num_hops, 100 * bytes_of["int8"] / bytes_of["exact"], error)


def _layout(codec: Codec) -> RowLayout:
    return RowLayout(wire_dtype(getattr(torch, DTYPE)), codec, load_config(resolve_model(DEMO)).hidden_size)
