"""Streams, order, credit and limits, without QUIC: what an outbox writes, an inbox reads."""

import random
from collections import defaultdict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hopformer.errors import LinkError, WireError
from hopformer.net import outbox as outboxes
from hopformer.net import wire
from hopformer.net.identity import PeerId
from hopformer.net.inbox import Inbox
from hopformer.net.messages import Ask, Close, Codec, Dtype, Goodbye, Lease, Message, SessionKey, Step
from hopformer.net.outbox import PIECE_BYTES, WINDOW_BYTES, Outbox, Write
from hopformer.net.wire import Credit, Hello, encode

CALLER = PeerId(bytes(22))
HELLO = Hello(bytes(8), bytes(8), bytes(16))
DATAGRAM = 1152
PIECES = 4 * PIECE_BYTES
COST = outboxes.MESSAGE_COST_BYTES
ROWS_8 = 56 + 8 * 8192 + COST  # what a step of eight rows counts for


def session(number: int) -> SessionKey:
    return SessionKey(CALLER, number)


def step(number: int, num_rows: int = 1, of: int = 0) -> Step:
    rows = bytes((number + index) % 251 for index in range(256)) * (32 * num_rows)
    return Step(session(of), number, 0, num_rows, 0, False, Dtype.BFLOAT16, Codec.EXACT, 4096, rows)


def writes(outbox: Outbox, piece_window_bytes: int = PIECES) -> list[Write]:
    """All that may be written now."""
    found = []
    while (write := outbox.next_write(DATAGRAM, piece_window_bytes)) is not None:
        found.append(write)
    outbox.check_integrity()
    return found


def test_sessions_have_streams_of_their_own_and_the_rest_shares_the_first() -> None:
    outbox = Outbox(2)
    for message in (Ask(), step(1, of=7), Goodbye(1), step(1, of=8), step(2, of=7)):
        outbox.send(message)
    assert [one.stream_id for one in writes(outbox) if len(one.data) < DATAGRAM] == [2, 6, 2, 10, 6]


def test_a_step_leaves_in_writes_that_fill_a_datagram() -> None:
    outbox = Outbox(2)
    outbox.send(step(1))
    lengths = [len(one.data) for one in writes(outbox)]
    assert sum(lengths) == 56 + 8192 and lengths[:-1] == [DATAGRAM] * 7


def test_a_decode_step_overtakes_a_prefill_of_another_session() -> None:
    outbox = Outbox(2)
    outbox.send(step(1, num_rows=64, of=1))
    first = outbox.next_write(DATAGRAM, PIECES)
    outbox.send(step(1, of=2))
    following = [outbox.next_write(DATAGRAM, PIECES) for _ in range(9)]
    assert first.stream_id == 6 and [one.stream_id for one in following] == [10] * 8 + [6]


def test_a_step_waits_for_the_prefill_of_its_own_session() -> None:
    outbox, inbox = Outbox(2), Inbox(2)
    sent = [step(1), step(2, num_rows=64), step(3), Lease(session(0))]
    for message in sent:
        outbox.send(message)
    assert carry(outbox, inbox) == sent


def carry(outbox: Outbox, inbox: Inbox) -> list[Message]:
    """Write, read and credit until nothing moves."""
    received: list[Message] = []
    while written := writes(outbox):
        for one in written:
            received += inbox.feed(one.stream_id, bytes(one.data), one.end_stream)
        credit = inbox.credit_due()
        if credit is not None:
            outbox.take_credit(credit.num_consumed)
    return received


def test_four_pieces_are_under_way_until_credit_comes() -> None:
    outbox, inbox = Outbox(2), Inbox(2)
    outbox.send(step(1, num_rows=1024))
    written = writes(outbox)
    assert sum(len(one.data) for one in written) == 56 + PIECES
    assert writes(outbox) == []
    for one in written[:3]:
        inbox.feed(one.stream_id, bytes(one.data), one.end_stream)
    outbox.take_credit(inbox.credit_due().num_consumed)
    assert len(writes(outbox)) == 2


def test_a_long_path_has_more_pieces_under_way() -> None:
    outbox = Outbox(2)
    outbox.send(step(1, num_rows=2048))
    assert sum(len(one.data) for one in writes(outbox, piece_window_bytes=1 << 30)) == WINDOW_BYTES - COST


def test_steps_wait_when_the_window_is_full_and_go_on_with_credit() -> None:
    outbox = Outbox(2)
    for number in range(700):
        outbox.send(step(number))
    writes(outbox)
    assert WINDOW_BYTES <= outbox.unconsumed_bytes <= WINDOW_BYTES + COST
    outbox.take_credit(COST + 100)
    assert 0 < sum(len(one.data) for one in writes(outbox)) <= COST + 100


def test_the_links_own_frames_need_no_credit() -> None:
    outbox, inbox = Outbox(2), Inbox(2)
    outbox.send_own(HELLO)
    for number in range(700):
        outbox.send(step(number))
    writes(outbox)
    outbox.send_own(Credit(0))
    (write,) = writes(outbox)
    assert write.stream_id == 2 and inbox.feed(2, bytes(write.data), False) == [Credit(0)]


