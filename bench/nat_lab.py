"""An internet of one's own on this machine: hosts behind NAT, each in a network namespace, with real packets.

    with NatLab() as lab:
        relay = lab.host("relay")
        a = lab.host("a", "cone", EmulatedLink(rtt_s=0.010))
        b = lab.host("b", "symmetric")
        a.popen(["hopformer", "serve", ...])

      relay 198.51.100.2            a 192.168.1.2    b 192.168.1.2
            |                             |                |
            |                       NAT .3/.1        NAT .4/.1
            +---------- internet ---------+----------------+

The internet is one router, so packets between two outside addresses can be dropped there, see ``NatLab.cut``. All homes
have the same private addresses, as homes have: what answers at a peer's private address may be somebody else.

What the NATs are, in the words of RFC 4787. All of them drop what comes unasked, without a word, and none hairpins:
    cone        Linux's masquerade. Mapping: endpoint-independent, and the port stays the same where it is free.
                Filtering: address and port-dependent ("port-restricted cone").
    shifted     The same, but the outside port is never the inside one.
    symmetric   masquerade fully-random: another random port for each destination (address and port-dependent mapping).
    double      A cone behind a shifted one, as a home behind a provider's NAT (100.64.0.0/10).
    open        No NAT at all, and nothing is filtered.
Needs Linux and root, see ``netns.missing``. Not here: what is measured or tested.
"""

import itertools
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import NetworkError
from .net_emulator import EmulatedLink
from .netns import delete, forget_connections, ip, nft, prefix, run, set_kernel, sweep, within

Nat = Literal["cone", "shifted", "symmetric"]
Kind = Literal["open", "cone", "shifted", "symmetric", "double"]

INTERNET = "198.51.100"  # TEST-NET-2: documentation only, RFC 5737
HOME = "192.168.1"
PROVIDER = "100.64.0"  # RFC 6598
_END_OF_NUMBERS = 255  # the last byte of a machine's address is from 2 on, and below it
_END_S = 5.0
_LAB_NUMBERS = itertools.count()

_FIRST_PORT, _PORTS_PER_MAPPING, _NUM_MAPPINGS = 20_000, 1_000, 12  # below what Linux takes for new sockets, 32768 on
_INTERNET_RULES = """table ip lab {
    set cut { type ipv4_addr . ipv4_addr; }
    set gone { type ipv4_addr; }
    chain passing { type filter hook prerouting priority raw; ip saddr . ip daddr @cut drop
        ip saddr @gone drop; ip daddr @gone drop; }
}"""
_ROUTER_RULES = """table ip lab {{
    chain mine {{ type filter hook input priority 0; iifname "wan" ct state established,related accept
        iifname "wan" drop; ip daddr {outside} drop; }}
    chain through {{ type filter hook forward priority 0; iifname "wan" ct state established,related accept
        iifname "wan" drop; }}
    chain out {{ type nat hook postrouting priority srcnat; }}
}}"""
_MAPPING_RULES = """flush chain ip lab out
add rule ip lab out oifname "wan" meta l4proto {{ tcp, udp }} masquerade {how}
add rule ip lab out oifname "wan" masquerade"""


@dataclass(frozen=True, slots=True)
class Router:
    """A NAT.

    Attributes:
        address: of its outside.
        behind: the NAT in front of it; None where that is the internet.
        lan: what the addresses inside begin with.
    """

    namespace: str
    kind: Nat
    address: str
    behind: "Router | None"
    lan: str

    @property
    def outside(self) -> str:
        """The address on the internet."""
        return self.address if self.behind is None else self.behind.outside


