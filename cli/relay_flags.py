"""Flags of ``hopformer relay``, as a dataclass."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import IdentityError, UsageError
from .folders import network_folder
from .node_flags import ANYBODY, named_peers, split_addr

if TYPE_CHECKING:
    from ..net.identity import PeerId
    from ..net.relay_node import RelayConfig

MIB = 1 << 20
DEFAULT_PORT = 4711


@dataclass(frozen=True, slots=True)
class RelayFlags:
    """How a relay runs."""

    listen: Annotated[
        list[str],
        typer.Option(metavar="HOST:PORT", help="Where peers connect, by UDP; may be repeated."),
    ] = field(default_factory=lambda: [f"0.0.0.0:{DEFAULT_PORT}"])
    identity: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The relay's key, made on first use; hopformer/identity.pem in the user's config folder if not given.",
        ),
    ] = None
    allow: Annotated[
        list[str],
        typer.Option(
            metavar="PEER|FILE",
            help="A peer id that may use it, a file of such, one a line, or any; may be repeated. "
            "Without it, only who joins by a token of its network.",
        ),
    ] = field(default_factory=list)
    network: Annotated[
        str | None,
        typer.Option(
            metavar="PEER_ID",
            help="The network whose members may use it, by its authority; the relay's own key, if not given: then "
            "hopformer invite on this machine makes its tokens.",
        ),
    ] = None
    rate: Annotated[
        float,
        typer.Option(metavar="MIB", help="MiB a second that a pair of peers may pass through it, in each direction."),
    ] = 64.0
    metrics: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Serve Prometheus /metrics and /healthz there.")
    ] = None

    def config(self, own: "PeerId") -> "RelayConfig":
        """The same for the relay whose key is ``own``'s.

        Raises:
            UsageError: a value is none.
        """
        from ..net.authority_files import REVOCATIONS
        from ..net.relay_node import RelayConfig

        for addr in self.listen:
            split_addr("--listen", addr)
        if not 0.0625 <= self.rate <= 1 << 14:
            raise UsageError(f"--rate is {self.rate:g}; it must be from 0.0625 to 16384 MiB a second")
        allow = None
        if ANYBODY not in self.allow:
            allow = frozenset(peer for text in self.allow for peer in named_peers(text))
        network = own if self.network is None else _network(self.network)
        return RelayConfig(
            listen=tuple(self.listen),
            allow=allow,
            network=network,
            max_rate=int(self.rate * MIB),
            revocations=network_folder(network) / REVOCATIONS,
        )


def _network(text: str) -> "PeerId":
    """The network that --network names. Raises UsageError."""
    from ..net.identity import PeerId

    try:
        return PeerId.parse(text)
    except IdentityError as error:
        raise UsageError(f"--network: {error}") from error
