"""Rows of `hopformer bench net` as tables: for a terminal with rich, in 100 columns, for a document in Markdown.

Rows are taken as JSON has them, so that a document can be made from a results file.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

JsonRow = Mapping[str, Any]
OURS = "hopformer"  # what our contenders' names begin with
_KIB, _MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, slots=True)
class NetTable:
    """One table: the first column is text, the others are figures; ``note`` says what they are."""

    title: str
    headings: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    note: str


def make_tables(rows: Sequence[JsonRow]) -> list[NetTable]:
    """Those of which there are rows."""
    makers: dict[str, Callable[[Sequence[JsonRow]], NetTable]] = {
        "step": _steps,
        "bulk": _bulk,
        "decode": _decode,
        "codec": _codec,
        "link": _links,
        "relay_step": _relay_steps,
        "relay_bulk": _relay_bulk,
        "dial": _dials,
        "change": _changes,
        "nat": _nats,
        "memory": _memory,
    }
    found = {name: [row for row in rows if row["measures"] == name] for name in makers}
    return [make(found[name]) for name, make in makers.items() if found[name]]


def rich_tables(rows: Sequence[JsonRow]) -> "Iterator[Table]":
    """For a terminal of 100 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    for one in make_tables(rows):
        table = Table(title=one.title, caption=one.note, box=SIMPLE_HEAD)
        table.pad_edge, table.collapse_padding = False, True
        for index, heading in enumerate(one.headings):
            table.add_column(heading, justify="right" if index else "left", no_wrap=index > 0)
        for line in one.lines:
            table.add_row(*line, style="bold" if line[0].startswith(OURS) else None)
        yield table


def net_as_markdown(rows: Sequence[JsonRow]) -> str:
    """One run's rows as a sentence about its conditions and a table for each thing that was measured."""
    parts = [describe(rows[0])]
    for one in make_tables(rows):
        parts += ["", f"{one.title}; {one.note}:", "", f"| {' | '.join(one.headings)} |"]
        parts.append("|---|" + "--:|" * (len(one.headings) - 1))
        parts += [f"| {' | '.join(line)} |" for line in one.lines]
    return "\n".join(parts) + "\n"


def describe(row: JsonRow) -> str:
    """What ran where."""
    commit = f"commit {row['commit']}" if row["commit"] else "no commit"
    quick = "; a quick run" if row["is_quick"] else ""
    return (
        f"hopformer {row['hopformer']} on {row['device']} ({row['num_cores']} cores, {row['memory_gib']} GiB, "
        f"{row['system']}), aioquic {row['aioquic']}, cryptography {row['cryptography']}, torch {row['torch']}, Python "
        f"{row['python']}; loopback; {commit}, {row['date']}{quick}."
    )


def _steps(rows: Sequence[JsonRow]) -> NetTable:
    sizes = sorted({row["payload_bytes"] for row in rows})
    lines = []
    for name in dict.fromkeys(row["runs"] for row in rows):
        own = {row["payload_bytes"]: row for row in rows if row["runs"] == name}
        smallest = own[sizes[0]]
        times = (f"{_ms(own[size]['p50_us'])} / {_ms(own[size]['p99_us'])}" for size in sizes)
        lines.append((name, *times, _ms(smallest["cpu_us"]), _ratio(smallest)))
    least = size_text(sizes[0])
    return NetTable(
        "One hop, there and back, ms",
        ("", *map(size_text, sizes), f"CPU, {least}", f"ours, {least}"),
        tuple(lines),
        "p50 / p99 by payload; CPU time of both ends for a step; 2.0x: ours takes half of its time",
    )


def _bulk(rows: Sequence[JsonRow]) -> NetTable:
    lines = (
        (
            row["runs"],
            f"{row['mib_per_s']:.0f}",
            _ratio(row),
            f"{row['busy_p50_ms']:.2f}",
            f"{row['busy_p99_ms']:.2f}",
            f"{row['busy_mib_per_s']:.0f}",
        )
        for row in rows
    )
    busy = size_text(rows[0]["busy_bulk_bytes"])
    return NetTable(
        f"One hop, {size_text(rows[0]['bulk_bytes'])} one way",
        ("", "MiB/s", "ours", f"step beside {busy}: p50, ms", "p99, ms", "MiB/s then"),
        tuple(lines),
        "a step is 8 KiB there and back, one after the other, 5 ms between them",
    )


