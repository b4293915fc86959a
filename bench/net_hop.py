"""One contender's turn at one hop: both ends are started, steps of several sizes and bulk pass, and both ends end.

Over loopback, or over an emulated link. Who takes a turn when, and what the figures become, is net_suite.py's and
net_rows.py's.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil

from ..errors import NetworkError
from .net_contender import ROW_BYTES, Contender
from .net_echo import parse
from .net_emulator import EmulatedLink
from .net_lines import Line

T = TypeVar("T")

TURN_S = 90.0  # eight times what the slowest takes; then it hangs
WARM_STEPS = 30
BUSY_PAUSE_S = 0.005  # between decode steps beside a prefill: about what a layer span computes
CHUNK_BYTES = 2 << 20  # 256 tokens of 8 KiB: a prefill chunk
CHUNKS_UNDER_WAY = 2
END_S = 5.0  # for a process of ours to end
LINK_CHUNK_BYTES = 8 * ROW_BYTES
LINK_CHUNKS_UNDER_WAY = 64  # 4 MiB: 40 MiB/s at 100 ms


@dataclass(frozen=True, slots=True)
class HopEffort:
    """How much passes in a turn.

    Attributes:
        num_steps: round trips, by payload in bytes.
        bulk_bytes: one way with nothing beside it; busy_bulk_bytes: with steps of 8 KiB beside it.
    """

    num_steps: Mapping[int, int]
    bulk_bytes: int
    busy_bulk_bytes: int


@dataclass(frozen=True, slots=True)
class HopTurn:
    """What it took, in seconds; by payload: each round trip, and the processors' time of one."""

    effort: HopEffort

    steps_s: Mapping[int, Sequence[float]]
    cpu_s: Mapping[int, float]
    bulk_bytes_per_s: float
    busy_steps_s: Sequence[float]
    busy_bulk_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class LinkEffort:
    """How long a turn over an emulated link may take: steps of 8 KiB, then bulk."""

    steps_s: float
    bulk_s: float


@dataclass(frozen=True, slots=True)
class LinkTurn:
    """What came through."""

    steps_s: Sequence[float]
    bulk_bytes_per_s: float


def take_hop_turn(line: Line, effort: HopEffort) -> HopTurn:
    """Over loopback. Raises NetworkError: it does not end."""
    return run_turn(line.name, lambda: _hop_turn(line, effort))


def take_link_turn(line: Line, link: EmulatedLink, effort: LinkEffort) -> LinkTurn:
    """Over an emulated link. Raises NetworkError: it does not end."""
    return run_turn(line.name, lambda: _link_turn(line, link, effort))


def run_turn(name: str, turn: Callable[[], Awaitable[T]]) -> T:
    """One turn on a loop of its own, which ends when the connection does, and in any case after TURN_S.

    Raises:
        NetworkError: so it ended.
    """

    async def bounded() -> T:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        broken: list[ConnectionError] = []

        def note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            """A contender tells in a callback that its connection is gone, where nobody awaits it."""
            if not isinstance(context.get("exception"), ConnectionError):
                loop.default_exception_handler(context)
            elif not broken and task is not None:
                broken.append(context["exception"])
                task.cancel()

        loop.set_exception_handler(note)
        try:
            async with asyncio.timeout(TURN_S):
                return await turn()
        except asyncio.CancelledError:
            if broken:
                raise NetworkError(f"{name}: the connection is gone: {broken[0]}") from None
            raise
        except TimeoutError:
            raise NetworkError(f"{name} has not ended after {TURN_S:.0f} s") from None

    return asyncio.run(bounded())


