"""Nodes over QUIC on this machine's loopback: who is let in, what is survived, and what a bad neighbour costs."""

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager

import psutil
import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from hopformer.errors import NetworkError
from hopformer.net.admission import MAX_HALF_OPEN
from hopformer.net.connection import Connection
from hopformer.net.endpoint import Endpoint
from hopformer.net.identity import Identity, PeerId
from hopformer.net.messages import Ask, Close, Codec, Dtype, Lease, Message, SessionKey, Step
from hopformer.net.network_process import ProcessSwitchboard
from hopformer.net.path_size import SITE_DATAGRAM_BYTES
from hopformer.net.quic import ALPN, VIRTUAL_ADDR
from hopformer.net.switchboard import Event, PeerDown, PeerUp, Received
from hopformer.net.udp import split_host_port

LOOPBACK = ["127.0.0.1:0"]
WAIT_S = 20.0  # far beyond what anything here takes; two shared cores may be busy with other tests


class Node:
    """An endpoint and what it was told."""

    def __init__(self, identity: Identity | None = None, allow: set[PeerId] | None = None) -> None:
        self.identity = identity or Identity.generate()
        self.events: list[Event] = []
        self.endpoint = Endpoint(self.identity, None if allow is None else frozenset(allow), self.events.append)
        self.endpoint.listen(LOOPBACK)

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def addrs(self) -> tuple[str, ...]:
        return self.endpoint.addrs

    @property
    def messages(self) -> list[Message]:
        return [one.message for one in self.events if isinstance(one, Received)]

    def downs(self) -> list[PeerDown]:
        return [one for one in self.events if isinstance(one, PeerDown)]

    def close(self) -> None:
        self.endpoint.close()


async def until(condition: Callable[[], object], limit_s: float = WAIT_S) -> float:
    """Wait for it; how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, "it did not come"
        await asyncio.sleep(0.005)
    return time.monotonic() - began


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


async def connect(anna: Node, bela: Node, addrs: tuple[str, ...] | None = None) -> None:
    anna.endpoint.dial(bela.peer_id, addrs or bela.addrs)
    await until(lambda: PeerUp(bela.peer_id) in anna.events and PeerUp(anna.peer_id) in bela.events)


def step(of: SessionKey, number: int, num_rows: int = 1) -> Step:
    return Step(of, number, 0, num_rows, 0, False, Dtype.BFLOAT16, Codec.EXACT, 4096, bytes(8192) * num_rows)


def session_of(node: Node | ProcessSwitchboard, number: int = 1) -> SessionKey:
    return SessionKey(node.peer_id, number)


# ---- who is let in


def test_two_nodes_talk_in_both_directions() -> None:
    async def test() -> None:
        with closing(Node()) as anna, closing(Node()) as bela:
            await connect(anna, bela)
            sent = [step(session_of(anna), 1), step(session_of(anna), 2, num_rows=100), Close(session_of(anna))]
            for message in sent:
                anna.endpoint.send(bela.peer_id, message)
            bela.endpoint.send(anna.peer_id, Ask())
            await until(lambda: len(bela.messages) == 3 and len(anna.messages) == 1)
            assert bela.messages == sent and anna.messages == [Ask()]
            stats = anna.endpoint.stats()[bela.peer_id]
            assert stats.addr == bela.addrs[0] and stats.rtt_s > 0 and stats.sent_bytes > 800_000

    run(test)


def test_datagrams_grow_to_what_loopback_carries() -> None:
    async def test() -> None:
        with closing(Node()) as anna, closing(Node()) as bela:
            await connect(anna, bela)
            (connection,) = anna.endpoint._peers.values()
            await until(lambda: connection.path.datagram_bytes == SITE_DATAGRAM_BYTES)

    run(test)


def test_timers_are_set_now_and_then_and_not_for_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        with closing(Node()) as anna, closing(Node()) as bela:
            await connect(anna, bela)
            loop = asyncio.get_running_loop()
            armed: list[object] = []
            call_at = loop.call_at

            def count(when: float, callback: Callable[..., object], *arguments: object) -> asyncio.TimerHandle:
                armed.extend(one for one in arguments if isinstance(one, Connection))
                return call_at(when, callback, *arguments)

            monkeypatch.setattr(loop, "call_at", count)
            for number in range(1, 201):
                anna.endpoint.send(bela.peer_id, step(session_of(anna), number))
                while len(bela.messages) < number:
                    await asyncio.sleep(0)
            assert 0 < len(armed) < 200  # both ends arm one when something was sent, and when it has arrived

    run(test)


def test_a_node_that_dials_one_peer_does_not_talk_to_another() -> None:
    async def test() -> None:
        with closing(Node()) as anna, closing(Node()) as eve:
            wanted = Identity.generate().peer_id
            anna.endpoint.dial(wanted, eve.addrs)
            await until(lambda: anna.events)
            (down,) = anna.events
            assert isinstance(down, PeerDown) and down.peer == wanted
            assert f"another key answers there: {eve.peer_id}" in down.reason
            await asyncio.sleep(0.1)
            assert eve.events == [] and eve.endpoint.stats() == {}

    run(test)


def test_somebody_in_the_middle_is_not_whom_was_dialled() -> None:
    """Eve takes Anna's connection, makes one of her own to Bela, and would pass everything on."""

    async def test() -> None:
        with closing(Node()) as anna, closing(Node()) as bela, closing(Node()) as eve:
            await connect(eve, bela)
            anna.endpoint.dial(bela.peer_id, eve.addrs)
            await until(lambda: anna.events)
            assert isinstance(anna.events[0], PeerDown) and "another key" in anna.events[0].reason
            assert PeerUp(anna.peer_id) not in bela.events and PeerUp(anna.peer_id) not in eve.events

    run(test)


