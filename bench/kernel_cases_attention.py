"""Cases of paged attention: decode, even and uneven, with narrow keys and values, and prefill.

Sequences' pages are scattered over the pool in random order on a GPU. On a CPU each sequence's follow one another, as
its pool hands them out (docs/kv-layout.md), but for one case that says so. Baselines get keys and values contiguous,
[B, K, N, D], padded to the longest where lengths differ: nothing that they would have to gather is charged to them.

    bytes        keys and values of all tokens once, with their scales; q and the result
    operations   4 D for each query head and each key that a query sees
"""

from collections.abc import Iterator
from functools import partial

import torch

from ..kernels import AttentionPlan, paged_attention, plan_attention
from ..kernels.backend import dtype_name, next_power_of_2
from ..llama.kv_cache import DEFAULT_PAGE_SIZE, KVCache, KVPages, KVShape
from .kernel_attention_baselines import PagedBatch, dense_baselines
from .kernel_case import Built, Implementation, KernelCase, LayerShape, Setting, Tuning, Work, thousands

# Of one formula, with narrow keys and values on one side: e4m3's error is four times that of int8 with a scale a row
NARROW_TOLERANCE = 0.08


def decode_cases(setting: Setting) -> Iterator[KernelCase]:
    """One query a sequence: the batches of the setting's sizes, then the first of them under other conditions."""
    sizes = setting.sizes
    for batch, tokens in sizes.decode:
        yield _decode_case(setting, f"B{batch}x{thousands(tokens)}", [tokens] * batch)
    batch, total = sizes.uneven
    yield _decode_case(setting, f"B{batch}-uneven-{thousands(total)}", uneven_lengths(batch, total))
    batch, tokens = sizes.decode[0]
    if not setting.is_gpu:
        name = f"B{batch}x{thousands(tokens)}-scattered"
        yield _decode_case(setting, name, [tokens] * batch, scattered=True)
    yield _decode_case(setting, f"B{batch}x{thousands(tokens)}-invariant", [tokens] * batch, invariant=True)
    narrow = [torch.int8, torch.float8_e4m3fn] if setting.is_gpu and setting.dtype != torch.float32 else [torch.int8]
    for dtype in narrow:
        name = f"B{batch}x{thousands(tokens)}-{'int8' if dtype == torch.int8 else 'fp8'}"
        yield _decode_case(setting, name, [tokens] * batch, kv_dtype=dtype)


def context_cases(setting: Setting) -> Iterator[KernelCase]:
    """Decode at growing contexts: a curve, not rows of the usual table."""
    batch = setting.sizes.context_batch
    for tokens in setting.sizes.contexts:
        yield _decode_case(setting, f"context-B{batch}x{thousands(tokens)}", [tokens] * batch, context=tokens)


def prefill_cases(setting: Setting) -> Iterator[KernelCase]:
    """One prompt on an empty cache."""
    layer = setting.layer
    for tokens in setting.sizes.prefill_tokens:
        pairs = tokens * (tokens + 1) // 2
        kv_bytes = KVShape(1, layer.num_kv_heads, layer.head_dim, setting.dtype).bytes_per_token * tokens
        rows_bytes = 2 * tokens * layer.num_heads * layer.head_dim * setting.dtype.itemsize
        yield KernelCase(
            "prefill_attention",
            thousands(tokens),
            setting.model,
            f"{tokens} tokens, causal; {layer.heads}",
            setting.dtype_name,
            Work(kv_bytes + rows_bytes, 4 * layer.head_dim * layer.num_heads * pairs),
            partial(_build, setting, [tokens], tokens, setting.dtype, setting.is_gpu),
            tuning=Tuning("prefill", _conditions(setting, setting.dtype)),
        )


def uneven_lengths(batch: int, total: int) -> list[int]:
    """``batch`` lengths that add up to ``total``, the i-th longest in proportion to 1 / i, in random order."""
    weights = [1 / (rank + 1) for rank in range(batch)]
    lengths = [max(1, int(total * weight / sum(weights))) for weight in weights]
    lengths[0] += total - sum(lengths)
    generator = torch.Generator().manual_seed(0)
    return [lengths[index] for index in torch.randperm(batch, generator=generator).tolist()]


def _decode_case(
    setting: Setting,
    name: str,
    lengths: list[int],
    *,
    kv_dtype: torch.dtype | None = None,
    scattered: bool = False,
    invariant: bool = False,
    context: int | None = None,
) -> KernelCase:
    layer, batch, total = setting.layer, len(lengths), sum(lengths)
    kv_dtype = kv_dtype or setting.dtype
    kv_bytes = KVShape(1, layer.num_kv_heads, layer.head_dim, kv_dtype).bytes_per_token * total
    rows_bytes = 2 * batch * layer.num_heads * layer.head_dim * setting.dtype.itemsize
    longest = max(lengths)
    tokens = f"{longest} tokens each" if longest * batch == total else f"{min(lengths)} to {longest} tokens"
    kv = "" if kv_dtype == setting.dtype else f", {str(kv_dtype).removeprefix('torch.')} KV"
    return KernelCase(
        "decode_attention",
        name,
        setting.model,
        f"{batch} x {tokens}{', scattered pages' * scattered}{', batch-invariant' * invariant}; {layer.heads}",
        setting.dtype_name + kv,
        Work(kv_bytes + rows_bytes, 4 * layer.head_dim * layer.num_heads * total),
        partial(_build, setting, lengths, 1, kv_dtype, scattered or setting.is_gpu, invariant),
        context,
        None if invariant else Tuning("decode", (*_conditions(setting, kv_dtype), ("block_m", _packed_rows(layer)))),
    )


