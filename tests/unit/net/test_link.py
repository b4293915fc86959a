"""Two links and a path between them that delays, loses and reorders, on a clock of its own. No sockets."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from hopformer.net import link as links
from hopformer.net.identity import Identity, PeerId
from hopformer.net.link import Greeted, Link, LinkEvent, Over, Proven
from hopformer.net.messages import Ask, Close, Codec, Dtype, Goodbye, Lease, Message, SessionKey, Step
from hopformer.net.quic import Credentials, MutualQuic
from hopformer.net.wire import Hello

ANNA, BELA = Identity.generate(), Identity.generate()
HELLO = Hello(bytes(8), bytes(8), bytes(16))
SESSION = SessionKey(ANNA.peer_id, 1)


def step(number: int, num_rows: int = 1, of: int = 1) -> Step:
    rows = bytes((number + index) % 251 for index in range(256)) * (32 * num_rows)
    session = SessionKey(ANNA.peer_id, of)
    return Step(session, number, 0, num_rows, 0, False, Dtype.BFLOAT16, Codec.EXACT, 4096, rows)


@dataclass
class World:
    """Anna's link, who dials, and Bela's; each greets when the other's key is the right one."""

    delay_s: float = 0.001
    jitter_s: float = 0.0
    loss: float = 0.0
    seed: int = 0
    now: float = 100.0
    anna: Link = field(init=False)
    bela: Link = field(init=False)
    told: dict[str, list[LinkEvent]] = field(default_factory=lambda: {"anna": [], "bela": []})
    is_cut: bool = False
    greets: bool = True
    on_message: Callable[[str, Message], None] = lambda *_: None

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.queue: list[tuple[float, int, str, bytes]] = []
        self.num_sent = 0
        quic = MutualQuic(Credentials(ANNA))
        self.anna = Link(quic, self.now)
        self.bela = Link(MutualQuic(Credentials(BELA), quic.original_destination_connection_id), self.now)
        self.transmit("anna")

    def link(self, name: str) -> Link:
        return self.anna if name == "anna" else self.bela

    def transmit(self, name: str) -> None:
        other = "bela" if name == "anna" else "anna"
        for datagrams in self.link(name).transmit(self.now):
            for datagram in datagrams:
                self.num_sent += 1
                if not self.is_cut and self.chance.random() >= self.loss:
                    at = self.now + self.delay_s + self.chance.random() * self.jitter_s
                    heapq.heappush(self.queue, (at, self.num_sent, other, datagram))

    def turn(self, name: str) -> None:
        link = self.link(name)
        for event in link.events():
            self.told[name].append(event)
            if self.greets and isinstance(event, Proven if name == "anna" else Greeted):
                link.greet(HELLO)
            elif not isinstance(event, Proven | Greeted | Over):
                self.on_message(name, event)
        self.transmit(name)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> "World":
        end = self.now + seconds
        while not until():
            timers = [(self.link(name).next_deadline(), name) for name in ("anna", "bela") if self.link_began(name)]
            at, name = min(timers)
            arrives = self.queue[0][0] if self.queue else float("inf")
            if min(at, arrives) > end:
                self.now = end
                break
            self.now = max(self.now, min(at, arrives))
            if arrives <= at:
                _, _, name, datagram = heapq.heappop(self.queue)
                self.link(name).receive(datagram, self.now)
            elif (over := self.link(name).handle_deadline(self.now)) is not None:
                self.told[name].append(over)
            self.turn(name)
        return self

    def link_began(self, name: str) -> bool:
        return name == "anna" or self.bela.received_bytes > 0

    def send(self, name: str, *messages: Message) -> None:
        for message in messages:
            self.link(name).send(message)
        self.transmit(name)

    def messages(self, name: str) -> list[Message]:
        return [one for one in self.told[name] if not isinstance(one, Proven | Greeted | Over)]

    def over(self, name: str) -> list[Over]:
        return [one for one in self.told[name] if isinstance(one, Over)]


def connected(**settings: float) -> World:
    world = World(**settings).run(3, until=lambda: False)
    assert world.anna.is_open and world.bela.is_open
    return world


def test_each_end_is_told_the_others_key_before_anything_else() -> None:
    world = connected()
    assert world.told["anna"][:2] == [Proven(BELA.peer_id), Greeted(HELLO)]
    assert world.told["bela"][:2] == [Proven(ANNA.peer_id), Greeted(HELLO)]


