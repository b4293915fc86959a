"""Span servers in a network in memory, driven by a caller written by hand, beside the whole model in one process."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from hopformer.llama.assemble import ModelPart, Placement, load_model
from hopformer.llama.batch import Chunk
from hopformer.llama.config import load_config
from hopformer.llama.fingerprint import fingerprint
from hopformer.llama.kv_cache import KVCache
from hopformer.llama.model import Model
from hopformer.llama.pages import PagePool
from hopformer.llama.runner import SpanRunner
from hopformer.llama.sequences import SequenceTable
from hopformer.net.activations import pack, unpack
from hopformer.net.hop_sessions import HopSessions
from hopformer.net.identity import PeerId
from hopformer.net.memory_network import LinkQuality, MemoryNetwork
from hopformer.net.messages import (
    Ask,
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
from hopformer.net.row_layout import RowLayout
from hopformer.net.served_span import HopLimits, ServedSpan
from hopformer.net.span_server import SpanServer
from hopformer.net.switchboard import PeerDown, PeerUp, Received

NUM_LAYERS = 4
HIDDEN_SIZE = 32
MAX_CONTEXT = 64
PAGE_SIZE = 4
NUM_PAGES = 40
SESSION_TOKENS = 48
ROUTES = {1: [0, 4], 2: [0, 2, 4], 4: [0, 1, 2, 3, 4]}  # hops -> where their layers begin and end


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The model is so small that a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in float32."""
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        vocab_size=61,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=48,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_CONTEXT,
        initializer_range=0.25,
    )
    folder = tmp_path_factory.mktemp("random")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hidden() -> Tensor:
    """What goes into the first layer: f32 [MAX_CONTEXT, HIDDEN_SIZE]."""
    return torch.randn(MAX_CONTEXT, HIDDEN_SIZE, generator=torch.Generator().manual_seed(9))


def load_span(folder: Path, start: int, end: int) -> Model:
    part = ModelPart(start, end, embed=False, head=False)
    return load_model(folder, load_config(folder), part, Placement(torch.device("cpu"), torch.float32, MAX_CONTEXT))


def make_runner(model: Model, num_pages: int = NUM_PAGES, batch_invariant: bool = False) -> SpanRunner:
    pool = PagePool(num_pages, PAGE_SIZE)
    cache = KVCache(model.kv_shape, num_pages, PAGE_SIZE, model.device)
    return SpanRunner(model.span, cache, SequenceTable(pool), model.device, batch_invariant)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Model:
    return load_span(folder, 0, NUM_LAYERS)


def expected_rows(whole: Model, hidden: Tensor, counts: Sequence[int], batch_invariant: bool = False) -> Tensor:
    """The last layer's rows when the whole model computes ``hidden`` in steps of ``counts`` tokens."""
    runner = make_runner(whole, batch_invariant=batch_invariant)
    runner.sequences.open(0)
    rows, position = [], 0
    for count in counts:
        runner.sequences.reserve(0, position + count)
        with torch.inference_mode():
            rows.append(runner.forward([Chunk(0, position, count)], hidden[position : position + count]))
        runner.sequences.append(0, count)
        position += count
    return torch.cat(rows)


def peer(name: str) -> PeerId:
    return PeerId(name.encode().ljust(22, b"."))


