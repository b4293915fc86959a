"""Nodes that reach each other through a relay on this machine's loopback: what they gain, and what they survive."""

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from hopformer.net.admission import MAX_STRANGERS
from hopformer.net.dialling import MAX_ATTEMPTS
from hopformer.net.endpoint import Endpoint
from hopformer.net.identity import Identity, PeerId
from hopformer.net.known_relay import OUTSIDE_PER_S
from hopformer.net.messages import Codec, Dtype, Message, SessionKey, Step
from hopformer.net.path_size import SITE_DATAGRAM_BYTES
from hopformer.net.probes import PROBE_BYTES
from hopformer.net.relay_channels import MAX_CHANNELS
from hopformer.net.relay_messages import Accept, Candidates, Channel, Leave, Reach, Register, Registered, Unreachable
from hopformer.net.relay_node import RelayConfig, RelayNode
from hopformer.net.relay_table import DEFAULT_RATE, MAX_REGISTERED
from hopformer.net.switchboard import Event, PeerDown, PeerUp, Received
from hopformer.net.ways import CHANNEL_BYTES, CHANNEL_PREFIX_BYTES, Direct, Relayed

LOOPBACK = ["127.0.0.1:0"]
WAIT_S = 20.0  # far beyond what anything here takes; two shared cores may be busy with other tests
ROW_BYTES = 8192


class Node:
    """An endpoint and what it was told. One that is ``hidden`` tells nobody where it is: all it has are its relays."""

    def __init__(self, identity: Identity | None = None, *, hidden: bool = False) -> None:
        self.identity = identity or Identity.generate()
        self.events: list[Event] = []
        self.endpoint = Endpoint(self.identity, None, self.events.append)
        self.endpoint.listen(LOOPBACK)
        if hidden:
            self.endpoint._send_candidates = lambda _: None  # type: ignore[method-assign]

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def messages(self) -> list[Message]:
        return [one.message for one in self.events if isinstance(one, Received)]

    def downs(self) -> list[PeerDown]:
        return [one for one in self.events if isinstance(one, PeerDown)]

    def path(self, other: "Node | RelayNode"):
        return self.endpoint.connection_of(other.peer_id).path

    def is_direct(self, other: "Node") -> bool:
        return isinstance(self.path(other).way, Direct)

    async def join(self, relay: RelayNode) -> None:
        self.endpoint.relays.keep(addr_of(relay))
        await until(lambda: self.endpoint.relays.addrs)

    def close(self) -> None:
        self.endpoint.close()


class Relay:
    """A relay in this process, which can die without a word and be started again where it was."""

    def __init__(self, max_rate: int = DEFAULT_RATE) -> None:
        self.identity = Identity.generate()
        self.max_rate = max_rate
        self.listen = tuple(LOOPBACK)
        self.start()

    def start(self) -> None:
        self.node = RelayNode(self.identity, RelayConfig(self.listen, max_rate=self.max_rate))
        self.listen = self.node.addrs
        self._task = asyncio.get_running_loop().create_task(self.node.run(lambda: False))

    def die(self) -> None:
        """As with kill -9: nobody is told, and the machine says that nobody listens there."""
        self._task.cancel()
        carrier = self.node.endpoint.carrier
        for connection in tuple(carrier._by_tag.values()):
            connection.link.discard()
        self.node.close()

    def close(self) -> None:
        self._task.cancel()
        self.node.close()


def addr_of(relay: RelayNode) -> str:
    return f"{relay.peer_id}@{relay.addrs[0]}"


