"""The NAT laboratory is what it says, seen by plain UDP sockets in its hosts."""

import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hopformer.bench.nat_lab import Host, NatLab
from hopformer.bench.net_emulator import EmulatedLink
from hopformer.bench.netns import NAMESPACES, missing, prefix, sweep
from hopformer.errors import NetworkError

Addr = tuple[str, int]

PATIENCE_S = 10.0
NOTHING_S = 0.3  # without a packet, where a packet takes well below a millisecond
PORT = 7000  # inside

pytestmark = pytest.mark.slow


@pytest.fixture
def lab() -> Iterator[NatLab]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with NatLab() as built:
        yield built


class Ends:
    """Sockets at hosts, closed with the test."""

    def __init__(self) -> None:
        self._open: list[socket.socket] = []

    def at(self, host: Host, port: int = PORT) -> socket.socket:
        end = host.socket()
        self._open.append(end)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        end.bind(("0.0.0.0", port))
        end.settimeout(PATIENCE_S)
        return end

    def close(self) -> None:
        for end in self._open:
            end.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    found = Ends()
    yield found
    found.close()


def seen(end: socket.socket, server: socket.socket, host: Host) -> Addr:
    """The address that ``server``, at ``host``, sees of ``end``."""
    end.sendto(b"who am I?", (host.address, server.getsockname()[1]))
    words, addr = server.recvfrom(100)
    assert words == b"who am I?"
    return addr


def arrives(end: socket.socket, wait_s: float = NOTHING_S) -> bool:
    """Whether a packet comes; it is taken."""
    if not select.select([end], [], [], wait_s)[0]:
        return False
    end.recv(100)
    return True


def talk(first: socket.socket, second: socket.socket, to_second: Addr, to_first: Addr) -> bool:
    """Whether packets pass in both directions."""
    first.sendto(b"hello", to_second)
    there = arrives(second)
    second.sendto(b"hello", to_first)
    return arrives(first) and there


def punch(first: socket.socket, second: socket.socket, to_second: Addr, to_first: Addr) -> bool:
    """Both send to the other's outside address, again and again; whether one hears the other, which then hears it.

    An answer goes where the packet came from, which need not be where anybody sent to.
    """
    for _ in range(5):
        first.sendto(b"punch", to_second)
        second.sendto(b"punch", to_first)
        heard, _, _ = select.select([first, second], [], [], NOTHING_S / 3)
        for end in heard:
            _, addr = end.recvfrom(100)
            other = second if end is first else first
            while arrives(other, 0.0):
                pass
            end.sendto(b"answer", addr)
            while other.recv(100) != b"answer":
                pass
            return True
    return False


def test_an_open_host_is_reached_unasked(lab: NatLab, ends: Ends) -> None:
    first, second = lab.host("a"), lab.host("b")
    assert first.outside == first.address == "198.51.100.2" and first.nat is None
    assert talk(ends.at(first), ends.at(second), (second.address, PORT), (first.address, PORT))


