"""Cases of what works row by row: RoPE with the write of K and V, residual add with RMSNorm, SwiGLU.

bytes        each input and output once
operations   RoPE 3 an element of q and k; norm 4 an element: add, square, two products; SwiGLU 5 a result
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from ..kernels import add_rms_norm, rope_and_write_kv, swiglu
from ..llama.kv_cache import DEFAULT_PAGE_SIZE, KVCache, KVPages, KVShape
from .contender import Absent
from .kernel_baselines import add_norm, eager_and_compiled, rope_and_write, silu_mul
from .kernel_case import Built, Implementation, KernelCase, Setting, Work


def rope_cases(setting: Setting) -> Iterator[KernelCase]:
    """A prefill step's queries and keys rotated, its keys and values written to scattered pages."""
    layer, tokens = setting.layer, setting.sizes.step_tokens
    rotated = (layer.num_heads + layer.num_kv_heads) * layer.head_dim
    width = rotated + layer.num_kv_heads * layer.head_dim
    rows_bytes = (width + layer.num_heads * layer.head_dim) * setting.dtype.itemsize  # qkv in, q out
    table_bytes = layer.head_dim * 4 + 2 * 8  # a row of cos and of sin in f32, position and slot in int64
    for kv_dtype in (setting.dtype, torch.int8):
        is_narrow = kv_dtype != setting.dtype
        shape = KVShape(1, layer.num_kv_heads, layer.head_dim, kv_dtype)
        yield KernelCase(
            "rope_kv_write",
            f"T{tokens}{'-int8' if is_narrow else ''}",
            setting.model,
            f"{tokens} tokens; {layer.heads}",
            setting.dtype_name + (", int8 KV" if is_narrow else ""),
            Work(tokens * (rows_bytes + shape.bytes_per_token + table_bytes), 3 * tokens * rotated),
            partial(_build_rope, setting, shape),
        )


def norm_cases(setting: Setting) -> Iterator[KernelCase]:
    """A prefill step's residual addition and norm."""
    tokens, size = setting.sizes.step_tokens, setting.layer.hidden_size
    yield KernelCase(
        "rms_norm",
        f"T{tokens}",
        setting.model,
        f"{tokens} tokens of {size}, residual added",
        setting.dtype_name,
        Work((4 * tokens + 1) * size * setting.dtype.itemsize, 4 * tokens * size),
        partial(_build_norm, setting),
    )


def swiglu_cases(setting: Setting) -> Iterator[KernelCase]:
    """A prefill step's SwiGLU."""
    tokens, size = setting.sizes.step_tokens, setting.layer.intermediate_size
    yield KernelCase(
        "swiglu",
        f"T{tokens}",
        setting.model,
        f"{tokens} tokens of 2 x {size}",
        setting.dtype_name,
        Work(3 * tokens * size * setting.dtype.itemsize, 5 * tokens * size),
        partial(_build_swiglu, setting),
    )


def _build_rope(setting: Setting, shape: KVShape) -> Built:
    layer, tokens, device = setting.layer, setting.sizes.step_tokens, setting.device
    qkv = setting.random(tokens, (layer.num_heads + 2 * layer.num_kv_heads) * layer.head_dim)
    angles = torch.rand(tokens, layer.head_dim // 2, device=device)
    cos, sin = angles.cos(), angles.sin()
    positions = torch.arange(tokens, device=device)
    num_pages = -(-tokens // DEFAULT_PAGE_SIZE)
    wide = KVShape(1, layer.num_kv_heads, layer.head_dim, setting.dtype)
    ours, theirs = (KVCache(one, num_pages, DEFAULT_PAGE_SIZE, device).layers[0] for one in (shape, wide))
    pages = torch.randperm(num_pages, device=device).repeat_interleave(DEFAULT_PAGE_SIZE)[:tokens]
    offsets = positions % DEFAULT_PAGE_SIZE
    slots = pages * DEFAULT_PAGE_SIZE + offsets

    def write(to: KVPages) -> torch.Tensor:
        return rope_and_write_kv(qkv, cos, sin, positions, slots, to.k_pages, to.v_pages, to.k_scales, to.v_scales)

    def make_baselines() -> Sequence[Implementation | Absent]:
        if shape != wide:
            return [Implementation(f"our {setting.dtype_name} KV", partial(write, theirs))]
        return eager_and_compiled(rope_and_write, qkv, cos, sin, pages, offsets, theirs.k_pages, theirs.v_pages)

    return Built(Implementation("hopformer", partial(write, ours)), make_baselines)


def _build_norm(setting: Setting) -> Built:
    tokens, size, eps = setting.sizes.step_tokens, setting.layer.hidden_size, setting.layer.rms_norm_eps
    x, residual = setting.random(tokens, size), setting.random(tokens, size, seed=1)
    weight = setting.random(size, seed=2)
    ours = Implementation("hopformer", partial(add_rms_norm, x, weight, eps, residual), _first)
    return Built(ours, partial(eager_and_compiled, add_norm, x, residual, weight, eps, as_ours=_first))


def _build_swiglu(setting: Setting) -> Built:
    gate_up = setting.random(setting.sizes.step_tokens, 2 * setting.layer.intermediate_size)
    ours = Implementation("hopformer", partial(swiglu, gate_up))
    return Built(ours, partial(eager_and_compiled, silu_mul, gate_up))


def _first(result: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The norm, without the sum."""
    return result[0]