@pytest.mark.parametrize("thief_dials", [True, False])
def test_a_copied_certificate_is_of_no_use(thief_dials: bool) -> None:
    async def test() -> None:
        with closing(Node()) as victim, closing(Node()) as bela, closing(Node()) as thief:
            thief.endpoint._carrier._credentials._certificate = victim.identity.tls_credentials()[0]
            dialler, other = (thief, bela) if thief_dials else (bela, thief)
            dialler.endpoint.dial(bela.peer_id if thief_dials else victim.peer_id, other.addrs)
            await until(lambda: dialler.events)
            assert isinstance(dialler.events[0], PeerDown) and other.events == []

    run(test)


def test_a_client_without_a_certificate_is_sent_away() -> None:
    async def test() -> None:
        with closing(Node()) as bela, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.connect(split_host_port(bela.addrs[0]))
            udp.setblocking(False)
            configuration = QuicConfiguration(alpn_protocols=[ALPN], verify_mode=ssl.CERT_NONE)
            client = QuicConnection(configuration=configuration)
            client.connect(VIRTUAL_ADDR, now=time.monotonic())

            def exchange() -> bool:
                for datagram, _ in client.datagrams_to_send(time.monotonic()):
                    udp.send(datagram)
                try:
                    client.receive_datagram(udp.recv(65535), VIRTUAL_ADDR, time.monotonic())
                except BlockingIOError:
                    client.handle_timer(time.monotonic())
                return client._close_event is not None

            await until(exchange)
            assert client._close_event.reason_phrase == "no Ed25519 certificate was shown"
            assert bela.events == []

    run(test)


def test_a_closed_node_lets_in_whom_it_lists_and_whom_it_dials() -> None:
    async def test() -> None:
        with closing(Node()) as anna, closing(Node()) as eve, closing(Node(allow={anna.peer_id})) as bela:
            eve.endpoint.dial(bela.peer_id, bela.addrs)
            await until(lambda: eve.events)
            assert "is not on this node's list" in eve.downs()[0].reason
            await connect(anna, bela)
            assert bela.events == [PeerUp(anna.peer_id)]
            await connect(bela, eve)

    run(test)


def test_a_node_refuses_itself() -> None:
    async def test() -> None:
        with closing(Node()) as anna:
            anna.endpoint.dial(anna.peer_id, anna.addrs)
            assert "itself" in anna.downs()[0].reason

    run(test)


