"""SpanAnnouncer: what a node that serves a span tells the mesh of itself, while that changes."""

import time
from dataclasses import replace
from typing import Protocol

from .announcement import Announcement
from .hop_sessions import HopSessions
from .identity import Identity
from .layer_range import LayerRange
from .served_span import ServedSpan

CHANGED_EVERY_S = 5.0  # what changes with every step is said as seldom; what is said at once, sooner
VALID_S = 120  # the network's process says it anew, with a time of its own


class Publisher(Protocol):
    """Who says it: network_process.py."""

    def publish(self, announcement: bytes | None) -> None:
        """In place of the last one; None takes it back."""
        ...


class SpanAnnouncer:
    """One node's announcements.

    Args:
        max_layers: that this node has room for, where it chooses its layers itself.
        layer_us: microseconds that a decode step was measured to take in a layer, before the first step of a session.
    """

    def __init__(
        self, publisher: Publisher, identity: Identity, served: ServedSpan, max_layers: int = 0, layer_us: int = 0
    ) -> None:
        self._publisher = publisher
        self._identity = identity
        self._base = Announcement(
            public_key=identity.public_bytes,
            issued_at=0,
            valid_s=VALID_S,
            model="".join(one if one.isprintable() else "?" for one in served.model),  # a folder may be called anything
            fingerprint=served.fingerprint,
            num_layers=served.num_layers,
            layers=LayerRange(served.start, served.end),
            is_ready=True,
            dtype=served.dtype,
            codecs=served.codecs,
            max_layers=max_layers,
            layer_us=layer_us,
            version=served.version,
        )
        self._said: Announcement | None = None
        self._again_at = 0.0

    def turn(self, sessions: HopSessions, now: float) -> None:
        """Say what has changed, if it is time."""
        if sessions.is_draining:
            if self._said is not None:
                self._said = None
                self._publisher.publish(None)
            return
        if now < self._again_at:
            return
        self._again_at = now + CHANGED_EVERY_S
        load = sessions.load
        found = replace(
            self._base,
            free_tokens=load.free_tokens,
            layer_us=load.layer_us or self._base.layer_us,
            num_sessions=load.num_sessions,
            queue_us=load.queue_us,
        )
        if found != self._said:
            self._said = found
            self._publisher.publish(replace(found, issued_at=int(time.time() * 1000)).sign(self._identity))
