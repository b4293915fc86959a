"""Membership: what a member of a network shows to anybody, and Network, which decides whom that lets in.

    version u8 | length of the grant u16 | grant | signature of the authority 64 bytes | proof 64 bytes

The proof is the member key's signature of the grant and one peer id. Who the peer is was proven by the connection, so
whoever sees a membership can do nothing with it: it is good for that peer alone. Any number of peers may join by one
token; revoking its serial ends them all, revoking a peer id ends one.

Pure: bytes and the clock's seconds in, a Member or a MembershipError out.
"""

import hashlib
from dataclasses import dataclass

from ..errors import MembershipError, WireError
from .grant import SIGNATURE_BYTES, Grant, Role, date, is_signature, read_as
from .identity import Identity, PeerId
from .revocations import Revocations
from .wire_fields import Cursor, Number, Raw

MAX_MEMBERSHIP_BYTES = 1024  # the largest grant has 691 bytes, its two signatures 128
_VERSION = 1
_PROOF_DOMAIN = b"hopformer membership v1\0"
_GRANT_LENGTH = Number("the length of a grant", 2, 0, MAX_MEMBERSHIP_BYTES)
_SIGNATURE = Raw("a signature", SIGNATURE_BYTES)


@dataclass(frozen=True, slots=True)
class Membership:
    """A grant, the authority's signature of it, and the member key's of it and a peer id."""

    grant: Grant
    signature: bytes
    proof: bytes

    @classmethod
    def of(cls, grant: Grant, signature: bytes, member: Identity, peer: PeerId) -> "Membership":
        """The membership of ``peer``."""
        assert member.public_bytes == grant.member
        return cls(grant, signature, member.sign(_proof_message(grant, peer)))

    @classmethod
    def unpack(cls, data: bytes) -> "Membership":
        """The membership in ``data``, of which nothing is verified yet.

        Raises:
            MembershipError: it is none.
        """
        if len(data) > MAX_MEMBERSHIP_BYTES:
            raise MembershipError(f"a membership has {len(data)} bytes; {MAX_MEMBERSHIP_BYTES} are allowed")
        return read_as("membership", cls._unpack, data)

    def pack(self) -> bytes:
        """Its bytes."""
        grant = self.grant.pack()
        head = bytes((_VERSION,)) + _GRANT_LENGTH.pack(len(grant))
        return head + grant + _SIGNATURE.pack(self.signature) + _SIGNATURE.pack(self.proof)

    def proves(self, peer: PeerId) -> bool:
        """Whether the member's key has signed it for ``peer``."""
        return is_signature(self.grant.member, self.proof, _proof_message(self.grant, peer))

    @classmethod
    def _unpack(cls, data: bytes) -> "Membership":
        cursor = Cursor(memoryview(data))
        version = cursor.take(1)[0]
        if version != _VERSION:
            raise WireError(f"its version is {version}; this hopformer knows {_VERSION}")
        grant = Grant.unpack(cursor.take(_GRANT_LENGTH.unpack(cursor)))
        membership = cls(grant, _SIGNATURE.unpack(cursor), _SIGNATURE.unpack(cursor))
        cursor.finish()
        return membership


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody who was let in.

    Attributes:
        serial: of the grant; None is the authority itself.
        expires_at: seconds since 1970, from which on it is no member; None is never.
    """

    roles: frozenset[Role]
    serial: bytes | None
    expires_at: int | None


AUTHORITY = Member(frozenset(Role), None, None)


class Network:
    """The network that a node is in: knows its authority by ``network_id``, and owns what has been revoked."""

    def __init__(self, network_id: PeerId) -> None:
        self.network_id = network_id
        self._revocations = Revocations()
        self._blob: bytes | None = None

    @property
    def revocations(self) -> Revocations:
        """The newest list that was taken."""
        return self._revocations

    @property
    def revocations_blob(self) -> bytes | None:
        """The same as it came, for handing on; None where none has come."""
        return self._blob

    def admit(self, membership: bytes, peer: PeerId, now: float) -> Member:
        """What ``peer``, which the connection has proven to be that peer, may do; the authority needs no membership.

        Args:
            now: seconds since 1970.

        Raises:
            MembershipError: it is not let in; the text says why.
        """
        if peer == self.network_id:
            return AUTHORITY
        if not membership:
            raise MembershipError(f"{peer} shows no membership of network {self.network_id}; it must join with a token")
        shown = Membership.unpack(membership)
        grant = shown.grant
        if grant.network != self.network_id:
            raise MembershipError(f"the membership of {peer} is of network {grant.network}; this is {self.network_id}")
        if not grant.has_signature(shown.signature):
            raise MembershipError(f"the membership of {peer} is forged: its signature is not the authority's")
        if not shown.proves(peer):
            raise MembershipError(f"the membership that {peer} shows was made for another peer id")
        roles = frozenset((Role.SERVE, Role.CHAT)) if grant.role is Role.SERVE else frozenset((grant.role,))
        member = Member(roles, grant.serial, grant.expires_at)
        problem = self.why_ended(member, peer, now)
        if problem is not None:
            raise MembershipError(problem)
        return member

    def why_ended(self, member: Member, peer: PeerId, now: float) -> str | None:
        """Why ``peer``, let in as ``member``, is a member no longer; None where it is. Ask after every new list."""
        if member.serial is None:
            return None
        if member.expires_at is not None and now >= member.expires_at:
            return f"the membership of {peer} expired at {date(member.expires_at)}"
        if member.serial in self._revocations.serials:
            return f"the invite {member.serial.hex()} by which {peer} joined was revoked"
        return f"{peer} was revoked" if peer in self._revocations.peers else None

    def take_revocations(self, blob: bytes) -> bool:
        """Take a list that somebody handed on, if it is newer than what is known; whether it was.

        Raises:
            MembershipError: it is no list, or not one of this network's authority.
        """
        if blob == self._blob:
            return False  # by far the most frequent, and not worth a signature
        found = Revocations.unpack(blob, self.network_id)
        if found.version <= self._revocations.version:
            return False
        self._revocations, self._blob = found, blob
        return True

    def check_integrity(self) -> None:
        """Assert that what is known is what the authority has signed."""
        if self._blob is None:
            assert self._revocations == Revocations()
        else:
            assert self._revocations == Revocations.unpack(self._blob, self.network_id)
            assert self._revocations.version > 0


def _proof_message(grant: Grant, peer: PeerId) -> bytes:
    return _PROOF_DOMAIN + hashlib.sha256(grant.pack()).digest() + peer.digest
