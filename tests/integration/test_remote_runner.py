"""RemoteRunner over a network in memory: what it draws is what LocalRunner draws, whatever happens to the hops.

The clock is the network's own, and computing takes none of it; only deaths, delays and deadlines do.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch

from hopformer.errors import NoRouteError
from hopformer.llama.assemble import ModelPart, Placement, load_model
from hopformer.llama.config import load_config
from hopformer.llama.engine import Engine, Request
from hopformer.llama.kv_cache import KVCache, KVShape
from hopformer.llama.model import Model, Span
from hopformer.llama.pages import PagePool
from hopformer.llama.runner import LocalRunner, SpanRunner, StepItem
from hopformer.llama.sampling import SamplingParams
from hopformer.llama.sequences import SequenceTable
from hopformer.net.caller_node import CallerNode
from hopformer.net.caller_session import Terms
from hopformer.net.hop_sessions import HopSessions
from hopformer.net.identity import PeerId
from hopformer.net.layer_range import LayerRange
from hopformer.net.memory_network import LinkQuality, MemoryNetwork, MemorySwitchboard
from hopformer.net.messages import Codec, Draw, Drawn, DrawnToken, Dtype, Reason, Refuse, SessionKey, Step
from hopformer.net.peer_table import PeerTable, Wanted
from hopformer.net.pipeline import RouteHop
from hopformer.net.remote import CallerPart, RemoteRunner
from hopformer.net.row_layout import RowLayout
from hopformer.net.served_span import ServedSpan
from hopformer.net.span_server import SpanServer
from hopformer.net.switchboard import Event, Received

NUM_LAYERS = 8
VOCAB_SIZE = 61
WIDTH = 32
MAX_CONTEXT = 512
PAGE_SIZE = 16
REROUTE_TIMEOUT_S = 20.0
FINGERPRINT = bytes(32)
GREEDY = SamplingParams()
SEEDED = SamplingParams(temperature=1.2, top_k=40, top_p=0.97, seed=7, repetition_penalty=1.1)
UNPENALISED = replace(SEEDED, repetition_penalty=1.0)
PROMPT = [5, 17, 3, 44, 44, 9, 28]
LONG_PROMPT = [(7 * index + 3) % VOCAB_SIZE for index in range(300)]  # three chunks

CALLER = PeerId(bytes(22))
OTHER_CALLER = PeerId(bytes([77]) * 22)
LEASE_S = 600

Answers = dict[str, list[int]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The model is so small that a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A random model in float32."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_CONTEXT,
        initializer_range=0.25,
    )
    folder = tmp_path_factory.mktemp("random")
    transformers.LlamaForCausalLM(config).eval().save_pretrained(folder)
    config = load_config(folder)
    placement = Placement(torch.device("cpu"), torch.float32, MAX_CONTEXT)
    return load_model(folder, config, ModelPart.whole(config), placement)


def span_runner(model: Model, start: int, end: int, num_contexts: int = 8) -> SpanRunner:
    """The layers ``start .. end`` with pages of their own."""
    config = model.config
    span = Span(start, model.span.layers[start:end], model.span.rotary)
    num_pages = num_contexts * MAX_CONTEXT // PAGE_SIZE
    shape = KVShape(end - start, config.num_kv_heads, config.head_dim, model.dtype)
    sequences = SequenceTable(PagePool(num_pages, PAGE_SIZE))
    return SpanRunner(span, KVCache(shape, num_pages, PAGE_SIZE, model.device), sequences, model.device)


def peer(index: int) -> PeerId:
    return PeerId(bytes([index]) * 22)


class Tapped:
    """A hop's switchboard, of which somebody hears how many steps have arrived before the hop does."""

    def __init__(self, inner: MemorySwitchboard, heard: Callable[[int], None]) -> None:
        self._inner, self._heard = inner, heard
        self.num_steps = 0
        self.send, self.send_all, self.dial = inner.send, inner.send_all, inner.dial
        self.now, self.stats = inner.now, inner.stats
        self.peer_id, self.addrs, self.close = inner.peer_id, inner.addrs, inner.close

    def poll(self, timeout_s: float | None) -> list[Event]:
        events = self._inner.poll(timeout_s)
        for event in events:
            if isinstance(event, Received) and isinstance(event.message, Step):
                self.num_steps += 1
                self._heard(self.num_steps)
        return events


