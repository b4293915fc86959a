"""``generate`` and ``chat`` over nodes that are processes of their own, on QUIC, and what becomes of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PROMPT = ["--prompt", "What is 2 plus 3?", "--ignore-eos"]
NUM_TOKENS = 300  # some seconds on a slow machine, so that there is time to strike

pytestmark = pytest.mark.slow


@dataclass
class Node:
    """A process of ``hopformer serve``."""

    process: "subprocess.Popen[str]"
    ready: dict[str, Any]

    @property
    def peer_id(self) -> str:
        return self.ready["peer_id"]


class Nodes:
    """Those of one test, and commands over them."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self._environment = {**environment, "OMP_NUM_THREADS": "1"}
        self._started: list[subprocess.Popen[str]] = []

    def popen(self, *arguments: object) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "hopformer", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment,
            cwd=self.folder,
        )
        self._started.append(process)
        return process

    def begin(self, name: str, layers: str, port: int = 0, *more: str) -> "subprocess.Popen[str]":
        key = f"{name}.pem"
        listen = f"127.0.0.1:{port}"
        return self.popen(
            "serve", "demo", "--layers", layers, "--listen", listen, "--identity", key, "--dtype", "float32", *more
        )

    def serve(self, name: str, layers: str, port: int = 0, *more: str) -> Node:
        process = self.begin(name, layers, port, *more)
        assert process.stdout is not None
        return Node(process, json.loads(process.stdout.readline()))

    def write_map(self, *routes: tuple[str, str, str]) -> Path:
        """A map of (layers, peer id, address); "self" has no address."""
        peers = {peer: addr for _, peer, addr in routes if peer != "self"}
        content = {
            "version": 1,
            "model": {"name": "demo", "fingerprint": None},
            "peers": [{"peer_id": peer, "addrs": [addr], "relay": None} for peer, addr in peers.items()],
            "routes": [{"layers": layers, "peer_id": peer} for layers, peer, _ in routes],
        }
        path = self.folder / "map.json"
        path.write_text(json.dumps(content))
        return path

    def map_of(self, *nodes: Node) -> Path:
        return self.write_map(*((one.ready["layers"], one.peer_id, one.ready["addrs"][0]) for one in nodes))

    def generate(self, blocks_map: Path | None, *arguments: object) -> "subprocess.Popen[str]":
        routes = [] if blocks_map is None else ["--blocks-map", blocks_map]
        return self.popen("generate", "demo", *routes, "--dtype", "float32", *PROMPT, *arguments)

    def close(self) -> None:
        for process in self._started:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.communicate(timeout=30)


@pytest.fixture
def nodes(tmp_path: Path, environment: dict[str, str]) -> Iterator[Nodes]:
    found = Nodes(tmp_path, environment)
    yield found
    found.close()


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def finished(process: "subprocess.Popen[str]") -> dict[str, Any]:
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    return json.loads(out)


def test_two_nodes_and_the_caller_answer_as_one_machine(nodes: Nodes) -> None:
    first, last = nodes.serve("a", "0:3"), nodes.serve("c", "5:8")
    expected = finished(nodes.generate(None, "--json", "--max-tokens", 20))
    rows = [(one.ready["layers"], one.peer_id, one.ready["addrs"][0]) for one in (first, last)]
    found = finished(nodes.generate(nodes.write_map(*rows, ("3:5", "self", "")), "--json", "--max-tokens", 20))
    assert found["token_ids"] == expected["token_ids"] and found["reroutes"] == 0
    assert found["route"] == [
        {"layers": "0:3", "peer": first.peer_id},
        {"layers": "3:5", "peer": "local"},
        {"layers": "5:8", "peer": last.peer_id},
    ]
    seeded = ["--temperature", 1.1, "--top-k", 40, "--seed", 5, "--json", "--max-tokens", 20]
    assert (
        finished(nodes.generate(nodes.map_of(first, nodes.serve("d", "3:8")), *seeded))["token_ids"]
        == finished(nodes.generate(None, *seeded))["token_ids"]
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM], ids=lambda number: number.name)
def test_an_answer_survives_its_hop(nodes: Nodes, number: signal.Signals) -> None:
    """The replica is only there after the answer has begun, so the hop that is struck is the one in use."""
    expected = finished(nodes.generate(None, "--json", "--max-tokens", NUM_TOKENS))
    first, struck, port = nodes.serve("a", "0:4"), nodes.serve("b", "4:8"), free_port()
    spare_id = nodes.popen("id", "--identity", "spare.pem").communicate(timeout=60)[0].strip()
    rows = [(one.ready["layers"], one.peer_id, one.ready["addrs"][0]) for one in (first, struck)]
    blocks_map = nodes.write_map(*rows, ("4:8", spare_id, f"127.0.0.1:{port}"))
    answer = nodes.generate(blocks_map, "--json", "--max-tokens", NUM_TOKENS)
    wait_until_busy(struck.process.pid)
    struck.process.send_signal(number)
    spare = nodes.serve("spare", "4:8", port)
    found = finished(answer)
    assert found["token_ids"] == expected["token_ids"]
    served_by = found["route"][1]["peer"]
    if number == signal.SIGTERM:  # a node that drains lets an answer end where a fast machine ends it in time
        assert struck.process.wait(timeout=30) == 0
        assert served_by == (spare.peer_id if found["reroutes"] else struck.peer_id)
    else:
        assert found["reroutes"] >= 1 and served_by == spare.peer_id


