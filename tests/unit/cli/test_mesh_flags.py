"""What a command takes part in: relays, the local network, and the closed network of a token."""

import time
from pathlib import Path

import pytest

from hopformer.cli.join import TOKEN_VARIABLE
from hopformer.cli.mesh_flags import MeshFlags, default_listen
from hopformer.errors import MembershipError, UsageError
from hopformer.net.grant import Grant, Role
from hopformer.net.identity import Identity, PeerId
from hopformer.net.invite import Token
from hopformer.net.membership import Network
from hopformer.net.network_process import MeshPart
from hopformer.net.relays import MAX_RELAYS

OWN = PeerId(b"o" * 22)
AUTHOR, MEMBER = Identity.from_seed(b"a" * 32), Identity.from_seed(b"m" * 32)
RELAY = f"{AUTHOR.peer_id}@192.0.2.7:4711"


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)


def token(relays: tuple[str, ...] = (RELAY,), lasts_s: float = 3600) -> Token:
    grant = Grant(AUTHOR.public_bytes, b"serial 1", Role.CHAT, int(time.time() + lasts_s), relays, MEMBER.public_bytes)
    return Token.sign(grant, AUTHOR, MEMBER)


def test_nothing_given_is_no_part_in_anything() -> None:
    flags = MeshFlags()
    assert not flags.finds_peers and flags.part(OWN, is_watching=False) == MeshPart()


@pytest.mark.parametrize("flags", [MeshFlags(relay=["r:1"]), MeshFlags(lan=True), MeshFlags(join="hop1")])
def test_each_flag_means_that_peers_are_found(flags: MeshFlags) -> None:
    assert flags.finds_peers


def test_so_does_a_token_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, " ")
    assert not MeshFlags().finds_peers
    monkeypatch.setenv(TOKEN_VARIABLE, token().text())
    assert MeshFlags().finds_peers and MeshFlags().part(OWN, is_watching=False).network == AUTHOR.peer_id


def test_relays_and_the_local_network_are_taken_as_they_are() -> None:
    part = MeshFlags(relay=["relay.example:4711", RELAY], lan=True).part(OWN, is_watching=True)
    assert part == MeshPart(("relay.example:4711", RELAY), True, (), None, b"")
    assert MeshFlags(relay=["r:1", "r:1"]).part(OWN, is_watching=False).relays == ("r:1",)


def test_a_token_names_the_network_its_relays_and_makes_this_node_a_member(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(token().text())
    path.chmod(0o600)
    for join in (token().text(), str(path)):
        part = MeshFlags(relay=["r:1", RELAY], join=join).part(OWN, is_watching=False)
        assert part.relays == ("r:1", RELAY) and part.network == AUTHOR.peer_id
        assert Network(AUTHOR.peer_id).admit(part.membership, OWN, time.time()).roles == {Role.CHAT}


def test_a_bad_token_is_one_line_that_does_not_show_it() -> None:
    damaged = token().text()[:-1]
    for join, words in ((damaged, "the token is damaged"), (token(lasts_s=-10).text(), "the token expired at")):
        with pytest.raises(MembershipError, match=rf"--join: {words}") as caught:
            MeshFlags(join=join).part(OWN, is_watching=False)
        assert "\n" not in str(caught.value) and join[4:40] not in str(caught.value)
    with pytest.raises(UsageError, match="--join 'no such file' is neither a token"):
        MeshFlags(join="no such file").part(OWN, is_watching=False)


@pytest.mark.parametrize(
    ("relay", "words"),
    [
        ("relay.example", "--relay: 'relay.example' is no address; HOST:PORT is expected"),
        ("relay.example:x", "--relay: .* is no address"),
        ("me@relay.example:1", "--relay: .* is no PEER_ID@HOST:PORT"),
        (f"{OWN}@relay.example", "--relay: .* is no address"),
        ("", "--relay: '' is no address"),
    ],
)
def test_a_mistyped_relay_is_wrong_usage(relay: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        MeshFlags(relay=[relay]).part(OWN, is_watching=False)


def test_a_node_has_so_many_relays_those_of_its_token_among_them() -> None:
    relays = [f"192.0.2.{index}:1" for index in range(MAX_RELAYS)]
    assert len(MeshFlags(relay=relays).part(OWN, is_watching=False).relays) == MAX_RELAYS
    with pytest.raises(UsageError, match=f"{MAX_RELAYS + 1} relays are given; {MAX_RELAYS} are allowed"):
        MeshFlags(relay=relays, join=token().text()).part(OWN, is_watching=False)


@pytest.mark.parametrize(
    ("addrs", "lan", "expected"),
    [
        ((), False, ["127.0.0.1:0"]),
        (("127.0.0.1:4711", f"{OWN}@127.9.9.9:1", "localhost:1"), False, ["127.0.0.1:0"]),
        (("[::1]:4711",), False, ["127.0.0.1:0", "[::1]:0"]),
        (("[::1]:4711",), True, ["0.0.0.0:0", "[::]:0"]),
        (("127.0.0.1:4711",), True, ["0.0.0.0:0"]),
        ((), True, ["0.0.0.0:0"]),
        (("127.0.0.1:4711", "relay.example:4711"), False, ["0.0.0.0:0"]),
        ((f"{OWN}@192.0.2.7:1",), False, ["0.0.0.0:0"]),
        (("[2001:db8::1]:4711",), False, ["0.0.0.0:0", "[::]:0"]),
        ((f"{OWN}@[2001:db8::1]:4711",), False, ["0.0.0.0:0", "[::]:0"]),
    ],
)
def test_where_a_node_sends_from_follows_from_whom_it_is_to_reach(
    addrs: tuple[str, ...], lan: bool, expected: list[str]
) -> None:
    assert list(default_listen(addrs, lan=lan)) == expected
