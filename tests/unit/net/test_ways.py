"""Ways: channels' datagrams, addresses that a peer may name as its own, and how a way is shown."""

import ipaddress

import pytest

from hopformer.errors import NetworkError
from hopformer.net.identity import PeerId
from hopformer.net.ways import (
    CHANNEL_BYTES,
    CHANNEL_PREFIX_BYTES,
    Direct,
    Relayed,
    channel_prefix,
    is_from_asker,
    is_loopback,
    is_relayed,
    is_site,
    offered_addr,
    retry_addr,
    shown,
)

RELAY = PeerId(bytes(22))
CHANNEL = bytes(range(1, 8))
HERE = ("192.0.2.7", 4711)


def relayed(*, is_asker: bool, channel: bytes = CHANNEL) -> Relayed:
    return Relayed(RELAY, HERE, channel_prefix(channel, is_asker=is_asker))


# ---- datagrams of channels


def test_a_prefix_names_the_end_and_the_channel_and_is_no_quic_packet() -> None:
    asker, other = (channel_prefix(CHANNEL, is_asker=is_asker) for is_asker in (True, False))
    assert asker == b"\4" + CHANNEL and other == b"\5" + CHANNEL
    assert len(asker) == CHANNEL_PREFIX_BYTES == 1 + CHANNEL_BYTES == 8
    assert is_from_asker(asker) and not is_from_asker(other)
    assert not any(first[0] & 0xC0 for first in (asker, other))  # RFC 9000, section 17: all of QUIC's have one


def test_what_one_end_sends_the_other_knows() -> None:
    asker, other = relayed(is_asker=True), relayed(is_asker=False)
    assert asker.peers_prefix == other.prefix and other.peers_prefix == asker.prefix


@pytest.mark.parametrize(
    ("datagram", "expected"),
    [
        (b"\4" + CHANNEL + b"x", True),
        (b"\5" + CHANNEL + b"x", True),
        (b"\4" + CHANNEL, False),  # nothing in it
        (b"\4", False),
        (b"", False),
        (b"\1" + bytes(40), False),  # a probe
        (b"\3" + bytes(40), False),  # a hint, and more
        (b"\6" + bytes(40), False),
        (b"\x44" + bytes(40), False),  # QUIC's
        (b"\xc4" + bytes(40), False),
    ],
)
def test_relayed_datagrams_are_told_from_others(datagram: bytes, expected: bool) -> None:
    assert is_relayed(datagram) is expected


def test_a_retry_token_is_bound_to_an_address_or_to_a_channel() -> None:
    assert retry_addr(Direct(3, HERE)) == retry_addr(Direct(0, HERE)) == HERE
    assert retry_addr(Direct(0, ("fe80::1%eth0", 4711, 0, 2))) == ("fe80::1", 4711)
    made_up = retry_addr(relayed(is_asker=True))
    assert ipaddress.ip_address(made_up[0]).is_private and made_up == retry_addr(relayed(is_asker=False))
    assert made_up != retry_addr(relayed(is_asker=True, channel=bytes(7)))


# ---- addresses


@pytest.mark.parametrize(
    ("host", "loopback", "site"),
    [
        ("127.0.0.1", True, True),
        ("127.8.8.8", True, True),
        ("::1", True, True),
        ("::ffff:127.0.0.1", True, True),
        ("10.1.2.3", False, True),
        ("192.168.1.7", False, True),
        ("::ffff:192.168.1.7", False, True),
        ("fd00::1", False, True),
        ("fe80::1%eth0", False, True),
        ("169.254.0.9", False, True),
        ("8.8.8.8", False, False),
        ("2606:4700::1111", False, False),
    ],
)
def test_what_is_near_is_told_by_its_address(host: str, loopback: bool, site: bool) -> None:
    for way in (Direct(0, (host, 1)), Relayed(RELAY, (host, 1), bytes(8))):
        assert (is_loopback(way), is_site(way)) == (loopback, site)


def test_a_way_is_shown_with_its_relay() -> None:
    assert shown(Direct(0, HERE)) == "192.0.2.7:4711"
    assert shown(Direct(0, ("2001:db8::1", 4711, 0, 0))) == "[2001:db8::1]:4711"
    assert shown(relayed(is_asker=True)) == f"{RELAY}@192.0.2.7:4711"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.7:4711", ("192.0.2.7", 4711)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("[2001:db8::1]:65535", ("2001:db8::1", 65535, 0, 0)),
        ("[2001:DB8:0::1]:9", ("2001:db8::1", 9, 0, 0)),
    ],
)
def test_an_address_that_a_peer_names_is_taken(text: str, expected: tuple[object, ...]) -> None:
    assert offered_addr(text, loopback=False) == offered_addr(text, loopback=True) == expected


@pytest.mark.parametrize(
    "text",
    [
        "224.0.0.1:1",  # everybody on the network
        "[ff02::1]:1",
        "0.0.0.0:1",  # this machine, in disguise
        "[::]:1",
        "255.255.255.255:1",
        "240.0.0.1:1",
        "169.254.169.254:80",  # what clouds tell their machines
        "[fe80::1]:1",
    ],
)
def test_nobody_is_probed_who_cannot_be_the_peer(text: str) -> None:
    assert offered_addr(text, loopback=False) is None and offered_addr(text, loopback=True) is None


@pytest.mark.parametrize("text", ["127.0.0.1:4711", "127.255.0.1:1"])
def test_this_machines_own_addresses_are_for_peers_on_it(text: str) -> None:
    assert offered_addr(text, loopback=False) is None
    assert offered_addr(text, loopback=True) is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "192.0.2.7",
        ":4711",
        "192.0.2.7:",
        "192.0.2.7:0",
        "192.0.2.7:65536",
        "192.0.2.7:-1",
        "192.0.2.7:http",
        "192.0.2.7:+4711",  # other spellings of a number
        "192.0.2.7: 4711",
        "192.0.2.7:4_711",
        "192.0.2.7:٤٧١١",
        "192.0.2.7:" + "0" * 5000 + "1",
        "example.org:4711",  # a name that this node would look up for a stranger
        "2130706433:80",  # other spellings of 127.0.0.1
        "0x7f.1:80",
        "127.1:80",
        "x" * 10_000 + ":1",
    ],
)
def test_what_is_no_address_is_told_in_one_short_line(text: str) -> None:
    with pytest.raises(NetworkError, match=r"is no numeric HOST:PORT") as caught:
        offered_addr(text, loopback=True)
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)
