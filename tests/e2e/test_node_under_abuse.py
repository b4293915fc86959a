"""A node of ``hopformer serve`` and peers that do what they should not: it serves the others as if nothing were."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hopformer.bench.net_memory import MemoryEffort, measure_memory
from hopformer.llama.fingerprint import fingerprint
from hopformer.llama.hub import resolve_model
from hopformer.net.activations import pack
from hopformer.net.endpoint import Endpoint
from hopformer.net.identity import Identity, PeerId
from hopformer.net.messages import (
    Close,
    Codec,
    Done,
    Dtype,
    Message,
    Neighbours,
    Open,
    Opened,
    Reason,
    Refuse,
    SessionKey,
    Step,
)
from hopformer.net.network_process import ProcessSwitchboard
from hopformer.net.row_layout import RowLayout
from hopformer.net.switchboard import Event, PeerDown, PeerUp, Received
from hopformer.net.udp import split_host_port
from hopformer.net.wire import MAX_FRAME_BYTES, encode

import torch  # isort: skip

pytestmark = pytest.mark.slow

PATIENCE_S = 60.0
WIDTH = 32
KINDS = Dtype.FLOAT32, Codec.EXACT, WIDTH
LAYOUT = RowLayout(*KINDS)


@pytest.fixture
def node(tiny_model: Path, environment: dict[str, str], tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What a node that serves both layers says of itself; it must still be there at the end, and end as it should."""
    command = [sys.executable, "-m", "hopformer", "serve", str(tiny_model), "--identity", "key.pem"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=tmp_path) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=PATIENCE_S)
            assert (process.returncode, err) == (0, "")
        finally:
            process.kill()


