"""The nodes that compute for a command: this one alone, or a route over peers; and what is told of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..errors import IdentityError, NetworkError, NoRouteError, UsageError
from ..llama.load import LoadedModel
from .loading import fetch, open_model
from .mesh_flags import MeshFlags, default_listen
from .node_key import free_key, key_in_use, load_key
from .options import LoadFlags
from .peer_table_view import connecting_table, peer_lines
from .progress import loading_bar
from .route_flags import RouteFlags
from .serve_beside_flags import ServeBesideFlags

if TYPE_CHECKING:
    from ..net.blocks_map import BlocksMap
    from ..net.identity import Identity
    from ..net.load_remote import RemoteModel
    from ..net.switchboard import MeshSwitchboard

CONNECT_S = 10.0  # a handshake over a relay, and its retries
STATS_S = 1.5  # the network's process tells how connections do every second
POLL_S = 0.25


class Nodes(Protocol):
    """Who computes."""

    def route(self) -> list[dict[str, str]]:
        """The route of the last answer, as ``generate --json`` prints it."""
        ...

    @property
    def num_reroutes(self) -> int:
        """How often a hop was replaced."""
        ...

    def heed(self, stopped: Callable[[], bool]) -> None:
        """Ask ``stopped`` from now on whether somebody wants an answer to stop that waits for a peer."""
        ...

    def idle(self) -> None:
        """Do what is due while nobody wants an answer, and wait for nothing."""
        ...

    def place(self, device: str) -> str:
        """Where the layers run, for one line of text; ``device`` is this node's."""
        ...

    def describe(self) -> str:
        """A table for people, of one line or more."""
        ...

    def connect(self, peer_id: str, addr: str) -> str:
        """Reach a peer; returns how it went. Raises HopformerError: it cannot be tried."""
        ...


@dataclass(frozen=True, slots=True)
class LocalNode:
    """This machine, with all layers."""

    num_layers: int
    num_reroutes: int = 0

    def route(self) -> list[dict[str, str]]:
        """See Nodes."""
        return [{"layers": f"0:{self.num_layers}", "peer": "local"}]

    def heed(self, stopped: Callable[[], bool]) -> None:
        """See Nodes; nothing waits here."""

    def idle(self) -> None:
        """See Nodes; nothing is due here."""

    def place(self, device: str) -> str:
        """See Nodes."""
        return f"on {device}"

    def describe(self) -> str:
        """See Nodes."""
        return f"local 0:{self.num_layers}"

    def connect(self, peer_id: str, addr: str) -> str:
        """See Nodes."""
        return f"this chat runs on this machine with all {self.num_layers} layers here; there is no peer to reach"


class RemoteNodes:
    """This machine and the peers of a BlocksMap."""

    def __init__(self, remote: "RemoteModel") -> None:
        self._remote = remote

    @property
    def num_reroutes(self) -> int:
        """See Nodes."""
        return self._remote.runner.num_reroutes

    def route(self) -> list[dict[str, str]]:
        """See Nodes."""
        return [{"layers": str(hop.layers), "peer": str(hop.peer or "local")} for hop in self._remote.runner.route]

    def heed(self, stopped: Callable[[], bool]) -> None:
        """See Nodes."""
        self._remote.runner.stopped = stopped

    def idle(self) -> None:
        """See Nodes: leases are renewed, and peers that come and go are heard of."""
        with suppress(NetworkError):  # the next answer will say it
            self._remote.node.turn(0.0)

    def place(self, device: str) -> str:
        """See Nodes."""
        num_ready = len(self._remote.node.peers.candidates(self._remote.node.switchboard.now()))
        return f"over {num_ready} peer{'s' if num_ready != 1 else ''}"

    def describe(self) -> str:
        """See Nodes."""
        node = self._remote.node
        deadline = node.switchboard.now() + STATS_S
        while any(entry.is_connected and entry.stats is None for entry in node.peers.entries.values()):
            node.turn(POLL_S)
            if node.switchboard.now() >= deadline:
                break
        return "\n".join(peer_lines(self._remote.node, self._remote.runner.route))

    def connect(self, peer_id: str, addr: str) -> str:
        """See Nodes."""
        from ..net.blocks_map import is_address
        from ..net.identity import PeerId

        peer, node = PeerId.parse(peer_id), self._remote.node
        if not is_address(addr):
            raise UsageError(f"{addr} is not HOST:PORT")
        if peer == node.switchboard.peer_id:
            raise IdentityError(f"{peer} is this node itself")
        node.peers.add(peer, (addr,))
        entry, deadline = node.peers.entries[peer], node.switchboard.now() + CONNECT_S
        while node.switchboard.now() < deadline and not (entry.layers is not None or entry.failure):
            node.turn(POLL_S)
        if entry.layers is None:
            return f"{peer} is not reached: {entry.problem or entry.failure}"
        return (
            f"{peer} is connected, and is not used: {entry.problem}"
            if entry.problem
            else (f"{peer} is connected, and serves layers {entry.layers}")
        )


