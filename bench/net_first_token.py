"""A caller that dials by id, and wants the first token of an answer, in a process of its own.

Run as ``python -m hopformer.bench.net_first_token MODEL MAP TIMES``; it prints seconds as a line of JSON. Each time the
caller is somebody else and has loaded its part of the model; what is measured begins with its first dial.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..llama.load import LoadOptions
from ..net.blocks_map import load_blocks_map
from ..net.identity import Identity, PeerId
from ..net.load_remote import Routing, load_remote
from ..net.network_process import ProcessSwitchboard
from .contender import HopformerContender
from .net_cluster import ROUTE_S
from .net_dial import LISTEN

PROMPT_TOKENS = 16
MAX_CONTEXT = 64


def ask(folder: Path, blocks_map: Path, times: int) -> list[float]:
    """Seconds from the first dial to the first token.

    Raises:
        HopformerError: the model cannot be loaded, or its nodes are not reached.
    """
    found = []
    for number in range(times):
        board = ProcessSwitchboard.start(Identity.generate(), LISTEN, allow=())
        try:
            options = LoadOptions(device="cpu", dtype="float32", max_context=MAX_CONTEXT)
            held = _Held(board)
            remote = load_remote(folder, options, Routing(load_blocks_map(blocks_map), ROUTE_S), held)
            contender = HopformerContender(remote.model.engine, "float32")
            began = time.perf_counter()
            held.release()
            remote.runner.connect()
            contender.prefill([number, *range(1, PROMPT_TOKENS)])
            found.append(time.perf_counter() - began)
            contender.reset()
            remote.runner.close()
        finally:
            board.close()
    return found


class _Held:
    """A switchboard that dials nobody until it is released: loading dials, and is not to be measured."""

    def __init__(self, board: ProcessSwitchboard) -> None:
        self._board = board
        self._dials: list[tuple[PeerId, Sequence[str]]] | None = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._board, name)

    def dial(self, peer: PeerId, addrs: Sequence[str]) -> None:
        """See Switchboard."""
        if self._dials is None:
            self._board.dial(peer, addrs)
        else:
            self._dials.append((peer, addrs))

    def release(self) -> None:
        """Dial those who were to be dialled, and all others when they are."""
        dials, self._dials = self._dials or [], None
        for peer, addrs in dials:
            self._board.dial(peer, addrs)


if __name__ == "__main__":
    print(json.dumps(ask(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))), flush=True)
