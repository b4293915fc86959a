"""``hopformer serve`` as a process, and a caller that talks to it over QUIC."""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hopformer import __version__
from hopformer.llama.assemble import ModelPart, Placement, load_model
from hopformer.llama.batch import Chunk
from hopformer.llama.config import load_config
from hopformer.llama.fingerprint import fingerprint
from hopformer.llama.hub import resolve_model
from hopformer.llama.kv_cache import KVCache
from hopformer.llama.pages import PagePool
from hopformer.llama.runner import SpanRunner
from hopformer.llama.sequences import SequenceTable
from hopformer.net.activations import pack, unpack
from hopformer.net.identity import Identity, PeerId
from hopformer.net.messages import (
    Ask,
    Codec,
    Done,
    Dtype,
    Goodbye,
    Message,
    Neighbours,
    Open,
    Opened,
    Reason,
    Refuse,
    Serving,
    SessionKey,
    Step,
)
from hopformer.net.network_process import ProcessSwitchboard
from hopformer.net.row_layout import RowLayout
from hopformer.net.switchboard import PeerUp, Received

PATIENCE_S = 60.0
EXIT_S = 5.0  # docs and contract: SIGTERM drains, and the process is gone by then
WIDTH = 32
LAYOUT = RowLayout(Dtype.FLOAT32, Codec.EXACT, WIDTH)

pytestmark = pytest.mark.slow


class Node:
    """A ``hopformer serve`` process."""

    def __init__(self, environment: dict[str, str], folder: Path, *arguments: object) -> None:
        self.stderr = (folder / "stderr").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hopformer", "serve", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            env=environment,
            cwd=folder,
            text=True,
        )
        assert self.process.stdout is not None
        self.ready: dict[str, Any] = json.loads(self.process.stdout.readline() or "{}")

    @property
    def peer(self) -> PeerId:
        return PeerId.parse(self.ready["peer_id"])

    def log(self) -> str:
        self.stderr.seek(0)
        return self.stderr.read().decode()

    def end(self, number: signal.Signals) -> tuple[int, float]:
        """Its exit code, and the seconds until it was gone."""
        start = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S), time.monotonic() - start

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.stderr.close()


