"""AutoNode: a node that chooses its layers itself. Moves events, announcements and layers; what is decided when is
auto_span.py's, and what is served how span_server.py's.

Layers are loaded in a thread beside, so that the node hears and is heard meanwhile. One that serves nothing yet, or is
between two spans, answers who asks that it serves no layers.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

from ..errors import HopformerError, NetworkError
from ..llama.load_span import LoadedSpan
from .announcement import Announcement
from .auto_span import AnnounceIntent, AnnounceReady, AutoSpan, Drain, Load, Output, Unload, Withdraw
from .directory import Directory
from .hop_sessions import HopSessions
from .identity import Identity, PeerId
from .layer_range import LayerRange
from .messages import Ask, Dtype, Serving
from .metrics import NodeMetrics
from .placement import Mesh, MeshNode
from .served_span import ServedSpan
from .span_announcer import SpanAnnouncer
from .span_server import LONGEST_WAIT_S, SpanServer
from .switchboard import Event, Heard, MeshSwitchboard, PeerDown, PeerUp, Received, Vanished

log = logging.getLogger(__name__)

FIRST_LAYER_S = 0.001  # of a peer that has measured nothing: a layer of a small model on a laptop


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a node that chooses its layers serves some of.

    Attributes:
        load: fetches and loads layers, measures a decode step there, and says how they are served and how many seconds
            it takes a layer; it runs in a thread of its own.
    """

    name: str
    fingerprint: bytes
    num_layers: int
    dtype: Dtype
    version: str
    load: Callable[[LayerRange], tuple[LoadedSpan, ServedSpan, float]]


