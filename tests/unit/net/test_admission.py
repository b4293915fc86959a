"""Who gets in, and the price of those who do not."""

import os

import pytest

from hopformer.net.admission import MAX_STRANGERS, Guests, Known, Rate, Retries, keeps_old, parse_initial
from hopformer.net.identity import Identity, PeerId
from hopformer.net.quic import VIRTUAL_ADDR, Credentials, MutualQuic
from hopformer.net.ways import Direct

ANNA, BELA, CARA = PeerId(bytes(22)), PeerId(b"\1" * 22), PeerId(b"\2" * 22)
WAY = Direct(0, ("192.0.2.1", 4711))


def first_datagram() -> tuple[MutualQuic, bytes]:
    client = MutualQuic(Credentials(Identity.generate()))
    client.connect(VIRTUAL_ADDR, now=100.0)
    ((datagram, _),) = client.datagrams_to_send(100.0)
    return client, datagram


def test_a_connection_begins_with_an_initial_and_with_nothing_else() -> None:
    client, datagram = first_datagram()
    initial = parse_initial(datagram)
    assert initial is not None and initial.destination_id == client.original_destination_connection_id
    assert initial.source_id == client.host_cid and initial.token == b""
    for other in (
        datagram[:1199],
        b"",
        bytes(1200),
        os.urandom(1) + bytes(1300),
        datagram[:1] + b"\0\0\0\2" + datagram[5:],  # another version
        bytes([datagram[0] | 0x20]) + datagram[1:],  # a handshake packet
        datagram[:5] + b"\x04" + datagram[6:],  # an id of 4 bytes
        datagram[:5] + b"\xff" + datagram[6:],
    ):
        assert parse_initial(other) is None


def test_a_retry_proves_an_address_and_no_other() -> None:
    retries, now = Retries(), 50.0
    client, datagram = first_datagram()
    initial = parse_initial(datagram)
    client.receive_datagram(retries.packet(initial, WAY, now), VIRTUAL_ADDR, 100.1)
    ((again, _), *_) = client.datagrams_to_send(100.1)
    second = parse_initial(again)
    assert second.token and second.destination_id != initial.destination_id
    assert retries.original_id(second, WAY, now + 1) == initial.destination_id
    assert retries.original_id(second, Direct(0, ("192.0.2.2", 4711)), now + 1) is None
    assert retries.original_id(second, Direct(0, ("192.0.2.1", 4712)), now + 1) is None
    assert retries.original_id(second, WAY, now + 60) is None
    assert Retries().original_id(second, WAY, now + 1) is None


def test_an_ipv6_address_with_a_zone_gets_a_token() -> None:
    _, datagram = first_datagram()
    assert Retries().packet(parse_initial(datagram), Direct(0, ("fe80::1%eth0", 4711, 0, 2)), 1.0)


@pytest.mark.parametrize(
    ("old", "new", "keeps"),
    [
        (Known(ANNA, b"x", 10.0), Known(BELA, b"x", 10.1), True),  # both dialled: the smaller id's dial stays
        (Known(BELA, b"x", 10.0), Known(ANNA, b"x", 10.1), False),
        (Known(ANNA, b"x", 10.0), Known(ANNA, b"x", 10.1), True),  # two addresses of one dial: the first stays
        (Known(ANNA, b"x", 10.0), Known(BELA, b"y", 10.1), False),  # a new process
        (Known(ANNA, b"x", 10.0), Known(BELA, b"x", 60.0), False),  # the same one, which has lost the connection
    ],
)
def test_of_two_connections_one_stays(old: Known, new: Known, keeps: bool) -> None:
    assert keeps_old(old, new) is keeps


def test_both_ends_keep_the_same_connection() -> None:
    for first, second in ((ANNA, BELA), (BELA, ANNA)):
        annas, belas = Known(first, b"b", 10.0), Known(second, b"b", 10.1)
        there, here = Known(second, b"a", 10.0), Known(first, b"a", 10.1)  # the other end saw them the other way round
        kept = annas.dialler if keeps_old(annas, belas) else belas.dialler
        assert kept == (there.dialler if keeps_old(there, here) else here.dialler) == ANNA


def test_who_is_let_in() -> None:
    assert Guests(None).why_refused(ANNA, BELA, 0) is None
    assert "no Ed25519 certificate" in Guests(None).why_refused(None, BELA, 0)
    assert "this is you" in Guests(frozenset({BELA})).why_refused(BELA, BELA, 0)
    assert Guests(frozenset({ANNA})).why_refused(ANNA, BELA, MAX_STRANGERS) is None
    assert f"{ANNA} is not on this node's list" in Guests(frozenset({CARA})).why_refused(ANNA, BELA, 0)
    assert "not on this node's list" in Guests(frozenset()).why_refused(ANNA, BELA, 0)
    assert Guests(None).why_refused(ANNA, BELA, MAX_STRANGERS - 1) is None
    assert "connected already" in Guests(None).why_refused(ANNA, BELA, MAX_STRANGERS)


def test_a_rate_lets_through_as_much_as_it_says() -> None:
    rate = Rate(10)
    assert sum(rate.take(100.0) for _ in range(50)) == 10
    assert sum(rate.take(100.0 + index / 100) for index in range(1, 201)) == 20
    assert sum(rate.take(1000.0) for _ in range(50)) == 10
