"""Nodes that find each other by multicast DNS: over this machine's loopback, and over a bridge of two namespaces."""

import asyncio
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

import hopformer
from hopformer.errors import NetworkError
from hopformer.net.announcement import Announcement, parse
from hopformer.net.directory import Directory, Via
from hopformer.net.identity import Identity, PeerId
from hopformer.net.lan import LAN_BYTES, MAX_SERVICES, MAX_TOLD_PER_S, SERVICE, Lan, to_text
from hopformer.net.layer_range import LayerRange
from hopformer.net.messages import Dtype

LOOPBACK = ["127.0.0.1"]
ETHERNET_PAYLOAD_BYTES = 1500 - 20 - 8  # without the headers of IPv4 and UDP
WAIT_S = 30.0  # a search takes about a second; two shared cores may be busy with other tests


class Node:
    """A node on the local network, and what it has heard."""

    def __init__(self) -> None:
        self.identity = Identity.generate()
        self.peer_id = self.identity.peer_id
        self.blobs: list[bytes] = []
        self.gone: list[PeerId] = []
        self.lan = Lan(self.blobs.append, self.gone.append)

    def says(self, **changes: object) -> bytes:
        issued_at = int(time.time() * 1000)
        one = Announcement(self.identity.public_bytes, issued_at, 90, "demo", bytes(32), 8, LayerRange(0, 8), True)
        usual = {"dtype": Dtype.FLOAT32, "addrs": ("10.0.0.2:4711",)}
        return replace(one, **(usual | changes)).sign(self.identity)  # type: ignore[arg-type]

    def has_heard(self, blob: bytes) -> bool:
        return blob in self.blobs


async def until(condition: Callable[[], object]) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < WAIT_S, "it did not come"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def on_loopback(*nodes: Node) -> AsyncIterator[None]:
    for one in nodes:
        await one.lan.start(LOOPBACK)
    try:
        yield
    finally:
        for one in nodes:
            await one.lan.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 120))


def test_two_nodes_hear_of_each_other_whoever_came_first() -> None:
    async def test() -> None:
        anna, bela = Node(), Node()
        async with on_loopback(anna):
            first = anna.says()
            anna.lan.announce(first)
            await asyncio.sleep(0.8)  # all that is said without being asked was said
            async with on_loopback(bela):
                await until(lambda: bela.has_heard(first))
                second = bela.says()
                bela.lan.announce(second)
                await until(lambda: anna.has_heard(second))
            await until(lambda: bela.peer_id in anna.gone)
        assert parse(first, time.time()).peer == anna.peer_id
        assert not anna.has_heard(first), "a node has heard itself"

    run(test)


def test_what_is_said_anew_is_heard_and_what_is_taken_back_is_gone() -> None:
    async def test() -> None:
        anna, bela = Node(), Node()
        async with on_loopback(anna, bela):
            for num_sessions in range(3):
                blob = anna.says(num_sessions=num_sessions)
                anna.lan.announce(blob)
                await until(lambda blob=blob: bela.has_heard(blob))
            anna.lan.announce(None)
            await until(lambda: anna.peer_id in bela.gone)
            blob = anna.says()
            anna.lan.announce(blob)
            await until(lambda: bela.has_heard(blob))

    run(test)


