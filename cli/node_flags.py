"""Flags of commands that are a node of the network, as dataclasses."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import IdentityError, NetworkError, UsageError
from .mesh_flags import default_listen

if TYPE_CHECKING:  # these bring torch along
    from ..llama.load import LoadOptions
    from ..net.identity import PeerId

ANYBODY = "any"  # in place of a peer id after --allow

_MODEL = "Model"
_NETWORK = "Network"


@dataclass(frozen=True, slots=True)
class SpanFlags:
    """How the layers that a node serves are loaded."""

    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICE", help="auto, which is a GPU or else the CPU, cpu, cuda or cuda:N.", rich_help_panel=_MODEL
        ),
    ] = "auto"
    dtype: Annotated[
        str,
        typer.Option(
            metavar="DTYPE",
            help="auto, which is the model's own, bfloat16, float16 or float32; that of everybody on a route.",
            rich_help_panel=_MODEL,
        ),
    ] = "auto"
    max_context: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Tokens that a session may have; the model's limit, at most 8192, if not given.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    kv_dtype: Annotated[
        str,
        typer.Option(
            metavar="DTYPE",
            help="Of keys and values: auto, which is the model's own, int8 or fp8; either halves their memory.",
            rich_help_panel=_MODEL,
        ),
    ] = "auto"
    quantize: Annotated[
        str,
        typer.Option(
            metavar="none|int8|int4",
            help="Round the weights while loading: fewer bytes to read and to hold, at some loss.",
            rich_help_panel=_MODEL,
        ),
    ] = "none"
    batch_invariant: Annotated[
        bool,
        typer.Option(
            "--batch-invariant",
            help="Compute each token alike to the last bit in any company, so that a replica on the like machine takes "
            "over without a trace; prompts take several times as long.",
            rich_help_panel=_MODEL,
        ),
    ] = False

    memory: Annotated[
        float | None,
        typer.Option(
            metavar="GIB",
            help="With --layers auto: GiB for layers and their keys and values; what is free, if not given.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    head: Annotated[
        bool,
        typer.Option(
            "--head",
            help="Load norm and head too, and draw tokens for callers that pass --hand-head; for a span that ends with "
            "the last layer.",
            rich_help_panel=_MODEL,
        ),
    ] = False

    def check(self, *, is_auto: bool) -> None:
        """Refuse what cannot mean anything.

        Raises:
            UsageError: a value is out of its range, belongs to --layers auto alone, or does not go with it.
        """
        if self.memory is not None and not is_auto:
            raise UsageError("--memory changes nothing where the layers are given; pass --layers auto, or drop it")
        if self.memory is not None and not 0 < self.memory <= 1 << 20:
            raise UsageError(f"--memory is {self.memory:g}; it must be above 0 GiB, and at most a million")
        if self.head and is_auto:
            raise UsageError("--head belongs to the last layers, and --layers auto may choose others; say which layers")

    def options(self) -> "LoadOptions":
        """The same for llama/load_span.py."""
        from ..llama.load import LoadOptions

        return LoadOptions(
            self.device,
            self.dtype,
            self.max_context,
            kv_dtype=self.kv_dtype,
            quantize=self.quantize,
            batch_invariant=self.batch_invariant,
            head=self.head,
        )


@dataclass(frozen=True, slots=True)
class NodeFlags:
    """Who a node is, where it listens and whom it lets in."""

    listen: Annotated[
        list[str],
        typer.Option(
            metavar="HOST:PORT",
            help="Where peers may connect, by UDP; port 0 is any that is free; may be repeated. 127.0.0.1:0 if not "
            "given, or 0.0.0.0:0 where a relay or the local network is to be reached.",
            rich_help_panel=_NETWORK,
        ),
    ] = field(default_factory=list)
    identity: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The node's key, made on first use; hopformer/identity.pem in the user's config folder if not given.",
            rich_help_panel=_NETWORK,
        ),
    ] = None
    allow: Annotated[
        list[str],
        typer.Option(
            metavar="PEER|FILE",
            help="A peer id that may connect, a file of such, one a line, or any; may be repeated. "
            "Without it, whoever is on this machine may.",
            rich_help_panel=_NETWORK,
        ),
    ] = field(default_factory=list)
    wire_dtype: Annotated[
        Literal["exact", "int8"],
        typer.Option(
            help="What activations may travel as: exact, or also int8, half the bytes at some loss, where a peer asks.",
            rich_help_panel=_NETWORK,
        ),
    ] = "exact"
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Serve Prometheus /metrics and /healthz there.", rich_help_panel=_NETWORK
        ),
    ] = None

    def addrs(self, relays: Iterable[str] = (), *, lan: bool = False) -> Sequence[str]:
        """Where to listen, where these relays and the local network are to be reached."""
        return self.listen or default_listen(relays, lan=lan)

    def allowed(self, addrs: Sequence[str] = ("127.0.0.1:0",), *, is_member: bool = False) -> "list[PeerId] | None":
        """The peers that may connect; None is everybody.

        Args:
            addrs: where the node listens.
            is_member: it is in a closed network, whose members are let in besides.

        Raises:
            UsageError: an address or a peer id is none, a file cannot be read or names nobody, or nobody was named and
                others than this machine could connect.
        """
        hosts = {addr: split_addr("--listen", addr)[0] for addr in addrs}
        if ANYBODY in self.allow:
            return None
        if self.allow or is_member:
            return [peer for text in self.allow for peer in named_peers(text)]
        opened = [addr for addr, host in hosts.items() if not _is_loopback(host)]
        if opened:
            raise UsageError(
                f"at {opened[0]} others can connect; name the peers that may with --allow PEER, join a network "
                "with --join TOKEN, or let everybody in with --allow any"
            )
        return None


def split_addr(flag: str, addr: str) -> tuple[str, int]:
    """Host and port of HOST:PORT, which ``flag`` was given.

    Raises:
        UsageError: it is none.
    """
    from ..net.udp import split_host_port

    try:
        return split_host_port(addr)
    except NetworkError as error:
        raise UsageError(f"{flag}: {error}") from error


def named_peers(text: str, flag: str = "--allow") -> "list[PeerId]":
    """The peers that one ``flag`` names: one by its id, or those in a file. Raises UsageError."""
    from ..net.identity import PeerId

    try:
        return [PeerId.parse(text)]
    except IdentityError as error:
        looks_like_path = Path(text).name != text or Path(text).suffix
        if not looks_like_path and not os.path.exists(text):
            raise UsageError(f"{flag}: {error}, and there is no file of that name") from error
    return _peers_in(Path(text), flag)


def _peers_in(path: Path, flag: str) -> "list[PeerId]":
    """The peers in a file: an id a line; what follows a # is a comment."""
    from ..net.identity import PeerId

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{flag} {path} is not UTF-8 text: see its byte {error.start}") from error
    except OSError as error:
        raise UsageError(f"{flag} {path} cannot be read: {error.strerror}") from error
    peers = []
    for number, line in enumerate(lines, 1):
        name = line.partition("#")[0].strip()
        try:
            peers += [PeerId.parse(name)] if name else []
        except IdentityError as error:
            raise UsageError(f"{flag} {path}, line {number}: {error}") from error
    if not peers:
        raise UsageError(f"{flag} {path} names no peer; a line is a peer id, as hopformer id prints it")
    return peers


def _is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches what listens at ``host``."""
    from ipaddress import ip_address

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
