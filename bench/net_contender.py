"""The near end of a measured hop: ours, aioquic's own asyncio API, and TCP with TLS, all with the same two calls.

``step`` sends activations and ends when they are back; ``bulk`` sends a prefill chunk and ends when its arrival is
confirmed. Both may be under way at once.
"""

import asyncio
import ssl
from collections import deque
from contextlib import AsyncExitStack
from typing import Protocol

from aioquic.asyncio import connect
from aioquic.quic.configuration import QuicConfiguration

from ..net.endpoint import Endpoint
from ..net.identity import Identity, PeerId
from ..net.messages import Codec, Done, Dtype, Message, SessionKey, Step
from ..net.network_process import ProcessSwitchboard
from ..net.switchboard import Event, PeerDown, PeerUp, Received
from ..net.udp import split_host_port
from .net_echo import ALPN, BULK, ECHO, LISTEN, FrameBuffer, frame

WIDTH = 4096  # elements in a row: 8 KiB in bf16
ROW_BYTES = 2 * WIDTH
_SETTLE_S = 1.0  # until probes have found out how large a datagram may be


class Contender(Protocol):
    """One end of a connection to net_echo.py."""

    async def open(self, peer: PeerId | None, addr: str) -> None:
        """Connect."""
        ...

    async def step(self, rows: bytes) -> None:
        """There and back."""
        ...

    async def bulk(self, rows: bytes) -> None:
        """There."""
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...

    def pids(self) -> list[int]:
        """Its own processes beside this one."""
        ...


