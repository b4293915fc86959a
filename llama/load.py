"""From a model folder to something that answers: config, tokenizer, template, weights, memory and engine together."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from ..errors import DeviceError, UsageError
from .assemble import ModelPart, Placement, load_model
from .config import GenerationDefaults, ModelConfig, load_config, load_generation_defaults
from .engine import Engine
from .kv_cache import DEFAULT_PAGE_SIZE, KVShape
from .runner import LocalRunner
from .templates import ChatTemplate, load_chat_template
from .tokenizer import Tokenizer

log = logging.getLogger(__name__)

DEFAULT_MAX_CONTEXT = 8192  # when nothing is asked for: the model's own limit or this, whichever is less
MAX_CONTEXTS_IN_POOL = 8  # more pages than this many full contexts are never used by one machine's chat
MEMORY_SHARE = 0.8  # of what is free once the weights are in place; the rest is for activations and everyone else
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What a user may choose about a model that is loaded here.

    Attributes:
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "auto" (the checkpoint's), "bfloat16", "float16" or "float32".
        max_context: tokens that a prompt and its answer may have; None for the model's limit, at most 8192.
        template: name of a built-in chat template; None for the model's own.
    """

    device: str = "auto"
    dtype: str = "auto"
    max_context: int | None = None
    template: str | None = None


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to answer."""

    folder: Path
    config: ModelConfig
    defaults: GenerationDefaults
    tokenizer: Tokenizer
    template: ChatTemplate
    engine: Engine
    device: torch.device
    dtype: torch.dtype


def load(folder: Path, options: LoadOptions, progress: Callable[[int, int], None] | None = None) -> LoadedModel:
    """Load the model in ``folder``, a Hugging Face layout; ``progress(done, total)`` counts its parts.

    Raises:
        ModelError: the folder cannot be used.
        DeviceError: this machine lacks the device or the memory.
        UsageError: an option means nothing.
    """
    config = load_config(folder)
    defaults = load_generation_defaults(folder)
    tokenizer = Tokenizer.load(folder)
    template = load_chat_template(folder, tokenizer, options.template)
    device = find_device(options.device)
    dtype = find_dtype(options.dtype, config, device)
    max_context = _max_context(options.max_context, config)
    placement = Placement(device, dtype, max_context)
    model = load_model(folder, config, ModelPart.whole(config), placement, progress)
    num_pages = count_pages(model.kv_shape, max_context, DEFAULT_PAGE_SIZE, free_memory(device))
    log.info("model=%s device=%s dtype=%s context=%s pages=%s", folder, device, dtype, max_context, num_pages)
    runner = LocalRunner(model, num_pages, DEFAULT_PAGE_SIZE, max_context)
    engine = Engine(runner, tokenizer.decode, byte_tokens=tokenizer.byte_tokens)
    return LoadedModel(folder, config, defaults, tokenizer, template, engine, device, dtype)


def find_device(name: str) -> torch.device:
    """The device that ``name`` stands for; "auto" is the first GPU or else the CPU.

    Raises:
        DeviceError: it is not there.
        UsageError: the name means nothing.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = re.fullmatch(r"cpu|cuda(?::(\d{1,4}))?", name, re.ASCII)
    if found is None:
        raise UsageError(f"--device {name} is unknown; use auto, cpu, cuda or cuda:N")
    if name != "cpu" and int(found[1] or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"--device {name} is not there: torch sees {torch.cuda.device_count()} GPUs; use --device cpu"
        )
    return torch.device(name)


def find_dtype(name: str, config: ModelConfig, device: torch.device) -> torch.dtype:
    """The dtype that ``name`` stands for; "auto" is the checkpoint's, but float32 for float16 weights on a CPU.

    Raises:
        UsageError: the name means nothing.
    """
    if name == "auto":
        dtype = _DTYPES[config.dtype]
        return torch.float32 if dtype == torch.float16 and device.type == "cpu" else dtype
    if name not in _DTYPES:
        raise UsageError(f"--dtype {name} is unknown; use auto, bfloat16, float16 or float32")
    return _DTYPES[name]


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on ``device``."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def count_pages(shape: KVShape, max_context: int, page_size: int, free_bytes: int) -> int:
    """How many pages to reserve: as many contexts as memory and MAX_CONTEXTS_IN_POOL allow, never less than one.

    Raises:
        DeviceError: not even one context fits.
    """
    page_bytes = shape.bytes_per_token * page_size
    one_context = -(-max_context // page_size)
    affordable = int(free_bytes * MEMORY_SHARE) // page_bytes
    if affordable < one_context:
        fitting = (
            f"pass --max-context {affordable * page_size}" if affordable else "free memory, or take a smaller model"
        )
        raise DeviceError(
            f"a context of {max_context} tokens needs {one_context * page_bytes / 2**30:.2f} GiB for keys and values, "
            f"{free_bytes * MEMORY_SHARE / 2**30:.2f} GiB can be used; {fitting}"
        )
    return min(affordable, one_context * MAX_CONTEXTS_IN_POOL)


def _max_context(asked: int | None, config: ModelConfig) -> int:
    if asked is None:
        return min(config.max_position_embeddings, DEFAULT_MAX_CONTEXT)
    if not 2 <= asked <= config.max_position_embeddings:
        limit = config.max_position_embeddings
        raise UsageError(f"--max-context {asked} is out of range; this model takes 2 to {limit} tokens")
    return asked