@pytest.mark.parametrize("attempt", range(3))
def test_two_dials_at_once_end_as_one_connection(attempt: int) -> None:
    async def test() -> None:
        with closing(Node()) as anna, closing(Node()) as bela:
            anna.endpoint.dial(bela.peer_id, bela.addrs)
            await asyncio.sleep(0.002 * attempt)
            bela.endpoint.dial(anna.peer_id, anna.addrs)
            await until(lambda: anna.events and bela.events)
            await asyncio.sleep(0.3)
            assert anna.events == [PeerUp(bela.peer_id)] and bela.events == [PeerUp(anna.peer_id)]
            anna.endpoint.send(bela.peer_id, Ask())
            bela.endpoint.send(anna.peer_id, Ask())
            await until(lambda: anna.messages and bela.messages)
            assert len(anna.endpoint._carrier._by_tag) == len(bela.endpoint._carrier._by_tag) == 1

    run(test)


def test_of_several_addresses_the_first_that_answers_wins() -> None:
    async def test() -> None:
        with closing(Node()) as anna, closing(Node()) as bela, closing(Node()) as eve:
            silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            silent.bind(("127.0.0.1", 0))
            with silent:
                port = silent.getsockname()[1]
                addrs = ("no address", f"127.0.0.1:{port}", *eve.addrs, "127.0.0.1:9", *bela.addrs)
                await connect(anna, bela, addrs)
                await asyncio.sleep(0.1)
                assert anna.events == [PeerUp(bela.peer_id)] and len(anna.endpoint._carrier._by_tag) == 1

    run(test)


@pytest.mark.parametrize(
    ("addrs", "why"),
    [
        (("127.0.0.1:9",), "no node listens there"),
        (("nothing",), "HOST:PORT is expected"),
        (("[::1]:9",), "no socket of this node reaches it"),
        ((), "no address of it is known"),
    ],
)
def test_a_dial_that_cannot_succeed_ends_soon(addrs: tuple[str, ...], why: str) -> None:
    async def test() -> None:
        with closing(Node()) as anna:
            wanted = Identity.generate().peer_id
            anna.endpoint.dial(wanted, addrs)
            took = await until(lambda: anna.events)
            assert why in anna.downs()[0].reason and took < 1.0

    run(test)


# ---- what is survived


class Nat:
    """Passes datagrams between whoever writes to ``front`` and a server; either of its sides may get a new address."""

    def __init__(self, server: str) -> None:
        self.server = split_host_port(server)
        self.loop = asyncio.get_running_loop()
        self.client: tuple[str, int] | None = None
        self.num_passed = 0
        self.front, self.back = self.bind(self.from_client), self.bind(self.from_server)

    def bind(self, reader: Callable[[socket.socket], None]) -> socket.socket:
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.bind(("127.0.0.1", 0))
        one.setblocking(False)
        self.loop.add_reader(one.fileno(), reader, one)
        return one

    def unbind(self, one: socket.socket) -> None:
        self.loop.remove_reader(one.fileno())
        one.close()

    def from_client(self, one: socket.socket) -> None:
        datagram, self.client = one.recvfrom(65535)
        self.num_passed += 1
        self.back.sendto(datagram, self.server)

    def from_server(self, one: socket.socket) -> None:
        datagram, _ = one.recvfrom(65535)
        if self.client is not None:
            self.front.sendto(datagram, self.client)

    def move_client(self) -> None:
        self.unbind(self.back)
        self.back = self.bind(self.from_server)

    def move_server(self) -> None:
        self.unbind(self.front)
        self.front = self.bind(self.from_client)

    def close(self) -> None:
        self.unbind(self.front)
        self.unbind(self.back)


@pytest.mark.parametrize("move", [Nat.move_client, Nat.move_server], ids=["client", "server"])
@pytest.mark.parametrize("talker", ["anna", "bela"])
def test_a_changed_address_on_either_side_is_followed(move: Callable[[Nat], None], talker: str) -> None:
    async def test() -> None:
        with closing(Node()) as anna, closing(Node()) as bela, closing(Nat(bela.addrs[0])) as nat:
            await connect(anna, bela, (f"127.0.0.1:{nat.front.getsockname()[1]}",))
            sender, receiver = (anna, bela) if talker == "anna" else (bela, anna)
            for number in range(40):
                sender.endpoint.send(receiver.peer_id, step(session_of(anna), number))
                if number % 10 == 5:
                    await until(lambda number=number: len(receiver.messages) > number - 3)
                    move(nat)
            took = await until(lambda: len(receiver.messages) == 40)
            assert receiver.messages == [step(session_of(anna), number) for number in range(40)]
            assert took < 5 and anna.downs() == bela.downs() == []

    run(test)


