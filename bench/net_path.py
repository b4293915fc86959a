"""A path to net_echo.py that is longer and worse than loopback: a forwarder of datagrams that delays and loses them.

Run as ``python -m hopformer.bench.net_path HOST:PORT RTT_S LOSS``; it prints its own HOST:PORT and ends when its
standard input does. It stands for the path's delay and chance, not for its bandwidth: that is this process's own.
"""

import asyncio
import random
import socket
import sys

from ..net.udp import join_host_port, split_host_port

_BUFFER_BYTES = 4 << 20
_DATAGRAMS_PER_TURN = 256


class BadPath:
    """Between one client and a server."""

    def __init__(self, server: tuple[str, int], rtt_s: float, loss: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._delay_s, self._loss = rtt_s / 2, loss
        self._chance = random.Random(1)
        self._client: tuple[str, int] | None = None
        self._server = server
        self.front, self._back = self._open(), self._open()

    def _open(self) -> socket.socket:
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.bind(("127.0.0.1", 0))
        one.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            one.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        self._loop.add_reader(one.fileno(), self._on_readable, one)
        return one

    def _on_readable(self, one: socket.socket) -> None:
        passed: list[bytes] = []
        for _ in range(_DATAGRAMS_PER_TURN):
            try:
                datagram, addr = one.recvfrom(65_535)
            except OSError:
                break
            if one is self.front:
                self._client = addr
            if self._chance.random() >= self._loss:
                passed.append(datagram)
        if passed:
            self._loop.call_later(self._delay_s, self._send, one is self.front, passed)

    def _send(self, is_to_server: bool, datagrams: list[bytes]) -> None:
        one, addr = (self._back, self._server) if is_to_server else (self.front, self._client)
        for datagram in datagrams:
            try:
                one.sendto(datagram, addr or self._server)
            except OSError:
                return  # lost


async def main(server: str, rtt_s: float, loss: float) -> None:
    """Forward until standard input ends."""
    path = BadPath(split_host_port(server), rtt_s, loss)
    print(join_host_port(*path.front.getsockname()), flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))
