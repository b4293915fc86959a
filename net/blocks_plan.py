"""Which peer should run which layers: a plan from what each has room for and how fast it is. Pure.

A token passes all layers one after the other, so it is fastest where the fastest peers run as many as they have room
for; that also makes the fewest hops. Peers that are then left over become replicas, where there are fewest so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import BlocksMapError
from .blocks_map import SELF, BlocksMap, MapModel, MapPeer, MapRoute
from .layer_range import LayerRange

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Provider:
    """A peer that could serve layers; its id may be "self".

    Attributes:
        memory_bytes: that it gives for weights, keys and values.
        layers_per_s: decode steps of one layer that it runs in a second.
        rtt_s: round trip from who reads the map; None where nobody knows. The plan does not heed it.
    """

    peer: MapPeer
    memory_bytes: int
    layers_per_s: float
    rtt_s: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A map, and what it promises.

    Attributes:
        step_s: seconds that the layers take for a token, without the network.
        num_unused: providers that have no room for a layer.
    """

    blocks_map: BlocksMap
    step_s: float
    num_unused: int


def plan_blocks(model: MapModel, num_layers: int, layer_bytes: int, providers: Sequence[Provider]) -> Plan:
    """A map for ``model``, of which a layer with its keys and values takes ``layer_bytes``.

    Raises:
        BlocksMapError: all providers together have no room for the model.
    """
    room = [min(one.memory_bytes // layer_bytes, num_layers) for one in providers]
    fastest_first = sorted(range(len(providers)), key=lambda index: -providers[index].layers_per_s)
    count = _counts(room, fastest_first, num_layers, layer_bytes)
    spans: dict[int, LayerRange] = {}
    start = 0
    for index, num_own in enumerate(count):  # the file's order is the route's
        if num_own:
            spans[index] = LayerRange(start, start + num_own)
            start += num_own
    step_s = sum(len(layers) / providers[index].layers_per_s for index, layers in spans.items())
    copies = [1] * num_layers
    for index in fastest_first:
        if room[index] and index not in spans:
            spans[index] = _rarest(copies, room[index])
            for layer in range(spans[index].start, spans[index].end):
                copies[layer] += 1
    routes = tuple(MapRoute(str(layers), providers[index].peer.peer_id) for index, layers in spans.items())
    peers = tuple(one.peer for one in providers if one.peer.peer_id.lower() != SELF)
    return Plan(BlocksMap(1, model, peers, routes), step_s, sum(not one for one in room))


def _counts(room: Sequence[int], fastest_first: Sequence[int], num_layers: int, layer_bytes: int) -> list[int]:
    """How many layers each provider runs."""
    if sum(room) < num_layers:
        missing = num_layers - sum(room)
        raise BlocksMapError(
            f"the peers have room for {sum(room)} of {num_layers} layers; "
            f"{missing * layer_bytes / GIB:.2f} GiB more are needed, or a smaller --max-context or --dtype"
        )
    count = [0] * len(room)
    left = num_layers
    for index in fastest_first:
        count[index] = min(room[index], left)
        left -= count[index]
    return count


def _rarest(copies: Sequence[int], size: int) -> LayerRange:
    """The first range of ``size`` layers that have the fewest copies in all."""
    starts = range(len(copies) - size + 1)
    start = min(starts, key=lambda one: sum(copies[one : one + size]))
    return LayerRange(start, start + size)
