"""Link: one end of a connection with one peer. Datagrams in, datagrams out, and a time at which to be asked again.

    handshake    TLS; Proven says whose key the other end has shown
    proven       the owner looks at it, and lets it in with ``greet`` or ends it with ``close``
    greeted      both ends have said Hello: messages pass
    over         Over says why

Nothing of a peer is parsed before it is proven, and none of its messages before it is greeted. Not here: sockets
(carrier.py), addresses (paths.py), which stream a message takes (outbox.py), and who is let in (endpoint.py).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from aioquic.quic import events as quic_events

from ..errors import LinkError, NetworkError
from .congestion import SHORT_PATH_RTT_S
from .identity import PeerId
from .inbox import Inbox
from .messages import Message, SessionKey
from .outbox import PIECE_BYTES, SHORT_PATH_DATAGRAMS, SHORT_PATH_PIECES, Outbox
from .quic import VIRTUAL_ADDR, MutualQuic
from .relay_messages import RelayMessage
from .wire import Credit, Hello

# A peer that dies is to be noticed within 1 s where its machine says that the port is closed, and within 3 s where
# nothing is heard any more: 0.25 + 0.4 s and 0.25 + 2.5 s. Between 0.4 s and 2.5 s a busy peer may well be silent.
BUSY_PING_S = 0.25  # of silence, while sessions are open
IDLE_PING_S = 5.0  # of silence, else; NATs forget a mapping after 30 s (RFC 4787, section 4.3, asks for 120)
PATIENCE_S = 2.5  # after the first unanswered ping
RELAYED_PATIENCE_S = 4.0  # so that a relay's own death is noticed before that of those behind it
STRANDED_PATIENCE_S = 12.0  # no way leads to the peer: time for a relay to be started again; below IDLE_TIMEOUT_S
SHORT_PATIENCE_S = 0.4  # after a hint that the peer is gone, which may be forged; or three round trips, if longer
SWEEP_S = 600.0  # a session that is silent for longer gets a new stream when it speaks again
LONG_PATH_WINDOW_BYTES = 4 << 20  # of pieces, see outbox.WINDOW_BYTES
BATCH_DATAGRAMS = 8  # sent before the next are made: a step of 8 KiB leaves at once, longer ones are read meanwhile
_PACKET_OVERHEAD_BYTES = 48  # QUIC's header (RFC 9000, section 17.3), the STREAM frame's, an acknowledgement, the tag

MAX_REASON_LENGTH = 200  # of a peer's words that are shown to people
CLOSED = 0  # error codes of our own, in CONNECTION_CLOSE frames (RFC 9000, section 20.2)
REFUSED = 1
BROKEN_RULE = 2
DUPLICATE = 3


@dataclass(frozen=True, slots=True)
class Proven:
    """The handshake is over; ``peer`` holds the key that was shown, None is a peer without a key of our kind."""

    peer: PeerId | None


@dataclass(frozen=True, slots=True)
class Greeted:
    """The other end has let us in."""

    hello: Hello


@dataclass(frozen=True, slots=True)
class Over:
    """The connection has ended. ``code`` is the peer's, or None where this end noticed it."""

    reason: str
    code: int | None = None


LinkEvent = Proven | Greeted | Over | Message | RelayMessage


class _State(Enum):
    HANDSHAKE = auto()
    PROVEN = auto()
    OVER = auto()


