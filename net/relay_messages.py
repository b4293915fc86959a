"""What a node and a relay say to each other, over the connection that the node keeps with it; bytes: wire.py.

    register    the node wants to be reached, and hears where the relay sees it
    reach       it asks for a channel to another registered node; the relay offers that one an end of it, and once it
                is taken tells the asker. Datagrams then go both ways beside the connections, see ways.py
    leave       either end, or the relay, closes a channel
    candidates  what two nodes tell each other on the connection that they have through the channel, to do without it
    ice         the same for ICE (ice.py), which has sockets of its own
    announce    the node says what it serves, signed (announcement.py); watchers get what others have announced

The relay cannot read what goes through a channel, and what it says of a peer is proven by nobody but that peer.
"""

from dataclasses import dataclass

from .identity import PeerId


@dataclass(frozen=True, slots=True)
class Register:
    """Node to relay: let others reach me through you. Answered by Registered."""


@dataclass(frozen=True, slots=True)
class Registered:
    """Relay to node.

    Attributes:
        addr: HOST:PORT, the node's address as the relay sees it: what a NAT has made of it.
        max_rate: bytes a second that a channel passes on in each direction.
    """

    addr: str
    max_rate: int


@dataclass(frozen=True, slots=True)
class Reach:
    """Node to relay: open a channel to ``peer``. Answered by Channel or Unreachable."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Channel:
    """Relay to node: an end of a channel to ``peer``, to the other node first, which answers with Accept or Leave."""

    peer: PeerId
    channel: bytes
    is_asker: bool


@dataclass(frozen=True, slots=True)
class Accept:
    """Node to relay: datagrams of the channel are taken here."""

    channel: bytes


@dataclass(frozen=True, slots=True)
class Unreachable:
    """Relay to node: no channel to ``peer``; ``text`` for a person to read."""

    peer: PeerId
    text: str


@dataclass(frozen=True, slots=True)
class Leave:
    """Either way: the channel is closed; ``text`` for a person to read."""

    channel: bytes
    text: str


@dataclass(frozen=True, slots=True)
class Limited:
    """Relay to node, once a second at most: so many of this channel's datagrams were beyond its rate, and dropped."""

    channel: bytes
    num_dropped: int


@dataclass(frozen=True, slots=True)
class Announce:
    """Node to relay: a signed announcement, in place of the last one; empty takes it back. To a watcher: somebody's."""

    announcement: bytes


@dataclass(frozen=True, slots=True)
class Watch:
    """Node to relay: send me all announcements, and those to come."""


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Relay to watcher: a peer is not connected with the relay any more, or announces nothing."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Revoke:
    """Either way: who is no member any more, signed by the network's authority (membership.py)."""

    revocations: bytes


@dataclass(frozen=True, slots=True)
class Candidates:
    """Node to node: HOST:PORT each, where I may be reached straight: my own addresses, and what NATs make of them."""

    addrs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class IceOffer:
    """Node to node: let us look for a pair of sockets by ICE, see ice.py; and the answer to it.

    Attributes:
        is_answer: to the other's.
        ufrag, pwd: what checks of this end's sockets are named and authenticated by (RFC 8445, section 5.3).
        candidates: this end's sockets, each as a line of SDP has them (RFC 8839, section 5.1).
    """

    is_answer: bool
    ufrag: str
    pwd: str
    candidates: tuple[str, ...]


RelayMessage = (
    Register
    | Registered
    | Reach
    | Channel
    | Accept
    | Unreachable
    | Leave
    | Limited
    | Announce
    | Watch
    | Withdrawn
    | Revoke
    | Candidates
    | IceOffer
)
