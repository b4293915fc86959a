"""Whom a node lets in."""

from pathlib import Path

import pytest

from hopformer.cli.node_flags import NodeFlags
from hopformer.errors import UsageError
from hopformer.net.identity import PeerId

PEER = PeerId(b"p" * 22)
OTHER = PeerId(b"o" * 22)


@pytest.mark.parametrize("listen", [[], ["127.0.0.1:0"], ["127.9.9.9:1", "[::1]:0"], ["localhost:5"]])
def test_whoever_is_on_this_machine_may_connect_to_it(listen: list[str]) -> None:
    assert NodeFlags(listen=listen).allowed() is None


@pytest.mark.parametrize("listen", [["0.0.0.0:0"], ["[::]:0"], ["192.168.1.7:1"], ["127.0.0.1:0", "example.org:1"]])
def test_others_must_be_named_or_everybody_let_in(listen: list[str]) -> None:
    with pytest.raises(UsageError, match=r"can be reached by others.*--allow any"):
        NodeFlags(listen=listen).allowed()
    assert NodeFlags(listen=listen, allow=[str(PEER)]).allowed() == [PEER]
    assert NodeFlags(listen=listen, allow=[str(PEER), "any"]).allowed() is None


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
        NodeFlags(listen=["127.0.0.1"], allow=["any"]).allowed()


def test_nothing_given_listens_on_this_machine_and_takes_exact_rows() -> None:
    flags = NodeFlags()
    assert (flags.listen, flags.wire_dtype, flags.metrics) == (["127.0.0.1:0"], "exact", None)


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
    assert NodeFlags(listen=["0.0.0.0:0"], allow=["friends"]).allowed() == [PEER]


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
