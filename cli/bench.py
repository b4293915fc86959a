"""``hopformer bench``: what this machine does, beside others on the same weights in the same run."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import UsageError
from .bench_placement import PlacementFlags
from .flags import command
from .reporting import EXIT_DONE, EXIT_USAGE

if TYPE_CHECKING:  # these bring torch along
    from ..bench.decode import DecodePlan
    from ..bench.kernel_suite import KernelPlan
    from ..bench.quant_error import QuantErrorRow
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
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda[:N]", help="Where to measure.")] = "auto"
    dtype: Annotated[
        str,
        typer.Option(metavar="auto|bfloat16|float16|float32", help="Weights' type; auto is the model's own."),
    ] = "auto"
    quantize: Annotated[
        str,
        typer.Option(
            metavar="none|int8|int4",
            help="Round the weights, and show what is lost. llama.cpp takes Q8_0 or Q4_0, transformers stays as it is.",
        ),
    ] = "none"
    against: Annotated[str, typer.Option(metavar="NAMES", help="Baselines, separated by commas, or none.")] = (
        "transformers,llama.cpp"
    )


KernelNames = Annotated[
    list[str] | None, typer.Argument(metavar="NAME", help="Kernels to measure.", show_default="all")
]


@dataclass(frozen=True, slots=True)
class KernelFlags:
    """What bench kernels measures."""

    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Shapes to measure: llama-3.1-8b, llama-3.2-1b, tinyllama, qwen3-8b, mistral-7b, ...; repeatable.",
            show_default="tinyllama on a CPU, llama-3.1-8b on a GPU",
        ),
    ] = None
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda[:N]", help="Where to measure.")] = "auto"
    dtype: Annotated[
        str, typer.Option(metavar="bfloat16|float16|float32", help="Type of activations, weights, keys and values.")
    ] = "bfloat16"
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="CPU threads; as many as PyTorch takes, if not given.")
    ] = None
    seconds: Annotated[float, typer.Option(metavar="S", help="Trials of each contender of a case.")] = 0.3
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw roofline and decode by context.")] = None
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Try launch configurations on this GPU and keep the fastest.")
    ] = False
    aot: Annotated[
        bool, typer.Option("--aot", help="Only compile, for every kind of GPU, and check the code; needs no GPU.")
    ] = False


@dataclass(frozen=True, slots=True)
class NetFlags:
    """What bench net measures."""

    hops: Annotated[str, typer.Option(metavar="1,2,4", help="Over how many nodes the demo model answers.")] = "1,2,4"
    links: Annotated[
        Literal["yes", "no"], typer.Option(help="Whether to measure over emulated links: delay, loss, reordering.")
    ] = "yes"
    only: Annotated[
        str | None, typer.Option(metavar="PARTS", help="Parts to measure, separated by commas.", show_default="all")
    ] = None
    threads: Annotated[int, typer.Option(metavar="N", help="CPU threads of each node, and of the model here.")] = 1
    quick: Annotated[bool, typer.Option("--quick", help="Fewer samples, one round and one link.")] = False


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
    """Prefill and decode of one sequence, in tokens/s and in percent of what the machine can do.

    transformers and, on a CPU, llama.cpp run the same weights in the same type, taking turns with hopformer.
    With --quantize the rows also say what is lost: how far the logits are from those of the model as it was.
    """
    from ..bench.decode import bench_decode
    from ..bench.quant_error import bench_quant_error
    from .progress import loading_bar

    error = None

    with _model_folder(model) as folder:
        plan = _plan(folder, model, flags)
        with loading_bar(f"measuring {model}") as progress:
            measured = bench_decode(plan, progress)
        if plan.quantize != "none":
            error = bench_quant_error(plan.folder, plan.dtype, measured[0].conditions, plan.device)
    content = [row.as_json() for row in measured] + ([] if error is None else [error.as_json()])
    as_json = json.dumps(content, indent=1)
    if rows.output is not None:
        rows.output.write_text(as_json + "\n", encoding="utf-8")
    if rows.json:
        print(as_json)
    else:
        _print_table(measured)
        if error is not None:
            _print_error(error)
    return EXIT_DONE


@command(bench_app)
def kernels(names: KernelNames = None, *, flags: KernelFlags, rows: RowFlags) -> int:
    """Each kernel at shapes of real models, beside PyTorch's in the same run and in percent of what the machine can do.

    NAME is one of decode_attention, prefill_attention, rope_kv_write, rms_norm, swiglu, linear, gemv, quant_matmul and
    sample; without one, all that this device uses.
    """
    from ..bench.kernel_plot import check_plot, draw
    from ..bench.kernel_suite import bench_kernels
    from .progress import loading_bar

    if flags.aot:
        if names:
            raise UsageError("--aot compiles every kernel; leave the names out")
        return _prove(rows)
    if flags.plot is not None:
        check_plot(flags.plot)
    plan = _kernel_plan(tuple(names or ()), flags)
    if flags.sweep:
        return _sweep(plan)
    with loading_bar("measuring kernels") as progress:
        measured = [row.as_json() for row in bench_kernels(plan, progress)]
    if flags.plot is not None:
        draw(measured, flags.plot)
    as_json = json.dumps(measured, indent=1)
    if rows.output is not None:
        rows.output.write_text(as_json + "\n", encoding="utf-8")
    if rows.json:
        print(as_json)
    else:
        _print_kernels(measured)
    return EXIT_DONE


@command(bench_app)
def net(*, flags: NetFlags, rows: RowFlags) -> int:
    """One hop beside aioquic's own API and TCP with TLS, over emulated links and a relay; decode over several hops.

    Everything is on this machine. Parts of it: hop, decode, links, relay, memory, and nat, which dials through NATs of
    network namespaces and needs root. It takes nine minutes on two cores; with --quick, four.
    """
    from ..bench.net_suite import PARTS, NetPlan, bench_net
    from ..bench.net_table import describe, rich_tables
    from .interrupts import terminate_unwinds
    from .options import parse_ids
    from .progress import loading_bar

    parts = PARTS if flags.only is None else tuple(dict.fromkeys(name.strip() for name in flags.only.split(",")))
    hops = parse_ids(flags.hops, "--hops")
    plan = NetPlan(hops, flags.threads, flags.links == "yes", flags.quick, parts=parts)
    with terminate_unwinds(), loading_bar("measuring the network") as progress:
        measured = [row.as_json() for row in bench_net(plan, progress)]
    as_json = json.dumps(measured, indent=1)
    if rows.output is not None:
        rows.output.write_text(as_json + "\n", encoding="utf-8")
    if rows.json:
        print(as_json)
    else:
        from rich.console import Console

        Console(highlight=False).print(describe(measured[0]), *rich_tables(measured), sep="\n")
    return EXIT_DONE


@command(bench_app)
def placement(*, flags: PlacementFlags, rows: RowFlags) -> int:
    """A mesh that places its own layers, simulated: peers of mixed speed and room join, load, leave, crash and move.

    Every peer runs what serve --layers auto runs, on a view of its own that is seconds old. Four runs: with and without
    moving, with peers that come and go, and with all that serve one layer crashing at once.
    """
    from ..bench.placement_rows import bench_placement, describe, rich_table
    from ..bench.placement_sim import SimPlan
    from .progress import loading_bar

    plan = SimPlan(flags.peers, flags.layers, flags.minutes, flags.seed, flags.churn)
    with loading_bar("simulating a mesh") as progress:
        measured = [row.as_json() for row in bench_placement(plan, progress)]
    as_json = json.dumps(measured, indent=1)
    if rows.output is not None:
        rows.output.write_text(as_json + "\n", encoding="utf-8")
    if rows.json:
        print(as_json)
    else:
        from rich.console import Console

        Console(highlight=False).print(describe(measured), rich_table(measured), sep="\n")
    return EXIT_DONE


def _prove(flags: RowFlags) -> int:
    """Compile every launch configuration ahead of time and print what each asks of a GPU.

    Raises:
        KernelError: a check failed.
    """
    from rich.console import Console

    from ..bench.aot import prove
    from ..bench.aot_table import rich_tables
    from .progress import loading_bar

    with loading_bar("compiling kernels") as progress:
        proof = prove(progress=progress)
    as_json = json.dumps({"rows": [row.as_json() for row in proof.rows]}, indent=1)
    if flags.output is not None:
        flags.output.write_text(as_json + "\n", encoding="utf-8")
    if flags.json:
        print(as_json)
    else:
        Console(highlight=False).print(*rich_tables(proof.rows))
    proof.check()
    return EXIT_DONE


def _kernel_plan(names: tuple[str, ...], flags: KernelFlags) -> "KernelPlan":
    """The flags in the bench's words.

    Raises:
        DeviceError: this machine has no such device.
        UsageError: an unknown dtype, device, kernel or model.
    """
    import torch

    from ..bench.kernel_suite import KernelPlan
    from ..bench.kernel_timing import Effort
    from ..llama.load import find_device

    if flags.dtype not in ("bfloat16", "float16", "float32"):
        raise UsageError(f"--dtype {flags.dtype} is unknown; use bfloat16, float16 or float32")
    plan = KernelPlan(
        device=find_device(flags.device),
        dtype=getattr(torch, flags.dtype),
        num_threads=flags.threads if flags.threads is not None else torch.get_num_threads(),
        kernels=names,
        models=tuple(flags.model or ()),
        effort=Effort(trials_s=flags.seconds),
        with_contexts=flags.plot is not None,
    )
    plan.cases()  # an unknown name is wrong usage before anything is measured
    return plan


def _sweep(plan: "KernelPlan") -> int:
    """Try launch configurations, and say what was written.

    Raises:
        UsageError: the device is not a GPU, or a kernel has no table.
    """
    from ..bench.sweep import sweep
    from .progress import loading_bar

    with loading_bar("sweeping launch configurations") as progress:
        path, changes = sweep(plan, progress)
    print(*changes, f"written to {path.name}", sep="\n")
    return EXIT_DONE


def _print_kernels(rows: "Sequence[Mapping[str, Any]]") -> None:
    """The rows for a reader, in 100 columns."""
    from rich.console import Console

    from ..bench.kernel_table import notes, rich_tables

    console = Console(highlight=False)
    for table in rich_tables(rows):
        console.print(table)
    for note in notes(rows):
        console.print(note, markup=False)


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
        DeviceError: this machine has no such device.
        UsageError: a dtype or a quantisation that is unknown, or a baseline named twice.
    """
    import torch

    from ..bench.decode import DecodePlan
    from ..llama.config import load_config
    from ..llama.load import find_device, find_dtype, find_weight_bits

    device = find_device(flags.device)
    against = () if flags.against == "none" else tuple(name.strip() for name in flags.against.split(","))
    if len(set(against)) < len(against):
        raise UsageError(f"--against {flags.against} names one twice")
    find_weight_bits(flags.quantize)
    return DecodePlan(
        folder=folder,
        model=Path(model).resolve().name if Path(model).is_dir() else model,  # rows are published: no path of ours
        dtype=find_dtype(flags.dtype, load_config(folder), device),
        prompt_tokens=flags.prompt_tokens,
        decode_tokens=flags.decode_tokens,
        rounds=flags.rounds,
        num_threads=flags.threads if flags.threads is not None else torch.get_num_threads(),
        against=against,
        quantize=flags.quantize,
        device=device,
    )


