"""``hopformer peers``: a directory's entries as a table, as lines, as JSON, and live in a terminal."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pexpect
import pytest

import hopformer
from hopformer.cli.peers import SETTLE_S, peer_rows, show_peers
from hopformer.errors import NetworkError
from hopformer.net.announcement import Announcement
from hopformer.net.directory import Directory, Entry, Via
from hopformer.net.identity import Identity, PeerId
from hopformer.net.layer_range import LayerRange
from hopformer.net.messages import Codec, Dtype

START = 1_800_000_000.0  # the time of day at 0 on the clock of `Heard`
ANNA, BELA, CARL = (Identity.from_seed(bytes([index]) * 32) for index in range(3))
COLUMNS = ("state", "ms/layer", "tokens", "load", "where", "version", "age")
RELAY = f"{PeerId(bytes(22))}@relay.example:4433"


def says(who: Identity, layers: str | None, at: float = 0.0, **changes: object) -> bytes:
    span = None if layers is None else LayerRange.parse(layers)
    dtype = None if layers is None else Dtype.BFLOAT16
    issued_at = int((START + at) * 1000)
    one = Announcement(who.public_bytes, issued_at, 60, "demo", bytes(32), 8, span, span is not None, dtype)
    return replace(one, version="1.2.3", **changes).sign(who)  # type: ignore[arg-type]


class Heard:
    """A discovery over a real directory, whose turns let time pass; ``coming`` is heard at its time."""

    def __init__(self, *blobs: bytes, coming: dict[float, bytes] | None = None) -> None:
        self.directory = Directory()
        self.time = 0.0
        self.coming = coming or {}
        for blob in blobs:
            self.hear(blob)

    def hear(self, blob: bytes, via: Via = Via.LAN) -> None:
        self.directory.put(blob, self.time, START + self.time, via)

    def now(self) -> float:
        return self.time

    def entries(self) -> list[Entry]:
        return self.directory.entries()

    def turn(self, timeout_s: float) -> bool:
        due = min((at for at in self.coming if at <= self.time + timeout_s), default=None)
        self.time = self.time + timeout_s if due is None else max(self.time, due)
        if due is not None:
            self.hear(self.coming.pop(due))
        return bool(self.directory.expire(self.time)) or due is not None


def test_a_row_says_what_a_peer_serves_how_fast_and_where_it_was_heard() -> None:
    busy = {"layer_us": 1234, "free_tokens": 131_072, "num_sessions": 3, "queue_us": 2500}
    heard = Heard(says(ANNA, "2:6", **busy))
    heard.hear(says(ANNA, "2:6", **busy), Via.RELAY)
    (row,) = peer_rows(heard.entries(), 12.4)
    assert row.peer == f"{str(ANNA.peer_id)[:10]}.." and row.model == "demo" and row.version == "1.2.3"
    assert (row.layers, row.bar, row.state) == ("2:6 of 8", "..####..", "ready")
    assert (row.layer, row.tokens, row.load) == ("1.23", "131k", "3 (2.5 ms)")
    assert (row.where, row.age) == ("LAN, relay", "12 s")


def test_a_peer_that_is_loading_or_choosing_says_so() -> None:
    heard = Heard(says(ANNA, "0:4", is_ready=False), says(BELA, None))
    loading, choosing = peer_rows(heard.entries(), 0.0)
    assert (loading.layers, loading.bar, loading.state, loading.load) == ("0:4 of 8", "----....", "loading", "")
    assert (choosing.layers, choosing.bar, choosing.state) == ("none of 8", "........", "choosing")


def test_rows_are_in_the_order_of_models_and_their_layers() -> None:
    heard = Heard(says(ANNA, "4:8"), says(BELA, "0:4"), says(CARL, "0:8", model="a model"))
    assert [(row.model, row.layers) for row in peer_rows(heard.entries(), 0.0)] == [
        ("a model", "0:8 of 8"),
        ("demo", "0:4 of 8"),
        ("demo", "4:8 of 8"),
    ]


def test_many_layers_share_the_characters_of_a_bar() -> None:
    (row,) = peer_rows(Heard(says(ANNA, "0:41", num_layers=80)).entries(), 0.0)
    assert row.bar == "########+......."


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (9999, "9999"), (10_000, "10k"), (12_345_678, "12M"), ((1 << 64) - 1, "18E")]
)
def test_numbers_take_few_characters(number: int, text: str) -> None:
    (row,) = peer_rows(Heard(says(ANNA, "0:8", free_tokens=number)).entries(), 0.0)
    assert row.tokens == text


def test_without_a_terminal_the_table_is_printed_once_after_it_has_settled(capsys: pytest.CaptureFixture[str]) -> None:
    heard = Heard(says(ANNA, "0:4"), coming={SETTLE_S - 0.1: says(BELA, "4:8", SETTLE_S - 0.1)})
    assert show_peers(heard) == 0 and heard.now() == SETTLE_S
    out, err = capsys.readouterr()
    titles, anna, bela, empty, summary = out.splitlines()
    assert titles.split() == ["peer", "model", "layers", *COLUMNS]
    assert "####...." in anna and "....####" in bela and anna.index("LAN") == bela.index("LAN") == titles.index("where")
    assert (empty, summary, err) == ("", "demo (layers 0:8 complete)", "")


def test_json_has_everything_and_nothing_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    said = {"addrs": ("10.0.0.2:4711",), "relays": (RELAY,), "codecs": (Codec.EXACT, Codec.INT8), "max_layers": 8}
    assert show_peers(Heard(says(ANNA, "0:4", **said), says(BELA, None)), as_json=True) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    anna, bela = json.loads(out)["peers"]
    assert anna == {
        "peer_id": str(ANNA.peer_id),
        "model": "demo",
        "fingerprint": "00" * 32,
        "num_layers": 8,
        "layers": "0:4",
        "ready": True,
        "dtype": "bfloat16",
        "codecs": ["exact", "int8"],
        "network": None,
        "free_tokens": 0,
        "layer_us": 0,
        "num_sessions": 0,
        "queue_us": 0,
        "max_layers": 8,
        "version": "1.2.3",
        "addrs": ["10.0.0.2:4711"],
        "relays": [RELAY],
        "where": ["lan"],
        "age_s": SETTLE_S,
        "expires_in_s": 60 - SETTLE_S,
    }
    assert (bela["layers"], bela["ready"], bela["dtype"]) == (None, False, None)


def test_where_nobody_is_announced_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_peers(Heard(), once=True) == 0 and capsys.readouterr().out == "nobody is announced\n"
    assert show_peers(Heard(), as_json=True) == 0 and json.loads(capsys.readouterr().out) == {"peers": []}


def test_who_expires_while_it_settles_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    heard = Heard(says(ANNA, "0:8"))
    heard.time = 58.0
    assert show_peers(heard) == 0 and capsys.readouterr().out == "nobody is announced\n"


def test_a_network_that_has_ended_ends_it_with_its_error() -> None:
    class Ended(Heard):
        def turn(self, timeout_s: float) -> bool:
            raise NetworkError("the network's process has ended")

    with pytest.raises(NetworkError, match="has ended"):
        show_peers(Ended())


# ---- in a terminal

LIVE = """
import sys, time
sys.path.insert(0, sys.argv[1])
from test_peers import ANNA, BELA, Heard, says
from hopformer.cli.peers import show_peers

