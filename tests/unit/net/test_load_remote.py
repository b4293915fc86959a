"""A model that answers over a BlocksMap: which layers are loaded here, and which maps are refused."""

from pathlib import Path
from typing import Any

import pytest

import hopformer.llama.demo
from hopformer.errors import BlocksMapError, NoRouteError
from hopformer.llama.engine import Engine, Request
from hopformer.llama.fingerprint import fingerprint
from hopformer.llama.load import LoadOptions, load
from hopformer.net.blocks_map import BlocksMap, MapModel, MapPeer, MapRoute
from hopformer.net.identity import PeerId
from hopformer.net.load_remote import RemoteModel, Routing, load_remote
from hopformer.net.memory_network import MemoryNetwork

DEMO = Path(hopformer.llama.demo.__file__).parent
CALLER, PEER = (PeerId(bytes([index]) * 22) for index in range(2))
OPTIONS = LoadOptions(device="cpu", dtype="float32", max_context=128)


def loaded(*routes: tuple[str, Any], known: str | None = None, hands_head: bool = False) -> RemoteModel:
    listed = tuple(MapRoute(layers, str(peer)) for layers, peer in routes)
    blocks_map = BlocksMap(1, MapModel("demo", known), (MapPeer(str(PEER), ("memory:1",)),), listed)
    return load_remote(DEMO, OPTIONS, Routing(blocks_map, 2.0, hands_head=hands_head), MemoryNetwork().join(CALLER))


def answer(engine: Engine) -> tuple[int, ...]:
    engine.add(Request("a", [1, 267, 201, 334, 270], 8))
    found: tuple[int, ...] = ()
    while engine.has_work:
        for output in engine.step():
            found += output.token_ids
    return found


@pytest.mark.parametrize("routes", [["0:8"], ["0:3", "3:5", "5:8"]], ids=str)
@pytest.mark.parametrize("known", [None, fingerprint(DEMO).hex()], ids=["any", "named"])
def test_a_map_of_this_node_alone_answers_as_without_one(routes: list[str], known: str | None) -> None:
    remote = loaded(*((layers, "self") for layers in routes), known=known)
    remote.runner.connect()
    assert answer(remote.model.engine) == answer(load(DEMO, OPTIONS).engine)
    assert [(str(hop.layers), hop.peer) for hop in remote.runner.route] == [("0:8", None)]
    assert remote.model.engine.max_context == 128


def test_nobody_else_is_waited_for_longer_than_asked() -> None:
    remote = loaded(("0:3", "self"), ("3:8", PEER))
    with pytest.raises(NoRouteError, match=f"layers 3:8 are served by nobody: {PEER}"):
        remote.runner.connect()
    assert remote.node.switchboard.now() == pytest.approx(2.0, abs=0.3)


@pytest.mark.parametrize(
    ("routes", "known", "fault"),
    [
        ([("0:7", "self")], None, "layers 7:8 are a hole"),
        ([("0:9", "self")], None, "layers 0:9 are out of range"),
        ([("0:8", "self")], "00" * 32, "the map is for another model, demo"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(routes: list[tuple[str, Any]], known: str | None, fault: str) -> None:
    with pytest.raises(BlocksMapError, match=fault):
        loaded(*routes, known=known)


def test_who_runs_the_last_layer_has_nobody_to_hand_the_head_to() -> None:
    with pytest.raises(BlocksMapError, match="layer 7, the last, to this node"):
        loaded(("0:4", PEER), ("4:8", "self"), hands_head=True)
    assert loaded(("0:4", "self"), ("4:8", PEER), hands_head=True).runner._sampler is None