@pytest.fixture
def serve(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """``serve(...)`` starts a node and waits until it is ready; it ends with the test."""
    nodes: list[Node] = []

    def start(*arguments: object) -> Node:
        nodes.append(Node(environment, tmp_path, *arguments))
        return nodes[-1]

    yield start
    for node in nodes:
        node.close()


class Caller:
    """A peer that talks to nodes."""

    def __init__(self) -> None:
        self.identity = Identity.generate()
        self.board = ProcessSwitchboard.start(self.identity, ["127.0.0.1:0"])
        self.inbox: list[Message] = []

    def connect(self, node: Node) -> None:
        self.board.dial(node.peer, node.ready["addrs"])
        deadline = time.monotonic() + PATIENCE_S
        while PeerUp(node.peer) not in self.board.poll(1.0):
            assert time.monotonic() < deadline

    def wait_for(self, kind: type[Message]) -> Any:
        """The next message of a kind."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = next((message for message in self.inbox if isinstance(message, kind)), None)
            if found is not None:
                self.inbox.remove(found)
                return found
            assert time.monotonic() < deadline, f"no {kind.__name__} came"
            self.inbox += [event.message for event in self.board.poll(1.0) if isinstance(event, Received)]

    def opening(self, model: Path, start: int, end: int) -> Open:
        me = self.identity.peer_id
        kinds = Dtype.FLOAT32, Codec.EXACT
        return Open(SessionKey(me, 1), fingerprint(model), start, end, *kinds, 64, 60, Neighbours(me, me, ()))


@pytest.fixture
def caller() -> Iterator[Caller]:
    caller = Caller()
    yield caller
    caller.board.close()


def span_rows(model: Path, start: int, end: int, hidden: torch.Tensor) -> torch.Tensor:
    """What the layers make of ``hidden``, here."""
    config = load_config(model)
    placement = Placement(torch.device("cpu"), torch.float32, 64)
    part = load_model(model, config, ModelPart(start, end, embed=False, head=False), placement)
    cache = KVCache(part.kv_shape, 4, 64, part.device)
    runner = SpanRunner(part.span, cache, SequenceTable(PagePool(4, 64)), part.device)
    runner.sequences.open(0)
    runner.sequences.reserve(0, len(hidden))
    with torch.inference_mode():
        return runner.forward([Chunk(0, 0, len(hidden))], hidden)


def test_a_node_serves_its_layers_tells_its_figures_and_drains(
    serve: Callable[..., Node], caller: Caller, tiny_model: Path
) -> None:
    node = serve(tiny_model, "--layers", "1:2", "--identity", "key.pem", "--metrics", "127.0.0.1:0")
    assert node.ready.keys() == {"ready", "peer_id", "addrs", "layers", "http"}
    assert node.ready["ready"] is True and node.ready["layers"] == "1:2"
    assert re.fullmatch(r"127\.0\.0\.1:\d+", node.ready["addrs"][0])
    caller.connect(node)
    caller.board.send(node.peer, Ask())
    serving = caller.wait_for(Serving)
    assert (serving.model, serving.start, serving.end) == (tiny_model.name, 1, 2)
    assert (serving.dtype, serving.codecs, serving.version) == (Dtype.FLOAT32, (Codec.EXACT,), __version__)

    opening = caller.opening(tiny_model, 1, 2)
    caller.board.send(node.peer, opening)
    assert caller.wait_for(Opened) == Opened(opening.session)
    hidden = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(3))
    kinds = Dtype.FLOAT32, Codec.EXACT, WIDTH
    caller.board.send(node.peer, Step(opening.session, 1, 0, 7, 7, False, *kinds, pack(hidden, LAYOUT)))
    rows = unpack(caller.wait_for(Step).payload, LAYOUT)
    torch.testing.assert_close(rows, span_rows(tiny_model, 1, 2, hidden), rtol=1e-5, atol=1e-5)
    assert caller.wait_for(Done).step == 1

    time.sleep(1.5)  # figures are told once a second
    with urllib.request.urlopen(f"http://{node.ready['http']}/metrics", timeout=10) as answer:
        figures = answer.read().decode()
    assert 'hopformer_tokens_total{kind="decode"} 7.0' in figures and "hopformer_sessions 1.0" in figures
    assert f'hopformer_peer_rtt_seconds{{peer="{caller.identity.peer_id}"}}' in figures

    code, seconds = node.end(signal.SIGTERM)
    assert code == 0 and seconds < EXIT_S
    assert isinstance(caller.wait_for(Goodbye), Goodbye)
    assert caller.wait_for(Refuse).reason is Reason.DRAINING


def test_hops_dial_each_other_and_push_straight_on(
    serve: Callable[..., Node], caller: Caller, tiny_model: Path
) -> None:
    first = serve(tiny_model, "--layers", "0:1", "--identity", "first.pem")
    second = serve(tiny_model, "--layers", "1:2", "--identity", "second.pem")
    me = caller.identity.peer_id
    on, back = Neighbours(me, second.peer, tuple(second.ready["addrs"])), Neighbours(first.peer, me, ())
    for node, start, neighbours in ((first, 0, on), (second, 1, back)):
        caller.connect(node)
        caller.board.send(node.peer, replace(caller.opening(tiny_model, start, start + 1), neighbours=neighbours))
        caller.wait_for(Opened)
    hidden = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(4))
    key = SessionKey(me, 1)
    kinds = Dtype.FLOAT32, Codec.EXACT, WIDTH
    for number, (start, end) in enumerate([(0, 7), (7, 8), (8, 9)]):
        payload = pack(hidden[start:end], LAYOUT)
        caller.board.send(first.peer, Step(key, number, start, end - start, 1, False, *kinds, payload))
    rows = torch.cat([unpack(caller.wait_for(Step).payload, LAYOUT) for _ in range(3)])
    expected = span_rows(tiny_model, 0, 2, hidden)[6:]
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)


def test_an_idle_node_ends_at_once_and_its_key_stays(serve: Callable[..., Node], tiny_model: Path) -> None:
    flags = ("--identity", "key.pem", "--log-format", "json", "--log-level", "info")
    first = serve(tiny_model, *flags)
    assert first.ready["layers"] == "0:2" and first.ready["http"] is None
    code, seconds = first.end(signal.SIGTERM)
    assert code == 0 and seconds < EXIT_S
    messages = [json.loads(line)["message"] for line in first.log().splitlines()]
    assert "draining: 0 sessions are open" in messages
    assert serve(tiny_model, *flags).ready["peer_id"] == first.ready["peer_id"]


def test_a_step_that_takes_long_does_not_keep_a_node_from_ending(serve: Callable[..., Node], caller: Caller) -> None:
    """Batch-invariant, a prompt of 2,000 tokens takes many seconds."""
    flags = ("--dtype", "float32", "--batch-invariant", "--identity", "key.pem", "--log-level", "warning")
    node = serve("demo", *flags)
    caller.connect(node)
    demo = resolve_model("demo")
    width, me = load_config(demo).hidden_size, caller.identity.peer_id
    kinds = Dtype.FLOAT32, Codec.EXACT
    key = SessionKey(me, 1)
    caller.board.send(node.peer, Open(key, fingerprint(demo), 0, 8, *kinds, 2000, 60, Neighbours(me, me, ())))
    caller.wait_for(Opened)
    caller.board.send(node.peer, Step(key, 1, 0, 2000, 1, False, *kinds, width, bytes(4 * width * 2000)))
    time.sleep(0.5)
    code, seconds = node.end(signal.SIGTERM)
    assert code == 0 and seconds < EXIT_S and "gives up a step that still runs" in node.log()


def test_ctrl_c_ends_a_node_with_130(serve: Callable[..., Node], tiny_model: Path) -> None:
    node = serve(tiny_model, "--identity", "key.pem")
    code, seconds = node.end(signal.SIGINT)
    assert code == 130 and seconds < EXIT_S
    assert node.log() == "hopformer: interrupted\n"


def test_only_the_shard_of_the_span_must_be_there(
    serve: Callable[..., Node], caller: Caller, tiny_model: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    tensors = load_file(tiny_model / "model.safetensors")
    mine = {name: tensor for name, tensor in tensors.items() if ".layers.1." in name}
    save_file(mine, shards / "b.safetensors")
    index = {name: "b.safetensors" if name in mine else "a.safetensors" for name in tensors}
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    node = serve(shards, "--layers", "1:2", "--identity", "key.pem")
    caller.connect(node)
    caller.board.send(node.peer, caller.opening(tiny_model, 1, 2))  # of the whole model, which this node never saw
    assert isinstance(caller.wait_for(Opened), Opened)


def test_another_model_is_refused_by_name(serve: Callable[..., Node], caller: Caller, tiny_model: Path) -> None:
    node = serve("demo", "--layers", "0:2", "--dtype", "float32", "--identity", "key.pem")
    caller.connect(node)
    caller.board.send(node.peer, caller.opening(tiny_model, 0, 2))
    refusal = caller.wait_for(Refuse)
    assert refusal.reason is Reason.MODEL and "this node serves demo" in refusal.text


def test_who_is_not_allowed_does_not_get_in(serve: Callable[..., Node], caller: Caller, tiny_model: Path) -> None:
    other = Identity.generate().peer_id
    node = serve(tiny_model, "--identity", "key.pem", "--allow", other)
    caller.board.dial(node.peer, node.ready["addrs"])
    deadline = time.monotonic() + PATIENCE_S
    events: list[object] = []
    while not events and time.monotonic() < deadline:
        events += caller.board.poll(1.0)
    assert events and PeerUp(node.peer) not in events


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--layers", "auto"], 2, "--layers auto is not there yet"),
        (["--layers", "1:3"], 2, "--layers 1:3 is out of range; this model has the layers 0:2"),
        (["--layers", "4"], 2, "--layers '4' is no range"),
        (["--listen", "0.0.0.0:0"], 2, "can be reached by others"),
        (["--listen", "127.0.0.1"], 2, "HOST:PORT"),
        (["--allow", "me"], 2, "no peer id"),
        (["--metrics", "192.0.2.1:1"], 1, "--metrics 192.0.2.1:1 cannot be listened at"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    hopformer: Callable[..., subprocess.CompletedProcess[str]],
    tiny_model: Path,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    done = hopformer("serve", tiny_model, "--identity", "key.pem", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr and done.stderr.count("\n") == 1