async def _hop_turn(line: Line, effort: HopEffort) -> HopTurn:
    async with _opened(line, None) as (contender, pids):
        await time_steps(contender, bytes(ROW_BYTES), WARM_STEPS)
        steps_s, cpu_s = {}, {}
        for payload_bytes, num_steps in effort.num_steps.items():
            before = _cpu_s(pids)
            steps_s[payload_bytes] = await time_steps(contender, bytes(payload_bytes), num_steps)
            cpu_s[payload_bytes] = (_cpu_s(pids) - before) / num_steps
        bulk = await time_bulk(contender, effort.bulk_bytes)
        passing = asyncio.create_task(time_bulk(contender, effort.busy_bulk_bytes))
        busy: list[float] = []
        while not passing.done():
            busy += await time_steps(contender, bytes(ROW_BYTES), 1)
            await asyncio.sleep(BUSY_PAUSE_S)
        return HopTurn(effort, steps_s, cpu_s, bulk, busy, passing.result())


async def _link_turn(line: Line, link: EmulatedLink, effort: LinkEffort) -> LinkTurn:
    senders: list[asyncio.Task[None]] = []
    num_bytes = 0

    async def send_on(until: float) -> None:
        nonlocal num_bytes
        while time.perf_counter() < until:
            await contender.bulk(bytes(LINK_CHUNK_BYTES))
            num_bytes += LINK_CHUNK_BYTES

    try:
        async with _opened(line, link) as (contender, _):
            steps: list[float] = []
            until = time.perf_counter() + effort.steps_s
            while time.perf_counter() < until:
                steps += await time_steps(contender, bytes(ROW_BYTES), 1)
            until = time.perf_counter() + effort.bulk_s
            senders.extend(asyncio.create_task(send_on(until)) for _ in range(LINK_CHUNKS_UNDER_WAY))
            await asyncio.sleep(effort.bulk_s)
            return LinkTurn(steps, num_bytes / effort.bulk_s)
    finally:  # behind the contender's close: an answer to somebody who was cancelled would be an error
        for one in senders:
            one.cancel()
        await asyncio.gather(*senders, return_exceptions=True)


@asynccontextmanager
async def _opened(line: Line, link: EmulatedLink | None) -> AsyncIterator[tuple[Contender, list[int]]]:
    """A contender that is connected, and the processes of its hop besides this one."""
    async with AsyncExitStack() as stack:
        server, told = await spawn(stack, "net_echo", line.kind, str(line.datagram_bytes))
        peer, addr = parse(told)
        if link is not None:
            _, told = await spawn(stack, "net_emulator", addr, link.to_text())
            addr = told.strip()
        contender = line.make(line.datagram_bytes)
        await contender.open(peer, addr)
        stack.push_async_callback(contender.close)
        yield contender, [server.pid, *contender.pids()]


async def spawn(stack: AsyncExitStack, module: str, *arguments: str) -> tuple[asyncio.subprocess.Process, str]:
    """A process of ours, which ends when its standard input does, and the line that it prints first."""
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-P", "-m", f"hopformer.bench.{module}", *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, process_group=0)
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None and stdout is not None

    async def end() -> None:
        stdin.close()
        try:
            await asyncio.wait_for(process.wait(), END_S)
        except TimeoutError:
            process.kill()
            await process.wait()

    stack.push_async_callback(end)
    told = (await stdout.readline()).decode()
    if not told:
        raise NetworkError(f"{module} ended before it said where it listens; its own words are above")
    return process, told


async def time_steps(contender: Contender, rows: bytes, count: int) -> list[float]:
    """Seconds of each round trip."""
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        await contender.step(rows)
        seconds.append(time.perf_counter() - began)
    return seconds


async def time_bulk(contender: Contender, num_bytes: int) -> float:
    """Bytes a second."""
    left = iter(range(0, num_bytes, CHUNK_BYTES))

    async def send() -> None:
        for begin in left:
            await contender.bulk(bytes(min(CHUNK_BYTES, num_bytes - begin)))

    began = time.perf_counter()
    await asyncio.gather(*(send() for _ in range(CHUNKS_UNDER_WAY)))
    return num_bytes / (time.perf_counter() - began)


def _cpu_s(pids: Sequence[int]) -> float:
    """Processor time so far of this process and ``pids``."""
    times = [psutil.Process(pid).cpu_times() for one in pids for pid in _family(one)]
    return time.process_time() + sum(one.user + one.system for one in times)


def _family(pid: int) -> list[int]:
    """A process and its children."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
