"""The table of peers: live while they are connected, and as lines for chat's ``peers``."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from .progress import can_draw

if TYPE_CHECKING:
    from ..net.caller_node import CallerNode
    from ..net.peer_table import PeerEntry
    from ..net.pipeline import RouteHop

_COLUMNS = ("", "peer", "layers", "address", "RTT", "step", "queue", "out/in", "state")
_KIB = 1024
_ID_CHARACTERS = 10  # of a peer id's 40, so that a line fits a terminal; two peers of a map never share them


def peer_lines(node: "CallerNode", route: Sequence["RouteHop"]) -> list[str]:
    """The table as text; "*" marks who is on the route of the last answer."""
    rows = [_COLUMNS, *_rows(node, route)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(_COLUMNS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def connecting_table(node: "CallerNode") -> AbstractContextManager[Callable[[], None] | None]:
    """A table on stderr that is drawn anew whenever the yielded function is called, and goes away at the end."""
    return _connecting_table(node) if can_draw() else nullcontext(None)


@contextmanager
def _connecting_table(node: "CallerNode") -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    def drawn() -> Table:
        table = Table(box=None, pad_edge=False)
        for column in _COLUMNS[1:]:
            table.add_column(column, no_wrap=column == "peer")
        for row in _rows(node, ()):
            table.add_row(*row[1:])
        return table

    with Live(drawn(), console=Console(stderr=True), transient=True) as live:
        yield lambda: live.update(drawn())


def _rows(node: "CallerNode", route: Sequence["RouteHop"]) -> Iterator[tuple[str, ...]]:
    used = {hop.peer: hop.layers for hop in route}
    if None in used:
        local = ", ".join(str(hop.layers) for hop in route if hop.peer is None)
        yield ("*", "local", local, "", "", "", "", "", "here")
    for peer, entry in node.peers.entries.items():
        stats = entry.stats if entry.is_connected else None
        layers = used.get(peer) or entry.layers or entry.listed
        step_s = None if entry.layer_s is None or not layers else entry.layer_s * len(layers)
        yield (
            "*" if peer in used else "",
            f"{str(peer)[:_ID_CHARACTERS]}..",
            str(layers or ""),
            stats.addr if stats else ", ".join(entry.addrs),
            f"{stats.rtt_s * 1000:.1f} ms" if stats else "",
            "" if step_s is None else f"{step_s * 1000:.1f} ms",
            f"{entry.queue_s * 1000:.1f} ms" if entry.num_steps else "",
            f"{stats.sent_bytes / _KIB:.0f}/{stats.received_bytes / _KIB:.0f} KiB" if stats else "",
            _state(entry),
        )


def _state(entry: "PeerEntry") -> str:
    if entry.dialled_at is not None:
        return "connecting"
    return entry.problem or ("leaving" if entry.is_leaving else "ready")
