"""Token: an invite as a line of text, which the authority of a network hands to whoever may join.

    "hop", the version "1", then base32 (RFC 4648, section 6) in lower case and without padding of:
    seed of the member's key 32 bytes | signature of the authority 64 bytes | grant without the member's key | checksum
    4 bytes

Letters and digits only, so that a double click selects all of it and no shell finds a meaning in it. The member's
public key is left out, because the seed is the whole of it. Whoever has a token can join by it, so it never prints
itself, and no error repeats it.
"""

import base64
import hashlib
import re
from dataclasses import dataclass, field

from ..errors import MembershipError, WireError
from .grant import MAX_RELAY_ADDR_BYTES, MAX_RELAYS, SIGNATURE_BYTES, Grant
from .identity import PEER_DIGEST_BYTES, PUBLIC_KEY_BYTES, Identity, PeerId
from .membership import Membership

TOKEN_PREFIX = "hop"
_VERSION = "1"
_SEED_BYTES = 32
_CHECKSUM_BYTES = 4  # lets one damaged token in 4 billion get as far as its signature
_MIN_BYTES = _SEED_BYTES + SIGNATURE_BYTES + 1 + PUBLIC_KEY_BYTES + 8 + 1 + 8 + 1 + _CHECKSUM_BYTES
_MAX_BYTES = _MIN_BYTES + MAX_RELAYS * (PEER_DIGEST_BYTES + 2 + MAX_RELAY_ADDR_BYTES)
MIN_TOKEN_LENGTH = len(TOKEN_PREFIX) + 1 + -(-_MIN_BYTES * 8 // 5)  # characters: 246, without a relay
MAX_TOKEN_LENGTH = len(TOKEN_PREFIX) + 1 + -(-_MAX_BYTES * 8 // 5)  # 1219; with one relay it is some 310
_CHECKSUM_DOMAIN = b"hopformer token checksum v1\0"
_DAMAGED = "the token is damaged: it was cut short, or a character is mistyped; copy all of it again"
_BASE32 = re.compile(r"[a-z2-7]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Token:
    """A grant, the authority's signature of it, and the key that it is for."""

    grant: Grant
    signature: bytes
    _member: Identity = field(repr=False, compare=False)  # the grant names it

    @classmethod
    def sign(cls, grant: Grant, authority: Identity, member: Identity) -> "Token":
        """The token of ``grant``, which names both keys. Raises WireError where the grant is beyond its limits."""
        assert member.public_bytes == grant.member
        return cls(grant, grant.signed_by(authority), member)

    @classmethod
    def parse(cls, text: str, now: float) -> "Token":
        """The token that ``text`` spells, for whoever means to join by it at ``now``, seconds since 1970.

        Raises:
            MembershipError: it is none, damaged, forged, or has expired; the text says which, and never the token.
        """
        raw = _decode(text)
        body, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
        if checksum != _checksum(body):
            raise MembershipError(_DAMAGED)
        member = Identity.from_seed(body[:_SEED_BYTES])
        signature, grant = body[_SEED_BYTES:][:SIGNATURE_BYTES], body[_SEED_BYTES + SIGNATURE_BYTES :]
        try:
            token = cls(Grant.unpack(grant + member.public_bytes), signature, member)
        except WireError as error:
            raise MembershipError(f"the token cannot be read: {error}") from error
        if not token.grant.has_signature(signature):
            raise MembershipError("the token is forged: its signature is not that of the network which it names")
        token.grant.check_expiry(now, "the token")
        return token

    def text(self) -> str:
        """The line to hand over. Who sees it can join."""
        body = self._member.seed + self.signature + self.grant.pack()[:-PUBLIC_KEY_BYTES]
        return TOKEN_PREFIX + _VERSION + _base32(body + _checksum(body))

    @property
    def network(self) -> PeerId:
        """The network to join."""
        return self.grant.network

    def membership(self, peer: PeerId) -> bytes:
        """What the node ``peer``, which joins by this token, shows to anybody."""
        return Membership.of(self.grant, self.signature, self._member, peer).pack()


def _decode(text: str) -> bytes:
    """The bytes that ``text`` spells. Raises MembershipError."""
    version, rest = text[len(TOKEN_PREFIX) :][:1], text[len(TOKEN_PREFIX) + 1 :]
    if not text.startswith(TOKEN_PREFIX) or not (version.isascii() and version.isdigit()):
        raise MembershipError(f"this is no token: one begins with {TOKEN_PREFIX}{_VERSION}")
    if version != _VERSION:
        raise MembershipError(
            f"the version of the token is {version}; this hopformer knows {_VERSION}; update it, or ask for a new one"
        )
    if len(text) > MAX_TOKEN_LENGTH:
        raise MembershipError(
            f"this is no token: it has {len(text)} characters, and one has at most {MAX_TOKEN_LENGTH}"
        )
    if not _BASE32.fullmatch(rest):
        raise MembershipError("the token is damaged: only the letters a-z and the digits 2-7 follow its first four")
    try:
        raw = base64.b32decode(rest.upper() + "=" * (-len(rest) % 8))
    except ValueError:
        raw = b""  # a length that no bytes have
    if len(raw) < _MIN_BYTES or _base32(raw) != rest:  # bits to spare would be a second spelling
        raise MembershipError(_DAMAGED)
    return raw


def _base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode("ascii").rstrip("=").lower()


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(_CHECKSUM_DOMAIN + body).digest()[:_CHECKSUM_BYTES]
