"""The kernels that `hopformer bench kernels` measures, by name, and the cases of each."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from ..errors import UsageError
from .kernel_case import CPU_SIZES, GPU_SIZES, CaseSizes, KernelCase, LayerShape, Setting
from .kernel_cases_attention import context_cases, decode_cases, prefill_cases
from .kernel_cases_elementwise import norm_cases, rope_cases, swiglu_cases
from .kernel_cases_matmul import gemv_cases, linear_cases, quant_cases
from .kernel_cases_sample import sample_cases

KERNELS: Mapping[str, Callable[[Setting], Iterator[KernelCase]]] = {
    "decode_attention": decode_cases,
    "prefill_attention": prefill_cases,
    "rope_kv_write": rope_cases,
    "rms_norm": norm_cases,
    "swiglu": swiglu_cases,
    "linear": linear_cases,
    "gemv": gemv_cases,
    "quant_matmul": quant_cases,
    "sample": sample_cases,
}
# A CPU's steps use packed projections instead; its gemv is a specification, measured when it is asked for by name.
GPU_ONLY = ("gemv",)


def default_model(device: torch.device) -> str:
    """The model whose shapes suit a device."""
    return "llama-3.1-8b" if device.type == "cuda" else "tinyllama"


def default_sizes(device: torch.device) -> CaseSizes:
    """What a device measures in a few minutes."""
    return GPU_SIZES if device.type == "cuda" else CPU_SIZES


def default_kernels(device: torch.device) -> tuple[str, ...]:
    """Those that the engine uses on a device."""
    return tuple(name for name in KERNELS if device.type == "cuda" or name not in GPU_ONLY)


def make_settings(
    models: Sequence[str], device: torch.device, dtype: torch.dtype, sizes: CaseSizes | None = None
) -> list[Setting]:
    """One for each of ``models``, or for the device's default where there is none.

    Raises:
        UsageError: there is no shape of that name.
    """
    chosen = sizes or default_sizes(device)
    return [
        Setting(model, LayerShape.of(model), dtype, device, chosen) for model in (models or [default_model(device)])
    ]


def make_cases(settings: Sequence[Setting], kernels: Sequence[str], with_contexts: bool = False) -> list[KernelCase]:
    """Kernel after kernel for each setting.

    Args:
        kernels: names of KERNELS; none for the device's own.
        with_contexts: also those of the decode-by-context curve, whichever kernels are named.

    Raises:
        UsageError: an unknown name.
    """
    unknown = next((name for name in kernels if name not in KERNELS), None)
    if unknown is not None:
        raise UsageError(f"{unknown!r} is no kernel that is benched; name some of {', '.join(KERNELS)}")
    cases: list[KernelCase] = []
    for setting in settings:
        for name in kernels or default_kernels(setting.device):
            cases.extend(KERNELS[name](setting))
        if with_contexts:
            cases.extend(context_cases(setting))
    return cases
