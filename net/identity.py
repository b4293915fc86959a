"""Who a node is: an Ed25519 key (RFC 8032) in a file, and the peer id that is the hash of its public half.

A peer id is 40 characters of lower-case base32 (RFC 4648, section 6): 22 bytes of SHA-256 of the raw public key and 3
bytes of checksum, together 25 bytes, so that no character has bits to spare and every id has one spelling. 176 bits
make a second key with the same id as hard to find as the key itself; the checksum lets one typo in 16 million pass.

Not here: who is trusted, and what a link makes of the certificate that carries the key.
"""

import base64
import contextlib
import datetime
import hashlib
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from ..errors import IdentityError

PEER_ID_LENGTH = 40  # characters: 8 for every 5 of the 25 bytes
PUBLIC_KEY_BYTES = 32  # RFC 8032, section 5.1.5
PEER_DIGEST_BYTES = 22
_CHECKSUM_BYTES = 3
_KEY_DOMAIN = b"hopformer peer id v1\0"  # so that no other use of SHA-256 can yield a peer id
_CHECKSUM_DOMAIN = b"hopformer peer id checksum v1\0"
_MAX_KEY_FILE_BYTES = 4096  # an Ed25519 key in PEM has 119; this leaves room for comments around it
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_NOT_BEFORE = datetime.datetime(2000, 1, 1)  # certificates do not age: a peer with a wrong clock is still that peer
_NOT_AFTER = datetime.datetime(9999, 12, 31, 23, 59, 59)  # RFC 5280, section 4.1.2.5: no well-defined expiration


@dataclass(frozen=True, slots=True, order=True)
class PeerId:
    """The name of a node. ``digest`` is the truncated hash of its public key; ``str()`` is the text that users see."""

    digest: bytes

    @classmethod
    def of(cls, public_key: bytes) -> "PeerId":
        """The id of the node whose raw Ed25519 public key is ``public_key``."""
        assert len(public_key) == PUBLIC_KEY_BYTES
        return cls(hashlib.sha256(_KEY_DOMAIN + public_key).digest()[:PEER_DIGEST_BYTES])

    @classmethod
    def parse(cls, text: str) -> "PeerId":
        """The id that ``text`` spells, in either case.

        Raises:
            IdentityError: it has another length, a character outside base32, or a wrong checksum.
        """
        if len(text) != PEER_ID_LENGTH:
            raise IdentityError(f"{text[:64]!r} is no peer id: it has {len(text)} characters and not {PEER_ID_LENGTH}")
        try:
            raw = base64.b32decode(text.upper())
        except ValueError as error:
            raise IdentityError(f"{text!r} is no peer id: only the letters a-z and the digits 2-7 occur") from error
        peer_id = cls(raw[:PEER_DIGEST_BYTES])
        if raw[PEER_DIGEST_BYTES:] != peer_id._checksum():
            raise IdentityError(f"{text!r} is no peer id: its checksum does not fit, so a character is mistyped")
        return peer_id

    def __str__(self) -> str:
        return base64.b32encode(self.digest + self._checksum()).decode("ascii").lower()

    def _checksum(self) -> bytes:
        return hashlib.sha256(_CHECKSUM_DOMAIN + self.digest).digest()[:_CHECKSUM_BYTES]


@dataclass(frozen=True, slots=True)
class Identity:
    """A node's private key. It never prints itself; the ways out are ``save``, ``seed`` and ``tls_credentials``."""

    _key: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> "Identity":
        """A new key from the system's entropy."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> "Identity":
        """The key in ``path``: PKCS #8 (RFC 5958) as PEM, a regular file that only its owner can read.

        Raises:
            IdentityError: the file is missing, damaged, of another kind, or open to others.
        """
        try:
            return cls._parse(_read_private(path), path)
        except OSError as error:
            raise IdentityError(f"key file {path} cannot be read: {error.strerror}") from error

    @classmethod
    def load_or_create(cls, path: Path) -> "Identity":
        """The key in ``path``, made on first use. A file that is there is never overwritten, whatever it holds.

        Raises:
            IdentityError: as ``load``, or the file cannot be created.
        """
        if not os.path.lexists(path):
            with contextlib.suppress(FileExistsError):  # another process was first: its key is the node's
                cls.generate().save(path)
        return cls.load(path)

    @classmethod
    def from_seed(cls, seed: bytes) -> "Identity":
        """The key that ``seed`` is the whole of."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def seed(self) -> bytes:
        """The private key itself, 32 bytes (RFC 8032, section 5.1.5), for another process of this node."""
        return self._key.private_bytes_raw()

    def save(self, path: Path) -> None:
        """Write the key to ``path``, mode 0600, with its folders, mode 0700. Nobody ever sees a part of it.

        Raises:
            FileExistsError: ``path`` is there already.
            IdentityError: it cannot be written.
        """
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            make_private_folders(path.parent)
            _create_private(path, pem)
        except FileExistsError:
            raise
        except OSError as error:
            raise IdentityError(f"key file {path} cannot be created: {error.strerror}") from error

    @property
    def public_bytes(self) -> bytes:
        """The raw public key, 32 bytes."""
        return self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @property
    def peer_id(self) -> PeerId:
        """Who this node is to others."""
        return PeerId.of(self.public_bytes)

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature of ``message``."""
        return self._key.sign(message)

    def tls_credentials(self) -> tuple[x509.Certificate, Ed25519PrivateKey]:
        """A self-signed certificate for the key (RFC 8410), and the key, of which TLS proves the possession.

        Nothing in the certificate but the key means anything: a peer is who its key says.
        """
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(self.peer_id))])
        builder = x509.CertificateBuilder(name, name, self._key.public_key(), 1, _NOT_BEFORE, _NOT_AFTER)
        return builder.sign(self._key, None), self._key

    @classmethod
    def _parse(cls, pem: bytes, path: Path) -> "Identity":
        advice = "move it away to make a new key"
        try:
            key = load_pem_private_key(pem, password=None)
        except TypeError as error:
            raise IdentityError(f"key file {path} is encrypted; hopformer takes a plain PKCS #8 key") from error
        except (ValueError, UnsupportedAlgorithm) as error:
            raise IdentityError(f"key file {path} is damaged: it holds no PEM private key; {advice}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise IdentityError(f"key file {path} holds another kind of key than Ed25519; {advice}")
        return cls(key)


def _read_private(path: Path) -> bytes:
    """What is in ``path``, after the open file itself was seen to be private, so that nothing is swapped in between."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a FIFO would block the open
    with open(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise IdentityError(f"key file {path} is not a regular file")
        if os.name == "posix" and info.st_mode & _OTHERS:
            mode = stat.S_IMODE(info.st_mode)
            raise IdentityError(f"key file {path} is open to others (mode {mode:04o}); run: chmod 600 {path}")
        if info.st_size > _MAX_KEY_FILE_BYTES:
            raise IdentityError(f"key file {path} has {info.st_size} bytes; a key has at most {_MAX_KEY_FILE_BYTES}")
        return file.read(_MAX_KEY_FILE_BYTES)


def _create_private(path: Path, content: bytes) -> None:
    """Create ``path`` whole or not at all: written under another name, then linked, which fails where a file is."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.link(draft, path)
    finally:
        os.unlink(draft)


def make_private_folders(folder: Path) -> None:
    """Make ``folder`` and the folders above it that are missing, mode 0700."""
    for missing in reversed([one for one in (folder, *folder.parents) if not one.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
