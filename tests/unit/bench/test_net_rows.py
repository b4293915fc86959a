"""From turns to rows, and from rows to tables. All times are made up."""

import json
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from hopformer.bench.machine import Machine
from hopformer.bench.net_cluster import spans
from hopformer.bench.net_decode import DecodeTurn
from hopformer.bench.net_dial import Dialled
from hopformer.bench.net_emulator import EmulatedLink
from hopformer.bench.net_hop import HopEffort, HopTurn, LinkTurn
from hopformer.bench.net_lines import LINES, PATH_LINES
from hopformer.bench.net_memory import Footprint, MemoryTurn
from hopformer.bench.net_nat import NatTurn
from hopformer.bench.net_relay import ChangeTurn, RelayEffort, RelayTurn
from hopformer.bench.net_relay_rows import change_row, dial_rows, nat_rows, no_nat_rows, relay_rows
from hopformer.bench.net_rows import (
    NetConditions,
    NetRow,
    codec_row,
    decode_row,
    hop_rows,
    link_row,
    memory_row,
    percentile,
)
from hopformer.bench.net_table import net_as_markdown, rich_tables, size_text
from hopformer.bench.net_wire_error import WireError
from hopformer.bench.table import as_markdown
from hopformer.net.messages import Codec, Dtype
from hopformer.net.row_layout import RowLayout

MACHINE = Machine("abc", "2026-01-02", "A CPU", 2, 8, "Linux x86_64", "3.11", "2.13")
CONDITIONS = NetConditions(MACHINE, "0.1", "1.7.2", "50", 1, False)
EFFORT = HopEffort({8192: 3, 1 << 20: 2}, 32 << 20, 64 << 20)
SECONDS = {line.name: 0.001 * (index + 1) for index, line in enumerate(LINES)}
ABOUT: dict[str, Any] = {"model": "demo", "dtype": "bfloat16", "prompt_tokens": 64}


def hop_turn(step_s: float) -> HopTurn:
    steps = {8192: [step_s] * 3, 1 << 20: [10 * step_s] * 2}
    return HopTurn(EFFORT, steps, {8192: step_s, 1 << 20: step_s}, 2**20 / step_s, [step_s, 3 * step_s], 2**19 / step_s)


def hops() -> list[NetRow]:
    """Every contender in two rounds, of which the second is twice as slow for all."""
    turns = [(line, [hop_turn(SECONDS[line.name]), hop_turn(2 * SECONDS[line.name])]) for line in LINES]
    return hop_rows(CONDITIONS, turns)


def decodes() -> list[NetRow]:
    local = [DecodeTurn(0.010, [0.002, 0.002], [1, 2, 3]), DecodeTurn(0.020, [0.004, 0.004], [4, 5, 6])]
    remote = [DecodeTurn(0.030, [0.006, 0.006], [1, 2, 3]), DecodeTurn(0.040, [0.010, 0.010], [4, 9, 6])]
    here = {**ABOUT, "wire_dtype": None, "hops": 0, "beside_hops": 2}
    over = {**ABOUT, "wire_dtype": "int8", "hops": 2, "beside_hops": 2}
    layout = RowLayout(Dtype.BFLOAT16, Codec.INT8, 192)
    return [decode_row(CONDITIONS, here, None, local, local), decode_row(CONDITIONS, over, layout, remote, local)]


def links() -> list[NetRow]:
    own, theirs = [LinkTurn([0.02, 0.03], 20 * 2**20)], [LinkTurn([0.03, 0.05], 2**20)]
    link = EmulatedLink(0.02, 0.005, 0.01)
    return [link_row(CONDITIONS, line, link, turns, own) for line, turns in zip(PATH_LINES, (own, theirs), strict=True)]