def _conditions(setting: Setting, kv_dtype: torch.dtype) -> tuple[tuple[str, str | int], ...]:
    """What the launch configurations of attention go by."""
    dtypes = {"dtype": dtype_name(setting.dtype), "kv_dtype": dtype_name(kv_dtype)}
    block_d = next_power_of_2(setting.layer.head_dim)
    return (*dtypes.items(), ("block_d", block_d), ("page_size", DEFAULT_PAGE_SIZE))


def _packed_rows(layer: LayerShape) -> int:
    """Rows of a decode tile with single queries: the heads of a group, 16 at least."""
    return max(16, next_power_of_2(layer.num_heads // layer.num_kv_heads))


def _build(
    setting: Setting,
    lengths: list[int],
    num_queries: int,
    kv_dtype: torch.dtype,
    scattered: bool,
    invariant: bool = False,
) -> Built:
    """Sequences of ``lengths`` whose last ``num_queries`` tokens are new."""
    layer, batch = setting.layer, len(lengths)
    table = _block_table(lengths, scattered).to(setting.device)
    seq_lens = torch.tensor(lengths, dtype=torch.int32, device=setting.device)
    bounds = torch.arange(batch + 1, dtype=torch.int32, device=setting.device) * num_queries
    q = setting.random(batch * num_queries, layer.num_heads, layer.head_dim)
    make_plan = partial(plan_attention, table, seq_lens, bounds, page_size=DEFAULT_PAGE_SIZE, max_query_len=num_queries)
    usual_plan = make_plan()
    scale = layer.head_dim**-0.5
    exact = _random_pages(setting, int(table.max()) + 1)

    def attend(pages: KVPages, plan: AttentionPlan = usual_plan) -> torch.Tensor:
        return paged_attention(
            q,
            pages.k_pages,
            pages.v_pages,
            table,
            seq_lens,
            bounds,
            softmax_scale=scale,
            plan=plan,
            k_scales=pages.k_scales,
            v_scales=pages.v_scales,
        )

    batch_of_pages = PagedBatch(q, exact, table, lengths, num_queries, scale)
    if invariant:
        usual = Implementation("our usual plan", partial(attend, exact))
        ours = Implementation("hopformer", partial(attend, exact, make_plan(batch_invariant=True)))
        return Built(ours, lambda: (usual, *dense_baselines(batch_of_pages)))
    if kv_dtype == setting.dtype:
        return Built(Implementation("hopformer", partial(attend, exact)), partial(dense_baselines, batch_of_pages))
    narrow = _narrowed(exact, kv_dtype)
    wide = Implementation(f"our {setting.dtype_name} KV", partial(attend, exact), tolerance=NARROW_TOLERANCE)
    return Built(
        Implementation("hopformer", partial(attend, narrow)),
        lambda: (wide, *dense_baselines(batch_of_pages, tolerance=NARROW_TOLERANCE)),
    )


def _block_table(lengths: list[int], scattered: bool) -> torch.Tensor:
    """[B, max_pages] int32: pages in order, sequence after sequence, or in random order; 0 past a length."""
    counts = [-(-length // DEFAULT_PAGE_SIZE) for length in lengths]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randperm(sum(counts), generator=generator) if scattered else torch.arange(sum(counts))
    table = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
    for row, own in zip(table, ids.to(torch.int32).split(counts), strict=True):
        row[: len(own)] = own
    return table


def _random_pages(setting: Setting, num_pages: int) -> KVPages:
    """One layer's pages as the engine allocates them, filled."""
    shape = KVShape(1, setting.layer.num_kv_heads, setting.layer.head_dim, setting.dtype)
    pages = KVCache(shape, num_pages, DEFAULT_PAGE_SIZE, setting.device).layers[0]
    for seed, tensor in enumerate(pages.tensors()):
        tensor.normal_(generator=torch.Generator(setting.device).manual_seed(seed + 1))
    return pages


def _narrowed(pages: KVPages, dtype: torch.dtype) -> KVPages:
    """The same keys and values in int8 with a scale a row, or in fp8."""
    shape = KVShape(1, pages.k_pages.shape[1], pages.k_pages.shape[3], dtype)
    narrow = KVCache(shape, len(pages.k_pages), pages.k_pages.shape[2], pages.k_pages.device).layers[0]
    for source, target, scales in (
        (pages.k_pages, narrow.k_pages, narrow.k_scales),
        (pages.v_pages, narrow.v_pages, narrow.v_scales),
    ):
        if scales is None:
            target.copy_(source.to(dtype))
        else:
            scales.copy_(source.abs().amax(-1).float() / 127)
            target.copy_((source.float() / scales.unsqueeze(-1)).round_())
    return narrow
