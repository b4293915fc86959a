"""A BlocksMap in characters: a bar of layers for each route, and how many serve each layer. Pure."""

from collections.abc import Sequence

from ..errors import BlocksMapError
from ..net.blocks_map import SELF, BlocksMap
from ..net.layer_range import LayerRange

MAX_BAR = 64  # characters; models with more layers have several in one
SHORT_ID = 10  # characters of a peer id: 50 of its bits


def draw_map(blocks_map: BlocksMap, num_layers: int | None = None) -> list[str]:
    """The lines of the drawing. Routes whose layers are no range are left out."""
    rows = [(route.peer_id, layers) for route in blocks_map.routes if (layers := _layers(route.layers))]
    size = max([num_layers or 0, *(layers.end for _, layers in rows)], default=0)
    addrs = {
        peer.peer_id: ", ".join([*peer.addrs, *([f"relay {peer.relay}"] if peer.relay else [])])
        for peer in blocks_map.peers
    }
    scale = max(-(-size // MAX_BAR), 1)
    what = f"{blocks_map.model.name}, {size} layers" + (f", {scale} in a character" if scale > 1 else "")
    label = max((len(short_id(peer)) for peer, _ in rows), default=0)
    span = max((len(str(layers)) for _, layers in rows), default=0)
    lines = [what]
    for peer, layers in rows:
        bar = draw_bar([layers], size, scale)
        lines.append(f"{short_id(peer):{label}}  {layers!s:{span}}  {bar}  {addrs.get(peer, '')}".rstrip())
    lines.append(f"{'served by':{label}}  {'':{span}}  {_counts([layers for _, layers in rows], size, scale)}")
    return lines


def short_id(peer_id: str) -> str:
    """As much of a peer id as tells it from others."""
    return peer_id if peer_id == SELF or len(peer_id) <= SHORT_ID else f"{peer_id[:SHORT_ID]}.."


def _layers(text: str) -> LayerRange | None:
    try:
        return LayerRange.parse(text)
    except BlocksMapError:
        return None


def _copies(ranges: Sequence[LayerRange], size: int, scale: int) -> list[tuple[int, int]]:
    """For each character the fewest and the most that serve one of its layers."""
    copies = [sum(one.start <= layer < one.end for one in ranges) for layer in range(size)]
    return [(min(part), max(part)) for part in (copies[first : first + scale] for first in range(0, size, scale))]


def draw_bar(ranges: Sequence[LayerRange], size: int, scale: int) -> str:
    """``size`` layers, ``scale`` in a character: "#" where all of those are in ``ranges``, "+" where some are."""
    return "".join("#" if least else "+" if most else "." for least, most in _copies(ranges, size, scale))


def _counts(ranges: Sequence[LayerRange], size: int, scale: int) -> str:
    """How many serve each layer: a digit, "*" for ten and more, "!" for nobody."""
    return "".join("!" if not least else str(least) if least < 10 else "*" for least, _ in _copies(ranges, size, scale))