def test_what_nobody_takes_is_not_queued_without_end() -> None:
    outbox = Outbox(2)
    for number in range(15):
        outbox.send(step(number, num_rows=512))
    with pytest.raises(LinkError, match="the peer takes none of them"):
        for number in range(2):
            outbox.send(step(number, num_rows=512))
    assert outbox.queued_bytes <= outboxes.MAX_QUEUED_BYTES
    outbox.check_integrity()


def test_a_message_beyond_the_wire_changes_nothing() -> None:
    outbox = Outbox(2)
    with pytest.raises(WireError):
        outbox.send(Goodbye(-1))
    assert outbox.queued_bytes == 0 and writes(outbox) == []


def test_credit_must_be_possible() -> None:
    outbox = Outbox(2)
    outbox.send(step(1))
    writes(outbox)
    outbox.take_credit(5)
    for num_consumed in (4, 56 + 8192 + COST + 1):
        with pytest.raises(LinkError, match="are possible"):
            outbox.take_credit(num_consumed)


def test_a_sessions_stream_ends_behind_its_last_message() -> None:
    for num_rows in (1, 64):
        outbox, inbox = Outbox(2), Inbox(2)
        outbox.send(step(1, num_rows=num_rows))
        outbox.send(Close(session(0)))
        outbox.end_session(session(0))
        outbox.end_session(session(0))
        assert carry(outbox, inbox) == [step(1, num_rows=num_rows), Close(session(0))]
        assert outbox.num_sessions == inbox.num_sessions == 0


def test_a_session_that_speaks_again_gets_another_stream() -> None:
    outbox = Outbox(2)
    outbox.send(Lease(session(0)))
    outbox.end_session(session(0))
    outbox.send(Lease(session(0)))
    assert [(one.stream_id, one.end_stream) for one in writes(outbox)] == [(6, False), (6, True), (10, False)]


def test_sessions_beyond_the_limit_share_streams_which_end_with_the_last_of_them() -> None:
    outbox, inbox = Outbox(2), Inbox(2)
    number_of = range(3 * outboxes.MAX_STREAMS)
    for number in number_of:
        outbox.send(step(0, of=number))
    assert [one.session for one in carry(outbox, inbox)] == [session(number) for number in number_of]
    assert outbox.num_sessions == len(number_of) and inbox.num_sessions == outboxes.MAX_STREAMS
    for number in number_of:
        outbox.send(Close(session(number)))
        outbox.end_session(session(number))
    carry(outbox, inbox)
    assert outbox.num_sessions == inbox.num_sessions == 0


def test_ten_thousand_sessions_leave_nothing_behind() -> None:
    outbox, inbox = Outbox(2), Inbox(2)
    for number in range(10_000):
        outbox.send(Lease(session(number)))
        outbox.send(Close(session(number)))
        outbox.end_session(session(number))
        assert len(carry(outbox, inbox)) == 2
    assert vars(outbox)["_streams"] == {} and vars(outbox)["_used"] == set()
    assert len(vars(inbox)["_readers"]) == 1


def test_sessions_of_which_nothing_is_sent_any_more_are_ended() -> None:
    outbox = Outbox(2)
    for number in range(3):
        outbox.send(Lease(session(number)))
    outbox.end_unused()
    outbox.send(Lease(session(1)))
    outbox.end_unused()
    assert outbox.num_sessions == 1
    assert [one.stream_id for one in writes(outbox) if one.end_stream] == [6, 14]


# ---- a distrustful receiver


def frame_of(frame: wire.Frame) -> bytes:
    return b"".join(encode(frame))


def test_credit_is_due_for_every_piece_and_not_while_nobody_reads() -> None:
    inbox = Inbox(2)
    inbox.feed(6, frame_of(step(1, num_rows=8)), False)
    assert inbox.credit_due() == Credit(ROWS_8) and inbox.credit_due() is None
    inbox.is_held = True
    inbox.feed(6, frame_of(step(2, num_rows=8)), False)
    assert inbox.credit_due() is None
    inbox.is_held = False
    assert inbox.credit_due() == Credit(2 * ROWS_8)


def test_a_credit_that_has_half_arrived_is_counted_neither_now_nor_later() -> None:
    inbox = Inbox(2)
    inbox.feed(2, frame_of(Credit(0))[:9], False)
    inbox.feed(6, frame_of(step(1, num_rows=8)), False)
    assert inbox.credit_due() == Credit(ROWS_8)
    assert inbox.feed(2, frame_of(Credit(0))[9:], False) == [Credit(0)]
    inbox.feed(6, frame_of(step(1, num_rows=8)), False)
    assert inbox.credit_due() == Credit(2 * ROWS_8)


