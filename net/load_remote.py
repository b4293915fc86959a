"""From a model folder, a BlocksMap and a switchboard to something that answers over peers: load.py's counterpart.

Only the embedding, the head and the layers that the map gives to "self" are loaded here.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import BlocksMapError
from ..llama.assemble import ModelPart, Placement, load_model
from ..llama.config import ModelConfig, load_config, load_generation_defaults
from ..llama.engine import Engine
from ..llama.fingerprint import fingerprint
from ..llama.fingerprint_bits import same_model
from ..llama.load import LoadedModel, LoadOptions, find_device, find_dtype, find_max_context, find_weight_bits
from ..llama.load_span import load_span
from ..llama.templates import load_chat_template
from ..llama.tokenizer import Tokenizer
from ..llama.weights import TensorFiles, layer_tensors
from .activations import wire_dtype
from .blocks_map import BlocksMap, checked
from .caller_mesh import CallerMesh
from .caller_node import CallerNode
from .caller_session import Terms
from .messages import Codec
from .peer_table import PeerTable, Wanted
from .remote import CallerPart, RemoteRunner
from .row_layout import RowLayout
from .switchboard import Switchboard

LEASE_S = 600  # that peers keep a conversation while its user thinks
MAX_SEQUENCES = 8  # at once: peers give a caller room for some contexts, not for any number


@dataclass(frozen=True, slots=True)
class Routing:
    """Who is asked, for how long a hop that is lost may be missing, and how activations are packed on their way.

    Attributes:
        blocks_map: None where all layers are run by whoever announces them.
        hands_head: the last hop draws the tokens, so that norm and head need not be here.
        is_meshed: peers are taken up that announce what they serve.
    """

    blocks_map: BlocksMap | None
    reroute_timeout_s: float
    codec: Codec = Codec.EXACT
    hands_head: bool = False
    is_meshed: bool = False


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model that answers over peers."""

    model: LoadedModel
    runner: RemoteRunner
    node: CallerNode


def load_remote(
    folder: Path,
    options: LoadOptions,
    routing: Routing,
    switchboard: Switchboard,
    progress: Callable[[int, int], None] | None = None,
) -> RemoteModel:
    """Load the caller's part of the model in ``folder``; peers are dialled meanwhile, and not waited for.

    Raises:
        BlocksMapError: the map does not fit the model.
        ModelError: the folder cannot be used.
        DeviceError: this machine lacks the device or the memory.
        UsageError: an option means nothing.
    """
    config = load_config(folder)
    blocks_map = None if routing.blocks_map is None else checked(routing.blocks_map, config.num_layers)
    device = find_device(options.device)
    dtype = find_dtype(options.dtype, config, device)
    layout = RowLayout(wire_dtype(dtype), routing.codec, config.hidden_size)
    model_print = _fingerprint(folder, config, blocks_map)
    spans = {} if blocks_map is None else blocks_map.spans()
    hands_head = routing.hands_head
    wanted = Wanted(model_print, config.num_layers, layout.dtype, layout.width, layout.codec, hands_head)
    listed = {peer: ranges[0] for peer, ranges in spans.items() if peer is not None}
    peers = PeerTable(wanted, listed, {} if blocks_map is None else blocks_map.addrs())
    if hands_head and any(one.end == config.num_layers for one in spans.get(None, [])):
        raise BlocksMapError(
            f"the map gives layer {config.num_layers - 1}, the last, to this node: there is no hop to hand the head to"
        )
    mesh = CallerMesh(model_print, config.num_layers, switchboard.peer_id) if routing.is_meshed else None
    node = CallerNode(switchboard, peers, layout, secrets.randbits(62), config.vocab_size, mesh)
    node.turn(0.0)
    max_context = find_max_context(options.max_context, config)
    own = [(one.start, one.end) for one in spans.get(None, [])]
    part = _load_part(folder, options, ModelPart(0, 0, head=not hands_head), own, progress)
    kinds = layout.dtype, layout.codec
    terms = Terms(model_print, *kinds, max_context, LEASE_S, routing.reroute_timeout_s, hands_head)
    runner = RemoteRunner(part, node, terms, layout)
    tokenizer = Tokenizer.load(folder)
    engine = Engine(runner, tokenizer.decode, byte_tokens=tokenizer.byte_tokens, max_sequences=MAX_SEQUENCES)
    template = load_chat_template(folder, tokenizer, options.template)
    defaults = load_generation_defaults(folder)
    model = LoadedModel(
        folder,
        config,
        defaults,
        tokenizer,
        template,
        engine,
        device,
        dtype,
        options.quantize,
        tuple(one.span for one in part.local),
    )
    return RemoteModel(model, runner, node)


def _load_part(
    folder: Path,
    options: LoadOptions,
    ends: ModelPart,
    spans: list[tuple[int, int]],
    progress: Callable[[int, int], None] | None,
) -> CallerPart:
    """The embedding, the head where it is asked for, and the layers that run here."""
    config = load_config(folder)
    device = find_device(options.device)
    dtype = find_dtype(options.dtype, config, device)
    max_context = find_max_context(options.max_context, config)
    placement = Placement(device, dtype, max_context, find_weight_bits(options.quantize))
    model = load_model(folder, config, ends, placement, progress)
    assert model.embed is not None
    local = tuple(load_span(folder, span, options, progress).runner for span in spans)
    return CallerPart(config, dtype, device, model.embed, model.head, local)


def _fingerprint(folder: Path, config: ModelConfig, blocks_map: BlocksMap | None) -> bytes:
    """What peers must serve: as the map says, or else as in this folder; where it lacks layers, by its config alone."""
    own = fingerprint(folder, 0, 0)
    if blocks_map is not None and blocks_map.model.fingerprint is not None:
        named = bytes.fromhex(blocks_map.model.fingerprint)
        if not same_model(own, named, config.num_layers, 0, config.num_layers):
            raise BlocksMapError(f"the map is for another model, {blocks_map.model.name}, than the one in {folder}")
        return named
    files = TensorFiles.open(folder)
    tensors = [tensor for index in range(config.num_layers) for tensor in layer_tensors(config, index).values()]
    return fingerprint(folder) if all(files.has(name) for name, _ in tensors) else own
