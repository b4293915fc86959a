"""What is said about ICE on the wire, and what is asked of aioice; how it goes between two nodes: tests/integration."""

import dataclasses

import aioice
import pytest

from hopformer.errors import NetworkError, WireError
from hopformer.net import ice, wire
from hopformer.net.relay_messages import IceOffer
from hopformer.net.wire import decode, encode

LINE = "6815297761 1 udp 2130706431 198.51.100.7 31102 typ srflx raddr 192.168.1.2 rport 31102"
OFFER = IceOffer(True, "abcd", "p" * 22, (LINE, LINE))
LARGEST = IceOffer(
    False,
    "u" * wire.MAX_ICE_NAME_BYTES,
    "p" * wire.MAX_ICE_NAME_BYTES,
    ("c" * wire.MAX_CANDIDATE_BYTES,) * wire.MAX_CANDIDATES,
)


@pytest.mark.parametrize("offer", [OFFER, LARGEST, IceOffer(True, "", "", ())])
def test_what_is_offered_comes_back(offer: IceOffer) -> None:
    assert decode(memoryview(b"".join(encode(offer)))) == offer


@pytest.mark.parametrize(
    "change",
    [
        {"ufrag": "u" * (wire.MAX_ICE_NAME_BYTES + 1)},
        {"pwd": "p" * (wire.MAX_ICE_NAME_BYTES + 1)},
        {"candidates": ("c" * (wire.MAX_CANDIDATE_BYTES + 1),)},
        {"candidates": ("c",) * (wire.MAX_CANDIDATES + 1)},
    ],
)
def test_nothing_beyond_a_limit_is_offered(change: dict) -> None:
    with pytest.raises(WireError):
        encode(dataclasses.replace(LARGEST, **change))


def test_the_longest_candidate_of_aioice_fits() -> None:
    host = "2001:0db8:0000:0000:0000:0000:0000:0001"
    longest = aioice.Candidate("f" * 32, 1, "udp", (1 << 32) - 1, host, 65535, "srflx", host, 65535)
    assert len(longest.to_sdp()) <= wire.MAX_CANDIDATE_BYTES


def test_the_private_names_are_there() -> None:
    agent = aioice.Connection(True)
    for name in ice.PRIVATE_NAMES:
        assert hasattr(agent, name), name
    for name in ("data_received", "get_component_candidates"):  # not in its documentation, and overridden
        assert hasattr(aioice.Connection, name), name


def test_a_candidate_is_asked_where_a_peer_may_be_and_nowhere_else() -> None:
    def line(host: str, port: int = 9, component: int = 1, transport: str = "udp") -> str:
        return f"f {component} {transport} 7 {host} {port} typ host"

    good = [line("198.51.100.7"), line("192.168.1.2"), line("2001:db8::1"), LINE]
    bad = [line("224.0.0.1"), line("0.0.0.0"), line("fe80::1"), line("10.0.0.1", 9, 2), line("10.0.0.1", 9, 1, "tcp")]
    assert [one.to_sdp() for one in ice._candidates([*bad, *good], loopback=False)] == good
    assert ice._candidates([line("127.0.0.1")], loopback=False) == []
    assert len(ice._candidates([line("127.0.0.1")], loopback=True)) == 1


@pytest.mark.parametrize(
    "line", ["", "f 1 udp 7 10.0.0.1", "f 1 udp 7 router.local 9 typ host", "f 1 udp 7 ::1 x typ host"]
)
def test_what_is_no_candidate_ends_the_attempt(line: str) -> None:
    with pytest.raises(NetworkError):
        ice._candidates([line], loopback=True)


def test_loopback_is_offered_where_there_is_nothing_else() -> None:
    assert ice._hosts(["127.0.0.1:1", "[::1]:1"]) == ["127.0.0.1", "::1"]
    assert ice._hosts(["10.0.0.1:1", "10.0.0.1:2", "[fe80::1%eth0]:1", "127.0.0.1:1"]) == ["10.0.0.1"]
    assert len(ice._hosts([f"10.0.0.{number}:1" for number in range(9)])) == ice.MAX_HOSTS
