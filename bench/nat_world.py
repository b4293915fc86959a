"""A relay, nodes behind NAT and those who ask them, as processes in the machines of a NatLab; and how an answer came.

    with NatLab() as lab:
        world = World(lab, model, folder)
        world.start_relay()
        world.serve({"a": "0:1", "b": "1:2"}, {"a": lab.host("a", "cone"), "b": lab.host("b", "symmetric")})
        answer = world.answer(lab.host("me", "cone"), world.map_of("a", "b"), 200)

Nothing is dialled by address unless ``map_of`` is asked for that: the relay is all that a caller knows. Not here: what
is expected of it.
"""

import http.client
import itertools
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import NetworkError
from ..net.blocks_map import BlocksMap, MapModel, MapPeer, MapRoute
from ..net.identity import Identity
from .nat_lab import Host, NatLab

RELAY_PORT = 4000
READY_S = 90.0  # several nodes load at a time, each with PyTorch
ANSWER_S = 60.0  # for a command to end, and for a figure to be told
_EVERY_S = 0.02
_FIGURE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')

Figure = tuple[str, dict[str, str], float]


@dataclass(frozen=True, slots=True)
class Node:
    """A process that serves.

    Attributes:
        addr: HOST:PORT where it can be dialled if its host is open.
        http: HOST:PORT of its figures, within its host.
    """

    host: Host
    process: "subprocess.Popen[str]"
    peer_id: str
    layers: str
    addr: str
    http: str

    def figures(self) -> list[Figure]:
        """Its /metrics: name, labels and value of each line."""
        name, _, port = self.http.rpartition(":")
        connection = http.client.HTTPConnection(name, int(port))
        connection.sock = self.host.socket(socket.SOCK_STREAM)
        try:
            connection.sock.settimeout(ANSWER_S)
            connection.sock.connect((name, int(port)))
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        return [(name, dict(_LABEL.findall(labels)), float(value)) for name, labels, value in _FIGURE.findall(text)]

    def path_to(self, peer_id: str) -> str | None:
        """The kind of path to a peer; None where it is not connected."""
        for name, labels, value in self.figures():
            if name == "hopformer_peer_path" and labels["peer"] == peer_id and value:
                return labels["kind"]
        return None

    def num_replayed(self) -> float:
        """Tokens that were computed again because a caller rerouted."""
        tokens = [row for row in self.figures() if row[0] == "hopformer_tokens_total"]
        return sum(value for _, labels, value in tokens if labels["kind"] == "replay")


