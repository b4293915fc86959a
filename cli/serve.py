"""``hopformer serve``: from flags to a node that serves a span of layers until it is told to stop."""

import json
import logging
from pathlib import Path

from .. import __version__
from ..errors import UsageError
from ..llama.config import load_config
from ..llama.fingerprint import fingerprint
from ..llama.load_span import LoadedSpan, find_layers, load_span
from ..net.activations import wire_dtype
from ..net.hop_sessions import HopSessions
from ..net.messages import Codec
from ..net.metrics import NodeMetrics
from ..net.network_process import ProcessSwitchboard
from ..net.served_span import ServedSpan
from ..net.span_announcer import SpanAnnouncer
from ..net.span_server import SpanServer
from ..net.switchboard import Switchboard
from .interrupts import terminate_noted, terminate_unwinds
from .loading import fetch
from .mesh_flags import MeshFlags
from .metrics_http import metrics_server
from .node_flags import NodeFlags, SpanFlags, split_addr
from .node_key import key_in_use, load_key
from .options import parse_layers
from .progress import loading_bar
from .reporting import EXIT_DONE

log = logging.getLogger(__name__)

DRAIN_S = 2.0  # that open sessions have to move elsewhere; with the network's own end, a node is gone within 5 s
_CODECS = {"exact": (Codec.EXACT,), "int8": (Codec.EXACT, Codec.INT8)}


def serve(model: str, layers: str | None, node: NodeFlags, mesh: MeshFlags, span: SpanFlags) -> int:
    """Serve ``layers`` of ``model``; returns the exit code once SIGTERM has come and the node is drained."""
    asked = _asked_layers(layers)
    http_at = None if node.metrics is None else split_addr("--metrics", node.metrics)
    identity = load_key(node.identity)
    part = mesh.part(identity.peer_id, is_watching=False)
    addrs = node.addrs(part.relays, lan=mesh.lan)
    allowed = node.allowed(addrs, is_member=part.network is not None)
    metrics = NodeMetrics()
    with key_in_use(node.identity), metrics_server(metrics, http_at) as http:
        with terminate_unwinds():
            loaded, served = _load(model, asked, node, span)
            switchboard = ProcessSwitchboard.start(identity, addrs, allowed, mesh=part)
        try:
            with terminate_noted() as terminated:
                server = _make_server(switchboard, loaded, served, metrics)
                server.announcer = SpanAnnouncer(switchboard, identity, served)
                _say_ready(switchboard, served, http)
                server.run(terminated, DRAIN_S)
        finally:
            switchboard.close()
    log.info("peer=%s is done", identity.peer_id)
    return EXIT_DONE


def _asked_layers(text: str | None) -> tuple[int, int] | None:
    if text == "auto":
        raise UsageError("--layers auto is not there yet; say which, such as --layers 0:16")
    return None if text is None else parse_layers(text)


def _load(model: str, asked: tuple[int, int] | None, node: NodeFlags, span: SpanFlags) -> tuple[LoadedSpan, ServedSpan]:
    """The layers, fetched if need be, and how they are announced."""
    folder = fetch(model, asked)
    start, end = find_layers(asked, load_config(folder))
    with loading_bar(f"loading layers {start}:{end} of {model}") as progress:
        loaded = load_span(folder, (start, end), span.options(), progress)
    served = ServedSpan(
        model=Path(model).resolve().name if Path(model).is_dir() else model,  # peers are told: no path of ours
        fingerprint=fingerprint(folder, start, end),
        start=start,
        end=end,
        num_layers=loaded.config.num_layers,
        width=loaded.config.hidden_size,
        dtype=wire_dtype(loaded.dtype),
        codecs=_CODECS[node.wire_dtype],
        max_tokens=loaded.max_context,
        version=__version__,
    )
    return loaded, served


def _make_server(switchboard: Switchboard, loaded: LoadedSpan, served: ServedSpan, metrics: NodeMetrics) -> SpanServer:
    pool = loaded.runner.sequences.pool
    return SpanServer(switchboard, loaded.runner, HopSessions(served, pool.num_pages, pool.page_size), metrics)


def _say_ready(switchboard: ProcessSwitchboard, served: ServedSpan, http: str | None) -> None:
    """The first line on stdout: who reads it may connect."""
    ready = {
        "ready": True,
        "peer_id": str(switchboard.peer_id),
        "addrs": list(switchboard.addrs),
        "relays": list(switchboard.relays),
        "layers": f"{served.start}:{served.end}",
        "http": http,
    }
    print(json.dumps(ready), flush=True)
