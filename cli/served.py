"""Layers that a node serves: fetched, loaded, and how peers are told of them."""

from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from ..llama.config import load_config
from ..llama.fingerprint import fingerprint
from ..llama.load_span import LoadedSpan, find_layers, load_span
from ..net.activations import wire_dtype
from ..net.messages import Codec
from ..net.served_span import ServedSpan
from .loading import fetch
from .node_flags import NodeFlags, SpanFlags
from .progress import loading_bar

_CODECS = {"exact": (Codec.EXACT,), "int8": (Codec.EXACT, Codec.INT8)}


def load_served(
    model: str, asked: tuple[int, int] | None, node: NodeFlags, span: SpanFlags
) -> tuple[LoadedSpan, ServedSpan]:
    """The layers, fetched if need be, and how they are announced.

    Raises:
        HopformerError: they cannot be fetched or loaded.
    """
    folder = fetch(model, asked, ends=span.head)
    start, end = find_layers(asked, load_config(folder))
    with loading_bar(f"loading layers {start}:{end} of {model}") as progress:
        loaded = load_span(folder, (start, end), span.options(), progress)
    return loaded, announced(public_name(model), folder, loaded, _CODECS[node.wire_dtype])


def announced(name: str, folder: Path, loaded: LoadedSpan, codecs: Sequence[Codec]) -> ServedSpan:
    """What peers are told of the layers that were loaded from ``folder``."""
    span = loaded.runner.span
    return ServedSpan(
        model=name,
        fingerprint=fingerprint(folder, span.start, span.end),
        start=span.start,
        end=span.end,
        num_layers=loaded.config.num_layers,
        width=loaded.config.hidden_size,
        dtype=wire_dtype(loaded.dtype),
        codecs=tuple(codecs),
        max_tokens=loaded.max_context,
        version=__version__,
        vocab_size=loaded.config.vocab_size if loaded.head is not None else 0,
    )


def public_name(model: str) -> str:
    """What peers are told that a model is called: no path of ours."""
    return Path(model).resolve().name if Path(model).is_dir() else model
