"""Cases of projections with the few rows of a decode step: plain, fused with what stands around them, quantised.

bytes        the weight once, with its scales; rows in and out
operations   2 for each weight and row
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from ..kernels import pack_linear
from ..kernels.backend import dtype_name, next_power_of_2
from ..kernels.gemv import linear_add, norm_linear, norm_swiglu
from ..kernels.quant_linear import quantize_linear
from . import kernel_baselines
from .kernel_baselines import eager_and_compiled
from .kernel_case import Built, Implementation, KernelCase, LayerShape, Setting, Tuning, Work
from .random_model import WEIGHT_STD

GEMV_ROWS = (1, 4)
# Rounding a normal weight to 15 steps of a group of 128's range, to 127 of a row's largest: relative errors of the
# product around 0.10 and 0.01
INT4_TOLERANCE, INT8_TOLERANCE = 0.2, 0.04
_GPU_GROUP_SIZE, _CPU_GROUP_SIZE = 128, 32  # of 4 bits, as quant_linear.py chooses them


def projection_sizes(layer: LayerShape) -> dict[str, tuple[int, int]]:
    """(out, in) features of a layer's projections, those of one input as one."""
    attended = layer.num_heads * layer.head_dim
    return {
        "qkv": (attended + 2 * layer.num_kv_heads * layer.head_dim, layer.hidden_size),
        "o": (layer.hidden_size, attended),
        "gate_up": (2 * layer.intermediate_size, layer.hidden_size),
        "down": (layer.hidden_size, layer.intermediate_size),
    }


def linear_cases(setting: Setting) -> Iterator[KernelCase]:
    """Every projection for one row, the largest for more."""
    sizes = projection_sizes(setting.layer)
    for rows in setting.sizes.matmul_rows:
        for name in sizes if rows == 1 else ("gate_up",):
            yield _case(setting, "linear", f"{name}-{rows}", sizes[name], rows, partial(_build_linear, setting))


def gemv_cases(setting: Setting) -> Iterator[KernelCase]:
    """Norm with projection, with projection and SwiGLU; projection with residual."""
    sizes = projection_sizes(setting.layer)
    for rows in GEMV_ROWS:
        build = partial(_build_norm_linear, setting)
        yield _case(setting, "gemv", f"norm-qkv-{rows}", sizes["qkv"], rows, build)
        build = partial(_build_norm_swiglu, setting)
        yield _case(setting, "gemv", f"norm-swiglu-{rows}", sizes["gate_up"], rows, build)
        build = partial(_build_linear_add, setting)
        yield _case(setting, "gemv", f"down-add-{rows}", sizes["down"], rows, build)


def quant_cases(setting: Setting) -> Iterator[KernelCase]:
    """The largest projection in 8 and in 4 bits."""
    size = projection_sizes(setting.layer)["gate_up"]
    for bits in (8, 4):
        for rows in setting.sizes.matmul_rows:
            name, build = f"int{bits}-gate_up-{rows}", partial(_build_quant, setting, bits)
            yield _case(setting, "quant_matmul", name, size, rows, build, bits)


def _case(
    setting: Setting,
    kernel: str,
    name: str,
    size: tuple[int, int],
    rows: int,
    build: Callable[..., Built],
    bits: int | None = None,
) -> KernelCase:
    features, width = size
    itemsize = setting.dtype.itemsize
    weight_bytes, dtype = features * width * itemsize, setting.dtype_name
    if bits is not None:
        weight_bytes, dtype = _quantised_bytes(setting, size, bits), f"{dtype}, int{bits} weight"
    return KernelCase(
        kernel,
        name,
        setting.model,
        f"{rows} x {width} by {width} x {features}",
        dtype,
        Work(weight_bytes + rows * (features + width) * itemsize, 2 * rows * features * width),
        partial(build, size, rows),
        tuning=_tuning(setting, kernel, rows, bits),
    )


