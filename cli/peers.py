"""``hopformer peers``: who is on the local network and at the relay, and what they serve.

A table that lives in a terminal, the same once elsewhere, or one JSON object. What others announce is shown as plain
text: announcements have no characters that do not print, and none of theirs are taken for markup.
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from ..net.directory import Entry, Via
from ..net.discovery import Discovery
from ..net.mesh_view import MAX_NAMED, offers
from .map_drawing import draw_bar, short_id
from .mesh_flags import MeshFlags, default_listen
from .node_key import free_key
from .reporting import EXIT_DONE

if TYPE_CHECKING:
    from rich.console import RenderableType

SETTLE_S = 3.0  # two questions to the local network, a second apart, and the half second that answers may take
TURN_S = 0.5  # ages are shown in seconds

_MAX_BAR = 16  # characters: the table has ten columns more
_ALL_COLUMNS = 100  # characters of a terminal that all columns fit into; a narrower one shows none of these:
_WIDE_ONLY = ("bar", "version")
_WAYS = {Via.LAN: "LAN", Via.RELAY: "relay"}


@dataclass(frozen=True, slots=True)
class PeerRow:
    """A line of the table."""

    peer: str
    model: str
    layers: str
    bar: str
    state: str
    layer: str
    tokens: str
    load: str
    where: str
    version: str
    age: str


_TITLES = {"bar": "", "layer": "ms/layer"}  # others have their field's name
_COLUMNS = {one.name: _TITLES.get(one.name, one.name) for one in fields(PeerRow)}


def peers(mesh: MeshFlags, *, as_json: bool, once: bool) -> int:
    """Look, and print who is announced; returns the exit code.

    Raises:
        HopformerError: a flag means nothing, or there is no network to look at.
    """
    from ..net.identity import Identity
    from ..net.network_process import ProcessSwitchboard
    from ..net.switchboard_discovery import SwitchboardDiscovery

    looking = mesh if mesh.finds_peers else replace(mesh, lan=True)
    with free_key(None) if looking.relay else nullcontext(Identity.generate()) as identity:
        part = looking.part(identity.peer_id, is_watching=True)
        switchboard = ProcessSwitchboard.start(identity, default_listen(part.relays, lan=looking.lan), (), mesh=part)
        for problem in switchboard.relay_problems:
            print(f"hopformer: {problem}", file=sys.stderr)
        try:
            return show_peers(SwitchboardDiscovery(switchboard), as_json=as_json, once=once)
        finally:
            switchboard.close()


def show_peers(discovery: Discovery, *, as_json: bool = False, once: bool = False) -> int:
    """Print who is announced; in a terminal for as long as it takes until Ctrl-C, unless ``once``.

    Raises:
        NetworkError: there is nothing to hear from any more.
    """
    if as_json or once or not _is_terminal():
        end = discovery.now() + SETTLE_S
        while (remaining_s := end - discovery.now()) > 0:
            discovery.turn(remaining_s)
        found = discovery.entries()
        print(json.dumps(peers_json(found, discovery.now())) if as_json else "\n".join(_lines(found, discovery.now())))
        return EXIT_DONE
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        try:
            while True:
                live.update(_table(discovery.entries(), discovery.now(), live.console.width), refresh=True)
                discovery.turn(TURN_S)
        except KeyboardInterrupt:  # the only way to end it, so it is no failure
            return EXIT_DONE


def peer_rows(entries: Iterable[Entry], now: float) -> list[PeerRow]:
    """The table's lines, those of one model together, in the order of their layers."""
    return [_row(one, now) for one in sorted(entries, key=_order)]


def peers_json(entries: Iterable[Entry], now: float) -> dict[str, list[dict[str, Any]]]:
    """The same for scripts, with nothing shortened."""
    return {"peers": [_json(one, now) for one in sorted(entries, key=_order)]}


