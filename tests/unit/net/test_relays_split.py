"""How a relay is named: HOST:PORT, or PEER_ID@HOST:PORT to pin who must answer."""

import pytest

from hopformer.errors import NetworkError
from hopformer.net.identity import PeerId
from hopformer.net.relays import split_relay

RELAY = PeerId(b"r" * 22)


@pytest.mark.parametrize("addr", ["relay.example:4711", "192.0.2.7:1", "[2001:db8::1]:4711"])
def test_a_relay_may_be_pinned_or_not(addr: str) -> None:
    assert split_relay(addr) == (addr, None)
    assert split_relay(f"{RELAY}@{addr}") == (addr, RELAY)
    assert split_relay(f"{str(RELAY).upper()}@{addr}") == (addr, RELAY)


@pytest.mark.parametrize("text", ["@relay.example:4711", "me@relay.example:4711", f"{RELAY}@{RELAY}@h:1"])
def test_who_is_pinned_must_be_a_peer(text: str) -> None:
    with pytest.raises(NetworkError, match=r"is no PEER_ID@HOST:PORT: .*no peer id"):
        split_relay(text)


def test_a_mistyped_peer_id_is_found_by_its_checksum() -> None:
    mistyped = str(RELAY)[:-1] + ("a" if str(RELAY)[-1] != "a" else "b")
    with pytest.raises(NetworkError, match="checksum"):
        split_relay(f"{mistyped}@relay.example:4711")


def test_however_long_a_text_is_the_error_is_short() -> None:
    with pytest.raises(NetworkError) as caught:
        split_relay("x" * 10_000 + "@h:1")
    assert len(str(caught.value)) < 300
