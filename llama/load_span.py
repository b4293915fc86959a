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
    LoadOptions,
    count_pages,
    find_device,
    find_dtype,
    find_kv_dtype,
    find_max_context,
    find_weight_bits,
    free_memory,
)
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
    """

    config: ModelConfig
    runner: SpanRunner
    max_context: int
    dtype: torch.dtype


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
    model = load_model(folder, config, ModelPart(start, end, embed=False, head=False), placement, progress)
    shape = replace(model.kv_shape, dtype=kv_dtype)
    num_pages = count_pages(shape, max_context, DEFAULT_PAGE_SIZE, free_memory(device), MAX_CONTEXTS_SERVED)
    log.info("model=%s layers=%s:%s device=%s dtype=%s context=%s", folder, start, end, device, dtype, max_context)
    log.info("model=%s kv_dtype=%s pages=%s", folder, kv_dtype, num_pages)
    cache = KVCache(shape, num_pages, DEFAULT_PAGE_SIZE, device)
    sequences = SequenceTable(PagePool(num_pages, DEFAULT_PAGE_SIZE))
    runner = SpanRunner(model.span, cache, sequences, device, options.batch_invariant)
    return LoadedSpan(config, runner, max_context, dtype)