def relays() -> list[NetRow]:
    """Two rounds, of which the second is twice as slow for both."""
    effort = RelayEffort({8192: 3}, 16 << 20, 2, 2, 2)
    direct = [RelayTurn({8192: [0.001] * 3}, 40 * 2**20), RelayTurn({8192: [0.002] * 3}, 20 * 2**20)]
    relayed = [
        RelayTurn({8192: [0.002] * 3}, 20 * 2**20, 0.1, 10_000, (60 << 20, 61 << 20)),
        RelayTurn({8192: [0.004] * 3}, 10 * 2**20, 0.2, 10_000, (61 << 20, 62 << 20)),
    ]
    rows = relay_rows(CONDITIONS, effort, {("direct", 1452): direct, ("relayed", 1452): relayed})
    rows += dial_rows(CONDITIONS, {"address": [0.010, 0.030], "id, cold": [0.040, 0.050], "id": [0.020, 0.030]})
    changes = [ChangeTurn([0.002], [0.002, 0.009], [0.001], 0.05), ChangeTurn([0.004], [0.012], [0.002], 0.15)]
    return [*rows, change_row(CONDITIONS, changes, 1452)]


def nats() -> list[NetRow]:
    punched = [Dialled(0.08, 0.2), Dialled(0.10, None), Dialled(0.09, 0.3)]
    turn = NatTurn({"punch": punched, "ice": [Dialled(0.1, None)]}, [0.25, 0.35])
    return [*nat_rows(CONDITIONS, {"cone": turn}, 0.02), *no_nat_rows(CONDITIONS, ["double"], 0.02, "needs root")]


def everything() -> list[dict[str, Any]]:
    codec = codec_row(CONDITIONS, "demo", "bfloat16", 2, 52.0, WireError(500, 0.0123, 1e-5, 99.5))
    turn = MemoryTurn("sessions", "10,000 opened, used and closed", Footprint(400.04, 12), 401.5, Footprint(400.5, 12))
    memory = memory_row(CONDITIONS, turn)
    rows = [*hops(), *decodes(), codec, *links(), *relays(), *nats(), memory]
    return json.loads(json.dumps([row.as_json() for row in rows]))


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0 and percentile([1.0], 99) == 1.0
    assert percentile(list(range(100)), 99) == 99


def test_ratios_are_of_our_endpoint_with_datagrams_of_that_size() -> None:
    steps = {row["runs"]: row for row in (one.as_json() for one in hops()) if row.get("payload_bytes") == 8192}
    assert steps["hopformer, 1452"]["ours_over_it"] is None and steps["hopformer, 8900"]["ours_over_it"] is None
    for name, ours in (("aioquic, 1452", "hopformer, 1452"), ("TCP with TLS", "hopformer, 8900")):
        assert steps[name]["ours_over_it"] == pytest.approx(SECONDS[name] / SECONDS[ours])
    assert steps["aioquic, 1452"]["p50_us"] == pytest.approx(1.5e6 * SECONDS["aioquic, 1452"])
    assert steps["aioquic, 1452"]["version"] == "1.7.2" and steps["TCP with TLS"]["version"] == "3.11"


def test_bulk_rows_have_the_steps_beside_it() -> None:
    row = next(one.as_json() for one in hops() if one.measures == "bulk")
    assert (row["bulk_bytes"], row["busy_bulk_bytes"], row["busy_num_steps"]) == (32 << 20, 64 << 20, 4)
    assert row["mib_per_s"] == pytest.approx((1000 + 500) / 2) and row["busy_p99_ms"] == pytest.approx(4.5)


def test_a_hop_adds_what_a_step_took_more_in_the_same_round() -> None:
    here, over = (row.as_json() for row in decodes())
    assert here["ms_per_hop"] is None and here["bytes_per_token"] == 0 and here["same_tokens_percent"] is None
    assert over["ms_per_hop"] == pytest.approx((4 + 6) / 2 / 2)
    assert over["bytes_per_token"] == 3 * (56 + 192 + 2 * 4) and over["decode_tokens"] == 2
    assert over["same_tokens_percent"] == pytest.approx(100 * 5 / 6)


def test_a_link_through_which_nothing_came_is_a_row_too() -> None:
    row = link_row(CONDITIONS, PATH_LINES[1], EmulatedLink(0.1), [LinkTurn([0.1], 0.0)], [LinkTurn([0.1], 100.0)])
    assert row.mib_per_s == 0 and row.ours_over_it == 100 and row.rtt_ms == 100


