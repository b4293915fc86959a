"""Flags of commands that may compute over peers, as a dataclass."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import UsageError

if TYPE_CHECKING:
    from ..net.messages import Codec

DEFAULT_REROUTE_TIMEOUT_S = 30.0  # a node that is started again needs some ten seconds to read a large model's layers

_NETWORK = "Network"


@dataclass(frozen=True, slots=True)
class RouteFlags:
    """Who runs the layers."""

    blocks_map: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Which peer runs which layers; without it, all run here. hopformer map makes one.",
            rich_help_panel=_NETWORK,
        ),
    ] = None
    reroute_timeout: Annotated[
        float,
        typer.Option(
            metavar="S",
            help="Seconds to look for a peer in place of one that was lost, before an answer ends.",
            rich_help_panel=_NETWORK,
        ),
    ] = DEFAULT_REROUTE_TIMEOUT_S
    identity: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where peers run layers, or with --serve: this node's key; hopformer/identity.pem in the user's "
            "config folder if not given.",
            rich_help_panel=_NETWORK,
        ),
    ] = None

    wire_dtype: Annotated[
        Literal["exact", "int8"],
        typer.Option(
            help="What activations travel as: exact, or int8, half the bytes at some loss, if all peers take it.",
            rich_help_panel=_NETWORK,
        ),
    ] = "exact"

    hand_head: Annotated[
        bool,
        typer.Option(
            "--hand-head",
            help="Let the last hop draw the tokens, which needs a peer that serves with --head: this node loads no "
            "head then, and that hop sees which tokens are drawn.",
            rich_help_panel=_NETWORK,
        ),
    ] = False

    def codecs(self) -> "tuple[Codec, ...]":
        """How activations may be packed, the one to ask for last."""
        from ..net.messages import Codec

        return (Codec.EXACT, Codec.INT8) if self.wire_dtype == "int8" else (Codec.EXACT,)

    def check(self, *, has_peers: bool = False) -> None:
        """Refuse what cannot mean anything, before a model is loaded for it.

        Args:
            has_peers: this node has to do with peers though there may be no map.

        Args:
            is_meshed: peers are found though there may be no map.

        Raises:
            UsageError: a value is out of its range, or a flag without the one that it belongs to.
        """
        if not 0 < self.reroute_timeout <= 86400:
            raise UsageError(f"--reroute-timeout is {self.reroute_timeout:g}; it must be above 0, and at most a day")
        if self.hand_head and self.blocks_map is None:
            raise UsageError("--hand-head changes nothing where all layers run here; pass --blocks-map too")
        idle = "--identity" if self.identity is not None else "--wire-dtype" if self.wire_dtype != "exact" else None
        if idle is not None and self.blocks_map is None and not has_peers:
            raise UsageError(
                f"{idle} changes nothing where all layers run here; pass --blocks-map, --relay, --lan or --join too"
            )