@contextmanager
def wiretap() -> Iterator[socket.socket]:
    """Hears what everybody on loopback hears."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear:
        ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        ear.bind(("224.0.0.251", 5353))
        group = socket.inet_aton("224.0.0.251") + socket.inet_aton("127.0.0.1")
        ear.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        ear.setblocking(False)
        yield ear


@pytest.mark.parametrize("num_bytes", [LAN_BYTES, 4096])
def test_an_announcement_arrives_whole_in_one_frame_or_in_fragments(num_bytes: int) -> None:
    async def test() -> None:
        anna, bela = Node(), Node()
        addrs = ("a" * 253 + ":65535",) * (12 if num_bytes == 4096 else 1)
        least = len(anna.says(addrs=addrs, membership=b""))
        async with on_loopback(anna, bela):
            blob = anna.says(addrs=addrs, membership=bytes(num_bytes - least))
            assert len(blob) == num_bytes
            with wiretap() as ear:
                anna.lan.announce(blob)
                await until(lambda: bela.has_heard(blob))
                packet = next(one for one in iter(lambda: ear.recv(16_384), b"") if to_text(blob) in one)
            assert (len(packet) <= ETHERNET_PAYLOAD_BYTES) is (num_bytes == LAN_BYTES)

    run(test)


def test_a_directory_lists_who_is_on_the_network_until_it_leaves() -> None:
    async def test() -> None:
        directory = Directory()
        anna, bela = Node(), Node()

        def take_up(blob: bytes) -> None:
            with suppress(NetworkError):  # others on this machine may say what they like
                directory.put(blob, time.monotonic(), time.time(), Via.LAN)

        bela.lan = Lan(take_up, lambda peer: directory.gone(peer, Via.LAN))
        async with on_loopback(bela):
            async with on_loopback(anna):
                anna.lan.announce(anna.says())
                await until(lambda: directory.entry(anna.peer_id))
                entry = directory.entry(anna.peer_id)
                assert entry is not None and entry.via is Via.LAN and entry.announcement.layers == LayerRange(0, 8)
            await until(lambda: directory.entry(anna.peer_id) is None)
        directory.check_integrity()

    run(test)


def test_an_interface_that_is_not_there_is_named_in_one_line() -> None:
    async def test() -> None:
        with pytest.raises(NetworkError, match="the local network cannot be searched by multicast DNS"):
            await Node().lan.start(["no address"])

    run(test)


# ---- strangers on the same network


def record(name: bytes, kind: int, content: bytes, ttl: int) -> bytes:
    return name + struct.pack(">HHIH", kind, 0x8001 if kind == 16 else 1, ttl, len(content)) + content


def name_of(text: str) -> bytes:
    return b"".join(bytes((len(part),)) + part.encode() for part in text.rstrip(".").split(".")) + b"\0"


def response(instance: str, text: bytes, ttl: int = 120) -> bytes:
    """What a responder multicasts of a service, as RFC 6762 has it."""
    name = name_of(f"{instance}.{SERVICE}")
    records = record(name_of(SERVICE), 12, name, ttl) + record(name, 16, text, ttl)
    return struct.pack(">HHHHHH", 0, 0x8400, 0, 2, 0, 0) + records


class Stranger:
    """Sends whatever it likes to everybody."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        self.socket.bind(("127.0.0.1", 0))

    async def send(self, packet: bytes) -> None:
        self.socket.sendto(packet, ("224.0.0.251", 5353))
        await asyncio.sleep(0.001)

    @staticmethod
    def invented(index: int) -> tuple[str, bytes]:
        """A peer's name, and what might be its announcement if its signature were right."""
        key = index.to_bytes(4, "big") + os.urandom(28)
        return str(PeerId.of(key)), b"\1" + key + bytes(100)


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    stranger = Stranger()
    yield stranger
    stranger.socket.close()


def test_services_under_other_names_than_their_keys_are_not_handed_on(stranger: Stranger) -> None:
    async def test() -> None:
        bela, anna = Node(), Node()
        name, blob = stranger.invented(0)
        _, other = stranger.invented(1)
        async with on_loopback(bela, anna):
            for instance, text in [(name, to_text(other)), ("printer", to_text(blob)), (name, b""), (name, b"\5a=bcd")]:
                await stranger.send(response(instance, text))
            await stranger.send(response(name, to_text(blob)))
            await until(lambda: bela.has_heard(blob))
            assert not bela.has_heard(other) and bela.blobs.count(blob) == 1

    run(test)


def test_of_more_services_than_are_remembered_the_longest_silent_is_forgotten(stranger: Stranger) -> None:
    async def test() -> None:
        bela = Node()
        invented = [stranger.invented(index) for index in range(MAX_SERVICES + 1)]
        async with on_loopback(bela):
            for name, blob in invented:
                while not bela.has_heard(blob):
                    await stranger.send(response(name, to_text(blob)))
                    await asyncio.sleep(1 / MAX_TOLD_PER_S)
            assert len(bela.lan._told) == MAX_SERVICES
            for name, blob in (invented[0], invented[1], invented[-1]):
                await stranger.send(response(name, to_text(blob), ttl=0))
            await until(lambda: len(bela.gone) == 2)
            assert {str(peer) for peer in bela.gone} == {invented[1][0], invented[-1][0]}

    run(test)


