"""``hopformer map join``: a BlocksMap of the lines that ``hopformer serve`` prints when it is ready."""

import sys
from pathlib import Path

import msgspec

from ..errors import BlocksMapError
from ..net.blocks_map import SELF, BlocksMap, MapModel, MapPeer, MapRoute, faults
from ..net.layer_range import LayerRange
from .map_drawing import draw_map
from .options import parse_layers

MAX_LINE_BYTES = 1 << 16  # a peer id, sixteen addresses and a range are a thousand


class _Ready(msgspec.Struct):
    """What of a ready line a map needs; it may say more."""

    peer_id: str
    addrs: tuple[str, ...]
    layers: str
    relays: tuple[str, ...] = ()


def join(model: str, files: list[Path], own: str | None, output: Path | None) -> None:
    """Write the map of the nodes whose ready lines are in ``files``, and draw it where it does not go to stdout.

    ``own`` are layers, such as "0:4", that the node which reads the map runs itself.

    Raises:
        BlocksMapError: a file holds no such line, or the nodes do not go together.
    """
    nodes = [_read(path) for path in files]
    peers = {node.peer_id: MapPeer(node.peer_id, node.addrs, node.relays[0] if node.relays else None) for node in nodes}
    routes = tuple(MapRoute(node.layers, node.peer_id) for node in nodes)
    if own is not None:
        start, end = parse_layers(own)
        routes = (MapRoute(f"{start}:{end}", SELF), *routes)
    made = BlocksMap(1, MapModel(model), tuple(peers.values()), routes)
    num_layers = max((LayerRange.parse(route.layers).end for route in routes), default=0)
    wrong = faults(made, num_layers)
    if wrong:
        raise BlocksMapError(wrong[0])
    if output is None:
        sys.stdout.write(made.to_json())
    else:
        output.write_text(made.to_json(), encoding="utf-8")
        print("\n".join(draw_map(made, num_layers)))


def _read(path: Path) -> _Ready:
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.readline(MAX_LINE_BYTES), type=_Ready)
    except OSError as error:
        raise BlocksMapError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BlocksMapError(f"{path} does not begin with the line of a node that is ready: {error}") from error
