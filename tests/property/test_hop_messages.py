"""Whatever well-formed messages peers send to a node, in whatever order, nothing breaks and every limit holds.

Most of what is sent makes some sense, or all would be refused at the door. Chance is from a seed that hypothesis picks.
"""

from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from hopformer.net.draws import DrawRows
from hopformer.net.hop_outputs import Dial, Output, Release, Send, Timing, Truncate
from hopformer.net.hop_sessions import HopSessions
from hopformer.net.identity import PeerId
from hopformer.net.messages import (
    Ask,
    Close,
    Codec,
    Context,
    Done,
    Draw,
    Dtype,
    Goodbye,
    Lease,
    Message,
    Neighbours,
    Open,
    Opened,
    Reason,
    Refuse,
    Reroute,
    Rollback,
    SessionKey,
    Step,
)
from hopformer.net.row_layout import RowLayout
from hopformer.net.served_span import HopLimits, ServedSpan
from hopformer.net.wire import MAX_TEXT_BYTES, MAX_TOKENS

NUM_EVENTS = 400
NUM_PAGES, PAGE_SIZE = 10, 4
FINGERPRINT = bytes(32)
SERVED = ServedSpan("m", FINGERPRINT, 1, 3, 4, 1, Dtype.BFLOAT16, tuple(Codec), 30, "test", vocab_size=50)
LIMITS = HopLimits(
    max_sessions=4,
    max_caller_sessions=3,
    max_caller_tokens=60,
    max_waiting_steps=4,
    max_waiting_bytes=64,
    max_step_tokens=12,
    max_lease_s=9,
    grace_s=6.0,
    max_batch_tokens=8,
    decode_tokens=2,
)
PEERS = [PeerId(bytes([index]) * 22) for index in range(4)]
KEYS = [SessionKey(PEERS[caller], number) for caller in (0, 1) for number in range(4)]