class Live(Heard):
    def turn(self, timeout_s):
        time.sleep(0.05)
        return super().turn(timeout_s)

heard = Live(says(ANNA, "0:4", model="[red]demo"), coming={2.0: says(BELA, "4:8", 2.0, model="[red]demo")})
sys.exit(show_peers(heard))
"""


@pytest.mark.parametrize(("columns", "has_bars"), [(120, True), (80, False)])
def test_in_a_terminal_the_table_lives_until_ctrl_c(columns: int, has_bars: bool) -> None:
    where = os.pathsep.join([str(Path(hopformer.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    child = pexpect.spawn(
        sys.executable,
        ["-c", LIVE, str(Path(__file__).parent)],
        env={**os.environ, "PYTHONPATH": where, "TERM": "xterm"},
        dimensions=(24, columns),
        encoding="utf-8",
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell ignores for jobs behind it
    )
    child.expect_exact("[red]demo (layers 0:4 of 8)")
    first = child.before
    child.expect_exact("[red]demo (layers 0:8 complete)")
    assert ("####...." in first) is has_bars and ("....####" in child.before) is has_bars
    assert "4:8 of 8" in child.before and "ready" in child.before and "…" not in child.before
    child.expect_exact("60 s")  # they live, and are gone when they expire
    child.expect_exact("nobody is announced")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
