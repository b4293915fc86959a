"""Nodes that choose their layers themselves: the demo model, in a mesh in memory with a clock of its own."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest
import torch

from hopformer import __version__
from hopformer.errors import WeightsError
from hopformer.llama.config import load_config
from hopformer.llama.engine import Request
from hopformer.llama.fingerprint import fingerprint
from hopformer.llama.hub import resolve_model
from hopformer.llama.load import LoadedModel, LoadOptions, load
from hopformer.llama.load_span import LoadedSpan, load_span
from hopformer.llama.sampling import SamplingParams
from hopformer.net.activations import wire_dtype
from hopformer.net.auto_node import AutoNode, ServedModel
from hopformer.net.auto_span import AutoSpan, Phase
from hopformer.net.identity import Identity, PeerId
from hopformer.net.layer_range import LayerRange, gaps
from hopformer.net.load_remote import RemoteModel, Routing, load_remote
from hopformer.net.memory_network import MemoryNetwork
from hopformer.net.messages import Ask, Codec, Dtype, Serving
from hopformer.net.metrics import NodeMetrics
from hopformer.net.placement import MeshNode
from hopformer.net.served_span import ServedSpan
from hopformer.net.switchboard import Heard, Received, Vanished

NUM_LAYERS = 8
WHOLE = LayerRange(0, NUM_LAYERS)
OPTIONS = LoadOptions(device="cpu", dtype="float32")
LAYER_S = 0.0002
REROUTE_TIMEOUT_S = 60.0
SETTLED_S = 20.0  # all have chosen, loaded and announced: 3 + 5 + 2 s, and what they yield to each other


class AtOnce(Executor):
    """Runs what it is given when it is given."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Mesh:
    """Nodes of the demo model, each with room for some layers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network = MemoryNetwork()
        self.nodes: dict[PeerId, AutoNode] = {}
        self.loads: list[tuple[PeerId, LayerRange]] = []
        self.fails: set[PeerId] = set()
        self.num_added = 0
        self._fingerprint = fingerprint(folder, 0, 0)

    def add(self, max_layers: int, layer_s: float = LAYER_S) -> PeerId:
        self.num_added += 1
        identity = Identity.from_seed(bytes([self.num_added]) * 32)  # the same in every run
        who = identity.peer_id

        def load_layers(layers: LayerRange) -> tuple[LoadedSpan, ServedSpan, float]:
            self.loads.append((who, layers))
            if who in self.fails:
                raise WeightsError("the disk is full")
            loaded = load_span(self.folder, (layers.start, layers.end), OPTIONS)
            return loaded, self._served(loaded), layer_s

        model = ServedModel("demo", self._fingerprint, NUM_LAYERS, Dtype.FLOAT32, __version__, load_layers)
        auto = AutoSpan(MeshNode(who, None, layer_s, max_layers, is_ready=False), self.network.now)
        board = self.network.join(who)
        node = AutoNode(board, identity, model, auto, NodeMetrics(), lambda served: None, AtOnce())
        self.nodes[who] = node

        def turn() -> float:
            wait_s = node.turn(0.0)
            auto.check_integrity()
            return self.network.now + max(wait_s, 0.01)

        self.network.attach(who, turn)
        turn_at_once = turn()
        assert turn_at_once > self.network.now
        self.network._wakes[who] = self.network.now
        return who

    def _served(self, loaded: LoadedSpan) -> ServedSpan:
        span = loaded.runner.span
        return ServedSpan(
            model="demo",
            fingerprint=fingerprint(self.folder, span.start, span.end),
            start=span.start,
            end=span.end,
            num_layers=NUM_LAYERS,
            width=loaded.config.hidden_size,
            dtype=wire_dtype(loaded.dtype),
            codecs=(Codec.EXACT,),
            max_tokens=loaded.max_context,
            version=__version__,
        )

    def settle(self, seconds: float = SETTLED_S) -> None:
        self.network.advance(self.network.now + seconds)

    def served(self) -> dict[PeerId, LayerRange]:
        """What everybody serves."""
        found = {who: node.served for who, node in self.nodes.items()}
        return {who: LayerRange(one.start, one.end) for who, one in found.items() if one is not None}

    def holes(self) -> list[LayerRange]:
        return gaps(self.served().values(), WHOLE)

    def kill(self, who: PeerId) -> None:
        self.network.kill(who)
        del self.nodes[who]

    def caller(self) -> RemoteModel:
        board = self.network.join(Identity.generate().peer_id)
        remote = load_remote(self.folder, OPTIONS, Routing(None, REROUTE_TIMEOUT_S, is_meshed=True), board)
        remote.runner.connect()
        return remote


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve_model("demo")


@pytest.fixture(scope="module")
def alone(folder: Path) -> LoadedModel:
    return load(folder, OPTIONS)


@pytest.fixture
def mesh(folder: Path) -> Mesh:
    assert load_config(folder).num_layers == NUM_LAYERS
    return Mesh(folder)


def request(num_tokens: int = 24) -> Request:
    return Request("a", [1, 267, 201, 334, 270, 223, 20, 301], num_tokens, SamplingParams())


def expected(alone: LoadedModel, num_tokens: int = 24) -> list[int]:
    return [token for output in alone.engine.stream(request(num_tokens)) for token in output.token_ids]


def answer(remote: RemoteModel, num_tokens: int = 24, each: Callable[[int], None] = lambda number: None) -> list[int]:
    """An answer; ``each`` is called with the number of tokens after each of them."""
    found: list[int] = []
    for output in remote.model.engine.stream(request(num_tokens)):
        found += output.token_ids
        each(len(found))
    return found


def test_nodes_that_join_together_cover_the_model_and_answer_as_one(mesh: Mesh, alone: LoadedModel) -> None:
    for max_layers in (3, 4, 3):
        mesh.add(max_layers)
    mesh.settle()
    assert mesh.holes() == [] and len(mesh.loads) == 3, "everybody has chosen once, and nobody the same"
    remote = mesh.caller()
    assert answer(remote) == expected(alone)
    assert {hop.peer for hop in remote.runner.route} <= set(mesh.nodes)


def test_a_layer_is_announced_as_ready_when_it_is_and_not_before(mesh: Mesh) -> None:
    who = mesh.add(8)
    mesh.fails.add(who)
    listener = mesh.network.join(Identity.generate().peer_id)
    mesh.settle()
    heard = listener.poll(0)
    said = [event.announcement for event in heard if isinstance(event, Heard)]
    assert said and not any(one.is_ready for one in said), "what could not be loaded was only intended"
    assert any(isinstance(event, Vanished) for event in heard) and mesh.served() == {}
    mesh.fails.clear()
    mesh.settle(60.0)
    assert mesh.served() == {who: WHOLE}
    assert [event.announcement.is_ready for event in listener.poll(0) if isinstance(event, Heard)][-1]


def test_a_dead_nodes_layers_are_taken_over_in_the_middle_of_an_answer(mesh: Mesh, alone: LoadedModel) -> None:
    first, second = mesh.add(4), mesh.add(4)
    mesh.settle()
    spare = mesh.add(4)
    mesh.settle()
    remote = mesh.caller()
    lone = next(who for who in (first, second) if mesh.served()[who] != mesh.served()[spare])

    def strike(number: int) -> None:
        if number == 5:
            mesh.kill(lone)

    assert answer(remote, each=strike) == expected(alone)
    assert mesh.holes() == [], "one of the two others has moved there"
    assert remote.runner.num_reroutes >= 1


def test_a_session_leaves_a_node_that_moves_and_goes_on(mesh: Mesh, alone: LoadedModel) -> None:
    """Everybody crowds on one end; somebody moves to balance, and its sessions go to its replicas first."""
    slow = [mesh.add(8, layer_s=50 * LAYER_S)]
    mesh.settle()
    assert mesh.served() == {slow[0]: WHOLE}
    fast = [mesh.add(4) for _ in range(3)]
    mesh.settle()
    remote = mesh.caller()
    moves = 0

    def pass_time(number: int) -> None:
        nonlocal moves
        if number == 3:
            lone = next((who for who in fast if list(mesh.served().values()).count(mesh.served()[who]) == 1), fast[0])
            mesh.kill(lone)
            fast.remove(lone)
        mesh.settle(4.0)
        moves = sum(node.auto.num_moves for node in mesh.nodes.values())

    assert answer(remote, 24, pass_time) == expected(alone)
    assert mesh.holes() == []
    assert all(node.auto.phase is Phase.SERVING for node in mesh.nodes.values()) and moves >= 1


def test_a_node_without_layers_says_so_to_who_asks(mesh: Mesh) -> None:
    who = mesh.add(8)
    asker = mesh.network.join(Identity.generate().peer_id)
    asker.dial(who, ())
    asker.poll(1.0)
    asker.send(who, Ask())
    (event,) = [one for one in asker.poll(1.0) if isinstance(one, Received)]
    assert isinstance(event.message, Serving) and event.message.dtype is None
    assert mesh.served() == {}