@dataclass
class World:
    """A caller and hops around it.

    Attributes:
        local: layers that the caller runs itself.
        num_contexts: that a hop has room for.
        hands_head: whether the last hop draws the tokens.
        watch: told when a step arrives at a hop, and how many there were before.
    """

    model: Model
    network: MemoryNetwork
    listed: dict[PeerId, LayerRange] = field(default_factory=dict)
    local: list[SpanRunner] = field(default_factory=list)
    num_contexts: int = 8
    hands_head: bool = False
    servers: dict[PeerId, SpanServer] = field(default_factory=dict)
    watch: Callable[[PeerId, int], None] = lambda who, num_steps: None
    peers: PeerTable = field(init=False)
    node: CallerNode = field(init=False)

    def serve(self, who: PeerId, layers: str) -> PeerId:
        """Start a hop, or start it again after its death."""
        span = LayerRange.parse(layers)
        switchboard = Tapped(self.network.join(who), lambda num_steps: self.watch(who, num_steps))
        runner = span_runner(self.model, span.start, span.end, self.num_contexts)
        shape = span.start, span.end, NUM_LAYERS, WIDTH, Dtype.FLOAT32, (Codec.EXACT, Codec.INT8)
        draws = self.hands_head and span.end == NUM_LAYERS
        served = ServedSpan("random", FINGERPRINT, *shape, MAX_CONTEXT, "test", VOCAB_SIZE if draws else 0)
        sessions = HopSessions(served, runner.sequences.pool.num_pages, PAGE_SIZE)
        server = SpanServer(switchboard, runner, sessions, head=self.model.head if draws else None)
        self.listed[who], self.servers[who] = span, server
        self.network.attach(who, lambda: server.turn(0.0))
        return who

    def runner(self, codec: Codec = Codec.EXACT, caller: PeerId = CALLER) -> RemoteRunner:
        """A caller, connected."""
        switchboard = self.network.join(caller)
        wanted = Wanted(FINGERPRINT, NUM_LAYERS, Dtype.FLOAT32, WIDTH, codec, self.hands_head)
        self.peers = PeerTable(wanted, self.listed, {})
        layout = RowLayout(Dtype.FLOAT32, codec, WIDTH)
        self.node = node = CallerNode(switchboard, self.peers, layout, first_number=1, vocab_size=VOCAB_SIZE)
        terms = Terms(FINGERPRINT, Dtype.FLOAT32, codec, MAX_CONTEXT, LEASE_S, REROUTE_TIMEOUT_S, self.hands_head)
        model = self.model
        assert model.embed is not None and model.head is not None
        head = None if self.hands_head else model.head
        part = CallerPart(model.config, model.dtype, model.device, model.embed, head, tuple(self.local))
        runner = RemoteRunner(part, node, terms, layout)
        runner.connect()
        return runner


@pytest.fixture
def world(model: Model) -> World:
    return World(model, MemoryNetwork())


def decode(token_ids: Sequence[int]) -> str:
    return " ".join(map(str, token_ids))


def answers(runner: RemoteRunner | LocalRunner, requests: Sequence[Request]) -> Answers:
    """The token ids of each request's answer."""
    engine = Engine(runner, decode)
    for request in requests:
        engine.add(request)
    found: Answers = {request.request_id: [] for request in requests}
    while engine.has_work:
        for output in engine.step():
            found[output.request_id].extend(output.token_ids)
        runner.check_integrity()
    return found


def request(
    prompt: Sequence[int] = PROMPT, max_tokens: int = 32, sampling: SamplingParams = GREEDY, name: str = "a"
) -> Request:
    return Request(name, prompt, max_tokens, sampling)


def expected(model: Model, *requests: Request) -> Answers:
    return answers(LocalRunner(model, 256, PAGE_SIZE, MAX_CONTEXT), requests)


@pytest.mark.parametrize("spans", [["0:8"], ["0:4", "4:8"], ["0:1", "1:4", "4:6", "6:8"]], ids=len)
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("prompt", [PROMPT, LONG_PROMPT], ids=len)
def test_an_answer_is_that_of_one_process(
    world: World, model: Model, spans: list[str], sampling: SamplingParams, prompt: list[int]
) -> None:
    for index, layers in enumerate(spans, 1):
        world.serve(peer(index), layers)
    runner = world.runner()
    asked = request(prompt, sampling=sampling)
    assert answers(runner, [asked]) == expected(model, asked)
    assert runner.route == [RouteHop(LayerRange.parse(layers), peer(index)) for index, layers in enumerate(spans, 1)]
    assert runner.num_reroutes == 0
    measured = [entry.num_steps for entry in world.peers.entries.values()]
    assert max(measured) - min(measured) <= 1 and min(measured) >= 31, "every hop's steps count, if not the last one's"


