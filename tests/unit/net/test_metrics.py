"""What a node tells at /metrics and /healthz."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from hopformer.net import metrics as metrics_module
from hopformer.net.identity import PeerId
from hopformer.net.metrics import MetricsServer, NodeMetrics
from hopformer.net.switchboard import PeerStats

PEER = PeerId(b"p" * 22)


@pytest.fixture
def metrics() -> NodeMetrics:
    return NodeMetrics()


@pytest.fixture
def addr(metrics: NodeMetrics) -> Iterator[str]:
    server = MetricsServer(metrics, "127.0.0.1", 0)
    server.start()
    yield server.addr
    server.close()


def get(addr: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{addr}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def lines(addr: str) -> list[str]:
    status, text = get(addr, "/metrics")
    assert status == 200
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_what_was_counted_is_told(metrics: NodeMetrics, addr: str) -> None:
    metrics.steps.labels("decode").inc()
    metrics.tokens.labels("decode").inc(3)
    metrics.batch_size.observe(2)
    metrics.refusals.labels("busy").inc()
    metrics.turned(num_sessions=4, num_waiting=5, pages=(6, 7), is_draining=False)
    with metrics.stage("forward"):
        pass
    found = lines(addr)
    for line in (
        'hopformer_steps_total{kind="decode"} 1.0',
        'hopformer_tokens_total{kind="decode"} 3.0',
        'hopformer_batch_size_bucket{le="2.0"} 1.0',
        'hopformer_refusals_total{reason="busy"} 1.0',
        "hopformer_sessions 4.0",
        "hopformer_steps_waiting 5.0",
        'hopformer_kv_pages{state="used"} 6.0',
        'hopformer_kv_pages{state="free"} 7.0',
        'hopformer_step_stage_seconds_count{stage="forward"} 1.0',
    ):
        assert line in found


def test_peers_are_told_while_they_are_connected(metrics: NodeMetrics, addr: str) -> None:
    metrics.peers({PEER: PeerStats("127.0.0.1:1", 0.25, 10, 20, 30)})
    found = lines(addr)
    for name, value in (("rtt_seconds", 0.25), ("sent_bytes", 10), ("received_bytes", 20), ("queued_bytes", 30)):
        assert f'hopformer_peer_{name}{{peer="{PEER}"}} {float(value)}' in found
    metrics.peers({})
    assert not any("peer=" in line for line in lines(addr))


def test_health_is_ok_until_the_node_drains_or_stalls(
    metrics: NodeMetrics, addr: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert get(addr, "/healthz") == (200, json.dumps({"status": "ok"}))
    metrics.turned(0, 0, (0, 1), is_draining=True)
    assert get(addr, "/healthz") == (503, json.dumps({"status": "draining"}))
    monkeypatch.setattr(metrics_module, "STALLED_AFTER_S", -1.0)
    assert get(addr, "/healthz") == (503, json.dumps({"status": "stalled"}))


def test_other_paths_say_what_is_there(addr: str) -> None:
    status, text = get(addr, "/")
    assert status == 404 and "/metrics" in text


def test_a_taken_address_is_an_error_and_one_that_is_closed_is_free(metrics: NodeMetrics) -> None:
    first = MetricsServer(metrics, "127.0.0.1", 0)
    port = int(first.addr.rpartition(":")[2])
    with pytest.raises(OSError):
        MetricsServer(metrics, "127.0.0.1", port)
    first.close()
    MetricsServer(metrics, "127.0.0.1", port).close()


def test_two_nodes_in_a_process_count_apart() -> None:
    one, other = NodeMetrics(), NodeMetrics()
    one.steps.labels("decode").inc()
    assert other.registry.get_sample_value("hopformer_steps_total", {"kind": "decode"}) == 0