def test_a_peer_that_sends_beyond_its_credit_is_found_out() -> None:
    inbox = Inbox(2)
    inbox.is_held = True
    message = frame_of(step(1, num_rows=64))
    for _ in range(WINDOW_BYTES // len(message)):
        inbox.feed(6, message, False)
    with pytest.raises(LinkError, match="beyond its credit"):
        for _ in range(2):
            inbox.feed(6, message, False)
            assert inbox.credit_due() is None


def test_a_peer_that_begins_many_large_messages_is_found_out() -> None:
    inbox = Inbox(2)
    begun = frame_of(step(1, num_rows=4096))[: 1 << 20]
    with pytest.raises(LinkError, match="send one at a time"):
        for number in range(60):
            inbox.feed(6 + 4 * number, begun, False)
            inbox.credit_due()


def test_many_tiny_messages_are_found_out_by_what_they_cost() -> None:
    inbox = Inbox(2)
    inbox.is_held = True
    with pytest.raises(LinkError, match="beyond its credit"):
        for _ in range(1 + WINDOW_BYTES // COST):
            inbox.feed(2, frame_of(Ask()), False)


@pytest.mark.parametrize(
    ("stream_id", "data", "end_stream", "why"),
    [
        (0, b"", False, "goes both ways"),
        (6, frame_of(HELLO), False, "only the first stream may"),
        (6, frame_of(Credit(0)), False, "only the first stream may"),
        (2, b"", True, "ended its first stream"),
        (6, frame_of(step(1))[:-1], True, "ended after 8247 bytes of a message"),
    ],
)
def test_a_broken_rule_is_told(stream_id: int, data: bytes, end_stream: bool, why: str) -> None:
    with pytest.raises(LinkError, match=why):
        Inbox(2).feed(stream_id, data, end_stream)


def test_the_first_stream_takes_no_activations_beyond_the_longest_list_of_revocations() -> None:
    with pytest.raises(WireError, match=f"the length of a frame is {56 + 3 * 8192}; 0 to {wire.MAX_REVOKE_BYTES}"):
        Inbox(2).feed(2, frame_of(step(1, num_rows=3)), False)


class Streams(RuleBasedStateMachine):
    """Messages of several sessions over streams whose pieces arrive in any order among each other."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox, self.inbox = Outbox(2), Inbox(2)
        self.under_way: dict[int, list[Write]] = defaultdict(list)
        self.sent: dict[object, list[Message]] = defaultdict(list)
        self.received: dict[object, list[Message]] = defaultdict(list)
        self.number = 0

    @rule(of=st.integers(0, 4), num_rows=st.sampled_from([1, 1, 1, 9, 40]))
    def send_step(self, of: int, num_rows: int) -> None:
        self.number += 1
        self._send(step(self.number, num_rows, of))

    @rule()
    def send_ask(self) -> None:
        self._send(Ask())

    @rule(of=st.integers(0, 4))
    def lease(self, of: int) -> None:
        self._send(Lease(session(of)))

    @rule(most=st.integers(1, 20))
    def write(self, most: int) -> None:
        for _ in range(most):
            write = self.outbox.next_write(DATAGRAM, PIECES)
            if write is not None:
                self.under_way[write.stream_id].append(write)

    @rule(seed=st.integers(0, 1000), most=st.integers(1, 30))
    def arrive(self, seed: int, most: int) -> None:
        chance = random.Random(seed)
        for _ in range(most):
            streams = [stream_id for stream_id, waiting in self.under_way.items() if waiting]
            if streams:
                one = self.under_way[chance.choice(streams)].pop(0)
                for message in self.inbox.feed(one.stream_id, bytes(one.data), one.end_stream):
                    self.received[getattr(message, "session", None)].append(message)

    @rule()
    def credit(self) -> None:
        credit = self.inbox.credit_due()
        if credit is not None:
            self.outbox.take_credit(credit.num_consumed)

    @invariant()
    def every_session_is_in_order(self) -> None:
        self.outbox.check_integrity()
        for name, received in self.received.items():
            assert received == self.sent[name][: len(received)]

    def teardown(self) -> None:
        while any(self.under_way.values()) or self.outbox.queued_bytes:
            before = self.outbox.queued_bytes, sum(map(len, self.under_way.values()))
            self.credit()
            self.write(50)
            self.arrive(0, 50)
            assert before != (self.outbox.queued_bytes, sum(map(len, self.under_way.values()))), "nothing moves"
        assert self.received == {name: sent for name, sent in self.sent.items() if sent}

    def _send(self, message: Message) -> None:
        if self.outbox.queued_bytes < 2 << 20:
            self.outbox.send(message)
            self.sent[getattr(message, "session", None)].append(message)


TestStreams = Streams.TestCase
TestStreams.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("own", [HELLO, Hello(bytes(8), bytes(8), bytes(16), bytes(1024)), Credit(5)])
def test_the_links_own_frames_are_no_messages_and_need_no_credit_however_long_they_are(own: wire.Frame) -> None:
    inbox = Inbox(2)
    assert inbox.feed(2, frame_of(own), False) == [own]
    inbox.feed(6, frame_of(step(1, num_rows=8)), False)
    assert inbox.credit_due() == Credit(ROWS_8)