def once(network: MemoryNetwork, who: PeerId, num_steps: int, act: Callable[[], None]) -> Callable[[PeerId, int], None]:
    """A watch that acts when the hop ``who`` gets its ``num_steps``-th step, and never again."""
    acted: list[int] = []

    def watch(hop: PeerId, count: int) -> None:
        if hop == who and count == num_steps and not acted:
            acted.append(count)
            act()

    return watch


@pytest.fixture(scope="module")
def long_answer(model: Model) -> Answers:
    """Prompt of three chunks, 32 tokens."""
    return expected(model, request(LONG_PROMPT, sampling=SEEDED))


@pytest.mark.parametrize("victim", [1, 2, 3])
@pytest.mark.parametrize("witness", [1, 2, 3])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 5, 17, 34])
def test_a_death_changes_nothing(world: World, long_answer: Answers, victim: int, witness: int, num_steps: int) -> None:
    """The victim dies when the witness gets a step: before, while or after it computes that one itself."""
    die_once(world, long_answer, victim, witness, num_steps)


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", range(1, 35))
def test_a_death_at_any_step_changes_nothing(model: Model, long_answer: Answers, num_steps: int) -> None:
    """Three steps are the prompt's, and 31 more the answer's."""
    for victim in (1, 2, 3):
        for witness in {victim, min(victim + 1, 3)}:
            die_once(World(model, MemoryNetwork()), long_answer, victim, witness, num_steps)


def die_once(world: World, long_answer: Answers, victim: int, witness: int, num_steps: int) -> None:
    serve_twice(world, "0:3", "3:6", "6:8")
    world.watch = once(world.network, peer(witness), num_steps, lambda: world.network.kill(peer(victim)))
    runner = world.runner()
    assert answers(runner, [request(LONG_PROMPT, sampling=SEEDED)]) == long_answer
    assert runner.num_reroutes == 1 or (num_steps == 34 and victim < witness), "the last step may be over already"


def serve_twice(world: World, *spans: str) -> None:
    """Hops 1, 2, ... for the spans, and replicas of them behind."""
    for index, layers in enumerate([*spans, *spans], 1):
        world.serve(peer(index), layers)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 10])
@pytest.mark.parametrize("victim", [1, 2])
def test_a_hop_that_stops_answering_is_replaced(
    world: World, long_answer: Answers, victim: int, num_steps: int
) -> None:
    serve_twice(world, "0:5", "5:8")
    world.watch = once(world.network, peer(victim), num_steps, lambda: world.network.freeze(peer(victim)))
    runner = world.runner()
    assert answers(runner, [request(LONG_PROMPT, sampling=SEEDED)]) == long_answer
    assert runner.num_reroutes == 1 and runner.route[victim - 1].peer == peer(victim + 2)


def later(world: World, delay_s: float, act: Callable[[], None]) -> None:
    """Let ``act`` happen so long after the caller's first word to a node that does nothing else."""
    due: list[float] = []

    def turn() -> float | None:
        due.append(world.network.now + delay_s)
        if world.network.now < due[0]:
            return due[0]
        act()
        return None

    world.network.join(peer(99))
    world.network.attach(peer(99), turn)
    world.network.dial(CALLER, peer(99))


@pytest.mark.parametrize("num_steps", [1, 2, 4, 10])
@pytest.mark.parametrize("victim", [1, 2])
def test_a_hop_that_is_too_slow_is_not_heard_any_more(
    world: World, long_answer: Answers, victim: int, num_steps: int
) -> None:
    serve_twice(world, "0:5", "5:8")
    world.serve(peer(5), "5:8")

    def freeze() -> None:
        world.network.freeze(peer(victim))
        later(world, 18.0, lambda: world.network.thaw(peer(victim)))

    world.watch = once(world.network, peer(victim), num_steps, freeze)
    runner = world.runner()
    asked = request(LONG_PROMPT, sampling=SEEDED)
    assert answers(runner, [asked]) == long_answer
    world.network.advance(world.network.now + 20.0)
    assert answers(runner, [asked]) == long_answer and runner.num_reroutes == 1


