"""Flags of commands that take part in a mesh: relays, the local network, and the token of a closed network."""

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import NetworkError, UsageError
from .join import TOKEN_VARIABLE, JoinOption, read_token

if TYPE_CHECKING:
    from ..net.identity import PeerId
    from ..net.network_process import MeshPart

_NETWORK = "Network"


@dataclass(frozen=True, slots=True)
class MeshFlags:
    """Where others are found, and may find this node."""

    relay: Annotated[
        list[str],
        typer.Option(
            metavar="[PEER_ID@]HOST:PORT",
            help="A relay, over which peers are reached and found that have no address of their own; may be repeated.",
            rich_help_panel=_NETWORK,
        ),
    ] = field(default_factory=list)
    lan: Annotated[
        bool,
        typer.Option("--lan", help="Find peers on the local network, and be found there.", rich_help_panel=_NETWORK),
    ] = False
    ice: Annotated[
        bool,
        typer.Option(
            "--ice",
            help="Look for paths past a relay by ICE too, as WebRTC does, and not only as hopformer does by itself: "
            "where that finds none, and for peers that speak ICE. Both ends have to be asked to.",
            rich_help_panel=_NETWORK,
        ),
    ] = False
    join: JoinOption = None

    @property
    def finds_peers(self) -> bool:
        """Whether peers may be found that nobody has listed."""
        return bool(self.relay or self.lan or self.join is not None or os.environ.get(TOKEN_VARIABLE, "").strip())

    def part(self, own: "PeerId", *, is_watching: bool) -> "MeshPart":
        """What this node takes part in; nothing where no flag and no token says so.

        Args:
            own: this node, to which its membership is bound.
            is_watching: it wants to hear what others announce.

        Raises:
            UsageError: a relay is no address, or --join is neither a token nor a file.
            MembershipError: the token is damaged, forged or expired.
        """
        from ..net.network_process import MeshPart
        from ..net.relays import MAX_RELAYS

        token = read_token(self.join, os.environ, time.time())
        relays = tuple(dict.fromkeys((*self.relay, *(token.grant.relays if token is not None else ()))))
        for text in relays:
            _check_relay(text)
        if len(relays) > MAX_RELAYS:
            raise UsageError(f"{len(relays)} relays are given; {MAX_RELAYS} are allowed")
        return MeshPart(
            relays=relays,
            is_watching=is_watching,
            lan=() if self.lan else None,
            network=None if token is None else token.network,
            membership=b"" if token is None else token.membership(own),
            ice=self.ice,
        )


def default_listen(addrs: Iterable[str], *, lan: bool) -> Sequence[str]:
    """Where to send from to reach ``addrs``, HOST:PORT or PEER_ID@HOST:PORT each, where nobody said where.

    On this machine alone if all of them are, else on any address of each family that is needed.
    """
    hosts = {addr.rpartition("@")[2].rpartition(":")[0] for addr in addrs}
    if not lan and all(host.startswith("127.") or host in ("localhost", "[::1]") for host in hosts):
        return ("127.0.0.1:0", "[::1]:0") if "[::1]" in hosts else ("127.0.0.1:0",)
    return ("0.0.0.0:0", "[::]:0") if any(host.startswith("[") for host in hosts) else ("0.0.0.0:0",)


def _check_relay(text: str) -> None:
    from ..net.relays import split_relay
    from ..net.udp import split_host_port

    try:
        addr, _ = split_relay(text)
        split_host_port(addr)
    except NetworkError as error:
        raise UsageError(f"--relay: {error}") from error
