"""What a relay tells at /metrics and /healthz, by a real relay's desk and table."""

import asyncio

import pytest
from prometheus_client import generate_latest

from hopformer.net import relay_metrics
from hopformer.net.identity import Identity
from hopformer.net.metrics import STALLED_AFTER_S
from hopformer.net.relay_metrics import RelayMetrics
from hopformer.net.relay_node import RelayConfig, RelayNode

ANNA, BELA = Identity.generate().peer_id, Identity.generate().peer_id
CHANNEL = bytes(7)


def figures(metrics: RelayMetrics) -> dict[str, float]:
    lines = generate_latest(metrics.registry).decode().splitlines()
    return {name: float(value) for name, value in (line.split() for line in lines if not line.startswith("#"))}


def test_what_is_counted_is_told() -> None:
    metrics = RelayMetrics()

    async def relay() -> None:
        node = RelayNode(Identity.generate(), RelayConfig(("127.0.0.1:0",)), metrics)
        table = node.desk.table
        table.register(ANNA)
        table.register(BELA)
        table.reach(ANNA, BELA, CHANNEL, 0.0)
        table.accept(BELA, CHANNEL)
        table.passes(CHANNEL, 1200, 0.0, from_asker=True)
        table.passes(CHANNEL, 1 << 40, 0.0, from_asker=True)
        table.take_outbox()
        node.tick()
        node.close()

    asyncio.run(relay())
    told = figures(metrics)
    assert {name: value for name, value in told.items() if not name.endswith("_created")} == {
        "hopformer_relay_peers": 0.0,
        "hopformer_relay_registered": 2.0,
        "hopformer_relay_channels": 1.0,
        "hopformer_relay_announcements": 0.0,
        "hopformer_relay_datagrams_total": 1.0,
        "hopformer_relay_bytes_total": 1200.0,
        "hopformer_relay_dropped_total": 1.0,
    }


def test_no_label_names_a_peer() -> None:
    assert b"{" not in generate_latest(RelayMetrics().registry)


def test_a_relay_that_makes_no_turns_is_stalled(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = RelayMetrics()
    assert metrics.health() == "ok"
    now = relay_metrics.time.monotonic()
    monkeypatch.setattr(relay_metrics.time, "monotonic", lambda: now + STALLED_AFTER_S + 1)
    assert metrics.health() == "stalled"