async def until(condition: Callable[[], object], limit_s: float = WAIT_S) -> float:
    """Wait for it; how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, "it did not come"
        await asyncio.sleep(0.002)
    return time.monotonic() - began


def run(test: Callable[[ExitStack], Awaitable[None]]) -> None:
    async def within() -> None:
        with ExitStack() as stack:
            await asyncio.wait_for(test(stack), 60)

    asyncio.run(within())


def opened(stack: ExitStack, *ones):
    for one in ones:
        stack.callback(one.close)
    return ones


async def meet(anna: Node, bela: Node, relay: RelayNode) -> None:
    """Anna dials Bela by her id alone."""
    anna.endpoint.dial(bela.peer_id, (addr_of(relay),))
    await until(lambda: PeerUp(bela.peer_id) in anna.events and PeerUp(anna.peer_id) in bela.events)


async def world(stack: ExitStack, *, hidden: bool = False, max_rate: int = DEFAULT_RATE) -> tuple[Node, Node, Relay]:
    """Anna, connected with Bela through a relay."""
    relay = Relay(max_rate)
    anna, bela = Node(hidden=hidden), Node(hidden=hidden)
    opened(stack, relay, bela, anna)
    await bela.join(relay.node)
    await meet(anna, bela, relay.node)
    return anna, bela, relay


def step(of: SessionKey, number: int, payload: bytes = bytes(ROW_BYTES)) -> Step:
    num_rows = len(payload) // ROW_BYTES
    return Step(of, number, 0, num_rows, 0, False, Dtype.BFLOAT16, Codec.EXACT, 4096, payload)


async def exchange(anna: Node, bela: Node, number: int) -> float:
    """A step there and back; how long it took."""
    key = SessionKey(anna.peer_id, 1)
    anna.endpoint.send(bela.peer_id, step(key, number))
    bela.endpoint.send(anna.peer_id, step(key, number))

    def arrived() -> bool:
        return all(any(isinstance(m, Step) and m.step == number for m in one.messages) for one in (anna, bela))

    return await until(arrived)


# ---- meeting


def test_a_peer_is_dialled_by_its_id_and_then_met_straight() -> None:
    async def test(stack: ExitStack) -> None:
        anna, bela, _ = await world(stack)
        await until(lambda: anna.is_direct(bela) and bela.is_direct(anna))
        await exchange(anna, bela, 1)
        await until(lambda: anna.path(bela).datagram_bytes == SITE_DATAGRAM_BYTES)
        kinds = [anna.endpoint.stats()[bela.peer_id].kind, bela.endpoint.stats()[anna.peer_id].kind]
        assert kinds == ["direct", "direct"]
        assert any(isinstance(way, Relayed) for way in anna.path(bela).ways), "the relay stays as a way to fall back to"

    run(test)


def test_two_that_meet_nowhere_else_talk_through_the_relay_in_large_datagrams() -> None:
    async def test(stack: ExitStack) -> None:
        anna, bela, relay = await world(stack, hidden=True)
        for number in range(1, 4):
            await exchange(anna, bela, number)
        await until(lambda: anna.path(bela).datagram_bytes == SITE_DATAGRAM_BYTES - CHANNEL_PREFIX_BYTES)
        assert not anna.is_direct(bela) and not bela.is_direct(anna)
        assert relay.node.desk.table.passed_bytes > 3 * 2 * ROW_BYTES
        assert anna.endpoint.stats()[bela.peer_id].addr == addr_of(relay.node)

    run(test)


def test_two_that_ask_for_each_other_at_once_have_one_connection() -> None:
    async def test(stack: ExitStack) -> None:
        relay, anna, bela = opened(stack, Relay(), Node(hidden=True), Node(hidden=True))
        await bela.join(relay.node)
        await anna.join(relay.node)
        anna.endpoint.dial(bela.peer_id, (addr_of(relay.node),))
        bela.endpoint.dial(anna.peer_id, (addr_of(relay.node),))
        await until(lambda: PeerUp(bela.peer_id) in anna.events and PeerUp(anna.peer_id) in bela.events)
        await exchange(anna, bela, 1)
        await asyncio.sleep(0.3)
        assert anna.downs() == bela.downs() == []
        assert len(anna.endpoint.carrier._by_tag) == len(bela.endpoint.carrier._by_tag) == 2, (
            "each other, and the relay"
        )
        for one in (anna, bela):
            one.endpoint.relays._channels.check_integrity()
        relay.node.desk.table.check_integrity()

    run(test)


def test_whoever_is_not_there_is_told_at_once() -> None:
    async def test(stack: ExitStack) -> None:
        relay, anna = opened(stack, Relay(), Node())
        nobody = Identity.generate().peer_id
        anna.endpoint.dial(nobody, (addr_of(relay.node),))
        assert await until(anna.downs) < 3.0
        assert "it is not connected with this relay" in anna.downs()[0].reason

    run(test)


def test_a_relay_that_is_dialled_as_a_peer_is_said_to_be_one() -> None:
    async def test(stack: ExitStack) -> None:
        relay, anna = opened(stack, Relay(), Node())
        await anna.join(relay.node)
        anna.endpoint.dial(relay.node.peer_id, relay.node.addrs)
        assert anna.downs() == [PeerDown(relay.node.peer_id, "it is a relay, and serves no layers")]

    run(test)


def test_a_relay_that_is_dialled_as_a_peer_meanwhile_is_said_to_be_one() -> None:
    async def test(stack: ExitStack) -> None:
        relay, anna = opened(stack, Relay(), Node())
        anna.endpoint.dial(relay.node.peer_id, relay.node.addrs)
        await anna.join(relay.node)
        assert [one.peer for one in anna.downs()] == [relay.node.peer_id]

    run(test)


# ---- relays of several names


def test_one_relay_under_two_addresses_is_one() -> None:
    async def test(stack: ExitStack) -> None:
        relay, anna, bela = opened(stack, Relay(), Node(hidden=True), Node(hidden=True))
        await bela.join(relay.node)
        port = relay.node.addrs[0].rpartition(":")[2]
        anna.endpoint.relays.keep(relay.node.addrs[0])
        anna.endpoint.relays.keep(f"{relay.node.peer_id}@localhost:{port}")
        await until(lambda: anna.endpoint.relays.addrs)
        anna.endpoint.dial(bela.peer_id, (f"localhost:{port}",))
        await until(lambda: anna.events)
        assert [type(one) for one in anna.events] == [PeerDown], "no relay's id, so it is dialled itself"
        anna.endpoint.dial(bela.peer_id, (f"{relay.node.peer_id}@localhost:{port}",))
        await until(lambda: PeerUp(bela.peer_id) in anna.events)
        assert len(anna.endpoint.relays.addrs) == 1 and len(anna.endpoint.relays._all()) == 1

    run(test)


def test_another_relay_than_the_pinned_one_is_not_taken() -> None:
    async def test(stack: ExitStack) -> None:
        relay, anna = opened(stack, Relay(), Node())
        await anna.join(relay.node)
        wanted, other = Identity.generate().peer_id, Identity.generate().peer_id
        anna.endpoint.dial(wanted, (f"{other}@{relay.node.addrs[0]}",))
        await until(anna.downs)
        assert f"is {relay.node.peer_id}, and not {other}" in anna.downs()[0].reason

    run(test)


def test_a_relay_that_has_another_key_after_a_restart_is_taken_unless_it_is_pinned() -> None:
    async def test(stack: ExitStack) -> None:
        relay, anna, bela = opened(stack, Relay(), Node(), Node())
        anna.endpoint.relays.keep(relay.node.addrs[0])
        await bela.join(relay.node)
        await until(lambda: anna.endpoint.relays.addrs)
        relay.die()
        relay.identity = Identity.generate()
        relay.start()
        await until(lambda: anna.endpoint.relays.addrs == (addr_of(relay.node),))
        assert bela.endpoint.relays.addrs == ()

    run(test)


def test_a_relay_that_nobody_is_wanted_at_any_more_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hopformer.net.relays.UNUSED_S", 0.1)

    async def test(stack: ExitStack) -> None:
        anna, bela, relay = await world(stack, hidden=True)
        bela.close()
        await until(anna.downs)
        await until(lambda: relay.node.stats() == {} and anna.endpoint.relays._all() == [])

    run(test)


# ---- what is survived


def test_a_relay_that_dies_and_comes_back_ends_no_connection() -> None:
    async def test(stack: ExitStack) -> None:
        anna, bela, relay = await world(stack, hidden=True)
        await exchange(anna, bela, 1)
        relay.die()
        anna.endpoint.send(bela.peer_id, step(SessionKey(anna.peer_id, 1), 2))
        await until(lambda: anna.path(bela).is_stranded and bela.path(anna).is_stranded)
        assert anna.path(bela).waits_for_relay
        relay.start()
        await until(lambda: any(isinstance(m, Step) and m.step == 2 for m in bela.messages))
        await exchange(anna, bela, 3)
        assert anna.downs() == bela.downs() == []

    run(test)


def test_a_relay_that_dies_is_not_missed_by_those_who_meet_straight() -> None:
    async def test(stack: ExitStack) -> None:
        anna, bela, relay = await world(stack)
        await until(lambda: anna.is_direct(bela) and bela.is_direct(anna))
        relay.die()
        took = [await exchange(anna, bela, number) for number in range(1, 20)]
        await until(lambda: not any(isinstance(way, Relayed) for way in anna.path(bela).ways))
        relay.start()
        await until(lambda: any(isinstance(way, Relayed) for way in anna.path(bela).ways))
        assert anna.is_direct(bela) and max(took) < 1.0 and anna.downs() == []

    run(test)


def test_a_direct_path_that_dies_falls_back_on_the_relay_and_comes_back() -> None:
    async def test(stack: ExitStack) -> None:
        anna, bela, _ = await world(stack)
        await until(lambda: anna.is_direct(bela) and bela.is_direct(anna))
        await exchange(anna, bela, 1)
        with cut(anna, bela):
            assert await exchange(anna, bela, 2) < 3.0
            assert not anna.is_direct(bela)
            await exchange(anna, bela, 3)
        await until(lambda: anna.is_direct(bela) and bela.is_direct(anna))
        assert anna.downs() == bela.downs() == []

    run(test)


def test_a_peer_that_is_killed_is_gone_soon_though_its_relay_is_there() -> None:
    async def test(stack: ExitStack) -> None:
        anna, bela, _ = await world(stack, hidden=True)
        await exchange(anna, bela, 1)
        for connection in tuple(bela.endpoint.carrier._by_tag.values()):
            connection.link.discard()
        bela.close()
        assert await until(anna.downs) < 8.0

    run(test)


def test_a_peer_that_is_started_again_behind_its_relay_is_connected_anew() -> None:
    """Bela still believes in the old connection when the new one comes through a channel of its own."""

    async def test(stack: ExitStack) -> None:
        anna, bela, relay = await world(stack, hidden=True)
        for connection in tuple(anna.endpoint.carrier._by_tag.values()):
            connection.link.discard()
        anna.close()
        again = Node(anna.identity, hidden=True)
        opened(stack, again)
        again.endpoint.dial(bela.peer_id, (addr_of(relay.node),))
        await until(lambda: PeerUp(bela.peer_id) in again.events)
        await exchange(again, bela, 1)
        await asyncio.sleep(1.0)
        assert again.downs() == [] and len(bela.downs()) == 1
        assert bela.endpoint.relays.ways_to(again.peer_id), "the new channel stays"

    run(test)


# ---- what a relay is held to, and holds others to


def test_a_relay_takes_no_sessions() -> None:
    async def test(stack: ExitStack) -> None:
        relay, anna = opened(stack, Relay(), Node())
        await anna.join(relay.node)
        anna.endpoint.send(relay.node.peer_id, step(SessionKey(anna.peer_id, 1), 1))
        await until(lambda: not anna.endpoint.relays.addrs)
        await until(lambda: anna.endpoint.relays.addrs)

    run(test)


def test_a_relay_has_room_for_more_strangers_than_a_node_that_computes() -> None:
    async def test(stack: ExitStack) -> None:
        (relay,) = opened(stack, Relay())
        nodes = opened(stack, *(Node() for _ in range(MAX_STRANGERS + 2)))
        for node in nodes:
            await node.join(relay.node)
        assert relay.node.desk.table.num_registered == MAX_STRANGERS + 2

    run(test)


def test_a_full_relay_says_so_and_takes_who_was_turned_away_once_there_is_room() -> None:
    async def test(stack: ExitStack) -> None:
        relay, anna = opened(stack, Relay(), Node())
        table = relay.node.desk.table
        others = [PeerId(index.to_bytes(22)) for index in range(MAX_REGISTERED)]
        assert all(map(table.register, others))
        anna.endpoint.relays.keep(addr_of(relay.node))
        await until(lambda: anna.endpoint.relays.problems)
        (problem,) = anna.endpoint.relays.problems
        assert problem.endswith("this relay has 4096 peers already"), problem
        table.gone(others[0])
        await until(lambda: anna.endpoint.relays.addrs)
        assert not anna.endpoint.relays.problems

    run(test)


def test_who_is_beyond_the_rate_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def test(stack: ExitStack) -> None:
        anna, bela, relay = await world(stack, hidden=True, max_rate=1 << 20)
        key = SessionKey(anna.peer_id, 1)
        for number in range(1, 4):
            anna.endpoint.send(bela.peer_id, step(key, number, bytes(64 * ROW_BYTES)))
        await until(lambda: "were beyond the rate" in caplog.text)
        await until(lambda: len(bela.messages) == 3)
        assert relay.node.desk.table.num_dropped > 0 and anna.downs() == []

    run(test)


def test_a_pair_that_sends_all_it_can_leaves_another_pair_its_turns() -> None:
    async def test(stack: ExitStack) -> None:
        anna, bela, relay = await world(stack, hidden=True, max_rate=8 << 20)
        cleo, dora = opened(stack, Node(hidden=True), Node(hidden=True))
        await dora.join(relay.node)
        await meet(cleo, dora, relay.node)
        key = SessionKey(anna.peer_id, 1)
        for number in range(1, 13):
            anna.endpoint.send(bela.peer_id, step(key, number, bytes(128 * ROW_BYTES)))
        took = []
        for number in range(1, 21):
            took.append(await exchange(cleo, dora, number))
        assert len(bela.messages) < 12, "the first pair is still at it"
        assert sorted(took)[len(took) // 2] < 0.5
        (channel,) = [one.way.prefix[1:] for one in cleo.endpoint.relays._channels._channels.values()]
        assert all(bucket.num_dropped == 0 for bucket in relay.node.desk.table._channels[channel].buckets)

    run(test)


def test_a_relay_never_holds_what_it_passes_on_in_the_clear(tmp_path: Path) -> None:
    """Its whole memory is read, as a debugger would, right after activations have gone through it."""

    async def test(stack: ExitStack) -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "hopformer", "relay", "--listen", "127.0.0.1:0", "--allow", "any"),
            *("--identity", str(tmp_path / "relay.pem")),
            stdout=asyncio.subprocess.PIPE,
        )
        stack.callback(lambda: process.returncode is None and process.kill())
        ready = json.loads(await process.stdout.readline())
        anna, bela = opened(stack, Node(hidden=True), Node(hidden=True))
        bela.endpoint.relays.keep(f"{ready['peer_id']}@{ready['addrs'][0]}")
        await until(lambda: bela.endpoint.relays.addrs)
        anna.endpoint.dial(bela.peer_id, (f"{ready['peer_id']}@{ready['addrs'][0]}",))
        await until(lambda: PeerUp(bela.peer_id) in anna.events and PeerUp(anna.peer_id) in bela.events)
        secret = os.urandom(16)
        key = SessionKey(anna.peer_id, 1)
        for number in range(1, 9):
            anna.endpoint.send(bela.peer_id, step(key, number, secret * (8 * ROW_BYTES // 16)))
        await until(lambda: len(bela.messages) == 8)
        assert not anna.is_direct(bela)
        held = memory_of(process.pid)
        assert bela.peer_id.digest in held, "what it does know is found"
        assert secret not in held
        process.kill()
        await process.wait()

    run(test)


def memory_of(pid: int) -> bytes:
    """All that a process has and may change."""
    parts = []
    with open(f"/proc/{pid}/maps", encoding="ascii") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            place, access, *_ = line.split()
            if access.startswith("rw") and "[v" not in line:
                start, end = (int(one, 16) for one in place.split("-"))
                memory.seek(start)
                with contextlib.suppress(OSError):
                    parts.append(memory.read(end - start))
    return b"".join(parts)


class Liar:
    """A relay that says whatever it likes: an endpoint without a desk of a relay's."""

    def __init__(self) -> None:
        self.identity = Identity.generate()
        self.heard: list[tuple[PeerId, object]] = []
        self.endpoint = Endpoint(self.identity, None, lambda _: None)
        self.endpoint.desk = self
        self.endpoint.listen(LOOPBACK)

    def up(self, peer: PeerId, connection: object) -> None:
        pass

    def down(self, peer: PeerId) -> None:
        pass

    def moved(self, connection: object) -> None:
        pass

    def take(self, peer: PeerId, message: object) -> None:
        self.heard.append((peer, message))

    def close(self) -> None:
        self.endpoint.close()

    @property
    def addr(self) -> str:
        return f"{self.identity.peer_id}@{self.endpoint.addrs[0]}"


