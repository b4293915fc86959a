"""CallerNode: the sessions of a node that calls, over its switchboard. It moves events, messages and rows; whom to ask
is peer_table.py's to say, and what to send caller_session.py's.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from .caller_mesh import CallerMesh
from .caller_session import CallerSession, StepOut, Terms
from .identity import PeerId
from .layer_range import LayerRange
from .messages import Ask, Drawn, Goodbye, Message, Open, Serving, SessionKey, Step, ToLastHop
from .peer_table import PeerTable
from .row_layout import Payload, RowLayout
from .switchboard import Event, Heard, PeerDown, PeerUp, Received, Switchboard, Vanished

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 0.25  # so that a key or a signal that stops an answer is obeyed soon


class RowSource(Protocol):
    """Where the rows are that a session sends."""

    def payload(self, start: int, stop: int) -> Payload:
        """The rows of the positions ``start .. stop``, packed."""
        ...


class Drawer(Protocol):
    """What a last hop must be told that draws tokens."""

    def opened(self) -> None:
        """A hop begins anew, and may know nothing."""
        ...

    def words(self, key: SessionKey, step: int, stop: int) -> list[ToLastHop]:
        """Of the step with this number, whose last token is at ``stop - 1``."""
        ...


@dataclass(slots=True, eq=False)
class _Line:
    """A session, where its rows come from, where what arrives goes, and what the last hop draws, if it does."""

    session: CallerSession
    source: RowSource
    sink: Callable[[Step | Drawn], None]
    drawer: Drawer | None


class CallerNode:
    """Owner of the open sessions.

    Args:
        first_number: of a session; it differs from run to run, so that hops never take one for another.
        vocab_size: ids of tokens that are drawn elsewhere are below it.
        mesh: where peers are found that no map lists.
    """

    def __init__(
        self,
        switchboard: Switchboard,
        peers: PeerTable,
        layout: RowLayout,
        first_number: int,
        vocab_size: int = 0,
        mesh: CallerMesh | None = None,
    ) -> None:
        self.switchboard = switchboard
        self.peers = peers
        self.mesh = mesh
        self._layout = layout
        self._vocab_size = vocab_size
        self._next_number = first_number
        self._lines: dict[int, _Line] = {}

    def open_session(
        self,
        layers: LayerRange,
        terms: Terms,
        source: RowSource,
        sink: Callable[[Step | Drawn], None],
        drawer: Drawer | None = None,
    ) -> CallerSession:
        """A session for ``layers``, which opens at its hops when its first step is computed.

        With a ``drawer`` the last hop draws tokens, and ``sink`` gets those instead of rows.
        """
        terms = replace(terms, is_drawn=drawer is not None)
        key = SessionKey(self.switchboard.peer_id, self._next_number)
        self._next_number += 1
        session = CallerSession(key, layers, terms, self.peers)
        self._lines[key.number] = _Line(session, source, sink, drawer)
        return session

    def close_session(self, session: CallerSession) -> None:
        """End a session here and at its hops."""
        session.close()
        self._flush(self._lines.pop(session.key.number))

    def turn(self, timeout_s: float) -> None:
        """Send what is due and handle what has happened; waits for up to ``timeout_s``, and never beyond a deadline."""
        self._tick()
        now = self.switchboard.now()
        deadlines = [self.peers.next_change(now), *(line.session.next_deadline(now) for line in self._lines.values())]
        due = min((one for one in deadlines if one is not None), default=now + LONGEST_WAIT_S)
        wait_s = min(timeout_s, max(due - now, 0.0), LONGEST_WAIT_S)
        for event in self.switchboard.poll(wait_s):
            self._handle(event)
        self._tick()

    def check_integrity(self) -> None:
        """Assert every invariant of the sessions and the table."""
        self.peers.check_integrity()
        for number, line in self._lines.items():
            assert line.session.key.number == number
            line.session.check_integrity()

    def _tick(self) -> None:
        now = self.switchboard.now()
        self.peers.tick(now)
        if self.mesh is not None:
            for peer in self.mesh.bring(self.peers, now):
                self.peers.asked(peer, now)
                self.switchboard.send(peer, Ask())
        for peer in self.peers.to_dial(now):
            self.switchboard.dial(peer, self.peers.addrs(peer))
        for peer in self.peers.observe(self.switchboard.stats()):
            self.peers.asked(peer, now)
            self.switchboard.send(peer, Ask())
        for line in self._lines.values():
            line.session.tick(now)
            self._flush(line)

    def _handle(self, event: Event) -> None:
        now = self.switchboard.now()
        match event:
            case PeerUp(peer):
                self.peers.connected(peer, now)
                self.switchboard.send(peer, Ask())
            case PeerDown(peer, reason):
                log.info("peer=%s is gone: %s", peer, reason)
                self.peers.disconnected(peer, reason, now)
                for one in self._lines.values():
                    one.session.lost(peer, now)
            case Received(peer, message):
                self._receive(peer, message, now)
            case Heard(_, blob, via) if self.mesh is not None:
                self.mesh.heard(blob, via, now)
            case Vanished(peer) if self.mesh is not None:
                self.mesh.vanished(peer)

    def _receive(self, peer: PeerId, message: Message, now: float) -> None:
        if isinstance(message, Serving):
            self.peers.serves(peer, message, now)
        elif isinstance(message, Goodbye):
            log.info("peer=%s goes away in %s s", peer, message.grace_s)
            self.peers.leaving(peer)
            for one in self._lines.values():
                one.session.leaving(peer, now)
        elif not isinstance(message, Ask) and message.session.caller == self.switchboard.peer_id:
            line = self._lines.get(message.session.number)
            if line is None:
                return  # a session that is over
            if isinstance(message, Step | Drawn) and not self._is_sound(message):
                self.peers.failed(peer, "its rows are not those that were agreed on", now)
                line.session.lost(peer, now)
                return
            rows = line.session.received(peer, message, now)
            if rows is not None:
                line.sink(rows)

    def _is_sound(self, rows: Step | Drawn) -> bool:
        """Whether a payload has the rows that it should, and tokens are the model's."""
        if isinstance(rows, Drawn):
            ids = [token_id for one in rows.tokens for token_id in (one.token_id, *(pair[0] for pair in one.logprobs))]
            return all(token_id < self._vocab_size for token_id in ids)
        layout = self._layout
        agrees = (rows.dtype, rows.codec, rows.width) == (layout.dtype, layout.codec, layout.width)
        return agrees and len(rows.payload) == layout.num_bytes(rows.num_wanted)

    def _flush(self, line: _Line) -> None:
        layout, key = self._layout, line.session.key
        for peer, out in line.session.take_outbox():
            if isinstance(out, StepOut):
                payload = line.source.payload(out.position, out.position + out.num_tokens)
                is_drawn = line.drawer is not None and out.num_wanted > 0
                if line.drawer is not None and is_drawn and line.session.route:
                    words = line.drawer.words(key, out.step, out.position + out.num_tokens)
                    self.switchboard.send_all((line.session.route[-1].peer, word) for word in words)
                numbers = out.step, out.position, out.num_tokens, out.num_wanted, out.is_replay
                kinds = layout.dtype, layout.codec, layout.width
                self.switchboard.send(peer, Step(key, *numbers, *kinds, payload, is_drawn))
            else:
                if isinstance(out, Open):
                    if line.drawer is not None:
                        line.drawer.opened()
                    log.info("peer=%s session=%s opens layers=%s:%s", peer, key.number, out.start, out.end)
                self.switchboard.send(peer, out)
