"""Nodes for a test that needs many: a program that loads layers of a model once and forks a node whenever it is asked.

    python forked_nodes.py FOLDER 0:4 4:8

Each line on stdin is one of these spans. A process of its own then serves it, under a new key and with a network
process of its own, and says on stdout in one line of JSON who it is. All of them end when stdin does, or when this
process dies.

It forks before it has any second thread: a thread pool would be missing in the children.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import torch

from hopformer import __version__
from hopformer.llama.fingerprint import fingerprint
from hopformer.llama.load import LoadOptions
from hopformer.llama.load_span import LoadedSpan, load_span
from hopformer.net.activations import wire_dtype
from hopformer.net.hop_sessions import HopSessions
from hopformer.net.identity import Identity
from hopformer.net.messages import Codec
from hopformer.net.network_process import ProcessSwitchboard
from hopformer.net.served_span import ServedSpan
from hopformer.net.span_server import SpanServer


def load(folder: Path, layers: str) -> tuple[LoadedSpan, ServedSpan]:
    """A span, and how it is announced."""
    start, end = map(int, layers.split(":"))
    loaded = load_span(folder, (start, end), LoadOptions(device="cpu", dtype="float32"))
    served = ServedSpan(
        model=folder.name,
        fingerprint=fingerprint(folder, start, end),
        start=start,
        end=end,
        num_layers=loaded.config.num_layers,
        width=loaded.config.hidden_size,
        dtype=wire_dtype(loaded.dtype),
        codecs=(Codec.EXACT,),
        max_tokens=loaded.max_context,
        version=__version__,
    )
    return loaded, served


def serve(layers: str, loaded: LoadedSpan, served: ServedSpan, parent: int) -> NoReturn:
    """Be a node for as long as ``parent`` lives, or until killed."""
    switchboard = ProcessSwitchboard.start(Identity.generate(), ["127.0.0.1:0"])
    try:
        pool = loaded.runner.sequences.pool
        server = SpanServer(switchboard, loaded.runner, HopSessions(served, pool.num_pages, pool.page_size))
        ready = {"layers": layers, "pid": os.getpid(), "peer_id": str(switchboard.peer_id), "addrs": switchboard.addrs}
        os.write(sys.stdout.fileno(), json.dumps(ready).encode() + b"\n")  # at once: others write there too
        server.run(lambda: os.getppid() != parent, drain_s=0.0)
    finally:
        switchboard.close()
    os._exit(0)


def main(folder: Path, spans: list[str]) -> None:
    """Fork a node for each line of stdin."""
    torch.set_num_threads(1)
    loaded = {layers: load(folder, layers) for layers in spans}
    parent, children = os.getpid(), []
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            serve(line.strip(), *loaded[line.strip()], parent)
        children.append(pid)
    for pid in children:  # those that were killed long ago are there too, so that no number stands for another process
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
