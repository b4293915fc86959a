"""What a relay costs: steps and bulk through one beside a direct hop, dialling by id over it, and moving off it.

The relay is ``hopformer relay`` in a process of its own; the ends are ours in one process each, all on loopback. Direct
and relayed take turns of a few steps, so that a machine that is slow for a while is slow for both. Not here: NATs
(net_nat.py).
"""

import asyncio
import json
import re
import select
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..errors import NetworkError
from ..net.endpoint import Endpoint
from ..net.identity import Identity, PeerId
from ..net.switchboard import Event, PeerUp
from ..net.ways import Relayed
from .net_cluster import READY_S, STOP_S
from .net_contender import ROW_BYTES, OurEndpoint
from .net_echo import LISTEN, REGISTER_S, parse
from .net_hop import WARM_STEPS, run_turn, spawn, time_bulk, time_steps

SIZES = (1452, 8900)  # of datagrams: an Ethernet frame's, and a site's
DIALS = ("address", "id, cold", "id")
STEPS_A_TURN = 5
SLICE_BYTES = 4 << 20
TOLD_S = 0.6  # until a relay's figures are those of now: two of its ticks
RELAYED_S = 0.5  # of steps before a way is changed, and behind that
CHANGE_S = 5.0
_FIGURE = re.compile(r"^(hopformer_relay_\w+) (\S+)$", re.MULTILINE)
_EVERY_S = 0.001


@dataclass(frozen=True, slots=True)
class RelayEffort:
    """How much is measured: round trips by payload and bulk in each round, dials of each kind, changes of way."""

    num_steps: Mapping[int, int]
    bulk_bytes: int
    rounds: int
    num_dials: int
    num_changes: int


@dataclass(frozen=True, slots=True)
class RelayTurn:
    """A round of one hop, in seconds. What is the relay's is 0 for the direct one.

    Attributes:
        relay_cpu_s: during bulk.
        num_datagrams: that it passed on meanwhile.
        relay_bytes: its resident memory before bulk, and after it.
    """

    steps_s: Mapping[int, Sequence[float]]
    bulk_bytes_per_s: float
    relay_cpu_s: float = 0.0
    num_datagrams: int = 0
    relay_bytes: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class ChangeTurn:
    """A way that was changed under steps of 8 KiB: those before, those until it had settled, and those behind that.

    Attributes:
        found_s: from when a straight way was first looked for until it was taken.
    """

    before_s: Sequence[float]
    changing_s: Sequence[float]
    after_s: Sequence[float]
    found_s: float


class RunningRelay:
    """``hopformer relay``, and what can be seen of it."""

    def __init__(self, process: "subprocess.Popen[str]", ready: Mapping[str, str | list[str]]) -> None:
        self._process = psutil.Process(process.pid)
        self._http = ready["http"]
        self.addr = f"{ready['peer_id']}@{ready['addrs'][0]}"

    def cpu_s(self) -> float:
        """Processor time so far."""
        times = self._process.cpu_times()
        return times.user + times.system

    def resident_bytes(self) -> int:
        """Its memory."""
        return int(self._process.memory_info().rss)

    async def num_passed(self) -> int:
        """Datagrams passed on so far."""
        await asyncio.sleep(TOLD_S)
        return await asyncio.to_thread(self._figure, "hopformer_relay_datagrams_total")

    def _figure(self, name: str) -> int:
        with urllib.request.urlopen(f"http://{self._http}/metrics", timeout=READY_S) as answer:
            return int(float(dict(_FIGURE.findall(answer.read().decode()))[name]))


@contextmanager
def relay_running(scratch: Path) -> Iterator[RunningRelay]:
    """A relay that everybody may use; ``scratch`` gets its key and its log.

    Raises:
        NetworkError: it does not start.
    """
    command = [sys.executable, "-P", "-m", "hopformer", "relay", "--listen", "127.0.0.1:0", "--allow", "any"]
    command += ["--identity", str(scratch / "relay.pem"), "--metrics", "127.0.0.1:0", "--rate", "16384"]
    with open(scratch / "relay.log", "w+", encoding="utf-8") as log:
        nothing, pipe = subprocess.DEVNULL, subprocess.PIPE
        process = subprocess.Popen(command, stdin=nothing, stdout=pipe, stderr=log, text=True, process_group=0)
        assert process.stdout is not None
        try:
            line = process.stdout.readline() if select.select([process.stdout], [], [], READY_S)[0] else ""
            if not line:
                words = Path(log.name).read_text(encoding="utf-8").strip().splitlines()
                raise NetworkError(f"hopformer relay is not ready: {words[-1] if words else 'it says nothing'}")
            yield RunningRelay(process, json.loads(line))
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def take_relay_turns(relay: RunningRelay, datagram_bytes: int, effort: RelayEffort) -> tuple[RelayTurn, RelayTurn]:
    """A direct hop and one through the relay, both open, which take turns of a few steps or of a slice of bulk.

    Raises:
        NetworkError: it does not end.
    """

    async def turn() -> tuple[RelayTurn, RelayTurn]:
        async with AsyncExitStack() as stack:
            ends = [(await _connected(stack, one, datagram_bytes))[0] for one in (None, relay)]
            for end in ends:
                await time_steps(end, bytes(ROW_BYTES), WARM_STEPS)
            steps: tuple[dict[int, list[float]], ...] = ({}, {})
            for size, count in effort.num_steps.items():
                for begin in range(0, count, STEPS_A_TURN):
                    for end, own in zip(ends, steps, strict=True):
                        more = await time_steps(end, bytes(size), min(STEPS_A_TURN, count - begin))
                        own.setdefault(size, []).extend(more)
            passed, before = await relay.num_passed(), relay.resident_bytes()
            seconds, cpu_s = [0.0, 0.0], 0.0
            for begin in range(0, effort.bulk_bytes, SLICE_BYTES):
                num_bytes = min(SLICE_BYTES, effort.bulk_bytes - begin)
                for index, end in enumerate(ends):
                    cpu_s -= index * relay.cpu_s()
                    seconds[index] += num_bytes / await time_bulk(end, num_bytes)
                    cpu_s += index * relay.cpu_s()
            passed = await relay.num_passed() - passed
            rates = [effort.bulk_bytes / one for one in seconds]
            memory = before, relay.resident_bytes()
            return RelayTurn(steps[0], rates[0]), RelayTurn(steps[1], rates[1], cpu_s, passed, memory)

    return run_turn("a relayed hop", turn)


