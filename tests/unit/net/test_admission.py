"""Who gets in, and the price of those who do not."""

import os
import time
from dataclasses import replace

import pytest

from hopformer.net.admission import MAX_STRANGERS, Guests, Known, Rate, Retries, keeps_old, parse_initial
from hopformer.net.grant import Grant, Role
from hopformer.net.identity import Identity, PeerId
from hopformer.net.invite import Token
from hopformer.net.membership import Network
from hopformer.net.quic import VIRTUAL_ADDR, Credentials, MutualQuic
from hopformer.net.revocations import Revocations
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


AUTHOR, MEMBER = Identity.from_seed(b"a" * 32), Identity.from_seed(b"m" * 32)
GRANT = Grant(AUTHOR.public_bytes, b"serial 1", Role.CHAT, int(time.time()) + 3600, (), MEMBER.public_bytes)


def shown(peer: PeerId, **changes: object) -> bytes:
    return Token.sign(replace(GRANT, **changes), AUTHOR, MEMBER).membership(peer)  # type: ignore[arg-type]


def test_in_a_closed_network_anybody_may_show_a_membership_and_only_members_come_in() -> None:
    guests = Guests(frozenset({CARA}), Network(AUTHOR.peer_id))
    assert guests.why_refused(ANNA, BELA, MAX_STRANGERS) is None, "it may be a member"
    assert "this is you" in guests.why_refused(BELA, BELA, 0)
    assert guests.why_no_member(ANNA, shown(ANNA)) is None
    assert guests.why_no_member(CARA, b"") is None, "it is on the list"
    assert guests.why_no_member(AUTHOR.peer_id, b"") is None
    assert not guests.are_strangers
    for role in (Role.SERVE, Role.CHAT):
        assert guests.why_no_member(ANNA, shown(ANNA, role=role)) is None


@pytest.mark.parametrize(
    ("membership", "words"),
    [
        (b"", "must join with a token"),
        (b"noise", "this is no membership"),
        (shown(BELA), "was made for another peer id"),
        (shown(ANNA)[:-1] + bytes((shown(ANNA)[-1] ^ 1,)), "was made for another peer id"),
        (shown(ANNA)[:9] + b"?" + shown(ANNA)[10:], "is of network|is forged"),
        (shown(ANNA, expires_at=1_000_000_000), "expired at 2001-09-09 01:46:40 UTC"),
    ],
    ids=["none", "noise", "another's", "forged", "changed", "expired"],
)
def test_why_somebody_is_no_member_is_one_line(membership: bytes, words: str) -> None:
    guests = Guests(frozenset(), Network(AUTHOR.peer_id))
    why = guests.why_no_member(ANNA, membership)
    assert why is not None and "\n" not in why
    assert any(one in why for one in words.split("|"))


def test_a_member_that_is_revoked_is_none_any_more() -> None:
    network = Network(AUTHOR.peer_id)
    guests = Guests(frozenset(), network)
    assert guests.why_no_member(ANNA, shown(ANNA)) is None
    network.take_revocations(Revocations(1, frozenset({b"serial 1"})).signed_by(AUTHOR))
    assert "was revoked" in (guests.why_no_member(ANNA, shown(ANNA)) or "")


def test_where_everybody_is_let_in_nobody_need_be_a_member() -> None:
    for guests in (Guests(None, Network(AUTHOR.peer_id)), Guests(None), Guests(frozenset({ANNA}))):
        assert guests.why_no_member(ANNA, b"") is None
    assert Guests(None, Network(AUTHOR.peer_id)).are_strangers


def test_a_rate_lets_through_as_much_as_it_says() -> None:
    rate = Rate(10)
    assert sum(rate.take(100.0) for _ in range(50)) == 10
    assert sum(rate.take(100.0 + index / 100) for index in range(1, 201)) == 20
    assert sum(rate.take(1000.0) for _ in range(50)) == 10
