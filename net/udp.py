"""A UDP socket: many datagrams at a turn, and what the network says of those that did not arrive.

Not here: whose they are.
"""

import errno
import logging
import socket
import struct
import sys
from collections import deque
from collections.abc import Iterable
from itertools import islice

import psutil

from ..errors import NetworkError
from .ways import Addr

logger = logging.getLogger(__name__)

DATAGRAMS_PER_TURN = 64  # so that timers and the model's process get their turn; 64 take about 2 ms
MAX_DATAGRAM_BYTES = 16_384  # longer ones are cut, and then decrypt to nothing; nobody of ours sends them
_MAX_UDP_BYTES = 65_535
SOCKET_BUFFER_BYTES = 4 << 20  # four short paths' windows (congestion.py); the kernel may grant less
MAX_BACKLOG = 4096  # datagrams that the kernel would not take yet; beyond it they are lost, which QUIC repairs

_IS_LINUX = sys.platform == "linux"  # elsewhere deaths are noticed later, and datagrams leave one by one
_IP_RECVERR, _IPV6_RECVERR, _MSG_ERRQUEUE = 11, 25, 0x2000  # linux/in.h, in6.h, socket.h: missing in Python
_SOL_UDP, _UDP_SEGMENT = 17, 103  # linux/udp.h: the kernel cuts one buffer into datagrams, of which only the last ...
_MAX_SEGMENTS, _MAX_SEGMENT_BYTES = 64, 1472  # ... is shorter, at most 64, each no longer than the device takes
_EXTENDED_ERROR = struct.Struct("=IBBBBII")  # sock_extended_err, linux/errqueue.h: the first field is an errno


class UdpSocket:
    """One socket, not blocking."""

    def __init__(self, host: str, port: int) -> None:
        """Raises NetworkError: the address is taken, or none of this machine's."""
        try:
            family, _, _, _, addr = socket.getaddrinfo(
                host or None, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
            )[0]
            self._socket = _bound(family, addr)
        except OSError as error:
            raise NetworkError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        self.family = socket.AddressFamily(family)
        self.host, self.port = self._socket.getsockname()[:2]
        self.has_errors = False
        self._can_segment = _IS_LINUX
        self._backlog: deque[tuple[bytes, Addr]] = deque()

    def fileno(self) -> int:
        """For the loop."""
        return self._socket.fileno()

    def close(self) -> None:
        """Give it back."""
        self._socket.close()

    def takes(self, family: int) -> bool:
        """Whether it reaches addresses of ``family``."""
        return family == self.family or (self.host == "::" and family == socket.AF_INET)

    def mapped(self, addr: Addr) -> Addr:
        """``addr`` as this socket names it: one for both calls an IPv4 address ::ffff:a.b.c.d (RFC 4291, 2.5.5.2)."""
        return (f"::ffff:{addr[0]}", addr[1], 0, 0) if self.family == socket.AF_INET6 and len(addr) == 2 else addr

    @property
    def has_backlog(self) -> bool:
        """Whether datagrams wait for the kernel; then call ``send`` when it takes more."""
        return bool(self._backlog)

    def addrs(self) -> tuple[str, ...]:
        """HOST:PORT each, where others may reach it."""
        if self.host not in ("0.0.0.0", "::"):
            return (join_host_port(self.host, self.port),)
        families = {socket.AF_INET} if self.family == socket.AF_INET else {socket.AF_INET, socket.AF_INET6}
        hosts = [
            one.address
            for interface in psutil.net_if_addrs().values()
            for one in interface
            if one.family in families and "%" not in one.address  # link-local: of no use to another machine
        ]
        hosts.sort(key=lambda host: host in ("127.0.0.1", "::1"))
        return tuple(join_host_port(host, self.port) for host in hosts)

    def receive(self) -> list[tuple[bytes, Addr]]:
        """What has arrived, at most DATAGRAMS_PER_TURN."""
        arrived: list[tuple[bytes, Addr]] = []
        self.has_errors = False
        receive = self._socket.recvfrom
        for _ in range(DATAGRAMS_PER_TURN):
            try:
                arrived.append(receive(MAX_DATAGRAM_BYTES))
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                self.has_errors = True  # an earlier datagram's fate, which ``refused`` tells with its address
        self.has_errors |= not arrived  # what else would have woken us
        return arrived

    def refused(self) -> list[Addr]:
        """Where a datagram was sent and the machine answered that no program listens (ICMP, RFC 792). Linux only."""
        addrs: list[Addr] = []
        for _ in range(DATAGRAMS_PER_TURN if _IS_LINUX else 0):
            try:
                _, ancillary, _, addr = self._socket.recvmsg(1, 512, _MSG_ERRQUEUE)
            except OSError:
                break
            for _, _, data in ancillary:
                if len(data) >= _EXTENDED_ERROR.size and _EXTENDED_ERROR.unpack_from(data)[0] == errno.ECONNREFUSED:
                    addrs.append(addr)
        return addrs

    def send(self, datagrams: Iterable[bytes] = (), addr: Addr = ()) -> None:
        """Send, in order, as much as the kernel takes now; the rest waits. Nothing that goes wrong is an error here."""
        self._backlog.extend((datagram, addr) for datagram in datagrams)
        while len(self._backlog) > MAX_BACKLOG:
            self._backlog.popleft()
        while self._backlog:
            first, addr = self._backlog[0]
            alike = self._alike() if self._can_segment else [first]
            try:
                if len(alike) > 1:
                    self._socket.sendmsg(alike, [(_SOL_UDP, _UDP_SEGMENT, struct.pack("=H", len(first)))], 0, addr)
                else:
                    self._socket.sendto(first, addr)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if len(alike) > 1:
                    self._can_segment = False  # not this kernel, or not this device
                    continue
                logger.debug("addr=%s: a datagram could not be sent: %s", addr, error)
            for _ in alike:
                self._backlog.popleft()

    def _alike(self) -> list[bytes]:
        """The datagrams at the front of the queue that the kernel can cut out of one buffer."""
        first, addr = self._backlog[0]
        size = len(first)
        alike = [first]
        if size > _MAX_SEGMENT_BYTES or len(self._backlog) == 1:
            return alike
        for datagram, other in islice(self._backlog, 1, min(_MAX_SEGMENTS, _MAX_UDP_BYTES // max(size, 1))):
            if other != addr or len(datagram) > size or not datagram:
                break
            alike.append(datagram)
            if len(datagram) < size:
                break
        return alike


def _bound(family: int, addr: Addr) -> socket.socket:
    one = socket.socket(family, socket.SOCK_DGRAM)
    try:
        one.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            one.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        if _IS_LINUX:
            one.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            if _IS_LINUX:
                one.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        one.bind(addr)
    except OSError:
        one.close()
        raise
    return one


def split_host_port(text: str) -> tuple[str, int]:
    """ "HOST:PORT" or "[HOST]:PORT" in two.

    Raises:
        NetworkError: it is neither.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise NetworkError(f"{text!r} is no address; HOST:PORT is expected, such as 192.168.1.7:4711 or [::]:4711")
    return host.removeprefix("[").removesuffix("]"), int(port)


def join_host_port(host: str, port: int) -> str:
    """The opposite."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