def test_a_hop_without_a_replica_may_be_slow(world: World, long_answer: Answers) -> None:
    world.serve(peer(1), "0:4")
    world.serve(peer(2), "4:8")

    def freeze() -> None:
        world.network.freeze(peer(2))
        later(world, 12.0, lambda: world.network.thaw(peer(2)))

    world.watch = once(world.network, peer(2), 10, freeze)
    runner = world.runner()
    assert answers(runner, [request(LONG_PROMPT, sampling=SEEDED)]) == long_answer
    assert 12.0 <= world.network.now < REROUTE_TIMEOUT_S


def test_the_chunks_of_a_prompt_are_on_their_way_together(model: Model) -> None:
    world = World(model, MemoryNetwork(LinkQuality(delay_s=1.0)))
    for index, layers in enumerate(["0:2", "2:4", "4:6", "6:8"], 1):
        world.serve(peer(index), layers)
    runner = world.runner()
    start = world.network.now
    answers(runner, [request(LONG_PROMPT, max_tokens=1)])
    assert world.network.now - start == pytest.approx(2 + 5), "there and back to open, and once along the route"


@pytest.mark.parametrize("num_steps", [1, 3, 4, 10])
@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (0, 3), (1, 2), (2, 3)])
def test_a_cut_between_any_two_is_gone_around(
    world: World, long_answer: Answers, pair: tuple[int, int], num_steps: int
) -> None:
    serve_twice(world, "0:3", "3:5", "5:8")
    one, other = (CALLER if index == 0 else peer(index) for index in pair)
    world.watch = once(world.network, peer(2), num_steps, lambda: world.network.cut(one, other))
    runner = world.runner()
    assert answers(runner, [request(LONG_PROMPT, sampling=SEEDED)]) == long_answer
    assert runner.num_reroutes >= 1 or pair == (0, 2), "rows flow past a caller who hears nothing of the second hop"


def test_a_cut_between_two_peers_without_replicas_of_one_is_gone_around(world: World, long_answer: Answers) -> None:
    for index, layers in enumerate(["0:5", "5:8", "0:5"], 1):
        world.serve(peer(index), layers)
    world.watch = once(world.network, peer(2), 9, lambda: world.network.cut(peer(1), peer(2)))
    runner = world.runner()
    assert answers(runner, [request(LONG_PROMPT, sampling=SEEDED)]) == long_answer
    assert [hop.peer for hop in runner.route] == [peer(3), peer(2)]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 20])
@pytest.mark.parametrize("victims", [(1, 2), (2, 3), (1, 3), (1, 2, 3)])
def test_several_deaths_at_once_change_nothing(
    world: World, long_answer: Answers, victims: tuple[int, ...], num_steps: int
) -> None:
    serve_twice(world, "0:3", "3:5", "5:8")

    def kill() -> None:
        for victim in victims:
            world.network.kill(peer(victim))

    world.watch = once(world.network, peer(2), num_steps, kill)
    runner = world.runner()
    assert answers(runner, [request(LONG_PROMPT, sampling=SEEDED)]) == long_answer
    assert not {hop.peer for hop in runner.route} & {peer(victim) for victim in victims}


@pytest.mark.parametrize("num_steps", range(1, 12))
def test_the_replacement_may_die_while_it_is_filled(world: World, long_answer: Answers, num_steps: int) -> None:
    serve_twice(world, "0:3", "3:8")
    world.serve(peer(5), "3:8")

    def watch(hop: PeerId, count: int) -> None:
        if (hop, count) in ((peer(2), 8), (peer(4), num_steps)):
            world.network.kill(hop)

    world.watch = watch
    runner = world.runner()
    assert answers(runner, [request(LONG_PROMPT, sampling=SEEDED)]) == long_answer


@pytest.mark.parametrize("spans", [["0:4", "4:8", "2:6", "0:3", "6:8"], ["0:7", "0:8", "2:8", "6:8"]], ids=str)
@pytest.mark.parametrize("num_before", [0, 1])
@pytest.mark.parametrize("num_steps", [2, 15])
def test_replicas_may_serve_other_spans(
    world: World, long_answer: Answers, spans: list[str], num_before: int, num_steps: int
) -> None:
    for index, layers in enumerate(spans, 1):
        world.serve(peer(index), layers)
    seen: list[PeerId] = []

    def watch(hop: PeerId, count: int) -> None:
        if count == num_steps:
            seen.append(hop)
            if len(seen) == num_before + 1:
                world.network.kill(hop)

    world.watch = watch
    runner = world.runner()
    assert answers(runner, [request(LONG_PROMPT, sampling=SEEDED)]) == long_answer
    covered = [layer for hop in runner.route for layer in range(hop.layers.start, hop.layers.end)]
    assert covered == list(range(NUM_LAYERS))