def _decode(rows: Sequence[JsonRow]) -> NetTable:
    lines = []
    for row in rows:
        hops = row["beside_hops"]
        over = f"{hops} hop{'s' if hops > 1 else ''}"
        name = f"{over}, {row['wire_dtype']}" if row["hops"] else f"here, beside {over}"
        added = "" if row["ms_per_hop"] is None else f"{row['ms_per_hop']:.2f}"
        same = "" if row["same_tokens_percent"] is None else f"{row['same_tokens_percent']:.0f}%"
        figures = (
            f"{row['prefill_ms']:.1f}",
            f"{row['p50_ms']:.2f} / {row['p99_ms']:.2f}",
            f"{row['tokens_per_s']:.0f}",
        )
        lines.append((name, str(row["bytes_per_token"]), *figures, added, same))
    first = rows[0]
    return NetTable(
        f"Decode of {first['model']} ({first['dtype']}) over nodes of their own processes",
        ("", "bytes/token", f"prefill of {first['prompt_tokens']}, ms", "step, ms", "tokens/s", "ms a hop", "same"),
        tuple(lines),
        "steps p50 / p99; bytes on all wires of a step; same: tokens as drawn here; "
        f"{first['num_threads']} thread{'s' if first['num_threads'] > 1 else ''} each",
    )


def _codec(rows: Sequence[JsonRow]) -> NetTable:
    lines = (
        (
            f"{row['hops']} hop{'s' if row['hops'] > 1 else ''}",
            f"{row['percent_of_bytes']:.0f}%",
            f"{100 * row['logit_error']:.2f}%",
            f"{row['kl_nats']:.2g}",
            f"{row['same_top_percent']:.1f}%",
        )
        for row in rows
    )
    return NetTable(
        "--wire-dtype int8 beside exact",
        ("", "bytes", "logits off by", "KL, nats", "same token first"),
        tuple(lines),
        f"{rows[0]['model']}, {rows[0]['num_positions']} tokens of right answers to held-out questions",
    )


def _links(rows: Sequence[JsonRow]) -> NetTable:
    lines = []
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        times = (f"{row['p50_ms']:.1f} / {row['p99_ms']:.1f}" for row in (ours, theirs))
        rates = (f"{row['mib_per_s']:.2f}" for row in (ours, theirs))
        lines.append((_link_text(ours), *times, *rates, f"{theirs['ours_over_it']:.1f}x"))
    return NetTable(
        "One hop over emulated links: ours, and aioquic's cubic",
        ("", "8 KiB, ms", "cubic's", "MiB/s", "cubic's", "ours"),
        tuple(lines),
        "p50 / p99 there and back; bulk of the first seconds; datagrams of 1452",
    )


def _relay_steps(rows: Sequence[JsonRow]) -> NetTable:
    sizes = sorted({row["payload_bytes"] for row in rows})
    lines = []
    for name in dict.fromkeys(row["runs"] for row in rows):
        own = {row["payload_bytes"]: row for row in rows if row["runs"] == name}
        times = (f"{_ms(own[size]['p50_us'])} / {_ms(own[size]['p99_us'])}" for size in sizes)
        added = (row["added_us"] for row in (own[size] for size in sizes))
        lines.append((name, *times, *("" if one is None else _ms(one) for one in added)))
    return NetTable(
        "One hop beside one through a relay, there and back, ms",
        ("", *map(size_text, sizes), *(f"added, {size_text(size)}" for size in sizes)),
        tuple(lines),
        "p50 / p99 by payload; added: to the p50 of the direct hop in the same round",
    )