class _Ours:
    """What our two contenders share: sessions 1 for steps and 2 for bulk, and who waits for which answer."""

    def __init__(self, datagram_bytes: int) -> None:
        self._identity = Identity.generate()
        self._own_id = self._identity.peer_id
        self._datagram_bytes = datagram_bytes
        self._peer: PeerId | None = None
        self._waiting: dict[tuple[int, int], asyncio.Future[None]] = {}
        self._up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._number = 0

    async def step(self, rows: bytes) -> None:
        """See Contender."""
        await self._ask(1, rows, len(rows) // ROW_BYTES)

    async def bulk(self, rows: bytes) -> None:
        """See Contender."""
        await self._ask(2, rows, 0)

    def pids(self) -> list[int]:
        """See Contender."""
        return []

    async def _ask(self, session: int, rows: bytes, num_wanted: int) -> None:
        self._number += 1
        key = SessionKey(self._own_id, session)
        num_tokens = len(rows) // ROW_BYTES
        answered = self._waiting[session, self._number] = asyncio.get_running_loop().create_future()
        self._send(Step(key, self._number, 0, num_tokens, num_wanted, False, Dtype.BFLOAT16, Codec.EXACT, WIDTH, rows))
        await answered

    def _tell(self, event: Event) -> None:
        if isinstance(event, PeerUp):
            self._up.set_result(None)
        elif isinstance(event, PeerDown):
            raise ConnectionError(event.reason)
        elif isinstance(event, Received) and isinstance(event.message, Step | Done):
            self._waiting.pop((event.message.session.number, event.message.step)).set_result(None)

    def _send(self, message: Message) -> None:
        raise NotImplementedError


class OurEndpoint(_Ours):
    """The endpoint on this process's loop: two processes in all."""

    async def open(self, peer: PeerId | None, addr: str) -> None:
        """See Contender."""
        assert peer is not None
        self._peer = peer
        self.endpoint = Endpoint(self._identity, None, self._tell, self._datagram_bytes)
        self.endpoint.listen(LISTEN)
        self.endpoint.punches = "@" not in addr  # whoever is dialled through a relay stays there
        self.endpoint.dial(peer, (addr,))
        await self._up
        await asyncio.sleep(_SETTLE_S)

    async def close(self) -> None:
        """See Contender."""
        self.endpoint.close()

    def _send(self, message: Message) -> None:
        assert self._peer is not None
        self.endpoint.send(self._peer, message)


class OurSwitchboard(_Ours):
    """As a node has it: the network in a process of its own at both ends, four in all."""

    async def open(self, peer: PeerId | None, addr: str) -> None:
        """See Contender."""
        assert peer is not None
        self._peer = peer
        self._board = ProcessSwitchboard.start(self._identity, LISTEN, None, self._datagram_bytes)
        asyncio.get_running_loop().add_reader(self._board.fileno(), self._take)
        self._board.dial(peer, (addr,))
        await self._up
        await asyncio.sleep(_SETTLE_S)

    async def close(self) -> None:
        """See Contender."""
        asyncio.get_running_loop().remove_reader(self._board.fileno())
        self._board.close()

    def pids(self) -> list[int]:
        """See Contender."""
        return [self._board.child_pid]

    def _take(self) -> None:
        for event in self._board.poll(0):
            self._tell(event)

    def _send(self, message: Message) -> None:
        assert self._peer is not None
        self._board.send(self._peer, message)


class _Streams:
    """What the baselines share: a byte stream for steps, one for bulk, and who waits for which answer."""

    def __init__(self) -> None:
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._waiting: dict[int, deque[asyncio.Future[None]]] = {ECHO: deque(), BULK: deque()}
        self._readers: list[asyncio.Task[None]] = []

    async def step(self, rows: bytes) -> None:
        """See Contender."""
        await self._ask(ECHO, rows)

    async def bulk(self, rows: bytes) -> None:
        """See Contender."""
        await self._ask(BULK, rows)

    def pids(self) -> list[int]:
        """See Contender."""
        return []

    def _add(self, kind: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers[kind] = writer
        self._readers.append(asyncio.create_task(self._read(reader, self._waiting[kind])))

    async def _ask(self, kind: int, rows: bytes) -> None:
        answered = asyncio.get_running_loop().create_future()
        self._waiting[kind].append(answered)
        self._writers[kind].write(frame(kind, rows))
        await answered

    async def _read(self, reader: asyncio.StreamReader, waiting: "deque[asyncio.Future[None]]") -> None:
        buffer = FrameBuffer()
        while data := await reader.read(1 << 18):
            for _ in buffer.feed(data):
                waiting.popleft().set_result(None)


class Aioquic(_Streams):
    """aioquic's client and streams as its documentation has them."""

    def __init__(self, datagram_bytes: int, congestion_control: str = "reno") -> None:
        super().__init__()
        self._datagram_bytes = datagram_bytes
        self._congestion_control = congestion_control
        self._stack = AsyncExitStack()

    async def open(self, peer: PeerId | None, addr: str) -> None:
        """See Contender."""
        configuration = QuicConfiguration(
            alpn_protocols=[ALPN],
            verify_mode=ssl.CERT_NONE,
            max_datagram_size=self._datagram_bytes,
            congestion_control_algorithm=self._congestion_control,
        )
        host, port = split_host_port(addr)
        protocol = await self._stack.enter_async_context(connect(host, port, configuration=configuration))
        for kind in (ECHO, BULK):
            reader, writer = await protocol.create_stream()
            writer.write(b"")  # else the next stream gets the same id
            self._add(kind, reader, writer)

    async def close(self) -> None:
        """See Contender."""
        for writer in self._writers.values():
            writer.close()
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        await self._stack.aclose()


class Tls(_Streams):
    """TCP with TLS, a connection for steps and one for bulk."""

    def __init__(self, _datagram_bytes: int) -> None:
        super().__init__()

    async def open(self, peer: PeerId | None, addr: str) -> None:
        """See Contender."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        for kind in (ECHO, BULK):
            self._add(kind, *await asyncio.open_connection(*split_host_port(addr), ssl=context))

    async def close(self) -> None:
        """See Contender."""
        for writer in self._writers.values():
            writer.close()
        await asyncio.gather(*self._readers)