def test_without_a_replica_the_answer_waits_for_the_hop_to_come_back(world: World, long_answer: Answers) -> None:
    world.serve(peer(1), "0:4")
    world.serve(peer(2), "4:8")

    def watch(hop: PeerId, count: int) -> None:
        if (hop, count) == (peer(2), 20):
            world.network.kill(hop)
            later(world, 3.0, lambda: world.serve(peer(2), "4:8") and None)

    world.watch = watch
    runner = world.runner()
    assert answers(runner, [request(LONG_PROMPT, sampling=SEEDED)]) == long_answer
    assert runner.num_reroutes >= 1 and world.network.now < 10


def test_without_a_route_the_error_names_the_layers_and_the_answer_is_kept(world: World, long_answer: Answers) -> None:
    world.serve(peer(1), "0:4")
    world.serve(peer(2), "4:8")
    world.watch = once(world.network, peer(2), 20, lambda: world.network.kill(peer(2)))
    runner = world.runner()
    engine = Engine(runner, decode)
    engine.add(request(LONG_PROMPT, sampling=SEEDED))
    found: list[int] = []
    with pytest.raises(NoRouteError, match=f"layers 4:8 are served by nobody.*{peer(2)}: it does not answer"):
        while True:
            for output in engine.step():
                found.extend(output.token_ids)
    assert found == long_answer["a"][:17] and 20 <= world.network.now < 40
    runner.check_integrity()
    world.watch = lambda who, num_steps: None
    world.serve(peer(2), "4:8")
    while engine.has_work:
        for output in engine.step():
            found.extend(output.token_ids)
    assert found == long_answer["a"], "an engine that is asked again goes on where it was"


def test_an_answer_can_be_stopped_while_a_peer_is_looked_for(world: World) -> None:
    world.serve(peer(1), "0:4")
    world.serve(peer(2), "4:8")
    world.watch = once(world.network, peer(2), 20, lambda: world.network.kill(peer(2)))
    runner = world.runner()
    runner.stopped = lambda: world.network.now > 2.0
    with pytest.raises(NoRouteError, match="stopped while a peer was looked for"):
        answers(runner, [request(LONG_PROMPT)])
    assert 2.0 < world.network.now < 2.5
    runner.check_integrity()


@pytest.mark.parametrize("local", [["4:8"], ["0:4"], ["2:5"], ["0:2", "6:8"], ["0:8"]], ids=str)
@pytest.mark.parametrize("num_steps", [None, 2, 15])
def test_some_layers_may_be_run_here(
    world: World, model: Model, long_answer: Answers, local: list[str], num_steps: int | None
) -> None:
    world.local = [span_runner(model, *map(int, layers.split(":"))) for layers in local]
    for index, layers in enumerate(["0:8", "0:5", "4:8", "0:8"], 1):
        world.serve(peer(index), layers)
    if num_steps:
        world.watch = lambda hop, count: world.network.kill(hop) if count == num_steps and hop != peer(4) else None
    runner = world.runner()
    assert answers(runner, [request(LONG_PROMPT, sampling=SEEDED)]) == long_answer
    assert [str(hop.layers) for hop in runner.route if hop.peer is None] == local


@pytest.mark.parametrize("num_steps", [None, 3, 20])
def test_several_sequences_are_computed_together(world: World, model: Model, num_steps: int | None) -> None:
    serve_twice(world, "0:3", "3:8")
    asked = [
        request(PROMPT, 20, SEEDED, "a"),
        request(LONG_PROMPT, 12, GREEDY, "b"),
        request(PROMPT[::-1], 25, GREEDY, "c"),
        request([3], 5, SamplingParams(temperature=0.7, seed=3), "d"),
    ]
    if num_steps:
        world.watch = once(world.network, peer(2), num_steps, lambda: world.network.kill(peer(2)))
    runner = world.runner()
    assert answers(runner, asked) == expected(model, *asked)


