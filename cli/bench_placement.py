"""What ``hopformer bench placement`` takes; the command itself is bench.py's, the one file that opens bench/."""

from dataclasses import dataclass
from typing import Annotated

import typer


@dataclass(frozen=True, slots=True)
class PlacementFlags:
    """The mesh that is simulated."""

    peers: Annotated[int, typer.Option(metavar="N", help="That join in the first two minutes.")] = 1000
    layers: Annotated[int, typer.Option(metavar="N", help="Of the model.")] = 80
    minutes: Annotated[float, typer.Option(metavar="M", help="Simulated; the first five are not counted.")] = 60.0
    churn: Annotated[
        float, typer.Option(metavar="PERCENT", help="Of the peers that go in a minute; as many others come.")
    ] = 1.0
    seed: Annotated[int, typer.Option(metavar="N", help="The same seed is the same mesh.")] = 1
