"""Products of a matrix and a few vectors, with what stands around them in a layer: a step of up to MAX_ROWS tokens.

    norm_linear   y = norm(x) W^T + b
    norm_swiglu   y = silu(g) * u,   (g, u) = the two halves of norm(x) W^T
    linear_add    y = residual + x W^T + b

    x            [T, E]    T <= MAX_ROWS tokens, E the width of a row, one dtype throughout: bf16, fp16 or f32
    norm_weight  [E]       norm is `add_rms_norm` without a residual, rounded to the dtype where that rounds
    W            [N, E], b [N];   gate_up [2F, E]: the gate's F rows before up's
    residual, y  [T, N];          y [T, F]

Such a step reads every weight and computes little, so the weights are streamed once, with loads of 16 bytes, and
multiplied in F32 on the ordinary cores. A program makes BLOCK_N outputs for all T rows over the whole of E, and does
the norm of its rows again for itself: they are in cache, a launch costs more, and nothing is added up between
programs, so the result is the same every time. Between product and output everything is F32 and is rounded once. More
rows are left to a matrix product; CPU tensors take the unfused operations, which are the specification.
"""

import torch
import torch.nn.functional as F

from ..errors import KernelError
from .backend import dtype_name, inlined, jit, next_power_of_2, runs_triton, tl
from .launch_configs import find_config
from .rms_norm import rms_norm_torch
from .swiglu import swiglu_torch

MAX_ROWS = 4

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_LOAD_BYTES = 16  # the widest load of one thread
_LOG2_E = 1.4426950408889634


