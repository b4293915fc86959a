"""The key file and the peer id."""

import os
import stat
import threading
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from hopformer.errors import IdentityError
from hopformer.net import Identity, PeerId
from hopformer.net.identity import PEER_ID_LENGTH

# RFC 8032, section 7.1, TEST 1
SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
SIGNATURE_OF_NOTHING = (
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
    "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
)
PEER_ID_OF_PUBLIC = "cfjd2gjq5a3tdm4qb4eftof5spetfla5fo5rlacm"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "identity.pem"
    Identity.generate().save(path)
    return path


def write_private(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def test_the_key_and_the_signature_are_those_of_rfc_8032() -> None:
    identity = Identity(Ed25519PrivateKey.from_private_bytes(SECRET))
    assert identity.public_bytes == PUBLIC
    assert identity.sign(b"").hex() == SIGNATURE_OF_NOTHING


def test_the_peer_id_of_a_known_key_never_changes() -> None:
    assert str(PeerId.of(PUBLIC)) == PEER_ID_OF_PUBLIC


def test_a_signature_verifies_with_the_public_bytes_and_no_other_message() -> None:
    identity = Identity.generate()
    public = Ed25519PublicKey.from_public_bytes(identity.public_bytes)
    public.verify(identity.sign(b"hop"), b"hop")
    with pytest.raises(InvalidSignature):
        public.verify(identity.sign(b"hop"), b"hip")


def test_a_peer_id_reads_back_in_either_case() -> None:
    peer_id = Identity.generate().peer_id
    assert len(str(peer_id)) == PEER_ID_LENGTH
    assert PeerId.parse(str(peer_id)) == PeerId.parse(str(peer_id).upper()) == peer_id


def test_every_mistyped_character_is_noticed() -> None:
    text = str(PeerId.of(PUBLIC))
    for place, right in enumerate(text):
        for wrong in "abcdefghijklmnopqrstuvwxyz234567":
            if wrong != right:
                with pytest.raises(IdentityError, match="checksum"):
                    PeerId.parse(text[:place] + wrong + text[place + 1 :])


def test_swapped_neighbours_are_noticed() -> None:
    text = str(PeerId.of(PUBLIC))
    for place in range(len(text) - 1):
        swapped = text[:place] + text[place + 1] + text[place] + text[place + 2 :]
        if swapped != text:
            with pytest.raises(IdentityError):
                PeerId.parse(swapped)


@pytest.mark.parametrize("text", ["", "abc", "a" * (PEER_ID_LENGTH + 1), "0" * PEER_ID_LENGTH, "é" * PEER_ID_LENGTH])
def test_what_is_no_peer_id_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(IdentityError) as caught:
        PeerId.parse(text)
    assert "\n" not in str(caught.value)


def test_the_first_use_makes_a_private_key_file_and_the_next_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "identity.pem"
    made = Identity.load_or_create(path)
    assert Identity.load_or_create(path).peer_id == made.peer_id
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["identity.pem"], "the draft stayed"
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----\n")


def test_the_file_is_private_even_where_the_umask_is_open(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Identity.load_or_create(tmp_path / "folder" / "identity.pem")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "folder" / "identity.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o700


def test_many_first_uses_at_once_agree_on_one_key(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    barrier = threading.Barrier(8)
    seen: list[PeerId] = []

    def use() -> None:
        barrier.wait()
        seen.append(Identity.load_or_create(path).peer_id)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [Identity.load(path).peer_id] * 8


def test_a_key_is_never_saved_over_a_file_that_is_there(key_file: Path) -> None:
    before = key_file.read_bytes()
    with pytest.raises(FileExistsError):
        Identity.generate().save(key_file)
    assert key_file.read_bytes() == before


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o610])
def test_a_key_that_others_can_open_is_refused(key_file: Path, mode: int) -> None:
    key_file.chmod(mode)
    with pytest.raises(IdentityError, match=f"mode {mode:04o}.*chmod 600"):
        Identity.load_or_create(key_file)


@pytest.mark.parametrize(
    "content", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_damaged_key_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = write_private(tmp_path / "identity.pem", content)
    with pytest.raises(IdentityError, match="damaged"):
        Identity.load_or_create(path)
    assert path.read_bytes() == content


def test_a_truncated_key_is_refused(key_file: Path) -> None:
    write_private(key_file, key_file.read_bytes()[:60])
    with pytest.raises(IdentityError, match="damaged"):
        Identity.load(key_file)


def test_an_rsa_key_is_refused(tmp_path: Path) -> None:
    pem = generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(IdentityError, match="Ed25519"):
        Identity.load_or_create(write_private(tmp_path / "rsa.pem", pem))


def test_an_encrypted_key_is_refused_by_that_name(tmp_path: Path) -> None:
    sealed = BestAvailableEncryption(b"secret")
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealed)
    with pytest.raises(IdentityError, match="encrypted"):
        Identity.load(write_private(tmp_path / "sealed.pem", pem))


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="at most 4096"):
        Identity.load(write_private(tmp_path / "big.pem", b"x" * 5000))


def test_a_folder_or_a_fifo_is_no_key(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(IdentityError):
            Identity.load_or_create(path)


def test_a_missing_key_and_a_folder_that_cannot_be_made_are_one_line(key_file: Path) -> None:
    with pytest.raises(IdentityError, match="cannot be read"):
        Identity.load(key_file.parent / "absent.pem")
    with pytest.raises(IdentityError, match="cannot be created"):
        Identity.load_or_create(key_file / "below" / "a-file.pem")


def test_a_dangling_link_is_not_followed_into_a_new_key(tmp_path: Path) -> None:
    link = tmp_path / "identity.pem"
    link.symlink_to(tmp_path / "elsewhere.pem")
    with pytest.raises(IdentityError, match="cannot be read"):
        Identity.load_or_create(link)


def test_an_identity_does_not_print_its_key() -> None:
    assert repr(Identity.generate()) == "Identity()"