def test_without_a_route_the_answer_so_far_is_kept_and_the_layers_are_named(nodes: Nodes) -> None:
    first, last = nodes.serve("a", "0:4"), nodes.serve("b", "4:8")
    answer = nodes.generate(nodes.map_of(first, last), "--max-tokens", 1500, "--reroute-timeout", 2)
    wait_until_busy(last.process.pid)
    last.process.kill()
    out, err = answer.communicate(timeout=60)
    assert answer.returncode == 1 and out.startswith("2 plus 3 is 5.")
    assert err.startswith("hopformer: layers 4:8 are served by nobody") and err.count("\n") == 1 and last.peer_id in err


def test_ctrl_c_ends_an_answer_that_waits_for_a_peer(nodes: Nodes) -> None:
    first, last = nodes.serve("a", "0:4"), nodes.serve("b", "4:8")
    answer = nodes.generate(nodes.map_of(first, last), "--max-tokens", 1500, "--reroute-timeout", 100)
    wait_until_busy(last.process.pid)
    last.process.kill()
    time.sleep(2.0)
    answer.send_signal(signal.SIGINT)
    out, err = answer.communicate(timeout=60)
    assert (answer.returncode, err) == (130, "") and out.startswith("2 plus 3 is 5.")


def test_nobody_at_all_is_told_before_the_first_token(nodes: Nodes) -> None:
    key = nodes.popen("id", "--identity", "x.pem").communicate(timeout=60)[0].strip()
    blocks_map = nodes.write_map(("0:8", key, f"127.0.0.1:{free_port()}"))
    answer = nodes.generate(blocks_map, "--max-tokens", 5, "--reroute-timeout", 1)
    out, err = answer.communicate(timeout=60)
    assert (answer.returncode, out) == (1, "")
    assert err.startswith("hopformer: layers 0:8 are served by nobody") and key in err


def test_chat_names_its_peers_and_reaches_others(nodes: Nodes) -> None:
    first, last, other = nodes.serve("a", "0:4"), nodes.serve("b", "4:8"), nodes.serve("c", "4:8")
    chat = nodes.popen("chat", "demo", "--blocks-map", nodes.map_of(first, last), "--dtype", "float32")
    address = other.ready["addrs"][0]
    lines = ["What is 2 plus 3?", "peers", f"connect {other.peer_id} {address}", "connect abc 127.0.0.1:1", "peers"]
    out, err = chat.communicate("\n".join(lines) + "\n", timeout=120)
    assert (chat.returncode, err.count("\nhopformer:")) == (0, 1) and out == "2 plus 3 is 5.\n"
    assert err.count(f"*  {first.peer_id[:10]}..  0:4") == 2 and err.count(f"*  {last.peer_id[:10]}..  4:8") == 2
    assert f"{other.peer_id} is connected, and serves layers 4:8" in err
    assert "'abc' is no peer id" in err and err.count(other.peer_id[:10]) == 2


