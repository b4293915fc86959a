"""From a model folder to something that answers: config, tokenizer, template, weights, memory and engine together."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from ..errors import DeviceError, UsageError
from .assemble import ModelPart, Placement, load_model
from .config import GenerationDefaults, ModelConfig, load_config, load_generation_defaults
from .cuda_graphs import GraphPool
from .decode_step import decode_batch_sizes
from .engine import Engine
from .kv_cache import DEFAULT_PAGE_SIZE, KVShape
from .model import Span
from .runner import LocalRunner
from .scheduler import DEFAULT_MAX_SEQUENCES
from .templates import ChatTemplate, load_chat_template
from .tokenizer import Tokenizer

log = logging.getLogger(__name__)

DEFAULT_MAX_CONTEXT = 8192  # when nothing is asked for: the model's own limit or this, whichever is less
MAX_CONTEXTS_IN_POOL = 8  # more pages than this many full contexts are never used by one machine's chat
MEMORY_SHARE = 0.8  # of what is free once the weights are in place; the rest is for activations and everyone else
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_WEIGHT_BITS = {"none": None, "int8": 8, "int4": 4}
FP8_CAPABILITY = (8, 9)  # of an NVIDIA GPU: the first that converts e4m3
_FP8_DTYPES_OF_AMD = {"gfx942": torch.float8_e4m3fnuz, "gfx950": torch.float8_e4m3fn}  # by architecture


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What a user may choose about a model that is loaded here.

    Attributes:
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "auto" (the checkpoint's), "bfloat16", "float16" or "float32".
        max_context: tokens that a prompt and its answer may have; None for the model's limit, at most 8192.
        template: name of a built-in chat template; None for the model's own.
        kv_dtype: of keys and values: "auto" (the model's dtype), "int8" or "fp8".
        quantize: of the projections: "none", "int8" or "int4"; they are rounded while they are read.
        cuda_graphs: whether decode steps are captured in CUDA graphs; changes nothing on a CPU.
        batch_invariant: see SpanRunner; of a span that is served.
        head: whether a span that is served has norm and head with it.
    """

    device: str = "auto"
    dtype: str = "auto"
    max_context: int | None = None
    template: str | None = None
    kv_dtype: str = "auto"
    cuda_graphs: bool = True
    quantize: str = "none"
    batch_invariant: bool = False
    head: bool = False


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to answer; ``quantize`` as in LoadOptions, ``spans`` the layers that are here."""

    folder: Path
    config: ModelConfig
    defaults: GenerationDefaults
    tokenizer: Tokenizer
    template: ChatTemplate
    engine: Engine
    device: torch.device
    dtype: torch.dtype
    quantize: str = "none"
    spans: tuple[Span, ...] = ()


def load(folder: Path, options: LoadOptions, progress: Callable[[int, int], None] | None = None) -> LoadedModel:
    """Load the model in ``folder``, a Hugging Face layout; ``progress(done, total)`` counts its parts and CUDA graphs.

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
    if device.type == "cuda":
        torch.cuda.set_device(device)  # where Triton launches
    dtype = find_dtype(options.dtype, config, device)
    kv_dtype = find_kv_dtype(options.kv_dtype, dtype, device)
    max_context = find_max_context(options.max_context, config)
    placement = Placement(device, dtype, max_context, find_weight_bits(options.quantize))
    num_graphs = len(decode_batch_sizes(DEFAULT_MAX_SEQUENCES)) if options.cuda_graphs and device.type == "cuda" else 0
    model = load_model(folder, config, ModelPart.whole(config), placement, _stage(progress, 0, num_graphs))
    kv_shape = replace(model.kv_shape, dtype=kv_dtype)
    num_pages = count_pages(kv_shape, max_context, DEFAULT_PAGE_SIZE, free_memory(device))
    log.info("model=%s device=%s dtype=%s", folder, device, dtype)
    log.info("kv_dtype=%s context=%s pages=%s", kv_dtype, max_context, num_pages)
    runner = LocalRunner(model, num_pages, DEFAULT_PAGE_SIZE, max_context, kv_dtype)
    if num_graphs:
        num_parts = config.num_layers + 2  # the embedding and the head
        runner.prepare_decode(DEFAULT_MAX_SEQUENCES, GraphPool(device).capture, _stage(progress, num_parts, 0))
    engine = Engine(runner, tokenizer.decode, byte_tokens=tokenizer.byte_tokens)
    own = model.span
    return LoadedModel(folder, config, defaults, tokenizer, template, engine, device, dtype, options.quantize, (own,))


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


def find_weight_bits(name: str) -> int | None:
    """How many bits projections get; None leaves them as they are.

    Raises:
        UsageError: the name means nothing.
    """
    if name not in _WEIGHT_BITS:
        raise UsageError(f"--quantize {name} is unknown; use none, int8 or int4")
    return _WEIGHT_BITS[name]


def find_kv_dtype(name: str, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of keys and values that ``name`` stands for; "auto" is the model's ``dtype``.

    Raises:
        DeviceError: the device has no instructions for it.
        UsageError: the name means nothing.
    """
    if name not in ("auto", "int8", "fp8"):
        raise UsageError(f"--kv-dtype {name} is unknown; use auto, int8 or fp8")
    if name == "fp8":
        return _fp8_dtype(device)
    return torch.int8 if name == "int8" else dtype


def _fp8_dtype(device: torch.device) -> torch.dtype:
    """The e4m3 that ``device`` converts: AMD's first has a bias of its own and no negative zero."""
    if device.type == "cpu":
        return torch.float8_e4m3fn
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        architecture = properties.gcnArchName.partition(":")[0]
        if architecture in _FP8_DTYPES_OF_AMD:
            return _FP8_DTYPES_OF_AMD[architecture]
        raise DeviceError(f"--kv-dtype fp8 needs {' or '.join(_FP8_DTYPES_OF_AMD)}, this is {architecture}; use int8")
    found = (properties.major, properties.minor)
    if found < FP8_CAPABILITY:
        raise DeviceError(
            "--kv-dtype fp8 needs a GPU of compute capability {}.{}, this one has {}.{}; use int8".format(
                *FP8_CAPABILITY, *found
            )
        )
    return torch.float8_e4m3fn


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on ``device``."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def count_pages(
    shape: KVShape, max_context: int, page_size: int, free_bytes: int, max_contexts: int = MAX_CONTEXTS_IN_POOL
) -> int:
    """How many pages to reserve: as many contexts as memory allows, from one to ``max_contexts``.

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
    return min(affordable, one_context * max_contexts)


def _stage(
    progress: Callable[[int, int], None] | None, num_before: int, num_after: int
) -> Callable[[int, int], None] | None:
    """``progress`` for one stage of several, with so many parts in those before and behind it."""
    if progress is None:
        return None
    return lambda done, total: progress(num_before + done, num_before + total + num_after)


def find_max_context(asked: int | None, config: ModelConfig) -> int:
    """Tokens that a sequence may have: ``asked``, or the model's limit, at most DEFAULT_MAX_CONTEXT.

    Raises:
        UsageError: the model does not take as many.
    """
    if asked is None:
        return min(config.max_position_embeddings, DEFAULT_MAX_CONTEXT)
    if not 2 <= asked <= config.max_position_embeddings:
        limit = config.max_position_embeddings
        raise UsageError(f"--max-context {asked} is out of range; this model takes 2 to {limit} tokens")
    return asked
