"""Answers over nodes behind NAT that only a relay knows: who meets directly, and what an answer survives meanwhile.

One laboratory for all tests. Nodes that serve the same layers are behind NATs of different kinds, and each test's
caller takes the pair that it is about, from a home of its own. What is asked of an answer is that its text is what one
process says, that no step was computed again (nobody rerouted), and that the text never stopped for longer than a path
may take to be replaced. What is not marked ``nat`` is what a change is most likely to break; `make test-nat` runs
all of it.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hopformer.bench.nat_lab import Host, Kind, NatLab
from hopformer.bench.nat_world import ANSWER_S, StreamedAnswer, World
from hopformer.bench.net_emulator import EmulatedLink
from hopformer.bench.netns import missing

STALL_S = 3.0  # until a path that died is replaced: what is promised to users
UPGRADE_S = 15.0  # until a direct path is found, or found again: two tries and what they wait for each other
HALF = EmulatedLink(0.010)  # of 20 ms between two hosts
BAD = EmulatedLink(0.040, jitter_s=0.005, loss=0.02)
ASK = ["--prompt", "hello", "--max-tokens"]
LONG, SHORT = 3900, 40  # tokens: all that fit into the context, as these answers are stopped by their tests; and few
DIRECT, RELAYED = {"direct", "punched"}, {"relayed"}
LAYERS = {"a": "0:1", "b": "1:2"}  # by the first letter of a node's name
CONES, SYMMETRICS = ("a_cone", "b_cone"), ("a_symmetric", "b_symmetric")
BOTH_KINDS = pytest.mark.parametrize(
    ("kind", "names"), [pytest.param("cone", CONES, marks=pytest.mark.nat), ("symmetric", SYMMETRICS)]
)
NATS: dict[str, tuple[Kind, EmulatedLink]] = {
    "a_cone": ("cone", HALF),
    "b_cone": ("shifted", HALF),
    "a_symmetric": ("symmetric", HALF),
    "b_symmetric": ("symmetric", HALF),
    "b_double": ("double", HALF),
    "b_bad": ("cone", BAD),
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A relay, and nodes a, of the first layer, and b, of the second, behind the usual kinds of NAT."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with NatLab() as lab:
        built = World(lab, tiny_model, tmp_path_factory.mktemp("world"))
        built.start_relay()
        serve(built, (*CONES, *SYMMETRICS))
        yield built


def serve(world: World, names: tuple[str, ...]) -> None:
    """Start those that do not run yet."""
    new = [name for name in names if name not in world.nodes]
    hosts = {name: world.lab.host(name.replace("_", "-"), *NATS[name]) for name in new}
    world.serve({name: LAYERS[name[0]] for name in new}, hosts)


@pytest.fixture(autouse=True)
def nobody_reroutes(world: World) -> Iterator[None]:
    """In no test here is a token computed twice; and no answer outlives its test."""
    before = {name: node.num_replayed() for name, node in world.nodes.items()}
    yield
    world.end_answers()
    assert {name: world.nodes[name].num_replayed() for name in before} == before


@pytest.fixture(scope="module")
def story(world: World) -> str:
    """What one process says."""
    out, err = world.generate(world.lab.host("alone"), None, *ASK, LONG).communicate(timeout=ANSWER_S)
    assert err == b""
    return out.decode().removesuffix("\n")


def begin(world: World, host: Host, names: tuple[str, ...]) -> StreamedAnswer:
    """A long answer, asked for by a stranger, of which there is something."""
    serve(world, names)
    answer = world.answer(host, world.map_of(*names), *ASK, LONG)
    answer.go_on(20)
    return answer


def until(world: World, answer: StreamedAnswer, names: tuple[str, ...], kinds: set[str]) -> None:
    """Wait until both nodes' paths to the caller, and the one between them, are of these kinds."""
    first, last = (world.nodes[name] for name in names)

    def is_so() -> bool:
        to_caller = {node.path_to(answer.peer_id) for node in (first, last)}
        return to_caller | {first.path_to(last.peer_id), last.path_to(first.peer_id)} <= kinds

    answer.wait(is_so, UPGRADE_S, every_s=0.2)


def check(answer: StreamedAnswer, story: str) -> None:
    """End an answer, which so far is what one process says."""
    said = answer.stop()
    assert len(said) >= 20 and story.startswith(said)


@pytest.mark.nat
@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("cone", CONES),
        ("shifted", ("a_cone", "b_double")),
        ("double", CONES),
        ("open", CONES),
        ("cone", ("a_cone", "b_bad")),
    ],
)
def test_who_can_meet_directly_does(world: World, story: str, kind: str, names: tuple[str, str]) -> None:
    answer = begin(world, world.lab.host(f"direct-{kind}-{names[1]}", kind, HALF), names)
    until(world, answer, names, DIRECT)
    answer.go_on(100)
    check(answer, story)


@pytest.mark.nat
def test_an_answer_over_a_relay_alone_is_that_of_one_process(world: World, story: str) -> None:
    """Symmetric NATs on all sides: nobody can meet."""
    answer = begin(world, world.lab.host("all-symmetric", "symmetric", HALF), SYMMETRICS)
    began = time.monotonic()
    answer.wait(lambda: time.monotonic() > began + UPGRADE_S, UPGRADE_S + 1.0)
    until(world, answer, SYMMETRICS, RELAYED)
    assert answer.stall_s(began) < STALL_S
    check(answer, story)