@pytest.mark.parametrize("seed", range(6))
def test_loss_jitter_and_duplicates_change_nothing(model: Model, long_answer: Answers, seed: int) -> None:
    quality = LinkQuality(delay_s=0.005, jitter_s=0.02, loss=0.1, duplicates=0.1)
    world = World(model, MemoryNetwork(quality, seed))
    serve_twice(world, "0:3", "3:6", "6:8")
    world.watch = once(world.network, peer(2), 2 + 5 * seed, lambda: world.network.kill(peer(2)))
    runner = world.runner()
    assert answers(runner, [request(LONG_PROMPT, sampling=SEEDED)]) == long_answer
    assert runner.num_reroutes == 1, "nobody is blamed who is well"


def test_a_conversation_goes_on_in_the_same_session(world: World, model: Model) -> None:
    serve_twice(world, "0:3", "3:8")
    runner = world.runner()
    first = answers(runner, [request(PROMPT, 10)])["a"]
    prompt = [*PROMPT, *first, 9, 9, 4]
    opened = runner.open(77, prompt)
    assert opened == len(PROMPT) + len(first) - 1, "the last token drawn was never computed"
    runner.release(77)
    asked = request(prompt, 10)
    assert answers(runner, [asked]) == expected(model, asked)
    other = request([*PROMPT[:4], 1, 2, 3], 10)
    assert answers(runner, [other]) == expected(model, other)
    runner.close()
    runner.check_integrity()


@pytest.mark.parametrize("taken", [("0:3",), ("3:8",), ("0:3", "3:8")], ids=str)
def test_a_conversation_whose_session_was_evicted_goes_on_unnoticed(
    world: World, model: Model, taken: tuple[str, ...]
) -> None:
    """Its user thinks for longer than a lease, and somebody else needs the pages meanwhile."""
    world.num_contexts = 1
    world.serve(peer(1), "0:3")
    world.serve(peer(2), "3:8")
    runner = world.runner()
    first = answers(runner, [request(PROMPT, 10, SEEDED)])["a"]
    world.network.advance(world.network.now + LEASE_S + 1)
    local = [layers for layers in ("0:3", "3:8") if layers not in taken]
    world.local = [span_runner(model, *map(int, layers.split(":"))) for layers in local]
    other = world.runner(caller=OTHER_CALLER)
    full = request(LONG_PROMPT + PROMPT * 28, 10)  # 496 tokens: nobody else has room beside it
    assert answers(other, [full]) == expected(model, full)
    other.close()
    world.network.advance(world.network.now + 1.0)
    left = {str(world.listed[who]): server.sessions.num_sessions for who, server in world.servers.items()}
    assert left == {layers: layers in local for layers in ("0:3", "3:8")}, "it was evicted where the other one was"

    prompt, began = [*PROMPT, *first, 9, 9, 4], world.network.now
    again = request(prompt, 10, SEEDED)
    assert answers(runner, [again]) == expected(model, again)
    assert world.network.now - began < 1.0, "a back-off at most"
    runner.check_integrity()


def test_a_session_whose_caller_takes_a_turn_now_and_then_is_not_evicted(world: World, model: Model) -> None:
    world.num_contexts = 1
    world.serve(peer(1), "0:8")
    runner = world.runner()
    node, first = world.node, answers(runner, [request(PROMPT, 10)])["a"]
    for _ in range(3 * LEASE_S):
        world.network.advance(world.network.now + 1.0)
        node.turn(0.0)
    other = world.runner(caller=OTHER_CALLER)
    with pytest.raises(NoRouteError, match="does not fit into the KV pages that are free"):
        answers(other, [request(PROMPT)])
    again = request([*PROMPT, *first, 9], 10)
    assert answers(runner, [again]) == expected(model, again)


def test_a_fork_and_a_rollback_go_on_from_their_tokens(world: World, model: Model) -> None:
    serve_twice(world, "0:3", "3:8")
    runner, oracle = world.runner(), LocalRunner(model, 256, PAGE_SIZE, MAX_CONTEXT)
    found = []
    for one in (runner, oracle):
        one.open(1, PROMPT)
        one.reserve(1, 40)
        drawn = [one.step([StepItem(1, 0, PROMPT, 3, SEEDED)])]
        one.fork(1, 2)
        one.rollback(1, 5)
        one.reserve(1, 6)
        one.reserve(2, 8)
        drawn += [one.step([StepItem(1, 5, [50], 1, GREEDY), StepItem(2, 7, [51], 1, GREEDY)])]
        found.append(drawn)
    assert found[0] == found[1]
    runner.check_integrity()