def test_the_last_hop_draws_the_tokens_where_it_is_handed_the_head(nodes: Nodes) -> None:
    first, last = nodes.serve("a", "0:4"), nodes.serve("b", "4:8", 0, "--head")
    without = nodes.serve("c", "4:8")
    settings = ["--temperature", 1.1, "--repetition-penalty", 1.2, "--seed", 5, "--logprobs", 2, "--json"]
    expected = finished(nodes.generate(None, *settings, "--max-tokens", 20))
    blocks_map = nodes.map_of(first, last, without)
    found = finished(nodes.generate(blocks_map, "--hand-head", *settings, "--max-tokens", 20))
    assert found["token_ids"] == expected["token_ids"]
    assert [hop["peer"] for hop in found["route"]] == [first.peer_id, last.peer_id]
    for mine, theirs in zip(found["logprobs"], expected["logprobs"], strict=True):
        assert [pair[0] for pair in mine] == [pair[0] for pair in theirs]
        assert [pair[1] for pair in mine] == pytest.approx([pair[1] for pair in theirs], abs=1e-5)


def test_a_chat_serves_its_layers_while_it_goes_on(nodes: Nodes) -> None:
    """Two chats, each with half of the layers, answer over each other; a third has no layers at all."""
    expected = finished(nodes.generate(None, "--json", "--max-tokens", 20))
    ids = [nodes.popen("id", "--identity", f"{name}.pem").communicate(timeout=60)[0].strip() for name in "ab"]
    ports = [free_port(), free_port()]
    rows = [(layers, ids[index], f"127.0.0.1:{ports[index]}") for index, layers in enumerate(("0:4", "4:8"))]
    blocks_map = nodes.write_map(*rows)
    chats = []
    for index, (layers, _, addr) in enumerate(rows):
        flags = ["--blocks-map", blocks_map, "--dtype", "float32", "--identity", f"{'ab'[index]}.pem"]
        chats.append(nodes.popen("chat", "demo", *flags, "--serve", layers, "--listen", addr))
    for chat, (layers, peer_id, addr) in zip(chats, rows, strict=True):
        assert chat.stderr is not None
        ready = json.loads(chat.stderr.readline())
        assert ready == {
            "ready": True,
            "peer_id": peer_id,
            "addrs": [addr],
            "relays": [],
            "layers": layers,
            "http": None,
        }
    guest = nodes.generate(blocks_map, "--json", "--max-tokens", 20)
    for chat in chats:
        assert chat.stdin is not None
        chat.stdin.write("What is 2 plus 3?\npeers\n")
        chat.stdin.flush()
    for chat in chats:
        assert chat.stdout is not None and chat.stdout.readline() == "2 plus 3 is 5.\n"
    found = finished(guest)
    assert found["token_ids"] == expected["token_ids"]
    assert [hop["peer"] for hop in found["route"]] == ids
    for chat in chats:
        _, err = chat.communicate(timeout=60)
        assert chat.returncode == 0 and "local" in err and "here" in err


def test_a_chat_with_all_layers_serves_some_of_them(nodes: Nodes) -> None:
    expected = finished(nodes.generate(None, "--json", "--max-tokens", 20))
    first = nodes.serve("a", "0:4")
    chat = nodes.popen("chat", "demo", "--dtype", "float32", "--serve", "4:8", "--identity", "b.pem")
    assert chat.stderr is not None
    last = Node(chat, json.loads(chat.stderr.readline()))
    answer = nodes.generate(nodes.map_of(first, last), "--json", "--max-tokens", 20)
    assert finished(answer)["token_ids"] == expected["token_ids"]
    out, err = chat.communicate("What is 2 plus 3?\n", timeout=60)
    assert (chat.returncode, out, err) == (0, "2 plus 3 is 5.\n", "")


def test_a_map_that_does_not_fit_is_refused(nodes: Nodes) -> None:
    blocks_map = nodes.write_map(("0:7", "self", ""))
    answer = nodes.generate(blocks_map)
    out, err = answer.communicate(timeout=60)
    assert (answer.returncode, out) == (1, "") and "layers 7:8 are a hole" in err


def wait_until_busy(pid: int, seconds: float = 0.15) -> None:
    """Until a process has computed for so long from now on."""
    start, deadline = cpu_s(pid), time.monotonic() + 60
    while cpu_s(pid) < start + seconds:
        assert time.monotonic() < deadline, "nothing is computed there"
        time.sleep(0.02)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