@pytest.mark.nat
def test_one_symmetric_nat_leaves_only_its_own_paths_on_the_relay(world: World, story: str) -> None:
    names = "a_cone", "b_symmetric"
    first, last = (world.nodes[name] for name in names)
    answer = begin(world, world.lab.host("beside-symmetric", "cone", HALF), names)
    answer.wait(lambda: first.path_to(answer.peer_id) in DIRECT, UPGRADE_S, every_s=0.2)
    answer.go_on(100)
    assert {last.path_to(answer.peer_id), last.path_to(first.peer_id), first.path_to(last.peer_id)} == RELAYED
    check(answer, story)


@pytest.mark.nat
def test_two_in_one_home_meet_inside(world: World, story: str) -> None:
    """Their NAT does not hairpin, so only their own addresses lead to each other; other homes have the same ones."""
    home = world.nodes["a_cone"].host.nat
    assert home is not None
    answer = begin(world, world.lab.host("home-mate", home), CONES)
    until(world, answer, CONES, DIRECT)
    check(answer, story)


@pytest.mark.nat
def test_generate_tells_tokens_and_route_as_without_nat(world: World) -> None:
    caller, found = world.lab.host("json", "cone"), []
    for names in (CONES, ("a_symmetric", "b_double")):
        serve(world, names)
        process = world.generate(caller, world.map_of(*names), *ASK, SHORT, "--json")
        out, err = process.communicate(timeout=ANSWER_S)
        assert err == b""
        found.append(json.loads(out))
        assert [hop["peer"] for hop in found[-1]["route"]] == [world.nodes[name].peer_id for name in names]
    assert [one["reroutes"] for one in found] == [0, 0] and len(found[0]["token_ids"]) == SHORT
    assert found[0]["token_ids"] == found[1]["token_ids"]


def pairs(world: World, caller: Host, names: tuple[str, ...]) -> list[tuple[Host, Host]]:
    """Whoever sends to whom."""
    first, last = (world.nodes[name].host for name in names)
    return [(caller, first), (first, last), (last, caller)]


def test_a_direct_path_that_dies_falls_back_and_comes_back(world: World, story: str) -> None:
    caller = world.lab.host("cut", "cone", HALF)
    answer = begin(world, caller, CONES)
    for one, other in pairs(world, caller, CONES):
        until(world, answer, CONES, DIRECT)
        cut_at = time.monotonic()
        world.lab.cut(one, other)
        try:
            answer.go_on(100)
            assert answer.stall_s(cut_at) < STALL_S
        finally:
            world.lab.heal(one, other)
    until(world, answer, CONES, DIRECT)
    check(answer, story)


@pytest.mark.nat
def test_all_direct_paths_die_at_once_and_stay_dead_for_a_while(world: World, story: str) -> None:
    caller = world.lab.host("cut-all", "cone", HALF)
    answer = begin(world, caller, CONES)
    until(world, answer, CONES, DIRECT)
    cut_at = time.monotonic()
    for pair in pairs(world, caller, CONES):
        world.lab.cut(*pair)
    try:
        until(world, answer, CONES, RELAYED)
        answer.go_on(200)
        assert answer.stall_s(cut_at) < STALL_S
    finally:
        for pair in pairs(world, caller, CONES):
            world.lab.heal(*pair)
    until(world, answer, CONES, DIRECT)
    check(answer, story)


@BOTH_KINDS
def test_a_relay_that_restarts_ends_no_answer(world: World, story: str, kind: str, names: tuple[str, str]) -> None:
    """Over direct paths nobody even notices; over the relay the answer waits until it is back."""
    answer = begin(world, world.lab.host(f"relay-dies-{kind}", kind, HALF), names)
    until(world, answer, names, DIRECT if kind == "cone" else RELAYED)
    killed_at = time.monotonic()
    world.kill_relay()
    time.sleep(0.5)
    world.start_relay()
    back_at = time.monotonic()
    answer.go_on(200)
    assert answer.stall_s(killed_at if kind == "cone" else back_at) < STALL_S
    check(answer, story)
    another = begin(world, world.lab.host(f"relay-back-{kind}", kind), names)  # strangers get through the new one
    check(another, story)


@BOTH_KINDS
def test_a_nat_that_rebinds_ends_no_answer(world: World, story: str, kind: str, names: tuple[str, str]) -> None:
    """The caller's, and each node's: who only receives has the harder part."""
    caller = world.lab.host(f"rebinds-{kind}", kind, HALF)
    answer = begin(world, caller, names)
    for host in (caller, *(world.nodes[name].host for name in names)):
        until(world, answer, names, DIRECT if kind == "cone" else RELAYED)
        assert host.nat is not None
        rebound_at = time.monotonic()
        world.lab.rebind(host.nat)
        answer.go_on(100)
        assert answer.stall_s(rebound_at) < STALL_S
    until(world, answer, names, DIRECT if kind == "cone" else RELAYED)
    check(answer, story)


@pytest.mark.nat
def test_a_node_that_idled_for_longer_than_its_nat_remembers_is_still_reached(world: World, story: str) -> None:
    for name in SYMMETRICS:
        nat = world.nodes[name].host.nat
        assert nat is not None
        world.lab.forget_after(nat, 20)  # routers are known for 30 s, and for little less
    time.sleep(30.0)
    check(begin(world, world.lab.host("after-idling", "symmetric"), SYMMETRICS), story)


@pytest.mark.nat
def test_a_caller_that_vanishes_and_comes_back_goes_on(world: World, story: str) -> None:
    """Its whole home is without the internet for a second, as while a phone changes its cell."""
    caller = world.lab.host("vanishes", "cone", HALF)
    answer = begin(world, caller, CONES)
    until(world, answer, CONES, DIRECT)
    gone_at = time.monotonic()
    world.lab.cut(caller)
    time.sleep(1.0)
    world.lab.heal(caller)
    answer.go_on(100)
    assert answer.stall_s(gone_at) < 1.0 + STALL_S
    check(answer, story)
