"""What one hop costs on this machine: a decode step there and back, a prefill, and the one beside the other.

Ours is timed beside aioquic's own asyncio API and beside TCP with TLS, in turns within each round, because a shared
machine drifts by a factor of two: only ratios within a round are to be compared. ``bench_link`` returns the rows.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import psutil

from .machine import Machine, installed_version
from .net_contender import ROW_BYTES, Aioquic, Contender, OurEndpoint, OurSwitchboard, Tls
from .net_echo import parse

CHUNK_BYTES = 2 << 20  # 256 tokens of 8 KiB: a prefill chunk
CHUNKS_UNDER_WAY = 2
BUSY_PAUSE_S = 0.005  # between decode steps beside a prefill: about what a layer span computes
WARM_STEPS = 30
END_S = 5.0  # for a process of ours to end
STOCK = "aioquic, 1452"  # what ratios are taken over


@dataclass(frozen=True, slots=True)
class Line:
    """A contender of a run: its name in the rows, and how its two ends are made."""

    name: str
    kind: str
    make: Callable[[int], Contender]
    datagram_bytes: int
    distribution: str | None
    num_processes: int = 2


LINES = (
    Line("hopformer, 1452", "hopformer", OurEndpoint, 1452, None),
    Line("hopformer, 8900", "hopformer", OurEndpoint, 8900, None),
    Line("hopformer in processes, 8900", "switchboard", OurSwitchboard, 8900, None, 4),
    Line(STOCK, "aioquic", Aioquic, 1452, "aioquic"),
    Line("aioquic, 8900", "aioquic", Aioquic, 8900, "aioquic"),
    Line("TCP with TLS", "tls", Tls, 0, None),
)


CUBIC = "aioquic cubic, 1452"
PATH_LINES = (LINES[0], Line(CUBIC, "aioquic", partial(Aioquic, congestion_control="cubic"), 1452, "aioquic"))


@dataclass(frozen=True, slots=True)
class Load:
    """How much is measured in a round."""

    num_steps: int = 300
    bulk_bytes: int = 32 << 20
    busy_bulk_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Turn:
    """One contender's turn in a round; seconds."""

    steps_s: tuple[float, ...]
    cpu_s_per_step: float
    bulk_bytes_per_s: float
    busy_steps_s: tuple[float, ...]
    busy_bulk_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class PathQuality:
    """What net_path.py makes of loopback."""

    rtt_s: float
    loss: float


@dataclass(frozen=True, slots=True)
class PathTurn:
    """One contender's turn over such a path."""

    steps_s: tuple[float, ...]
    bulk_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class PathRow:
    """One contender over one path; medians over the rounds.

    Attributes:
        bulk_times_stock: how many times as fast as CUBIC; the median of each round's own ratio.
    """

    machine: Machine
    runs: str
    version: str | None
    datagram_bytes: int
    rtt_ms: float
    loss: float
    rounds: int
    step_p50_ms: float
    step_p90_ms: float
    step_p99_ms: float
    bulk_mib_per_s: float
    bulk_times_stock: float

    def as_json(self) -> dict[str, Any]:
        """Flat: the machine, then the measures."""
        fields = asdict(self)
        return {"bench": "path", **fields.pop("machine"), **fields}


@dataclass(frozen=True, slots=True)
class LinkRow:
    """One contender; times are medians over the rounds.

    Attributes:
        step_p50_us, step_p99_us: 8 KiB there and back, nothing else under way.
        cpu_us_per_step: of all processes at both ends.
        bulk_mib_per_s: one way, in chunks of 2 MiB.
        busy_p50_ms, busy_p99_ms: 8 KiB there and back while a 64 MiB prefill passes on the same connection.
        step_times_stock, bulk_times_stock: how many times as fast as STOCK; medians of each round's own ratio.
    """

    machine: Machine
    runs: str
    version: str | None
    datagram_bytes: int
    num_processes: int
    rounds: int
    step_p50_us: float
    step_p99_us: float
    cpu_us_per_step: float
    bulk_mib_per_s: float
    busy_p50_ms: float
    busy_p99_ms: float
    busy_bulk_mib_per_s: float
    step_times_stock: float
    bulk_times_stock: float

    def as_json(self) -> dict[str, Any]:
        """Flat: the machine, then the measures."""
        fields = asdict(self)
        return {"bench": "link", **fields.pop("machine"), **fields}


