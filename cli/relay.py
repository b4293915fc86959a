"""``hopformer relay``: from flags to a relay that runs until it is told to stop."""

import asyncio
import json
import logging
from collections.abc import Callable

from ..net.identity import Identity
from ..net.relay_metrics import RelayMetrics
from ..net.relay_node import RelayConfig, RelayNode
from .interrupts import terminate_noted
from .metrics_http import metrics_server
from .node_flags import split_addr
from .node_key import key_in_use, load_key
from .relay_flags import RelayFlags
from .reporting import EXIT_DONE

log = logging.getLogger(__name__)


def relay(flags: RelayFlags) -> int:
    """Relay until SIGTERM or Ctrl-C has come; returns the exit code."""
    identity = load_key(flags.identity)
    config = flags.config(identity.peer_id)
    http_at = None if flags.metrics is None else split_addr("--metrics", flags.metrics)
    metrics = RelayMetrics()
    logging.getLogger("quic").setLevel(logging.CRITICAL)  # aioquic warns of whatever a stranger sends
    with key_in_use(flags.identity), metrics_server(metrics, http_at) as http, terminate_noted() as terminated:
        asyncio.run(_run(identity, config, metrics, http, terminated))
    log.info("peer=%s is done", identity.peer_id)
    return EXIT_DONE


async def _run(
    identity: Identity, config: RelayConfig, metrics: RelayMetrics, http: str | None, stopped: Callable[[], bool]
) -> None:
    node = RelayNode(identity, config, metrics)
    ready = {"ready": True, "peer_id": str(node.peer_id), "addrs": list(node.addrs), "http": http}
    print(json.dumps(ready), flush=True)
    await node.run(stopped)
