"""BlocksMap: the file that says which peer runs which layers. README.md shows one.

The dataclasses are the file as it lies on disk, so its texts are texts here; ``faults`` says all that is wrong with
them at once, and what comes after ``checked`` may rely on them. Planning one is blocks_plan.py's, drawing the command
line's.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import msgspec

from ..errors import BlocksMapError, IdentityError
from .identity import PeerId
from .layer_range import LayerRange, gaps, listed, merged

SELF = "self"  # in place of a peer id: the node that reads the file
MAX_FILE_BYTES = 1 << 20  # 4,096 routes of 100 bytes leave half of it for peers
MAX_PEERS = 256
MAX_ROUTES = 4096
MAX_ADDRS = 16  # of a peer; more than that is no list of addresses but a scan
FINGERPRINT_HEX = 64  # characters: 32 bytes

_ADDR = re.compile(r"(?:\[[0-9A-Fa-f:.%a-z]{2,64}\]|[A-Za-z0-9._-]{1,253}):(\d{1,5})", re.ASCII)
_MULTIADDR = re.compile(r"/(?:ip4|dns4)/([^/]+)/(?:tcp|udp)/(\d{1,5})(?:/.*)?", re.ASCII)
_FINGERPRINT = re.compile(rf"[0-9a-f]{{{FINGERPRINT_HEX}}}")


class MapModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which model a map is for; ``fingerprint`` is its 32 bytes in hexadecimal, None where any of the name will do."""

    name: str
    fingerprint: str | None = None


class MapPeer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a peer can be dialled; ``relay`` is PEER_ID@HOST:PORT."""

    peer_id: str
    addrs: tuple[str, ...] = ()
    relay: str | None = None

    @property
    def ways(self) -> tuple[str, ...]:
        """Its addresses, and the relay behind them, which no number of addresses pushes out of a message."""
        return self.addrs if self.relay is None else (*self.addrs[: MAX_ADDRS - 1], self.relay)


class MapRoute(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Layers, such as "4:8", that a peer serves."""

    layers: str
    peer_id: str


class BlocksMap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who serves what. The layers of several peers may overlap: they are each other's replicas there."""

    version: int
    model: MapModel
    peers: tuple[MapPeer, ...]
    routes: tuple[MapRoute, ...]

    def spans(self) -> dict[PeerId | None, list[LayerRange]]:
        """The layers of each peer, adjacent ranges as one; None is the node that reads the map. Check it first."""
        found: dict[PeerId | None, list[LayerRange]] = defaultdict(list)
        for route in self.routes:
            found[_parse_peer(route.peer_id)].append(LayerRange.parse(route.layers))
        return {peer: merged(ranges) for peer, ranges in found.items()}

    def addrs(self) -> dict[PeerId, tuple[str, ...]]:
        """Where each peer that serves something can be dialled, over its relay last. Check the map first."""
        serving = {route.peer_id.lower() for route in self.routes}
        return {PeerId.parse(one.peer_id): one.ways for one in self.peers if one.peer_id.lower() in serving}

    def read_by(self, own: PeerId) -> "BlocksMap":
        """The map as the node ``own`` reads it, which may be among the peers: its layers are "self" then."""
        name = str(own)
        peers = tuple(peer for peer in self.peers if peer.peer_id.lower() != name)
        routes = tuple(
            MapRoute(route.layers, SELF) if route.peer_id.lower() == name else route for route in self.routes
        )
        return BlocksMap(self.version, self.model, peers, routes)

    def to_json(self) -> str:
        """The file's text."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode() + "\n"


class _OldPeer(msgspec.Struct, forbid_unknown_fields=True):
    peer_id: str
    addr: str | None = None
    addrs: tuple[str, ...] = ()
    relay: str | None = None


class _OldRoute(msgspec.Struct, forbid_unknown_fields=True):
    block_no: int
    peer_id: str
    model_name: str | None = None


class _OldMap(msgspec.Struct, forbid_unknown_fields=True):
    """As older nodes wrote it: a route for each block, one address a peer, and the reader's own id by name."""

    peers: tuple[_OldPeer, ...]
    routes: tuple[_OldRoute, ...]
    version: int = 1
    model: MapModel | None = None
    self_peer_id: str | None = None


