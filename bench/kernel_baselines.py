"""What our kernels are measured against, where it is not attention: the formulas in plain PyTorch, and compiled.

A formula is written the way a model's author would, with PyTorch's own fused functions where there are some. Ours and
torch.compile may do better by keeping intermediate results out of memory.
"""

import shutil
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from .contender import Absent
from .kernel_case import Implementation

COMPILED = "torch.compile"


def attempt(name: str, make: Callable[[], Implementation]) -> Implementation | Absent:
    """What ``make`` gives, run once; or why it cannot run here: no such backend, not enough memory, no compiler."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns at length of each backend that it cannot use
        try:
            made = make()
            made.run()
        except (RuntimeError, NotImplementedError, AssertionError, ValueError) as error:
            return Absent(name, _first_line(error))
    return made


def eager_and_compiled(
    function: Callable[..., Any],
    *arguments: Any,
    name: str = "PyTorch",
    as_ours: Callable[[Any], torch.Tensor] = lambda result: result,
    tolerance: float | None = 0.02,
) -> tuple[Implementation | Absent, ...]:
    """``function(*arguments)`` as it is, and compiled for these shapes."""
    is_cpu = not any(isinstance(one, torch.Tensor) and one.device.type == "cuda" for one in arguments)
    eager = Implementation(name, lambda: function(*arguments), as_ours, tolerance)
    missing = why_not_compiled() if is_cpu else None
    if missing is not None:
        return eager, Absent(COMPILED, missing)

    def make() -> Implementation:
        fast = compiled(function)
        return Implementation(COMPILED, lambda: fast(*arguments), as_ours, tolerance)

    return eager, attempt(COMPILED, make)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` compiled for the shapes that it will see; it forgets what was compiled for other cases."""
    torch.compiler.reset()  # after eight shapes of one function torch would quietly stop compiling it
    return torch.compile(function, dynamic=False)


def why_not_compiled() -> str | None:
    """Why torch.compile cannot work on a CPU here; None if it can."""
    name = "clang++" if sys.platform == "darwin" else "g++"
    return None if shutil.which(name) else f"no C++ compiler: {name} was not found"


def rope_and_write(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    pages: torch.Tensor,
    offsets: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
) -> torch.Tensor:
    """qkv [T, (H + 2K) D], cos and sin [T, D/2] of each token, its page and offset [T] -> q [T, H, D]."""
    num_kv_heads, head_dim = k_pages.shape[1], k_pages.shape[3]
    heads = qkv.unflatten(1, (-1, head_dim))  # [T, H + 2K, D]
    qk, v = heads[:, :-num_kv_heads], heads[:, -num_kv_heads:]
    c, s = (torch.cat([part, part], -1).unsqueeze(1) for part in (cos, sin))  # [T, 1, D]
    first, second = qk.chunk(2, -1)
    rotated = (qk * c + torch.cat([-second, first], -1) * s).to(qkv.dtype)
    k_pages[pages, :, offsets] = rotated[:, -num_kv_heads:]
    v_pages[pages, :, offsets] = v
    return rotated[:, :-num_kv_heads]


def add_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, residual [T, E], weight [E] -> (norm of the sum, the sum)."""
    total = residual + x
    return F.rms_norm(total, weight.shape, weight, eps), total


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up [T, 2F] -> [T, F]."""
    gate, up = gate_up.chunk(2, dim=1)
    return F.silu(gate) * up


def norm_linear(x: torch.Tensor, norm_weight: torch.Tensor, eps: float, weight: torch.Tensor) -> torch.Tensor:
    """x [T, E], weight [N, E] -> [T, N]."""
    return F.linear(F.rms_norm(x, norm_weight.shape, norm_weight, eps), weight)


def norm_swiglu(x: torch.Tensor, norm_weight: torch.Tensor, eps: float, gate_up: torch.Tensor) -> torch.Tensor:
    """x [T, E], gate_up [2F, E] -> [T, F]."""
    return silu_mul(norm_linear(x, norm_weight, eps, gate_up))


def draw(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """logits [B, V] -> ids [B]: sorted, filtered and drawn, as generation libraries do it."""
    if not temperature:
        return logits.argmax(-1)
    scaled = logits / temperature
    if not top_k and top_p == 1:
        return torch.multinomial(scaled.softmax(-1), 1).squeeze(1)
    if top_k:
        kth = scaled.topk(top_k).values[:, -1:]
        scaled = scaled.masked_fill(scaled < kth, float("-inf"))
    ordered, order = scaled.sort(dim=-1)
    dropped = ordered.softmax(-1).cumsum(-1) <= 1 - top_p  # from the least likely up
    dropped[:, -1] = False
    dropped = dropped.scatter(1, order, dropped)
    return torch.multinomial(scaled.masked_fill(dropped, float("-inf")).softmax(-1), 1).squeeze(1)


def _first_line(error: BaseException) -> str:
    """Its message up to the first line break, or what kind it is."""
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__