class World:
    """A network, its servers by name, and the messages that its callers got."""

    def __init__(self, folder: Path, quality: LinkQuality | None = None, batch_invariant: bool = False) -> None:
        self.folder = folder
        self.batch_invariant = batch_invariant
        self.network = MemoryNetwork(quality)
        self.servers: dict[str, SpanServer] = {}
        self.fingerprint = fingerprint(folder)

    def serve(self, name: str, start: int, end: int, num_pages: int = NUM_PAGES, **limits: float) -> SpanServer:
        """Start a server of the layers ``start .. end``."""
        runner = make_runner(load_span(self.folder, start, end), num_pages, self.batch_invariant)
        served = ServedSpan(
            model="random",
            fingerprint=fingerprint(self.folder, start, end),
            start=start,
            end=end,
            num_layers=NUM_LAYERS,
            width=HIDDEN_SIZE,
            dtype=Dtype.FLOAT32,
            codecs=tuple(Codec),
            max_tokens=MAX_CONTEXT,
            version="test",
        )
        sessions = HopSessions(served, num_pages, PAGE_SIZE, replace(HopLimits(), **limits))
        server = SpanServer(self.network.join(peer(name)), runner, sessions)
        self.servers[name] = server
        self.network.attach(peer(name), server.turn)
        return server

    def serve_route(self, num_hops: int) -> list[str]:
        """Servers that together have all layers; returns their names in order."""
        names = [f"hop {index}" for index in range(num_hops)]
        for name, (start, end) in zip(names, pairwise(ROUTES[num_hops]), strict=True):
            self.serve(name, start, end)
        return names

    def run(self, seconds: float = 1.0) -> None:
        """Let the world go on, and look at every server afterwards."""
        self.network.advance(self.network.now + seconds)
        for server in self.servers.values():
            server.sessions.check_integrity()
            server._runner.sequences.check_integrity()


class Caller:
    """A caller that does what a test tells it, and remembers what it is told."""

    def __init__(self, world: World, name: str = "caller") -> None:
        self.world = world
        self.peer = peer(name)
        self.board = world.network.join(self.peer)
        self.down: list[PeerId] = []
        self.inbox: list[tuple[PeerId, Message]] = []
        self.step = 0

    def connect(self, *names: str) -> None:
        for name in names:
            self.board.dial(peer(name), ())
        self.world.run(0.1)

    def send(self, name: str, message: Message) -> None:
        self.board.send(peer(name), message)

    def settle(self, seconds: float = 1.0) -> None:
        """Let everything happen, and take what has come."""
        self.world.run(seconds)
        for event in self.board.poll(0):
            match event:
                case Received(sender, message):
                    self.inbox.append((sender, message))
                case PeerDown(gone, _):
                    self.down.append(gone)
                case PeerUp():
                    pass

    def take(self, kind: type[Message]) -> list[Message]:
        """The messages of a kind that have come since the last call."""
        self.settle()
        found = [message for _, message in self.inbox if isinstance(message, kind)]
        self.inbox = [(sender, message) for sender, message in self.inbox if not isinstance(message, kind)]
        return found

    def key(self, number: int = 1) -> SessionKey:
        return SessionKey(self.peer, number)

    def neighbours(self, names: Sequence[str], index: int) -> Neighbours:
        around = [self.peer, *map(peer, names), self.peer]
        return Neighbours(around[index], around[index + 2], ())

    def opening(self, names: Sequence[str], index: int, **changes: object) -> Open:
        served = self.world.servers[names[index]].sessions.served
        opening = Open(
            session=self.key(),
            fingerprint=self.world.fingerprint,
            start=served.start,
            end=served.end,
            dtype=Dtype.FLOAT32,
            codec=Codec.EXACT,
            max_tokens=SESSION_TOKENS,
            lease_s=60,
            neighbours=self.neighbours(names, index),
        )
        return replace(opening, **changes)

    def open(self, names: Sequence[str], **changes: object) -> None:
        """Open a session along a route of all ``names``, which must be granted."""
        self.connect(*names)
        for index, name in enumerate(names):
            self.send(name, self.opening(names, index, **changes))
        assert len(self.take(Opened)) == len(names)

    def make_step(self, hidden: Tensor, position: int, count: int, wanted: int | None = None, number: int = 1) -> Step:
        """The next step of a session: ``count`` tokens from ``position`` on."""
        self.step += 1
        payload = pack(hidden[position : position + count], LAYOUT)
        wanted = count if wanted is None else wanted
        shape = Dtype.FLOAT32, Codec.EXACT, HIDDEN_SIZE
        return Step(self.key(number), self.step, position, count, wanted, False, *shape, payload)

    def compute(self, name: str, hidden: Tensor, counts: Sequence[int], position: int = 0, number: int = 1) -> Tensor:
        """Send steps of ``counts`` tokens, all at once; returns all rows that come back, in order."""
        for count in counts:
            self.send(name, self.make_step(hidden, position, count, number=number))
            position += count
        return self.rows()

    def rows(self) -> Tensor:
        """The rows that came since the last call."""
        steps = self.take(Step)
        return torch.cat([unpack(step.payload, LAYOUT) for step in steps]) if steps else torch.empty(0, HIDDEN_SIZE)

    def refusal(self) -> Refuse:
        """The one refusal that came."""
        (refusal,) = self.take(Refuse)
        assert isinstance(refusal, Refuse)
        return refusal


