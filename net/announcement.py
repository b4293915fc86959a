"""Announcement: what a node tells everybody of itself, signed with its key, and how that lies in bytes.

    format u8, public key 32 bytes, issued_at u64, valid_s u8, ... in the order of the dataclass ..., signature 64 bytes

The signature (Ed25519, RFC 8032) is over all that comes before it, behind a domain of its own, so nothing else that a
key signs can pass for an announcement. An announcement is believed for the seconds that it says, at most two minutes; a
node that lives says it anew well before that. What a membership proves is for others to judge: here it is bytes.

Not here: who is heard and what of (directory.py), and how announcements travel (lan.py, and the relay).
"""

from dataclasses import dataclass, replace

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ..errors import IdentityError, WireError
from .announcement_fields import Layers, Maybe
from .blocks_map import is_address
from .identity import PUBLIC_KEY_BYTES, Identity, PeerId
from .layer_range import LayerRange
from .messages import Codec, Dtype
from .wire import (
    FINGERPRINT_BYTES,
    MAX_ADDR_BYTES,
    MAX_ADDRS,
    MAX_ANNOUNCEMENT_BYTES,
    MAX_CODECS,
    MAX_LAYERS,
    MAX_MEMBERSHIP_BYTES,
    MAX_NAME_BYTES,
    MAX_VERSION_BYTES,
)
from .wire_fields import Blob, Choice, Flag, Form, Number, Peer, Raw, Several, Text, check_within

MAX_RELAYS = 4  # a node registers at one or two
MAX_RELAY_BYTES = 301  # a peer id, "@" and an address
MAX_VALID_S = 120  # what a dead node haunts others for, at most
RENEW_S = 40.0  # a node says it anew so often: of three that are good at once two may be lost
MAX_SKEW_S = 60  # by which clocks may differ: two months of a quartz that nobody sets, at a second a day