def bench_link(rounds: int = 3, load: Load | None = None, lines: Sequence[Line] = LINES) -> list[LinkRow]:
    """Measure one hop on loopback, every contender in every round; ``lines`` must have STOCK."""
    turns: dict[str, list[Turn]] = {line.name: [] for line in lines}
    for number in range(rounds):
        for line in (*lines[number % len(lines) :], *lines[: number % len(lines)]):
            turns[line.name].append(asyncio.run(take_turn(line, load or Load())))
    machine = Machine.here()
    return [_row(machine, line, turns[line.name], turns[STOCK]) for line in lines]


def bench_path(path: PathQuality, rounds: int = 3, num_steps: int = 100, bulk_s: float = 10.0) -> list[PathRow]:
    """Measure one hop over a worse path: ours, and aioquic's cubic."""
    turns: dict[str, list[PathTurn]] = {line.name: [] for line in PATH_LINES}
    for _ in range(rounds):
        for line in PATH_LINES:
            turns[line.name].append(asyncio.run(take_path_turn(line, path, num_steps, bulk_s)))
    machine = Machine.here()
    return [_path_row(machine, line, path, turns[line.name], turns[CUBIC]) for line in PATH_LINES]


async def take_turn(line: Line, load: Load) -> Turn:
    """Start both ends, measure, and end them."""
    async with AsyncExitStack() as stack:
        contender, pids = await _start(stack, line)
        return await _measure(contender, pids, load)


