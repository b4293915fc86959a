"""Who may have a session, what is computed together, what is answered, and every limit at the limit."""

from dataclasses import replace

import pytest

from hopformer.net.hop_outputs import Dial, Output, ReadyStep, Release, Send, Timing
from hopformer.net.hop_sessions import HopSessions
from hopformer.net.identity import PeerId
from hopformer.net.messages import (
    Close,
    Codec,
    Done,
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
    Serving,
    SessionKey,
    Step,
)
from hopformer.net.served_span import HopLimits, ServedSpan

CALLER, OTHER, NEXT, SPARE = (PeerId(name * 22) for name in (b"c", b"o", b"n", b"s"))
FINGERPRINT = b"f" * 32
SERVED = ServedSpan("m", FINGERPRINT, 0, 4, 8, 1, Dtype.BFLOAT16, (Codec.EXACT,), 1000, "test")
LAST = replace(SERVED, start=4, end=8)
PAGE_SIZE = 4
ALONE = Neighbours(CALLER, CALLER, ())


class Node:
    """HopSessions, the time, and what came out so far."""

    def __init__(self, served: ServedSpan = SERVED, num_pages: int = 500, **limits: float) -> None:
        self.core = HopSessions(served, num_pages, PAGE_SIZE, HopLimits(**limits))
        self.now = 0.0
        for peer in (CALLER, OTHER):
            self.core.peer_up(peer, self.now)

    def tell(self, peer: PeerId, message: Message) -> list[Output]:
        """``peer`` sends a message; returns what came of it."""
        self.core.receive(peer, message, self.now)
        return self.outputs()

    def outputs(self) -> list[Output]:
        self.core.check_integrity()
        return self.core.take_outputs()

    def open(self, **changes: object) -> list[Output]:
        """The caller opens a session."""
        opening = opening_of(self.core.served, **changes)
        return self.tell(opening.session.caller, opening)

    def compute(self) -> list[ReadyStep]:
        """Compute one batch."""
        batch = self.core.start_batch(self.now)
        for ready in batch:
            self.core.finish(ready, bytes(2 * ready.num_rows), Timing(self.now, self.now + 0.5, len(batch)))
        return batch

    def wait(self, seconds: float) -> list[Output]:
        self.now += seconds
        self.core.handle_deadline(self.now)
        return self.outputs()


@pytest.fixture
def node() -> Node:
    return Node()


def key(number: int = 1, caller: PeerId = CALLER) -> SessionKey:
    return SessionKey(caller, number)


def opening_of(served: ServedSpan, **changes: object) -> Open:
    kinds = served.dtype, Codec.EXACT
    opening = replace(Open(key(), FINGERPRINT, served.start, served.end, *kinds, 100, 60, ALONE), **changes)
    caller = opening.session.caller
    return opening if opening.neighbours != ALONE else replace(opening, neighbours=Neighbours(caller, caller, ()))


def step(number: int, position: int, count: int = 1, wanted: int = 1, session: SessionKey | None = None) -> Step:
    kinds = Dtype.BFLOAT16, Codec.EXACT, 1
    return Step(session or key(), number, position, count, wanted, False, *kinds, bytes(2 * count))


def refusals(outputs: list[Output]) -> list[tuple[Reason, str]]:
    messages = [output.message for output in outputs if isinstance(output, Send)]
    return [(message.reason, message.text) for message in messages if isinstance(message, Refuse)]


def sent(outputs: list[Output], peer: PeerId) -> list[Message]:
    return [output.message for output in outputs if isinstance(output, Send) and output.peer == peer]


def test_an_open_is_answered_and_a_step_computed_and_told(node: Node) -> None:
    assert node.open() == [Send(CALLER, Opened(key()))]
    node.tell(CALLER, step(1, 0, 5, wanted=2))
    node.now += 0.25
    (ready,) = node.compute()
    assert ready.num_rows == 5, "a middle hop keeps all rows"
    rows, done = sent(node.outputs(), CALLER)
    assert rows == replace(step(1, 0, 5, wanted=2), payload=bytes(4))
    assert done == Done(key(), 1, 250_000, 500_000, 1)


def test_the_last_layers_pack_only_the_wanted_rows() -> None:
    node = Node(LAST)
    node.open()
    node.tell(CALLER, step(1, 0, 5, wanted=2))
    node.tell(CALLER, step(2, 5, 5, wanted=0))
    assert [ready.num_rows for _ in range(2) for ready in node.compute()] == [2, 0]
    assert [type(message) for message in sent(node.outputs(), CALLER)] == [Step, Done, Done]


