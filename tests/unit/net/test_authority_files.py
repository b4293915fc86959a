"""What an authority keeps in its folder: replaced whole, private, and never with one change lost to another."""

import os
import stat
import threading
from pathlib import Path

import pytest

from hopformer.errors import NetworkError
from hopformer.net.authority_files import (
    KEPT_S,
    REVOCATIONS,
    AuthorityFiles,
    IssuedInvite,
    load_revocations,
    write_private,
)
from hopformer.net.identity import Identity, PeerId
from hopformer.net.membership import Network
from hopformer.net.revocations import MAX_REVOCATIONS, MAX_REVOCATIONS_BYTES, Revocations

AUTHOR, OTHER = Identity.from_seed(b"\1" * 32), Identity.from_seed(b"\2" * 32)
NOW = 1_800_000_000
SERIALS = [bytes([index]) * 8 for index in range(8)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "networks" / "one"


@pytest.fixture
def files(folder: Path) -> AuthorityFiles:
    return AuthorityFiles(AUTHOR, folder)


def issued(serial: bytes, expires_at: int = NOW + 100, note: str = "") -> IssuedInvite:
    return IssuedInvite(serial.hex(), "chat", expires_at, note)


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def test_nothing_is_there_and_nothing_is_made_until_something_is_written(files: AuthorityFiles, folder: Path) -> None:
    assert files.invites() == [] and files.revocations() == Revocations()
    assert load_revocations(folder / REVOCATIONS) is None and not folder.exists()


def test_invites_read_back_in_their_order(files: AuthorityFiles) -> None:
    made = [issued(SERIALS[1], note="für Bob \u2028"), issued(SERIALS[0], note='"quoted"')]
    for one in made:
        files.add(one)
    assert files.invites() == made


def test_files_are_private_and_no_draft_stays(files: AuthorityFiles, folder: Path) -> None:
    before = os.umask(0)
    try:
        files.add(issued(SERIALS[0]))
        files.revoke(SERIALS[0], NOW)
    finally:
        os.umask(before)
    assert sorted(path.name for path in folder.iterdir()) == ["issued.jsonl", "lock", "revocations"]
    assert modes(folder) == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


def test_what_is_revoked_is_what_a_node_takes(files: AuthorityFiles, folder: Path) -> None:
    network, path = Network(AUTHOR.peer_id), folder / REVOCATIONS
    assert files.revoke(SERIALS[0], NOW) and not files.revoke(SERIALS[0], NOW + 1)
    first = load_revocations(path)
    assert first is not None and network.take_revocations(first)
    inode = path.stat().st_ino
    assert files.revoke(OTHER.peer_id, NOW) and path.stat().st_ino != inode
    second = load_revocations(path)
    assert second is not None and network.take_revocations(second) and not network.take_revocations(first)
    network.check_integrity()
    assert network.revocations == files.revocations()
    assert network.revocations == Revocations(NOW + 1, frozenset(SERIALS[:1]), frozenset((OTHER.peer_id,)))


def test_a_serial_leaves_the_list_a_day_after_its_invite_expired(files: AuthorityFiles) -> None:
    files.add(issued(SERIALS[0], NOW))
    files.add(issued(SERIALS[1], NOW + 1))
    for serial in SERIALS[:3]:  # the third was never noted, so nobody knows when it expires
        files.revoke(serial, NOW)
    assert files.revocations().serials == set(SERIALS[:3])
    files.revoke(SERIALS[3], NOW + KEPT_S)
    assert files.revocations().serials == set(SERIALS[1:4])


def test_a_full_list_refuses_one_more_and_stays(files: AuthorityFiles, folder: Path) -> None:
    full = Revocations(1, peers=frozenset(PeerId(index.to_bytes(22, "big")) for index in range(MAX_REVOCATIONS)))
    folder.mkdir(parents=True)
    (folder / REVOCATIONS).write_bytes(full.signed_by(AUTHOR))
    with pytest.raises(NetworkError, match="is 1025; 0 to 1024"):
        files.revoke(SERIALS[0], NOW)
    assert files.revocations() == full


def test_of_many_changes_at_once_none_is_lost(folder: Path) -> None:
    barrier, peers = threading.Barrier(8), [PeerId(bytes([index]) * 22) for index in range(8)]

    def change(index: int) -> None:
        own = AuthorityFiles(AUTHOR, folder)
        barrier.wait()
        own.add(issued(SERIALS[index]))
        own.revoke(peers[index], NOW)

    threads = [threading.Thread(target=change, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files = AuthorityFiles(AUTHOR, folder)
    assert {one.serial for one in files.invites()} == {serial.hex() for serial in SERIALS}
    assert files.revocations() == Revocations(NOW + 7, peers=frozenset(peers))


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"\xff",
        b'{"serial": "00", "role": "chat", "expires_at": 1}',
        b'{"serial": "0000000000000000", "role": "relay", "expires_at": 1}',
        b'{"serial": "0000000000000000", "role": "chat", "expires_at": 1e15}',
        b'{"serial": "0000000000000000", "role": "chat", "expires_at": 1, "token": "x"}',
    ],
)
def test_a_damaged_line_is_named_and_kept(files: AuthorityFiles, folder: Path, line: bytes) -> None:
    files.add(issued(SERIALS[0]))
    path = folder / "issued.jsonl"
    content = path.read_bytes() + line + b"\n"
    path.write_bytes(content)
    with pytest.raises(NetworkError, match=r"issued\.jsonl, line 2, is no invite: "):
        files.add(issued(SERIALS[1]))
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (b"", "this is no list of revocations"),
        (b"x" * 500, "this is no list of revocations"),
        (Revocations(1).signed_by(OTHER), f"is of network {OTHER.peer_id}"),
        (b"\0" * (MAX_REVOCATIONS_BYTES + 1), "is no list of revocations: one has at most"),
    ],
)
def test_a_damaged_list_is_reported_and_never_begun_anew(
    files: AuthorityFiles, folder: Path, blob: bytes, words: str
) -> None:
    folder.mkdir(parents=True)
    (folder / REVOCATIONS).write_bytes(blob)
    with pytest.raises(NetworkError, match=words):
        files.revoke(SERIALS[0], NOW)
    assert (folder / REVOCATIONS).read_bytes() == blob


def test_a_secret_goes_into_a_regular_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("before")
    path.chmod(0o644)
    write_private(path, b"after")
    assert path.read_bytes() == b"after" and stat.S_IMODE(path.stat().st_mode) == 0o600
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for wrong, words in ((fifo, "not a regular file"), (tmp_path, "not a regular file"), (path / "x", "Not a dir")):
        with pytest.raises(NetworkError, match=words):
            write_private(wrong, b"secret")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "token"]