def _relay_bulk(rows: Sequence[JsonRow]) -> NetTable:
    lines = []
    for row in rows:
        figures = ("", "", "", "")
        if row["percent_of_direct"] is not None:
            memory = f"{row['relay_mib_before']:.1f} to {row['relay_mib_after']:.1f}"
            figures = (
                f"{row['percent_of_direct']:.0f}%",
                f"{row['num_datagrams']:,}",
                f"{row['relay_cpu_us']:.1f}",
                memory,
            )
        lines.append((row["runs"], f"{row['mib_per_s']:.1f}", *figures))
    return NetTable(
        f"The same, {size_text(rows[0]['bulk_bytes'])} one way",
        ("", "MiB/s", "of direct", "datagrams", "relay's CPU each, us", "its memory, MiB"),
        tuple(lines),
        "memory: resident, before the first round and after the last",
    )


def _dials(rows: Sequence[JsonRow]) -> NetTable:
    names = {"address": "by address", "id, cold": "by id, its relay dialled too", "id": "by id, at the relay already"}
    return NetTable(
        "Until a peer is connected, on loopback, ms",
        ("", "p50", "longest"),
        tuple((names[row["runs"]], f"{row['p50_ms']:.1f}", f"{row['longest_ms']:.1f}") for row in rows),
        f"of {rows[0]['rounds']} dials each, in turns",
    )


def _changes(rows: Sequence[JsonRow]) -> NetTable:
    lines = (
        (
            row["runs"],
            f"{row['before_p50_ms']:.2f}",
            f"{row['after_p50_ms']:.2f}",
            f"{row['found_ms']:.1f}",
            f"{row['longest_ms']:.1f}",
        )
        for row in rows
    )
    return NetTable(
        f"A way that changes under steps of {size_text(rows[0]['payload_bytes'])}, ms",
        ("", "step before", "behind it", "found after", "longest step"),
        tuple(lines),
        f"p50; longest: of all {rows[0]['rounds']} changes, until half a second behind; datagrams up to "
        f"{rows[0]['datagram_bytes']}",
    )


def _nats(rows: Sequence[JsonRow]) -> NetTable:
    lines = []
    for row in rows:
        if row["note"]:
            lines.append((f"{row['nat']}: {row['note']}", "", "", "", ""))
            continue
        straight = "stays relayed" if row["straight_ms"] is None else f"{row['straight_ms']:.0f}"
        token = "" if row["first_token_ms"] is None else f"{row['first_token_ms']:.0f}"
        found = f"{row['num_straight']} of {row['rounds']}"
        lines.append((f"{row['nat']}, {row['runs']}", f"{row['connected_ms']:.0f}", straight, found, token))
    return NetTable(
        f"By id through two NATs of a kind, {rows[0]['rtt_ms']:.0f} ms apart, ms",
        ("", "connected", "straight", "found", "first token"),
        tuple(lines),
        "medians from the dial on, at the relay already; token: of demo, whose layers are all at the far end, to a "
        "caller that has loaded the rest and dials the relay too",
    )


def _memory(rows: Sequence[JsonRow]) -> NetTable:
    lines = (
        (
            f"{row['runs']}: {row['amount']}",
            f"{row['before_mib']:.1f}",
            f"{row['most_mib']:.1f}",
            f"{row['after_mib']:.1f}",
            f"{row['before_handles']} / {row['after_handles']}",
        )
        for row in rows
    )
    return NetTable(
        "A node's memory, MiB",
        ("", "before", "at most", "after", "handles before / after"),
        tuple(lines),
        "both of its processes; half of the demo model's layers",
    )


def _link_text(row: JsonRow) -> str:
    jitter = f" +- {row['jitter_ms']:g} ms" if row["jitter_ms"] else ""
    return f"{row['rtt_ms']:g} ms{jitter}, {row['loss_percent']:g}% lost"


def size_text(num_bytes: int) -> str:
    """16384 -> "16 KiB"."""
    return f"{num_bytes // _MIB} MiB" if num_bytes >= _MIB else f"{num_bytes // _KIB} KiB"


def _ms(microseconds: float) -> str:
    """0.81, 12.3, 107: three digits at most."""
    value = microseconds / 1e3
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _ratio(row: JsonRow) -> str:
    return "" if row["ours_over_it"] is None else f"{row['ours_over_it']:.2f}x"