def test_the_next_hop_is_dialled_and_nothing_is_computed_before_it_is_there(node: Node) -> None:
    outputs = node.open(neighbours=Neighbours(CALLER, NEXT, ("n:1",)))
    assert outputs == [Send(CALLER, Opened(key())), Dial(NEXT, ("n:1",))]
    node.tell(CALLER, step(1, 0, 5))
    assert not node.core.has_ready and node.compute() == []
    node.core.peer_up(NEXT, node.now)
    assert node.core.has_ready
    node.compute()
    outputs = node.outputs()
    assert sent(outputs, NEXT) == [replace(step(1, 0, 5), payload=bytes(10))]
    assert [type(message) for message in sent(outputs, CALLER)] == [Done]


def test_a_next_hop_that_cannot_be_reached_stops_nothing_but_its_rows(node: Node) -> None:
    node.open(neighbours=Neighbours(CALLER, NEXT, ("n:1",)))
    node.tell(CALLER, step(1, 0, 5))
    node.core.peer_down(NEXT, node.now)
    node.compute()
    outputs = node.outputs()
    assert sent(outputs, NEXT) == []
    assert [type(message) for message in sent(outputs, CALLER)] == [Done], "so that the caller blames the next"


def test_a_reroute_replays_once_the_new_next_is_there(node: Node) -> None:
    node.open()
    node.tell(CALLER, step(1, 0, 5))
    node.tell(CALLER, step(2, 5, 3))
    node.compute()
    node.compute()
    node.outputs()
    outputs = node.tell(CALLER, Reroute(key(), Neighbours(CALLER, NEXT, ("n:1",)), 6))
    assert outputs == [Dial(NEXT, ("n:1",))]
    node.core.peer_up(NEXT, node.now)
    (replayed,) = sent(node.outputs(), NEXT)
    assert isinstance(replayed, Step)
    assert (replayed.step, replayed.position, replayed.num_tokens, replayed.is_replay) == (0, 0, 6, True)
    outputs = node.tell(CALLER, Reroute(key(), Neighbours(CALLER, NEXT, ("n:1",)), 8))
    assert [message.num_tokens for message in sent(outputs, NEXT) if isinstance(message, Step)] == [8]


def test_the_last_layers_have_nothing_to_replay_and_say_so() -> None:
    node = Node(LAST)
    node.open()
    assert node.tell(CALLER, Reroute(key(), ALONE, 5)) == []
    ((reason, text),) = refusals(node.tell(CALLER, Reroute(key(), Neighbours(CALLER, NEXT, ()), 5)))
    assert reason is Reason.PROTOCOL and "keep no rows" in text


def test_the_same_open_again_changes_nothing_unless_the_connection_was_lost(node: Node) -> None:
    node.open()
    node.tell(CALLER, step(1, 0, 5))
    node.compute()
    node.outputs()
    assert node.open() == [Send(CALLER, Opened(key()))]
    assert node.core.num_free_pages == 498
    node.core.peer_down(CALLER, node.now)
    node.core.peer_up(CALLER, node.now)
    assert node.core.num_free_pages == 498
    assert node.open() == [Release(0), Send(CALLER, Opened(key()))]
    assert node.core.num_free_pages == 500


def test_another_open_of_the_same_session_begins_it_anew(node: Node) -> None:
    node.open()
    node.tell(CALLER, step(7, 0, 5))
    assert node.open(max_tokens=50) == [Release(0), Send(CALLER, Opened(key()))]
    node.tell(CALLER, step(1, 0, 5))
    assert [ready.step.step for ready in node.compute()] == [1]


@pytest.mark.parametrize("message", [Lease(key()), Rollback(key(), 1, 0), Reroute(key(), ALONE, 0), step(1, 0)])
def test_a_session_that_is_not_here_is_unknown(node: Node, message: Message) -> None:
    ((reason, _),) = refusals(node.tell(CALLER, message))
    assert reason is Reason.UNKNOWN_SESSION
    assert node.tell(CALLER, Close(key())) == []


def test_answers_for_callers_change_nothing(node: Node) -> None:
    node.open()
    serving = Serving("m", FINGERPRINT, 0, 4, Dtype.BFLOAT16, (), 0, 0, "")
    for message in (Opened(key()), Done(key(), 1, 0, 0, 1), Refuse(key(), Reason.BUSY, ""), Goodbye(1), serving):
        assert node.tell(CALLER, message) == []
    assert node.core.num_sessions == 1


def test_a_release_goes_with_every_end(node: Node) -> None:
    node.open()
    assert node.tell(CALLER, Close(key())) == [Release(0)]
    node.open()
    assert node.core.take_outputs() == [] and node.core.num_sessions == 1