class Node:
    """A node's sessions under random messages, and what they must keep to."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.core = HopSessions(SERVED, NUM_PAGES, PAGE_SIZE, LIMITS)
        self.now = 0.0
        self.connected: set[PeerId] = set()
        self.released: set[int] = set()
        self.num_computed = self.num_drawn = 0
        self.number = 0
        for peer in PEERS:
            self.connect(peer)

    def connect(self, peer: PeerId) -> None:
        self.connected.add(peer)
        self.core.peer_up(peer, self.now)

    def happen(self) -> None:
        """One thing that may happen at any time."""
        chance = self.random.random()
        if chance < 0.02:
            peer = self.random.choice(PEERS)
            self.connected.discard(peer)
            self.core.peer_down(peer, self.now)
        elif chance < 0.06:
            self.connect(self.random.choice(PEERS))
        elif chance < 0.10:
            self.now += self.random.choice([0.1, 1.0, 10.0])
            self.core.handle_deadline(self.now)
        elif chance < 0.40:
            self.compute()
        else:
            message = self.some_message()
            honest = self.random.random() < 0.9
            self.core.receive(self.sender_of(message) if honest else self.random.choice(PEERS), message, self.now)
        self.check()

    def compute(self) -> None:
        batch = self.core.start_batch(self.now)
        self.check()
        if self.random.random() < 0.05:
            self.core.fail(batch, "it broke")
            return
        for ready in batch:
            rows = bytes(ready.layout.num_bytes(ready.num_rows))
            self.core.finish(ready, rows, Timing(self.now, self.now, len(batch)))
            self.num_computed += 1

    def check(self) -> None:
        self.core.check_integrity()
        for output in self.core.take_outputs():
            self.check_output(output)
        deadline = self.core.next_deadline()
        assert deadline is None or deadline > self.now - LIMITS.grace_s

    def check_output(self, output: Output) -> None:
        match output:
            case Send(peer, message):
                assert peer in self.connected
                assert not isinstance(message, Refuse) or len(message.text.encode()) <= MAX_TEXT_BYTES
            case Release(sequence_id):
                assert sequence_id not in self.released
                self.released.add(sequence_id)
            case Truncate(sequence_id, length):
                assert sequence_id not in self.released and length >= 0
            case Dial(peer, _):
                assert peer not in self.connected
            case DrawRows(step, draw, layout, context):
                assert step.session.caller in self.connected and step.step == draw.step
                assert len(step.payload) == layout.num_bytes(step.num_wanted) and step.num_wanted > 0
                assert draw.repetition_penalty == 1.0 or len(context) == step.position + step.num_tokens
                self.num_drawn += 1

    def sender_of(self, message: Message) -> PeerId:
        """Who may send it: the hop before for a step, the caller for what names a session."""
        key = getattr(message, "session", KEYS[0])
        session = self.core._sessions.get(key)
        return session.neighbours.previous if session is not None and isinstance(message, Step) else key.caller

    def some_message(self) -> Message:
        random, key = self.random, self.random.choice(KEYS)
        self.number += 1
        number = self.mostly(self.number, *range(max(self.number - 9, 0), self.number + 9))
        position = random.choice([*range(20), 30, MAX_TOKENS])
        chance = random.random()
        if chance < 0.15:
            return self.some_opening(key)
        if chance < 0.70:
            return self.some_step(key, number)
        if chance < 0.72:
            start, count = self.mostly(0, 3, 20), self.mostly(20, 0, 1, 31)
            return Context(key, start, (self.mostly(7, 49, 50),) * count)
        if chance < 0.90:
            key, asked = self.mostly(self.step_to_draw(key, number), (key, number))
            penalty, num_logprobs = random.choice([1.0, 1.0, 1.2]), self.mostly(0, 100)
            return Draw(key, asked, 0.5, 0, 1.0, 0.0, penalty, 1, num_logprobs)
        return random.choice(
            [
                Reroute(key, self.some_neighbours(key), position),
                Rollback(key, number, position),
                Close(key),
                Lease(key),
                Ask(),
                Goodbye(1),
                Opened(key),
                Done(key, number, 0, 0, 1),
                Refuse(key, random.choice(list(Reason)), ""),
            ]
        )

    def step_to_draw(self, key: SessionKey, number: int) -> tuple[SessionKey, int]:
        """A step that waits for a Draw, if one does."""
        sessions = [one for one in self.core._sessions.values() if one.draws is not None and one.draws._rows]
        return (sessions[0].key, max(sessions[0].draws._rows)) if sessions else (key, number)

    def some_neighbours(self, key: SessionKey) -> Neighbours:
        others = [key.caller, *PEERS[2:]]
        return Neighbours(self.random.choice(others), self.random.choice(others), ("127.0.0.1:1",))

    def some_opening(self, key: SessionKey) -> Open:
        random = self.random
        return Open(
            session=key,
            fingerprint=self.mostly(FINGERPRINT, b"x" * 32),
            start=self.mostly(1, 0, 2),
            end=self.mostly(3, 2, 4),
            dtype=self.mostly(Dtype.BFLOAT16, Dtype.FLOAT16),
            codec=random.choice(list(Codec)),
            max_tokens=self.mostly(20, 1, 30, 31, MAX_TOKENS),
            lease_s=random.choice([1, 9, 20]),
            neighbours=self.some_neighbours(key),
        )

    def some_step(self, key: SessionKey, number: int) -> Step:
        """Mostly as it was agreed on, and near the session's end."""
        random, session = self.random, self.core._sessions.get(key)
        codec = Codec.EXACT if session is None else self.mostly(session.opening.codec, *Codec)
        layout = RowLayout(self.mostly(Dtype.BFLOAT16, Dtype.FLOAT32), codec, self.mostly(1, 2))
        end = 0 if session is None else session.end
        position = max(self.mostly(end, end - 1, end - 3, end + 2, MAX_TOKENS), 0)
        num_tokens = random.choice([1, 1, 1, 2, 5, 12, self.mostly(1, 13)])
        shape = num_tokens, random.randint(0, num_tokens), self.mostly(False, True)
        kinds = layout.dtype, layout.codec, layout.width
        is_drawn = random.random() < 0.5
        return Step(key, number, position, *shape, *kinds, bytes(layout.num_bytes(num_tokens)), is_drawn)

    def mostly(self, usual: Any, *others: Any) -> Any:
        return usual if self.random.random() < 0.95 else self.random.choice(others)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_no_message_breaks_a_node(seed: int) -> None:
    node = Node(Random(seed))
    for _ in range(NUM_EVENTS):
        node.happen()
    assert node.num_computed > 0, "everything was refused: this tests nothing"


def test_some_of_those_messages_draw_tokens() -> None:
    nodes = [Node(Random(seed)) for seed in range(20)]
    for node in nodes:
        for _ in range(NUM_EVENTS):
            node.happen()
    assert sum(node.num_drawn for node in nodes) > 10, "this tests nothing"
