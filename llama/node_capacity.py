"""How many layers of a model a machine has room for, and how fast it runs one: before they are loaded, and after.

For a node that chooses its layers itself. What it should choose is not decided here.
"""

import statistics
import time
from collections.abc import Callable

import torch

from .batch import Chunk
from .config import ModelConfig
from .layer_memory import layer_memory
from .load import LoadOptions, find_device, find_dtype, find_kv_dtype, find_max_context, find_weight_bits, free_memory
from .runner import SpanRunner
from .weights import layer_tensors

_NUM_STEPS = 16  # that are timed; a step of a small span takes less than the clock's noise
_NUM_WARM_UP = 3


def layers_that_fit(config: ModelConfig, options: LoadOptions, memory_bytes: int | None = None) -> int:
    """How many layers of a model fit into ``memory_bytes``, or into what is free here; at most all.

    Raises:
        DeviceError: this machine lacks the device.
        UsageError: an option means nothing.
    """
    device = find_device(options.device)
    dtype = find_dtype(options.dtype, config, device)
    kv_dtype = find_kv_dtype(options.kv_dtype, dtype, device)
    memory = layer_memory(config, dtype, kv_dtype, find_weight_bits(options.quantize))
    num_bytes = free_memory(device) if memory_bytes is None else memory_bytes
    return min(memory.num_fitting(num_bytes, find_max_context(options.max_context, config)), config.num_layers)


@torch.inference_mode()
def estimate_layer_s(config: ModelConfig, options: LoadOptions) -> float:
    """Seconds that a decode step takes in one layer: what its products take with random weights, which are most of it.

    Raises:
        DeviceError: this machine lacks the device, or the memory for one layer.
    """
    device = find_device(options.device)
    dtype = find_dtype(options.dtype, config, device)
    shapes = [shape for _, shape in layer_tensors(config, 0).values() if len(shape) == 2]
    weights = [torch.empty(shape, dtype=dtype, device=device).normal_(std=0.02) for shape in shapes]
    rows = {shape[1]: torch.ones(1, shape[1], dtype=dtype, device=device) for shape in shapes}

    def step() -> None:
        for weight in weights:
            torch.nn.functional.linear(rows[weight.shape[1]], weight)

    return _median_s(step, device)


@torch.inference_mode()
def measure_layer_s(runner: SpanRunner) -> float:
    """Seconds that a decode step takes in one of the layers that are loaded; no sequence is left behind."""
    span, sequences = runner.span, runner.sequences
    norm = span.layers[0].weights.input_norm  # [E]
    hidden = torch.ones(1, norm.shape[0], dtype=norm.dtype, device=runner.device)
    sequence_id = -1  # no caller's: those are numbered from 0
    sequences.open(sequence_id)

    def step() -> None:
        position = sequences.length(sequence_id)
        sequences.reserve(sequence_id, position + 1)
        runner.forward([Chunk(sequence_id, position, 1)], hidden)
        sequences.append(sequence_id, 1)

    try:
        return _median_s(step, runner.device) / (span.end - span.start)
    finally:
        sequences.release(sequence_id)


def _median_s(step: Callable[[], None], device: torch.device) -> float:
    times = []
    for index in range(_NUM_WARM_UP + _NUM_STEPS):
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if index >= _NUM_WARM_UP:
            times.append(time.perf_counter() - began)
    return statistics.median(times)
