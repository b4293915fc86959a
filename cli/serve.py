"""``hopformer serve``: from flags to a node that serves a span of layers until it is told to stop."""

import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import NetworkError, UsageError
from ..llama.config import load_config
from ..llama.fingerprint import fingerprint
from ..llama.load_span import LoadedSpan, find_layers, load_span
from ..net.activations import wire_dtype
from ..net.hop_sessions import HopSessions
from ..net.identity import Identity
from ..net.messages import Codec
from ..net.metrics import MetricsServer, NodeMetrics
from ..net.network_process import ProcessSwitchboard
from ..net.served_span import ServedSpan
from ..net.span_server import SpanServer
from ..net.switchboard import Switchboard
from .folders import config_folder
from .interrupts import terminate_noted, terminate_unwinds
from .loading import fetch
from .node_flags import NodeFlags, SpanFlags, split_addr
from .options import parse_layers
from .progress import loading_bar
from .reporting import EXIT_DONE

log = logging.getLogger(__name__)

DRAIN_S = 2.0  # that open sessions have to move elsewhere; with the network's own end, a node is gone within 5 s
STEP_S = 0.5  # beyond that, for a step that still runs; then it is given up, as its caller has long gone elsewhere
_CODECS = {"exact": (Codec.EXACT,), "int8": (Codec.EXACT, Codec.INT8)}


def serve(model: str, layers: str | None, node: NodeFlags, span: SpanFlags) -> int:
    """Serve ``layers`` of ``model``; returns the exit code once SIGTERM has come and the node is drained."""
    asked = _asked_layers(layers)
    allowed = node.allowed()
    http_at = None if node.metrics is None else split_addr("--metrics", node.metrics)
    identity = Identity.load_or_create(node.identity or config_folder() / "identity.pem")
    metrics = NodeMetrics()
    with _metrics_server(metrics, http_at) as http:
        with terminate_unwinds():
            loaded, served = _load(model, asked, node, span)
            switchboard = ProcessSwitchboard.start(identity, node.listen, allowed)
        try:
            with terminate_noted(lambda: _leave_in_time(switchboard)) as terminated:
                server = make_server(switchboard, loaded, served, metrics)
                print(json.dumps(ready(switchboard, served, http)), flush=True)  # the first line on stdout
                server.run(terminated, DRAIN_S)
        finally:
            switchboard.close()
    log.info("peer=%s is done", identity.peer_id)
    return EXIT_DONE


def _leave_in_time(switchboard: Switchboard) -> None:
    """End this process soon even if the layers compute on: on a slow machine a prompt takes longer than a drain."""

    def leave() -> None:
        log.warning("peer=%s gives up a step that still runs", switchboard.peer_id)
        switchboard.close()
        os._exit(EXIT_DONE)

    timer = threading.Timer(DRAIN_S + STEP_S, leave)
    timer.daemon = True
    timer.start()


def _asked_layers(text: str | None) -> tuple[int, int] | None:
    if text == "auto":
        raise UsageError("--layers auto is not there yet; say which, such as --layers 0:16")
    return None if text is None else parse_layers(text)


def _load(model: str, asked: tuple[int, int] | None, node: NodeFlags, span: SpanFlags) -> tuple[LoadedSpan, ServedSpan]:
    """The layers, fetched if need be, and how they are announced."""
    folder = fetch(model, asked, ends=span.head)
    start, end = find_layers(asked, load_config(folder))
    with loading_bar(f"loading layers {start}:{end} of {model}") as progress:
        loaded = load_span(folder, (start, end), span.options(), progress)
    name = Path(model).resolve().name if Path(model).is_dir() else model  # peers are told: no path of ours
    return loaded, announced(name, folder, loaded, _CODECS[node.wire_dtype])


def announced(name: str, folder: Path, loaded: LoadedSpan, codecs: Sequence[Codec]) -> ServedSpan:
    """What peers are told of the layers that were loaded from ``folder``."""
    span = loaded.runner.span
    return ServedSpan(
        model=name,
        fingerprint=fingerprint(folder, span.start, span.end),
        start=span.start,
        end=span.end,
        num_layers=loaded.config.num_layers,
        width=loaded.config.hidden_size,
        dtype=wire_dtype(loaded.dtype),
        codecs=tuple(codecs),
        max_tokens=loaded.max_context,
        version=__version__,
        vocab_size=loaded.config.vocab_size if loaded.head is not None else 0,
    )


def make_server(switchboard: Switchboard, loaded: LoadedSpan, served: ServedSpan, metrics: NodeMetrics) -> SpanServer:
    """A server of layers that are loaded, which nobody has let run yet."""
    pool = loaded.runner.sequences.pool
    sessions = HopSessions(served, pool.num_pages, pool.page_size)
    return SpanServer(switchboard, loaded.runner, sessions, metrics, loaded.head)


def ready(switchboard: Switchboard, served: ServedSpan, http: str | None) -> dict[str, Any]:
    """What whoever reads it needs to connect; ``hopformer map join`` does."""
    return {
        "ready": True,
        "peer_id": str(switchboard.peer_id),
        "addrs": list(switchboard.addrs),
        "layers": f"{served.start}:{served.end}",
        "http": http,
    }


@contextmanager
def _metrics_server(metrics: NodeMetrics, addr: tuple[str, int] | None) -> Iterator[str | None]:
    """Serve ``metrics`` at ``addr``, host and port; where that is, or None where it was not asked for.

    Raises:
        NetworkError: the address is taken, or is not this machine's.
    """
    if addr is None:
        yield None
        return
    try:
        server = MetricsServer(metrics, *addr)
    except OSError as error:
        host, port = addr
        raise NetworkError(f"--metrics {host}:{port} cannot be listened at: {error.strerror}") from error
    server.start()
    try:
        yield server.addr
    finally:
        server.close()
