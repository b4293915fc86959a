"""One network for a caller and a server: everybody gets what is his, and nobody waits for the other."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from hopformer.errors import NetworkError
from hopformer.net import shared_switchboard
from hopformer.net.identity import PeerId
from hopformer.net.messages import (
    Ask,
    Close,
    Codec,
    Context,
    Done,
    Draw,
    Drawn,
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
from hopformer.net.shared_switchboard import Role, SharedSwitchboard, role_of
from hopformer.net.switchboard import Event, PeerDown, PeerStats, PeerUp, Received

OWN, ANNA = PeerId(b"own".ljust(22)), PeerId(b"anna".ljust(22))
MINE, THEIRS = SessionKey(OWN, 1), SessionKey(ANNA, 1)
NEIGHBOURS = Neighbours(ANNA, ANNA, ())
PATIENCE_S = 20.0


def step(session: SessionKey, num_bytes: int = 4) -> Step:
    return Step(session, 1, 0, 1, 1, False, Dtype.FLOAT32, Codec.EXACT, num_bytes // 4, bytes(num_bytes))


class Board:
    """A Switchboard whose events a test writes."""

    peer_id, addrs = OWN, ("127.0.0.1:4711",)

    def __init__(self) -> None:
        self.sent: list[tuple[PeerId, Message]] = []
        self.dialled: list[PeerId] = []
        self.is_closed = False
        self.num_polls = 0
        self.error: NetworkError | None = None
        self._events: list[Event] = []
        self._changed = threading.Condition()

    def happen(self, *events: Event) -> None:
        with self._changed:
            self._events += events
            self._changed.notify_all()

    def now(self) -> float:
        return time.monotonic()

    def dial(self, peer: PeerId, addrs: Sequence[str]) -> None:
        self.dialled.append(peer)

    def send(self, peer: PeerId, message: Message) -> None:
        self.sent.append((peer, message))

    def send_all(self, messages: Sequence[tuple[PeerId, Message]]) -> None:
        self.sent.extend(messages)

    def poll(self, timeout_s: float | None) -> list[Event]:
        with self._changed:
            self.num_polls += 1
            self._changed.wait_for(lambda: self._events or self.error is not None, timeout_s)
            if self.error is not None:
                raise self.error
            events, self._events = self._events, []
            return events

    def stats(self) -> dict[PeerId, PeerStats]:
        return {ANNA: PeerStats("127.0.0.1:1", 0.001, 2, 3, 4)}

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def board() -> Board:
    return Board()


@pytest.fixture
def shared(board: Board) -> Iterator[SharedSwitchboard]:
    one = SharedSwitchboard(board)
    one.start()
    yield one
    one.close()
    assert board.is_closed


def polled(shared: SharedSwitchboard, role: Role, count: int) -> list[Event]:
    """As many events of a role, which must come."""
    events: list[Event] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(events) < count and time.monotonic() < deadline:
        events += shared.ports[role].poll(1.0)
    assert len(events) == count
    return events


def test_every_message_is_for_one_of_the_two() -> None:
    opening = Open(THEIRS, bytes(32), 0, 1, Dtype.FLOAT32, Codec.EXACT, 8, 8, NEIGHBOURS)
    orders = [Reroute(THEIRS, NEIGHBOURS, 0), Rollback(THEIRS, 1, 0), Close(THEIRS), Lease(THEIRS)]
    draw = Draw(THEIRS, 1, 0.0, 0, 1.0, 0.0, 1.0, 0, 0)
    to_the_server = [step(THEIRS), opening, *orders, Context(THEIRS, 0, ()), draw, Ask()]
    serving = Serving("demo", bytes(32), 0, 0, None, (), 0, 0, "1")
    to_the_caller = [
        step(MINE),
        Opened(MINE),
        Done(MINE, 1, 2, 3, 4),
        Refuse(MINE, Reason.BUSY, ""),
        Drawn(MINE, 1, 0, ()),
        Goodbye(1),
        serving,
    ]
    assert {type(one) for one in (*to_the_server, *to_the_caller)} == set(Message.__args__)
    assert {role_of(one, OWN) for one in to_the_server} == {Role.SERVER}
    assert {role_of(one, OWN) for one in to_the_caller} == {Role.CALLER}


def test_who_comes_and_goes_is_told_to_both_and_a_message_to_one(board: Board, shared: SharedSwitchboard) -> None:
    up, down = PeerUp(ANNA), PeerDown(ANNA, "it was shut down")
    mine, theirs = Received(ANNA, step(MINE)), Received(ANNA, step(THEIRS))
    board.happen(up, mine, theirs, down)
    assert polled(shared, Role.CALLER, 3) == [up, mine, down]
    assert polled(shared, Role.SERVER, 3) == [up, theirs, down]
    assert shared.ports[Role.CALLER].poll(0.0) == []


def test_a_peer_that_the_other_role_has_reached_already_is_up_at_once(board: Board, shared: SharedSwitchboard) -> None:
    caller = shared.ports[Role.CALLER]
    caller.dial(ANNA, ())
    assert board.dialled == [ANNA]
    board.happen(PeerUp(ANNA))
    polled(shared, Role.CALLER, 1)
    polled(shared, Role.SERVER, 1)
    caller.dial(ANNA, ())
    assert board.dialled == [ANNA] and caller.poll(0.0) == [PeerUp(ANNA)]
    assert shared.ports[Role.SERVER].poll(0.0) == []


def test_both_send_over_the_same_board(board: Board, shared: SharedSwitchboard) -> None:
    caller, server = shared.ports[Role.CALLER], shared.ports[Role.SERVER]
    caller.send(ANNA, Ask())
    server.send_all([(ANNA, Goodbye(1)), (ANNA, Opened(THEIRS))])
    assert board.sent == [(ANNA, Ask()), (ANNA, Goodbye(1)), (ANNA, Opened(THEIRS))]
    assert (caller.peer_id, server.addrs, caller.stats()) == (OWN, board.addrs, board.stats())


def test_while_one_does_not_read_nothing_more_is_read(
    board: Board, shared: SharedSwitchboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_switchboard, "MAX_WAITING_BYTES", 1000)
    board.happen(Received(ANNA, step(THEIRS, 1024)))
    wait_for(lambda: shared.ports[Role.SERVER].waiting_bytes > 1000)
    wait_for(lambda: is_still(board))
    board.happen(Received(ANNA, step(MINE)))
    assert shared.ports[Role.CALLER].poll(0.3) == []
    assert len(polled(shared, Role.SERVER, 1)) == 1
    assert polled(shared, Role.CALLER, 1) == [Received(ANNA, step(MINE))]


def test_a_network_that_ends_is_told_to_both(board: Board, shared: SharedSwitchboard) -> None:
    board.error = NetworkError("the network's process has ended")
    board.happen()
    for role in Role:
        with pytest.raises(NetworkError, match="has ended"):
            polled(shared, role, 1)


def test_closing_wakes_who_waits(board: Board) -> None:
    shared = SharedSwitchboard(board)
    shared.start()
    found: list[list[Event]] = []
    waiting = threading.Thread(target=lambda: found.append(shared.ports[Role.SERVER].poll(None)))
    waiting.start()
    shared.close()
    waiting.join(PATIENCE_S)
    assert found == [[]] and board.is_closed


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_still(board: Board) -> bool:
    """Whether nobody has asked for events for longer than a read takes."""
    before = board.num_polls
    time.sleep(2 * shared_switchboard.READ_S)
    return board.num_polls == before