def _order(entry: Entry) -> tuple[str, int, int, str]:
    said = entry.announcement
    start, end = (said.layers.start, said.layers.end) if said.layers is not None else (said.num_layers, said.num_layers)
    return said.model, start, end, str(said.peer)


def _row(entry: Entry, now: float) -> PeerRow:
    said = entry.announcement
    scale = max(-(-said.num_layers // _MAX_BAR), 1)
    bar = draw_bar([said.layers] if said.layers is not None else [], said.num_layers, scale)
    queue = f" ({said.queue_us / 1000:.1f} ms)" if said.queue_us else ""
    return PeerRow(
        peer=short_id(str(said.peer)),
        model=said.model,
        layers=f"{said.layers if said.layers is not None else 'none'} of {said.num_layers}",
        bar=bar if said.is_ready else bar.replace("#", "-").replace("+", "-"),
        state="ready" if said.is_ready else "loading" if said.layers is not None else "choosing",
        layer=f"{said.layer_us / 1000:.2f}" if said.layer_us else "",
        tokens=_short_number(said.free_tokens) if said.is_ready else "",
        load=f"{said.num_sessions}{queue}" if said.is_ready else "",
        where=", ".join(_ways(entry)),
        version=said.version,
        age=f"{max(now - entry.heard_at, 0):.0f} s",
    )


def _json(entry: Entry, now: float) -> dict[str, Any]:
    said = entry.announcement
    return {
        "peer_id": str(said.peer),
        "model": said.model,
        "fingerprint": said.fingerprint.hex(),
        "num_layers": said.num_layers,
        "layers": None if said.layers is None else str(said.layers),
        "ready": said.is_ready,
        "dtype": None if said.dtype is None else said.dtype.name.lower(),
        "codecs": [one.name.lower() for one in said.codecs],
        "network": None if said.network is None else str(said.network),
        "free_tokens": said.free_tokens,
        "layer_us": said.layer_us,
        "num_sessions": said.num_sessions,
        "queue_us": said.queue_us,
        "max_layers": said.max_layers,
        "version": said.version,
        "addrs": list(said.addrs),
        "relays": list(said.relays),
        "where": [one.lower() for one in _ways(entry)],
        "age_s": round(max(now - entry.heard_at, 0), 3),
        "expires_in_s": round(max(entry.expires_at - now, 0), 3),
    }


def _ways(entry: Entry) -> list[str]:
    return [name for via, name in _WAYS.items() if via in entry.via]


def _short_number(number: int) -> str:
    """Four digits at most, and what they are multiplied with: 131k is 131,072."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if number < 10_000:
            return f"{number}{unit}"
        number //= 1000
    return f"{number}E"


def _summary(entries: Sequence[Entry]) -> list[str]:
    """What the mesh has of which model, for below the table."""
    found = offers(entries)
    more = [f"and {len(found) - MAX_NAMED} models more"] if len(found) > MAX_NAMED else []
    return [str(one) for one in found[:MAX_NAMED]] + more or ["nobody is announced"]


def _lines(entries: Sequence[Entry], now: float) -> list[str]:
    rows = [tuple(_COLUMNS.values()), *map(astuple, peer_rows(entries, now))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return ([*table, ""] if entries else []) + _summary(entries)


def _table(entries: Sequence[Entry], now: float, width: int) -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    columns = [name for name in _COLUMNS if width >= _ALL_COLUMNS or name not in _WIDE_ONLY]
    table = Table(box=None, pad_edge=False, collapse_padding=True, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(_COLUMNS[name], no_wrap=name not in ("model", "where"), overflow="ellipsis")
    for row in peer_rows(entries, now):
        style = "" if row.state == "ready" else "dim"
        table.add_row(*(Text(getattr(row, name), style) for name in columns))
    summary = Text("\n".join([*_summary(entries), "Ctrl-C ends this"]))
    return Group(table, Text(), summary) if entries else summary


def _is_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")