def _tuning(setting: Setting, kernel: str, rows: int, bits: int | None) -> Tuning | None:
    """What the launch configurations go by: the rows, of quantised products those of a tile."""
    dtype = ("dtype", dtype_name(setting.dtype))
    if kernel == "gemv":
        return Tuning("gemv", (dtype, ("rows", rows)))
    if bits is None:
        return None
    block_m = 16 if setting.dtype == torch.float32 else min(64, max(16, next_power_of_2(rows)))
    return Tuning(f"quant_matmul_int{bits}", (dtype, ("block_m", block_m)))


def _quantised_bytes(setting: Setting, size: tuple[int, int], bits: int) -> int:
    """Codes and scales: for 8 bits a scale a row, f32 on a CPU; for 4 bits two 16-bit numbers a group."""
    features, width = size
    if bits == 8:
        return features * (width + (setting.dtype.itemsize if setting.is_gpu else 4))
    group_size = _GPU_GROUP_SIZE if setting.is_gpu else _CPU_GROUP_SIZE
    return features * width // 2 + 2 * 2 * features * width // group_size


def _tensors(setting: Setting, size: tuple[int, int], rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(x [rows, in], weight [out, in])."""
    return setting.random(rows, size[1]), setting.random(*size, std=WEIGHT_STD, seed=1)


def _build_linear(setting: Setting, size: tuple[int, int], rows: int) -> Built:
    x, weight = _tensors(setting, size, rows)
    return Built(Implementation("hopformer", partial(pack_linear(weight), x)), lambda: (_plain(setting, x, weight),))


def _build_norm_linear(setting: Setting, size: tuple[int, int], rows: int) -> Built:
    x, weight = _tensors(setting, size, rows)
    arguments = (x, setting.random(size[1], seed=2), setting.layer.rms_norm_eps, weight)
    return _fused(norm_linear, kernel_baselines.norm_linear, arguments)


def _build_norm_swiglu(setting: Setting, size: tuple[int, int], rows: int) -> Built:
    x, weight = _tensors(setting, size, rows)
    arguments = (x, setting.random(size[1], seed=2), setting.layer.rms_norm_eps, weight)
    return _fused(norm_swiglu, kernel_baselines.norm_swiglu, arguments)


def _build_linear_add(setting: Setting, size: tuple[int, int], rows: int) -> Built:
    x, weight = _tensors(setting, size, rows)
    residual = setting.random(rows, size[0], seed=2)
    return _fused(linear_add, _add_linear, (x, weight, residual))


def _add_linear(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """x [T, E], weight [N, E], residual [T, N] -> [T, N]."""
    return torch.addmm(residual, x, weight.t())


def _fused(ours: Callable[..., torch.Tensor], theirs: Callable[..., torch.Tensor], arguments: tuple[Any, ...]) -> Built:
    return Built(
        Implementation("hopformer", partial(ours, *arguments)), partial(eager_and_compiled, theirs, *arguments)
    )


def _build_quant(setting: Setting, bits: int, size: tuple[int, int], rows: int) -> Built:
    x, weight = _tensors(setting, size, rows)
    quantised = quantize_linear(weight, None, bits)
    tolerance = INT8_TOLERANCE if bits == 8 else INT4_TOLERANCE

    def make_baselines() -> list[Implementation]:
        plain = _plain(setting, x, weight, tolerance)
        if setting.is_gpu:
            return [plain]
        return [plain, Implementation("our linear", partial(pack_linear(weight), x), tolerance=tolerance)]

    return Built(Implementation("hopformer", partial(quantised, x)), make_baselines)


def _plain(setting: Setting, x: torch.Tensor, weight: torch.Tensor, tolerance: float = 0.02) -> Implementation:
    """The product with the weight as it is: cuBLAS on a GPU, oneDNN with an unpacked weight on a CPU."""
    name = "cuBLAS" if setting.is_gpu and torch.version.hip is None else "F.linear"
    return Implementation(name, partial(F.linear, x, weight), tolerance=tolerance)
