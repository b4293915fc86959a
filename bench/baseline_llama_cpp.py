"""The baseline to measure up to on a CPU: llama.cpp, through the C API as llama-cpp-python binds it.

The weights are the same, exported to GGUF in the same dtype (gguf_export.py) and, where ours are quantised, quantised
from there by llama.cpp itself to its own format of as many bits. The high-level binding copies all logits
to Python at every step, so the C calls are made here: what is compared is llama.cpp, at its best.
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .contender import Absent, Workload
from .gguf_export import export_gguf, why_not_exported
from .work import name_of_dtype

NAME = "llama.cpp"
HOW_TO_GET = "not installed; pip install 'hopformer[bench]' (it is compiled: a C++ compiler and cmake are needed)"
# Our --quantize -> its format: groups of 32 with a 16-bit scale. Q4_0 has the head in Q6_K.
QUANTIZED_AS = {"int8": "Q8_0", "int4": "Q4_0"}
BATCH_TOKENS = 512  # prompt tokens in one call, llama.cpp's own default for n_ubatch


class LlamaCppContender:
    """A llama.cpp context.

    Args:
        model, context: handles of llama.cpp.
        vocab_size: logits in a row.
        weights: their format, as in Contender.
    """

    name = NAME

    def __init__(self, model: Any, context: Any, vocab_size: int, weights: str) -> None:
        self.weights = weights
        self.version = f"llama-cpp-python {version('llama-cpp-python')}"
        self._model = model
        self._context = context
        self._vocab_size = vocab_size
        self._last = 0

    def reset(self) -> None:
        """See Contender."""
        import llama_cpp

        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)

    def prefill(self, token_ids: Sequence[int]) -> int:
        """See Contender."""
        for start in range(0, len(token_ids), BATCH_TOKENS):
            self._last = self._step(token_ids[start : start + BATCH_TOKENS])
        return self._last

    def decode(self, num_tokens: int) -> list[int]:
        """See Contender."""
        drawn = []
        for _ in range(num_tokens):
            self._last = self._step([self._last])
            drawn.append(self._last)
        return drawn

    def close(self) -> None:
        """See Contender."""
        import llama_cpp

        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def _step(self, token_ids: Sequence[int]) -> int:
        """Append the tokens to the sequence; returns the token drawn behind them."""
        import llama_cpp

        tokens = (llama_cpp.llama_token * len(token_ids))(*token_ids)
        code = llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(tokens, len(token_ids)))
        assert code == 0, f"llama_decode answered {code}"
        row = llama_cpp.llama_get_logits_ith(self._context, -1)  # waits until they are there
        return int(np.ctypeslib.as_array(row, shape=(self._vocab_size,)).argmax())


def open_llama_cpp(workload: Workload) -> LlamaCppContender | Absent:
    """Export the model and load it, or say what is missing."""
    if workload.device.type != "cpu":
        return Absent(NAME, "its build on PyPI computes on a CPU only")
    if find_spec("llama_cpp") is None or find_spec("gguf") is None:
        return Absent(NAME, HOW_TO_GET)
    reason = why_not_exported(workload.config)
    if reason is not None:
        return Absent(NAME, reason)
    import llama_cpp

    llama_cpp.llama_log_set(_drop_log(), None)
    llama_cpp.llama_backend_init()
    weights = QUANTIZED_AS.get(workload.quantize, name_of_dtype(workload.dtype))
    path = _export(workload)
    if path is None:
        return Absent(NAME, f"it cannot quantise the exported model to {weights}")
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    if not model:
        return Absent(NAME, "it cannot load the exported model")
    context = llama_cpp.llama_init_from_model(model, _context_params(workload))
    if not context:
        llama_cpp.llama_model_free(model)
        return Absent(NAME, "it cannot make a context for the exported model")
    return LlamaCppContender(model, context, workload.config.vocab_size, weights)


def _export(workload: Workload) -> Path | None:
    """The model as a GGUF file, quantised if the workload says so; None if llama.cpp refuses that."""
    import llama_cpp

    plain, quantized = workload.scratch / "model.gguf", workload.scratch / "model-quantized.gguf"
    export_gguf(workload.folder, workload.config, workload.dtype, plain)
    if workload.quantize not in QUANTIZED_AS:
        return plain
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{QUANTIZED_AS[workload.quantize]}")
    params.nthread = workload.num_threads
    code = llama_cpp.llama_model_quantize(str(plain).encode(), str(quantized).encode(), params)
    plain.unlink()
    return None if code else quantized


@cache
def _drop_log() -> Callable[..., None]:
    """A C callback that drops what llama.cpp logs, pages of it a model. Cached: llama.cpp keeps the pointer."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda level, text, user_data: None)


def _context_params(workload: Workload) -> Any:
    """Its defaults, with our threads and context; F32 keys and values for F32 weights, as everyone else has them."""
    import llama_cpp

    params = llama_cpp.llama_context_default_params()
    params.n_ctx = workload.max_context
    params.n_batch = params.n_ubatch = BATCH_TOKENS
    params.n_threads = params.n_threads_batch = workload.num_threads
    if workload.dtype == torch.float32:
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
    return params