LAYOUT = RowLayout(Dtype.FLOAT32, Codec.EXACT, HIDDEN_SIZE)


@pytest.fixture
def world(folder: Path) -> World:
    return World(folder)


@pytest.mark.parametrize("num_hops", ROUTES)
def test_hops_compute_what_the_whole_model_does_to_the_last_bit(
    world: World, whole: Model, hidden: Tensor, num_hops: int
) -> None:
    caller = Caller(world)
    names = world.serve_route(num_hops)
    caller.open(names)
    counts = [17, 5, 1, 1, 3, 1]
    rows = [caller.compute(names[0], hidden, [count], sum(counts[:i])) for i, count in enumerate(counts)]
    assert torch.equal(torch.cat(rows), expected_rows(whole, hidden, counts))
    done = caller.take(Done)
    assert len(done) == num_hops * len(counts)
    caller.send(names[0], Close(caller.key()))


@pytest.mark.parametrize("num_hops", ROUTES)
def test_several_steps_may_be_in_flight(world: World, whole: Model, hidden: Tensor, num_hops: int) -> None:
    caller = Caller(world)
    names = world.serve_route(num_hops)
    caller.open(names)
    counts = [16, 16, 1, 1, 2]
    assert torch.equal(caller.compute(names[0], hidden, counts), expected_rows(whole, hidden, counts))


def test_only_the_wanted_rows_come_back_and_none_if_none_are_wanted(world: World, whole: Model, hidden: Tensor) -> None:
    caller = Caller(world)
    names = world.serve_route(2)
    caller.open(names)
    for position, count, wanted in [(0, 9, 0), (9, 8, 1), (17, 4, 3)]:
        caller.send(names[0], caller.make_step(hidden, position, count, wanted))
    expected = expected_rows(whole, hidden, [9, 8, 4])
    assert torch.equal(caller.rows(), torch.cat([expected[16:17], expected[18:21]]))
    assert len(caller.take(Done)) == 6


def test_rows_pass_from_hop_to_hop_and_not_through_the_caller(world: World, hidden: Tensor) -> None:
    caller = Caller(world)
    names = world.serve_route(4)
    caller.open(names)
    caller.compute(names[0], hidden, [5])
    assert all(sender == peer(names[-1]) for sender, message in caller.inbox if isinstance(message, Step))


def test_steps_that_come_out_of_order_wait_for_what_is_missing(world: World, whole: Model, hidden: Tensor) -> None:
    caller = Caller(world)
    names = world.serve_route(2)
    caller.open(names)
    steps = [caller.make_step(hidden, position, 5) for position in (0, 5, 10)]
    caller.send(names[0], steps[2])
    caller.send(names[0], steps[1])
    assert len(caller.rows()) == 0
    caller.send(names[0], steps[0])
    assert torch.equal(caller.rows(), expected_rows(whole, hidden, [5, 5, 5]))


def test_a_link_that_duplicates_everything_changes_nothing(folder: Path, whole: Model, hidden: Tensor) -> None:
    world = World(folder, LinkQuality(duplicates=1.0, jitter_s=0.01))
    caller = Caller(world)
    names = world.serve_route(2)
    caller.connect(*names)
    for index, name in enumerate(names):
        caller.send(name, caller.opening(names, index))
    caller.take(Opened)
    caller.compute(names[0], hidden, [7, 3, 1])
    caller.inbox.clear()
    rows = caller.compute(names[0], hidden, [1], position=11)
    assert torch.equal(rows[:1], expected_rows(whole, hidden, [7, 3, 1, 1])[11:])
    assert {server.sessions.num_sessions for server in world.servers.values()} == {1}
    assert world.servers[names[0]]._runner.sequences.length(0) == 12