def test_nobody_else_gets_a_connections_datagrams_by_repeating_its_packets() -> None:
    async def test() -> None:
        with closing(Node()) as anna, closing(Node()) as bela, closing(Nat(bela.addrs[0])) as nat:
            await connect(anna, bela, (f"127.0.0.1:{nat.front.getsockname()[1]}",))
            thief = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            thief.bind(("127.0.0.1", 0))
            thief.setblocking(False)

            def from_client(one: socket.socket) -> None:
                datagram, nat.client = one.recvfrom(65535)
                thief.sendto(datagram, nat.server)  # faster than the original
                nat.back.sendto(datagram, nat.server)

            asyncio.get_running_loop().remove_reader(nat.front.fileno())
            asyncio.get_running_loop().add_reader(nat.front.fileno(), from_client, nat.front)
            for number in range(20):
                anna.endpoint.send(bela.peer_id, step(session_of(anna), number))
                bela.endpoint.send(anna.peer_id, step(session_of(anna), number))
            await until(lambda: len(anna.messages) == len(bela.messages) == 20)
            stolen = 0
            with thief:
                while True:
                    try:
                        stolen += len(thief.recv(65535))
                    except BlockingIOError:
                        break
            assert stolen < 500  # challenges, and none of the activations

    run(test)


def test_a_restarted_peer_is_connected_again_and_the_old_connection_is_over() -> None:
    async def test() -> None:
        identity = Identity.generate()
        with closing(Node()) as anna:
            with closing(Node(identity)) as bela:
                await connect(anna, bela)
                port = bela.addrs[0]
                anna.endpoint.send(bela.peer_id, Lease(session_of(anna)))
                await until(lambda: bela.messages)
                carrier = bela.endpoint._carrier  # dies without a word
                for connection in tuple(carrier._by_tag.values()):
                    connection.link.discard()
            again = Endpoint(identity, None, (events := []).append)
            with closing(again):
                again.listen([port])
                took = await until(lambda: anna.downs())
                assert took < 1.5
                anna.endpoint.dial(identity.peer_id, [port])
                await until(lambda: PeerUp(anna.peer_id) in events)

    run(test)


# ---- bad neighbours


def garbage_initials(count: int) -> Iterator[bytes]:
    for _ in range(count):
        head = b"\xc3\0\0\0\x01\x08" + os.urandom(8) + b"\x08" + os.urandom(8) + b"\0"
        yield head + (0x4000 | 1170).to_bytes(2, "big") + os.urandom(1174)


def real_initials(count: int) -> Iterator[bytes]:
    for _ in range(count):
        client = QuicConnection(configuration=QuicConfiguration(alpn_protocols=[ALPN], verify_mode=ssl.CERT_NONE))
        client.connect(VIRTUAL_ADDR, now=0.0)
        yield client.datagrams_to_send(0.0)[0][0]


def test_strangers_datagrams_cost_no_memory_and_no_connection() -> None:
    async def test() -> None:
        with (
            closing(Node()) as anna,
            closing(Node()) as bela,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        ):
            await connect(anna, bela)
            udp.connect(split_host_port(bela.addrs[0]))
            floods = [
                real_initials(2 * MAX_HALF_OPEN),
                [b"", b"\0", b"\3", b"\x80", b"\xc3", bytes(1200), b"\1" * 60],
                [os.urandom(size) for size in (1, 20, 1200, 8900) for _ in range(50)],
                garbage_initials(300),
            ]
            num_half_open = 0
            for flood in floods:
                for index, datagram in enumerate(flood):
                    udp.send(datagram)
                    if index % 20 == 0:
                        await asyncio.sleep(0.002)
                        num_half_open = max(num_half_open, len(bela.endpoint._carrier._by_tag) - 1)
            await asyncio.sleep(0.05)
            assert 0 < num_half_open <= MAX_HALF_OPEN
            anna.endpoint.send(bela.peer_id, Ask())
            await until(lambda: bela.messages)
            with closing(Node()) as cara:  # a Retry, which an honest peer answers
                await connect(cara, bela)

    run(test)


@pytest.mark.slow
def test_half_open_connections_are_forgotten() -> None:
    async def test() -> None:
        with closing(Node()) as bela, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.connect(split_host_port(bela.addrs[0]))
            for datagram in real_initials(5):
                udp.send(datagram)
            await until(lambda: bela.endpoint._carrier._by_tag)
            await until(lambda: not bela.endpoint._carrier._by_tag and not bela.endpoint._carrier._by_id)
            assert bela.events == []

    run(test)


