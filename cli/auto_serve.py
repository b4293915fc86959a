"""``hopformer serve --layers auto``: from flags to a node that chooses its layers, and moves where they are lacking."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .. import __version__
from ..errors import DeviceError
from ..llama.config import load_config
from ..llama.fingerprint import fingerprint
from ..llama.load import find_device, find_dtype
from ..llama.load_span import LoadedSpan
from ..llama.node_capacity import estimate_layer_s, layers_that_fit, measure_layer_s
from ..net.activations import wire_dtype
from ..net.auto_node import AutoNode, ServedModel
from ..net.auto_span import AutoSpan
from ..net.identity import Identity, PeerId
from ..net.layer_range import LayerRange
from ..net.metrics import NodeMetrics
from ..net.network_process import MeshPart, ProcessSwitchboard
from ..net.placement import MeshNode
from ..net.served_span import ServedSpan
from .interrupts import terminate_noted, terminate_unwinds
from .leaving import DRAIN_S, leave_in_time
from .loading import fetch
from .node_flags import NodeFlags, SpanFlags
from .served import load_served, public_name

log = logging.getLogger(__name__)

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class AutoNetwork:
    """Who the node is and where it is reached: the arguments of ProcessSwitchboard.start."""

    identity: Identity
    listen: Sequence[str]
    allow: Sequence[PeerId] | None
    part: MeshPart


def serve_auto(
    model: str,
    node: NodeFlags,
    span: SpanFlags,
    network: AutoNetwork,
    metrics: NodeMetrics,
    say_ready: Callable[[ProcessSwitchboard, ServedSpan], None],
) -> None:
    """Serve what the mesh lacks most until SIGTERM has come. ``say_ready`` is called once, with the first layers.

    Raises:
        HopformerError: the model cannot be used, not one layer fits, or the network cannot be started.
    """
    with terminate_unwinds():
        own, served_model = _look(model, node, span, network.identity.peer_id)
        switchboard = ProcessSwitchboard.start(network.identity, network.listen, network.allow, mesh=network.part)
    is_first = True

    def ready(served: ServedSpan) -> None:
        nonlocal is_first
        if is_first:
            say_ready(switchboard, served)
        is_first = False
        log.info("peer=%s serves layers=%s:%s", switchboard.peer_id, served.start, served.end)

    try:
        with terminate_noted(lambda: leave_in_time(switchboard)) as terminated:
            auto = AutoSpan(own, switchboard.now())
            AutoNode(switchboard, network.identity, served_model, auto, metrics, ready).run(terminated, DRAIN_S)
    finally:
        switchboard.close()


def _look(model: str, node: NodeFlags, span: SpanFlags, own: PeerId) -> tuple[MeshNode, ServedModel]:
    """What this machine can do for a model, before any of its layers is loaded."""
    folder = fetch(model, (0, 0))
    config, options = load_config(folder), span.options()
    memory_bytes = None if span.memory is None else int(span.memory * _GIB)
    max_layers = layers_that_fit(config, options, memory_bytes)
    if max_layers < 1:
        raise DeviceError(
            f"not one layer of {model} fits with its keys and values; give it more --memory, a smaller --max-context, "
            "or --quantize int8"
        )
    layer_s = estimate_layer_s(config, options)
    log.info("model=%s has room for layers=%s at layer_ms=%.3f", model, max_layers, layer_s * 1e3)

    def load(layers: LayerRange) -> tuple[LoadedSpan, ServedSpan, float]:
        loaded, served = load_served(model, (layers.start, layers.end), node, span)
        return loaded, served, measure_layer_s(loaded.runner)

    served_model = ServedModel(
        name=public_name(model),
        fingerprint=fingerprint(folder, 0, 0),
        num_layers=config.num_layers,
        dtype=wire_dtype(find_dtype(options.dtype, config, find_device(options.device))),
        version=__version__,
        load=load,
    )
    return MeshNode(own, None, layer_s, max_layers, is_ready=False), served_model
