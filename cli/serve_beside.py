"""Serving layers to peers beside a chat: ``hopformer chat --serve A:B``. The chat has the terminal, a thread serves."""

import json
import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ..errors import NetworkError
from ..llama.load import LoadedModel
from ..llama.load_span import share_span
from ..net.identity import Identity
from ..net.messages import Codec
from ..net.metrics import NodeMetrics
from ..net.network_process import MeshPart, ProcessSwitchboard
from ..net.shared_switchboard import Role, SharedSwitchboard
from ..net.span_announcer import SpanAnnouncer
from ..net.span_server import SpanServer
from ..net.switchboard import MeshSwitchboard, Switchboard
from .leaving import DRAIN_S
from .options import LoadFlags, parse_layers
from .serve import make_server, ready
from .serve_beside_flags import ServeBesideFlags
from .served import announced

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Serving:
    """What the thread that serves has: the node's key, and the network for it alone."""

    identity: Identity
    board: MeshSwitchboard


@contextmanager
def boards(
    flags: ServeBesideFlags, identity: Identity, listen: Sequence[str], part: MeshPart
) -> Iterator[tuple[MeshSwitchboard, Serving | None]]:
    """The network as the chat sees it, and as the thread that serves does, if there is one."""
    if flags.serve is None:
        board = ProcessSwitchboard.start(identity, listen, allow=(), mesh=part)
        try:
            yield board, None
        finally:
            board.close()
        return
    node = flags.node(listen)
    allowed = node.allowed(node.listen, is_member=part.network is not None)
    shared = SharedSwitchboard(ProcessSwitchboard.start(identity, node.listen, allowed, mesh=part))
    shared.start()
    try:
        yield shared.ports[Role.CALLER], Serving(identity, shared.ports[Role.SERVER])
    finally:
        shared.close()


@contextmanager
def serving_beside(
    flags: ServeBesideFlags, model: LoadedModel, load: LoadFlags, codecs: Sequence[Codec], serving: Serving | None
) -> Iterator[None]:
    """Serve as ``flags`` say until the context ends, and say so on stderr; nothing where they ask for nothing."""
    if flags.serve is None or serving is None:
        yield
        return
    board = serving.board
    server = _make_server(flags.serve, model, load, codecs, board)
    server.announcer = SpanAnnouncer(board, serving.identity, server.sessions.served)
    is_leaving = threading.Event()
    thread = threading.Thread(target=_run, args=(server, is_leaving), name="serving", daemon=True)
    thread.start()
    print(json.dumps(ready(board, server.sessions.served, None)), file=sys.stderr, flush=True)
    try:
        yield
    finally:
        is_leaving.set()
        thread.join()


def _make_server(
    layers: str, model: LoadedModel, load: LoadFlags, codecs: Sequence[Codec], board: Switchboard
) -> SpanServer:
    loaded = share_span(model, parse_layers(layers), load.options())
    return make_server(board, loaded, announced(model.folder.name, model.folder, loaded, codecs), NodeMetrics())


def _run(server: SpanServer, is_leaving: threading.Event) -> None:
    """The thread. What ends it does not end the chat."""
    served = server.sessions.served
    try:
        server.run(is_leaving.is_set, DRAIN_S)
    except NetworkError as error:
        log.error("layers=%s:%s are served no more: %s", served.start, served.end, error)
    except Exception:
        log.exception("layers=%s:%s are served no more", served.start, served.end)