def test_messages_pass_in_both_directions_and_in_order() -> None:
    world = connected()
    out = [Ask(), step(1), step(2, num_rows=40), step(3), Goodbye(1), Close(SESSION)]
    world.send("anna", *out)
    world.send("bela", step(9), Goodbye(5))
    world.run(1)
    received = world.messages("bela")
    for has_session in (True, False):
        mine = [one for one in out if hasattr(one, "session") == has_session]
        assert [one for one in received if hasattr(one, "session") == has_session] == mine
    assert world.messages("anna") == [step(9), Goodbye(5)] or world.messages("anna") == [Goodbye(5), step(9)]


@pytest.mark.parametrize("seed", range(4))
def test_loss_and_reordering_lose_nothing_and_keep_each_sessions_order(seed: int) -> None:
    world = connected(delay_s=0.01, jitter_s=0.005, loss=0.05, seed=seed)
    sent = [step(number, num_rows=20 if number % 7 == 0 else 1, of=number % 3) for number in range(60)]
    world.send("anna", *sent)
    world.run(20, until=lambda: len(world.messages("bela")) == len(sent))
    for of in range(3):
        session = SessionKey(ANNA.peer_id, of)
        mine = [one for one in sent if one.session == session]
        assert [one for one in world.messages("bela") if one.session == session] == mine


def test_nothing_is_read_of_a_peer_that_was_not_let_in() -> None:
    world = World(greets=False).run(1)
    assert world.told == {"anna": [Proven(BELA.peer_id)], "bela": [Proven(ANNA.peer_id)]}
    stream_id = world.bela.quic.get_next_available_stream_id(is_unidirectional=True)
    world.bela.quic.send_stream_data(stream_id, b"\xff" * 100)
    world.anna.close(links.REFUSED, "you are not whom I dialled")
    world.transmit("anna")
    world.run(1)
    assert world.told["anna"] == [Proven(BELA.peer_id)]
    assert world.over("bela") == [Over("you are not whom I dialled", links.REFUSED)]


def test_a_message_that_overtakes_the_hello_waits_for_it() -> None:
    world = World(greets=False).run(1)
    for link in (world.anna, world.bela):
        link.greet(HELLO)
    world.loss = 1.0
    world.transmit("anna")  # Anna's Hello is lost ...
    world.loss = 0.0
    world.transmit("bela")
    world.run(0.0015)
    world.send("anna", Lease(SESSION))  # ... and what she says next is not
    world.run(0.0015)
    assert world.told["bela"] == [Proven(ANNA.peer_id)]
    world.run(2)
    assert world.told["bela"][-2:] == [Greeted(HELLO), Lease(SESSION)]


@pytest.mark.parametrize("garbage", [b"\xff" * 64, b"\0\0\0\2\x63\0", b"\xff\xff\xff\xff\1\0"])
def test_garbage_on_a_stream_ends_the_connection_with_the_reason(garbage: bytes) -> None:
    world = connected()
    world.anna.quic.send_stream_data(10, garbage)
    world.transmit("anna")
    world.run(1)
    (over,) = world.over("bela")
    assert over.reason.startswith("it broke a rule: ") and world.messages("bela") == []
    assert world.over("anna")[0].code == links.BROKEN_RULE


def test_a_stream_that_is_broken_off_ends_the_connection() -> None:
    world = connected()
    world.send("anna", Lease(SESSION))
    world.run(0.1)
    world.anna.quic.reset_stream(6, 0)
    world.transmit("anna")
    world.run(1)
    assert "broke off a stream" in world.over("bela")[0].reason


def test_a_second_hello_ends_the_connection() -> None:
    world = connected()
    world.anna._outbox.send_own(HELLO)
    world.transmit("anna")
    world.run(1)
    assert "said Hello twice" in world.over("bela")[0].reason


def test_close_is_told_at_once() -> None:
    world = connected()
    world.anna.close(links.CLOSED, "it was shut down")
    world.transmit("anna")
    began = world.now
    world.run(5, until=lambda: bool(world.over("bela")))
    assert world.over("bela") == [Over("it was shut down", links.CLOSED)] and world.now - began < 0.01


def test_what_a_peer_gives_as_its_reason_is_cut_and_printable() -> None:
    world = connected()
    world.anna.close(links.CLOSED, "\x1b[31m" + "x" * 500)
    world.transmit("anna")
    world.run(1)
    assert world.over("bela")[0].reason == "?[31m" + "x" * 195


def test_an_idle_connection_stays() -> None:
    world = connected()
    before = world.num_sent
    world.run(600)
    assert world.anna.is_open and world.bela.is_open and world.over("anna") == []
    assert world.num_sent - before < 600  # a ping and its answer, every 5 s or so