@pytest.mark.slow
def test_a_flood_is_handed_on_at_a_bounded_rate_and_nodes_are_heard_through_it(stranger: Stranger) -> None:
    async def test() -> None:
        anna, bela = Node(), Node()
        async with on_loopback(anna, bela):
            began = time.monotonic()
            for index in range(1500):
                name, blob = stranger.invented(index)
                await stranger.send(response(name, to_text(blob)))
            seconds = time.monotonic() - began
            assert (
                len(bela.blobs) <= MAX_SERVICES + MAX_TOLD_PER_S * seconds + 1 and len(bela.lan._told) <= MAX_SERVICES
            )
            blob = anna.says()
            while not bela.has_heard(blob):
                assert time.monotonic() - began < WAIT_S
                blob = anna.says()
                anna.lan.announce(blob)
                await asyncio.sleep(1.0)

    run(test)


# ---- two machines

CHILD = """
import asyncio, json, sys, time
from dataclasses import replace
from hopformer.net import lan
from hopformer.net.announcement import Announcement, parse
from hopformer.net.identity import Identity

lan.RESCAN_S = 0.5
identity = Identity.generate()

def say(**what):
    print(json.dumps(what), flush=True)

async def main():
    node = lan.Lan(lambda blob: say(heard=str(parse(blob, time.time()).peer)), lambda peer: say(gone=str(peer)))
    await node.start()
    say(peer=str(identity.peer_id))
    one = Announcement(identity.public_bytes, int(time.time() * 1000), 90, "demo", bytes(32), 8)
    node.announce(one.sign(identity))
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await node.close()

asyncio.run(main())
"""


def why_no_namespaces() -> str | None:
    if os.name != "posix" or os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need iproute2's ip"
    name = f"hf-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, timeout=30)
    if made.returncode:
        return f"no network namespace can be made: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True, timeout=30)
    return None


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=30)


@contextmanager
def bridged() -> Iterator[tuple[str, str]]:
    """Two namespaces on the bridge of a third; the second has no address yet."""
    names = [f"hf-{role}-{os.getpid()}" for role in ("bridge", "anna", "bela")]
    bridge, *ends = names
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", bridge, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        ip("-n", bridge, "link", "set", "br0", "up")
        for index, end in enumerate(ends):
            port = f"port{index}"
            ip("-n", bridge, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", end)
            ip("-n", bridge, "link", "set", port, "master", "br0", "up")
            ip("-n", end, "link", "set", "eth0", "up")
        ip("-n", ends[0], "addr", "add", "10.77.0.1/24", "dev", "eth0")
        yield ends[0], ends[1]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=30)


@contextmanager
def node_in(namespace: str) -> Iterator[subprocess.Popen[str]]:
    command = ["ip", "netns", "exec", namespace, sys.executable, "-c", CHILD]
    where = os.pathsep.join(
        [str(Path(hopformer.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": where}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as child:
        try:
            yield child
        finally:
            child.kill()


def next_line(child: subprocess.Popen[str]) -> dict[str, str]:
    assert child.stdout is not None
    line: dict[str, str] = json.loads(child.stdout.readline())
    return line


@pytest.mark.slow
def test_two_machines_on_a_bridge_hear_of_each_other_also_one_that_joins_later() -> None:
    why_not = why_no_namespaces()
    if why_not:
        pytest.skip(why_not)
    with bridged() as (first, second), node_in(first) as anna, node_in(second) as bela:
        names = [next_line(one)["peer"] for one in (anna, bela)]
        time.sleep(1.0)  # what either says without being asked is said, and has reached nobody
        ip("-n", second, "addr", "add", "10.77.0.2/24", "dev", "eth0")
        assert next_line(anna) == {"heard": names[1]}
        assert next_line(bela) == {"heard": names[0]}
        assert bela.stdin is not None
        bela.stdin.close()
        assert next_line(anna) == {"gone": names[1]} and bela.wait(30) == 0
