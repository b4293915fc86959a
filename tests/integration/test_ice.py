"""Ways by ICE, between endpoints of one process that a relay on loopback has brought together."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Sequence

import psutil
import pytest
from aioice import stun

from hopformer.net import ice
from hopformer.net.carrier import Connection
from hopformer.net.endpoint import Endpoint
from hopformer.net.ice import IceAgents
from hopformer.net.identity import Identity, PeerId
from hopformer.net.messages import Codec, Dtype, SessionKey, Step
from hopformer.net.network_process import MeshPart, ProcessSwitchboard
from hopformer.net.relay_messages import IceOffer
from hopformer.net.relay_node import RelayConfig, RelayNode
from hopformer.net.stun import ANSWERS_PER_S
from hopformer.net.switchboard import Event, PeerUp, Received
from hopformer.net.udp import split_host_port
from hopformer.net.ways import Ice, Relayed

LOOPBACK = ("127.0.0.1:0",)
WAIT_S = 20.0  # far beyond what anything here takes; two shared cores may be busy with other tests


class Node:
    """An endpoint that is at a relay, and does not punch."""

    def __init__(self, relay: RelayNode, *, ice: bool = True) -> None:
        self.identity = Identity.generate()
        self.events: list[Event] = []
        self.endpoint = Endpoint(self.identity, None, self.events.append)
        self.endpoint.listen(LOOPBACK)
        self.endpoint.punches = False
        if ice:
            self.endpoint.ice = IceAgents(self.endpoint, self.endpoint.carrier, self.endpoint.relays)
        self.endpoint.relays.keep(f"{relay.peer_id}@{relay.addrs[0]}")

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    def to(self, other: "Node") -> Connection:
        connection = self.endpoint.connection_of(other.peer_id)
        assert connection is not None
        return connection

    def by_ice(self, other: "Node") -> bool:
        return isinstance(self.to(other).path.way, Ice)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


async def connected(relay: RelayNode, nodes: Sequence[Node]) -> None:
    """The first two know each other over the relay."""
    anna, bela = nodes[:2]
    await until(lambda: all(node.endpoint.relays.addrs for node in nodes))
    anna.endpoint.dial(bela.peer_id, [f"{relay.peer_id}@{relay.addrs[0]}"])
    await until(lambda: PeerUp(bela.peer_id) in anna.events and PeerUp(anna.peer_id) in bela.events)


def run(test: Callable[[RelayNode], Awaitable[None]]) -> None:
    async def bounded() -> None:
        relay = RelayNode(Identity.generate(), RelayConfig(LOOPBACK))
        ticks = asyncio.create_task(relay.run(lambda: False))
        try:
            async with asyncio.timeout(60):
                await test(relay)
        finally:
            ticks.cancel()
            await asyncio.gather(ticks, return_exceptions=True)

    asyncio.run(bounded())


def step(caller: PeerId, number: int) -> Step:
    return Step(SessionKey(caller, 1), number, 0, 1, 1, False, Dtype.BFLOAT16, Codec.EXACT, 4096, bytes(8192))


def test_two_take_a_way_by_ice_and_messages_pass_on_it() -> None:
    async def test(relay: RelayNode) -> None:
        anna, bela = nodes = (Node(relay), Node(relay))
        await connected(relay, nodes)
        await until(lambda: anna.by_ice(bela) and bela.by_ice(anna))
        passed = relay.desk.table.passed_bytes
        for number in range(20):
            anna.endpoint.send(bela.peer_id, step(anna.peer_id, number))
        await until(lambda: sum(isinstance(one, Received) for one in bela.events) == 20)
        assert relay.desk.table.passed_bytes - passed < 8192  # probes at most
        for node in nodes:
            node.endpoint.close()

    run(test)


def test_where_one_of_two_does_not_speak_ice_they_stay_relayed() -> None:
    async def test(relay: RelayNode) -> None:
        anna, bela = nodes = (Node(relay), Node(relay, ice=False))
        await connected(relay, nodes)
        await asyncio.sleep(1.5)
        assert isinstance(anna.to(bela).path.way, Relayed) and isinstance(bela.to(anna).path.way, Relayed)
        for node in nodes:
            node.endpoint.close()

    run(test)


def test_a_way_by_ice_that_ends_falls_back_on_the_relay() -> None:
    async def test(relay: RelayNode) -> None:
        anna, bela = nodes = (Node(relay), Node(relay))
        await connected(relay, nodes)
        await until(lambda: anna.by_ice(bela) and bela.by_ice(anna))
        assert anna.endpoint.ice is not None and bela.endpoint.ice is not None
        anna.endpoint.ice.close()
        bela.endpoint.ice.close()
        await until(lambda: isinstance(anna.to(bela).path.way, Relayed))
        await until(lambda: isinstance(bela.to(anna).path.way, Relayed))
        for number in range(20):
            anna.endpoint.send(bela.peer_id, step(anna.peer_id, number))
        await until(lambda: sum(isinstance(one, Received) for one in bela.events) == 20)
        for node in nodes:
            node.endpoint.close()

    run(test)


def test_a_relay_answers_stuns_question_so_many_times_a_second() -> None:
    async def test(relay: RelayNode) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.setblocking(False)
            asking.bind(("127.0.0.1", 0))
            for _ in range(ANSWERS_PER_S + 200):
                question = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
                await loop.sock_sendto(asking, bytes(question), split_host_port(relay.addrs[0]))
            answers = []
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    while True:
                        answers.append(await loop.sock_recv(asking, 1500))
            seen = stun.parse_message(answers[0]).attributes["XOR-MAPPED-ADDRESS"]
            assert seen == asking.getsockname()
            assert ANSWERS_PER_S <= len(answers) < ANSWERS_PER_S + 200

    run(test)


def test_a_node_that_is_no_relay_answers_no_such_question() -> None:
    async def test(relay: RelayNode) -> None:
        loop, node = asyncio.get_running_loop(), Node(relay)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.setblocking(False)
            asking.bind(("127.0.0.1", 0))
            question = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
            await loop.sock_sendto(asking, bytes(question), split_host_port(node.endpoint.addrs[0]))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(loop.sock_recv(asking, 1500), 0.3)
        node.endpoint.close()

    run(test)


def test_offers_that_make_no_sense_change_nothing() -> None:
    async def test(relay: RelayNode) -> None:
        anna, bela = nodes = sorted((Node(relay), Node(relay)), key=lambda node: node.peer_id)
        await connected(relay, nodes)
        await until(lambda: anna.by_ice(bela) and bela.by_ice(anna))
        assert anna.endpoint.ice is not None
        anna.endpoint.ice.take(bela.peer_id, IceOffer(True, "late", "p" * 22, ()))  # an answer that nobody waits for
        anna.endpoint.ice.take(bela.peer_id, IceOffer(False, "late", "p" * 22, ()))  # an offer that is not its part
        bela.endpoint.send(anna.peer_id, IceOffer(True, "late", "p" * 22, ()))  # an answer, from who has to be offered
        await asyncio.sleep(0.2)
        assert anna.by_ice(bela) and bela.by_ice(anna)
        anna.endpoint.send(bela.peer_id, IceOffer(False, "late", "p" * 22, ("no candidate",)))  # a new one, that fails
        await until(lambda: not bela.by_ice(anna))
        assert isinstance(bela.to(anna).path.way, Relayed)
        for node in nodes:
            node.endpoint.close()

    run(test)


def test_no_more_agents_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(relay: RelayNode) -> None:
        monkeypatch.setattr(ice, "MAX_AGENTS", 1)
        anna, bela, cora = nodes = sorted((Node(relay) for _ in range(3)), key=lambda node: node.peer_id)
        await connected(relay, nodes)
        await until(lambda: anna.by_ice(bela))
        anna.endpoint.dial(cora.peer_id, [f"{relay.peer_id}@{relay.addrs[0]}"])
        await until(lambda: PeerUp(cora.peer_id) in anna.events)
        await asyncio.sleep(1.0)
        assert not anna.by_ice(cora) and anna.by_ice(bela)
        for node in nodes:
            node.endpoint.close()

    run(test)


@pytest.mark.parametrize("is_asked_for", [True, False])
def test_the_process_of_a_network_looks_for_ways_by_ice_where_it_is_asked_to(is_asked_for: bool) -> None:
    async def test(relay: RelayNode) -> None:
        mesh = MeshPart(relays=(f"{relay.peer_id}@{relay.addrs[0]}",), ice=is_asked_for)
        with contextlib.ExitStack() as stack:
            boards = []
            for _ in range(2):
                identity = Identity.generate()
                board = await asyncio.to_thread(ProcessSwitchboard.start, identity, LOOPBACK, None, mesh=mesh)
                stack.callback(board.close)
                boards.append(board)
            anna, bela = boards
            anna.dial(bela.peer_id, mesh.relays)
            assert PeerUp(bela.peer_id) in await asyncio.to_thread(anna.poll, WAIT_S)
            if is_asked_for:
                await until(lambda: all(len(sockets(board)) > 1 for board in boards))
            else:
                await asyncio.sleep(1.0)
                assert [len(sockets(board)) for board in boards] == [1, 1]

    run(test)


def sockets(board: ProcessSwitchboard) -> list:
    return psutil.Process(board.child_pid).net_connections("udp")
