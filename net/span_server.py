"""SpanServer: serves a span of layers to peers. Moves messages and rows; what is computed when is hop_sessions.py's.

One ``turn`` takes what has arrived and computes one batch: the ready steps of all sessions, ragged, in one pass through
the layers. It runs in the thread that owns the switchboard and the model.
"""

import logging
from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor

from ..llama.batch import Chunk
from ..llama.model import Head
from ..llama.runner import SpanRunner
from .activations import TORCH_DTYPES, pack, unpack_into
from .draw_tokens import draw_tokens
from .draws import DrawRows
from .hop_outputs import Dial, ReadyStep, Release, Send, Timing, Truncate
from .hop_sessions import HopSessions
from .identity import PeerId
from .messages import Drawn, Message, Opened, Reason, Refuse, SessionKey
from .metrics import NodeMetrics
from .span_announcer import SpanAnnouncer
from .switchboard import Event, PeerDown, PeerUp, Received, Switchboard

log = logging.getLogger(__name__)

REPORT_EVERY_S = 1.0
LONGEST_WAIT_S = 0.25  # so that a signal is obeyed soon, whatever the switchboard waits by


class SpanServer:
    """The shell around HopSessions.

    Args:
        runner: of the layers that ``sessions`` serves; its pages are the server's alone.
        metrics: where figures go; by default nobody reads them.
        head: draws tokens, where it is here.

    Attributes:
        announcer: tells the mesh of this node, where it takes part in one.
    """

    def __init__(
        self,
        switchboard: Switchboard,
        runner: SpanRunner,
        sessions: HopSessions,
        metrics: NodeMetrics | None = None,
        head: Head | None = None,
    ) -> None:
        self.sessions = sessions
        self._head = head
        self._metrics = metrics or NodeMetrics()
        self.announcer: SpanAnnouncer | None = None
        self._report_at = 0.0
        self._switchboard = switchboard
        self._runner = runner
        self._parts = {(runner.span.start, runner.span.end): runner}

    def turn(self, timeout_s: float = 0.0) -> float | None:
        """Wait for events up to ``timeout_s``, handle them, and compute a batch if steps are ready.

        Returns when to be called again at the latest, on the switchboard's clock; None for when there are events.
        """
        for event in self._switchboard.poll(timeout_s):
            self.handle(event)
        return self.work()

    def handle(self, event: Event) -> None:
        """Take one event; for a node that shares its switchboard with callers of its own."""
        now = self._switchboard.now()
        match event:
            case PeerUp(peer):
                self.sessions.peer_up(peer, now)
            case PeerDown(peer, reason):
                log.info("peer=%s is gone: %s", peer, reason)
                self.sessions.peer_down(peer, now)
            case Received(peer, message):
                self.sessions.receive(peer, message, now)
        self._carry_out()

    def work(self) -> float | None:
        """Do what is due and compute a batch; returns as ``turn``."""
        now = self._switchboard.now()
        self.sessions.handle_deadline(now)
        batch = self.sessions.start_batch(now)
        self._carry_out()
        for _, steps in groupby(sorted(batch, key=_layers), key=_layers):
            self._compute(list(steps))
        if self.announcer is not None:
            self.announcer.turn(self.sessions, now)
        if now >= self._report_at:
            self._report(now)
        return self._switchboard.now() if self.sessions.has_ready else self.sessions.next_deadline()

    def run(self, should_drain: Callable[[], bool], drain_s: float) -> None:
        """Serve until ``should_drain``, and then for as long as sessions are open, at most ``drain_s`` more."""
        deadline: float | None = self._switchboard.now()
        while not (self.sessions.is_draining and self.sessions.num_sessions == 0):
            if should_drain() and not self.sessions.is_draining:
                log.info("draining: %s sessions are open", self.sessions.num_sessions)
                self.sessions.drain(self._switchboard.now(), drain_s)
                self._carry_out()
            wait_s = LONGEST_WAIT_S if deadline is None else deadline - self._switchboard.now()
            deadline = self.turn(min(max(wait_s, 0.0), LONGEST_WAIT_S))

    def _carry_out(self) -> None:
        sequences = self._runner.sequences
        messages: list[tuple[PeerId, Message]] = []
        draws: list[DrawRows] = []
        for output in self.sessions.take_outputs():
            match output:
                case Send(peer, message):
                    if isinstance(message, Refuse):
                        self._note_refusal(message)
                    elif isinstance(message, Opened):
                        log.info("session=%s is open", _session(message.session))
                    messages.append((peer, message))
                case Dial(peer, addrs):
                    self._switchboard.dial(peer, addrs)
                case Truncate(sequence_id, length):
                    sequences.rollback(sequence_id, length)
                case Release(sequence_id):
                    if sequence_id in sequences:
                        sequences.release(sequence_id)
                case DrawRows():
                    draws.append(output)
        if draws:
            messages = [*self._drawn(draws), *messages]  # a step is complete before it is Done
        if messages:
            self._switchboard.send_all(messages)
        if draws:
            self._carry_out()  # sessions whose tokens could not be drawn

    def _note_refusal(self, message: Refuse) -> None:
        """Into the figures and the log; a message to a session that is gone may come with every token."""
        self._metrics.refusals.labels(message.reason.name.lower()).inc()
        level = logging.DEBUG if message.reason is Reason.UNKNOWN_SESSION else logging.INFO
        log.log(level, "session=%s is refused: %s: %s", _session(message.session), message.reason.name, message.text)

    def _compute(self, batch: Sequence[ReadyStep]) -> None:
        """Compute steps of the same layers together, and send on what comes of them."""
        started = self._switchboard.now()
        try:
            rows = self._forward(batch)
        except Exception as error:
            log.exception("%s and the rest of a batch of %s failed", _name(batch[0]), len(batch))
            text = f"the step could not be computed ({type(error).__name__}); this node's log says why"
            self.sessions.fail(batch, text)
            self._carry_out()
            return
        timing = Timing(started, self._switchboard.now(), len(batch))
        with self._metrics.stage("send"):
            for ready, payload in zip(batch, rows, strict=True):
                self.sessions.finish(ready, payload, timing)
            self._carry_out()
        self._metrics.batch_size.observe(len(batch))  # now that the rows are on their way
        for ready in batch:
            self._count(ready, started)

    @torch.inference_mode()
    def _forward(self, batch: Sequence[ReadyStep]) -> list[bytes]:
        """Each step's rows as it wants them, packed."""
        runner, sequences = self._part(*_layers(batch[0])), self._runner.sequences
        chunks = [Chunk(ready.sequence_id, ready.step.position, ready.step.num_tokens) for ready in batch]
        for chunk in chunks:
            if chunk.sequence_id not in sequences:
                sequences.open(chunk.sequence_id)
            sequences.reserve(chunk.sequence_id, chunk.position + chunk.num_tokens)
        counts = [chunk.num_tokens for chunk in chunks]
        with self._metrics.stage("unpack"):
            hidden = _unpacked(batch, counts).to(runner.device)
        with self._metrics.stage("forward"):
            hidden = runner.forward(chunks, hidden).cpu()
        for chunk in chunks:
            sequences.append(chunk.sequence_id, chunk.num_tokens)
        with self._metrics.stage("pack"):
            return [_packed(ready, rows) for ready, rows in zip(batch, hidden.split(counts), strict=True)]

    def _drawn(self, draws: Sequence[DrawRows]) -> list[tuple[PeerId, Message]]:
        """Draw all tokens together; who gets what."""
        assert self._head is not None, "the sessions know that a head is here"
        try:
            with self._metrics.stage("draw"), torch.inference_mode():
                tokens = draw_tokens(self._head, draws, self._runner.device)
        except Exception as error:
            log.exception("session=%s: tokens of %s steps could not be drawn", draws[0].step.session, len(draws))
            self.sessions.fail_draws(
                draws, f"tokens could not be drawn ({type(error).__name__}); this node's log says why"
            )
            return []
        return [
            (one.step.session.caller, Drawn(one.step.session, one.step.step, one.first, own))
            for one, own in zip(draws, tokens, strict=True)
        ]

    def _part(self, start: int, end: int) -> SpanRunner:
        """The runner of some of the layers, over the same pages."""
        if (start, end) not in self._parts:
            self._parts[start, end] = self._runner.part(start, end)
        return self._parts[start, end]

    def _count(self, ready: ReadyStep, started: float) -> None:
        """Put a step into the figures and the log."""
        step = ready.step
        is_decode = step.num_tokens <= self.sessions.limits.decode_tokens
        kind = "replay" if step.is_replay else "decode" if is_decode else "prefill"
        self._metrics.steps.labels(kind).inc()
        self._metrics.tokens.labels(kind).inc(step.num_tokens)
        self._metrics.stage_seconds.labels("queue").observe(started - ready.arrived)
        log.debug("%s tokens=%s kind=%s", _name(ready), step.num_tokens, kind)

    def _report(self, now: float) -> None:
        """Tell the figures that are no counters."""
        self._report_at = now + REPORT_EVERY_S
        sessions, pool = self.sessions, self._runner.sequences.pool
        pages = pool.num_pages - pool.num_free, pool.num_free
        self._metrics.turned(sessions.num_sessions, sessions.num_waiting, pages, sessions.is_draining)
        self._metrics.peers(self._switchboard.stats())


def _unpacked(batch: Sequence[ReadyStep], counts: Sequence[int]) -> Tensor:
    """The steps' rows one below the other: [T, E] on the CPU."""
    layout = batch[0].layout  # all agree in width and dtype, if not in codec
    hidden = torch.empty(sum(counts), layout.width, dtype=TORCH_DTYPES[layout.dtype])
    for ready, rows in zip(batch, hidden.split(list(counts)), strict=True):
        unpack_into(rows, ready.step.payload, ready.layout)
    return hidden


def _packed(ready: ReadyStep, rows: Tensor) -> bytes:
    """The last of a step's rows, [T, E], as many as it wants."""
    return pack(rows[len(rows) - ready.num_rows :], ready.layout) if ready.num_rows else b""


def _layers(ready: ReadyStep) -> tuple[int, int]:
    return ready.start, ready.end


def _session(key: SessionKey) -> str:
    return f"{key.caller}/{key.number}"


def _name(ready: ReadyStep) -> str:
    """A step's ids in a line of the log."""
    return f"session={_session(ready.step.session)} step={ready.step.step} position={ready.step.position}"