def norm_linear(
    x: torch.Tensor, norm_weight: torch.Tensor, eps: float, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``add_rms_norm(x, norm_weight, eps) W^T + b``.

    Args:
        x: [T, E] bf16, fp16 or f32, T <= MAX_ROWS, last axis contiguous.
        norm_weight: [E].
        eps: added to the mean square.
        weight: [N, E], last axis contiguous.
        bias: [N] or None.

    Returns:
        y: [T, N]; dtype and device are x's, as those of every argument.

    Raises:
        KernelError: shapes, dtypes, devices or strides that do not fit, or more rows.
    """
    _check("norm_linear", x, weight, norm_weight=norm_weight, bias=bias)
    if not runs_triton(x):
        return F.linear(rms_norm_torch(x, norm_weight, eps), weight, bias)
    return _launch(x, weight, norm_weight=norm_weight, eps=eps, bias=bias)


def norm_swiglu(x: torch.Tensor, norm_weight: torch.Tensor, eps: float, gate_up: torch.Tensor) -> torch.Tensor:
    """``swiglu(add_rms_norm(x, norm_weight, eps) W^T)`` of the fused projection ``gate_up: [2F, E]``: [T, F].

    Arguments and errors are those of `norm_linear`.
    """
    _check("norm_swiglu", x, gate_up, norm_weight=norm_weight)
    if gate_up.shape[0] % 2:
        raise KernelError(f"norm_swiglu got gate_up {list(gate_up.shape)}; pass [2F, E], the gate's rows before up's")
    if not runs_triton(x):
        return swiglu_torch(F.linear(rms_norm_torch(x, norm_weight, eps), gate_up))
    return _launch(x, gate_up, norm_weight=norm_weight, eps=eps, is_swiglu=True)


def linear_add(
    x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``residual + x W^T + b``; ``residual: [T, N]``, last axis contiguous, is left as it was.

    The other arguments and the errors are those of `norm_linear`.
    """
    _check("linear_add", x, weight, bias=bias, residual=residual)
    if not runs_triton(x):
        if bias is None:
            return torch.addmm(residual, x, weight.t())
        return F.linear(x, weight, bias).add_(residual)
    return _launch(x, weight, bias=bias, residual=residual)


@jit
def _gemv_kernel(  # type: ignore[no-untyped-def]
    x_ptr,  # [T, E]
    norm_weight_ptr,  # [E]
    weight_ptr,  # [N, E]
    bias_ptr,  # [N]
    residual_ptr,  # [T, N]
    y_ptr,  # [T, N], for SwiGLU [T, N / 2]
    eps,
    num_features,
    size,
    x_stride,
    weight_stride,
    residual_stride,
    LOG2_E: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    IS_SWIGLU: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """One program takes BLOCK_N rows of the weight; a tile's last axis is what one load brings to one thread.

    For SwiGLU these are BLOCK_N / 2 rows of the gate, each followed by the row of up that it gates. The rows of x are
    written out, not an axis: the tile of weights then stays in the threads that loaded it.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K // VECTOR)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]  # [C, VECTOR]
    inside = (n < num_features)[:, None, None]
    weight_row = n
    if IS_SWIGLU:
        weight_row = n // 2 + (n % 2) * (num_features // 2)
    weight_at = weight_ptr + weight_row.to(tl.int64)[:, None, None] * weight_stride + k[None, :, :]

    # Each tile of weights is asked for before the work on the one before it, the first before the norm.
    first = inside & (k < size)[None, :, :]
    next_weight = tl.load(weight_at, mask=first, other=0.0, eviction_policy="evict_first")  # [N, C, VECTOR]
    t = tl.arange(0, BLOCK_T)
    scale = tl.full([BLOCK_T], 1.0, tl.float32)
    if HAS_NORM:
        squares = tl.zeros([BLOCK_T, BLOCK_K // VECTOR, VECTOR], tl.float32)
        x_at = x_ptr + t.to(tl.int64)[:, None, None] * x_stride + k[None, :, :]
        for start in range(0, size, BLOCK_K):
            x_inside = (t < ROWS)[:, None, None] & (start + k < size)[None, :, :]
            x = tl.load(x_at + start, mask=x_inside, other=0.0).to(tl.float32)
            squares += x * x
        scale = tl.rsqrt(tl.sum(tl.sum(squares, 2), 1) / size + eps)

    scale_0 = _pick(scale, 0, t)
    scale_1 = _pick(scale, 1, t)
    scale_2 = _pick(scale, 2, t)
    scale_3 = _pick(scale, 3, t)
    acc_0 = tl.zeros([BLOCK_N, BLOCK_K // VECTOR], tl.float32)
    acc_1 = acc_0
    acc_2 = acc_0
    acc_3 = acc_0
    for start in range(0, size, BLOCK_K):
        weight = next_weight.to(tl.float32)
        at = start + k
        next_weight = tl.load(
            weight_at + (start + BLOCK_K),
            mask=inside & (at + BLOCK_K < size)[None, :, :],
            other=0.0,
            eviction_policy="evict_first",
        )
        norm_weight = 1.0
        if HAS_NORM:
            norm_weight = tl.load(norm_weight_ptr + at, mask=at < size, other=0.0).to(tl.float32)
        acc_0 += _products(x_ptr, at, size, norm_weight, scale_0, weight, HAS_NORM)
        if ROWS > 1:
            acc_1 += _products(x_ptr + x_stride, at, size, norm_weight, scale_1, weight, HAS_NORM)
        if ROWS > 2:
            acc_2 += _products(x_ptr + x_stride * 2, at, size, norm_weight, scale_2, weight, HAS_NORM)
        if ROWS > 3:
            acc_3 += _products(x_ptr + x_stride * 3, at, size, norm_weight, scale_3, weight, HAS_NORM)

    for row in tl.static_range(ROWS):
        acc = acc_0 if row == 0 else acc_1 if row == 1 else acc_2 if row == 2 else acc_3
        y = tl.sum(acc, 1)  # [N]
        if HAS_BIAS:
            y += tl.load(bias_ptr + n, mask=n < num_features, other=0.0).to(tl.float32)
        if HAS_RESIDUAL:
            y += tl.load(residual_ptr + row * residual_stride + n, mask=n < num_features, other=0.0).to(tl.float32)
        if IS_SWIGLU:
            gate, up = tl.split(tl.reshape(y, [BLOCK_N // 2, 2]))
            decay = tl.exp2(tl.abs(gate) * -LOG2_E)  # at most 1, whatever the gate
            y = gate * tl.where(gate >= 0.0, 1.0, decay) / (1.0 + decay) * up
            column = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
            num_columns = num_features // 2
        else:
            column = n
            num_columns = num_features
        tl.store(y_ptr + row * num_columns + column, y.to(y_ptr.dtype.element_ty), mask=column < num_columns)


@inlined
def _pick(values, index, t):  # type: ignore[no-untyped-def]
    """values [T], t = 0 .. T - 1 -> values[index], 0 where there is none."""
    return tl.sum(tl.where(t == index, values, 0.0), 0)


@inlined
def _products(x_row_ptr, at, size, norm_weight, scale, weight, HAS_NORM: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tile of weights [N, C, VECTOR] f32 times one row of x, normed or not, summed within threads: [N, C]."""
    x = tl.load(x_row_ptr + at, mask=at < size, other=0.0).to(tl.float32)  # [C, VECTOR]
    if HAS_NORM:
        dtype = x_row_ptr.dtype.element_ty
        x = ((x * scale).to(dtype).to(tl.float32) * norm_weight).to(dtype).to(tl.float32)
    return tl.sum(weight * x[None, :, :], 2)


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    is_swiglu: bool = False,
) -> torch.Tensor:
    """Launch one program for each BLOCK_N rows of the weight; pointers that are not used are ``x``."""
    rows, size = x.shape
    features = weight.shape[0]
    y = torch.empty(rows, features // 2 if is_swiglu else features, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    config = find_config("gemv", dtype=dtype_name(x.dtype), rows=rows, has_norm=norm_weight is not None)
    _gemv_kernel[(-(-features // config.block["BLOCK_N"]),)](
        x,
        x if norm_weight is None else norm_weight,
        weight,
        x if bias is None else bias,
        x if residual is None else residual,
        y,
        eps,
        features,
        size,
        x.stride(0),
        weight.stride(0),
        0 if residual is None else residual.stride(0),
        LOG2_E=_LOG2_E,
        HAS_NORM=norm_weight is not None,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        IS_SWIGLU=is_swiglu,
        ROWS=rows,
        BLOCK_T=next_power_of_2(rows),
        VECTOR=_LOAD_BYTES // x.element_size(),
        **config.keywords,
    )
    return y


def _check(op: str, x: torch.Tensor, weight: torch.Tensor, **others: torch.Tensor | None) -> None:
    """Raise KernelError unless the arguments make a product of few rows."""
    if x.ndim != 2 or x.shape[0] > MAX_ROWS or x.shape[1] == 0 or x.dtype not in _DTYPES:
        raise KernelError(
            f"{op} got x {x.dtype} {list(x.shape)}; pass [T, E] bf16, fp16 or f32 with T <= {MAX_ROWS}, "
            "and more rows to a matrix product"
        )
    if weight.ndim != 2 or weight.shape[1] != x.shape[1]:
        raise KernelError(f"{op} got a weight {list(weight.shape)}; x {list(x.shape)} takes [N, {x.shape[1]}]")
    expected = {"norm_weight": x.shape[1:], "bias": weight.shape[:1], "residual": (x.shape[0], weight.shape[0])}
    given = {name: tensor for name, tensor in others.items() if tensor is not None}
    for name, tensor in given.items():
        if tensor.shape != expected[name]:
            raise KernelError(f"{op} got {name} {list(tensor.shape)}; x and weight take {list(expected[name])}")
    for name, tensor in ({"x": x, "weight": weight} | given).items():
        if tensor.dtype != x.dtype or tensor.device != x.device:
            raise KernelError(f"{op} got {name} {tensor.dtype} on {tensor.device}; x is {x.dtype} on {x.device}")
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise KernelError(f"{op} got {name} with strides {tensor.stride()}; its last axis must be contiguous")
