"""The emulated link: what arrives, when, and in what order; and the process with its two sockets."""

import socket
import subprocess
import sys
from itertools import pairwise

import pytest

from hopformer.bench.net_emulator import Direction, EmulatedLink
from hopformer.net.udp import split_host_port

FAR_FUTURE = 1e9


def number(index: int) -> bytes:
    return index.to_bytes(4, "big")


def arrivals(link: EmulatedLink, count: int, gap_s: float = 0.001, direction: int = 0) -> list[tuple[float, int]]:
    """(when, which) of ``count`` datagrams that are sent ``gap_s`` apart from time 0 on."""
    one = Direction(link, direction)
    for index in range(count):
        one.admit(number(index), index * gap_s)
    found = []
    while (due := one.next_due()) is not None:
        found += [(due, int.from_bytes(datagram, "big")) for datagram in one.take_due(due)]
    return found


def test_each_direction_takes_half_of_the_round_trip() -> None:
    one = Direction(EmulatedLink(0.020), 0)
    one.admit(b"x", 5.0)
    assert one.next_due() == pytest.approx(5.010)
    assert one.take_due(5.0099) == [] and one.take_due(5.0101) == [b"x"] and one.next_due() is None


def test_nothing_is_lost_and_nothing_overtakes_where_neither_was_asked_for() -> None:
    assert [which for _, which in arrivals(EmulatedLink(0.1), 1000, gap_s=0.0)] == list(range(1000))


def test_as_many_are_lost_as_was_said_and_the_same_ones_again() -> None:
    link = EmulatedLink(0.0, loss=0.03)
    found = [which for _, which in arrivals(link, 10_000)]
    assert 200 < 10_000 - len(found) < 400
    assert [which for _, which in arrivals(link, 10_000)] == found
    assert [which for _, which in arrivals(link, 10_000, direction=1)] != found
    assert [which for _, which in arrivals(EmulatedLink(0.0, loss=0.03, seed=2), 10_000)] != found
    assert arrivals(EmulatedLink(0.0, loss=1.0), 100) == []


def test_jitter_lets_datagrams_overtake_each_other_within_its_bounds() -> None:
    found = arrivals(EmulatedLink(0.020, jitter_s=0.005), 1000)
    assert {which for _, which in found} == set(range(1000))
    assert any(later < earlier for (_, earlier), (_, later) in pairwise(found))
    late = [when - which * 0.001 for when, which in found]
    assert 0.0075 <= min(late) < 0.008 and 0.012 < max(late) <= 0.0125


def test_a_rate_spaces_datagrams_and_a_full_queue_loses_them() -> None:
    link = EmulatedLink(0.0, bytes_per_s=4000.0, queue_s=0.0105)  # 1 ms for each of 4 bytes
    found = arrivals(link, 100, gap_s=0.0)
    assert [which for _, which in found] == list(range(11))
    assert [when for when, _ in found] == pytest.approx([0.001 * (index + 1) for index in range(11)])
    assert len(arrivals(link, 100, gap_s=0.001)) == 100


def test_a_link_survives_the_command_line() -> None:
    link = EmulatedLink(0.1, 0.005, 0.01, 1e6, 0.2, 7)
    assert EmulatedLink.from_text(link.to_text()) == link


def test_a_process_stands_between_two_sockets_until_its_input_ends() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far,
    ):
        for one in (near, far):
            one.bind(("127.0.0.1", 0))
            one.settimeout(30)
        host, port = far.getsockname()
        command = [sys.executable, "-P", "-m", "hopformer.bench.net_emulator", f"{host}:{port}"]
        process = subprocess.Popen(
            [*command, EmulatedLink(0.002).to_text()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            front = split_host_port(process.stdout.readline().strip())
            for word in (b"one", b"two"):
                near.sendto(word, front)
                heard, back = far.recvfrom(100)
                assert heard == word and back != near.getsockname()
                far.sendto(word.upper(), back)
                assert near.recvfrom(100) == (word.upper(), front)
            process.communicate(timeout=30)
            assert process.returncode == 0
        finally:
            process.kill()
            process.communicate()