async def victim_of(stack: ExitStack) -> tuple[Liar, Node]:
    liar, anna = opened(stack, Liar(), Node())
    anna.endpoint.relays.keep(liar.addr)
    await until(lambda: any(isinstance(message, Register) for _, message in liar.heard))
    return liar, anna


def test_a_channel_to_somebody_who_was_not_asked_for_is_left() -> None:
    async def test(stack: ExitStack) -> None:
        liar, anna = await victim_of(stack)
        stranger, channel = Identity.generate().peer_id, bytes(CHANNEL_BYTES)
        liar.endpoint.send(anna.peer_id, Channel(stranger, channel, True))
        await until(lambda: (anna.peer_id, Leave(channel, "it was not asked for")) in liar.heard)
        assert anna.endpoint.relays.ways_to(stranger) == []

    run(test)


def test_channels_without_end_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hopformer.net.relay_channels.UNUSED_S", 0.5)

    async def test(stack: ExitStack) -> None:
        liar, anna = await victim_of(stack)
        peers = [Identity.generate().peer_id for _ in range(MAX_CHANNELS + 20)]
        channels = [number.to_bytes(CHANNEL_BYTES, "big") for number in range(len(peers))]
        for peer, channel in zip(peers, channels, strict=True):
            liar.endpoint.send(anna.peer_id, Channel(peer, channel, False))
        await until(lambda: sum(isinstance(message, Accept | Leave) for _, message in liar.heard) >= len(peers))
        assert sum(isinstance(message, Accept) for _, message in liar.heard) == MAX_CHANNELS
        anna.endpoint.relays._channels.check_integrity()
        await until(lambda: sum(isinstance(message, Leave) for _, message in liar.heard) == len(peers))
        assert anna.endpoint.relays._channels._channels == {} == anna.endpoint.carrier._channels

    run(test)


