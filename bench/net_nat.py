"""Dialling by id through each kind of NAT, of the laboratory in nat_lab.py: over the relay at once, then straight.

Both ends are behind a NAT of that kind, each its own, and 20 ms of round trip apart; the relay is on the internet, at
10 ms from either. Ours is hole punching on the node's own socket, beside it ICE (net/ice.py). What is measured is
net_dial.py's, in the namespaces of the two ends.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import NetworkError
from ..llama.config import load_config
from .nat_lab import Host, Kind, NatLab
from .nat_world import World
from .net_dial import Dialled, Ways
from .net_emulator import EmulatedLink

KINDS: tuple[Kind, ...] = ("open", "cone", "shifted", "symmetric", "double")
WAYS: tuple[Ways, ...] = ("punch", "ice")
LINK = EmulatedLink(0.010)  # of a home
RTT_S = 2 * LINK.rtt_s  # between two of them
ANSWER_S = 120.0


@dataclass(frozen=True, slots=True)
class NatEffort:
    """How much is measured of each kind.

    Attributes:
        num_dials: by each of WAYS.
        wait_s: for a straight way; twice what the slowest took, and then it stays relayed.
        num_tokens: first tokens.
    """

    num_dials: int
    wait_s: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class NatTurn:
    """What came of one kind; ``tokens_s``: from the first dial to the first token of an answer."""

    dialled: dict[Ways, list[Dialled]]
    tokens_s: Sequence[float]


def measure_nat(
    folder: Path, effort: NatEffort, advance: Callable[[], None], kinds: Sequence[Kind]
) -> dict[Kind, NatTurn]:
    """All kinds in turn. ``folder`` is the model that a node of each kind serves.

    Raises:
        NetworkError: a process does not do its part.
    """
    with NatLab() as lab, tempfile.TemporaryDirectory(prefix="hopformer-bench-") as scratch:
        world = World(lab, folder, Path(scratch))
        world.start_relay()
        near = {kind: lab.host(f"near-{kind}", kind, LINK) for kind in kinds}
        far = {kind: lab.host(f"far-{kind}", kind, LINK) for kind in kinds}
        dialled = {
            kind: {ways: dial_in_lab(world, near[kind], far[kind], ways, effort) for ways in WAYS} for kind in kinds
        }
        layers = f"0:{load_config(folder).num_layers}"
        turns = {}
        for kind in kinds:
            world.serve({kind: layers}, {kind: far[kind]})
            tokens_s = _told(near[kind], "net_first_token", folder, world.map_of(kind), effort.num_tokens)
            world.nodes[kind].process.terminate()
            turns[kind] = NatTurn(dialled[kind], tokens_s)
            advance()
        return turns


def dial_in_lab(world: World, near: Host, far: Host, ways: Ways, effort: NatEffort) -> list[Dialled]:
    """Dial from one host to the other by id.

    Raises:
        NetworkError: a process does not do its part.
    """
    command = _command("net_dial", "serve", world.relay_addr, ways)
    serving = far.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert serving.stdin is not None and serving.stdout is not None
    try:
        peer = serving.stdout.readline().strip()
        if not peer:
            raise NetworkError("the node to be dialled ended before it was at the relay; its own words are above")
        told = _told(near, "net_dial", "call", world.relay_addr, ways, peer, effort.num_dials, effort.wait_s)
        return [Dialled(**one) for one in told]
    finally:
        serving.stdin.close()
        serving.wait(ANSWER_S)
        serving.stdout.close()


def _command(module: str, *words: object) -> list[str]:
    return [sys.executable, "-P", "-m", f"hopformer.bench.{module}", *map(str, words)]


def _told(host: Host, module: str, *words: object) -> Any:
    """What a process of ours says at its end."""
    command = _command(module, *words)
    process = host.popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate(timeout=ANSWER_S)
    if process.returncode != 0:
        raise NetworkError(f"{module} ended with code {process.returncode}; its own words are above")
    return json.loads(out)