class StreamedAnswer:
    """The text of ``hopformer generate`` as it comes, read by a thread, so that its times are its own.

    Attributes:
        peer_id: who asks.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", peer_id: str) -> None:
        self.process = process
        self.peer_id = peer_id
        self._pieces: list[tuple[float, bytes]] = []  # only ever appended to, by the thread
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        """What was said until now."""
        return b"".join(piece for _, piece in self._pieces).decode(errors="ignore")

    def wait(self, done: Callable[[], bool], wait_s: float = ANSWER_S, every_s: float = _EVERY_S) -> None:
        """Wait until ``done``, which is asked now and then, while the answer goes on.

        Raises:
            NetworkError: it was not done in time, or the answer ended before.
        """
        deadline = time.monotonic() + wait_s
        while not done():
            if not self._reader.is_alive():
                raise NetworkError(f"the answer ended after {len(self.text)} characters: {self._end()}")
            if time.monotonic() > deadline:
                raise NetworkError(f"not so within {wait_s:g} s, and after {len(self.text)} characters")
            time.sleep(every_s)

    def go_on(self, num_chars: int, wait_s: float = ANSWER_S) -> None:
        """Wait until so much more has been said, see ``wait``."""
        enough = len(self.text) + num_chars
        self.wait(lambda: len(self.text) >= enough, wait_s)

    def stall_s(self, since: float) -> float:
        """The longest time without a word, from ``since`` to now."""
        times = [since, *(at for at, _ in list(self._pieces) if at > since), time.monotonic()]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def stop(self) -> str:
        """Interrupt it; what was said.

        Raises:
            NetworkError: it does not end as a command does that is interrupted.
        """
        self.process.send_signal(signal.SIGINT)
        self._reader.join(ANSWER_S)
        words = self._end()
        if self.process.returncode != 130 or words:
            raise NetworkError(f"the interrupted answer ended with code {self.process.returncode}: {words}")
        return self.text.removesuffix("\n")

    def close(self) -> None:
        """End it, if it has not ended."""
        self.process.kill()
        self._reader.join()
        self._end()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while piece := os.read(self.process.stdout.fileno(), 65_536):
            self._pieces.append((time.monotonic(), piece))

    def _end(self) -> str:
        """Give the pipes back; what it said on stderr, unless that was read before."""
        assert self.process.stderr is not None and self.process.stdout is not None
        words = "" if self.process.stderr.closed else self.process.stderr.read().decode()
        self.process.wait(ANSWER_S)
        self.process.stderr.close()
        self.process.stdout.close()
        return words.strip()


class World:
    """All of it; the processes end with the laboratory, and ``end_answers`` before it.

    Args:
        model: a folder.
        folder: gets keys, logs and maps.
    """

    def __init__(self, lab: NatLab, model: Path, folder: Path) -> None:
        self.lab, self.model, self.folder = lab, model, folder
        self.nodes: dict[str, Node] = {}
        self.relay: subprocess.Popen[str] | None = None
        self._relay_host = lab.host("relay")
        self._relay_id = ""
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH") if name in os.environ}
        own = {"HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        self._environment = {**kept, **own, "LANG": "C.UTF-8"}
        self._answers: list[StreamedAnswer] = []

    @property
    def relay_addr(self) -> str:
        """PEER_ID@HOST:PORT."""
        return f"{self._relay_id}@{self._relay_host.address}:{RELAY_PORT}"

    def command(self, host: Host, *words: object, **options: Any) -> "subprocess.Popen[Any]":
        """``hopformer`` at a host; its output comes through pipes unless ``options`` say otherwise."""
        command = [sys.executable, "-P", "-m", "hopformer", *map(str, words)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return host.popen(command, **{**pipes, "env": self._environment, "cwd": self.folder, **options})

    def start_relay(self) -> None:
        """A relay, always at the same address and with the same key; ready.

        Raises:
            NetworkError: it does not start.
        """
        at = f"{self._relay_host.address}:{RELAY_PORT}"
        self.relay = self._begin("relay", self._relay_host, "relay", "--listen", at)
        self._relay_id = self._ready("relay", self.relay)["peer_id"]

    def kill_relay(self) -> None:
        """It dies without a word."""
        assert self.relay is not None and self.relay.stdout is not None
        self.relay.kill()
        self.relay.wait()
        self.relay.stdout.close()
        self.relay = None

    def serve(self, layers: Mapping[str, str], hosts: Mapping[str, Host], *flags: str) -> None:
        """Start nodes, by name, and wait until all are ready; they are at the relay, where there is one.

        Args:
            flags: of ``hopformer serve``, beside those that it needs here.

        Raises:
            NetworkError: one does not start.
        """
        words = ["--listen", "0.0.0.0:0", "--dtype", "float32", "--metrics", "127.0.0.1:0", *flags]
        if self.relay is not None:
            words += ["--relay", self.relay_addr]
        started = {
            name: self._begin(name, hosts[name], "serve", self.model, "--layers", span, *words)
            for name, span in layers.items()
        }
        for name, process in started.items():
            ready, host = self._ready(name, process), hosts[name]
            addr = f"{host.outside}:{ready['addrs'][0].rpartition(':')[2]}"
            self.nodes[name] = Node(host, process, ready["peer_id"], ready["layers"], addr, ready["http"])

    def map_of(self, *names: str, by_addr: bool = False) -> Path:
        """A BlocksMap of nodes that knows nothing of them but their relay, or else their addresses."""
        nodes = [self.nodes[name] for name in names]
        content = BlocksMap(
            1,
            MapModel(self.model.name),
            tuple(
                MapPeer(node.peer_id, (node.addr,)) if by_addr else MapPeer(node.peer_id, (), self.relay_addr)
                for node in nodes
            ),
            tuple(MapRoute(node.layers, node.peer_id) for node in nodes),
        )
        path = self.folder / f"{'-'.join(names)}{'-by-addr' * by_addr}.json"
        path.write_text(content.to_json(), encoding="utf-8")
        return path

    def generate(self, host: Host, blocks_map: Path | None, *words: object) -> "subprocess.Popen[bytes]":
        """``hopformer generate`` at a host, of no end but ``--max-tokens``."""
        routes = () if blocks_map is None else ("--blocks-map", blocks_map)
        return self.command(host, "generate", self.model, *routes, "--ignore-eos", "--dtype", "float32", *words)

    def answer(self, host: Host, blocks_map: Path, *words: object) -> StreamedAnswer:
        """The same, asked by a stranger, and read as it comes."""
        key = self.folder / f"caller-{next(_CALLERS)}.pem"
        peer_id = str(Identity.load_or_create(key).peer_id)
        answer = StreamedAnswer(self.generate(host, blocks_map, "--identity", key, *words), peer_id)
        self._answers.append(answer)
        return answer

    def end_answers(self) -> None:
        """End those that have not ended."""
        while self._answers:
            self._answers.pop().close()

    def _begin(self, name: str, host: Host, *words: object) -> "subprocess.Popen[str]":
        own = ("--identity", f"{name}.pem", "--allow", "any", "--log-level", "info")
        with (self.folder / f"{name}.log").open("a", encoding="utf-8") as log:
            return self.command(host, *words, *own, stderr=log, text=True)

    def _ready(self, name: str, process: "subprocess.Popen[str]") -> dict[str, Any]:
        """What a process says first."""
        assert process.stdout is not None
        line = process.stdout.readline() if select.select([process.stdout], [], [], READY_S)[0] else ""
        if not line:
            words = (self.folder / f"{name}.log").read_text(encoding="utf-8").strip().splitlines()
            raise NetworkError(f"{name} is not ready: {words[-1] if words else 'it says nothing'}")
        return json.loads(line)


_CALLERS = itertools.count(1)
