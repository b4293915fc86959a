"""What the Triton kernels of paged attention share: one tile of keys, from its pages into the running softmax.

    q [M, D]   packed rows: queries x the heads of one KV head's group
    k, v [N, D]   keys and values at N positions of one sequence
    m, l [M]      running maximum and sum of the softmax, in base 2
    acc [M, D]    running sum of probability x value, not yet divided by l

Scores, sums and acc are F32. A row that has seen no key has m = -inf and l = 0.
"""

from .backend import inlined, tl


@inlined
def load_page_rows(  # type: ignore[no-untyped-def]
    pages_ptr,  # one KV head of a pool
    table_ptr,  # one sequence's row of the block table
    positions,
    visible,
    stride_p,
    stride_s,
    PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rows at ``positions [N]`` as [N, BLOCK_D]; 0 where not ``visible``, whose pages are never touched."""
    at = tl.arange(0, BLOCK_D)
    page = tl.load(table_ptr + positions // PAGE_SIZE, mask=visible, other=0).to(tl.int64)
    rows = page * stride_p + (positions % PAGE_SIZE).to(tl.int64) * stride_s
    inside = visible[:, None] & (at < HEAD_DIM)[None, :]
    return tl.load(pages_ptr + rows[:, None] + at[None, :], mask=inside, other=0.0)


@inlined
def score_tile(q, k, scale, softcap, HAS_SOFTCAP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scores [M, N] in base 2: log2(e) * softcap * tanh(scale * q . k / softcap), or without the cap."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if HAS_SOFTCAP:
        scores = softcap * _tanh(scores * (scale / softcap))
        return scores * 1.4426950408889634
    return scores * (scale * 1.4426950408889634)


@inlined
def softmax_step(scores, v, m, l, acc):  # type: ignore[no-untyped-def]  # noqa: E741
    """Take one tile of ``scores [M, N]``, -inf where masked, into (m, l, acc)."""
    new_m = tl.maximum(m, tl.max(scores, 1))
    safe_m = tl.where(new_m == float("-inf"), 0.0, new_m)
    p = tl.exp2(scores - safe_m[:, None])
    decay = tl.exp2(m - safe_m)
    acc = tl.dot(p.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
    return new_m, l * decay + tl.sum(p, 1), acc


@inlined
def _tanh(x):  # type: ignore[no-untyped-def]
    """tanh from exp2, and by its series near 0 where 1 - exp2 would cancel."""
    e = tl.exp2(tl.abs(x) * -2.8853900817779268)
    far = (1.0 - e) / (1.0 + e)
    square = x * x
    near = x * (1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 - square * (17.0 / 315.0))))
    return tl.where(tl.abs(x) < 0.2, near, tl.where(x < 0.0, -far, far))
