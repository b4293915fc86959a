"""Sessions at one hop, under callers that draft, take back and come back, and links that duplicate and lose.

Every row says which token it is, and what is "computed" is remembered position by position. So that every step finds
before it exactly the tokens that its caller meant when it was sent, whatever was lost, repeated, rolled back, replayed
or evicted in between, can be checked at each of them.
"""

import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hopformer.net.hop_outputs import Release, Send, Timing, Truncate
from hopformer.net.hop_sessions import HopSessions
from hopformer.net.identity import PeerId
from hopformer.net.messages import (
    Close,
    Codec,
    Dtype,
    Lease,
    Message,
    Neighbours,
    Open,
    Opened,
    Refuse,
    Reroute,
    Rollback,
    SessionKey,
    Step,
)
from hopformer.net.served_span import HopLimits, ServedSpan

CALLERS = [PeerId(b"1" * 22), PeerId(b"2" * 22)]
HOPS = [PeerId(b"h" * 22), PeerId(b"g" * 22)]  # that may stand before or behind this one
STRANGER = PeerId(b"s" * 22)
PEERS = [*CALLERS, *HOPS, STRANGER]
MAX_TOKENS = 24
FINGERPRINT = bytes(32)
SERVED = ServedSpan("m", FINGERPRINT, 0, 2, 4, 1, Dtype.FLOAT32, (Codec.EXACT,), MAX_TOKENS, "test")


def pack(tokens: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(tokens)}I", *tokens)


def unpack(payload: bytes | memoryview) -> list[int]:
    return list(struct.unpack(f"<{len(payload) // 4}I", payload))


@dataclass(eq=False)
class Session:
    """A session as its caller sees it, and what is on its way to the hop."""

    key: SessionKey
    neighbours: Neighbours
    tokens: list[int] = field(default_factory=list)  # what the caller means, by position
    number: int = 0  # of the last step
    meant: dict[int, list[int]] = field(default_factory=dict)  # step -> all tokens before it
    under_way: deque[Step] = field(default_factory=deque)  # from previous
    is_damaged: bool = False  # steps may have been lost, and the caller has not recovered
    from_caller: deque[Message] = field(default_factory=deque)


