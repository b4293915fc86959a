"""What a planned map promises, in lines for a reader: tokens/s, what each hop takes, and when one machine is enough."""

from collections.abc import Iterator, Sequence

from ..net.blocks_map import SELF
from ..net.blocks_plan import Plan, Provider
from ..net.expectation import Expectation, expect
from ..net.identity import PEER_DIGEST_BYTES, PeerId
from ..net.layer_range import LayerRange
from ..net.placement import MeshNode
from .map_drawing import short_id

_OWN = PeerId(bytes(PEER_DIGEST_BYTES))  # stands for "self", whose id a list of peers does not know


def explain_plan(plan: Plan, providers: Sequence[Provider], num_layers: int, layer_bytes: int) -> list[str]:
    """The lines. Round trips that are not known count as 0, and it is said."""
    nodes = _nodes(plan, providers, num_layers, layer_bytes)
    found = expect(num_layers, nodes.values(), _OWN)
    assert found is not None, "a plan has no holes"
    names = {node.peer: short_id(name) for name, node in nodes.items()}
    head = (
        f"{plan.blocks_map.model.name}, {num_layers} layers: one session decodes {found.tokens_per_s:.1f} tokens/s, "
        f"{_ms(found.step_s)} a token"
    )
    unknown = [names[node.peer] for name, node in nodes.items() if name != SELF and not _is_known(providers, name)]
    several = expect(num_layers, (one for one in nodes.values() if one.max_layers < num_layers), _OWN)
    lines = [head, *_hops(found, names), *_alone(found, several, names, num_layers)]
    if unknown:
        lines.append(f"no round trip is given for {', '.join(unknown)}, and counts as 0: add rtt_ms")
    return lines


def _nodes(plan: Plan, providers: Sequence[Provider], num_layers: int, layer_bytes: int) -> dict[str, MeshNode]:
    """By id, the providers as the plan has them."""
    layers = {route.peer_id.lower(): LayerRange.parse(route.layers) for route in plan.blocks_map.routes}
    nodes = {}
    for one in providers:
        name = one.peer.peer_id.lower()
        peer = _OWN if name == SELF else PeerId.parse(name)
        room = min(one.memory_bytes // layer_bytes, num_layers)
        rtt_s = 0.0 if name == SELF else one.rtt_s or 0.0
        nodes[name] = MeshNode(peer, layers.get(name), 1 / one.layers_per_s, room, rtt_s)
    return nodes


def _is_known(providers: Sequence[Provider], name: str) -> bool:
    return any(one.rtt_s is not None for one in providers if one.peer.peer_id.lower() == name)


def _hops(found: Expectation, names: dict[PeerId, str]) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [("hop", "layers", "a layer", "in layers", "network", "together", "")]
    for hop in found.hops:
        share = f"{100 * hop.step_s / found.step_s:.0f}%" + (", the bottleneck" if hop is found.bottleneck else "")
        seconds = (hop.layers_s / len(hop.layers), hop.layers_s, hop.network_s, hop.step_s)
        rows.append((names[hop.peer], str(hop.layers), *map(_ms, seconds), share))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, layers, *times, share in rows:
        right = [cell.rjust(width) for cell, width in zip(times, widths[2:-1], strict=True)]
        yield "  ".join([name.ljust(widths[0]), layers.ljust(widths[1]), *right, share]).rstrip()


def _alone(found: Expectation, several: Expectation | None, names: dict[PeerId, str], num_layers: int) -> Iterator[str]:
    """Whether one machine would do. ``several``: what the best route gives over those that have no room for all."""
    route = f"{found.tokens_per_s:.1f}"
    if found.alone is None:
        yield f"no machine has room for all {num_layers} layers"
    elif len(found.hops) == 1 and found.hops[0].peer == found.alone.peer:
        others = "" if several is None else f"; over several machines it would be {several.tokens_per_s:.1f} tokens/s"
        yield f"{names[found.alone.peer]} alone runs all {num_layers} layers, which is fastest{others}"
    else:
        speed = f"{1 / found.alone.step_s:.1f} tokens/s"
        faster = "" if found.is_alone_faster else ", which is faster"
        yield (
            f"{names[found.alone.peer]} alone would run all {num_layers} layers at {speed}; "
            f"this route gives {route}{faster}"
        )
    if found.with_room is not None:
        yield (
            f"{names[found.with_room.peer]} has room for {found.with_room.max_layers} of {num_layers} layers; with all "
            f"of them it would run {1 / found.with_room.step_s:.1f} tokens/s alone, and this route gives {route}: "
            "a smaller --max-context or --dtype makes room"
        )


def _ms(seconds: float) -> str:
    """0.81 ms, 12.3 ms."""
    return f"{seconds * 1000:.2f} ms" if seconds < 0.01 else f"{seconds * 1000:.1f} ms"
