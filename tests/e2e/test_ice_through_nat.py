"""ICE through NATs of each kind, beside what tests/e2e/test_paths_through_nat.py asks of our own punching."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hopformer.bench.nat_lab import Kind, NatLab
from hopformer.bench.nat_world import World
from hopformer.bench.net_emulator import EmulatedLink
from hopformer.bench.net_nat import NatEffort, dial_in_lab
from hopformer.bench.netns import missing
from hopformer.net.ice import CONNECT_S

HALF = EmulatedLink(0.010)
EFFORT = NatEffort(num_dials=1, wait_s=CONNECT_S + 2.0, num_tokens=0)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with NatLab() as lab:
        built = World(lab, tiny_model, tmp_path_factory.mktemp("world"))
        built.start_relay()
        yield built
        built.end_answers()


@pytest.mark.parametrize(
    ("near", "far", "meets"),
    [
        ("cone", "cone", True),
        ("shifted", "double", True),
        ("open", "symmetric", True),
        ("symmetric", "symmetric", False),
    ],
)
def test_who_can_meet_by_ice_does(world: World, near: Kind, far: Kind, meets: bool) -> None:
    """And nobody else: neither punches."""
    hosts = [world.lab.host(f"{near}-{far}-{number}", kind, HALF) for number, kind in enumerate((near, far))]
    (dialled,) = dial_in_lab(world, *hosts, "ice", EFFORT)
    assert (dialled.straight_s is not None) == meets


def test_an_answer_of_nodes_that_look_by_ice_too_survives_its_way(world: World) -> None:
    hosts = {name: world.lab.host(f"{name}-node", "cone", HALF) for name in ("a", "b")}
    world.serve({"a": "0:1", "b": "1:2"}, hosts, "--ice")
    caller, ask = world.lab.host("caller", "shifted", HALF), ["--prompt", "hello", "--max-tokens", 3900]
    out, err = world.generate(world.lab.host("alone"), None, *ask).communicate(timeout=60)
    assert err == b""
    answer = world.answer(caller, world.map_of("a", "b"), *ask, "--ice")
    first = world.nodes["a"]
    answer.wait(lambda: first.path_to(answer.peer_id) == "direct", 15.0, every_s=0.2)
    cut_at = time.monotonic()
    world.lab.cut(caller, hosts["a"])
    answer.go_on(100)
    answer.wait(lambda: first.path_to(answer.peer_id) == "relayed", 15.0, every_s=0.2)
    assert answer.stall_s(cut_at) < 3.0  # what users are promised
    world.lab.heal(caller, hosts["a"])
    answer.wait(lambda: first.path_to(answer.peer_id) == "direct", 30.0, every_s=0.2)
    said = answer.stop()
    assert len(said) > 100 and out.decode().startswith(said)
    assert {name: node.num_replayed() for name, node in world.nodes.items()} == {"a": 0, "b": 0}