def test_a_sequence_that_finds_no_room_at_the_peers_waits(world: World, model: Model) -> None:
    world.num_contexts = 1
    serve_twice(world, "0:3", "3:8")
    runner = world.runner()
    asked = [request(PROMPT, 6, SEEDED, "a"), request([3], 5, GREEDY, "b"), request(LONG_PROMPT, 4, GREEDY, "c")]
    assert answers(runner, asked) == expected(model, *asked)
    assert runner.num_reroutes == 0
    again = request([9, 9], 5)
    assert answers(runner, [again]) == expected(model, again), "a conversation that is kept gives way"


def test_a_node_that_goes_away_hands_its_sessions_over_before_it_is_gone(world: World, long_answer: Answers) -> None:
    serve_twice(world, "0:5", "5:8")

    def leave() -> None:
        world.servers[peer(2)].sessions.drain(world.network.now, 0.05)

    world.watch = once(world.network, peer(2), 12, leave)
    runner = world.runner()
    assert answers(runner, [request(LONG_PROMPT, sampling=SEEDED)]) == long_answer
    assert runner.num_reroutes == 1 and runner.route[1].peer == peer(4)
    assert world.network.now < 0.5, "nobody waited for a deadline"


@pytest.mark.parametrize("local", [[], ["3:5"]], ids=str)
def test_packed_activations_are_replayed_as_they_were(model: Model, local: list[str]) -> None:
    """INT8 loses something, and after a death just the same."""
    found = []
    for num_steps in (None, 3, 12):
        world = World(model, MemoryNetwork())
        serve_twice(world, "0:5", "5:8")
        world.local = [span_runner(model, *map(int, layers.split(":"))) for layers in local]
        if num_steps:
            world.watch = once(world.network, peer(2), num_steps, lambda: world.network.kill(peer(2)))  # noqa: B023
        runner = world.runner(Codec.INT8)
        found.append(answers(runner, [request(LONG_PROMPT, sampling=SEEDED)]))
        assert runner.num_reroutes == (num_steps is not None)
    assert found[0] == found[1] == found[2]


# A last hop that holds the head


@pytest.fixture
def headless(model: Model) -> World:
    """A world whose caller has no head."""
    return World(model, MemoryNetwork(), hands_head=True)


@pytest.mark.parametrize("spans", [["0:8"], ["0:3", "3:8"], ["0:2", "2:4", "4:6", "6:8"]], ids=len)
@pytest.mark.parametrize("sampling", [GREEDY, UNPENALISED, SEEDED], ids=["greedy", "seeded", "penalty"])
def test_a_last_hop_draws_the_tokens_of_one_process(
    headless: World, model: Model, spans: list[str], sampling: SamplingParams
) -> None:
    for index, layers in enumerate(spans, 1):
        headless.serve(peer(index), layers)
    asked = request(PROMPT, sampling=sampling)
    assert answers(headless.runner(), [asked]) == expected(model, asked)


def test_no_rows_come_back_to_the_caller(headless: World) -> None:
    headless.serve(peer(1), "0:8")
    runner = headless.runner()
    kinds: list[type] = []
    poll = headless.node.switchboard.poll

    def noted(timeout_s: float | None) -> list:
        events = poll(timeout_s)
        kinds.extend(type(event.message) for event in events if isinstance(event, Received))
        return events

    headless.node.switchboard.poll = noted  # type: ignore[method-assign]
    answers(runner, [request(max_tokens=5)])
    assert kinds.count(Drawn) == 5 and Step not in kinds


def test_logprobs_come_along(headless: World, model: Model) -> None:
    headless.serve(peer(1), "0:8")
    asked = request(max_tokens=4, sampling=replace(UNPENALISED, logprobs=5))
    found, wanted = (logprobs_of(one, asked) for one in (headless.runner(), LocalRunner(model, 256, 16, 512)))
    assert found == wanted and all(len(one) == 5 for one in found)


def logprobs_of(runner: object, asked: Request) -> list:
    outputs = Engine(runner, lambda ids: "").stream(asked)  # type: ignore[arg-type]
    return [one for output in outputs for one in output.logprobs]