def test_channels_without_end_to_a_peer_that_is_wanted_cost_a_few_attempts() -> None:
    async def test(stack: ExitStack) -> None:
        liar, anna = await victim_of(stack)
        wanted = Identity.generate().peer_id
        anna.endpoint.dial(wanted, (liar.addr,))
        await until(lambda: (anna.peer_id, Reach(wanted)) in liar.heard)
        for number in range(100):
            liar.endpoint.send(anna.peer_id, Channel(wanted, number.to_bytes(CHANNEL_BYTES, "big"), True))
        last = (99).to_bytes(CHANNEL_BYTES, "big")
        await until(lambda: last in anna.endpoint.relays._channels._channels)
        assert len(anna.endpoint.carrier._by_tag) <= 1 + MAX_ATTEMPTS
        assert len(anna.endpoint.relays.ways_to(wanted)) == 1
        await until(anna.downs)

    run(test)


def test_unreachable_without_end_is_asked_again_now_and_then() -> None:
    async def test(stack: ExitStack) -> None:
        liar, anna = await victim_of(stack)
        (bela,) = opened(stack, Node())
        anna.endpoint.dial(bela.peer_id, (liar.addr, *bela.endpoint.addrs))
        await until(lambda: PeerUp(bela.peer_id) in anna.events)
        for _ in range(100):
            liar.endpoint.send(anna.peer_id, Unreachable(bela.peer_id, "no"))
        await asyncio.sleep(1.3)
        assert 1 <= liar.heard.count((anna.peer_id, Reach(bela.peer_id))) <= 4
        assert anna.downs() == []

    run(test)