_FORMAT = 1
_DOMAIN = b"hopformer announcement v1\0"
_SIGNATURE_BYTES = 64
_ISSUED_AT_BYTES = 8
_HEAD_BYTES = 1 + PUBLIC_KEY_BYTES + _ISSUED_AT_BYTES  # what `peek` reads
_MAX_UNIX_MS = (1 << 53) - 1  # which a float still counts exactly
_U32 = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a node says of itself.

    Attributes:
        public_key: 32 bytes, whose hash is the node's id.
        issued_at: milliseconds since 1970 on the node's clock; of two announcements the later one counts.
        valid_s: seconds that it may be believed for.
        model: its name, for people.
        fingerprint: 32 bytes, see llama/fingerprint_bits.py; of the layers that the node has.
        num_layers: of the whole model.
        layers: that it serves, or is about to; None while it has chosen none.
        is_ready: it serves them now. If not, it is still loading them.
        dtype: of the activations it takes; None only where it has chosen no layers.
        codecs: that may pack them.
        network: the closed mesh that it belongs to, None for an open one.
        membership: what proves that; empty without one.
        free_tokens: that its pages still have room for.
        layer_us: microseconds that a decode step takes in one layer; 0 if nothing is measured.
        num_sessions: that are open.
        queue_us: microseconds that a step waits for its turn, lately.
        max_layers: of this model that it has room for, where it chooses its layers itself; 0 where they were given.
        version: of the software.
        addrs: HOST:PORT each, where it may be dialled.
        relays: PEER_ID@HOST:PORT each, over which it can be reached.
    """

    public_key: bytes
    issued_at: int
    valid_s: int
    model: str
    fingerprint: bytes
    num_layers: int
    layers: LayerRange | None = None
    is_ready: bool = False
    dtype: Dtype | None = None
    codecs: tuple[Codec, ...] = ()
    network: PeerId | None = None
    membership: bytes = b""
    free_tokens: int = 0
    layer_us: int = 0
    num_sessions: int = 0
    queue_us: int = 0
    max_layers: int = 0
    version: str = ""
    addrs: tuple[str, ...] = ()
    relays: tuple[str, ...] = ()

    @property
    def peer(self) -> PeerId:
        """Whose it is."""
        return PeerId.of(self.public_key)

    @property
    def num_bytes(self) -> int:
        """How long it is when it is signed. Raises WireError: a field is beyond its limits."""
        return 1 + len(_FORM.pack(self)) + _SIGNATURE_BYTES

    def sign(self, identity: Identity) -> bytes:
        """Its bytes.

        Raises:
            WireError: a field is beyond its limits, or all together are.
        """
        assert identity.public_bytes == self.public_key
        body = bytes((_FORMAT,)) + _FORM.pack(self)
        _check_length(len(body) + _SIGNATURE_BYTES)
        return body + identity.sign(_DOMAIN + body)

    def fitted(self, max_bytes: int) -> "Announcement":
        """The same with fewer addresses, where it is longer than ``max_bytes``; the first of each kind always stays."""
        found = self
        while found.num_bytes > max_bytes and max(len(found.addrs), len(found.relays)) > 1:
            if len(found.addrs) > 1:
                found = replace(found, addrs=found.addrs[:-1])
            else:
                found = replace(found, relays=found.relays[:-1])
        return found

    def remaining_s(self, now_unix: float) -> float:
        """For how many seconds from now it may be believed; a clock that differs from ours is not held against it."""
        return min(self.valid_s, self.issued_at / 1000 + self.valid_s + MAX_SKEW_S - now_unix)


def parse(blob: bytes, now_unix: float) -> Announcement:
    """The announcement that ``blob`` is, ``now_unix`` seconds after 1970.

    Raises:
        WireError: it is none, is too old, comes from the future, or its signature is not that of its key.
    """
    _check_format(blob)
    body, signature = blob[:-_SIGNATURE_BYTES], blob[-_SIGNATURE_BYTES:]
    found: Announcement = _FORM.unpack(memoryview(body)[1:])
    ahead_s = found.issued_at / 1000 - now_unix
    if ahead_s > MAX_SKEW_S:
        raise WireError(f"the announcement of {found.peer} was issued {ahead_s:.0f} s from now; compare the clocks")
    if found.remaining_s(now_unix) <= 0:
        raise WireError(
            f"the announcement of {found.peer} is {-ahead_s:.0f} s old and was good for {found.valid_s}; "
            "if it is a new one, compare the clocks"
        )
    try:
        Ed25519PublicKey.from_public_bytes(found.public_key).verify(signature, _DOMAIN + body)
    except InvalidSignature:
        raise WireError(f"the announcement of {found.peer} is forged or damaged: its key did not sign it") from None
    return found


def peek(blob: bytes) -> tuple[PeerId, int]:
    """Whose announcement ``blob`` says that it is, and when it was issued; nothing is proven.

    Raises:
        WireError: it is none.
    """
    _check_format(blob)
    issued_at = int.from_bytes(blob[_HEAD_BYTES - _ISSUED_AT_BYTES : _HEAD_BYTES], "big")
    return PeerId.of(blob[1 : 1 + PUBLIC_KEY_BYTES]), issued_at


def _check_length(num_bytes: int) -> None:
    check_within("the length of an announcement", num_bytes, _HEAD_BYTES + _SIGNATURE_BYTES, MAX_ANNOUNCEMENT_BYTES)


def _check_format(blob: bytes) -> None:
    _check_length(len(blob))
    if blob[0] != _FORMAT:
        raise WireError(f"an announcement of format {blob[0]}; this hopformer reads format {_FORMAT}")


def _check(one: Announcement) -> None:
    """What fields must be to each other, and that texts are what they say: people and terminals will see them."""
    layers = one.layers
    if layers is not None and not 0 <= layers.start < layers.end <= one.num_layers:
        raise WireError(f"layers {layers} are announced of a model that has {one.num_layers}")
    if layers is None and one.is_ready:
        raise WireError("a node is announced as ready that serves no layers")
    if layers is not None and one.dtype is None:
        raise WireError(f"layers {layers} are announced without the dtype that they take")
    for name, text in (("model", one.model), ("version", one.version)):
        if not text.isprintable():
            raise WireError(f"the {name} of an announcement has characters that cannot be printed: {text[:40]!r}")
    for addr in one.addrs:
        if not is_address(addr):
            raise WireError(f"address {addr[:80]!r} of an announcement is not HOST:PORT")
    for relay in one.relays:
        _check_relay(relay)


def _check_relay(relay: str) -> None:
    peer, _, addr = relay.partition("@")
    try:
        if is_address(addr) and str(PeerId.parse(peer)) == peer:
            return
    except IdentityError:
        pass
    raise WireError(f"relay {relay[:80]!r} of an announcement is not PEER_ID@HOST:PORT")


_FORM = Form(
    _FORMAT,
    Announcement,
    {
        "public_key": Raw("public_key", PUBLIC_KEY_BYTES),
        "issued_at": Number("issued_at", _ISSUED_AT_BYTES, 0, _MAX_UNIX_MS),
        "valid_s": Number("valid_s", 1, 1, MAX_VALID_S),
        "model": Text("model", MAX_NAME_BYTES),
        "fingerprint": Raw("fingerprint", FINGERPRINT_BYTES),
        "num_layers": Number("num_layers", 2, 1, MAX_LAYERS),
        "layers": Maybe("whether it has layers", Layers()),
        "is_ready": Flag("is_ready"),
        "dtype": Choice(Dtype, optional=True),
        "codecs": Several("codecs", Choice(Codec), MAX_CODECS),
        "network": Maybe("whether it has a network", Peer()),
        "membership": Blob("membership", MAX_MEMBERSHIP_BYTES),
        "free_tokens": Number("free_tokens", 8, 0, (1 << 64) - 1),
        "layer_us": Number("layer_us", 4, 0, _U32),
        "num_sessions": Number("num_sessions", 2, 0, (1 << 16) - 1),
        "queue_us": Number("queue_us", 4, 0, _U32),
        "max_layers": Number("max_layers", 2, 0, MAX_LAYERS),
        "version": Text("version", MAX_VERSION_BYTES),
        "addrs": Several("addresses", Text("an address", MAX_ADDR_BYTES), MAX_ADDRS),
        "relays": Several("relays", Text("a relay", MAX_RELAY_BYTES), MAX_RELAYS),
    },
    rule=_check,
)
