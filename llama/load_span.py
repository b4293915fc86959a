"""From a model folder to a SpanRunner: the layers that a node serves, without tokenizer, embedding and head."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..errors import UsageError
from .assemble import ModelPart, Placement, load_model
from .config import ModelConfig, load_config
from .kv_cache import DEFAULT_PAGE_SIZE, KVCache
from .load import (
    LoadedModel,
    LoadOptions,
    count_pages,
    find_device,
    find_dtype,
    find_kv_dtype,
    find_max_context,
    find_weight_bits,
    free_memory,
)
from .model import Head, Model, Span
from .pages import PagePool
from .runner import SpanRunner
from .sequences import SequenceTable

log = logging.getLogger(__name__)

MAX_CONTEXTS_SERVED = 64  # that a node's pages have room for; on a CPU only those that are used take memory


@dataclass(frozen=True, slots=True)
class LoadedSpan:
    """Layers that are ready to compute.

    Attributes:
        max_context: tokens that a sequence may have.
        dtype: of the activations.
        head: norm and head, where they were asked for.
    """

    config: ModelConfig
    runner: SpanRunner
    max_context: int
    dtype: torch.dtype
    head: Head | None = None


def find_layers(asked: tuple[int, int] | None, config: ModelConfig) -> tuple[int, int]:
    """The layers to serve: ``asked``, or all.

    Raises:
        UsageError: the model does not have them.
    """
    start, end = asked or (0, config.num_layers)
    if not 0 <= start < end <= config.num_layers:
        raise UsageError(f"--layers {start}:{end} is out of range; this model has the layers 0:{config.num_layers}")
    return start, end


def load_span(
    folder: Path,
    layers: tuple[int, int],
    options: LoadOptions,
    progress: Callable[[int, int], None] | None = None,
) -> LoadedSpan:
    """Load ``layers``, start and end, of the model in ``folder``; ``progress(done, total)`` counts them.

    Args:
        options: its template and cuda_graphs have no say here.

    Raises:
        ModelError: the folder cannot be used.
        DeviceError: this machine lacks the device or the memory.
        UsageError: an option means nothing.
    """
    config = load_config(folder)
    start, end = find_layers(layers, config)
    device = find_device(options.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # where Triton launches
    dtype = find_dtype(options.dtype, config, device)
    kv_dtype = find_kv_dtype(options.kv_dtype, dtype, device)
    max_context = find_max_context(options.max_context, config)
    placement = Placement(device, dtype, max_context, find_weight_bits(options.quantize))
    if options.head and end != config.num_layers:
        raise UsageError(f"--head is for a span that ends with the last layer, {config.num_layers}, and not with {end}")
    model = load_model(folder, config, ModelPart(start, end, embed=False, head=options.head), placement, progress)
    log.info("model=%s layers=%s:%s device=%s dtype=%s context=%s", folder, start, end, device, dtype, max_context)
    runner = _with_pages(model, kv_dtype, max_context, options.batch_invariant)
    return LoadedSpan(config, runner, max_context, dtype, model.head)


def share_span(loaded: LoadedModel, layers: tuple[int, int], options: LoadOptions) -> LoadedSpan:
    """``layers`` of a model that answers here, with pages of their own; weights that are here are not loaded again.

    Raises:
        As ``load_span``, whose arguments the others are.
    """
    start, end = find_layers(layers, loaded.config)
    span = next((one for one in loaded.spans if one.start <= start < end <= one.end), None)
    if span is None:
        return load_span(loaded.folder, layers, options)
    part = Span(start, span.layers[start - span.start : end - span.start], span.rotary)
    model = Model(loaded.config, loaded.dtype, loaded.device, None, part, None)
    kv_dtype = find_kv_dtype(options.kv_dtype, loaded.dtype, loaded.device)
    max_context = loaded.engine.max_context
    return LoadedSpan(loaded.config, _with_pages(model, kv_dtype, max_context), max_context, loaded.dtype)


def _with_pages(model: Model, kv_dtype: torch.dtype, max_context: int, batch_invariant: bool = False) -> SpanRunner:
    """A runner of the model's layers, and as much room for keys and values as a node gives."""
    shape = replace(model.kv_shape, dtype=kv_dtype)
    num_pages = count_pages(shape, max_context, DEFAULT_PAGE_SIZE, free_memory(model.device), MAX_CONTEXTS_SERVED)
    log.info("layers=%s:%s kv_dtype=%s pages=%s", model.span.start, model.span.end, kv_dtype, num_pages)
    cache = KVCache(shape, num_pages, DEFAULT_PAGE_SIZE, model.device)
    sequences = SequenceTable(PagePool(num_pages, DEFAULT_PAGE_SIZE))
    return SpanRunner(model.span, cache, sequences, model.device, batch_invariant)