def test_short_steps_go_first_and_long_ones_in_the_order_they_came() -> None:
    node = Node(max_batch_tokens=30, decode_tokens=8)
    for number, count in enumerate((20, 25, 9, 8, 1, 1)):
        node.open(session=key(number))
        node.tell(CALLER, step(1, 0, count, session=key(number)))
        node.now += 1.0
    batches = [[ready.step.session.number for ready in node.compute()] for _ in range(3)]
    assert batches == [[3, 4, 5, 0], [1, 2], []]


def test_a_long_step_is_not_kept_out_by_short_ones_for_ever() -> None:
    node = Node(max_batch_tokens=4, decode_tokens=1)
    node.open(session=key(0))
    node.open(session=key(1))
    node.tell(CALLER, step(1, 0, 40, session=key(0)))
    node.tell(CALLER, step(1, 0, 1, session=key(1)))
    assert len(node.compute()) == 2


def test_a_batch_has_one_step_of_a_session(node: Node) -> None:
    node.open()
    for number in range(3):
        node.tell(CALLER, step(number, number))
    assert [[ready.step.step for ready in node.compute()] for _ in range(3)] == [[0], [1], [2]]


def test_failed_steps_end_their_sessions(node: Node) -> None:
    node.open()
    node.tell(CALLER, step(1, 0, 5))
    batch = node.core.start_batch(node.now)
    node.core.fail(batch, "it broke")
    outputs = node.outputs()
    assert outputs == [Release(0), Send(CALLER, Refuse(key(), Reason.FAILED, "it broke"))]


# Limits, each at and beyond


def test_as_many_sessions_as_there_may_be() -> None:
    node = Node(max_sessions=3)
    assert not any(refusals(node.open(session=key(number))) for number in range(3))
    ((reason, text),) = refusals(node.open(session=key(3, OTHER)))
    assert reason is Reason.BUSY and "3 sessions are open" in text
    node.now += 61.0
    assert refusals(node.open(session=key(3, OTHER)))[0][0] is Reason.EVICTED
    assert node.core.num_sessions == 3


def test_as_many_sessions_of_a_caller_as_it_may_have() -> None:
    node = Node(max_caller_sessions=2)
    assert not any(refusals(node.open(session=key(number))) for number in range(2))
    ((reason, _),) = refusals(node.open(session=key(2)))
    assert reason is Reason.BUSY
    assert not refusals(node.open(session=key(2, OTHER)))


def test_one_s_own_idle_sessions_give_way_before_one_is_refused_and_nobody_else_s() -> None:
    node = Node(max_caller_sessions=2)
    node.open(session=key(0, OTHER))
    for number in range(2):
        node.open(session=key(number))
        node.now += 1.0
    node.now += 60.0
    node.tell(OTHER, Lease(key(0, OTHER)))
    outputs = node.open(session=key(2))
    assert refusals(outputs)[0][0] is Reason.EVICTED and outputs[0] == Release(1)
    assert node.core.num_sessions == 3


def test_as_many_tokens_of_a_caller_as_it_may_have() -> None:
    node = Node(max_caller_tokens=250)
    node.open(session=key(0))
    node.open(session=key(1))
    ((reason, text),) = refusals(node.open(session=key(2), max_tokens=51))
    assert reason is Reason.BUSY and "250 tokens together; that makes 251" in text
    assert not refusals(node.open(session=key(2), max_tokens=50))


def test_a_session_must_fit_into_the_free_pages() -> None:
    node = Node(num_pages=25, max_caller_tokens=1000)
    assert not refusals(node.open(max_tokens=100))
    assert refusals(node.open(session=key(2, OTHER), max_tokens=101))[0][0] is Reason.BUSY
    node.tell(CALLER, step(1, 0, 5))
    node.compute()
    node.outputs()
    assert refusals(node.open(session=key(2, OTHER), max_tokens=93))[0][0] is Reason.BUSY
    assert not refusals(node.open(session=key(2, OTHER), max_tokens=92))


def test_as_many_steps_wait_as_may() -> None:
    node = Node(max_waiting_steps=3)
    node.open()
    for number in (1, 3, 4):  # one is ready, two are early
        assert node.tell(CALLER, step(number, number - 1)) == []
    outputs = node.tell(CALLER, step(5, 9))
    assert refusals(outputs) == [(Reason.PROTOCOL, "more than 3 steps of the session wait")]
    assert node.core.num_sessions == 0