def test_every_row_says_what_it_measures_where_and_of_what() -> None:
    for row in everything():
        assert row["bench"] == "net" and row["commit"] == "abc" and row["device"] and row["aioquic"] == "1.7.2"
        assert row["runs"] and (row["rounds"] >= 1 or row["note"])
    hop = ["step"] * 12 + ["bulk"] * 6
    relay = ["relay_step"] * 2 + ["relay_bulk"] * 2 + ["dial"] * 3 + ["change"]
    assert [row["measures"] for row in everything()] == [
        *hop,
        *["decode"] * 2,
        "codec",
        *["link"] * 2,
        *relay,
        *["nat"] * 3,
        "memory",
    ]


def test_a_relay_adds_what_its_hop_took_more_in_the_same_round() -> None:
    direct, relayed, plain, bulk, *dials, change = (row.as_json() for row in relays())
    assert direct["added_us"] is None and relayed["added_us"] == pytest.approx((1000 + 2000) / 2)
    assert plain["relay_cpu_us"] is None and plain["percent_of_direct"] is None
    assert bulk["percent_of_direct"] == pytest.approx(50) and bulk["relay_cpu_us"] == pytest.approx(15)
    assert (bulk["relay_mib_before"], bulk["relay_mib_after"], bulk["num_datagrams"]) == (60, 62, 10_000)
    assert [(row["runs"], row["p50_ms"], row["longest_ms"]) for row in dials[:1]] == [("address", 20, 30)]
    assert (change["longest_ms"], change["before_p50_ms"], change["found_ms"]) == pytest.approx((12, 3, 100))


def test_a_dial_that_stays_relayed_is_counted_and_not_timed() -> None:
    punch, ice, missing = (row.as_json() for row in nats())
    assert (punch["num_straight"], punch["rounds"], punch["straight_ms"]) == (2, 3, pytest.approx(250))
    assert punch["connected_ms"] == pytest.approx(90) and punch["first_token_ms"] == pytest.approx(300)
    assert ice["num_straight"] == 0 and ice["straight_ms"] is None and ice["first_token_ms"] is None
    assert missing["note"] == "needs root" and missing["connected_ms"] is None and missing["nat"] == "double"


def test_tables_fit_into_100_columns() -> None:
    out = StringIO()
    Console(file=out, width=100).print(*rich_tables(everything()), sep="\n")
    text = out.getvalue()
    assert "…" not in text and all(len(line) <= 100 for line in text.splitlines())
    words_of_all = ("there and back", "beside 64 MiB", "2 hops, int8", "20 ms +- 5 ms, 1% lost", "logits off by")
    for words in (*words_of_all, "added, 8 KiB", "60.0 to 62.0", "by id, at the relay already", "2 of 3", "needs root"):
        assert words in text


def test_a_document_gets_the_same_tables() -> None:
    text = as_markdown(everything())
    assert text == net_as_markdown(everything())
    assert text.startswith("hopformer 0.1 on A CPU (2 cores, 8 GiB") and "commit abc, 2026-01-02." in text
    assert "| TCP with TLS | 9.00 / 9.00 | 90.0 / 90.0 | 9.00 | 3.00x |" in text
    assert "| 2 hops, int8 | 768 | 35.0 | 8.00 / 8.00 | 125 | 2.50 | 83% |" in text
    assert "| sessions: 10,000 opened, used and closed | 400.0 | 401.5 | 400.5 | 12 / 12 |" in text
    assert "| 20 ms +- 5 ms, 1% lost | 30.0 / 30.0 | 50.0 / 50.0 | 20.00 | 1.00 | 20.0x |" in text
    assert "a quick run" in net_as_markdown([row | {"is_quick": True} for row in everything()])


def test_a_run_without_links_has_no_table_of_them() -> None:
    rows = [row for row in everything() if row["measures"] != "link"]
    assert "emulated" not in net_as_markdown(rows) and "int8" in net_as_markdown(rows)


def test_layers_are_shared_out_evenly() -> None:
    assert spans(8, 1) == [(0, 8)] and spans(8, 4) == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert spans(8, 3) == [(0, 2), (2, 5), (5, 8)] and size_text(16384) == "16 KiB" and size_text(1 << 20) == "1 MiB"
