"""`hopformer bench net` as it is typed, on loopback; nothing here looks at a time."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hopformer.bench import net_suite
from hopformer.bench.net_contender import ROW_BYTES, Contender
from hopformer.bench.net_decode import DecodeEffort
from hopformer.bench.net_emulator import EmulatedLink
from hopformer.bench.net_hop import HopEffort, LinkEffort, take_hop_turn
from hopformer.bench.net_lines import LINES, Line
from hopformer.bench.net_memory import MemoryEffort
from hopformer.bench.net_nat import NatEffort
from hopformer.bench.net_relay import RelayEffort
from hopformer.bench.net_suite import NetEffort
from hopformer.bench.netns import missing
from hopformer.cli.app import run
from hopformer.errors import NetworkError
from hopformer.net.identity import PeerId

TINY_HOP = HopEffort({ROW_BYTES: 2, 2 * ROW_BYTES: 1}, 1 << 20, 1 << 20)
TINY = NetEffort(
    TINY_HOP,
    1,
    LinkEffort(0.3, 0.3),
    (EmulatedLink(0.005, 0.001, 0.01),),
    DecodeEffort(5, 3, rounds=1),
    RelayEffort({ROW_BYTES: 2}, 1 << 20, 1, 1, 1),
    NatEffort(1, 5.0, 1),
    MemoryEffort(warm_sessions=20, sessions=30, unread_bytes=4 << 20, garbage_s=0.1),
)


@pytest.fixture(autouse=True)
def _leaves_no_process() -> Iterator[None]:
    """Whatever is measured, its processes end with it; multiprocessing keeps one of its own, from earlier tests."""
    before = psutil.Process().children(recursive=True)
    yield
    assert [one for one in psutil.Process().children(recursive=True) if one not in before] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hops", "0"], "--hops has 0; the demo model's 8 layers make 1 to 8 hops"),
        (["--hops", "9"], "1 to 8 hops"),
        (["--hops", "2,2"], "names one twice"),
        (["--hops", "two"], "--hops 'two'"),
        (["--threads", "0"], "--threads is 0"),
        (["--links", "maybe"], "maybe"),
        (["--only", "hop,moon"], "--only has 'moon'; the parts are hop, decode, links, relay, nat, memory"),
    ],
)
def test_what_means_nothing_is_wrong_usage(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "net", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


@pytest.mark.slow
def test_a_run_has_rows_of_everything_and_leaves_no_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(net_suite, "QUICK", TINY)
    output = tmp_path / "rows.json"
    only = ["--only", "hop,decode,links,memory"]
    assert run(["bench", "net", "--quick", "--hops", "2", *only, "--json", "--output", str(output)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert json.loads(output.read_text()) == rows
    found = [(row["measures"], row["runs"]) for row in rows]
    assert found[: 2 * len(LINES)] == [("step", line.name) for line in LINES] * 2
    assert [measure for measure, _ in found[2 * len(LINES) :]] == ["bulk"] * 6 + ["decode"] * 3 + [
        "codec",
        "link",
        "link",
    ] + ["memory"] * 3
    exact = next(row for row in rows if row.get("wire_dtype") == "exact")
    assert exact["same_tokens_percent"] == 100 and exact["bytes_per_token"] == 3 * (56 + 2 * 192)
    codec = next(row for row in rows if row["measures"] == "codec")
    assert 0 < codec["logit_error"] < 0.05 and codec["num_positions"] > 100


@pytest.mark.slow
def test_a_relays_rows_are_of_what_really_passed_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(net_suite, "QUICK", TINY)
    assert run(["bench", "net", "--quick", "--only", "relay", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    runs = ["direct, 1452", "relayed, 1452", "direct, 8900", "relayed, 8900"]
    assert [row["runs"] for row in rows if row["measures"] == "relay_step"] == runs
    for row in (row for row in rows if row["measures"] == "relay_bulk" and row["runs"].startswith("relayed")):
        assert row["num_datagrams"] >= (1 << 20) / row["datagram_bytes"] and row["relay_mib_before"] > 10
    assert [row["runs"] for row in rows[-4:]] == ["address", "id, cold", "id", "relayed to direct"]


@pytest.mark.slow
@pytest.mark.nat
@pytest.mark.timeout(600)
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_rows_of_nats_say_who_can_meet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(net_suite, "QUICK", TINY)
    monkeypatch.setattr(net_suite, "KINDS", kinds := ("double", "symmetric"))
    assert run(["bench", "net", "--quick", "--only", "nat", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["nat"], row["runs"]) for row in rows] == [(kind, way) for kind in kinds for way in ("punch", "ice")]
    met = {(row["nat"], row["runs"]): row["num_straight"] for row in rows}
    assert met == {key: 0 if key[0] == "symmetric" else 1 for key in met}
    assert all(row["first_token_ms"] > 0 for row in rows if row["runs"] == "punch")


class _Leaver(Contender):
    """Its connection is gone as soon as something is sent."""

    async def open(self, peer: PeerId | None, addr: str) -> None:
        """See Contender."""

    async def step(self, rows: bytes) -> None:
        """Tells it in a callback, as ours does, and is never answered."""

        def tell() -> None:
            raise ConnectionError("it was shut down")

        loop = asyncio.get_running_loop()
        loop.call_soon(tell)
        await loop.create_future()

    async def bulk(self, rows: bytes) -> None:
        """See Contender."""

    async def close(self) -> None:
        """See Contender."""

    def pids(self) -> list[int]:
        """See Contender."""
        return []


@pytest.mark.slow
def test_a_connection_that_is_lost_ends_the_turn_at_once() -> None:
    line = Line("one", "tls", lambda _: _Leaver(), 0, None)
    with pytest.raises(NetworkError, match="one: the connection is gone: it was shut down"):
        take_hop_turn(line, TINY_HOP)