def test_as_many_bytes_wait_as_a_caller_s_steps_may_have() -> None:
    node = Node(max_waiting_bytes=20)
    node.open(session=key(0))
    node.open(session=key(1))
    node.open(session=key(0, OTHER))
    assert node.tell(CALLER, step(1, 5, 8, session=key(0))) == []
    assert node.tell(CALLER, step(1, 5, 2, session=key(1))) == []
    assert node.tell(OTHER, step(1, 5, 10, session=key(0, OTHER))) == []
    outputs = node.tell(CALLER, step(2, 9, 1, session=key(1)))
    assert refusals(outputs) == [(Reason.PROTOCOL, "more than 20 bytes of its caller's steps wait")]
    assert node.core.num_sessions == 2


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"num_tokens": 9, "payload": bytes(18)}, "a step has 9 tokens, 1 of them wanted; it may have 8"),
        ({"num_tokens": 0, "num_wanted": 0, "payload": b""}, "a step has 0 tokens"),
        ({"num_wanted": 5}, "4 tokens, 5 of them wanted"),
        ({"position": 97}, "ends at position 101; the session was opened for 100"),
        ({"payload": bytes(7)}, "has 7 bytes, not 8"),
        ({"width": 2}, "rows of 2 BFLOAT16 EXACT"),
        ({"codec": Codec.INT8}, "rows of 1 BFLOAT16 INT8"),
        ({"dtype": Dtype.FLOAT16}, "rows of 1 FLOAT16 EXACT"),
    ],
)
def test_a_step_that_makes_no_sense_ends_the_session(change: dict[str, object], text: str) -> None:
    node = Node(max_step_tokens=8)
    node.open()
    node.tell(CALLER, step(1, 0, 8))
    node.tell(CALLER, step(2, 96, 4))
    ((reason, found),) = refusals(node.tell(CALLER, replace(step(3, 8, 4), **change)))
    assert reason is Reason.PROTOCOL and text in found


def test_a_lease_is_cut_to_what_is_allowed() -> None:
    node = Node(max_sessions=1, max_lease_s=10)
    node.open(lease_s=1000)
    node.now += 10.0
    assert refusals(node.open(session=key(1, OTHER)))[0][0] is Reason.EVICTED


@pytest.mark.parametrize("word", [Lease(key()), Rollback(key(), 1, 0), Reroute(key(), ALONE, 0), step(1, 0)])
def test_any_word_of_a_session_begins_its_lease_anew(word: Message) -> None:
    node = Node(max_sessions=1)
    node.open()
    node.now += 59.0
    node.tell(CALLER, word)
    node.compute()
    node.now += 59.0
    assert refusals(node.open(session=key(1, OTHER)))[0][0] is Reason.BUSY
    node.now += 1.0
    assert refusals(node.open(session=key(1, OTHER)))[0][0] is Reason.EVICTED


def test_a_session_with_work_is_not_idle_however_old_its_lease() -> None:
    node = Node(max_sessions=1)
    node.open(neighbours=Neighbours(CALLER, NEXT, ()))
    node.tell(CALLER, step(1, 0))
    node.now += 100.0
    assert refusals(node.open(session=key(1, OTHER)))[0][0] is Reason.BUSY


def test_the_session_that_was_idle_longest_gives_its_pages_first() -> None:
    node = Node(num_pages=6)
    for number, wait in ((0, 5.0), (1, 1.0)):
        node.open(session=key(number), max_tokens=8)
        node.tell(CALLER, step(1, 0, 8, session=key(number)))
        node.compute()
        node.now += wait
    node.now += 60.0
    node.outputs()
    node.open(session=key(2, OTHER), max_tokens=12)
    node.tell(OTHER, step(1, 0, 12, session=key(2, OTHER)))
    assert len(node.compute()) == 1
    assert [output for output in node.outputs() if isinstance(output, Release)] == [Release(0)]


def test_a_caller_that_does_not_come_back_loses_its_sessions_after_the_grace_period() -> None:
    node = Node(grace_s=30.0)
    node.open()
    node.open(session=key(1, OTHER))
    node.core.peer_down(CALLER, 5.0)
    assert node.core.next_deadline() == 35.0
    assert node.wait(34.9) == []
    assert node.wait(0.1) == [Release(0)]
    assert node.core.next_deadline() is None and node.core.num_sessions == 1


def test_draining_opens_nothing_tells_everybody_and_ends_what_is_left() -> None:
    node = Node()
    node.open()
    node.core.drain(0.0, 3.0)
    assert node.outputs() == [Send(peer, Goodbye(3)) for peer in (CALLER, OTHER)]
    node.core.peer_up(SPARE, 1.0)
    assert node.outputs() == [Send(SPARE, Goodbye(2))]
    assert refusals(node.open(session=key(2)))[0][0] is Reason.DRAINING
    node.tell(CALLER, step(1, 0))
    assert len(node.compute()) == 1
    node.outputs()
    assert node.core.next_deadline() == 3.0
    assert refusals(node.wait(3.0))[0][0] is Reason.DRAINING
    assert node.core.num_sessions == 0 and node.core.next_deadline() is None