class HopSessionsMachine(RuleBasedStateMachine):
    """One node with few pages, and what its peers may do to it."""

    @initialize(
        num_pages=st.integers(12, 24),
        max_batch_tokens=st.integers(1, 12),
        decode_tokens=st.integers(1, 3),
        max_sessions=st.integers(2, 4),
        max_waiting_steps=st.integers(4, 12),
    )
    def start(self, num_pages: int, **limits: int) -> None:
        self.core = HopSessions(SERVED, num_pages, 4, HopLimits(max_waiting_bytes=240, grace_s=30.0, **limits))
        self.num_pages = num_pages
        self.now = 0.0
        self.sessions: dict[SessionKey, Session] = {}
        self.computed: dict[int, list[int]] = {}  # sequence_id -> tokens
        self.up: set[PeerId] = set()
        self.num_tokens = 0
        for peer in PEERS:
            self.connect(peer)
        for previous in (0, 1):
            self.open(CALLERS[0], number=previous, previous=previous, following=previous)

    # The caller

    @rule(
        caller=st.sampled_from(CALLERS),
        number=st.integers(0, 1),
        previous=st.integers(0, 1),
        following=st.integers(0, 1),
    )
    def open(self, caller: PeerId, number: int, previous: int, following: int) -> None:
        if caller not in self.up or SessionKey(caller, number) in self.sessions:
            return
        around = [caller, HOPS[0]][previous], [caller, HOPS[1]][following]
        session = Session(SessionKey(caller, number), Neighbours(*around, ()))
        kinds = Dtype.FLOAT32, Codec.EXACT
        self.tell(caller, Open(session.key, FINGERPRINT, 0, 2, *kinds, MAX_TOKENS, 20, session.neighbours))
        if any(message == Opened(session.key) for _, message in self.sent):
            self.sessions[session.key] = session

    @precondition(lambda self: self.sessions)
    @rule(
        which=st.integers(0, 9),
        steps=st.lists(st.tuples(st.integers(1, 5), st.sampled_from([0, 0, 0, 1, 4])), min_size=1, max_size=4),
        arrive=st.sampled_from([True, True, False]),
    )
    def send_steps(self, which: int, steps: list[tuple[int, int]], arrive: bool) -> None:
        """Steps behind all tokens, or that take some back first."""
        session = self.pick(which)
        for count, back in steps:
            self.write(session, max(len(session.tokens) - back, 0), count)
        if arrive:
            self.deliver_all(session)
            self.compute_one_batch()

    @precondition(lambda self: self.sessions)
    @rule(which=st.integers(0, 9), back=st.integers(1, 8))
    def send_rollback(self, which: int, back: int) -> None:
        session = self.pick(which)
        del session.tokens[max(len(session.tokens) - back, 0) :]
        session.number += 1
        session.from_caller.append(Rollback(session.key, session.number, len(session.tokens)))

    @precondition(lambda self: self.sessions)
    @rule(which=st.integers(0, 9), replay_to=st.integers(0, MAX_TOKENS))
    def reroute_behind(self, which: int, replay_to: int) -> None:
        """The hop behind this one is replaced: what is replayed to it is what was computed."""
        session = self.pick(which)
        is_last = session.neighbours.next == session.key.caller
        if not is_last and session.key.caller in self.up and not session.is_damaged:
            known = self.computed_of(session)
            self.tell(session.key.caller, Reroute(session.key, session.neighbours, replay_to))
            replayed = [m for peer, m in self.sent if peer == session.neighbours.next and isinstance(m, Step)]
            found = [token for message in replayed for token in unpack(message.payload)]
            assert session.neighbours.next not in self.up or found == known[:replay_to]

    @precondition(lambda self: self.sessions)
    @rule(which=st.integers(0, 9), back=st.integers(0, 3), replays=st.booleans(), count=st.integers(1, 3))
    def recover(self, which: int, back: int, replays: bool, count: int) -> None:
        """What is on its way is given up; the caller goes on from a position that it has the results of."""
        session = self.pick(which)
        if {session.neighbours.previous, session.key.caller} - self.up:
            return
        length = max(self.num_known(session) - back, 0)
        session.under_way.clear()
        session.is_damaged = False
        if replays and length:
            self.enqueue(session, session.number, 0, session.tokens[:length], is_replay=True)
        else:
            self.tell(session.key.caller, Reroute(session.key, session.neighbours, 0))
        if session.key in self.sessions:
            self.write(session, length, count)

    @precondition(lambda self: self.sessions)
    @rule(which=st.integers(0, 9))
    def renew(self, which: int) -> None:
        session = self.pick(which)
        session.from_caller.append(Lease(session.key))

    @precondition(lambda self: self.sessions)
    @rule(which=st.integers(0, 9), chance=st.integers(1, 5))
    def close(self, which: int, chance: int) -> None:
        session = self.pick(which)
        if session.key.caller in self.up and chance == 1:
            self.tell(session.key.caller, Close(session.key))
            self.sessions.pop(session.key, None)

    # The network

    @precondition(lambda self: self.sessions)
    @rule(which=st.integers(0, 9), count=st.integers(1, 6), twice=st.booleans())
    def deliver(self, which: int, count: int, twice: bool) -> None:
        session = self.pick(which)
        for _ in range(min(count, len(session.under_way))):
            if session.neighbours.previous in self.up:
                step = session.under_way.popleft()
                for _ in range(2 if twice else 1):
                    self.tell(session.neighbours.previous, step)

    @precondition(lambda self: self.sessions)
    @rule(which=st.integers(0, 9), twice=st.booleans())
    def deliver_from_caller(self, which: int, twice: bool) -> None:
        session = self.pick(which)
        if session.from_caller and session.key.caller in self.up:
            message = session.from_caller.popleft()
            for _ in range(2 if twice else 1):
                self.tell(session.key.caller, message)

    @rule(peer=st.sampled_from(PEERS), lost=st.integers(0, 3), comes_back=st.sampled_from([True] * 7 + [False]))
    def disconnect(self, peer: PeerId, lost: int, *, comes_back: bool) -> None:
        """Some of what was on its way is lost; of a caller all, and it knows."""
        if peer not in self.up:
            return
        self.up.discard(peer)
        self.core.peer_down(peer, self.now)
        self.carry_out()
        for session in self.sessions.values():
            if session.key.caller == peer:
                session.from_caller.clear()
                if session.neighbours.previous == peer:
                    session.under_way.clear()
                    del session.tokens[self.num_known(session) :]
            elif session.neighbours.previous == peer:
                session.is_damaged = True
                for _ in range(min(lost, len(session.under_way))):
                    session.under_way.popleft()
        if comes_back:
            self.connect(peer)

    @precondition(lambda self: self.sessions)
    @rule(which=st.integers(0, 9), back=st.integers(0, 4))
    def lose_a_step(self, which: int, back: int) -> None:
        """A step that takes tokens back is the last that is lost with the connection to the hop before."""
        session = self.pick(which)
        previous = session.neighbours.previous
        if previous in self.up and previous != session.key.caller:
            self.write(session, max(len(session.tokens) - back, 0), 1)
            session.under_way.clear()
            self.disconnect(previous, 0, comes_back=True)

    @rule(peer=st.sampled_from(PEERS))
    def connect(self, peer: PeerId) -> None:
        if peer not in self.up:
            self.up.add(peer)
            self.core.peer_up(peer, self.now)
            self.carry_out()

    @rule(seconds=st.sampled_from([0.1, 5.0, 21.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.core.handle_deadline(self.now)
        self.carry_out()

    # Who has no business here

    @rule(caller=st.sampled_from(CALLERS), number=st.integers(0, 1), position=st.integers(0, MAX_TOKENS))
    def intrude(self, caller: PeerId, number: int, position: int) -> None:
        key = SessionKey(caller, number)
        before = self.core.num_sessions, self.core.num_free_pages
        kinds = Dtype.FLOAT32, Codec.EXACT
        self.connect(STRANGER)
        for message in (
            Step(key, 1000, position, 1, 0, False, *kinds, 1, bytes(4)),
            Close(key),
            Rollback(key, 1000, 0),
            Reroute(key, Neighbours(STRANGER, STRANGER, ()), MAX_TOKENS),
            Open(key, FINGERPRINT, 0, 2, *kinds, 1, 1, Neighbours(STRANGER, STRANGER, ())),
        ):
            self.tell(STRANGER, message)
            ((peer, refusal),) = self.sent
            assert peer == STRANGER and isinstance(refusal, Refuse)
        assert before == (self.core.num_sessions, self.core.num_free_pages)

    # The node

    @rule(count=st.integers(1, 4))
    def compute(self, count: int) -> None:
        for _ in range(count):
            self.compute_one_batch()

    def compute_one_batch(self) -> None:
        had_ready = self.core.has_ready
        batch = self.core.start_batch(self.now)
        self.carry_out()
        assert had_ready or not batch
        assert len({ready.sequence_id for ready in batch}) == len(batch)
        used = 0
        for ready in batch:
            tokens, step = self.computed.setdefault(ready.sequence_id, []), ready.step
            assert len(tokens) == step.position
            session = self.sessions[step.session]
            if not step.is_replay:
                assert tokens == session.meant[step.step], "a step follows other tokens than its caller meant"
            tokens += unpack(step.payload)
        for tokens in self.computed.values():
            used += -(-len(tokens) // 4)
        assert used <= self.num_pages, "a batch was started for which there are no pages"
        for ready in batch:
            self.core.finish(ready, ready.step.payload, Timing(self.now, self.now, len(batch)))
        self.carry_out()

    def tell(self, peer: PeerId, message: Message) -> None:
        assert peer in self.up
        self.core.receive(peer, message, self.now)
        self.carry_out()

    def carry_out(self) -> None:
        self.sent: list[tuple[PeerId, Message]] = []
        for output in self.core.take_outputs():
            match output:
                case Send(peer, message):
                    assert peer in self.up
                    self.sent.append((peer, message))
                case Truncate(sequence_id, length):
                    assert length < len(self.computed[sequence_id])
                    del self.computed[sequence_id][length:]
                case Release(sequence_id):
                    self.computed.pop(sequence_id, None)
        for key in list(self.sessions):
            if key not in self.core._sessions:
                del self.sessions[key]

    def write(self, session: Session, position: int, count: int) -> None:
        """Send the next step: new tokens from ``position`` on, and forget those that were there."""
        count = min(count, MAX_TOKENS - position)
        if count:
            del session.tokens[position:]
            session.number += 1
            session.meant[session.number] = list(session.tokens)
            new = list(range(self.num_tokens + 1, self.num_tokens + 1 + count))
            self.num_tokens += count
            session.tokens += new
            self.enqueue(session, session.number, position, new)

    def enqueue(self, session: Session, number: int, position: int, tokens: list[int], is_replay: bool = False) -> None:
        kinds = Dtype.FLOAT32, Codec.EXACT
        session.under_way.append(
            Step(session.key, number, position, len(tokens), 0, is_replay, *kinds, 1, pack(tokens))
        )

    def num_known(self, session: Session) -> int:
        """How many tokens are computed as the caller means them; of so many it may have the results."""
        computed = self.computed.get(self.core._sessions[session.key].sequence_id, [])
        length = 0
        while length < min(len(computed), len(session.tokens)) and computed[length] == session.tokens[length]:
            length += 1
        return length

    def deliver_all(self, session: Session) -> None:
        while session.under_way and session.neighbours.previous in self.up and session.key in self.sessions:
            self.tell(session.neighbours.previous, session.under_way.popleft())
        while session.from_caller and session.key.caller in self.up and session.key in self.sessions:
            self.tell(session.key.caller, session.from_caller.popleft())

    def pick(self, which: int) -> Session:
        return list(self.sessions.values())[which % len(self.sessions)]

    def computed_of(self, session: Session) -> list[int]:
        return list(self.computed.get(self.core._sessions[session.key].sequence_id, []))

    @invariant()
    def everything_is_intact(self) -> None:
        if hasattr(self, "core"):
            self.core.check_integrity()
            assert self.sessions.keys() == self.core._sessions.keys()
            lengths = {session.sequence_id: session.length for session in self.core._sessions.values()}
            assert all(len(tokens) == lengths[sequence_id] for sequence_id, tokens in self.computed.items())

    def teardown(self) -> None:
        """What was sent and not lost is computed in the end, and nothing is left behind."""
        if not hasattr(self, "core"):
            return
        for peer in PEERS:
            self.connect(peer)
        for session in list(self.sessions.values()):
            self.deliver_all(session)
            while self.core.has_ready:
                self.compute_one_batch()
            if session.key in self.sessions and not session.is_damaged:
                assert self.num_known(session) == len(session.tokens), "what was sent was not computed"
        for peer in PEERS:
            self.disconnect(peer, 0, comes_back=False)
        self.wait(31.0)
        assert self.core.num_sessions == 0 and self.core.num_free_pages == self.num_pages and not self.computed


TestHopSessions = HopSessionsMachine.TestCase
TestHopSessions.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, print_blob=True)