def test_a_peer_that_sends_garbage_after_the_handshake_is_cut_off() -> None:
    async def test() -> None:
        with closing(Node()) as anna, closing(Node()) as bela:
            await connect(anna, bela)
            (connection,) = anna.endpoint._peers.values()
            connection.link.quic.send_stream_data(6 if connection.link.quic.is_client else 7, b"\xff" * 100)
            anna.endpoint._carrier.send_soon(connection)
            await until(lambda: bela.downs() and anna.downs())
            assert "broke a rule" in bela.downs()[0].reason

    run(test)


# ---- processes


@contextmanager
def nodes(count: int = 2) -> Iterator[list[ProcessSwitchboard]]:
    started: list[ProcessSwitchboard] = []
    try:
        for _ in range(count):
            started.append(ProcessSwitchboard.start(Identity.generate(), LOOPBACK))
        yield started
    finally:
        for node in started:
            node.close()


def poll_until(node: ProcessSwitchboard, kind: type, limit_s: float = WAIT_S) -> list[Event]:
    """All events until one is a ``kind``."""
    events: list[Event] = []
    deadline = time.monotonic() + limit_s
    while not any(isinstance(one, kind) for one in events):
        assert time.monotonic() < deadline, f"no {kind.__name__} came: {events}"
        events += node.poll(0.1)
    return events


def join(anna: ProcessSwitchboard, bela: ProcessSwitchboard) -> None:
    anna.dial(bela.peer_id, bela.addrs)
    assert poll_until(anna, PeerUp) == [PeerUp(bela.peer_id)]
    assert poll_until(bela, PeerUp) == [PeerUp(anna.peer_id)]


def rss_mib(node: ProcessSwitchboard) -> float:
    return psutil.Process(node.child_pid).memory_info().rss / 2**20


def test_two_processes_talk() -> None:
    with nodes() as (anna, bela):
        join(anna, bela)
        sent = [step(session_of(anna), number, num_rows) for number, num_rows in enumerate((1, 1, 300, 1))]
        for message in sent:
            anna.send(bela.peer_id, message)
        received: list[Event] = []
        while len(received) < len(sent):
            received += bela.poll(WAIT_S)
        assert received == [Received(anna.peer_id, message) for message in sent]
        assert bela.poll(0) == [] and bela.poll(0.01) == []
        while not anna.stats():
            anna.poll(0.2)
        assert anna.stats()[bela.peer_id].addr == bela.addrs[0]
        anna.close()
        (down,) = poll_until(bela, PeerDown)
        assert down == PeerDown(anna.peer_id, "it was shut down")


def test_the_networks_process_imports_no_torch() -> None:
    script = "import sys, hopformer.net.network_child; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", script], check=False).returncode == 0


def test_the_key_is_on_no_command_line() -> None:
    identity = Identity.generate()
    with closing(ProcessSwitchboard.start(identity, LOOPBACK)) as node:
        child = psutil.Process(node.child_pid)
        shown = " ".join(child.cmdline()) + " ".join(child.environ().values())
        assert identity.seed.hex() not in shown and "PRIVATE" not in shown


def test_what_the_networks_process_has_to_say_is_in_the_nodes_log(caplog: pytest.LogCaptureFixture) -> None:
    """Who was let in, and who was not and why."""
    with (
        caplog.at_level("INFO", "hopformer"),
        closing(ProcessSwitchboard.start(Identity.generate(), LOOPBACK)) as anna,
        closing(ProcessSwitchboard.start(Identity.generate(), LOOPBACK, allow=())) as bela,
        nodes(1) as (cara,),
    ):
        join(bela, anna)
        cara.dial(bela.peer_id, bela.addrs)
        poll_until(cara, PeerDown)
        deadline = time.monotonic() + WAIT_S
        while not any("refused" in line for line in caplog.messages):
            assert time.monotonic() < deadline
            for one in (anna, bela):
                one.poll(0.1)
    assert any(f"peer={cara.peer_id}" in line and "is not on this node's list" in line for line in caplog.messages)
    assert any(f"peer={anna.peer_id}" in line and line.endswith(": connected") for line in caplog.messages)
    assert {record.name for record in caplog.records} == {"hopformer.net.endpoint"}


