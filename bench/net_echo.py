"""The other end of a hop that net_link.py measures, in a process of its own: it answers steps and confirms bulk.

Run as ``python -m hopformer.bench.net_echo KIND DATAGRAM_BYTES``, and for hopformer behind it a relay that it is to be
reached through as well, PEER_ID@HOST:PORT; it prints where it listens as a line of JSON and ends when its standard
input does.
"""

import asyncio
import json
import ssl
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from aioquic.asyncio import serve
from aioquic.quic.configuration import QuicConfiguration
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ..net.endpoint import Endpoint
from ..net.identity import Identity, PeerId
from ..net.messages import Done, Message, Step
from ..net.network_process import ProcessSwitchboard
from ..net.switchboard import Received

HEADER = struct.Struct(">IB")  # of the baselines' frames: length, kind
ECHO, BULK = 0, 1
CONFIRMED = b"\1"
ALPN = "echo"
LISTEN = ("127.0.0.1:0",)
REGISTER_S = 10.0


def answer(message: Message) -> Message | None:
    """To a step itself, to bulk that it arrived."""
    if not isinstance(message, Step):
        return None
    return message if message.num_wanted else Done(message.session, message.step, 0, 0, 1)


class FrameBuffer:
    """The baselines' frames, out of bytes as they come."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """(kind, body) of every frame that is complete."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= HEADER.size:
            length, kind = HEADER.unpack_from(self._buffer)
            if len(self._buffer) < HEADER.size + length:
                break
            frames.append((kind, bytes(self._buffer[HEADER.size : HEADER.size + length])))
            del self._buffer[: HEADER.size + length]
        return frames


def frame(kind: int, body: bytes) -> bytes:
    """The opposite."""
    return HEADER.pack(len(body), kind) + body


def reply(kind: int, body: bytes) -> bytes:
    """The baselines' answer."""
    return frame(kind, body if kind == ECHO else CONFIRMED)


async def serve_hopformer(datagram_bytes: int, relay: str | None = None) -> str:
    """Our endpoint, in this process. At a relay it leaves it to who dials to look for a better way."""
    identity = Identity.generate()

    def tell(event: object) -> None:
        if isinstance(event, Received) and (message := answer(event.message)) is not None:
            endpoint.send(event.peer, message)

    endpoint = Endpoint(identity, None, tell, datagram_bytes)
    endpoint.listen(LISTEN)
    if relay is not None:
        endpoint.punches = False
        endpoint.relays.keep(relay)
        async with asyncio.timeout(REGISTER_S):
            while not endpoint.relays.addrs:
                await asyncio.sleep(0.01)
    return f"{identity.peer_id}@{endpoint.addrs[0]}"


async def serve_switchboard(datagram_bytes: int) -> str:
    """Our endpoint in a process of its own, and the model's side of it here."""
    board = ProcessSwitchboard.start(Identity.generate(), LISTEN, None, datagram_bytes)

    def answer_all() -> None:
        for event in board.poll(0):
            if isinstance(event, Received) and (message := answer(event.message)) is not None:
                board.send(event.peer, message)

    asyncio.get_running_loop().add_reader(board.fileno(), answer_all)
    return f"{board.peer_id}@{board.addrs[0]}"


async def answer_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The baselines' loop over one stream."""
    buffer = FrameBuffer()
    while data := await reader.read(1 << 18):
        for kind, body in buffer.feed(data):
            writer.write(reply(kind, body))


async def serve_aioquic(datagram_bytes: int) -> str:
    """aioquic's server and streams as its documentation has them."""
    configuration = QuicConfiguration(is_client=False, alpn_protocols=[ALPN], max_datagram_size=datagram_bytes)
    configuration.certificate, configuration.private_key = Identity.generate().tls_credentials()
    talks: set[asyncio.Task[None]] = set()

    def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.ensure_future(answer_stream(reader, writer)))

    server = await serve("127.0.0.1", 0, configuration=configuration, stream_handler=talk)
    transport = vars(server)["_transport"]
    host, port = transport.get_extra_info("sockname")[:2]
    return f"@{host}:{port}"


async def serve_tls(_datagram_bytes: int) -> str:
    """TCP and TLS by asyncio."""
    certificate, key = Identity.generate().tls_credentials()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "certificate.pem")
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(certificate.public_bytes(Encoding.PEM) + pem)
        context.load_cert_chain(path)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer_stream(reader, writer)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=context)
    host, port = server.sockets[0].getsockname()[:2]
    return f"@{host}:{port}"


KINDS: dict[str, Callable] = {
    "hopformer": serve_hopformer,
    "switchboard": serve_switchboard,
    "aioquic": serve_aioquic,
    "tls": serve_tls,
}


async def main(kind: str, datagram_bytes: int, *relays: str) -> None:
    """Serve until standard input ends."""
    where = await KINDS[kind](datagram_bytes, *relays)
    peer, _, addr = where.partition("@")
    print(json.dumps({"peer": peer, "addr": addr}), flush=True)
    await asyncio.to_thread(sys.stdin.read)


def parse(line: str) -> tuple[PeerId | None, str]:
    """What a server printed: who it is, where hopformer needs that, and HOST:PORT."""
    told = json.loads(line)
    return (PeerId.parse(told["peer"]) if told["peer"] else None), told["addr"]


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))
