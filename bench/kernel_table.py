"""Rows of `hopformer bench kernels` as tables: for a terminal with rich, for a document in Markdown.

Both show one line for each case of ours, under its kernel, with the baselines' ratios beside it. Rows are taken as JSON
has them, so that a document can be made from a results file.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from .rows import OURS

if TYPE_CHECKING:
    from rich.table import Table

JsonRow = Mapping[str, Any]
HEADINGS = ("time, us", "p10 to p90", "rate", "ceiling")


@dataclass(frozen=True, slots=True)
class Line:
    """One case of ours.

    Attributes:
        kernel, case: their names; shape, dtype: in words.
        cells: what stands under HEADINGS.
        against: "1.31x SDPA" for each baseline that ran, best first: how many times as fast as it ours was.
    """

    kernel: str
    case: str
    shape: str
    dtype: str
    cells: tuple[str, str, str, str]
    against: tuple[str, ...]


def make_lines(rows: Sequence[JsonRow]) -> list[Line]:
    """One for each case, in the rows' order; points of the decode-by-context curve are left to the plot."""
    shown = [row for row in rows if row["context"] is None]
    by_case = [list(group) for _, group in groupby(shown, lambda row: (row["model"], row["kernel"], row["case"]))]
    return [_line(group) for group in by_case]


def notes(rows: Sequence[JsonRow]) -> list[str]:
    """Why baselines are absent or marked, each reason once."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["note"]:
            found.setdefault(f"{row['runs']}: {row['note']}", []).append(f"{row['kernel']} {row['case']}")
    return [text if len(cases) > 1 else f"{text} ({cases[0]})" for text, cases in found.items()]


def title(row: JsonRow) -> str:
    """Of one model's table."""
    return f"{row['model']}, {device(row)}"


def device(row: JsonRow) -> str:
    """What ran, in words."""
    if row["path"] == "Triton":
        return str(row["device"])
    return f"{row['num_threads']} threads of {row['device']}"


def caption(rows: Sequence[JsonRow]) -> str:
    """What the figures are."""
    first = rows[0]
    seen = [row for row in rows if row["ceiling_gb_per_s"] is not None]
    memory, matmul = (max(row[name] for row in seen) for name in ("ceiling_gb_per_s", "ceiling_tflop_per_s"))
    ceilings = f"ceilings: memory {three_digits(memory)} GB/s, matmul {operations(matmul)}"
    path = "" if first["path"] == "Triton" else "no GPU: these are the CPU's kernels, in PyTorch; "
    return f"{path}medians, cold caches; {ceilings}; 2.00x: ours takes half of its time"


def rich_tables(rows: Sequence[JsonRow]) -> "Iterator[Table]":
    """One for each model, in 100 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    for _, group in groupby(rows, lambda row: row["model"]):
        own = list(group)
        table = Table(title=title(own[0]), caption=caption(own), box=SIMPLE_HEAD)
        table.pad_edge, table.collapse_padding = False, True
        table.add_column("")
        for heading in HEADINGS:
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("against", no_wrap=True)
        for kernel, lines in groupby(make_lines(own), lambda line: line.kernel):
            table.add_row(f"[bold]{kernel}[/bold]")
            for line in lines:
                table.add_row(f" {line.case}", *line.cells, "\n".join(line.against))
            table.add_section()
        yield table


def kernels_as_markdown(rows: Sequence[JsonRow]) -> str:
    """One run's rows as a sentence about its conditions and a table with a line for each case of ours."""
    parts = [_describe_conditions(rows)]
    for model, group in groupby(rows, lambda row: row["model"]):
        parts.append(f"\n`{model}`:\n")
        parts.append("| kernel | case | | dtype | time, us (p10 to p90) | rate | of ceiling | against |")
        parts.append("|---|---|---|---|--:|--:|--:|---|")
        for line in make_lines(list(group)):
            time, spread, rate, percent = line.cells
            cells = (line.kernel, line.case, line.shape, line.dtype, f"{time} ({spread})", rate, percent)
            parts.append(f"| {' | '.join(cells)} | {', '.join(line.against)} |")
    parts.extend(f"\n{note}." for note in notes(rows))
    return "\n".join(parts) + "\n"


def _line(group: Sequence[JsonRow]) -> Line:
    ours = next(row for row in group if row["runs"] == OURS)
    others = sorted((row for row in group if row["ours_over_it"] is not None), key=lambda row: row["ours_over_it"])
    is_memory = ours["bound"] == "memory"
    rate = f"{three_digits(ours['gb_per_s'])} GB/s" if is_memory else operations(ours["tflop_per_s"])
    cells = (
        three_digits(ours["time_us"]),
        f"{three_digits(ours['time_us_p10'])} to {three_digits(ours['time_us_p90'])}",
        rate,
        f"{ours['percent_of_ceiling']:.0f}%",
    )
    against = tuple(f"{row['ours_over_it']:.2f}x {row['runs']}{'*' if row['note'] else ''}" for row in others)
    return Line(ours["kernel"], ours["case"], ours["shape"], ours["dtype"], cells, against)


def three_digits(value: float) -> str:
    """12.3, 1,230, 45,600: as many digits as a measurement repeats."""
    if value < 100:
        return f"{value:.3g}"
    digits = len(str(int(value))) - 3
    return f"{round(value, -max(0, digits)):,.0f}"


def operations(tflop_per_s: float) -> str:
    """0.0145 -> "14.5 GFLOP/s"."""
    return f"{three_digits(tflop_per_s)} TFLOP/s" if tflop_per_s >= 1 else f"{three_digits(1e3 * tflop_per_s)} GFLOP/s"


def _describe_conditions(rows: Sequence[JsonRow]) -> str:
    row = rows[0]
    commit = f"commit {row['commit']}" if row["commit"] else "no commit"
    software = [f"torch {row['torch']}", f"Python {row['python']}"]
    if row["path"] == "Triton":
        software = [f"{row['gpu_memory_gib']} GiB, driver {row['driver']}, CUDA {row['cuda']}", *software]
        software.append(f"Triton {row['triton']}")
    machine = f"{row['num_cores']} cores, {row['memory_gib']} GiB, {row['system']}"
    sentence = (
        f"hopformer {row['hopformer']} on {device(row)} ({machine}), {', '.join(software)}; {commit}, {row['date']}"
    )
    return f"{sentence}. {caption(rows)[0].upper()}{caption(rows)[1:]}."
