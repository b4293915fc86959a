"""``hopformer map``: make, validate or draw a BlocksMap."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from ..errors import BlocksMapError, UsageError
from ..net.blocks_map import MAX_FILE_BYTES, BlocksMap, MapModel, MapPeer, faults, load_blocks_map, notes
from ..net.blocks_plan import GIB, Provider, plan_blocks
from .flags import command
from .map_drawing import draw_map
from .reporting import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, print_error

if TYPE_CHECKING:  # at run time it brings torch along
    from ..llama.config import ModelConfig

map_app = typer.Typer()

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A BlocksMap.", show_default=False)]
ModelOption = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="The model that it is for: a folder, a hub id whose config.json is in the cache, or demo; "
        "the one that the file names, if not given.",
    ),
]


@dataclass(frozen=True, slots=True)
class PlanFlags:
    """What a plan is for."""

    model: Annotated[
        str, typer.Option(metavar="MODEL", help="A folder, a hub id whose config.json is in the cache, or demo.")
    ] = "demo"
    max_context: Annotated[
        int, typer.Option(metavar="N", help="Tokens whose keys and values each peer makes room for.")
    ] = 8192
    dtype: Annotated[
        str, typer.Option(metavar="auto|bfloat16|float16|float32", help="Of the weights; auto is the model's own.")
    ] = "auto"
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Where the map goes; stdout, if not given.")] = (
        None
    )
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Say what a session may expect: tokens/s, each hop, and one machine alone."),
    ] = False


@map_app.callback(invoke_without_command=True)
def blocks_map(context: typer.Context) -> None:
    """Make, validate or draw a BlocksMap, the file that says which peer runs which layers."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(EXIT_USAGE)


@command(map_app)
def check(file: FileArgument, model: ModelOption = None) -> int:
    """Name every hole, overlap, unknown peer and wrong range of a BlocksMap.

    Exits with 0 if there is none. Layers that several peers serve are none: they are each other's replicas.
    """
    found = load_blocks_map(file)
    num_layers = _num_layers(found, model)
    wrong = faults(found, num_layers)
    for fault in wrong:
        print_error(f"{file}: {fault}")
    if wrong:
        return EXIT_FAILED
    for note in notes(found):
        print(f"{file}: {note}")
    layers = "as far as can be told without its model" if num_layers is None else f"all {num_layers} layers are served"
    print(f"{file}: {layers}, {len(found.peers)} peers")
    return EXIT_DONE


@command(map_app)
def show(file: FileArgument, model: ModelOption = None) -> int:
    """Draw a BlocksMap: a line for each range of layers, and under them how many serve each layer."""
    found = load_blocks_map(file)
    num_layers = _num_layers(found, model)
    print("\n".join(draw_map(found, num_layers)))
    wrong = faults(found, num_layers)
    if wrong:
        print_error(f"{file} has {len(wrong)} faults; hopformer map check {file} names them")
    return EXIT_DONE


@command(map_app)
def plan(
    peers: Annotated[
        Path,
        typer.Argument(
            metavar="PEERS.json",
            help='{"peers": [{"peer_id": ID or "self", "addrs": ["HOST:PORT"], "memory_gib": 8, "layers_per_s": 900, '
            '"rtt_ms": 20}]}, where rtt_ms may be left out',
            show_default=False,
        ),
    ],
    *,
    flags: PlanFlags,
) -> int:
    """Make a BlocksMap from a list of peers, the memory that each gives, and how many layers it computes in a second.

    The fastest peers get as many layers as they have room for, with keys and values; the others become replicas. What
    --explain says goes to stderr where the map goes to stdout.
    """
    if flags.max_context < 1:
        raise UsageError(f"--max-context is {flags.max_context}; it must be 1 or more")
    config, fingerprint = _known_model(flags.model)
    providers = _read_providers(peers)
    layer_bytes = _layer_bytes(config, flags)
    made = plan_blocks(MapModel(flags.model, fingerprint), config.num_layers, layer_bytes, providers)
    wrong = faults(made.blocks_map, config.num_layers)
    if wrong:
        raise BlocksMapError(f"{peers}: {wrong[0]}")
    text = made.blocks_map.to_json()
    if flags.output is None:
        sys.stdout.write(text)
    else:
        flags.output.write_text(text, encoding="utf-8")
        print("\n".join(draw_map(made.blocks_map, config.num_layers)))
    unused = f"; {made.num_unused} peers have no room for a layer" if made.num_unused else ""
    print(f"a token takes {made.step_s * 1000:.1f} ms in the layers, and the network's time{unused}", file=sys.stderr)
    if flags.explain:
        from .map_explain import explain_plan  # which takes numpy along, and a relay has none

        lines = explain_plan(made, providers, config.num_layers, layer_bytes)
        print("\n".join(lines), file=sys.stderr if flags.output is None else sys.stdout)
    return EXIT_DONE


