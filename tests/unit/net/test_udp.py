"""The UDP socket: addresses as people write them, and what the kernel tells."""

import errno
import socket
import struct
import time

import pytest

from hopformer.errors import NetworkError
from hopformer.net import udp
from hopformer.net.udp import UdpSocket, join_host_port, split_host_port


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("10.0.0.1:4711", "10.0.0.1", 4711), ("[::1]:0", "::1", 0), ("host.example:65535", "host.example", 65535)],
)
def test_an_address_is_host_and_port(text: str, host: str, port: int) -> None:
    assert split_host_port(text) == (host, port)
    assert join_host_port(host, port) == text


@pytest.mark.parametrize("text", ["", "host", "host:", "host:x", "host:65536", "host:-1", "host:٣"])
def test_anything_else_is_none(text: str) -> None:
    with pytest.raises(NetworkError, match="HOST:PORT is expected"):
        split_host_port(text)


@pytest.fixture
def pair():
    one, other = UdpSocket("127.0.0.1", 0), UdpSocket("127.0.0.1", 0)
    yield one, other
    one.close()
    other.close()


def wait() -> None:
    time.sleep(0.05)


def test_datagrams_arrive_with_their_address_and_a_turn_has_an_end(pair) -> None:
    one, other = pair
    one.send([bytes([index]) for index in range(100)], ("127.0.0.1", other.port))
    wait()
    first, second = other.receive(), other.receive()
    assert len(first) == udp.DATAGRAMS_PER_TURN and len(second) == 36
    assert first[3] == (b"\3", ("127.0.0.1", one.port)) and other.receive() == [] and other.has_errors


def test_an_address_where_nobody_listens_is_told(pair) -> None:
    one, other = pair
    port = other.port
    other.close()
    one.send([b"hello"], ("127.0.0.1", port))
    wait()
    assert one.receive() == [] and one.has_errors
    assert [addr[:2] for addr in one.refused()] == [("127.0.0.1", port)] and one.refused() == []


def test_what_cannot_be_sent_is_lost_and_no_error(pair) -> None:
    one, other = pair
    one.send([b"x", bytes(70_000)], ("127.0.0.1", other.port))  # beyond what UDP has
    one.send([b"y"], ("255.255.255.255", 9))  # a broadcast, which needs a permission
    one.send([b"z"], ("127.0.0.1", other.port))
    wait()
    assert [datagram for datagram, _ in other.receive()] == [b"x", b"z"]


class Kernel:
    """A kernel whose buffer takes ``room`` datagrams, and which may not know how to cut them."""

    def __init__(self, room: int = 1000, segments: bool = True) -> None:
        self.room, self.segments, self.calls = room, segments, []

    def sendto(self, datagram: bytes, addr: tuple) -> None:
        self.take([datagram])

    def sendmsg(self, datagrams: list[bytes], ancillary: list, flags: int, addr: tuple) -> None:
        if not self.segments:
            raise OSError(errno.EINVAL, "Invalid argument")
        ((_, _, size),) = ancillary
        assert all(len(one) == struct.unpack("=H", size)[0] for one in datagrams[:-1])
        self.take(list(datagrams))

    def take(self, datagrams: list[bytes]) -> None:
        if self.room < len(datagrams):
            raise BlockingIOError
        self.room -= len(datagrams)
        self.calls.append([len(one) for one in datagrams])

    def close(self) -> None:
        pass


def socket_on(kernel: Kernel) -> UdpSocket:
    one = UdpSocket("127.0.0.1", 0)
    one.close()
    one._socket = kernel
    return one


@pytest.mark.parametrize("segments", [True, False])
def test_what_the_kernel_does_not_take_waits_in_order(segments: bool) -> None:
    one = socket_on(kernel := Kernel(room=0, segments=segments))
    one.send([b"1", b"22", b"333"], ("127.0.0.1", 1))
    one.send([b"4444"], ("127.0.0.1", 2))
    assert kernel.calls == [] and one.has_backlog
    kernel.room = 100
    one.send()
    assert [size for call in kernel.calls for size in call] == [1, 2, 3, 4] and not one.has_backlog
    kernel.room = 0
    for _ in range(3):
        one.send([b"x"] * udp.MAX_BACKLOG, ("127.0.0.1", 1))
    assert len(one._backlog) == udp.MAX_BACKLOG


def test_datagrams_of_one_size_leave_in_one_call() -> None:
    one = socket_on(kernel := Kernel())
    sizes = [1452, 1452, 1452, 90, 1452, 1452, 2000, 2000, 33]
    one.send([bytes(size) for size in sizes], ("127.0.0.1", 1))
    assert kernel.calls == [[1452, 1452, 1452, 90], [1452, 1452], [2000], [2000], [33]]
    kernel.calls.clear()
    one.send([bytes(1200)] * 130, ("127.0.0.1", 1))
    assert [len(call) for call in kernel.calls] == [54, 54, 22]  # 65,535 bytes, and 64 segments
    kernel.calls.clear()
    one.send([b"x"] * 130, ("127.0.0.1", 1))
    assert [len(call) for call in kernel.calls] == [64, 64, 2]


def test_a_kernel_that_cannot_cut_gets_them_one_by_one() -> None:
    one = socket_on(kernel := Kernel(segments=False))
    one.send([bytes(1200)] * 3, ("127.0.0.1", 1))
    assert kernel.calls == [[1200]] * 3


def test_what_left_in_one_call_arrives_as_it_was(pair) -> None:
    one, other = pair
    sent = [bytes([index]) * 1452 for index in range(9)] + [b"short"]
    one.send(sent, ("127.0.0.1", other.port))
    wait()
    assert [datagram for datagram, _ in other.receive()] == sent


def test_an_address_that_is_taken_or_not_ours_is_an_error(pair) -> None:
    for host, port in (("127.0.0.1", pair[0].port), ("192.0.2.1", 0)):
        with pytest.raises(NetworkError, match=f"cannot listen on {host}:{port}"):
            UdpSocket(host, port)


def test_a_socket_for_every_interface_names_addresses_that_others_can_dial() -> None:
    every = UdpSocket("0.0.0.0", 0)
    assert f"127.0.0.1:{every.port}" in every.addrs()
    assert all(split_host_port(one)[0] not in ("0.0.0.0", "::") for one in every.addrs())
    every.close()


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
def test_a_socket_for_ipv6_reaches_ipv4_as_well() -> None:
    try:
        both, four = UdpSocket("::", 0), UdpSocket("127.0.0.1", 0)
    except NetworkError:
        pytest.skip("this machine has no IPv6")
    assert both.takes(socket.AF_INET) and both.takes(socket.AF_INET6) and not four.takes(socket.AF_INET6)
    both.send([b"x"], both.mapped(("127.0.0.1", four.port)))
    wait()
    ((datagram, addr),) = four.receive()
    assert datagram == b"x" and addr == ("127.0.0.1", both.port)
    assert four.mapped(("127.0.0.1", 1)) == ("127.0.0.1", 1)
    both.close()
    four.close()
