"""Flags of a chat that serves layers at the same time, as a dataclass."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import typer

from ..errors import UsageError
from .node_flags import NodeFlags
from .options import parse_layers

_SERVING = "Serving beside the chat"


@dataclass(frozen=True, slots=True)
class ServeBesideFlags:
    """What a chat serves to peers while it goes on."""

    serve: Annotated[
        str | None,
        typer.Option(
            metavar="A:B", help="Serve these layers to peers while the chat goes on.", rich_help_panel=_SERVING
        ),
    ] = None
    listen: Annotated[
        list[str],
        typer.Option(
            metavar="HOST:PORT",
            help="With --serve: where peers may connect, by UDP; 127.0.0.1:0 if not given; may be repeated.",
            rich_help_panel=_SERVING,
        ),
    ] = field(default_factory=list)
    allow: Annotated[
        list[str],
        typer.Option(
            metavar="PEER|FILE",
            help="With --serve: who may connect, as for hopformer serve; may be repeated.",
            rich_help_panel=_SERVING,
        ),
    ] = field(default_factory=list)

    def check(self, *, is_meshed: bool = False) -> None:
        """Refuse what means nothing, before a model is loaded for it.

        Args:
            is_meshed: where it listens, and who may connect, is known once the mesh's flags are read.

        Raises:
            UsageError: a flag is wrong, or is given without --serve.
        """
        if self.serve is not None:
            parse_layers(self.serve)
            if not is_meshed:
                node = self.node()
                node.allowed(node.listen)
        elif self.listen or self.allow:
            flag = "--listen" if self.listen else "--allow"
            raise UsageError(f"{flag} changes nothing where nothing is served; pass --serve A:B too")

    def node(self, listen: Sequence[str] = ()) -> NodeFlags:
        """The same as ``hopformer serve`` has it; ``listen`` is where, if no flag says."""
        return NodeFlags(listen=self.listen or list(listen) or ["127.0.0.1:0"], allow=self.allow)