@command(map_app)
def join(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="READY...", help="Files that begin with a line of serve's.", show_default=False),
    ],
    model: Annotated[str, typer.Option(metavar="MODEL", help="What the map calls the model.")] = "demo",
    own: Annotated[
        str | None, typer.Option(metavar="A:B", help="Layers that whoever reads the map runs itself.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the map goes; stdout, if not given.")
    ] = None,
) -> int:
    """Make a BlocksMap of nodes that run: hopformer serve ... > a.json, then hopformer map join a.json b.json."""
    from .map_join import join

    join(model, files, own, output)
    return EXIT_DONE


class _ListedPeer(msgspec.Struct, forbid_unknown_fields=True):
    peer_id: str
    memory_gib: float
    layers_per_s: float
    addrs: tuple[str, ...] = ()
    relay: str | None = None
    rtt_ms: float | None = None


class _PeerList(msgspec.Struct, forbid_unknown_fields=True):
    peers: list[_ListedPeer]


def _read_providers(path: Path) -> list[Provider]:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES)
        found = msgspec.json.decode(content, type=_PeerList).peers
    except OSError as error:
        raise BlocksMapError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BlocksMapError(f"{path} is no list of peers: {error}; see hopformer map plan --help") from error
    for index, one in enumerate(found):
        if not (one.memory_gib >= 0 and one.layers_per_s > 0):
            raise BlocksMapError(f"{path}: peers[{index}]: memory_gib is 0 or more, and layers_per_s above 0")
        if one.rtt_ms is not None and not one.rtt_ms >= 0:
            raise BlocksMapError(f"{path}: peers[{index}]: rtt_ms is 0 or more")
    return [
        Provider(
            MapPeer(one.peer_id, one.addrs, one.relay),
            int(one.memory_gib * GIB),
            one.layers_per_s,
            None if one.rtt_ms is None else one.rtt_ms / 1000,
        )
        for one in found
    ]


def _known_model(reference: str) -> tuple["ModelConfig", str | None]:
    """A model's config, and its fingerprint where its weights are here."""
    from ..llama.config import load_config
    from ..llama.fingerprint import fingerprint
    from ..llama.hub import find_config

    folder = find_config(reference)
    if folder is None:
        raise BlocksMapError(f"{reference} is not on this machine; hopformer pull {reference} fetches it")
    has_weights = any(folder.glob("*.safetensors"))
    return load_config(folder), fingerprint(folder).hex() if has_weights else None


def _num_layers(blocks_map: BlocksMap, asked: str | None) -> int | None:
    """The layers of the model that was asked for, or else of the one that the map names if it is here."""
    from ..errors import ModelError
    from ..llama.config import load_config
    from ..llama.hub import find_config

    if asked is not None:
        return _known_model(asked)[0].num_layers
    folder = find_config(blocks_map.model.name)
    try:
        return None if folder is None else load_config(folder).num_layers
    except ModelError:
        return None


def _layer_bytes(config: "ModelConfig", flags: PlanFlags) -> int:
    """A layer's weights, and its keys and values of a whole context."""
    import torch

    from ..llama.layer_memory import layer_memory
    from ..llama.load import find_dtype

    dtype = find_dtype(flags.dtype, config, torch.device("cpu"))
    return layer_memory(config, dtype).with_context(min(flags.max_context, config.max_position_embeddings))
