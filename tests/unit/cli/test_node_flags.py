"""Whom a node lets in."""

from pathlib import Path
from typing import Any

import pytest

from hopformer.cli.node_flags import NodeFlags
from hopformer.errors import UsageError
from hopformer.net.identity import PeerId

PEER = PeerId(b"p" * 22)
OTHER = PeerId(b"o" * 22)


def allowed(**flags: Any) -> list[PeerId] | None:
    """Whom a node with these flags lets in, where it listens."""
    node = NodeFlags(**flags)
    return node.allowed(node.addrs())


@pytest.mark.parametrize("listen", [[], ["127.0.0.1:0"], ["127.9.9.9:1", "[::1]:0"], ["localhost:5"]])
def test_whoever_is_on_this_machine_may_connect_to_it(listen: list[str]) -> None:
    assert allowed(listen=listen) is None


@pytest.mark.parametrize("listen", [["0.0.0.0:0"], ["[::]:0"], ["192.168.1.7:1"], ["127.0.0.1:0", "example.org:1"]])
def test_others_must_be_named_or_everybody_let_in(listen: list[str]) -> None:
    with pytest.raises(UsageError, match=r"others can connect.*--join TOKEN.*--allow any"):
        allowed(listen=listen)
    assert allowed(listen=listen, allow=[str(PEER)]) == [PEER]
    assert allowed(listen=listen, allow=[str(PEER), "any"]) is None


@pytest.mark.parametrize("listen", [[], ["127.0.0.1:0"], ["0.0.0.0:0"]])
def test_in_a_closed_network_its_members_need_not_be_named(listen: list[str]) -> None:
    node = NodeFlags(listen=listen)
    assert node.allowed(node.addrs(), is_member=True) == []
    named = NodeFlags(listen=listen, allow=[str(PEER)])
    assert named.allowed(named.addrs(), is_member=True) == [PEER]
    anybody = NodeFlags(listen=listen, allow=["any"])
    assert anybody.allowed(anybody.addrs(), is_member=True) is None


def test_a_node_that_others_are_to_find_is_closed_until_somebody_is_named() -> None:
    for addrs in (NodeFlags().addrs(["relay.example:4711"]), NodeFlags().addrs(lan=True)):
        with pytest.raises(UsageError, match=r"at 0\.0\.0\.0:0 others can connect"):
            NodeFlags().allowed(addrs)


def test_a_mistyped_peer_id_or_address_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match=r"--allow: .*it has 39 characters"):
        NodeFlags(allow=[str(PEER)[:-1]]).allowed()
    with pytest.raises(UsageError, match=r"--allow: 'me' is no peer id: .*, and there is no file of that name"):
        NodeFlags(allow=["me"]).allowed()
    with pytest.raises(UsageError, match="no peer id: it has 5000 characters"):
        NodeFlags(allow=["x" * 5000]).allowed()
    with pytest.raises(UsageError, match="no peer id: it has 0 characters"):
        NodeFlags(allow=[""]).allowed()
    with pytest.raises(UsageError, match=r"--listen: '127.0.0.1' is no address"):
        allowed(listen=["127.0.0.1"], allow=["any"])


def test_nothing_given_listens_on_this_machine_and_takes_exact_rows() -> None:
    flags = NodeFlags()
    assert (list(flags.addrs()), flags.wire_dtype, flags.metrics) == (["127.0.0.1:0"], "exact", None)


def test_where_a_node_was_told_to_listen_it_does_whatever_it_is_to_reach() -> None:
    flags = NodeFlags(listen=["127.0.0.1:7"])
    assert list(flags.addrs(["relay.example:4711"], lan=True)) == ["127.0.0.1:7"]


def test_a_file_names_peers_with_comments_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "friends"
    path.write_text(f"# those of the lab\n\n  {PEER}  # Anna\r\n\t\n{str(OTHER).upper()}", encoding="utf-8")
    assert NodeFlags(allow=[str(path)]).allowed() == [PEER, OTHER]
    third = PeerId(b"t" * 22)
    assert NodeFlags(allow=[str(third), str(path)]).allowed() == [third, PEER, OTHER]
    assert NodeFlags(allow=[str(path), "any"]).allowed() is None


def test_a_file_is_found_by_a_name_without_a_path_or_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("friends").write_text(f"{PEER}\n")
    assert allowed(listen=["0.0.0.0:0"], allow=["friends"]) == [PEER]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"{PEER}\n# me\n{OTHER}x\n".encode(), r"friends\.txt, line 3: .*it has 41 characters"),
        (f"{PEER} {OTHER}\n".encode(), r"friends\.txt, line 1: .*it has 81 characters"),
        (b"any\n", r"friends\.txt, line 1: 'any' is no peer id"),
        (b"\n# nobody yet\n", r"friends\.txt names no peer"),
        (b"", r"friends\.txt names no peer"),
        (b"# \xff", r"friends\.txt is not UTF-8 text: see its byte 2"),
        (None, r"friends\.txt cannot be read: No such file"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_line(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "friends.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=f"--allow .*{words}"):
        NodeFlags(allow=[str(path)]).allowed()
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        NodeFlags(allow=[str(tmp_path)]).allowed()