def test_a_lower_position_rolls_back(world: World, whole: Model, hidden: Tensor) -> None:
    caller = Caller(world)
    names = world.serve_route(2)
    caller.open(names)
    drafted = hidden.clone()
    drafted[10:] += 1.0
    caller.compute(names[0], drafted, [8, 6])
    rows = caller.compute(names[0], hidden, [3, 1], position=10)
    clean = torch.cat([hidden[:8], drafted[8:10], hidden[10:]])
    mixed = expected_rows(whole, clean, [8, 2, 3, 1])
    assert torch.allclose(rows, mixed[10:], atol=1e-5)
    assert world.servers[names[1]]._runner.sequences.length(0) == 14


def test_an_explicit_rollback_gives_pages_back(world: World, hidden: Tensor) -> None:
    caller = Caller(world)
    (name,) = world.serve_route(1)
    caller.open([name])
    caller.compute(name, hidden, [20])
    assert world.servers[name].sessions.num_free_pages == NUM_PAGES - 5
    caller.send(name, Rollback(caller.key(), caller.step + 1, 3))
    caller.settle()
    assert world.servers[name].sessions.num_free_pages == NUM_PAGES - 1
    caller.send(name, Close(caller.key()))
    caller.settle()
    assert world.servers[name].sessions.num_free_pages == NUM_PAGES


def test_a_hop_that_takes_another_s_place_is_filled_by_replay(world: World, whole: Model, hidden: Tensor) -> None:
    caller = Caller(world)
    names = world.serve_route(4)
    world.serve("spare", 2, 3)
    caller.open(names)
    counts = [10, 4, 1, 1]
    caller.compute(names[0], hidden, counts)
    world.network.kill(peer(names[2]))
    del world.servers[names[2]]
    route = [names[0], names[1], "spare", names[3]]
    caller.connect("spare")
    caller.send("spare", caller.opening(route, 2))
    assert len(caller.take(Opened)) == 1
    caller.send(names[3], Reroute(caller.key(), caller.neighbours(route, 3), 0))
    caller.send(names[1], Reroute(caller.key(), caller.neighbours(route, 1), 16))
    rows = caller.compute(names[0], hidden, [1, 1], position=16)
    assert torch.allclose(rows, expected_rows(whole, hidden, [*counts, 1, 1])[16:], atol=1e-5)
    assert world.servers["spare"]._runner.sequences.length(0) == 18


@pytest.mark.parametrize("dead", range(3))  # not the last: behind it is the caller alone
def test_with_batch_invariant_layers_a_replay_is_the_same_to_the_last_bit(
    folder: Path, whole: Model, hidden: Tensor, dead: int
) -> None:
    world = World(folder, batch_invariant=True)
    caller = Caller(world)
    names = world.serve_route(4)
    world.serve("spare", dead, dead + 1)
    caller.open(names)
    counts = [17, 1, 1, 3, 1]
    before = caller.compute(names[0], hidden, counts)
    world.network.kill(peer(names[dead]))
    del world.servers[names[dead]]
    route = [*names[:dead], "spare", *names[dead + 1 :]]
    caller.connect("spare")
    caller.send("spare", caller.opening(route, dead))
    assert len(caller.take(Opened)) == 1
    caller.send(route[dead + 1], Reroute(caller.key(), caller.neighbours(route, dead + 1), 0))
    if dead:
        caller.send(route[dead - 1], Reroute(caller.key(), caller.neighbours(route, dead - 1), 23))
    else:
        shape = Dtype.FLOAT32, Codec.EXACT, HIDDEN_SIZE
        caller.send("spare", Step(caller.key(), 0, 0, 23, 0, True, *shape, pack(hidden[:23], LAYOUT)))
    after = caller.compute(route[0], hidden, [1, 2, 1], position=23)
    whole_prompt = expected_rows(whole, hidden, [23, 4], batch_invariant=True)
    assert torch.equal(torch.cat([before, after]), whole_prompt)


