"""A link to emulate: a process between the two ends of a hop that forwards their datagrams late, or not at all.

Run as ``python -m hopformer.bench.net_emulator HOST:PORT LINK``, LINK as ``EmulatedLink.to_text`` writes it; it prints
HOST:PORT where it stands for the other end, and ends when its standard input does. It needs no rights: two UDP sockets
and a clock. The same seed loses the same datagrams by their count, and delays them by the same times.

What it cannot do: forward faster than one Python process does.
"""

import heapq
import json
import random
import select
import socket
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from ..net.udp import join_host_port, split_host_port

_BUFFER_BYTES = 4 << 20
_DATAGRAMS_PER_TURN = 64
_MAX_UDP_BYTES = 65_535

Addr = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class EmulatedLink:
    """What happens to datagrams, the same in both directions.

    Attributes:
        rtt_s: there and back, of a datagram that waits for no other.
        jitter_s: a round trip takes up to this much less or more, evenly spread, so that datagrams overtake each other.
        loss: how many of them never arrive, 0 to 1.
        bytes_per_s: what passes in each direction; None is as fast as it can be.
        queue_s: where a rate is given, whoever would wait longer for its turn is lost.
        seed: of chance.
    """

    rtt_s: float
    jitter_s: float = 0.0
    loss: float = 0.0
    bytes_per_s: float | None = None
    queue_s: float = 0.1
    seed: int = 1

    def to_text(self) -> str:
        """For a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "EmulatedLink":
        """The opposite."""
        return cls(**json.loads(text))


class Direction:
    """One direction of a link, without sockets and clock: which datagrams arrive, when, and in what order.

    Args:
        number: 0 or 1; each direction has chances of its own.
    """

    def __init__(self, link: EmulatedLink, number: int) -> None:
        self._link = link
        self._chance = random.Random(2 * link.seed + number)
        self._free_at = 0.0
        self._num_admitted = 0
        self._waiting: list[tuple[float, int, bytes]] = []  # a heap: due, count, datagram

    def admit(self, datagram: bytes, now: float) -> None:
        """Take a datagram that was sent."""
        link = self._link
        is_lost = self._chance.random() < link.loss
        late_s = link.jitter_s * (self._chance.random() - 0.5)  # half of a round trip's
        sent_at = now
        if link.bytes_per_s is not None:
            begins_at = max(self._free_at, now)
            if begins_at - now > link.queue_s:
                return
            self._free_at = sent_at = begins_at + len(datagram) / link.bytes_per_s
        if not is_lost:
            due = sent_at + max(0.0, link.rtt_s / 2 + late_s)
            heapq.heappush(self._waiting, (due, self._num_admitted, datagram))
        self._num_admitted += 1

    def take_due(self, now: float) -> list[bytes]:
        """What has arrived, in order."""
        due = []
        while self._waiting and self._waiting[0][0] <= now:
            due.append(heapq.heappop(self._waiting)[2])
        return due

    def next_due(self) -> float | None:
        """When the next one arrives."""
        return self._waiting[0][0] if self._waiting else None


class Emulator:
    """The sockets: ``front`` is where one end sends, and from ``back`` it reaches the other end at ``far``."""

    def __init__(self, link: EmulatedLink, far: tuple[str, int]) -> None:
        self._there, self._back_again = Direction(link, 0), Direction(link, 1)
        self._front, self._back = _open_socket(), _open_socket()
        self._far = far
        self._near: Addr | None = None

    @property
    def addr(self) -> str:
        """HOST:PORT of the front."""
        return join_host_port(*self._front.getsockname())

    def run(self) -> None:
        """Forward until standard input ends."""
        while True:
            dues = [due for due in (self._there.next_due(), self._back_again.next_due()) if due is not None]
            wait_s = max(0.0, min(dues) - time.monotonic()) if dues else None
            readable, _, _ = select.select([self._front, self._back, sys.stdin], [], [], wait_s)
            if sys.stdin in readable and not sys.stdin.read(1):
                return
            self._read(readable)
            now = time.monotonic()
            _send(self._back, self._there.take_due(now), self._far)
            _send(self._front, self._back_again.take_due(now), self._near)

    def close(self) -> None:
        """Give the sockets back."""
        self._front.close()
        self._back.close()

    def _read(self, readable: list[Any]) -> None:
        for one, direction in ((self._front, self._there), (self._back, self._back_again)):
            if one not in readable:
                continue
            now = time.monotonic()
            for _ in range(_DATAGRAMS_PER_TURN):
                try:
                    datagram, sender = one.recvfrom(_MAX_UDP_BYTES)
                except OSError:
                    break  # no more of them, or the last one sent met a closed port
                if one is self._front:
                    self._near = sender
                direction.admit(datagram, now)


def _open_socket() -> socket.socket:
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.bind(("127.0.0.1", 0))
    one.setblocking(False)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        one.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
    return one


def _send(one: socket.socket, datagrams: list[bytes], addr: Addr | None) -> None:
    for datagram in datagrams:
        if addr is not None:
            try:
                one.sendto(datagram, addr)
            except OSError:
                continue  # lost, as on any link


def main(far: str, link: str) -> None:
    """See the module's docstring."""
    emulator = Emulator(EmulatedLink.from_text(link), split_host_port(far))
    try:
        print(emulator.addr, flush=True)
        emulator.run()
    finally:
        emulator.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