def test_sequences_with_settings_of_their_own_are_drawn_together(headless: World, model: Model) -> None:
    serve_twice(headless, "0:4", "4:8")
    settings = [GREEDY, SEEDED, UNPENALISED, replace(SEEDED, seed=9)]
    asked = [request(PROMPT[: 3 + index], 12, one, f"r{index}") for index, one in enumerate(settings)]
    assert answers(headless.runner(), asked) == expected(model, *asked)


def test_rounded_activations_give_the_same_tokens_wherever_they_are_drawn(headless: World, model: Model) -> None:
    headless.serve(peer(1), "0:8")
    here = World(model, MemoryNetwork())
    here.serve(peer(1), "0:8")
    asked = request(sampling=UNPENALISED)
    assert answers(headless.runner(Codec.INT8), [asked]) == answers(here.runner(Codec.INT8), [asked])


@pytest.mark.parametrize("victim", [1, 2, 3])
@pytest.mark.parametrize("num_steps", [1, 3, 4, 17, 33])
def test_a_death_changes_nothing_that_the_last_hop_draws(
    headless: World, long_answer: Answers, victim: int, num_steps: int
) -> None:
    die_once(headless, long_answer, victim, victim, num_steps)


@pytest.mark.parametrize("seed", range(4))
def test_loss_jitter_and_duplicates_change_nothing_that_the_last_hop_draws(
    model: Model, long_answer: Answers, seed: int
) -> None:
    """A Draw often comes after its step here, and steps twice."""
    quality = LinkQuality(delay_s=0.005, jitter_s=0.02, loss=0.1, duplicates=0.1)
    world = World(model, MemoryNetwork(quality, seed), hands_head=True)
    serve_twice(world, "0:3", "3:6", "6:8")
    world.watch = once(world.network, peer(3), 4 + 5 * seed, lambda: world.network.kill(peer(3)))
    assert answers(world.runner(), [request(LONG_PROMPT, sampling=SEEDED)]) == long_answer


def test_a_conversation_goes_on_with_another_penalty(headless: World, model: Model) -> None:
    headless.serve(peer(1), "0:8")
    runner, local = headless.runner(), LocalRunner(model, 256, 16, 512)
    prompt = list(PROMPT)
    for sampling in (SEEDED, GREEDY, replace(SEEDED, repetition_penalty=1.4)):
        asked = request(prompt, 8, sampling)
        found = answers(runner, [asked])
        assert found == answers(local, [asked])
        prompt += [*found["a"], 11]


def test_a_peer_without_the_head_is_not_asked_for_the_last_layers(headless: World, model: Model) -> None:
    headless.hands_head = False
    headless.serve(peer(1), "0:8")
    headless.hands_head = True
    with pytest.raises(NoRouteError, match=r"layers 0:8 are served by nobody.*it has not the head"):
        headless.runner()


def test_a_hop_without_a_head_refuses_to_draw(headless: World) -> None:
    headless.hands_head = False
    server = headless.serve(peer(1), "0:8") and headless.servers[peer(1)]
    runner = headless.runner()
    answers(runner, [request(max_tokens=2)])
    (key,) = server.sessions._sessions
    headless.node.switchboard.send(peer(1), Draw(key, 9, 0.0, 0, 1.0, 0.0, 1.0, 0, 0))
    assert Refuse(key, Reason.PROTOCOL, "this node has no head to draw tokens with") in messages(headless)


def messages(headless: World) -> list:
    headless.network.advance(headless.network.now + 1.0)
    return [event.message for event in headless.node.switchboard.poll(0.0) if isinstance(event, Received)]


@pytest.mark.parametrize("token_id", [VOCAB_SIZE, VOCAB_SIZE + 5])
def test_a_token_that_the_model_does_not_have_is_not_believed(headless: World, token_id: int) -> None:
    headless.serve(peer(1), "0:8")
    runner = headless.runner()
    assert runner.vocab_size == VOCAB_SIZE
    key = SessionKey(CALLER, 1)
    assert not headless.node._is_sound(Drawn(key, 1, 0, (DrawnToken(token_id, ()),)))
    assert not headless.node._is_sound(Drawn(key, 1, 0, (DrawnToken(1, ((token_id, -1.0),)),)))
    assert headless.node._is_sound(Drawn(key, 1, 0, (DrawnToken(VOCAB_SIZE - 1, ((0, -1.0),)),)))
