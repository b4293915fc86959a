"""``hopformer bench``: what this machine does, beside others on the same weights in the same run."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from .flags import command
from .reporting import EXIT_DONE, EXIT_USAGE

if TYPE_CHECKING:  # these bring torch along
    from ..bench.decode import DecodePlan
    from ..bench.rows import Row

bench_app = typer.Typer()

RANDOM = "random:"  # random:tinyllama is a model of that shape with random weights

BenchModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="[MODEL]",
        help="A folder, a hub id, demo, or random:SHAPE, such as random:tinyllama, for random weights of a real shape.",
        show_default="demo",
    ),
]


@dataclass(frozen=True, slots=True)
class DecodeFlags:
    """What bench decode measures."""

    prompt_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens of the prompt.")] = 512
    decode_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens decoded behind it, one a step.")] = 64
    rounds: Annotated[int, typer.Option(metavar="N", help="Turns that everybody takes.")] = 5
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="CPU threads; as many as PyTorch takes, if not given.")
    ] = None
    dtype: Annotated[
        str,
        typer.Option(metavar="auto|bfloat16|float16|float32", help="Weights' type; auto is the model's own."),
    ] = "auto"
    against: Annotated[str, typer.Option(metavar="NAMES", help="Baselines, separated by commas, or none.")] = (
        "transformers,llama.cpp"
    )


@dataclass(frozen=True, slots=True)
class RowFlags:
    """Where the rows go."""

    json: Annotated[bool, typer.Option("--json", help="Print the rows as a JSON array instead of a table.")] = False
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the rows there, as a JSON array, too.")
    ] = None


@bench_app.callback(invoke_without_command=True)
def bench(context: typer.Context) -> None:
    """Measure this machine, beside others on the same weights."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(EXIT_USAGE)


@command(bench_app)
def decode(model: BenchModelArgument = "demo", *, flags: DecodeFlags, rows: RowFlags) -> int:
    """Prefill and decode of one sequence on the CPU, in tokens/s and in percent of what the machine can do.

    transformers and llama.cpp run the same weights in the same type with as many threads, taking turns with hopformer.
    """
    from ..bench.decode import bench_decode
    from .progress import loading_bar

    with _model_folder(model) as folder:
        plan = _plan(folder, model, flags)
        with loading_bar(f"measuring {model}") as progress:
            measured = bench_decode(plan, progress)
    as_json = json.dumps([row.as_json() for row in measured], indent=1)
    if rows.output is not None:
        rows.output.write_text(as_json + "\n", encoding="utf-8")
    if rows.json:
        print(as_json)
    else:
        _print_table(measured)
    return EXIT_DONE


@contextmanager
def _model_folder(reference: str) -> Iterator[Path]:
    """The folder of a model; that of a random one lives as long as the command.

    Raises:
        HubError: it cannot be found or fetched.
        UsageError: there is no such shape.
    """
    if not reference.startswith(RANDOM):
        from .loading import fetch

        yield fetch(reference)
        return
    from ..bench.random_model import find_shape, write_random_model
    from .progress import loading_bar

    shape = find_shape(reference.removeprefix(RANDOM))
    with TemporaryDirectory(prefix="hopformer-random-") as folder:
        with loading_bar(f"making {reference}") as progress:
            write_random_model(Path(folder), shape, progress)
        yield Path(folder)


def _plan(folder: Path, model: str, flags: DecodeFlags) -> "DecodePlan":
    """The flags in the bench's words.

    Raises:
        ConfigError: config.json cannot be used.
        UsageError: a dtype that is unknown, or a baseline named twice.
    """
    import torch

    from ..bench.decode import DecodePlan
    from ..llama.config import load_config
    from ..llama.load import find_dtype

    against = () if flags.against == "none" else tuple(name.strip() for name in flags.against.split(","))
    if len(set(against)) < len(against):
        raise UsageError(f"--against {flags.against} names one twice")
    return DecodePlan(
        folder=folder,
        model=Path(model).resolve().name if Path(model).is_dir() else model,  # rows are published: no path of ours
        dtype=find_dtype(flags.dtype, load_config(folder), torch.device("cpu")),
        prompt_tokens=flags.prompt_tokens,
        decode_tokens=flags.decode_tokens,
        rounds=flags.rounds,
        num_threads=flags.threads if flags.threads is not None else torch.get_num_threads(),
        against=against,
    )


def _print_table(rows: "Sequence[Row]") -> None:
    """The rows for a reader, in 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    conditions = rows[0].conditions
    device = conditions.machine.device
    table = Table(
        title=f"{conditions.model}, {conditions.dtype}, {conditions.num_threads} threads of {device}",
        caption=f"prompt of {conditions.prompt_tokens}, {conditions.decode_tokens} decoded, medians of "
        f"{conditions.rounds} rounds; ratio: hopformer's speed over this",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for heading in ("", "", "tokens/s", "ms", "rate", "of ceiling", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        table.add_row(row.phase, row.runs, *_cells(row), style="bold" if row.runs == "hopformer" else None)
    console = Console(highlight=False)
    console.print(table)
    for name, note in {row.runs: row.note for row in rows if row.note}.items():
        console.print(f"{name}: {note}", markup=False)


def _cells(row: "Row") -> list[str]:
    """A row's measures; dashes for a baseline that was absent."""
    if row.time_ms is None:
        return ["-"] * 5
    rate = f"{row.gb_per_s:.3g} GB/s" if row.gb_per_s is not None else f"{row.tflop_per_s:.2g} TFLOP/s"
    return [
        f"{row.tokens_per_s:.1f}",
        f"{row.time_ms:.1f}",
        rate,
        f"{row.percent_of_ceiling:.0f}%",
        "" if row.ours_over_it is None else f"{row.ours_over_it:.2f}x",
    ]
