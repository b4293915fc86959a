"""What a node tells Prometheus, at /metrics, and whoever looks after it, at /healthz.

NodeMetrics is written by the thread that serves, and read by the HTTP server's threads. Names end as Prometheus likes
it: _total for what only grows, _seconds and _bytes for units. No label has a value that a stranger chooses: peers are
labelled by their proven ids, and only while they are connected.
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from .identity import PeerId
from .messages import Reason
from .switchboard import PeerStats

STALLED_AFTER_S = 60.0  # without a turn of the server; the longest batch, on a slow CPU, is well below it
REQUEST_TIMEOUT_S = 5.0  # a client that sends its request slower than that is cut off

KINDS = ("decode", "prefill", "replay")
STAGES = ("queue", "unpack", "forward", "draw", "pack", "send")

# From a token's step in a small model to a prefill chunk of a large one on a CPU
_STEP_BUCKETS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
_PEER_GAUGES = {
    "hopformer_peer_rtt_seconds": "Smoothed round trip to a connected peer.",
    "hopformer_peer_sent_bytes": "Sent to a peer since it was connected.",
    "hopformer_peer_received_bytes": "Received from a peer since it was connected.",
    "hopformer_peer_queued_bytes": "Of messages to a peer that wait here.",
}


class NodeMetrics:
    """The figures of one node.

    Attributes:
        steps, tokens: computed, by kind: decode, prefill or replay.
        batch_size: sequences computed together.
        stage_seconds: how long it took, by stage: queue, of each step from its arrival to its start; and of each batch
            unpack, forward, draw (where the head is here), pack and send.
        refusals: sessions that were refused or ended, by reason.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry}
        self.steps = Counter("hopformer_steps", "Steps computed.", ["kind"], **own)
        self.tokens = Counter("hopformer_tokens", "Tokens computed.", ["kind"], **own)
        self.refusals = Counter("hopformer_refusals", "Sessions refused or ended.", ["reason"], **own)
        self.batch_size = Histogram(
            "hopformer_batch_size", "Sequences computed together.", buckets=_BATCH_BUCKETS, **own
        )
        self.stage_seconds = Histogram(
            "hopformer_step_stage_seconds", "Time of a step by stage.", ["stage"], buckets=_STEP_BUCKETS, **own
        )
        for counter in (self.steps, self.tokens):  # 0 is told from the start, so that a rate has where to begin
            for kind in KINDS:
                counter.labels(kind)
        for reason in Reason:
            self.refusals.labels(reason.name.lower())
        for stage in STAGES:
            self.stage_seconds.labels(stage)
        self._sessions = Gauge("hopformer_sessions", "Sessions that are open.", **own)
        self._waiting = Gauge("hopformer_steps_waiting", "Steps that are not computed yet.", **own)
        self._pages = Gauge("hopformer_kv_pages", "Pages for keys and values.", ["state"], **own)
        self._peers = _PeerCollector()
        self.registry.register(self._peers)
        self._turned_at = time.monotonic()
        self._is_draining = False

    def stage(self, name: str) -> AbstractContextManager[object]:
        """Measures the time that a stage of a batch takes."""
        return self.stage_seconds.labels(name).time()

    def turned(self, num_sessions: int, num_waiting: int, pages: tuple[int, int], is_draining: bool) -> None:
        """The server made a turn; ``pages`` are those that are used and those that are free."""
        self._turned_at = time.monotonic()
        self._is_draining = is_draining
        self._sessions.set(num_sessions)
        self._waiting.set(num_waiting)
        for state, count in zip(("used", "free"), pages, strict=True):
            self._pages.labels(state).set(count)

    def peers(self, stats: Mapping[PeerId, PeerStats]) -> None:
        """Who is connected, and how that does."""
        self._peers.stats = dict(stats)

    def health(self) -> str:
        """ "ok", "draining", or "stalled" when the server has made no turn for long."""
        if time.monotonic() - self._turned_at > STALLED_AFTER_S:
            return "stalled"
        return "draining" if self._is_draining else "ok"


class _PeerCollector(Collector):
    """Figures of the peers that are connected now."""

    def __init__(self) -> None:
        self.stats: Mapping[PeerId, PeerStats] = {}

    def collect(self) -> Iterator[Metric]:
        stats = self.stats  # another thread may replace it meanwhile
        for name, documentation in _PEER_GAUGES.items():
            field = name.removeprefix("hopformer_peer_").replace("rtt_seconds", "rtt_s")
            metric = Metric(name, documentation, "gauge")
            for peer, one in stats.items():
                metric.add_sample(name, {"peer": str(peer)}, getattr(one, field))
            yield metric
        metric = Metric("hopformer_peer_path", "1 for how a connected peer is reached: direct or relayed.", "gauge")
        for peer, one in stats.items():
            metric.add_sample("hopformer_peer_path", {"peer": str(peer), "kind": one.kind}, 1)
        yield metric


class Figures(Protocol):
    """What is served."""

    registry: CollectorRegistry

    def health(self) -> str:
        """ "ok", or in one word why not."""
        ...


class MetricsServer:
    """An HTTP server, in a thread of its own, for the figures of a node or a relay.

    Args:
        host, port: where to listen; port 0 is any.

    Raises:
        OSError: the address is taken or is none of this machine's.
    """

    def __init__(self, metrics: Figures, host: str, port: int) -> None:
        class Handler(_Handler):
            node = metrics

        class Server(ThreadingHTTPServer):
            address_family = AF_INET6 if ":" in host else AF_INET

        self._server = Server((host, port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    @property
    def addr(self) -> str:
        """HOST:PORT where it listens."""
        host, port = str(self._server.server_address[0]), self._server.server_address[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop, and give the address back."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    node: Figures
    timeout = REQUEST_TIMEOUT_S

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self.node.registry))
        elif path == "/healthz":
            health = self.node.health()
            status = HTTPStatus.OK if health == "ok" else HTTPStatus.SERVICE_UNAVAILABLE
            self._answer(status, "application/json", json.dumps({"status": health}).encode())
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"/metrics and /healthz are here\n")

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """A node's log has no line for a scrape."""
