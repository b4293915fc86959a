"""Rows of `hopformer bench placement`: each a simulated mesh, and how long a plan of one as large takes here.

Two fates, and each with and without moving: peers come and go, which is churn; or half-way all that serve the middle
layer crash at once, a strike, and nobody comes any more. Who comes when, how fast, with how much room and how long to
live is the same in all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import UsageError
from ..net.placement import Mesh
from .machine import Machine
from .placement_sim import SimPlan, SimResult, Simulation

if TYPE_CHECKING:
    from rich.table import Table

Progress = Callable[[int, int], None]
JsonRow = Mapping[str, Any]

MAX_PEERS = 4000  # the planner's own limit is a little above
MAX_LAYERS = 512
MAX_MINUTES = 1440.0
_TIMED_PLANS = 15
_HEADINGS = ("", "whole", "layers", "holes", "mended", "balance", "moves", "hops", "tokens/s")
_NOTE = (
    "fixed: nobody may move; whole: of the time, with every layer served; layers: of them, over the time; holes: times "
    "that a layer was served by nobody, and mended: the median until it was, s (longest); balance: the slowest layer's "
    "rate, of the mean of all (least); moves: of a node in an hour; hops and tokens/s: of the best route at the end"
)


@dataclass(frozen=True, slots=True)
class PlacementRow:
    """One mesh. ``plan_ms``: to rank who moves, and ``choose_ms``: where to join, both from announcements on."""

    machine: Machine
    hopformer: str
    plan: SimPlan
    result: SimResult
    plan_ms: float
    choose_ms: float

    def as_json(self) -> dict[str, Any]:
        """Flat: the machine, the plan, the result."""
        fields = asdict(self)
        return {
            "bench": "placement",
            **fields.pop("machine"),
            "hopformer": fields.pop("hopformer"),
            **fields.pop("plan"),
            **fields.pop("result"),
            **fields,
        }


def check(plan: SimPlan) -> None:
    """Refuse what cannot be simulated.

    Raises:
        UsageError: a number is out of range.
    """
    for name, value, least, most in (
        ("--peers", plan.num_peers, 1, MAX_PEERS),
        ("--layers", plan.num_layers, 1, MAX_LAYERS),
        ("--minutes", plan.minutes, 6, MAX_MINUTES),
        ("--churn", plan.churn_percent, 0, 100),
    ):
        if not least <= value <= most:
            raise UsageError(f"{name} is {value:g}; it must be between {least} and {most:g}")


def bench_placement(plan: SimPlan, progress: Progress | None = None) -> list[PlacementRow]:
    """Simulate ``plan`` in each fate, with and without moving.

    Raises:
        UsageError: the plan means nothing.
    """
    check(plan)
    machine, rows = Machine.here(), []
    fates = [(strikes, moves) for strikes in (False, True) for moves in (True, False)]
    for index, (strikes, moves) in enumerate(fates):
        own = replace(plan, strikes=strikes, moves=moves)
        simulation = Simulation(own)
        result = simulation.run()
        rows.append(PlacementRow(machine, __version__, own, result, *_plan_times_ms(simulation.mesh())))
        if progress is not None:
            progress(index + 1, len(fates))
    return rows


def _plan_times_ms(mesh: Mesh) -> tuple[float, float]:
    """Medians: of ranking who moves, and of choosing for one that joins."""
    moves_s, choices_s = [], []
    for _ in range(_TIMED_PLANS if mesh.nodes else 0):
        started = perf_counter()
        again = Mesh(mesh.num_layers, mesh.nodes)
        _ = again.moves
        moves_s.append(perf_counter() - started)
        started = perf_counter()
        Mesh(mesh.num_layers, mesh.nodes).choose(mesh.nodes[0])
        choices_s.append(perf_counter() - started)
    return (1000 * median(moves_s), 1000 * median(choices_s)) if moves_s else (0.0, 0.0)


def describe(rows: Sequence[JsonRow]) -> str:
    """What was simulated, and where."""
    row = rows[0]
    commit = f"commit {row['commit']}" if row["commit"] else "no commit"
    return (
        f"{row['num_peers']} peers, {row['num_layers']} layers, {row['minutes']:g} minutes, seed {row['seed']}; "
        f"{row['churn_percent']:g}% of the peers go in a minute and others come. A plan of who moves takes "
        f"{median(one['plan_ms'] for one in rows):.1f} ms, a choice of where to join "
        f"{median(one['choose_ms'] for one in rows):.1f} ms. hopformer {row['hopformer']} on {row['device']} "
        f"({row['num_cores']} cores, {row['memory_gib']} GiB, {row['system']}), torch {row['torch']}, Python "
        f"{row['python']}; {commit}, {row['date']}."
    )


def placement_as_markdown(rows: Sequence[JsonRow]) -> str:
    """A sentence about the run, and a table with a line for each mesh."""
    lines = [
        describe(rows),
        "",
        f"{_NOTE[0].upper()}{_NOTE[1:]}:",
        "",
        f"| {' | '.join(_HEADINGS)} |",
        "|---|" + "--:|" * (len(_HEADINGS) - 1),
    ]
    return "\n".join([*lines, *(f"| {' | '.join(_cells(row))} |" for row in rows)]) + "\n"


def rich_table(rows: Sequence[JsonRow]) -> "Table":
    """For a terminal of 100 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(caption=_NOTE, box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for index, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row), style="bold" if row["moves"] else None)
    return table


def _cells(row: JsonRow) -> tuple[str, ...]:
    fate = "strike" if row["strikes"] else "churn"
    mended = "-" if row["mend_p50_s"] is None else f"{row['mend_p50_s']:.0f} ({row['mend_max_s']:.0f})"
    return (
        fate if row["moves"] else f"{fate}, fixed",
        f"{row['whole_percent']:.1f}%",
        f"{row['covered_percent']:.1f}%",
        f"{row['num_holes']}",
        mended,
        f"{row['balance_percent']:.0f}% ({row['worst_balance_percent']:.0f}%)",
        f"{row['moves_per_node_hour']:.2f}",
        "-" if row["hops"] is None else f"{row['hops']}",
        "-" if row["tokens_per_s"] is None else f"{row['tokens_per_s']:.1f}",
    )
