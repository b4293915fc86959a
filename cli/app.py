"""The commands, one thin function each, and ``main``. What they do is imported when they run."""

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from .. import __version__
from .bench import bench_app
from .flags import command
from .invite import invite_app
from .map import map_app
from .mesh_flags import MeshFlags
from .node_flags import NodeFlags, SpanFlags
from .options import LoadFlags, ModelArgument, OutputFlags, SamplingFlags, StopFlags, parse_layers
from .prompt import PromptFlags
from .relay_flags import RelayFlags
from .reporting import EXIT_DONE, EXIT_USAGE, print_error, report
from .route_flags import RouteFlags
from .serve_beside_flags import ServeBesideFlags

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)

app.add_typer(bench_app, name="bench")
app.add_typer(map_app, name="map")
app.add_typer(invite_app, name="invite")

# How often an idle thread of OpenMP looks for work before it sleeps: for 0.3 ms, and the next layer comes sooner. With
# libgomp's own 300,000, about 8 ms, it takes a processor from the node's network at every step; at 3,000 decoding here
# is 7% slower, at 0 it takes 2.7 times as long.
_SPIN_COUNT = "10000"

# The root of typer's own errors: click's ClickException, or the copy of it that newer typers carry
_TyperError: type[Exception] = typer.BadParameter.__mro__[2]


def main() -> NoReturn:
    """The console script: runs the command in sys.argv and exits with its code."""
    if "OMP_WAIT_POLICY" not in os.environ:  # which says the same in other words
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)  # before torch is imported, and for every child
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a character that the terminal lacks must not end an answer
    try:
        code = app(list(arguments), prog_name="hopformer", standalone_mode=False)
        sys.stdout.flush()
    except _TyperError as error:
        return _report_usage(error)
    except BrokenPipeError as error:
        return report(error, debug=False)
    return int(code or EXIT_DONE)


def _report_usage(error: Exception) -> int:
    """The line for flags that typer does not understand."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "hopformer"
    message = getattr(error, "format_message", error.__str__)()
    print_error(f"{message.rstrip('.')}; see {path} --help")
    return EXIT_USAGE


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Runs Llama-family models, on this machine or across many."""
    if version:
        print(f"hopformer {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(EXIT_USAGE)


@command(app)
def chat(
    model: ModelArgument = "demo",
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the model is told before the first message.")
    ] = None,
    *,
    load: LoadFlags,
    routes: RouteFlags,
    mesh: MeshFlags,
    sampling: SamplingFlags,
    stops: StopFlags,
    serving: ServeBesideFlags,
) -> int:
    """Chat with a model.

    With a terminal, help lists the commands and Space, Esc or Ctrl-C stops an answer. Without one, every line of stdin
    is a turn and stdout has nothing but the answers. An answer may be as long as the context, unless --max-tokens is
    given.
    """
    from .chat import chat

    return chat(model, system, load, routes, mesh, sampling, stops, serving)


@command(app)
def generate(
    model: ModelArgument = "demo",
    *,
    prompt: PromptFlags,
    output: OutputFlags,
    load: LoadFlags,
    routes: RouteFlags,
    mesh: MeshFlags,
    sampling: SamplingFlags,
    stops: StopFlags,
) -> int:
    """Answer one prompt, for scripts.

    The answer has 256 tokens at most, unless --max-tokens is given. Ctrl-C ends it, prints what there is of it and
    exits with 130.
    """
    from .generate import generate

    return generate(model, prompt, output, load, routes, mesh, sampling, stops)


@command(app)
def serve(
    model: ModelArgument = "demo",
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="A:B|auto",
            help="The layers A to B-1, such as 0:16, or auto: what the mesh lacks most; all if not given.",
        ),
    ] = None,
    *,
    node: NodeFlags,
    mesh: MeshFlags,
    span: SpanFlags,
) -> int:
    """Serve a span of layers to peers.

    The first line on stdout is a JSON object with the peer id and the addresses that a BlocksMap needs. SIGTERM drains:
    no new session, running steps end, peers are told.
    """
    from .serve import serve

    return serve(model, layers, node, mesh, span)


@command(app)
def relay(flags: RelayFlags) -> int:
    """Pass on what peers behind NAT say to each other, and tell them who is there.

    It sees who talks to whom, when and how much, and never what. The first line on stdout is a JSON object with the
    peer id and the addresses that peers are told with --relay. Without --allow it is closed: hopformer invite, run on
    the same machine, makes the tokens that peers join by.
    """
    from .relay import relay

    return relay(flags)


@command(app)
def peers(
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Print the table once, and end.")] = False,
    *,
    mesh: MeshFlags,
) -> int:
    """Who is on the local network and at the relay, and what they serve.

    In a terminal the table lives until Ctrl-C. Without --relay and --join it looks on the local network.
    """
    from .peers import peers

    return peers(mesh, as_json=json, once=once)


@command(app)
def pull(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="A hub id, as org/name or org/name@revision.")],
    layers: Annotated[
        str | None, typer.Option(metavar="A:B", help="Only what the layers A to B-1 need, such as 0:16.")
    ] = None,
) -> int:
    """Download a model, or only some layers of it, and print its folder."""
    span = None if layers is None else parse_layers(layers)
    from .loading import fetch

    print(fetch(repo, span))
    return EXIT_DONE


@command(app, name="id")
def peer_id(
    identity: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The key, hopformer/identity.pem in the user's config folder if not given."),
    ] = None,
) -> int:
    """Print this node's peer id, making the key on first use."""
    from ..net.identity import Identity
    from .folders import config_folder

    print(Identity.load_or_create(identity or config_folder() / "identity.pem").peer_id)
    return EXIT_DONE


@command(app)
def doctor(
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines.")] = False,
) -> int:
    """Say what this machine can run, and what is missing.

    Exits with 0 when hopformer chat would run.
    """
    from .doctor import doctor

    return doctor(json)