def test_an_address_that_is_taken_is_told() -> None:
    with nodes(1) as (anna,), pytest.raises(NetworkError, match=f"cannot listen on {anna.addrs[0]}"):
        ProcessSwitchboard.start(Identity.generate(), anna.addrs)


def test_a_killed_peer_is_noticed_within_a_second() -> None:
    with nodes() as (anna, bela):
        join(anna, bela)
        anna.send(bela.peer_id, Lease(session_of(anna)))
        poll_until(bela, Received)
        time.sleep(0.3)
        os.kill(bela.child_pid, signal.SIGKILL)
        began = time.monotonic()
        (down,) = poll_until(anna, PeerDown)
        assert time.monotonic() - began < 1.0 and "nothing was heard of it" in down.reason
        with pytest.raises(NetworkError, match="has ended with exit status -9"):
            bela.poll(WAIT_S)
        with pytest.raises(NetworkError):
            bela.poll(0)
        bela.send(anna.peer_id, Ask())  # lost, and no error


@pytest.mark.slow
def test_a_stopped_peer_is_noticed_within_three_seconds() -> None:
    with nodes() as (anna, bela):
        join(anna, bela)
        anna.send(bela.peer_id, Lease(session_of(anna)))
        poll_until(bela, Received)
        os.kill(bela.child_pid, signal.SIGSTOP)
        began = time.monotonic()
        try:
            poll_until(anna, PeerDown)
        finally:
            os.kill(bela.child_pid, signal.SIGCONT)
        assert time.monotonic() - began < 3.5  # 2.75 s, and a loaded machine


def test_the_networks_process_ends_with_its_parent() -> None:
    script = (
        "import os, sys\n"
        "from hopformer.net.identity import Identity\n"
        "from hopformer.net.network_process import ProcessSwitchboard\n"
        "node = ProcessSwitchboard.start(Identity.generate(), ['127.0.0.1:0'])\n"
        "print(node.child_pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], check=False, capture_output=True, text=True, timeout=60)
    child, deadline = int(done.stdout), time.monotonic() + WAIT_S
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_reader_that_never_reads_costs_bounded_memory_and_then_the_connection() -> None:
    with nodes() as (anna, bela):
        join(anna, bela)
        annas, belas = rss_mib(anna), rss_mib(bela)
        down: list[Event] = []
        for number in range(200):
            anna.send(bela.peer_id, step(session_of(anna), number, num_rows=256))  # 400 MiB in all
            down += anna.poll(0.02)
            if down:
                break
        assert "bytes wait and the peer takes none of them" in down[0].reason
        assert rss_mib(bela) - belas < 80 and rss_mib(anna) - annas < 160
        events: list[Event] = []  # Bela reads at last, and finds all that had arrived, and the end
        while not any(isinstance(one, PeerDown) for one in events):
            events += bela.poll(WAIT_S)
        assert len(events) > 8


@pytest.mark.slow
def test_a_thousand_sessions_leave_no_memory_behind() -> None:
    with nodes() as (anna, bela):
        join(anna, bela)

        def open_and_close(begin: int, count: int) -> None:
            for number in range(begin, begin + count):
                session = session_of(anna, number)
                anna.send(bela.peer_id, step(session, 1))
                anna.send(bela.peer_id, Close(session))
                received: list[Event] = []
                while len(received) < 2:
                    received += bela.poll(WAIT_S)

        open_and_close(0, 1000)
        before = rss_mib(anna), rss_mib(bela)
        open_and_close(1000, 1000)
        assert rss_mib(anna) - before[0] < 2 and rss_mib(bela) - before[1] < 2


@pytest.mark.slow
def test_garbage_for_seconds_costs_no_memory_and_little_time() -> None:
    with nodes() as (anna, bela), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        join(anna, bela)
        before = rss_mib(bela)
        udp.connect(split_host_port(bela.addrs[0]))
        end, round_trips = time.monotonic() + 3, []
        while time.monotonic() < end:
            for datagram in garbage_initials(15):
                udp.send(datagram)
            began = time.monotonic()
            anna.send(bela.peer_id, Ask())
            poll_until(bela, Received)
            round_trips.append(time.monotonic() - began)
        assert rss_mib(bela) - before < 8 and len(round_trips) > 20
