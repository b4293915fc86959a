"""What `hopformer bench kernels --aot` compiles: calls of the public operations on tensors that have no memory.

Every row of every table in kernels/launch_configs/ is behind one of them (a check says so), and every shape that
changes a kernel's code: head sizes, groups, pages, types, windows and caps. Lengths and batch sizes do not.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch

from .. import kernels
from ..kernels.backend import dtype_name
from ..kernels.launch_configs import LaunchConfig, override

_PAGES, _KV_HEADS, _SEQUENCES = 1024, 8, 4
_HIDDEN, _INTERMEDIATE, _VOCAB = 4096, 14336, 128256  # Llama-3.1-8B's
_DRAFTS = 16  # the longest query that decode takes
_PROMPT = 512  # a query for prefill; such a step holds drafts too, so that decode is compiled beside it

BF16, F16, F32, I8 = torch.bfloat16, torch.float16, torch.float32, torch.int8


@dataclass(frozen=True, slots=True)
class Case:
    """One call.

    Attributes:
        label: what is special about it, in words.
        run: makes the call.
        dtypes: what tables call "dtype" and "kv_dtype", as far as they ask.
    """

    label: str
    run: Callable[[], object]
    dtypes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Attention:
    """One kind of attention: what its kernels are compiled for. ``query_len`` is the longest of a step."""

    dtype: torch.dtype
    head_dim: int
    group_size: int
    page_size: int
    kv_dtype: torch.dtype | None = None
    window: int = 0
    softcap: float = 0.0
    query_len: int = 1

    @property
    def label(self) -> str:
        """Such as "bfloat16 D128 G4 page64"."""
        types = dtype_name(self.dtype) + ("" if self.kv_dtype is None else f"/{dtype_name(self.kv_dtype)}")
        more = " window" * bool(self.window) + " softcap" * bool(self.softcap)
        return f"{types} D{self.head_dim} G{self.group_size} page{self.page_size}{more}"


def list_cases(family: str) -> list[Case]:
    """Those of a device family."""
    fp8 = _fp8_of(family)
    has_descriptors = family in ("sm_90", "sm_100", "sm_120")
    return [*_attention_cases(fp8, has_descriptors), *_rope_cases(fp8), *_row_cases(), *_product_cases()]


def _fp8_of(family: str) -> torch.dtype | None:
    """The fp8 type that Triton converts on a device family; NVIDIA has one from 8.9 on."""
    if family == "gfx942":
        return torch.float8_e4m3fnuz
    return None if family in ("sm_80", "sm_86") else torch.float8_e4m3fn


def _attention_cases(fp8: torch.dtype | None, has_descriptors: bool) -> Iterator[Case]:
    """Steps of single queries, of drafts, and of prompts."""
    decode = [
        Attention(BF16, 128, 4, 64),
        Attention(BF16, 128, 7, 16, window=4096),
        Attention(BF16, 64, 8, 16),
        Attention(BF16, 64, 1, 128, softcap=30.0),
        Attention(BF16, 80, 1, 64),
        Attention(F16, 96, 1, 16),
        Attention(F16, 112, 8, 128, window=512),
        Attention(BF16, 256, 4, 64, window=4096, softcap=50.0),
        Attention(F32, 64, 7, 16),
        Attention(F32, 128, 4, 64),
        Attention(F32, 256, 1, 64),
        Attention(F32, 256, 4, 64, query_len=8),
        Attention(BF16, 128, 4, 64, I8),
        Attention(BF16, 128, 4, 64, query_len=8),
        Attention(BF16, 256, 4, 16, query_len=8),
        Attention(F32, 128, 8, 64, query_len=4),
        Attention(F32, 64, 4, 64, I8),
        Attention(F32, 128, 4, 64, I8, query_len=8),
        Attention(F32, 256, 4, 64, I8),
    ]
    prefill = [
        Attention(BF16, 128, 4, 64),
        Attention(BF16, 128, 7, 16, window=4096),
        Attention(BF16, 64, 8, 16),
        Attention(F16, 80, 1, 64, softcap=30.0),
        Attention(BF16, 256, 4, 64, window=4096, softcap=50.0),
        Attention(F32, 64, 7, 16),
        Attention(F32, 128, 4, 64),
        Attention(F32, 256, 1, 64),
        Attention(BF16, 128, 4, 64, I8),
        Attention(BF16, 128, 7, 16, I8, window=4096, softcap=50.0),
        Attention(BF16, 256, 4, 64, I8),
        Attention(F32, 64, 4, 64, I8),
        Attention(F32, 128, 4, 64, I8),
        Attention(F32, 256, 4, 64, I8),
    ]
    if fp8 is not None:
        decode += [Attention(F16, 128, 4, 64, fp8), Attention(F32, 128, 4, 64, fp8)]
        prefill += [Attention(BF16, 128, 4, 64, fp8), Attention(BF16, 128, 7, 16, fp8, window=4096)]
        prefill += [Attention(F32, 128, 4, 64, fp8)]
    for kind in decode:
        yield attention_case(kind, kind.query_len)
    for kind in prefill:
        yield attention_case(kind, _PROMPT)
    common = Attention(BF16, 128, 4, 64)
    yield attention_case(common, 1, batch_invariant=True)
    # What tables choose between, so that both ways stay fit to be chosen
    transposed = LaunchConfig({"BLOCK_N": 64, "TRANSPOSED": True}, 4, 3)
    yield Case(common.label, partial(_attend_with, "decode", transposed, common, 1), _dtypes(common))
    by_descriptor = LaunchConfig({"BLOCK_M": 64, "BLOCK_N": 32, "DESCRIPTORS": True}, 4, 3)
    if has_descriptors:
        yield Case(common.label, partial(_attend_with, "prefill", by_descriptor, common, _PROMPT), _dtypes(common))


def attention_case(kind: Attention, query_len: int, batch_invariant: bool = False) -> Case:
    """A step whose longest query is ``query_len``."""
    return Case(kind.label, partial(_attend, kind, query_len, batch_invariant), _dtypes(kind))


def _dtypes(kind: Attention) -> dict[str, str]:
    return {"dtype": dtype_name(kind.dtype), "kv_dtype": dtype_name(kind.kv_dtype or kind.dtype)}


def _attend_with(kernel: str, config: LaunchConfig, kind: Attention, query_len: int) -> None:
    with override(kernel, config):
        _attend(kind, query_len, batch_invariant=False)


def _attend(kind: Attention, query_len: int, batch_invariant: bool) -> None:
    k_pages, v_pages, k_scales, v_scales = _pool(kind.dtype, kind.kv_dtype, kind.page_size, kind.head_dim)
    heads = _KV_HEADS * kind.group_size
    qkv = _empty(_SEQUENCES * query_len, (heads + 2 * _KV_HEADS) * kind.head_dim, dtype=kind.dtype)
    tables = _ints(_SEQUENCES, 64), _ints(_SEQUENCES), _ints(_SEQUENCES + 1)
    plan = kernels.plan_attention(
        *tables, page_size=kind.page_size, max_query_len=query_len, batch_invariant=batch_invariant
    )
    kernels.paged_attention(
        qkv[:, : heads * kind.head_dim].unflatten(1, (heads, kind.head_dim)),
        k_pages,
        v_pages,
        *tables,
        softmax_scale=kind.head_dim**-0.5,
        sliding_window=kind.window,
        softcap=kind.softcap,
        plan=plan,
        k_scales=k_scales,
        v_scales=v_scales,
    )


def _rope_cases(fp8: torch.dtype | None) -> Iterator[Case]:
    kinds: list[tuple[torch.dtype, int, torch.dtype | None]] = [
        (BF16, 128, None),
        (F16, 80, None),
        (F32, 64, None),
        (BF16, 128, I8),
        (BF16, 256, I8),
    ]
    if fp8 is not None:
        kinds.append((BF16, 128, fp8))
    for dtype, head_dim, kv_dtype in kinds:
        types = dtype_name(dtype) + ("" if kv_dtype is None else f"/{dtype_name(kv_dtype)}")
        yield Case(f"{types} D{head_dim}", partial(_rotate, dtype, head_dim, kv_dtype))


def _rotate(dtype: torch.dtype, head_dim: int, kv_dtype: torch.dtype | None) -> None:
    pools = _pool(dtype, kv_dtype, 64, head_dim)
    qkv = _empty(_SEQUENCES, 6 * _KV_HEADS * head_dim, dtype=dtype)  # 4 query heads a KV head
    angles = _empty(8192, head_dim // 2, dtype=F32)
    tokens = _empty(_SEQUENCES, dtype=torch.int64)
    kernels.rope_and_write_kv(qkv, angles, angles, tokens, tokens, *pools)


def _row_cases() -> Iterator[Case]:
    """What works row by row, and sampling."""
    for dtype, size, with_residual in ((BF16, _HIDDEN, True), (BF16, _HIDDEN, False), (F16, 3072, True), (F32, 64, 0)):
        label = f"{dtype_name(dtype)} E{size}" + " residual" * bool(with_residual)
        x = _empty(_SEQUENCES, size, dtype=dtype)
        arguments = (x, x[0], 1e-5, x) if with_residual else (x, x[0], 1e-5)
        yield Case(label, partial(kernels.add_rms_norm, *arguments))
    for dtype in (BF16, F32):
        gate_up = _empty(_SEQUENCES, 2 * _INTERMEDIATE, dtype=dtype)
        yield Case(f"{dtype_name(dtype)} F{_INTERMEDIATE}", partial(kernels.swiglu, gate_up))
    row = _empty(_SEQUENCES, dtype=F32)
    draw = partial(kernels.sample, temperature=row, top_k=_empty(_SEQUENCES, dtype=torch.int64), top_p=row, min_p=row)
    yield Case(f"V{_VOCAB}", partial(draw, _empty(_SEQUENCES, _VOCAB, dtype=F32), uniform=row))


def _product_cases() -> Iterator[Case]:
    """Products with few rows: plain weights fused with what stands around them, and quantised ones."""
    for dtype, rows in ((BF16, 1), (BF16, 4), (F16, 2), (F32, 3)):
        x, weight = _empty(rows, _HIDDEN, dtype=dtype), _empty(_HIDDEN, _HIDDEN, dtype=dtype)
        label, dtypes = f"{dtype_name(dtype)} rows{rows}", {"dtype": dtype_name(dtype)}
        yield Case(f"{label} norm", partial(kernels.norm_linear, x, x[0], 1e-5, weight), dtypes)
        if rows > 2:
            yield Case(f"{label} residual", partial(kernels.linear_add, x, weight, x), dtypes)
    x, gate_up = _empty(1, _HIDDEN, dtype=BF16), _empty(2 * _INTERMEDIATE, _HIDDEN, dtype=BF16)
    run = partial(kernels.norm_swiglu, x, x[0], 1e-5, gate_up)
    yield Case("bfloat16 rows1 norm swiglu", run, {"dtype": "bfloat16"})
    for dtype, rows in ((BF16, 1), (BF16, 32), (BF16, 64), (F16, 16), (F32, 16)):
        for bits in (8, 4):
            label = f"{dtype_name(dtype)} int{bits} rows{rows}"
            run = partial(kernels.quant_matmul, _empty(rows, _HIDDEN, dtype=dtype), _quantized(bits, dtype))
            yield Case(label, run, {"dtype": dtype_name(dtype)})


def _quantized(bits: int, dtype: torch.dtype) -> kernels.QuantWeight:
    """A weight [_HIDDEN, _HIDDEN] of 8 bits, or of 4 in groups of 128."""
    if bits == 8:
        return kernels.QuantWeight(_empty(_HIDDEN, _HIDDEN, dtype=I8), _empty(_HIDDEN, 1, dtype=dtype), None, _HIDDEN)
    codes = _empty(_HIDDEN, _HIDDEN // 2, dtype=torch.uint8)
    scales = _empty(_HIDDEN, _HIDDEN // 128, dtype=dtype)
    return kernels.QuantWeight(codes, scales, scales, 128)


def _pool(
    dtype: torch.dtype, kv_dtype: torch.dtype | None, page_size: int, head_dim: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """k_pages, v_pages and, for int8, k_scales, v_scales."""
    shape = (_PAGES, _KV_HEADS, page_size)
    pages = _empty(*shape, head_dim, dtype=kv_dtype or dtype)
    scales = _empty(*shape, dtype=F32) if kv_dtype == I8 else None
    return pages, pages, scales, scales


def _ints(*shape: int) -> torch.Tensor:
    return _empty(*shape, dtype=torch.int32)


def _empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