@dataclass(frozen=True, slots=True)
class Host:
    """A machine of the laboratory.

    Attributes:
        address: its own.
        nat: the NAT that it is behind; None where it is on the internet.
    """

    namespace: str
    address: str
    nat: Router | None
    started: "list[subprocess.Popen[Any]]"

    @property
    def outside(self) -> str:
        """The address on the internet."""
        return self.address if self.nat is None else self.nat.outside

    def popen(self, command: list[str], **options: Any) -> "subprocess.Popen[Any]":
        """Start a process there, with subprocess.Popen's options; it is killed with the laboratory."""
        process = subprocess.Popen(["ip", "netns", "exec", self.namespace, *command], **options)
        self.started.append(process)
        return process

    def socket(self, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
        """A socket of this process that is there."""
        return within(self.namespace, lambda: socket.socket(socket.AF_INET, kind))


class NatLab:
    """Machines, their NATs, and what is between them; all of it goes with the ``with`` block, and who runs there."""

    def __init__(self) -> None:
        self._prefix = f"{prefix()}-{next(_LAB_NUMBERS)}"
        self._internet = f"{self._prefix}-internet"
        self._namespaces: list[str] = []
        self._started: list[subprocess.Popen[Any]] = []
        self._cables: list[subprocess.Popen[str]] = []
        self._numbers: dict[str, Iterator[int]] = {}  # by namespace of a router: of the machines that it knows
        self._mappings: dict[str, Iterator[int]] = {}  # by namespace of a NAT: of the ranges of ports that it had

    def __enter__(self) -> "NatLab":
        """Build the internet.

        Raises:
            NetworkError: it cannot be built here.
        """
        sweep()
        try:
            self._add_namespace(self._internet, forwards=True)
            ip(self._internet, f"addr add {INTERNET}.1/32 dev lo")
            nft(self._internet, _INTERNET_RULES)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def router(
        self, name: str, kind: Nat, link: EmulatedLink | None = None, behind: Router | None = None, lan: str = HOME
    ) -> Router:
        """A NAT, on the internet or behind another; ``link`` is how it gets there.

        Args:
            lan: what the addresses inside begin with. Behind ``behind`` it must be another.
        """
        namespace = self._add_namespace(f"{self._prefix}-{name}", forwards=True)
        address = self._plug(namespace, "wan", behind, link)
        ip(namespace, "link add lan type bridge", f"addr add {lan}.1/24 dev lan", "link set lan up")
        router = Router(namespace, kind, address, behind, lan)
        nft(namespace, _ROUTER_RULES.format(outside=address))
        self._mappings[namespace] = itertools.cycle(range(_NUM_MAPPINGS))
        self._map_ports(router, "" if kind != "shifted" else self._next_ports(router))
        return router

    def host(self, name: str, nat: Kind | Router = "open", link: EmulatedLink | None = None) -> Host:
        """A machine behind a NAT of its own, or in the home of a router that is there; ``link`` is how it gets there.

        Raises:
            NetworkError: the name is taken, or the machine cannot be built.
        """
        if nat == "open":
            behind = None
        elif nat == "double":
            provider = self.router(f"{name}-provider", "shifted", lan=PROVIDER)
            behind = self.router(f"{name}-nat", "cone", behind=provider)
        else:
            behind = nat if isinstance(nat, Router) else self.router(f"{name}-nat", nat)
        namespace = self._add_namespace(f"{self._prefix}-{name}")
        return Host(namespace, self._plug(namespace, "eth0", behind, link), behind, self._started)

    def cut(self, a: Host, b: Host | None = None) -> None:
        """From now on the internet drops what goes between the two, or all that goes to ``a`` or comes from it.

        Whoever is behind the same NATs is cut off too. Nobody is told: no ICMP, no lost carrier.

        Raises:
            ValueError: the two are behind the same NAT, and do not meet on the internet.
        """
        nft(self._internet, f"add element ip lab {self._dropped(a, b)}")

    def heal(self, a: Host, b: Host | None = None) -> None:
        """The opposite of ``cut`` with the same words.

        Raises:
            NetworkError: they were not cut.
        """
        nft(self._internet, f"delete element ip lab {self._dropped(a, b)}")

    def rebind(self, router: Router) -> None:
        """A NAT that forgets its mappings: what comes next from inside gets another port outside."""
        self._map_ports(router, self._next_ports(router))
        within(router.namespace, forget_connections)

    def forget_after(self, router: Router, seconds: int) -> None:
        """How long a NAT remembers UDP that is silent, from the next packet on; 30 s until then, and 120 s once both
        sides have spoken."""

        def set_both() -> None:
            for name in ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"):
                set_kernel(f"netfilter/{name}", seconds)

        within(router.namespace, set_both)

    def close(self) -> None:
        """End all that runs there, and take all of it away; a second call does nothing."""
        for process in self._started:
            process.kill()
        for cable in self._cables:
            with suppress(subprocess.TimeoutExpired):
                cable.communicate(timeout=_END_S)
            cable.kill()
        for process in (*self._started, *self._cables):
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with suppress(OSError):  # what it did not read any more
                        pipe.close()
        delete(self._namespaces)
        for found in (self._started, self._cables, self._namespaces):
            found.clear()

    def _add_namespace(self, namespace: str, forwards: bool = False) -> str:
        run(["ip", "netns", "add", namespace])
        self._namespaces.append(namespace)
        ip(namespace, "link set lo up")
        self._numbers[namespace] = iter(range(2, _END_OF_NUMBERS))
        if forwards:
            within(namespace, lambda: set_kernel("ipv4/ip_forward", 1))
        return namespace

    def _plug(self, namespace: str, device: str, behind: Router | None, link: EmulatedLink | None) -> str:
        """Connect a machine with the internet or with the inside of a NAT; returns its address there."""
        far = self._internet if behind is None else behind.namespace
        number = next(self._numbers[far], None)
        if number is None:
            raise NetworkError(f"{far} has no address left; one network takes {_END_OF_NUMBERS - 2} machines")
        port = f"port{number}"
        self._connect(f"{namespace}/{device}", f"{far}/{port}", link)
        if behind is None:
            address = f"{INTERNET}.{number}"
            ip(far, f"link set {port} up", f"route add {address}/32 dev {port}")
            ip(namespace, f"addr add {address}/32 dev {device}", f"link set {device} up")
            ip(namespace, f"route add default via {INTERNET}.1 dev {device} onlink")
        else:
            address = f"{behind.lan}.{number}"
            ip(far, f"link set {port} master lan up")
            ip(namespace, f"addr add {address}/24 dev {device}", f"link set {device} up")
            ip(namespace, f"route add default via {behind.lan}.1")
        return address

    def _connect(self, first: str, second: str, link: EmulatedLink | None) -> None:
        """A cable between two places, NAMESPACE/DEVICE."""
        (namespace, device), (far, port) = first.split("/"), second.split("/")
        if link is None:
            ip(namespace, f"link add {device} type veth peer name {port} netns {far}")
            return
        ip(namespace, f"tuntap add dev {device} mode tap")
        ip(far, f"tuntap add dev {port} mode tap")
        command = [sys.executable, "-P", "-m", "hopformer.bench.nat_link", first, second, link.to_text()]
        cable = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._cables.append(cable)
        assert cable.stdout is not None
        if not cable.stdout.readline():
            raise NetworkError(f"the emulated link between {first} and {second} did not start")

    def _next_ports(self, router: Router) -> str:
        start = _FIRST_PORT + _PORTS_PER_MAPPING * next(self._mappings[router.namespace])
        return f"to :{start}-{start + _PORTS_PER_MAPPING - 1}"

    def _map_ports(self, router: Router, ports: str) -> None:
        how = f"{ports} fully-random" if router.kind == "symmetric" else ports
        nft(router.namespace, _MAPPING_RULES.format(how=how))

    def _dropped(self, a: Host, b: Host | None) -> str:
        """A set of the internet's rules, and elements of it."""
        if b is None:
            return f"gone {{ {a.outside} }}"
        if a.outside == b.outside:
            raise ValueError(f"both are behind {a.outside}; what is between them does not cross the internet")
        return f"cut {{ {a.outside} . {b.outside}, {b.outside} . {a.outside} }}"