def _print_table(rows: "Sequence[Row]") -> None:
    """The rows for a reader, in 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    conditions = rows[0].conditions
    machine = conditions.machine
    where = machine.device if machine.cuda else f"{conditions.num_threads} threads of {machine.device}"
    formats = {row.runs: row.weights for row in rows if row.weights not in (None, conditions.dtype)}
    weights = f"{conditions.dtype}, quantised to {conditions.quantize}" if formats else conditions.dtype
    table = Table(
        title=f"{conditions.model}, {weights}, {where}",
        caption=f"prompt of {conditions.prompt_tokens}, {conditions.decode_tokens} decoded, medians of "
        f"{conditions.rounds} rounds; ratio: hopformer's speed over this",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for heading in ("", "", "tokens/s", "ms", "rate", "of ceiling", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        name = f"{row.runs} {formats[row.runs]}" if row.runs in formats else row.runs  # others run as they are
        table.add_row(row.phase, name, *_cells(row), style="bold" if row.runs == "hopformer" else None)
    console = Console(highlight=False)
    console.print(table)
    for name, note in {row.runs: row.note for row in rows if row.note}.items():
        console.print(f"{name}: {note}", markup=False)


def _print_error(row: "QuantErrorRow") -> None:
    """What quantising loses, in two or three lines."""
    conditions = row.conditions
    print(f"{conditions.quantize} beside {conditions.dtype}, {row.num_positions} tokens of {row.text}:")
    print(
        f"logits off by {row.logit_error:.2%}, KL divergence {row.kl_nats:.2g} nats, "
        f"same first token {row.same_top_percent:.1f}%"
    )
    if row.perplexity is not None:
        print(f"perplexity of the text {row.perplexity:.4f}, unquantised {row.perplexity_unquantized:.4f}")


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
