"""The network's process of a node: an Endpoint on a loop of its own, and a socket pair to the model's process.

It is a process of its own because a model computes for milliseconds at a time, and Python would let QUIC wait for it;
and because what parses strangers' bytes need not share memory with what computes. It always reads what the model's
process says, and holds back the peers' credit when that process does not read what it gets. It ends when its parent
does: the socket pair is closed then, whatever the parent died of.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections import deque

from ..errors import NetworkError
from .admission import Guests
from .endpoint import Endpoint
from .identity import Identity, PeerId
from .membership import Network
from .mesh_member import TICK_S, MeshMember, unpublished
from .pipe import (
    Dial,
    Down,
    Failed,
    HeardOf,
    Log,
    Order,
    Publish,
    Ready,
    Record,
    RecordReader,
    Start,
    Stat,
    Stats,
    Stop,
    Unheard,
    Up,
    pack_message,
    pack_order,
)
from .switchboard import Event, Heard, PeerDown, PeerUp, Vanished
from .wire import Part

HOLD_BYTES = 16 << 20  # that the model's process has not read: then peers get no more credit ...
RELEASE_BYTES = 4 << 20  # ... until it has
READ_BYTES = 256 << 10  # at a turn of the loop, so that datagrams get theirs: 0.1 ms
LOOK_S = 0.1  # between two looks whether they have turned it away
REGISTER_S = 5.0  # that a node waits for its relays before it is ready without them; as long as a dial may take
MAX_LOG_CHARACTERS = 4000  # of a line, with a traceback in it; what a stranger can put into one is shorter
PIPE_BUFFER_BYTES = 4 << 20  # asked for: a prefill chunk crosses in one write; the kernel may grant less


class NetworkProcess:
    """Records in, an Endpoint, records out."""

    def __init__(self, pipe: socket.socket) -> None:
        self._pipe = pipe
        self._loop = asyncio.get_running_loop()
        self._reader = RecordReader()
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._unwritten: deque[memoryview] = deque()
        self._unwritten_bytes = 0
        self._endpoint: Endpoint | None = None
        self._mesh: MeshMember | None = None
        self._starting: asyncio.Task[None] | None = None
        self._ready: Ready | None = None  # as it was told last
        self._is_over = asyncio.Event()

    async def run(self) -> None:
        """Until the parent says Stop, or is gone."""
        self._loop.add_reader(self._pipe.fileno(), self._on_readable)
        try:
            while not self._is_over.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._is_over.wait(), TICK_S)
                if self._endpoint is not None and self._mesh is not None:
                    self._mesh.tick()
                    self._write(pack_order(_stats_of(self._endpoint)))
                    self._tell_ready()
        finally:
            self._loop.remove_reader(self._pipe.fileno())
            self._loop.remove_writer(self._pipe.fileno())
            if self._starting is not None:
                self._starting.cancel()
            if self._endpoint is not None:
                self._endpoint.close()
            if self._mesh is not None:
                await self._mesh.close()

    def _on_readable(self) -> None:
        try:
            num_bytes = self._pipe.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            num_bytes = 0
        if num_bytes == 0:
            self._is_over.set()
        for record in self._reader.feed(self._buffer[:num_bytes]):
            self._obey(record)

    def _obey(self, record: Record) -> None:
        if isinstance(record, Start):
            self._starting = self._loop.create_task(self._start(record))
            return
        assert self._endpoint is not None
        if isinstance(record, tuple):
            self._endpoint.send(*record)
        elif isinstance(record, Dial):
            self._endpoint.dial(PeerId(record.peer), record.addrs)
        elif isinstance(record, Publish):
            assert self._mesh is not None
            self._mesh.publish(None if record.announcement is None else unpublished(record.announcement))
        elif isinstance(record, Stop):
            self._is_over.set()

    def log(self, level: int, logger: str, text: str) -> None:
        """Tell the model's process, whose log it is."""
        self._write(pack_order(Log(level, logger, text[:MAX_LOG_CHARACTERS])))

    async def _start(self, start: Start) -> None:
        logging.getLogger(__package__.partition(".")[0]).setLevel(start.log_level)
        identity = Identity.from_seed(start.seed)
        network = None if start.network is None else Network(PeerId(start.network))
        guests = Guests(None if start.allow is None else frozenset(map(PeerId, start.allow)), network)
        self._endpoint = endpoint = Endpoint(identity, guests, self._tell, start.max_datagram_bytes, start.membership)
        if start.ice:
            from .ice import IceAgents  # aioice is loaded where it is asked for

            endpoint.ice = IceAgents(endpoint, endpoint.carrier, endpoint.relays)
        self._mesh = MeshMember(endpoint, identity, network, start.membership, self._tell)
        try:
            endpoint.listen(start.listen)
            if start.lan is not None:
                await self._mesh.join_lan(start.lan)
            if start.is_watching:
                endpoint.relays.watch()
            for relay in start.relays:
                endpoint.relays.keep(relay)
        except NetworkError as error:
            self._write(pack_order(Failed(str(error))))
            return
        deadline = self._loop.time() + REGISTER_S
        registered = asyncio.Event()
        endpoint.registered = registered.set
        relays = endpoint.relays
        while len(relays.addrs) < len(start.relays) and not relays.are_refused and self._loop.time() < deadline:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(registered.wait(), LOOK_S)
            registered.clear()
        if relays.are_refused and start.lan is None:
            self._write(pack_order(Failed("; ".join(relays.problems))))
            return
        endpoint.registered = self._on_registered
        self._ready = Ready(endpoint.addrs, relays.addrs, relays.problems)
        self._write(pack_order(self._ready))

    def _on_registered(self) -> None:
        assert self._mesh is not None
        self._mesh.refresh()
        self._tell_ready()

    def _tell_ready(self) -> None:
        """Once it is, whenever something of it has changed."""
        assert self._endpoint is not None
        ready = Ready(self._endpoint.addrs, self._endpoint.relays.addrs, self._endpoint.relays.problems)
        if self._ready not in (None, ready):
            self._ready = ready
            self._write(pack_order(ready))

    def _tell(self, event: Event) -> None:
        if isinstance(event, PeerUp):
            self._write(pack_order(Up(event.peer.digest)))
        elif isinstance(event, PeerDown):
            self._write(pack_order(Down(event.peer.digest, event.reason)))
        elif isinstance(event, Heard):
            self._write(pack_order(HeardOf(event.blob, int(event.via))))
        elif isinstance(event, Vanished):
            self._write(pack_order(Unheard(event.peer.digest)))
        else:
            self._write(pack_message(event.peer, event.message))

    def _write(self, parts: tuple[Part, ...]) -> None:
        """Write it when the loop's turn is over: what is told together wakes the model's process once."""
        if not self._unwritten:
            self._loop.call_soon(self._flush)
        for part in parts:
            self._unwritten.append(memoryview(part))
            self._unwritten_bytes += len(part)
        if self._endpoint is not None and self._unwritten_bytes > HOLD_BYTES:
            self._endpoint.hold(True)

    def _flush(self) -> None:
        """Write what the pipe takes; the rest when it takes more."""
        self._on_writable()
        if self._unwritten:
            self._loop.add_writer(self._pipe.fileno(), self._on_writable)

    def _on_writable(self) -> None:
        unwritten = self._unwritten
        while unwritten:
            try:
                num_bytes = self._pipe.sendmsg([unwritten[index] for index in range(min(len(unwritten), 16))])
            except BlockingIOError:
                break
            except OSError:  # the parent is gone
                self._is_over.set()
                unwritten.clear()
                break
            self._unwritten_bytes -= num_bytes
            while unwritten and num_bytes >= len(unwritten[0]):
                num_bytes -= len(unwritten.popleft())
            if num_bytes:
                unwritten[0] = unwritten[0][num_bytes:]
        if not unwritten:
            self._loop.remove_writer(self._pipe.fileno())
        if self._endpoint is not None and self._unwritten_bytes < RELEASE_BYTES:
            self._endpoint.hold(False)


def _stats_of(endpoint: Endpoint) -> Order:
    return Stats(
        tuple(
            Stat(peer.digest, one.addr, one.rtt_s, one.sent_bytes, one.received_bytes, one.queued_bytes)
            for peer, one in endpoint.stats().items()
        )
    )


class _ToTheModel(logging.Handler):
    """Sends what is logged here to the process that was told how logs look."""

    def __init__(self, process: NetworkProcess) -> None:
        super().__init__()
        self._process = process

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        self._process.log(record.levelno, record.name, self.format(record))


def main(descriptor: int) -> None:
    """Serve the model's process at the other end of the socket with this file descriptor."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which says Stop
    logging.getLogger("quic").setLevel(logging.CRITICAL)  # aioquic warns of whatever a stranger sends
    with socket.socket(fileno=descriptor) as pipe:
        pipe.setblocking(False)
        pipe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIPE_BUFFER_BYTES)

        async def serve() -> None:
            process = NetworkProcess(pipe)
            logging.getLogger().addHandler(_ToTheModel(process))
            await process.run()

        asyncio.run(serve())


if __name__ == "__main__":
    main(int(sys.argv[1]))
