"""Ways: how a datagram gets to a peer, straight to an address or through a relay that both ends have a connection with.
Straight is from one of the node's own sockets, or from one that ICE has opened.

A relayed datagram begins with 8 bytes: one that says which end it is from, and 7 of chance that name the channel. The
relay passes it on as it is; what lies behind the 8 bytes is QUIC, or a probe, between the two ends alone.
Not here: which way is taken (paths.py), and sockets (carrier.py).
"""

import ipaddress
from typing import Any, NamedTuple

from ..errors import NetworkError
from .identity import PeerId

Addr = tuple[Any, ...]  # as the socket module has it: host and port, with IPv6 two more

CHANNEL_BYTES = 7  # of chance: what nobody can guess who does not see the datagrams
CHANNEL_PREFIX_BYTES = 1 + CHANNEL_BYTES
_FROM_ASKER, _FROM_OTHER = 4, 5  # the first byte; like those of probes without the bit 0x40 that QUIC's packets have
_MAPPED = "::ffff:"  # an IPv4 address on a socket for both (RFC 4291, section 2.5.5.2); others never begin so


class Direct(NamedTuple):
    """From one of this node's sockets, by its number, to an address."""

    socket: int
    addr: Addr


class Relayed(NamedTuple):
    """Through a relay, which is at ``addr``. ``prefix`` is what this end's datagrams begin with."""

    relay: PeerId
    addr: Addr
    prefix: bytes

    @property
    def peers_prefix(self) -> bytes:
        """What the other end's datagrams begin with."""
        return bytes((_FROM_ASKER + _FROM_OTHER - self.prefix[0],)) + self.prefix[1:]


class Ice(NamedTuple):
    """Through a pair of sockets that ICE has found, see ice.py: the peer's is at ``addr``, and ours has a number.

    The address stands first, so that none is equal to a Direct one.
    """

    addr: Addr
    number: int


Way = Direct | Relayed | Ice


def channel_prefix(channel: bytes, *, is_asker: bool) -> bytes:
    """What datagrams of one end begin with: of the one that asked for the channel, or of the other one."""
    assert len(channel) == CHANNEL_BYTES
    return bytes((_FROM_ASKER if is_asker else _FROM_OTHER,)) + channel


def is_relayed(datagram: bytes) -> bool:
    """Whether a datagram is one of a channel."""
    return len(datagram) > CHANNEL_PREFIX_BYTES and datagram[0] in (_FROM_ASKER, _FROM_OTHER)


def is_from_asker(prefix: bytes) -> bool:
    """Which end a relayed datagram is from."""
    return prefix[0] == _FROM_ASKER


def is_loopback(way: Way) -> bool:
    """Whether it stays on this machine."""
    return _host(way.addr).is_loopback


def is_site(way: Way) -> bool:
    """Whether the address is of the kind that a site's own machines have, which in a VPN may be far apart."""
    host = _host(way.addr)
    return host.is_loopback or host.is_private or host.is_link_local


def retry_addr(way: Way) -> Addr:
    """An address for Retry tokens, which are bound to one (RFC 9000, section 8.1.2): a channel's is made up."""
    if not isinstance(way, Relayed):
        return (way.addr[0].partition("%")[0], way.addr[1])
    return (str(ipaddress.IPv6Address(b"\xfd" + bytes(16 - 1 - CHANNEL_BYTES) + way.prefix[1:])), 0)


def shown(way: Way) -> str:
    """For people: HOST:PORT, behind RELAY_ID@ where a relay is in between."""
    host, port = way.addr[0].removeprefix(_MAPPED), way.addr[1]
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(way, Ice):
        return f"ice {where}"
    return where if isinstance(way, Direct) else f"{way.relay}@{where}"


def offered_addr(text: str, *, loopback: bool) -> Addr | None:
    """The address that a peer names as one of its own, if a probe may go there; names are never looked up.

    With ``loopback`` also one of this machine, which makes sense where the peer is reached on this machine.

    Raises:
        NetworkError: it is no address.
    """
    host, colon, port = text.rpartition(":")
    try:
        ip = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise NetworkError(f"{text[:80]!r} is no numeric HOST:PORT") from None
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
    if not colon or not 0 < number < 1 << 16:
        raise NetworkError(f"{text[:80]!r} is no numeric HOST:PORT")
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_loopback:  # before what is reserved, of which ::1 is part
        if not loopback:
            return None
    elif ip.is_multicast or ip.is_unspecified or ip.is_reserved or ip.is_link_local:
        return None
    return (str(ip), number) if ip.version == 4 else (str(ip), number, 0, 0)


def _host(addr: Addr) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    host = ipaddress.ip_address(addr[0].partition("%")[0])
    return getattr(host, "ipv4_mapped", None) or host
