"""The baseline to measure up to on a CPU: llama.cpp, through the C API as llama-cpp-python binds it.

The weights are the same, exported to GGUF in the same dtype (gguf_export.py). The high-level binding copies all logits
to Python at every step, so the C calls are made here: what is compared is llama.cpp, at its best.
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from .contender import Absent, Workload
from .gguf_export import export_gguf, why_not_exported

NAME = "llama.cpp"
HOW_TO_GET = "not installed; pip install 'hopformer[bench]' (it is compiled: a C++ compiler and cmake are needed)"
BATCH_TOKENS = 512  # prompt tokens in one call, llama.cpp's own default for n_ubatch


class LlamaCppContender:
    """A llama.cpp context.

    Args:
        model, context: handles of llama.cpp.
        vocab_size: logits in a row.
    """

    name = NAME

    def __init__(self, model: Any, context: Any, vocab_size: int) -> None:
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
    if find_spec("llama_cpp") is None or find_spec("gguf") is None:
        return Absent(NAME, HOW_TO_GET)
    reason = why_not_exported(workload.config)
    if reason is not None:
        return Absent(NAME, reason)
    import llama_cpp

    path = workload.scratch / "model.gguf"
    export_gguf(workload.folder, workload.config, workload.dtype, path)
    llama_cpp.llama_log_set(_drop_log(), None)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    if not model:
        return Absent(NAME, "it cannot load the exported model")
    context = llama_cpp.llama_init_from_model(model, _context_params(workload))
    if not context:
        llama_cpp.llama_model_free(model)
        return Absent(NAME, "it cannot make a context for the exported model")
    return LlamaCppContender(model, context, workload.config.vocab_size)


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