def test_replayed_rows_flow_on_through_two_new_hops(world: World, whole: Model, hidden: Tensor) -> None:
    caller = Caller(world)
    names = world.serve_route(4)
    caller.open(names)
    world.serve("spare 2", 2, 3)
    world.serve("spare 3", 3, 4)
    caller.compute(names[0], hidden, [12, 1])
    route = [names[0], names[1], "spare 2", "spare 3"]
    caller.connect("spare 2", "spare 3")
    for index in (2, 3):
        caller.send(route[index], caller.opening(route, index))
    assert len(caller.take(Opened)) == 2
    caller.send(names[1], Reroute(caller.key(), caller.neighbours(route, 1), 13))
    rows = caller.compute(names[0], hidden, [1], position=13)
    assert torch.allclose(rows, expected_rows(whole, hidden, [12, 1, 1])[13:], atol=1e-5)
    assert not [message for sender, message in caller.inbox if isinstance(message, Step)], "replays have no results"


def test_a_node_serves_a_part_of_its_layers(world: World, whole: Model, hidden: Tensor) -> None:
    caller = Caller(world)
    world.serve("first", 0, 3)
    world.serve("last", 1, 4)
    names = ["first", "last"]
    caller.connect(*names)
    caller.send("first", caller.opening(names, 0, start=0, end=2))
    caller.send("last", caller.opening(names, 1, start=2, end=4))
    assert len(caller.take(Opened)) == 2
    assert torch.equal(caller.compute("first", hidden, [6, 1]), expected_rows(whole, hidden, [6, 1]))


def test_sessions_of_two_callers_with_the_same_number_are_two(world: World, whole: Model, hidden: Tensor) -> None:
    one, other = Caller(world), Caller(world, "other")
    names = world.serve_route(2)
    for caller in (one, other):
        caller.open(names)
    one.send(names[0], one.make_step(hidden, 0, 9))
    other.send(names[0], other.make_step(hidden + 1.0, 0, 9))
    assert torch.allclose(one.rows(), expected_rows(whole, hidden, [9]), atol=1e-5)
    assert torch.allclose(other.rows(), expected_rows(whole, hidden + 1.0, [9]), atol=1e-5)


def test_steps_that_are_ready_together_are_computed_together(world: World, whole: Model, hidden: Tensor) -> None:
    callers = [Caller(world, f"caller {index}") for index in range(3)]
    (name,) = world.serve_route(1)
    for caller in callers:
        caller.open([name])
    world.network.freeze(peer(name))
    for index, caller in enumerate(callers):
        caller.send(name, caller.make_step(hidden, 0, 1 + 4 * index))
    world.run(0.1)
    world.network.thaw(peer(name))
    for index, caller in enumerate(callers):
        rows = caller.rows()
        assert torch.allclose(rows, expected_rows(whole, hidden, [1 + 4 * index]), atol=1e-5)
        (done,) = caller.take(Done)
        assert isinstance(done, Done) and done.batch_size == 3


def test_int8_rows_are_near_the_exact_ones(world: World, whole: Model, hidden: Tensor) -> None:
    caller = Caller(world)
    names = world.serve_route(2)
    caller.open(names, codec=Codec.INT8)
    layout = replace(LAYOUT, codec=Codec.INT8)
    step = caller.make_step(hidden, 0, 9)
    caller.send(names[0], replace(step, codec=Codec.INT8, payload=pack(hidden[:9], layout)))
    (rows,) = caller.take(Step)
    assert isinstance(rows, Step) and rows.codec is Codec.INT8
    expected = expected_rows(whole, hidden, [9])
    assert (unpack(rows.payload, layout) - expected).norm() / expected.norm() < 0.03