class Link:
    """One connection.

    Args:
        quic: which has not sent anything yet.
        takes_sessions: see Inbox.
    """

    def __init__(self, quic: MutualQuic, now: float, takes_sessions: bool = True) -> None:
        self.quic = quic
        own, other = (2, 3) if quic.is_client else (3, 2)
        self._outbox = Outbox(own)
        self._inbox = Inbox(other, takes_sessions)
        self._state = _State.HANDSHAKE
        self._has_greeted = self._is_greeted = False
        self._is_mute = False
        self._early: list[Message | RelayMessage] = []  # overtook the Hello on another stream
        self._last_heard = now
        self._last_ping = now
        self._waiting_since: float | None = None  # the first ping that nothing came after
        self._hinted_at: float | None = None
        self.patience_s = PATIENCE_S
        self.is_vital = False  # its death is to be noticed soon though no session is open
        self.quiet_ping_s = IDLE_PING_S  # of silence, where nothing is open
        self._num_pings = 0
        self._next_sweep = now + SWEEP_S
        self.sent_bytes = 0
        self.received_bytes = 0
        if quic.is_client:
            quic.connect(VIRTUAL_ADDR, now=now)

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._state is _State.OVER

    @property
    def is_proven(self) -> bool:
        """Whether the handshake is over."""
        return self._state is _State.PROVEN

    @property
    def is_open(self) -> bool:
        """Whether messages pass in both directions."""
        return self._state is _State.PROVEN and self._has_greeted and self._is_greeted

    @property
    def is_busy(self) -> bool:
        """Whether somebody waits for this peer, so that its death is to be noticed soon."""
        return bool(self.is_vital or self._outbox.num_sessions or self._inbox.num_sessions or self._outbox.queued_bytes)

    @property
    def queued_bytes(self) -> int:
        """Bytes of messages that have not been handed to QUIC."""
        return self._outbox.queued_bytes

    def greet(self, hello: Hello) -> None:
        """Let the peer in."""
        assert self._state is _State.PROVEN and not self._has_greeted
        self._has_greeted = True
        self._outbox.send_own(hello)

    def send(self, message: Message | RelayMessage) -> None:
        """Queue a message.

        Raises:
            WireError: it is beyond the wire's limits.
            LinkError: too much is queued.
        """
        assert self.is_open
        self._outbox.send(message)

    def end_session(self, session: SessionKey) -> None:
        """Close the session's stream once what is queued has left."""
        self._outbox.end_session(session)

    def hold(self, is_held: bool) -> None:
        """While it is held the peer gets no more credit, as nobody reads what it sends."""
        self._inbox.is_held = is_held

    def hint_gone(self, now: float) -> None:
        """Somebody said that the peer is gone: ask it, with less patience."""
        if self._state is _State.PROVEN and self._hinted_at is None:
            self._hinted_at = now
            self._ping(now)

    def take_another_way(self, now: float) -> None:
        """The peer is reached on another way from now on: what was measured is void, and what was lost is soon seen."""
        self.quic.forget_path()
        self._hinted_at = None
        if self._state is _State.PROVEN:
            self._ping(now)
            self._waiting_since = now

    def close(self, code: int, reason: str) -> None:
        """End it, and let ``transmit`` tell the peer."""
        if not self.is_over:
            self._state = _State.OVER
            self.quic.close(error_code=code, reason_phrase=reason)

    def receive(self, datagram: bytes, now: float) -> bool:
        """Take in a datagram; ``events`` has what came of it. Says whether the peer's keys had made any of it."""
        num_authentic = self.quic.num_authentic
        self.received_bytes += len(datagram)
        self.quic.receive_datagram(datagram, VIRTUAL_ADDR, now)
        if self.quic.num_authentic == num_authentic:
            return False
        self._last_heard = now
        self._waiting_since = self._hinted_at = None
        return True

    def events(self) -> Iterator[LinkEvent]:
        """What has happened since it was last asked."""
        event = self.quic.next_event()
        while event is not None and not self.is_over:
            following = self.quic.next_event()
            if isinstance(event, quic_events.StreamDataReceived):
                pieces = [event.data]
                while isinstance(following, quic_events.StreamDataReceived) and following.stream_id == event.stream_id:
                    event, following = following, self.quic.next_event()  # one for each packet of a message
                    pieces.append(event.data)
                yield from self._take(event.stream_id, b"".join(pieces), event.end_stream)
            elif isinstance(event, quic_events.HandshakeCompleted):
                self._state = _State.PROVEN
                self.quic.peer_kept_its_promises()
                yield Proven(self.quic.peer_id)
            elif isinstance(event, quic_events.StreamReset | quic_events.StopSendingReceived):
                yield self._break("the peer broke off a stream and not the connection")
            event = following
        ending = self.quic.ending
        if ending is not None and not self.is_over:
            self._state = _State.OVER
            yield Over(_printable(ending.reason_phrase) or "it closed the connection", ending.error_code)

    def discard(self) -> None:
        """End it without a word: it never began."""
        self._state, self._is_mute = _State.OVER, True

    def transmit(self, now: float) -> Iterator[list[bytes]]:
        """Datagrams to send, in batches that are worth sending before the next is made."""
        if self._is_mute:
            return
        while not self.is_over:
            credit = self._inbox.credit_due() if self.is_open else None
            if credit is not None:
                self._outbox.send_own(credit)
            write = self._outbox.next_write(self._batch_bytes, self._piece_window_bytes)
            if write is None:
                break
            self.quic.send_stream_data(write.stream_id, bytes(write.data), write.end_stream)
            if len(write.data) >= self._batch_bytes:
                yield self._datagrams(now)
        yield self._datagrams(now)

    def next_deadline(self) -> float:
        """When ``handle_deadline`` wants to be called."""
        if self.is_over:
            return math.inf
        timer = self._quic_timer
        if self._state is _State.HANDSHAKE:
            return timer
        return min(timer, self._next_ping, self._last_moment, self._next_sweep)

    def handle_deadline(self, now: float) -> Over | None:
        """Time has passed; ``events`` and ``transmit`` may have something."""
        if not self.is_over and now >= self._quic_timer:
            self.quic.handle_timer(now)
        if self._state is not _State.PROVEN:
            return None
        if now >= self._last_moment:
            silence = now - self._last_heard
            self.close(CLOSED, "nothing was heard of you")
            return Over(f"nothing was heard of it for {silence:.1f} s")
        if now >= self._next_ping:
            self._ping(now)
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_S
            self._outbox.end_unused()
        return None

    @property
    def _quic_timer(self) -> float:
        timer = self.quic.get_timer()
        return math.inf if timer is None else timer

    @property
    def _batch_bytes(self) -> int:
        return BATCH_DATAGRAMS * (self.quic.max_datagram_bytes - _PACKET_OVERHEAD_BYTES)

    @property
    def _piece_window_bytes(self) -> int:
        """On a short path the two processors are what pieces wait for, and few keep them busy; else it is the path."""
        most = SHORT_PATH_PIECES * PIECE_BYTES
        if self.quic.min_rtt_s < SHORT_PATH_RTT_S:
            return min(most, SHORT_PATH_DATAGRAMS * self.quic.max_datagram_bytes)
        return max(most, min(LONG_PATH_WINDOW_BYTES, 2 * self.quic.congestion_window))

    @property
    def _next_ping(self) -> float:
        if self._waiting_since is not None or self._hinted_at is not None:
            return self._last_ping + BUSY_PING_S
        return max(self._last_heard, self._last_ping) + (BUSY_PING_S if self.is_busy else self.quiet_ping_s)

    @property
    def _last_moment(self) -> float:
        """When the peer is given up, unless it is heard."""
        if self._hinted_at is not None:
            return self._hinted_at + max(SHORT_PATIENCE_S, 3 * self.quic.smoothed_rtt_s)
        return math.inf if self._waiting_since is None else self._waiting_since + self.patience_s

    def _ping(self, now: float) -> None:
        self._num_pings += 1
        self.quic.send_ping(self._num_pings)
        self._last_ping = now
        if self._waiting_since is None:
            self._waiting_since = now

    def _take(self, stream_id: int, data: bytes, end_stream: bool) -> Iterator[LinkEvent]:
        assert self._state is _State.PROVEN
        self.quic.take_consumed(len(data))
        try:
            for frame in self._inbox.feed(stream_id, data, end_stream):
                if isinstance(frame, Credit):
                    self._outbox.take_credit(frame.num_consumed)
                elif isinstance(frame, Hello):
                    yield from self._welcome(frame)
                elif not self._is_greeted:
                    self._early.append(frame)
                else:
                    yield frame
        except NetworkError as error:
            yield self._break(str(error))

    def _welcome(self, hello: Hello) -> Iterator[LinkEvent]:
        if self._is_greeted:
            raise LinkError("the peer said Hello twice")
        self._is_greeted = True
        yield Greeted(hello)
        early, self._early = self._early, []
        yield from early

    def _break(self, reason: str) -> Over:
        self.close(BROKEN_RULE, reason)
        return Over(f"it broke a rule: {reason}")

    def _datagrams(self, now: float) -> list[bytes]:
        datagrams = [datagram for datagram, _ in self.quic.datagrams_to_send(now)]
        self.sent_bytes += sum(map(len, datagrams))
        return datagrams


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in text[:MAX_REASON_LENGTH])
