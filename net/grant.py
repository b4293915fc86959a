"""Grant: what the authority of a network signs for whoever gets a token.

A network is its authority's Ed25519 key, and the network's id is that key's peer id. A grant names a second key, the
member's, whose private half travels in the token (invite.py); whoever has it shows a membership (membership.py).

    version u8 | authority 32 bytes | serial 8 bytes | role u8 | expires_at u64 | relays: u8, each 22 bytes and a text
    | member 32 bytes

Every value has one spelling in bytes, so a grant that was read packs to what it was read from.
"""

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ..errors import IdentityError, MembershipError, WireError
from .blocks_map import is_address
from .identity import PEER_DIGEST_BYTES, PUBLIC_KEY_BYTES, Identity, PeerId
from .wire_fields import Choice, Cursor, Form, Number, Raw, Several, Text

SERIAL_BYTES = 8  # of chance: among a million of one authority two are the same once in 37 million networks
SIGNATURE_BYTES = 64  # RFC 8032, section 5.1.6
MAX_RELAYS = 4
MAX_RELAY_ADDR_BYTES = 128  # so that a membership with four relays stays below 1 KiB; names have some 30
LAST_SECOND = 253_402_300_799  # the end of the year 9999, as in RFC 5280, section 4.1.2.5: dates end there
_VERSION = 1
_GRANT_DOMAIN = b"hopformer grant v1\0"  # so that no other signature of an authority's key can pass for a grant's

T = TypeVar("T")


class Role(IntEnum):
    """What somebody may do in a network. RELAY is never granted: a token names its relays by their keys."""

    SERVE = 1
    CHAT = 2
    RELAY = 3

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Grant:
    """Leave to join a network.

    Attributes:
        authority: the raw public key of the network.
        serial: what the authority knows it by, and revokes it by.
        expires_at: seconds since 1970; good before, and no longer at it.
        relays: where the network can be met, PEER_ID@HOST:PORT in lower case.
        member: the raw public key that proves whose the grant is.
    """

    authority: bytes
    serial: bytes
    role: Role
    expires_at: int
    relays: tuple[str, ...]
    member: bytes

    @classmethod
    def unpack(cls, data: bytes) -> "Grant":
        """The grant in ``data``. Raises WireError unless it is one from the first byte to the last."""
        if data[:1] != bytes((_VERSION,)):
            raise WireError(
                f"the version of the grant is {data[:1].hex() or 'missing'}; this hopformer knows {_VERSION}"
            )
        grant: Grant = _FORM.unpack(memoryview(data)[1:])
        return grant

    def pack(self) -> bytes:
        """Its bytes. Raises WireError beyond the limits."""
        return bytes((_VERSION,)) + _FORM.pack(self)

    @property
    def network(self) -> PeerId:
        """The network that it is for."""
        return PeerId.of(self.authority)

    def signed_by(self, authority: Identity) -> bytes:
        """The authority's signature."""
        assert authority.public_bytes == self.authority
        return authority.sign(_GRANT_DOMAIN + self.pack())

    def has_signature(self, signature: bytes) -> bool:
        """Whether ``signature`` is the authority's of this grant."""
        return is_signature(self.authority, signature, _GRANT_DOMAIN + self.pack())

    def check_expiry(self, now: float, name: str) -> None:
        """Raises MembershipError, which calls the grant ``name``, from the second ``expires_at`` on."""
        if now >= self.expires_at:
            raise MembershipError(f"{name} expired at {date(self.expires_at)}; ask who made it for a new one")


@dataclass(frozen=True, slots=True)
class _Relay:
    """PEER_ID@HOST:PORT as the peer's digest and a text."""

    _addr = Text("the address of a relay", MAX_RELAY_ADDR_BYTES)

    def pack(self, value: str) -> bytes:
        """See Field."""
        peer, addr = _split_relay(value)
        return peer.digest + self._addr.pack(addr)

    def unpack(self, cursor: Cursor) -> str:
        """See Field."""
        relay = f"{PeerId(cursor.take(PEER_DIGEST_BYTES))}@{self._addr.unpack(cursor)}"
        _split_relay(relay)
        return relay


def relay_text(text: str, default: PeerId) -> str:
    """PEER_ID@HOST:PORT as a grant has it; of HOST:PORT alone, at ``default``.

    Raises:
        MembershipError: ``text`` is neither, or the address is too long.
    """
    try:
        peer, addr = _split_relay(text if "@" in text else f"{default}@{text}")
        Text("the address of a relay", MAX_RELAY_ADDR_BYTES).pack(addr)
    except WireError as error:
        raise MembershipError(str(error)) from error
    return f"{peer}@{addr}"


def is_signature(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the key whose raw public half is ``public_key`` signed ``message``."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def date(second: int) -> str:
    """A time for people."""
    return datetime.datetime.fromtimestamp(second, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def read_as(name: str, unpack: Callable[[bytes], T], data: bytes) -> T:
    """What ``unpack`` makes of ``data``. Raises MembershipError where that is no ``name``."""
    try:
        return unpack(data)
    except WireError as error:
        raise MembershipError(f"this is no {name}: {error}") from error


def _split_relay(text: str) -> tuple[PeerId, str]:
    peer, _, addr = text.partition("@")
    if not is_address(addr):
        raise WireError(f"relay {text[:80]!r} is not PEER_ID@HOST:PORT")
    try:
        return PeerId.parse(peer), addr
    except IdentityError as error:
        raise WireError(f"relay {text[:80]!r} is not PEER_ID@HOST:PORT: {error}") from error


def _rule(grant: Grant) -> None:
    if grant.role == Role.RELAY:
        raise WireError("nobody is granted the role of a relay")
    if len(set(grant.relays)) != len(grant.relays):
        raise WireError("a relay is named twice")


_FORM = Form(
    0,  # it is no frame of its own
    Grant,
    {
        "authority": Raw("the authority's key", PUBLIC_KEY_BYTES),
        "serial": Raw("a serial", SERIAL_BYTES),
        "role": Choice(Role),
        "expires_at": Number("expires_at", 8, 0, LAST_SECOND),
        "relays": Several("relays", _Relay(), MAX_RELAYS),
        "member": Raw("the member's key", PUBLIC_KEY_BYTES),
    },
    _rule,
)