def load_blocks_map(path: Path) -> BlocksMap:
    """The map in a file, as ``parse_blocks_map`` reads it.

    Raises:
        BlocksMapError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BlocksMapError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return parse_blocks_map(content)
    except BlocksMapError as error:
        raise BlocksMapError(f"{path}: {error}") from None


def parse_blocks_map(content: bytes) -> BlocksMap:
    """The map in a file's ``content``, in today's form or the old one. What its values mean is ``faults``' business.

    Raises:
        BlocksMapError: it is no JSON, or a key is unknown, missing or of the wrong type.
    """
    if len(content) > MAX_FILE_BYTES:
        raise BlocksMapError(f"it is larger than a BlocksMap's {MAX_FILE_BYTES} bytes")
    try:
        old = _is_old(msgspec.json.decode(content))
        found = _modern(msgspec.json.decode(content, type=_OldMap)) if old else _decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BlocksMapError(f"it is no BlocksMap: {error}") from None
    if found.version != 1:
        raise BlocksMapError(f"its version is {found.version}; this hopformer reads version 1")
    if len(found.peers) > MAX_PEERS or len(found.routes) > MAX_ROUTES:
        raise BlocksMapError(
            f"it has {len(found.peers)} peers and {len(found.routes)} routes; {MAX_PEERS} and {MAX_ROUTES} are allowed"
        )
    return found


def checked(blocks_map: BlocksMap, num_layers: int) -> BlocksMap:
    """The same map, for a model of ``num_layers`` layers.

    Raises:
        BlocksMapError: it has faults; the first few are named.
    """
    found = faults(blocks_map, num_layers)
    if found:
        more = f"; and {len(found) - 3} more, which hopformer map check names" if len(found) > 3 else ""
        raise BlocksMapError("; ".join(found[:3]) + more)
    return blocks_map


def faults(blocks_map: BlocksMap, num_layers: int | None = None) -> list[str]:
    """All that is wrong, a line each; holes at the end are found only where ``num_layers`` is known."""
    fingerprint = blocks_map.model.fingerprint
    found = []
    if fingerprint is not None and not _FINGERPRINT.fullmatch(fingerprint):
        found.append(
            f"model.fingerprint is {fingerprint[:80]!r}; it has {FINGERPRINT_HEX} digits 0-9 and a-f, or is null"
        )
    found.extend(_peer_faults(blocks_map.peers))
    ranges: list[tuple[int, str, LayerRange]] = []
    known = {peer.peer_id.lower() for peer in blocks_map.peers} | {SELF}
    for index, route in enumerate(blocks_map.routes):
        try:
            layers = LayerRange.parse(route.layers)
        except BlocksMapError as error:
            found.append(f"routes[{index}]: {error}")
            continue
        if num_layers is not None and layers.end > num_layers:
            found.append(f"routes[{index}]: layers {layers} are out of range; the model has 0:{num_layers}")
        if route.peer_id.lower() not in known:
            found.append(f"routes[{index}]: peer {route.peer_id[:80]} is unknown; list it under peers")
        ranges.append((index, route.peer_id.lower(), layers))
    found.extend(_twice_served(ranges))
    found.extend(_holes([layers for _, _, layers in ranges], num_layers))
    return found


def notes(blocks_map: BlocksMap) -> list[str]:
    """What is no fault and yet worth a look: layers of two peers that are neither the same nor apart."""
    everybody = [(str(peer or SELF), one) for peer, ranges in blocks_map.spans().items() for one in ranges]
    return [
        f"layers {one.common(other)} overlap: {peer} serves {one} and {second} serves {other}; each may run a part"
        for (peer, one), (second, other) in combinations(everybody, 2)
        if one.common(other) and one not in other and other not in one
    ]


def is_address(text: str) -> bool:
    """Whether ``text`` is HOST:PORT, an IPv6 host in brackets."""
    found = _ADDR.fullmatch(text)
    return found is not None and 0 < int(found[1]) < 1 << 16


def _decode(content: bytes) -> BlocksMap:
    return msgspec.json.decode(content, type=BlocksMap)


def _parse_peer(text: str) -> PeerId | None:
    return None if text.lower() == SELF else PeerId.parse(text)


def _is_old(raw: object) -> bool:
    """Whether any part of the file is as older nodes wrote it."""
    routes = raw.get("routes") if isinstance(raw, dict) else None
    return isinstance(routes, list) and any(isinstance(route, dict) and "block_no" in route for route in routes)


def _modern(old: _OldMap) -> BlocksMap:
    """The old form's meaning in today's."""
    names = [route.model_name for route in old.routes if route.model_name]
    return BlocksMap(
        version=old.version,
        model=old.model or MapModel(names[0] if names else "unknown"),
        peers=tuple(
            MapPeer(peer.peer_id, (*peer.addrs, *([_plain(peer.addr)] if peer.addr else [])), peer.relay)
            for peer in old.peers
            if peer.peer_id != old.self_peer_id
        ),
        routes=tuple(
            MapRoute(
                f"{route.block_no}:{route.block_no + 1}", SELF if route.peer_id == old.self_peer_id else route.peer_id
            )
            for route in old.routes
        ),
    )


def _plain(addr: str) -> str:
    """HOST:PORT of an address that may be a multiaddr, such as /ip4/127.0.0.1/tcp/4001."""
    found = _MULTIADDR.fullmatch(addr)
    return f"{found[1]}:{found[2]}" if found else addr


def _peer_faults(peers: Sequence[MapPeer]) -> Iterator[str]:
    seen: dict[str, int] = {}
    for index, peer in enumerate(peers):
        where = f"peers[{index}]"
        try:
            PeerId.parse(peer.peer_id)
        except IdentityError as error:
            yield f"{where}: {error}"
        first = seen.setdefault(peer.peer_id.lower(), index)
        if first != index:
            yield f"{where}: peer {peer.peer_id[:80]} is listed already, as peers[{first}]"
        if not peer.addrs and peer.relay is None:
            yield f"{where}: neither addrs nor relay says how to reach it"
        if len(peer.addrs) > MAX_ADDRS:
            yield f"{where}: {len(peer.addrs)} addrs; {MAX_ADDRS} are allowed"
        yield from (f"{where}: address {addr[:80]!r} is not HOST:PORT" for addr in peer.addrs if not is_address(addr))
        if peer.relay is not None and not _is_relay(peer.relay):
            yield f"{where}: relay {peer.relay[:80]!r} is not PEER_ID@HOST:PORT"


def _is_relay(text: str) -> bool:
    peer, at, addr = text.partition("@")
    try:
        PeerId.parse(peer)
    except IdentityError:
        return False
    return bool(at) and is_address(addr)


def _twice_served(ranges: Sequence[tuple[int, str, LayerRange]]) -> Iterator[str]:
    """Layers that one peer lists twice, and peers whose layers are not one range, which no route could use as such."""
    of_peer: dict[str, list[tuple[int, LayerRange]]] = defaultdict(list)
    for index, peer, layers in ranges:
        for other, earlier in of_peer[peer]:
            if common := layers.common(earlier):
                yield f"routes[{other}] and routes[{index}] overlap: peer {peer[:80]} lists layers {common} twice"
        of_peer[peer].append((index, layers))
    for peer, own in of_peer.items():
        apart = merged(layers for _, layers in own)
        if len(apart) > 1 and peer != SELF:
            yield f"peer {peer[:80]} lists layers {listed(apart)}; a peer serves one range"


def _holes(ranges: Sequence[LayerRange], num_layers: int | None) -> Iterator[str]:
    end = num_layers if num_layers is not None else max((one.end for one in ranges), default=0)
    if not ranges:
        yield "there is no route; list at least one under routes"
    for hole in gaps(ranges, LayerRange(0, end)):
        yield f"layers {hole} are a hole: nobody serves them"