def test_strangers_can_neither_step_nor_close_nor_reroute(world: World, whole: Model, hidden: Tensor) -> None:
    caller, stranger = Caller(world), Caller(world, "stranger")
    names = world.serve_route(2)
    caller.open(names)
    caller.compute(names[0], hidden, [5])
    stranger.connect(*names)
    step = replace(stranger.make_step(hidden, 5, 1), session=caller.key())
    for message in (
        replace(step, step=99),
        Close(caller.key()),
        Rollback(caller.key(), 99, 0),
        Reroute(caller.key(), stranger.neighbours(names, 1), 5),
        Lease(caller.key()),
        replace(caller.opening(names, 1), max_tokens=1),
    ):
        stranger.send(names[1], message)
        refusal = stranger.refusal()
        stranger.send(names[1], replace(message, session=SessionKey(caller.peer, 77)))  # one that is not there
        assert replace(stranger.refusal(), session=caller.key()) == refusal, "the answer tells whether it is there"
        assert refusal.reason is Reason.UNKNOWN_SESSION
    rows = caller.compute(names[0], hidden, [1], position=5)
    assert torch.equal(rows, expected_rows(whole, hidden, [5, 1])[5:])


def test_the_caller_itself_may_not_send_the_steps_of_a_later_hop(world: World, hidden: Tensor) -> None:
    caller = Caller(world)
    names = world.serve_route(2)
    caller.open(names)
    caller.send(names[1], caller.make_step(hidden, 0, 1))
    assert caller.refusal().reason is Reason.UNKNOWN_SESSION
    assert len(caller.compute(names[0], hidden, [3])) == 3


@pytest.mark.parametrize(
    ("change", "reason", "text"),
    [
        ({"fingerprint": b"x" * 32}, Reason.MODEL, "serves random, fingerprint"),
        ({"end": 3}, Reason.MODEL, "layers 0:3 were asked for; this node serves 0:2"),
        ({"dtype": Dtype.BFLOAT16}, Reason.MODEL, "BFLOAT16 were offered; this node takes FLOAT32"),
        ({"max_tokens": MAX_CONTEXT + 1}, Reason.BUSY, "this node's have at most 64"),
    ],
)
def test_an_open_that_does_not_fit_is_refused_with_its_reason(
    world: World, change: dict[str, object], reason: Reason, text: str
) -> None:
    caller = Caller(world)
    names = world.serve_route(2)
    caller.connect(*names)
    caller.send(names[0], caller.opening(names, 0, **change))
    refusal = caller.refusal()
    assert refusal.reason is reason and text in refusal.text


def test_a_caller_has_no_more_sessions_than_its_quota(world: World) -> None:
    caller, other = Caller(world), Caller(world, "other")
    world.serve("node", 0, 4, max_caller_sessions=2)
    for number in (1, 2):
        caller.open(["node"], session=caller.key(number), max_tokens=8)
    caller.send("node", caller.opening(["node"], 0, session=caller.key(3), max_tokens=8))
    refusal = caller.refusal()
    assert refusal.reason is Reason.BUSY and "2 sessions of yours are open" in refusal.text
    other.open(["node"], session=other.key(3), max_tokens=8)
    caller.send("node", Close(caller.key(1)))
    caller.open(["node"], session=caller.key(3), max_tokens=8)


def test_an_idle_session_gives_its_pages_to_others_once_its_lease_is_over(world: World, hidden: Tensor) -> None:
    sleeper, caller = Caller(world, "sleeper"), Caller(world)
    world.serve("node", 0, 4, num_pages=10)
    sleeper.open(["node"], max_tokens=32, lease_s=20)
    sleeper.compute("node", hidden, [30])  # 8 of 10 pages
    caller.connect("node")
    caller.send("node", caller.opening(["node"], 0, max_tokens=16))
    assert caller.refusal().reason is Reason.BUSY
    world.run(10.0)
    sleeper.send("node", Lease(sleeper.key()))
    world.run(15.0)
    caller.send("node", caller.opening(["node"], 0, max_tokens=16))
    assert caller.refusal().reason is Reason.BUSY
    world.run(10.0)
    caller.open(["node"], max_tokens=16)
    assert not sleeper.take(Refuse)
    assert len(caller.compute("node", hidden, [16])) == 16
    refusal = sleeper.refusal()
    assert refusal.reason is Reason.EVICTED and "its lease is 20 s" in refusal.text
    sleeper.send("node", sleeper.make_step(hidden, 30, 1))
    assert sleeper.refusal().reason is Reason.UNKNOWN_SESSION


