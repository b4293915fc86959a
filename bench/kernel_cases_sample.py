"""Cases of drawing the next tokens: greedy, from the whole distribution, and from the likeliest tokens.

bytes        the logits once, f32
operations   3 a logit, for temperature, exponential and sum; greedy 1, a comparison
"""

from collections.abc import Iterator
from functools import partial

import torch

from ..kernels import sample
from .kernel_baselines import draw, eager_and_compiled
from .kernel_case import Built, Implementation, KernelCase, Setting, Tuning, Work

_KINDS = {"greedy": (0.0, 0, 1.0), "temperature": (1.0, 0, 1.0), "top-p": (0.8, 0, 0.95), "top-k-top-p": (0.7, 50, 0.9)}


def sample_cases(setting: Setting) -> Iterator[KernelCase]:
    """One draw for each sequence of a batch, all with the same parameters."""
    rows, vocab = setting.sizes.sample_rows, setting.layer.vocab_size
    for name, (temperature, top_k, top_p) in _KINDS.items():
        parts = [f"temperature {temperature:g}"] + [f"top-k {top_k}"] * bool(top_k) + [f"top-p {top_p}"] * (top_p < 1)
        yield KernelCase(
            "sample",
            f"B{rows}-{name}",
            setting.model,
            f"{rows} of {vocab}; {', '.join(parts)}",
            "float32",
            Work(4 * rows * vocab, (3 if temperature else 1) * rows * vocab),
            partial(_build, setting, temperature, top_k, top_p),
            tuning=Tuning("sample", ()),
        )


def _build(setting: Setting, temperature: float, top_k: int, top_p: float) -> Built:
    rows, device = setting.sizes.sample_rows, setting.device
    # A spread of 3 leaves top-p 0.95 some hundreds of tokens, as a language model's logits do at an open place
    logits = setting.random(rows, setting.layer.vocab_size, std=3.0).float()
    run = partial(
        sample,
        logits,
        temperature=torch.full((rows,), temperature, device=device),
        top_k=torch.full((rows,), top_k, device=device),
        top_p=torch.full((rows,), top_p, device=device),
        min_p=torch.zeros(rows, device=device),
        uniform=torch.rand(rows, device=device),
    )
    # Not compared: a draw has another source of numbers
    baselines = partial(eager_and_compiled, draw, logits, temperature, top_k, top_p, tolerance=None)
    return Built(Implementation("hopformer", run), baselines)