def test_addresses_without_end_are_passed_on_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    async def test(stack: ExitStack) -> None:
        liar, anna = await victim_of(stack)
        changes: list[tuple[str, ...]] = []
        anna.endpoint.registered = lambda: changes.append(anna.endpoint.relays.outside_addrs)
        for number in range(1, 200):
            liar.endpoint.send(anna.peer_id, Registered(f"8.8.8.8:{number}", 1 << 20))
        liar.endpoint.send(anna.peer_id, Registered("nowhere", 1 << 20))
        await until(lambda: "'nowhere' is no numeric HOST:PORT" in caplog.text)
        assert 1 <= len(changes) <= 2 * OUTSIDE_PER_S and all(one[0].startswith("8.8.8.8:") for one in changes)

    run(test)


def test_addresses_of_third_parties_get_a_few_small_datagrams() -> None:
    async def test(stack: ExitStack) -> None:
        anna, bela, _ = await world(stack, hidden=True)
        third = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        third.bind(("127.0.0.1", 0))
        third.setblocking(False)
        addr = f"127.0.0.1:{third.getsockname()[1]}"
        for _ in range(200):
            bela.endpoint.send(anna.peer_id, Candidates((addr,)))
        await asyncio.sleep(3.0)
        got = list(iter(lambda: received(third), b""))
        assert 1 <= len(got) <= 25 and {len(one) for one in got} == {PROBE_BYTES}

    run(test)


def received(one: socket.socket) -> bytes:
    try:
        return one.recv(65_535)
    except BlockingIOError:
        return b""


@contextmanager
def cut(anna: Node, bela: Node) -> Iterator[None]:
    """Nothing passes straight between the two, and nobody is told."""
    lost = {(anna, addr) for addr in bela.endpoint.addrs} | {(bela, addr) for addr in anna.endpoint.addrs}
    before = {}
    for node in (anna, bela):
        (own,) = node.endpoint.carrier.sockets
        before[node] = own.send

        def send(datagrams=(), addr=(), node=node, own=own) -> None:
            if addr and (node, f"{addr[0]}:{addr[1]}") in lost:
                for _ in datagrams:
                    pass
                return
            before[node](datagrams, addr)

        own.send = send
    try:
        yield
    finally:
        for node in (anna, bela):
            del node.endpoint.carrier.sockets[0].send
