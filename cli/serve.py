"""``hopformer serve``: from flags to a node that serves a span of layers until it is told to stop.

Which layers is said, or chosen by the node itself (auto_serve.py).
"""

import json
import logging
from typing import Any

from ..errors import UsageError
from ..llama.load_span import LoadedSpan
from ..net.hop_sessions import HopSessions
from ..net.metrics import NodeMetrics
from ..net.network_process import ProcessSwitchboard
from ..net.served_span import ServedSpan
from ..net.span_announcer import SpanAnnouncer
from ..net.span_server import SpanServer
from ..net.switchboard import MeshSwitchboard, Switchboard
from .auto_serve import AutoNetwork, serve_auto
from .interrupts import terminate_noted, terminate_unwinds
from .leaving import DRAIN_S, leave_in_time
from .mesh_flags import MeshFlags
from .metrics_http import metrics_server
from .node_flags import NodeFlags, SpanFlags, split_addr
from .node_key import key_in_use, load_key
from .options import parse_layers
from .reporting import EXIT_DONE
from .served import load_served

log = logging.getLogger(__name__)

AUTO = "auto"  # in place of layers: those that the mesh lacks most


def serve(model: str, layers: str | None, node: NodeFlags, mesh: MeshFlags, span: SpanFlags) -> int:
    """Serve ``layers`` of ``model``; returns the exit code once SIGTERM has come and the node is drained."""
    is_auto = layers == AUTO
    if is_auto and not mesh.finds_peers:
        raise UsageError("--layers auto has to hear what others serve; pass --relay, --lan or --join too")
    span.check(is_auto=is_auto)
    asked = None if layers is None or is_auto else parse_layers(layers)
    http_at = None if node.metrics is None else split_addr("--metrics", node.metrics)
    identity = load_key(node.identity)
    part = mesh.part(identity.peer_id, is_watching=is_auto)
    addrs = node.addrs(part.relays, lan=mesh.lan)
    allowed = node.allowed(addrs, is_member=part.network is not None)
    metrics = NodeMetrics()
    with key_in_use(node.identity), metrics_server(metrics, http_at) as http:
        if is_auto:
            network = AutoNetwork(identity, addrs, allowed, part)
            serve_auto(model, node, span, network, metrics, lambda board, served: _say_ready(board, served, http))
        else:
            with terminate_unwinds():
                loaded, served = load_served(model, asked, node, span)
                switchboard = ProcessSwitchboard.start(identity, addrs, allowed, mesh=part)
            try:
                with terminate_noted(lambda: leave_in_time(switchboard)) as terminated:
                    server = make_server(switchboard, loaded, served, metrics)
                    server.announcer = SpanAnnouncer(switchboard, identity, served)
                    _say_ready(switchboard, served, http)
                    server.run(terminated, DRAIN_S)
            finally:
                switchboard.close()
    log.info("peer=%s is done", identity.peer_id)
    return EXIT_DONE


def make_server(switchboard: Switchboard, loaded: LoadedSpan, served: ServedSpan, metrics: NodeMetrics) -> SpanServer:
    """A server of layers that are loaded, which nobody has let run yet."""
    pool = loaded.runner.sequences.pool
    sessions = HopSessions(served, pool.num_pages, pool.page_size)
    return SpanServer(switchboard, loaded.runner, sessions, metrics, loaded.head)


def ready(switchboard: MeshSwitchboard, served: ServedSpan, http: str | None) -> dict[str, Any]:
    """What whoever reads it needs to connect; ``hopformer map join`` does."""
    return {
        "ready": True,
        "peer_id": str(switchboard.peer_id),
        "addrs": list(switchboard.addrs),
        "relays": list(switchboard.relays),
        "layers": f"{served.start}:{served.end}",
        "http": http,
    }


def _say_ready(switchboard: MeshSwitchboard, served: ServedSpan, http: str | None) -> None:
    """The first line on stdout: who reads it may connect."""
    print(json.dumps(ready(switchboard, served, http)), flush=True)