@pytest.mark.parametrize(("is_busy", "limit_s"), [(True, 3.0), (False, 8.0)])
def test_a_dead_network_is_noticed(is_busy: bool, limit_s: float) -> None:
    world = connected()
    if is_busy:
        world.send("anna", Lease(SESSION))
        world.run(1)
    world.is_cut, began = True, world.now
    for name in ("anna", "bela"):
        world.run(20, until=lambda name=name: bool(world.over(name)))
        assert world.over(name) and world.now - began < limit_s
        assert "nothing was heard of it for" in world.over(name)[0].reason


def test_a_short_silence_is_forgiven() -> None:
    world = connected()
    world.send("anna", Lease(SESSION))
    world.run(1)
    world.is_cut = True
    world.run(2.0)
    world.is_cut = False
    world.run(30)
    assert world.anna.is_open and world.bela.is_open


def test_a_hint_makes_the_end_come_soon_and_only_if_nothing_is_heard() -> None:
    world = connected()
    world.anna.hint_gone(world.now)
    world.transmit("anna")
    world.run(5)
    assert world.anna.is_open  # Bela answered
    world.is_cut, began = True, world.now
    for _ in range(3):
        world.anna.hint_gone(world.now)
        world.transmit("anna")
        world.run(0.1)
    world.run(5, until=lambda: bool(world.over("anna")))
    assert world.over("anna") and world.now - began < 0.5


def test_a_forged_hint_does_not_end_a_connection_with_a_long_round_trip() -> None:
    world = connected(delay_s=0.3)
    for _ in range(20):
        world.anna.hint_gone(world.now)
        world.transmit("anna")
        world.run(0.2)
    assert world.anna.is_open and world.over("anna") == []


def test_a_decode_step_does_not_wait_for_a_prefill_of_another_session() -> None:
    world = connected(delay_s=0.0005)
    world.send("anna", step(1, num_rows=2048, of=1))
    world.run(0.005)
    began, answers = world.now, []

    def note(name: str, message: Message) -> None:
        answers.append((world.now, message.session.number))

    world.on_message = note
    world.send("anna", step(1, of=2))
    world.run(5, until=lambda: len(answers) == 2)
    assert [number for _, number in answers] == [2, 1] and answers[0][0] - began < 0.01


def test_a_peer_that_nobody_reads_stops_sending() -> None:
    world = connected()
    world.bela.hold(True)
    for number in range(3):
        world.send("anna", step(number, num_rows=1024))
    world.run(5)
    received = len(world.messages("bela"))
    assert received == 0 and world.anna.queued_bytes > 16 << 20 and world.bela.received_bytes < 6 << 20
    world.bela.hold(False)
    world.turn("bela")
    world.run(20, until=lambda: len(world.messages("bela")) == 3)
    assert len(world.messages("bela")) == 3 and world.anna.queued_bytes == 0


def test_sessions_come_and_go_and_leave_no_streams() -> None:
    world = connected()
    for number in range(300):
        session = SessionKey(ANNA.peer_id, number)
        world.send("anna", Lease(session), Close(session))
        world.anna.end_session(session)
        world.transmit("anna")
        world.run(0.01)
    world.run(1)
    assert len(world.messages("bela")) == 600
    for link in (world.anna, world.bela):
        assert len(link.quic._streams) <= 2 and not link.is_busy


def test_a_session_whose_caller_died_loses_its_stream_after_a_while() -> None:
    world = connected()
    world.send("anna", Lease(SESSION))
    world.run(links.SWEEP_S)
    world.run(links.SWEEP_S + 10)
    assert not world.anna.is_busy and not world.bela.is_busy


def test_a_copy_of_every_datagram_changes_nothing() -> None:
    world = connected()
    world.send("anna", *(step(number) for number in range(5)))
    world.queue += [(at + 0.001, order + 10_000, name, datagram) for at, order, name, datagram in world.queue]
    heapq.heapify(world.queue)
    world.run(2)
    assert world.messages("bela") == [step(number) for number in range(5)]


def test_a_handshake_that_was_recorded_opens_nothing() -> None:
    world = World()
    recorded = [datagram for _, _, name, datagram in world.queue if name == "bela"]
    world.run(1)
    server = MutualQuic(Credentials(BELA), world.anna.quic.original_destination_connection_id)
    replayed = Link(server, world.now)
    for datagram in recorded:
        replayed.receive(datagram, world.now)
    assert list(replayed.events()) == [] and not replayed.is_proven


def test_a_peer_id_is_of_the_key_and_of_nothing_else() -> None:
    world = connected()
    assert world.anna.quic.peer_id == PeerId.of(BELA.public_bytes)
