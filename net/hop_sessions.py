"""HopSessions: the sessions of a node that serves a span. Who may have one, what is computed next, what is answered.

Pure: no torch, sockets or clock. In come peers, their messages and computed steps, each with the time in seconds; out
come what ``take_outputs`` gives, and batches of steps that are ready. Pages are counted here, so that there are enough
of them for every step of a batch. The order of one session's steps is hop_session.py's.

Only the connection of its caller may open, reroute, roll back or close a session, only ``previous`` may send its steps,
and nobody else learns whether it is there.
"""

from collections.abc import Iterable
from dataclasses import replace

from .draws import DrawRows
from .hop_outputs import Dial, HopLoad, Output, ReadyStep, Release, Send, Timing, Truncate
from .hop_session import HopSession, Waiting
from .identity import PeerId
from .messages import (
    Ask,
    Close,
    Context,
    Done,
    Draw,
    Goodbye,
    Lease,
    Message,
    Open,
    Opened,
    Reason,
    Refuse,
    Reroute,
    Rollback,
    SessionKey,
    Step,
)
from .row_layout import Payload
from .served_span import HopLimits, ServedSpan

STEP_TIME_WEIGHT = 0.2  # of the newest decode step in the mean that Serving tells
_LARGEST_US = (1 << 32) - 1  # what a Done has room for


