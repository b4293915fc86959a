"""Whom a relay lets in, how much it passes, and where it looks for who was revoked."""

from pathlib import Path

import pytest

from hopformer.cli.relay_flags import DEFAULT_PORT, MIB, RelayFlags
from hopformer.errors import UsageError
from hopformer.net.authority_files import REVOCATIONS
from hopformer.net.identity import PeerId
from hopformer.net.relay_table import DEFAULT_RATE

OWN, OTHER, PEER = (PeerId(letter * 22) for letter in (b"o", b"t", b"p"))


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "hopformer"


def test_a_relay_is_closed_by_default_and_its_own_key_is_the_network(config: Path) -> None:
    made = RelayFlags().config(OWN)
    assert (made.allow, made.network) == (frozenset(), OWN)
    assert made.revocations == config / "networks" / str(OWN) / REVOCATIONS
    assert made.listen == (f"0.0.0.0:{DEFAULT_PORT}",) and made.max_rate == DEFAULT_RATE


def test_it_may_be_another_network(config: Path) -> None:
    made = RelayFlags(network=str(OTHER).upper()).config(OWN)
    assert made.network == OTHER and made.revocations == config / "networks" / str(OTHER) / REVOCATIONS


def test_peers_are_let_in_by_name_or_from_a_file_beside_the_members(tmp_path: Path) -> None:
    path = tmp_path / "friends.txt"
    path.write_text(f"{OTHER}  # Anna\n")
    made = RelayFlags(allow=[str(PEER), str(path)]).config(OWN)
    assert (made.allow, made.network) == (frozenset({PEER, OTHER}), OWN)


def test_it_is_open_only_where_that_is_said() -> None:
    assert RelayFlags(allow=["any"]).config(OWN).allow is None
    assert RelayFlags(allow=[str(PEER), "any"]).config(OWN).allow is None


@pytest.mark.parametrize(("rate", "expected"), [(0.0625, 1 << 16), (1.5, 3 << 19), (1 << 14, 1 << 34)])
def test_a_rate_is_in_mebibytes_a_second(rate: float, expected: int) -> None:
    assert RelayFlags(rate=rate).config(OWN).max_rate == expected == int(rate * MIB)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (RelayFlags(listen=["127.0.0.1"]), "--listen: '127.0.0.1' is no address"),
        (RelayFlags(listen=["127.0.0.1:0", "here:99999"]), "--listen: 'here:99999' is no address"),
        (RelayFlags(rate=0), "--rate is 0; it must be from 0.0625 to 16384"),
        (RelayFlags(rate=-1), "--rate is -1"),
        (RelayFlags(rate=16385), "--rate is 16385"),
        (RelayFlags(rate=float("nan")), "--rate is nan"),
        (RelayFlags(rate=float("inf")), "--rate is inf"),
        (RelayFlags(allow=["me"]), "--allow: 'me' is no peer id"),
        (RelayFlags(allow=["nobody.txt"]), "--allow nobody.txt cannot be read"),
        (RelayFlags(network="mine"), "--network: 'mine' is no peer id"),
        (RelayFlags(network=str(OTHER)[:-1]), "--network: .*it has 39 characters"),
        (RelayFlags(network="any"), "--network: 'any' is no peer id"),
    ],
)
def test_what_is_wrong_is_told(flags: RelayFlags, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        flags.config(OWN)
    assert "\n" not in str(caught.value)


def test_an_address_listens_wherever_it_is_said() -> None:
    listen = ["127.0.0.1:0", "[::1]:4711"]
    assert RelayFlags(listen=listen).config(OWN).listen == tuple(listen)