def test_a_step_for_which_no_pages_are_left_ends_its_session_only(world: World, hidden: Tensor) -> None:
    one, other = Caller(world), Caller(world, "other")
    world.serve("node", 0, 4, num_pages=6)
    for caller in (one, other):
        caller.open(["node"], max_tokens=20)
    assert len(one.compute("node", hidden, [16])) == 16
    assert len(other.compute("node", hidden, [12])) == 0
    assert other.refusal().reason is Reason.BUSY
    assert len(one.compute("node", hidden, [4], position=16)) == 4


def test_a_session_outlives_its_caller_s_connection_for_a_grace_period(
    world: World, whole: Model, hidden: Tensor
) -> None:
    caller = Caller(world)
    server = world.serve("node", 0, 4, grace_s=30.0)
    caller.open(["node"])
    caller.compute("node", hidden, [9])
    world.network.cut(caller.peer, peer("node"))
    caller.settle(20.0)
    assert caller.down == [peer("node")] and server.sessions.num_sessions == 1
    world.network.join_again(caller.peer, peer("node"))
    caller.connect("node")
    rows = caller.compute("node", hidden, [1], position=9)
    assert torch.equal(rows, expected_rows(whole, hidden, [9, 1])[9:])
    world.network.cut(caller.peer, peer("node"))
    world.run(32.0)
    assert server.sessions.num_sessions == 0 and server.sessions.num_free_pages == NUM_PAGES


def test_a_failed_forward_ends_its_sessions_and_the_node_lives_on(
    world: World, whole: Model, hidden: Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caller = Caller(world)
    (name,) = world.serve_route(1)
    caller.open([name])
    with monkeypatch.context() as patch:
        patch.setattr(SpanRunner, "forward", lambda *_: 1 / 0)
        assert len(caller.compute(name, hidden, [3])) == 0
    refusal = caller.refusal()
    assert refusal.reason is Reason.FAILED and "ZeroDivisionError" in refusal.text
    assert "division by zero" in caplog.text
    assert world.servers[name].sessions.num_free_pages == NUM_PAGES
    caller.open([name])
    assert torch.equal(caller.compute(name, hidden, [3]), expected_rows(whole, hidden, [3]))


def test_a_draining_node_opens_nothing_finishes_what_it_has_and_says_goodbye(world: World, hidden: Tensor) -> None:
    caller = Caller(world)
    names = world.serve_route(2)
    caller.open(names)
    world.servers[names[0]].sessions.drain(world.network.now, 3.0)
    assert len(caller.compute(names[0], hidden, [5])) == 5
    assert caller.take(Goodbye) == [Goodbye(3)]
    caller.send(names[0], caller.opening(names, 0, session=caller.key(2)))
    assert caller.refusal().reason is Reason.DRAINING
    world.run(3.0)
    assert caller.refusal().reason is Reason.DRAINING
    assert world.servers[names[0]].sessions.num_sessions == 0


def test_who_asks_learns_what_is_served(world: World, hidden: Tensor) -> None:
    caller = Caller(world)
    names = world.serve_route(2)
    caller.open(names)
    caller.compute(names[0], hidden, [5])
    caller.send(names[1], Ask())
    (serving,) = caller.take(Serving)
    assert isinstance(serving, Serving)
    assert (serving.model, serving.start, serving.end, serving.dtype) == ("random", 2, 4, Dtype.FLOAT32)
    assert serving.codecs == (Codec.EXACT, Codec.INT8) and serving.version == "test"
    assert serving.free_tokens == (NUM_PAGES - 2) * PAGE_SIZE