class HopSessions:
    """The sessions of one node.

    Args:
        num_pages, page_size: the pages of the sequences; sequences share none.
    """

    def __init__(self, served: ServedSpan, num_pages: int, page_size: int, limits: HopLimits | None = None) -> None:
        self.served = served
        self.limits = limits or HopLimits()
        self._num_pages = num_pages
        self._page_size = page_size
        self._sessions: dict[SessionKey, HopSession] = {}
        self._in_flight: dict[SessionKey, ReadyStep] = {}
        self._connected: set[PeerId] = set()
        self._outputs: list[Output] = []
        self._num_opened = 0
        self._step_s = 0.0
        self._queue_s = 0.0
        self._drain_until: float | None = None

    @property
    def num_sessions(self) -> int:
        """That are open."""
        return len(self._sessions)

    @property
    def num_waiting(self) -> int:
        """Steps that are not computed yet."""
        return sum(session.num_waiting for session in self._sessions.values())

    @property
    def num_free_pages(self) -> int:
        """Pages that no session has."""
        return self._num_pages - sum(self._pages(session.claimed) for session in self._sessions.values())

    @property
    def load(self) -> HopLoad:
        """How busy the node is."""
        layer_us = _microseconds(self._step_s / (self.served.end - self.served.start))
        free_tokens = self.num_free_pages * self._page_size
        return HopLoad(free_tokens, layer_us, _microseconds(self._queue_s), len(self._sessions))

    @property
    def is_draining(self) -> bool:
        """Whether the node is going away."""
        return self._drain_until is not None

    @property
    def has_ready(self) -> bool:
        """Whether start_batch has steps."""
        return any(session.can_start for session in self._sessions.values())

    def take_outputs(self) -> list[Output]:
        """What is to be done, in order."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def peer_up(self, peer: PeerId, now: float) -> None:
        """A connection with ``peer`` is there."""
        self._connected.add(peer)
        if self._drain_until is not None:
            self._send(peer, Goodbye(int(max(self._drain_until - now, 0))))
        for session in self._sessions.values():
            if session.caller == peer:
                session.lost_at, session.last_word = None, now
            if session.is_dialling and session.neighbours.next == peer:
                self._next_is_up(session)

    def peer_down(self, peer: PeerId, now: float) -> None:
        """The connection with ``peer`` is gone, or could not be made."""
        self._connected.discard(peer)
        for session in self._sessions.values():
            if session.caller == peer and session.lost_at is None:
                session.lost_at, session.was_lost = now, True
            if session.neighbours.previous == peer:
                session.lose_previous()
            if session.neighbours.next == peer:  # rows are lost now; the caller will miss them, and reroute
                session.is_dialling, session.replay_to = False, 0

    def receive(self, peer: PeerId, message: Message, now: float) -> None:
        """``peer`` sent a message. Those that are for callers are none of ours and change nothing."""
        assert not self._in_flight, "finish or fail the batch first"
        match message:
            case Ask():
                self._answer(peer)
            case Step():
                self._receive_step(peer, message, now)
            case Open() | Reroute() | Rollback() | Close() | Lease() | Context() | Draw():
                if message.session.caller != peer:
                    self._refuse_unknown(peer, message.session)
                elif isinstance(message, Open):
                    self._open(message, now)
                else:
                    self._obey(message, now)

    def _answer(self, peer: PeerId) -> None:
        """Tell a peer what is served; nothing that is new, while the node goes away."""
        if self.is_draining:
            self._send(peer, self.served.announce_nothing())
        else:
            self._send(peer, self.served.announce(self.num_free_pages * self._page_size, _microseconds(self._step_s)))

    def start_batch(self, now: float) -> list[ReadyStep]:
        """Steps to compute together, one of a session at most: short ones first, then others in the order they came.

        The outputs are to be carried out before they are computed, and all of them finished or failed afterwards.
        """
        assert not self._in_flight, "finish or fail the batch first"
        num_tokens, num_free = 0, self.num_free_pages
        for session in self._queue():
            if num_tokens >= self.limits.max_batch_tokens:
                break
            num_new = self._pages(session.ready[0].end) - self._pages(session.claimed)
            if num_new > num_free and not self._make_room(num_new, now):
                self._end(session, Reason.BUSY, f"a step needs {num_new} more KV pages, and no more are free")
            else:
                num_tokens += self._start(session).step.num_tokens
            num_free = self.num_free_pages if num_new > num_free else num_free - num_new
        return list(self._in_flight.values())

    def finish(self, ready: ReadyStep, rows: Payload, timing: Timing) -> None:
        """A step is computed; ``rows`` are the last ``ready.num_rows`` of its."""
        del self._in_flight[ready.step.session]
        session, step = self._sessions[ready.step.session], ready.step
        session.finish(step, rows)
        compute_s = timing.ended - timing.started
        if step.num_tokens <= self.limits.decode_tokens:
            weight = STEP_TIME_WEIGHT if self._step_s else 1.0
            self._step_s += weight * (compute_s - self._step_s)
            self._queue_s += weight * (timing.started - ready.arrived - self._queue_s)
        if not session.is_last:
            self._send(session.neighbours.next, replace(step, payload=rows))
        elif step.num_wanted and not step.is_replay:
            wanted = ready.layout.take(rows, ready.num_rows - step.num_wanted, ready.num_rows)
            self._give(session, replace(step, payload=wanted))
        queue_us, compute_us = _microseconds(timing.started - ready.arrived), _microseconds(compute_s)
        self._send(session.caller, Done(session.key, step.step, queue_us, compute_us, timing.batch_size))

    def _give(self, session: HopSession, step: Step) -> None:
        """Send the caller the rows that it wants, or what it wants drawn of them."""
        if not step.is_drawn:
            self._send(session.caller, step)
            return
        assert session.draws is not None, "fault_of has seen to it"
        self._draw(session, session.draws.computed(step))

    def _draw(self, session: HopSession, fault: str | None) -> None:
        """Draw what can be drawn, unless the caller's last word was wrong."""
        assert session.draws is not None
        try:
            found = session.draws.take() if fault is None else []
        except ValueError as error:
            fault = str(error)
        if fault is not None:
            self._end(session, Reason.PROTOCOL, fault)
        elif session.caller in self._connected:
            self._outputs.extend(found)

    def fail(self, batch: Iterable[ReadyStep], text: str) -> None:
        """Steps could not be computed: their sessions end."""
        for ready in batch:
            del self._in_flight[ready.step.session]
            self._end(self._sessions[ready.step.session], Reason.FAILED, text)

    def fail_draws(self, draws: Iterable[DrawRows], text: str) -> None:
        """Tokens could not be drawn: their sessions end."""
        for one in draws:
            session = self._sessions.get(one.step.session)
            if session is not None:
                self._end(session, Reason.FAILED, text)

    def drain(self, now: float, grace_s: float) -> None:
        """Open no more sessions, tell everybody, and end those that are left after ``grace_s``."""
        self._drain_until = now + grace_s
        for peer in sorted(self._connected):
            self._send(peer, Goodbye(int(grace_s)))

    def stay(self) -> None:
        """Go on after all, instead of draining. Who asks is told, and a Serving takes back a Goodbye."""
        self._drain_until = None
        for peer in sorted(self._connected):
            self._answer(peer)

    def handle_deadline(self, now: float) -> None:
        """Do what is due: end sessions whose callers did not come back, and all of them when draining is over."""
        for session in list(self._sessions.values()):
            if session.lost_at is not None and now >= session.lost_at + self.limits.grace_s:
                self._end(session)
            elif self._drain_until is not None and now >= self._drain_until:
                self._end(session, Reason.DRAINING, "this node goes away")

    def next_deadline(self) -> float | None:
        """When handle_deadline has something to do; None for never."""
        lost = [session.lost_at for session in self._sessions.values() if session.lost_at is not None]
        deadlines = [lost_at + self.limits.grace_s for lost_at in lost]
        if self._drain_until is not None and self._sessions:
            deadlines.append(self._drain_until)
        return min(deadlines, default=None)

    def check_integrity(self) -> None:
        """Assert every invariant."""
        limits, sessions = self.limits, list(self._sessions.values())
        assert 0 <= self.num_free_pages <= self._num_pages and len(sessions) <= limits.max_sessions
        assert len({session.sequence_id for session in sessions}) == len(sessions)
        assert self._in_flight.keys() <= self._sessions.keys()
        for key, session in self._sessions.items():
            session.check_integrity()
            assert session.key == key and session.num_waiting <= limits.max_waiting_steps
            assert (session.claimed > session.length) == (key in self._in_flight)
            assert not (session.is_dialling and (session.is_last or session.neighbours.next in self._connected))
            own = self._sessions_of(key.caller)
            assert len(own) <= limits.max_caller_sessions
            assert sum(one.opening.max_tokens for one in own) <= self._max_caller_tokens
            assert sum(one.waiting_bytes for one in own) <= limits.max_waiting_bytes

    @property
    def _max_caller_tokens(self) -> int:
        asked = self.limits.max_caller_tokens
        return self._num_pages * self._page_size if asked is None else asked

    def _open(self, opening: Open, now: float) -> None:
        opening = replace(opening, lease_s=min(opening.lease_s, self.limits.max_lease_s))
        session = self._sessions.get(opening.session)
        if session is not None and session.opening == opening and not session.was_lost:
            self._send(session.caller, Opened(session.key))  # the same message again
            return
        if session is not None:
            self._end(session)
        refusal = self._refusal_of(opening, now)
        if refusal is not None:
            self._refuse(opening.session, *refusal)
            return
        session = HopSession(opening, self._num_opened, self.served, now)
        self._num_opened += 1
        self._sessions[session.key] = session
        self._send(session.caller, Opened(session.key))
        self._connect_next(session)

    def _refusal_of(self, opening: Open, now: float) -> tuple[Reason, str] | None:
        """Why there is no place for a session, though idle ones were evicted for it; None where there is."""
        limits, caller = self.limits, opening.session.caller
        if self.is_draining:
            return Reason.DRAINING, "this node goes away and opens no sessions"
        unfit = self.served.refusal_of(opening)
        if unfit is not None:
            return unfit
        while True:
            own = self._sessions_of(caller)
            num_tokens = sum(session.opening.max_tokens for session in own) + opening.max_tokens
            if len(own) >= limits.max_caller_sessions:
                refusal = f"{len(own)} sessions of yours are open, and no more are allowed"
            elif num_tokens > self._max_caller_tokens:
                refusal = f"your sessions may have {self._max_caller_tokens} tokens together; that makes {num_tokens}"
            else:
                break
            if not self._evict(own, now):
                return Reason.BUSY, refusal
        if len(self._sessions) >= limits.max_sessions and not self._evict(self._sessions.values(), now):
            return Reason.BUSY, f"{len(self._sessions)} sessions are open, and no more are allowed"
        idle = sum(self._pages(session.claimed) for session in self._sessions.values() if session.is_idle(now))
        if self._pages(opening.max_tokens) > self.num_free_pages + idle:
            return Reason.BUSY, f"a session of {opening.max_tokens} tokens does not fit into the KV pages that are free"
        return None

    def _obey(self, message: Reroute | Rollback | Close | Lease | Context | Draw, now: float) -> None:
        session = self._sessions.get(message.session)
        if session is None:
            if not isinstance(message, Close):
                self._refuse_unknown(message.session.caller, message.session)
            return
        session.last_word = now
        match message:
            case Reroute():
                self._reroute(session, message)
            case Rollback():
                length = session.length
                session.roll_back(message.step, message.position)
                self._tell_length(session, length)
            case Close():
                self._end(session)
            case Context() | Draw():
                if session.draws is None:
                    self._end(session, Reason.PROTOCOL, "this node has no head to draw tokens with")
                else:
                    self._draw(session, session.draws.tell(message))

    def _reroute(self, session: HopSession, message: Reroute) -> None:
        session.reroute(message.neighbours)
        if message.replay_to and session.kept is None and not session.is_last:
            self._end(session, Reason.PROTOCOL, "a replay was asked for, and the last layers keep no rows")
            return
        session.replay_to = 0 if session.is_last else message.replay_to
        self._connect_next(session)

    def _connect_next(self, session: HopSession) -> None:
        session.is_dialling = not session.is_last and session.neighbours.next not in self._connected
        if session.is_dialling:
            self._outputs.append(Dial(session.neighbours.next, session.neighbours.next_addrs))
        else:
            self._next_is_up(session)

    def _next_is_up(self, session: HopSession) -> None:
        session.is_dialling = False
        if session.replay_to:
            for step in session.replay(session.replay_to):
                self._send(session.neighbours.next, step)
        session.replay_to = 0

    def _receive_step(self, peer: PeerId, step: Step, now: float) -> None:
        session = self._sessions.get(step.session)
        if session is None or session.neighbours.previous != peer:
            self._refuse_unknown(peer, step.session)
            return
        fault = session.fault_of(step, self.limits.max_step_tokens)
        if fault is None:
            session.last_word = now
            session.arrive(Waiting(step, now))
            fault = self._excess_of(session)
        if fault is not None:
            self._end(session, Reason.PROTOCOL, fault)

    def _excess_of(self, session: HopSession) -> str | None:
        """Which limit the steps that wait exceed; None for none."""
        limits = self.limits
        if session.num_waiting > limits.max_waiting_steps:
            return f"more than {limits.max_waiting_steps} steps of the session wait"
        if sum(one.waiting_bytes for one in self._sessions_of(session.caller)) > limits.max_waiting_bytes:
            return f"more than {limits.max_waiting_bytes} bytes of its caller's steps wait"
        return None

    def _queue(self) -> list[HopSession]:
        """The sessions that have a step to start, those first whose turn it is."""

        def turn(session: HopSession) -> tuple[bool, float]:
            first = session.ready[0]
            return first.step.num_tokens > self.limits.decode_tokens, first.arrived

        return sorted((session for session in self._sessions.values() if session.can_start), key=turn)

    def _start(self, session: HopSession) -> ReadyStep:
        arrived, length = session.ready[0].arrived, session.length
        step = session.start()
        self._tell_length(session, length)
        num_rows = step.num_tokens
        if session.kept is None and session.is_last:
            num_rows = 0 if step.is_replay else step.num_wanted
        span = session.opening.start, session.opening.end
        ready = ReadyStep(step, session.sequence_id, *span, session.layout, num_rows, arrived)
        self._in_flight[session.key] = ready
        return ready

    def _tell_length(self, session: HopSession, before: int) -> None:
        """Have a sequence that is shorter than before cut."""
        if session.length < before:
            self._outputs.append(Truncate(session.sequence_id, session.length))

    def _make_room(self, num_pages: int, now: float) -> bool:
        """Evict idle sessions until so many pages are free, if they can be."""
        idle = [session for session in self._sessions.values() if session.is_idle(now)]
        if num_pages > self.num_free_pages + sum(self._pages(session.claimed) for session in idle):
            return False
        while num_pages > self.num_free_pages:
            self._evict([session for session in idle if session.length], now)
        return True

    def _evict(self, sessions: Iterable[HopSession], now: float) -> bool:
        """End the one of ``sessions`` that has been idle the longest; False where none is idle beyond its lease."""
        idle = [session for session in sessions if session.key in self._sessions and session.is_idle(now)]
        if not idle:
            return False
        victim = min(idle, key=lambda session: session.last_word)
        silence = f"nothing was heard of the session for {now - victim.last_word:.0f} s"
        text = f"{silence}, its lease is {victim.opening.lease_s} s, and its place was needed"
        self._end(victim, Reason.EVICTED, text)
        return True

    def _end(self, session: HopSession, reason: Reason | None = None, text: str = "") -> None:
        """Forget a session; with a reason, tell its caller."""
        del self._sessions[session.key]
        self._outputs.append(Release(session.sequence_id))
        if reason is not None:
            self._refuse(session.key, reason, text)

    def _refuse(self, key: SessionKey, reason: Reason, text: str) -> None:
        self._send(key.caller, Refuse(key, reason, text))

    def _refuse_unknown(self, peer: PeerId, key: SessionKey) -> None:
        self._send(peer, Refuse(key, Reason.UNKNOWN_SESSION, "no session of yours has that number here"))

    def _send(self, peer: PeerId, message: Message) -> None:
        if peer in self._connected:
            self._outputs.append(Send(peer, message))

    def _sessions_of(self, caller: PeerId) -> list[HopSession]:
        return [session for session in self._sessions.values() if session.caller == caller]

    def _pages(self, num_tokens: int) -> int:
        return -(-num_tokens // self._page_size)


def _microseconds(duration_s: float) -> int:
    return min(max(int(duration_s * 1e6), 0), _LARGEST_US)
