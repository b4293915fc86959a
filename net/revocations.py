"""Revocations: what the authority of a network has taken back, as a signed list that any member may hand on.

    authority 32 bytes | version u32 | serials: u16, 8 bytes each | peers: u16, 22 bytes each | signature 64 bytes

Both lists ascend and have nothing twice, so that a list has one spelling. The version only grows. An authority that has
lost its file begins at the clock's second, so its next list is still newer than any that went out before.
"""

from dataclasses import dataclass, field, replace

from ..errors import MembershipError, WireError
from .grant import SERIAL_BYTES, SIGNATURE_BYTES, is_signature, read_as
from .identity import PEER_DIGEST_BYTES, PUBLIC_KEY_BYTES, Identity, PeerId
from .wire_fields import Cursor, Number, Raw, check_within

MAX_REVOCATIONS = 1024  # serials and peers together; serials leave the list a day after their grants expire
MAX_VERSION = (1 << 32) - 1
MAX_REVOCATIONS_BYTES = PUBLIC_KEY_BYTES + 4 + 2 + 2 + MAX_REVOCATIONS * PEER_DIGEST_BYTES + SIGNATURE_BYTES
_DOMAIN = b"hopformer revocations v1\0"
_AUTHORITY = Raw("the authority's key", PUBLIC_KEY_BYTES)
_VERSION = Number("the version of a list of revocations", 4, 0, MAX_VERSION)
_COUNT = Number("the number of revocations", 2, 0, MAX_REVOCATIONS)


@dataclass(frozen=True, slots=True)
class Revocations:
    """Grants and peers that are no longer let in. ``version`` is 0 where no list was ever made."""

    version: int = 0
    serials: frozenset[bytes] = field(default_factory=frozenset)
    peers: frozenset[PeerId] = field(default_factory=frozenset)

    @classmethod
    def unpack(cls, blob: bytes, network: PeerId) -> "Revocations":
        """The list in ``blob``, which the authority of ``network`` signed.

        Raises:
            MembershipError: it is none, or another network's, or forged.
        """
        if len(blob) > MAX_REVOCATIONS_BYTES:
            raise MembershipError(f"a list of revocations has {len(blob)} bytes; {MAX_REVOCATIONS_BYTES} are allowed")
        authority, found = read_as("list of revocations", _unpack, blob[:-SIGNATURE_BYTES])
        if PeerId.of(authority) != network:
            raise MembershipError(f"a list of revocations is of network {PeerId.of(authority)}; this is {network}")
        if not is_signature(authority, blob[-SIGNATURE_BYTES:], _DOMAIN + blob[:-SIGNATURE_BYTES]):
            raise MembershipError("a list of revocations is forged: its signature is not the authority's")
        return found

    def signed_by(self, authority: Identity) -> bytes:
        """The list as it is handed on. Raises MembershipError beyond MAX_REVOCATIONS."""
        try:
            _check(self)
            body = _AUTHORITY.pack(authority.public_bytes) + _VERSION.pack(self.version)
            for entries in _sorted(self):
                body += _COUNT.pack(len(entries)) + b"".join(entries)
        except WireError as error:
            raise MembershipError(f"the list of revocations cannot be made: {error}") from error
        return body + authority.sign(_DOMAIN + body)

    def with_serial(self, serial: bytes, now: float) -> "Revocations":
        """The next list, on which ``serial`` is as well."""
        return replace(self, version=self._next(now), serials=self.serials | {serial})

    def with_peer(self, peer: PeerId, now: float) -> "Revocations":
        """The next list, on which ``peer`` is as well."""
        return replace(self, version=self._next(now), peers=self.peers | {peer})

    def without(self, expired: frozenset[bytes]) -> "Revocations":
        """The same list without serials whose grants have expired and need no place on it."""
        return replace(self, serials=self.serials - expired)

    def _next(self, now: float) -> int:
        return max(self.version + 1, int(now))


def _unpack(body: bytes) -> tuple[bytes, Revocations]:
    cursor = Cursor(memoryview(body))
    authority, version = _AUTHORITY.unpack(cursor), _VERSION.unpack(cursor)
    serials, peers = _entries(cursor, SERIAL_BYTES), _entries(cursor, PEER_DIGEST_BYTES)
    cursor.finish()
    found = Revocations(version, frozenset(serials), frozenset(map(PeerId, peers)))
    if (serials, peers) != _sorted(found):
        raise WireError("its entries do not ascend")
    _check(found)
    return authority, found


def _entries(cursor: Cursor, num_bytes: int) -> list[bytes]:
    return [cursor.take(num_bytes) for _ in range(_COUNT.unpack(cursor))]


def _sorted(revocations: Revocations) -> tuple[list[bytes], list[bytes]]:
    return sorted(revocations.serials), sorted(peer.digest for peer in revocations.peers)


def _check(revocations: Revocations) -> None:
    check_within("the number of revocations", len(revocations.serials) + len(revocations.peers), 0, MAX_REVOCATIONS)
