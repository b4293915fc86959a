"""Nodes of `hopformer serve` on this machine, each a process of its own, and a model that answers over them.

They are started together, told to end together, and ended by force where they do not obey; whatever happens in between,
none is left behind. Not here: what is measured over them.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ..errors import NetworkError
from ..llama.load import LoadOptions
from ..net.blocks_map import BlocksMap, MapModel, MapPeer, MapRoute
from ..net.identity import Identity
from ..net.load_remote import RemoteModel, Routing, load_remote
from ..net.messages import Codec
from ..net.network_process import ProcessSwitchboard

READY_S = 60.0  # to load layers; Python and PyTorch alone take up to ten seconds where others compute too
STOP_S = 10.0  # twice what a node needs that was told to end, see cli/serve.py
ROUTE_S = 20.0


@dataclass(frozen=True, slots=True)
class Node:
    """One that serves."""

    layers: str
    peer_id: str
    addr: str
    pid: int


def spans(num_layers: int, num_hops: int) -> list[tuple[int, int]]:
    """The layers of each hop, as evenly as they can be."""
    bounds = [num_layers * index // num_hops for index in range(num_hops + 1)]
    return list(pairwise(bounds))


@contextmanager
def served(
    folder: Path, layers: Sequence[tuple[int, int]], options: LoadOptions, num_threads: int, scratch: Path
) -> Iterator[list[Node]]:
    """A node for each of ``layers``, ready; they end with the block. ``scratch`` gets their keys and their logs.

    Raises:
        NetworkError: one does not become ready.
    """
    with ExitStack() as stack:
        started = []
        for number, (start, end) in enumerate(layers):
            command = _command(folder, f"{start}:{end}", options, scratch / f"{number}.pem")
            log = stack.enter_context(open(scratch / f"{number}.log", "w+", encoding="utf-8"))
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(num_threads)},
                process_group=0,  # Ctrl-C is for the bench, which then ends them
            )
            stack.callback(_reap, process)
            started.append((process, log.name))
        stack.callback(_end_all, [process for process, _ in started])
        deadline = time.monotonic() + READY_S
        yield [_ready(process, Path(log), deadline) for process, log in started]


def _command(folder: Path, layers: str, options: LoadOptions, key: Path) -> list[str]:
    command = [sys.executable, "-P", "-m", "hopformer", "serve", str(folder), "--layers", layers]
    command += ["--listen", "127.0.0.1:0", "--identity", str(key), "--wire-dtype", "int8", "--log-level", "error"]
    command += ["--device", options.device, "--dtype", options.dtype, "--max-context", str(options.max_context)]
    return command


def _ready(process: "subprocess.Popen[str]", log: Path, deadline: float) -> Node:
    """What a node says first."""
    assert process.stdout is not None
    left = max(0.0, deadline - time.monotonic())
    line = process.stdout.readline() if select.select([process.stdout], [], [], left)[0] else ""
    if not line:
        words = log.read_text(encoding="utf-8").strip().splitlines()
        raise NetworkError(f"hopformer serve is not ready: {words[-1] if words else 'it says nothing'}")
    ready = json.loads(line)
    return Node(ready["layers"], ready["peer_id"], ready["addrs"][0], process.pid)


def _end_all(processes: "Sequence[subprocess.Popen[str]]") -> None:
    """Tell all of them before any is waited for."""
    for process in processes:
        process.terminate()


def _reap(process: "subprocess.Popen[str]") -> None:
    """Wait until it is gone, and make it go where that takes too long."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


@contextmanager
def opened(folder: Path, options: LoadOptions, nodes: Sequence[Node], codec: Codec) -> Iterator[RemoteModel]:
    """The model over ``nodes``, connected; activations travel as ``codec``.

    Raises:
        HopformerError: it cannot be loaded, or the nodes are not reached.
    """
    blocks_map = BlocksMap(
        1,
        MapModel(folder.name),
        tuple(MapPeer(node.peer_id, (node.addr,)) for node in nodes),
        tuple(MapRoute(node.layers, node.peer_id) for node in nodes),
    )
    switchboard = ProcessSwitchboard.start(Identity.generate(), ("127.0.0.1:0",), allow=())
    try:
        remote = load_remote(folder, options, Routing(blocks_map, ROUTE_S, codec), switchboard)
        remote.runner.connect()
        yield remote
        remote.runner.close()
    finally:
        switchboard.close()