class AutoNode:
    """One node, from its first choice on.

    Args:
        auto: its place.
        ready: is called whenever layers are served that were not before.
        loader: runs what loads; one thing at a time.
    """

    def __init__(
        self,
        switchboard: MeshSwitchboard,
        identity: Identity,
        model: ServedModel,
        auto: AutoSpan,
        metrics: NodeMetrics,
        ready: Callable[[ServedSpan], None],
        loader: Executor | None = None,
    ) -> None:
        self.auto = auto
        self._switchboard = switchboard
        self._identity = identity
        self._model = model
        self._metrics = metrics
        self._ready = ready
        self._directory = Directory()
        self._server: SpanServer | None = None
        self._loaded: tuple[LoadedSpan, ServedSpan] | None = None
        self._loading: Future[tuple[LoadedSpan, ServedSpan, float]] | None = None
        self._drain_until: float | None = None
        self._connected: set[PeerId] = set()
        self._loader = loader or ThreadPoolExecutor(1, thread_name_prefix="load")

    @property
    def served(self) -> ServedSpan | None:
        """What is served now."""
        return self._server.sessions.served if self._server is not None else None

    def run(self, should_drain: Callable[[], bool], drain_s: float) -> None:
        """Be a node until ``should_drain``; then let sessions leave for at most ``drain_s``."""
        try:
            wait_s = 0.0
            while not should_drain():
                wait_s = self.turn(min(wait_s, LONGEST_WAIT_S))
        finally:
            self._switchboard.publish(None)
            self._loader.shutdown(wait=False, cancel_futures=True)
        if self._server is not None:
            self._server.announcer = None
            self._server.run(lambda: True, drain_s)

    def turn(self, timeout_s: float) -> float:
        """Take what has happened and do what is due, computing included; for how long nothing else is."""
        for event in self._switchboard.poll(timeout_s):
            self._handle(event)
        now = self._switchboard.now()
        self._directory.expire(now)
        self._look_after_loading(now)
        self._look_after_drain(now)
        deadline = self.auto.next_deadline()
        if deadline is not None and now >= deadline:
            if self._server is not None and self._server.sessions.load.layer_us:
                self.auto.measured(self._server.sessions.load.layer_us / 1e6)
            self.auto.handle_deadline(self._mesh(), now)
        for output in self.auto.take_outputs():
            self._carry_out(output, now)
        due = self._server.work() if self._server is not None else None
        now = self._switchboard.now()
        deadlines = [one - now for one in (due, self.auto.next_deadline()) if one is not None]
        return max(min((*deadlines, LONGEST_WAIT_S)), 0.0)

    def _handle(self, event: Event) -> None:
        if isinstance(event, Heard):
            with suppress(NetworkError):  # looked at already, so this is a clock that was set meanwhile
                self._directory.put(event.blob, self._switchboard.now(), time.time(), event.via)
        elif isinstance(event, Vanished):
            self._directory.gone(event.peer)
        if isinstance(event, PeerUp):
            self._connected.add(event.peer)
        elif isinstance(event, PeerDown):
            self._connected.discard(event.peer)
        if self._server is not None:
            self._server.handle(event)
        elif isinstance(event, Received) and isinstance(event.message, Ask):
            model = self._model
            nothing = Serving(model.name, model.fingerprint, 0, 0, None, (), 0, 0, model.version)
            self._switchboard.send(event.peer, nothing)

    def _mesh(self) -> Mesh:
        """All nodes that announce layers of this model, and this one."""
        model = self._model
        entries = self._directory.matching(model.fingerprint, model.num_layers)
        nodes = [_node(one.announcement) for one in entries if one.announcement.layers is not None]
        own = replace(self.auto.own, layer_s=round(self.auto.own.layer_s * 1e6) / 1e6)  # as others see it
        return Mesh(model.num_layers, [*(one for one in nodes if one.peer != own.peer), own])

    def _carry_out(self, output: Output, now: float) -> None:
        log.info("peer=%s %s", self._switchboard.peer_id, output)
        if isinstance(output, AnnounceIntent):
            self._announce_intent(output.layers)
        elif isinstance(output, Withdraw):
            self._switchboard.publish(None)
        elif isinstance(output, Load):
            self._loading = self._loader.submit(self._model.load, output.layers)
        elif isinstance(output, AnnounceReady):
            self._serve(now)
        elif isinstance(output, Drain):
            assert self._server is not None
            self._server.announcer = None
            self._server.sessions.drain(now, output.grace_s)
            self._drain_until = now + output.grace_s
        elif isinstance(output, Unload):
            self._server = self._loaded = None

    def _serve(self, now: float) -> None:
        """Serve what is loaded; or go on with it, where a drain was called off."""
        assert self._loaded is not None
        loaded, served = self._loaded
        if self._server is not None:
            self._drain_until = None
            self._server.sessions.stay()
        else:
            pool = loaded.runner.sequences.pool
            sessions = HopSessions(served, pool.num_pages, pool.page_size)
            for peer in sorted(self._connected):
                sessions.peer_up(peer, now)
            self._server = SpanServer(self._switchboard, loaded.runner, sessions, self._metrics)
            self._ready(served)
        own = self.auto.own
        layer_us = round(own.layer_s * 1e6)
        self._server.announcer = SpanAnnouncer(self._switchboard, self._identity, served, own.max_layers, layer_us)

    def _announce_intent(self, layers: LayerRange) -> None:
        model, own = self._model, self.auto.own
        announcement = Announcement(
            public_key=self._identity.public_bytes,
            issued_at=int(time.time() * 1000),
            valid_s=120,
            model=model.name,
            fingerprint=model.fingerprint,
            num_layers=model.num_layers,
            layers=layers,
            dtype=model.dtype,
            layer_us=round(own.layer_s * 1e6),
            max_layers=own.max_layers,
            version=model.version,
        )
        self._switchboard.publish(announcement.sign(self._identity))

    def _look_after_loading(self, now: float) -> None:
        loading = self._loading
        if loading is None or not loading.done():
            return
        self._loading = None
        try:
            loaded, served, layer_s = loading.result()
        except (HopformerError, OSError, MemoryError) as error:
            log.error("layers=%s cannot be loaded: %s", self.auto.layers, error)
            self.auto.load_failed(now)
            return
        self._loaded = loaded, served
        self.auto.measured(layer_s)
        self.auto.loaded(now)

    def _look_after_drain(self, now: float) -> None:
        if self._drain_until is None or self._server is None:
            return
        if self._server.sessions.num_sessions == 0 or now >= self._drain_until:
            self._server.work()  # sessions that are left are told
            self._drain_until = None
            self.auto.drained(now)


def _node(announcement: Announcement) -> MeshNode:
    """As the planner sees it. Layers that were chosen for a node are not its to leave."""
    layer_s = announcement.layer_us / 1e6 or FIRST_LAYER_S
    return MeshNode(
        peer=announcement.peer,
        layers=announcement.layers,
        layer_s=layer_s,
        max_layers=announcement.max_layers or (len(announcement.layers) if announcement.layers else 1),
        load=announcement.num_sessions,
        is_ready=announcement.is_ready,
        is_movable=announcement.max_layers > 0,
    )