@contextmanager
def open_nodes(
    reference: str, load: LoadFlags, routes: RouteFlags, mesh: MeshFlags, serving: ServeBesideFlags | None = None
) -> Iterator[tuple[LoadedModel, float, Nodes]]:
    """A model that is ready to answer, the seconds that it took to load, and who computes; given back at the end.

    With ``serving`` some layers are served to peers meanwhile.

    Raises:
        HopformerError: it cannot be loaded, or its layers are served by nobody.
    """
    serving = serving or ServeBesideFlags()
    routes.check(has_peers=mesh.finds_peers or serving.serve is not None)
    serving.check(is_meshed=mesh.finds_peers)
    if routes.blocks_map is None and not mesh.finds_peers:
        with _open_alone(reference, load, routes, serving) as found:
            yield found
    else:
        with _open_remote(reference, load, routes, mesh, serving) as found:
            yield found


@contextmanager
def _open_alone(
    reference: str, load: LoadFlags, routes: RouteFlags, serving: ServeBesideFlags
) -> Iterator[tuple[LoadedModel, float, Nodes]]:
    """All layers here."""
    model, load_s = open_model(reference, load.options())
    nodes = LocalNode(model.config.num_layers)
    if serving.serve is None:
        yield model, load_s, nodes
        return
    from ..net.network_process import MeshPart
    from .serve_beside import boards, serving_beside

    identity = load_key(routes.identity)
    with (
        key_in_use(routes.identity),
        boards(serving, identity, (), MeshPart()) as (_, board),
        serving_beside(serving, model, load, routes.codecs(), board),
    ):
        yield model, load_s, nodes


@contextmanager
def _open_remote(
    reference: str, load: LoadFlags, routes: RouteFlags, mesh: MeshFlags, serving: ServeBesideFlags
) -> Iterator[tuple[LoadedModel, float, Nodes]]:
    """Over the peers of a BlocksMap, and those that are found."""
    import time

    from ..net.blocks_map import load_blocks_map
    from ..net.load_remote import Routing, load_remote
    from .serve_beside import boards, serving_beside

    listed = None if routes.blocks_map is None else load_blocks_map(routes.blocks_map)
    with _identity(routes, listed, serves=serving.serve is not None) as identity:
        blocks_map = None if listed is None else listed.read_by(identity.peer_id)
        part = mesh.part(identity.peer_id, is_watching=True)
        addrs = [] if blocks_map is None else [addr for peer in blocks_map.peers for addr in peer.ways]
        listen = default_listen((*part.relays, *addrs), lan=mesh.lan)
        folder = fetch(reference, _own_layers(blocks_map), ends=True)
        start = time.perf_counter()
        with boards(serving, identity, listen, part) as (board, server_board):
            codec = routes.codecs()[-1]
            routing = Routing(blocks_map, routes.reroute_timeout, codec, routes.hand_head, is_meshed=mesh.finds_peers)
            with loading_bar(f"loading {reference}") as progress:
                remote = load_remote(folder, load.options(), routing, board, progress)
            with serving_beside(serving, remote.model, load, routes.codecs(), server_board):
                with connecting_table(remote.node) as show:
                    _connect(remote, reference, board, show)
                yield remote.model, time.perf_counter() - start, RemoteNodes(remote)
                remote.runner.close()


def _connect(remote: "RemoteModel", reference: str, board: "MeshSwitchboard", show: Callable[[], None] | None) -> None:
    """Connect; where nobody is found who serves a layer, the error says what there is in the mesh instead."""
    try:
        remote.runner.connect(show)
    except NoRouteError as error:
        if remote.node.mesh is None:
            raise
        raise NoRouteError(
            "; ".join((str(error), remote.node.mesh.why_nobody(reference), *board.relay_problems))
        ) from error


def _own_layers(blocks_map: "BlocksMap | None") -> tuple[int, int]:
    """The layers from the first to the last that this node runs."""
    from ..errors import BlocksMapError

    try:
        own = blocks_map.spans().get(None, []) if blocks_map is not None else []
    except (BlocksMapError, IdentityError):
        own = []  # the map has faults, which are told once the model's number of layers is known
    return (own[0].start, own[-1].end) if own else (0, 0)


@contextmanager
def _identity(routes: RouteFlags, blocks_map: "BlocksMap | None", *, serves: bool) -> "Iterator[Identity]":
    """Who this node is while it runs.

    One that only calls is a stranger where the map has its key's id for a peer: that of a node on the same machine.
    """
    from ..net.identity import Identity

    if serves:
        found = load_key(routes.identity)
        with key_in_use(routes.identity):
            yield found
        return
    listed = set() if blocks_map is None else {peer.peer_id.lower() for peer in blocks_map.peers}
    with free_key(routes.identity) as found:
        is_listed = str(found.peer_id) in listed
        if is_listed and routes.identity is not None:
            raise UsageError(f"--identity {routes.identity} is the key of a peer in the map; a caller has another")
        yield Identity.generate() if is_listed else found