class Caller:
    """A peer with a process for its network, as real ones have."""

    def __init__(self, node: dict[str, Any]) -> None:
        self.board = ProcessSwitchboard.start(Identity.generate(), ["127.0.0.1:0"])
        self.node = PeerId.parse(node["peer_id"])
        self.events: list[Event] = []
        self.board.dial(self.node, node["addrs"])
        self.wait_for(PeerUp)

    def wait_for(self, kind: type) -> Any:
        """The next event or message of a kind."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for event in self.events:
                found = event.message if isinstance(event, Received) else event
                if isinstance(found, kind):
                    self.events.remove(event)
                    return found
            assert time.monotonic() < deadline, f"no {kind.__name__} came"
            self.events += self.board.poll(1.0)

    def send(self, *messages: Message) -> None:
        self.board.send_all((self.node, one) for one in messages)

    def opening(self, model: Path, number: int) -> Open:
        me = self.board.peer_id
        print_of = fingerprint(model)
        return Open(SessionKey(me, number), print_of, 0, 2, *KINDS[:2], 64, 60, Neighbours(me, me, ()))

    def compute(self, number: int, hidden: torch.Tensor, step: int = 1, position: int = 0) -> bytes:
        """The rows of a step."""
        key, count = SessionKey(self.board.peer_id, number), len(hidden)
        self.send(Step(key, step, position, count, count, False, *KINDS, pack(hidden, LAYOUT)))
        rows = self.wait_for(Step)
        self.wait_for(Done)
        return bytes(rows.payload)


@pytest.fixture
def callers(node: dict[str, Any]) -> Iterator[list[Caller]]:
    found = [Caller(node), Caller(node)]
    yield found
    for one in found:
        one.board.close()


def hidden_of(seed: int, count: int = 7) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_two_callers_with_one_session_number_have_a_session_each(callers: list[Caller], tiny_model: Path) -> None:
    anna, bela = callers
    for one in callers:
        one.send(one.opening(tiny_model, 7))
        one.wait_for(Opened)
    first = [one.compute(7, hidden_of(seed)) for seed, one in enumerate(callers)]
    assert first[0] != first[1]
    bela.send(Close(SessionKey(anna.board.peer_id, 7)))
    assert bela.wait_for(Refuse).reason is Reason.UNKNOWN_SESSION
    theirs = Step(SessionKey(anna.board.peer_id, 7), 2, 7, 1, 1, False, *KINDS, pack(hidden_of(9, 1), LAYOUT))
    bela.send(theirs)
    assert bela.wait_for(Refuse).reason is Reason.UNKNOWN_SESSION
    bela.send(Close(SessionKey(bela.board.peer_id, 7)))
    longer = torch.cat([hidden_of(0), hidden_of(5, 1)])
    anna.send(anna.opening(tiny_model, 8))
    anna.wait_for(Opened)
    expected = anna.compute(8, longer)
    again = first[0] + anna.compute(7, hidden_of(5, 1), step=2, position=7)
    found, wanted = (torch.frombuffer(bytearray(one), dtype=torch.float32) for one in (again, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def raw_frames() -> dict[str, tuple[bytes, str]]:
    """What is no message, and what the node says of it."""
    key = SessionKey(PeerId(bytes(22)), 1)
    step = b"".join(encode(Step(key, 1, 0, 1, 1, False, *KINDS, bytes(4 * WIDTH))))
    return {
        "noise": (b"\xff" * 400, "kind 255 is no message"),
        "a frame that says it is too long": (struct.pack(">IBB", MAX_FRAME_BYTES, 1, 0), "are allowed"),
        "a small message that says it is too long": (struct.pack(">IBB", 1 << 20, 2, 0), "6 to 8192 are allowed"),
        "rows that are fewer than it says": (step[:44] + b"\0\0\0\2\0\2" + step[50:], "payload has 128 bytes"),
        "more tokens than there may be": (step[:44] + b"\xff" * 4 + step[48:], "num_tokens is"),
        "a message that ends within a field": (struct.pack(">IBB", 12, 7, 0) + bytes(10), "in the middle of one"),
    }


@pytest.mark.parametrize("name", raw_frames())
def test_who_sends_what_is_no_message_is_cut_off_and_nobody_else(
    node: dict[str, Any], tiny_model: Path, name: str
) -> None:
    honest = Caller(node)
    try:
        honest.send(honest.opening(tiny_model, 1))
        honest.wait_for(Opened)
        frame, words = raw_frames()[name]
        assert words in asyncio.run(downfall(node, frame, end_stream=False))
        assert honest.compute(1, hidden_of(1))
    finally:
        honest.board.close()


def test_a_message_that_is_cut_short_ends_the_connection(node: dict[str, Any]) -> None:
    step = b"".join(encode(Close(SessionKey(PeerId(bytes(22)), 1))))
    assert "ended after" in asyncio.run(downfall(node, step[:-1], end_stream=True))


async def downfall(node: dict[str, Any], sent: bytes, end_stream: bool) -> str:
    """Why the node ends a connection on which a stream of ``sent`` has come."""
    events: list[Event] = []
    endpoint = Endpoint(Identity.generate(), None, events.append)
    with contextlib.closing(endpoint):
        endpoint.listen(["127.0.0.1:0"])
        endpoint.dial(PeerId.parse(node["peer_id"]), node["addrs"])
        await until(lambda: any(isinstance(one, PeerUp) for one in events))
        (connection,) = endpoint._peers.values()
        connection.link.quic.send_stream_data(6, sent, end_stream)
        endpoint._carrier.send_soon(connection)
        await until(lambda: any(isinstance(one, PeerDown) for one in events))
    return next(one.reason for one in events if isinstance(one, PeerDown))


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


def test_noise_at_the_socket_disturbs_nobody(callers: list[Caller], node: dict[str, Any], tiny_model: Path) -> None:
    anna = callers[0]
    anna.send(anna.opening(tiny_model, 1))
    anna.wait_for(Opened)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect(split_host_port(node["addrs"][0]))
        for size in (0, 1, 2, 20, 33, 1199, 1200, 1452, 8900, 60_000):
            for first in (0x00, 0x01, 0x02, 0x03, 0x40, 0x80, 0xC3, 0xFF):
                udp.send(bytes([first] * min(size, 1)) + os.urandom(max(size - 1, 0)))
    assert anna.compute(1, hidden_of(1))


def test_memory_and_handles_stay_as_they_are() -> None:
    effort = MemoryEffort(warm_sessions=300, sessions=1500, unread_bytes=96 << 20, garbage_s=1.0)
    for turn in measure_memory(resolve_model("demo"), effort):
        assert turn.after.handles <= turn.before.handles, turn
        bound_mib = 80 if turn.case == "unread" else 4  # see test_quic_link.py, and docs/security.md
        assert turn.most_mib - turn.before.mib < bound_mib, turn