async def take_path_turn(line: Line, path: PathQuality, num_steps: int, bulk_s: float) -> PathTurn:
    """The same over a worse path, and bulk for as long as ``bulk_s``."""
    async with AsyncExitStack() as stack:
        contender, _ = await _start(stack, line, path)
        rows, chunk = bytes(ROW_BYTES), bytes(CHUNK_BYTES // 8)  # shorter: slow ones are to finish some
        steps = await _steps(contender, rows, num_steps)
        began, num_chunks = time.perf_counter(), 0

        async def send_on() -> None:
            nonlocal num_chunks
            while time.perf_counter() - began < bulk_s:
                await contender.bulk(chunk)
                num_chunks += 1

        senders = [asyncio.create_task(send_on()) for _ in range(16)]  # 4 MiB under way
        _, late = await asyncio.wait(senders, timeout=bulk_s)
        for one in late:
            one.cancel()
        return PathTurn(tuple(steps), num_chunks * len(chunk) / (time.perf_counter() - began))


async def _start(stack: AsyncExitStack, line: Line, path: PathQuality | None = None) -> tuple[Contender, list[int]]:
    """Both ends of a hop, and the processes besides this one."""
    server, told = await _spawn(stack, "net_echo", line.kind, str(line.datagram_bytes))
    peer, addr = parse(told)
    if path is not None:
        _, told = await _spawn(stack, "net_path", addr, str(path.rtt_s), str(path.loss))
        addr = told.strip()
    contender = line.make(line.datagram_bytes)
    await contender.open(peer, addr)
    stack.push_async_callback(contender.close)
    return contender, [server.pid, *contender.pids()]


async def _spawn(stack: AsyncExitStack, module: str, *arguments: str) -> tuple[asyncio.subprocess.Process, str]:
    """A process of ours, which ends when we close its standard input, and the line that it prints first."""
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-P", "-m", f"hopformer.bench.{module}", *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert process.stdin is not None and process.stdout is not None
    stdin = process.stdin

    async def end() -> None:
        stdin.close()
        try:
            await asyncio.wait_for(process.wait(), END_S)
        except TimeoutError:
            process.kill()
            await process.wait()

    stack.push_async_callback(end)
    return process, (await process.stdout.readline()).decode()


async def _measure(contender: Contender, pids: list[int], load: Load) -> Turn:
    rows, chunk = bytes(ROW_BYTES), bytes(CHUNK_BYTES)
    await _steps(contender, rows, WARM_STEPS)
    cpu_before = _cpu_s(pids)
    steps = await _steps(contender, rows, load.num_steps)
    cpu = (_cpu_s(pids) - cpu_before) / load.num_steps
    bulk = await _bulk(contender, chunk, load.bulk_bytes)
    passing = asyncio.create_task(_bulk(contender, chunk, load.busy_bulk_bytes))
    busy: list[float] = []
    while not passing.done():
        busy += await _steps(contender, rows, 1)
        await asyncio.sleep(BUSY_PAUSE_S)
    return Turn(tuple(steps), cpu, bulk, tuple(busy), passing.result())


async def _steps(contender: Contender, rows: bytes, count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        await contender.step(rows)
        seconds.append(time.perf_counter() - began)
    return seconds


async def _bulk(contender: Contender, chunk: bytes, num_bytes: int) -> float:
    """Bytes per second."""
    began = time.perf_counter()
    under_way: set[asyncio.Task[None]] = set()
    for _ in range(num_bytes // len(chunk)):
        if len(under_way) == CHUNKS_UNDER_WAY:
            _, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        under_way.add(asyncio.create_task(contender.bulk(chunk)))
    await asyncio.gather(*under_way)
    return num_bytes / (time.perf_counter() - began)


def _cpu_s(pids: Sequence[int]) -> float:
    """Processor time of this process, those, and their children."""
    total = time.process_time()
    for pid in pids:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            total += one.cpu_times().user + one.cpu_times().system
    return total


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which so many percent lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def _row(machine: Machine, line: Line, turns: Sequence[Turn], stock: Sequence[Turn]) -> LinkRow:
    def over_rounds(measure: Callable[[Turn], float]) -> float:
        return median(map(measure, turns))

    def step_p50(turn: Turn) -> float:
        return percentile(turn.steps_s, 50)

    return LinkRow(
        machine,
        line.name,
        installed_version(line.distribution or "hopformer"),
        line.datagram_bytes,
        line.num_processes,
        len(turns),
        step_p50_us=1e6 * over_rounds(step_p50),
        step_p99_us=1e6 * over_rounds(lambda turn: percentile(turn.steps_s, 99)),
        cpu_us_per_step=1e6 * over_rounds(lambda turn: turn.cpu_s_per_step),
        bulk_mib_per_s=over_rounds(lambda turn: turn.bulk_bytes_per_s) / 2**20,
        busy_p50_ms=1e3 * over_rounds(lambda turn: percentile(turn.busy_steps_s, 50)),
        busy_p99_ms=1e3 * over_rounds(lambda turn: percentile(turn.busy_steps_s, 99)),
        busy_bulk_mib_per_s=over_rounds(lambda turn: turn.busy_bulk_bytes_per_s) / 2**20,
        step_times_stock=median(step_p50(other) / step_p50(own) for own, other in zip(turns, stock, strict=True)),
        bulk_times_stock=median(
            own.bulk_bytes_per_s / other.bulk_bytes_per_s for own, other in zip(turns, stock, strict=True)
        ),
    )


def _path_row(
    machine: Machine, line: Line, path: PathQuality, turns: Sequence[PathTurn], stock: Sequence[PathTurn]
) -> PathRow:
    p50, p90, p99 = (1e3 * median(percentile(turn.steps_s, percent) for turn in turns) for percent in (50, 90, 99))
    return PathRow(
        machine,
        line.name,
        installed_version(line.distribution or "hopformer"),
        line.datagram_bytes,
        1e3 * path.rtt_s,
        path.loss,
        len(turns),
        p50,
        p90,
        p99,
        bulk_mib_per_s=median(turn.bulk_bytes_per_s for turn in turns) / 2**20,
        bulk_times_stock=median(
            own.bulk_bytes_per_s / max(other.bulk_bytes_per_s, 1.0) for own, other in zip(turns, stock, strict=True)
        ),
    )