def take_dials(relay: RunningRelay, count: int) -> dict[str, list[float]]:
    """Seconds to be connected, by DIALS: by address, by id over a relay that is dialled for it, and over one that this
    node is at already. Raises NetworkError: it does not end."""

    async def turn() -> dict[str, list[float]]:
        found: dict[str, list[float]] = {kind: [] for kind in DIALS}
        async with AsyncExitStack() as stack:
            _, told = await spawn(stack, "net_echo", "hopformer", "1452", relay.addr)
            peer, addr = parse(told)
            assert peer is not None
            for number in range(count):
                for kind in (*DIALS[number % len(DIALS) :], *DIALS[: number % len(DIALS)]):
                    kept = relay.addr if kind == "id" else None
                    found[kind].append(await _dial(peer, addr if kind == "address" else relay.addr, kept))
        return found

    return run_turn("a dial", turn)


def take_change(relay: RunningRelay) -> ChangeTurn:
    """Steps over a relay, until the caller says where it may be reached straight. Raises NetworkError."""

    async def turn() -> ChangeTurn:
        async with AsyncExitStack() as stack:
            contender, peer = await _connected(stack, relay, SIZES[0])
            await time_steps(contender, bytes(ROW_BYTES), WARM_STEPS)
            before = await _steps_for(contender, RELAYED_S)
            contender.endpoint.punches = True
            contender.endpoint.outside_changed()
            began, changing = time.perf_counter(), []
            while _is_relayed(contender.endpoint, peer):
                changing += await time_steps(contender, bytes(ROW_BYTES), 1)
                if time.perf_counter() - began > CHANGE_S:
                    raise NetworkError("no straight way was found on loopback")
            found_s = time.perf_counter() - began
            changing += await _steps_for(contender, RELAYED_S)
            return ChangeTurn(before, changing, await _steps_for(contender, RELAYED_S), found_s)

    return run_turn("a change of ways", turn)


async def _connected(
    stack: AsyncExitStack, relay: RunningRelay | None, datagram_bytes: int
) -> tuple[OurEndpoint, PeerId]:
    """One end here, the other in a process of its own."""
    relays = () if relay is None else (relay.addr,)
    _, told = await spawn(stack, "net_echo", "hopformer", str(datagram_bytes), *relays)
    peer, addr = parse(told)
    assert peer is not None
    contender = OurEndpoint(datagram_bytes)
    await contender.open(peer, addr if relay is None else relay.addr)
    stack.push_async_callback(contender.close)
    if _is_relayed(contender.endpoint, peer) != (relay is not None):
        raise NetworkError("a hop took another way than it was to take")
    return contender, peer


async def _dial(peer: PeerId, addr: str, kept: str | None) -> float:
    """By a node of its own, which is at the relay ``kept`` before it begins."""
    events: list[Event] = []
    endpoint = Endpoint(Identity.generate(), None, events.append)
    endpoint.listen(LISTEN)
    endpoint.punches = False
    try:
        if kept is not None:
            endpoint.relays.keep(kept)
            async with asyncio.timeout(REGISTER_S):
                while not endpoint.relays.addrs:
                    await asyncio.sleep(_EVERY_S)
        began = time.perf_counter()
        endpoint.dial(peer, (addr,))
        while PeerUp(peer) not in events:
            await asyncio.sleep(_EVERY_S)
        return time.perf_counter() - began
    finally:
        endpoint.close()
        await asyncio.sleep(_EVERY_S)


async def _steps_for(contender: OurEndpoint, seconds: float) -> list[float]:
    until, steps = time.perf_counter() + seconds, []
    while time.perf_counter() < until:
        steps += await time_steps(contender, bytes(ROW_BYTES), 1)
    return steps


def _is_relayed(endpoint: Endpoint, peer: PeerId) -> bool:
    connection = endpoint.connection_of(peer)
    return connection is not None and isinstance(connection.path.way, Relayed)