@pytest.mark.parametrize("kind", ["cone", "shifted", "symmetric"])
def test_a_mapping_is_of_its_kind(lab: NatLab, ends: Ends, kind: str) -> None:
    relays, host = [lab.host("first"), lab.host("second")], lab.host("a", kind)
    end, servers = ends.at(host), [ends.at(relay, port) for relay in relays for port in (1000, 2000)]
    addrs = [seen(end, server, relays[number // 2]) for number, server in enumerate(servers)]
    assert host.address == "192.168.1.2" and {addr for addr, _ in addrs} == {host.outside} == {"198.51.100.4"}
    ports = {port for _, port in addrs}
    assert len(ports) == (4 if kind == "symmetric" else 1)
    assert (ports == {PORT}) == (kind == "cone")
    for server, addr in zip(servers, addrs, strict=True):  # and all of them lead back
        server.sendto(b"answer", addr)
        assert arrives(end, PATIENCE_S)


def test_two_behind_one_cone_do_not_get_the_same_port(lab: NatLab, ends: Ends) -> None:
    relay, first = lab.host("relay"), lab.host("a", "cone")
    second, server = lab.host("b", first.nat), ends.at(relay)
    assert seen(ends.at(first), server, relay) == (first.outside, PORT)
    assert seen(ends.at(second), server, relay)[1] != PORT and first.outside == second.outside


@pytest.mark.parametrize("kind", ["cone", "shifted", "symmetric", "double"])
def test_what_comes_unasked_is_dropped(lab: NatLab, ends: Ends, kind: str) -> None:
    """From another address, and from another port of an address that was asked."""
    relay, stranger, host = lab.host("relay"), lab.host("stranger"), lab.host("a", kind)
    end, server = ends.at(host), ends.at(relay)
    mapped = seen(end, server, relay)
    for other in (ends.at(stranger), ends.at(relay, PORT + 1)):
        other.sendto(b"hello", mapped)
        assert not arrives(end)
        assert not arrives(other, 0.0)  # nor is there a word of ICMP, which would be an error here
    server.sendto(b"answer", mapped)
    assert arrives(end, PATIENCE_S)


@pytest.mark.parametrize(
    ("kind", "other_kind", "expected"),
    [
        ("cone", "cone", True),
        ("cone", "shifted", True),
        ("shifted", "double", True),
        ("double", "double", True),
        ("open", "symmetric", True),
        ("cone", "symmetric", False),
        ("symmetric", "double", False),
        ("symmetric", "symmetric", False),
    ],
)
def test_punching_succeeds_where_both_ports_can_be_known(
    lab: NatLab, ends: Ends, kind: str, other_kind: str, expected: bool
) -> None:
    relay, first, second = lab.host("relay"), lab.host("a", kind), lab.host("b", other_kind)
    server, one, other = ends.at(relay), ends.at(first), ends.at(second, PORT + 1)
    to_first, to_second = seen(one, server, relay), seen(other, server, relay)
    assert punch(one, other, to_second, to_first) is expected


def test_a_double_nat_has_a_provider_between(lab: NatLab, ends: Ends) -> None:
    host, relay = lab.host("a", "double"), lab.host("relay")
    assert host.nat is not None and host.nat.behind is not None
    assert (host.address, host.nat.address, host.outside) == ("192.168.1.2", "100.64.0.2", "198.51.100.2")
    addr, port = seen(ends.at(host), ends.at(relay), relay)
    assert addr == "198.51.100.2" and port != PORT
    neighbour = lab.host("b", lab.router("b-nat", "cone", behind=host.nat.behind))
    assert neighbour.nat is not None and neighbour.nat.address == "100.64.0.3" and neighbour.outside == host.outside


def test_two_in_one_home_meet_inside_and_not_outside(lab: NatLab, ends: Ends) -> None:
    relay, first = lab.host("relay"), lab.host("a", "cone")
    second = lab.host("b", first.nat)
    server, one, other = ends.at(relay), ends.at(first), ends.at(second, PORT + 1)
    to_first, to_second = seen(one, server, relay), seen(other, server, relay)
    assert not punch(one, other, to_second, to_first)
    assert talk(one, other, (second.address, PORT + 1), (first.address, PORT))
    with pytest.raises(ValueError, match=r"both are behind 198\.51\.100\.3"):
        lab.cut(first, second)


def test_homes_have_the_same_addresses_inside_and_do_not_see_each_other(lab: NatLab, ends: Ends) -> None:
    first, second = lab.host("a", "cone"), lab.host("b", "cone")
    neighbour = lab.host("c", second.nat)
    one, _ = ends.at(first), ends.at(second)
    assert first.address == second.address and neighbour.address == "192.168.1.3"
    one.sendto(b"hello", (second.address, PORT))
    assert arrives(one), "it is its own address"
    other = ends.at(neighbour)
    one.sendto(b"hello", (neighbour.address, PORT))
    assert not arrives(other)


def test_a_cut_drops_what_goes_between_two_and_nothing_else(lab: NatLab, ends: Ends) -> None:
    relay, first, second = lab.host("relay"), lab.host("a", "cone"), lab.host("b", "cone")
    server, one, other = ends.at(relay), ends.at(first), ends.at(second)
    to_first, to_second = seen(one, server, relay), seen(other, server, relay)
    assert punch(one, other, to_second, to_first)
    lab.cut(first, second)
    one.sendto(b"lost", to_second)
    other.sendto(b"lost", to_first)
    assert not arrives(other) and not arrives(one, 0.0)
    assert seen(one, server, relay) == to_first and seen(other, server, relay) == to_second
    lab.heal(first, second)
    assert talk(one, other, to_second, to_first)
    with pytest.raises(NetworkError):
        lab.heal(first, second)


def test_a_host_that_is_cut_off_reaches_nobody(lab: NatLab, ends: Ends) -> None:
    relay, first, second = lab.host("relay"), lab.host("a", "cone"), lab.host("b", "cone")
    server, one, other = ends.at(relay), ends.at(first), ends.at(second)
    mapped = seen(one, server, relay)
    lab.cut(first)
    one.sendto(b"lost", (relay.address, PORT))
    server.sendto(b"lost", mapped)
    assert not arrives(server) and not arrives(one, 0.0)
    assert seen(other, server, relay) == (second.outside, PORT)
    lab.heal(first)
    assert seen(one, server, relay) == mapped


@pytest.mark.parametrize("kind", ["cone", "shifted", "symmetric", "double"])
def test_a_nat_that_rebinds_has_another_port_and_forgot_the_old_one(lab: NatLab, ends: Ends, kind: str) -> None:
    relay, host = lab.host("relay"), lab.host("a", kind)
    end, servers = ends.at(host), [ends.at(relay), ends.at(relay, PORT + 1)]
    used = [seen(end, servers[0], relay)]
    assert host.nat is not None
    for _ in range(3):
        lab.rebind(host.nat)
        servers[0].sendto(b"late", used[-1])
        assert not arrives(end)
        used.append(seen(end, servers[0], relay))
        servers[0].sendto(b"answer", used[-1])
        assert arrives(end, PATIENCE_S)
    assert len(set(used)) == 4 and {addr for addr, _ in used} == {host.outside}
    assert (seen(end, servers[1], relay) == used[-1]) == (kind != "symmetric"), "it is the NAT that it was"


def test_a_mapping_that_nobody_uses_is_forgotten_when_it_is_said(lab: NatLab, ends: Ends) -> None:
    relay, host = lab.host("relay"), lab.host("a", "symmetric")
    end, server = ends.at(host), ends.at(relay)
    assert host.nat is not None
    lab.forget_after(host.nat, 1)
    mapped = seen(end, server, relay)
    server.sendto(b"answer", mapped)
    assert arrives(end, PATIENCE_S)
    time.sleep(3.0)
    server.sendto(b"late", mapped)
    assert not arrives(end) and seen(end, server, relay) != mapped


def test_a_link_takes_the_time_that_it_is_given(lab: NatLab, ends: Ends) -> None:
    relay = lab.host("relay", link=EmulatedLink(0.010))
    host = lab.host("a", lab.router("a-nat", "cone", EmulatedLink(0.030)), EmulatedLink(0.020, jitter_s=0.004))
    end, server = ends.at(host), ends.at(relay)
    times = []
    for _ in range(20):
        began = time.monotonic()
        server.sendto(b"answer", seen(end, server, relay))
        assert arrives(end, PATIENCE_S)
        times.append(time.monotonic() - began)
    assert 0.055 < statistics.median(times) < 0.300, "of 60 ms"


def test_a_link_loses_as_many_as_it_is_given(lab: NatLab, ends: Ends) -> None:
    relay, host = lab.host("relay"), lab.host("a", link=EmulatedLink(0.0, loss=0.2))
    end, server = ends.at(host), ends.at(relay)
    found = 0
    for _ in range(50):
        for _ in range(20):
            end.sendto(b"1", (relay.address, PORT))
        found += sum(iter(lambda: arrives(server, 0.020), False))
    assert 700 < found < 900, "of 800"


def test_processes_of_a_host_are_there_and_end_with_the_lab(lab: NatLab) -> None:
    host = lab.host("a", "cone", EmulatedLink(0.001))
    shown = host.popen(["ip", "-brief", "address", "show", "dev", "eth0"], stdout=subprocess.PIPE, text=True)
    assert "192.168.1.2/24" in shown.communicate(timeout=PATIENCE_S)[0] and shown.returncode == 0
    sleeper = host.popen(["sleep", "1000"])
    assert names(os.getpid())
    lab.close()
    assert sleeper.returncode == -signal.SIGKILL and not names(os.getpid())
    with pytest.raises(NetworkError):
        lab.host("b")


def test_a_name_is_taken_once_and_two_labs_do_not_meet(lab: NatLab, ends: Ends) -> None:
    lab.host("a")
    with pytest.raises(NetworkError, match="File exists"):
        lab.host("a")
    with NatLab() as other:
        far, near = other.host("a"), lab.host("b")
        server, end = ends.at(far, 2000), ends.at(near, 2001)
        end.sendto(b"hello", (far.address, 2000))
        assert not arrives(server)
    assert near.socket().close() is None, "this one is still there"


def test_what_a_killed_lab_left_is_swept_and_what_lives_is_not(lab: NatLab, tmp_path: Path) -> None:
    lab.host("a")
    program = tmp_path / "builds.py"
    program.write_text(
        "import subprocess, sys\n"
        "from hopformer.bench.nat_lab import NatLab\n"
        "from hopformer.bench.net_emulator import EmulatedLink\n"
        "lab = NatLab().__enter__()\n"
        "host = lab.host('a', 'cone', EmulatedLink(0.01))\n"
        "sleeper = host.popen(['sleep', '1000'], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)\n"
        "print(sleeper.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    builder = subprocess.Popen(
        [sys.executable, "-P", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert builder.stdout is not None
        sleeper = Path("/proc") / builder.stdout.readline().strip()
        sweep()
        assert len(names(builder.pid)) == 3 and sleeper.exists(), "it lives"
    finally:
        builder.kill()
        builder.communicate()
    sweep()
    assert not names(builder.pid) and len(names(os.getpid())) == 2
    deadline = time.monotonic() + PATIENCE_S
    while sleeper.exists() and (sleeper / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def names(pid: int) -> list[str]:
    """The namespaces of a process."""
    own = prefix().rsplit("-", 1)[0].replace(str(os.getpid()), str(pid))
    return [path.name for path in NAMESPACES.glob(f"{own}-*")]
