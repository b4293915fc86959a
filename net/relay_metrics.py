"""What a relay tells Prometheus, at /metrics, and whoever looks after it, at /healthz; served as a node's are."""

import time
from typing import Any

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

from .metrics import STALLED_AFTER_S
from .relay_desk import RelayDesk


class RelayMetrics:
    """The figures of one relay."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry}
        self._connected = Gauge("hopformer_relay_peers", "Peers that are connected.", **own)
        self._registered = Gauge("hopformer_relay_registered", "Peers that others may reach.", **own)
        self._channels = Gauge("hopformer_relay_channels", "Channels between two peers.", **own)
        self._announced = Gauge("hopformer_relay_announcements", "Peers that announce what they serve.", **own)
        self._counts = _Counts()
        self.registry.register(self._counts)
        self._turned_at = time.monotonic()

    def turned(self, desk: RelayDesk) -> None:
        """The relay made a turn."""
        self._turned_at = time.monotonic()
        self._connected.set(desk.num_connected)
        self._registered.set(desk.table.num_registered)
        self._channels.set(desk.table.num_channels)
        self._announced.set(len(desk.directory.entries()))
        table = desk.table
        self._counts.values = (table.num_passed, table.passed_bytes, table.num_dropped)

    def health(self) -> str:
        """ "ok", or "stalled" when the relay has made no turn for long."""
        return "stalled" if time.monotonic() - self._turned_at > STALLED_AFTER_S else "ok"


class _Counts(Collector):
    """What only grows, and is counted elsewhere."""

    _NAMES = (
        ("hopformer_relay_datagrams", "Datagrams passed on."),
        ("hopformer_relay_bytes", "Bytes of the datagrams passed on."),
        ("hopformer_relay_dropped", "Datagrams dropped, as a channel was beyond its rate or its queue was full."),
    )

    def __init__(self) -> None:
        self.values = (0, 0, 0)

    def collect(self) -> Any:
        """See Collector."""
        for (name, documentation), value in zip(self._NAMES, self.values, strict=True):
            yield CounterMetricFamily(name, documentation, value=value)
