"""What the Triton kernels of paged attention share: one tile of keys, from its pages into the running softmax.

    q [M, D]        packed rows: queries x the heads of one KV head's group
    k, v [N, D]     keys and values at N positions of one sequence
    m, l [M]        running maximum and sum of the softmax, in base 2
    acc [M, D]      running sum of probability x value, not yet divided by l; [D, M] when TRANSPOSED

Scores, sums and acc are F32. A row that has seen no key has m = -inf and l = 0. TRANSPOSED puts the keys on the M side
of the tensor cores' products, S^T = K Q^T and acc^T = V^T P^T, so that few rows of q waste nothing there.

Pages may be int8, each row with a scale in k_scales, v_scales [P, K, S], or fp8 without. The scale of a key multiplies
its score and that of a value its probability, so the codes themselves go to the tensor cores: int8 exactly as q's
dtype, fp8 exactly as fp16.
"""

from .backend import inlined, tl


@inlined
def load_queries(  # type: ignore[no-untyped-def]
    q_ptr,
    first_row,
    first_query,
    num_queries,
    kv_head,
    q_strides,
    out_strides,
    IS_FP8: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK_Q queries of a sequence from ``first_query`` on, with all heads of a group, packed: row = query * G + head.

    Returns:
        q [M, D], each row's query [M], whether it is one [M], whether an element is one [M, D], and each element's
        offset in out [M, D].
    """
    packed = tl.arange(0, BLOCK_M)
    query = first_query + packed // GROUP_SIZE
    head = kv_head * GROUP_SIZE + packed % GROUP_SIZE
    row = (first_row + query).to(tl.int64)
    at = tl.arange(0, BLOCK_D)
    is_row = (packed < BLOCK_Q * GROUP_SIZE) & (query >= 0) & (query < num_queries)
    inside = is_row[:, None] & (at < HEAD_DIM)[None, :]
    q_at = q_ptr + row[:, None] * q_strides[0] + head[:, None] * q_strides[1] + at[None, :]
    q = tl.load(q_at, mask=inside, other=0.0)
    if IS_FP8:  # every code is an fp16
        q = tl.clamp(q.to(tl.float32), -65504.0, 65504.0).to(tl.float16)
    return q, query, is_row, inside, row[:, None] * out_strides[0] + head[:, None] * out_strides[1] + at[None, :]


@inlined
def attend_tile(  # type: ignore[no-untyped-def]
    q,
    m,
    l,  # noqa: E741
    acc,
    tile_start,
    first_key,  # of the keys that any row sees
    end_key,
    position,  # [M] of each row's query
    k_pages,
    v_pages,
    scales,  # pointers: of keys, of values
    table_ptr,
    kv_head,
    scale,
    softcap,
    page_strides,  # of k, of v, of the scales
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    MASKED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Take BLOCK_N keys into (m, l, acc); tile_start is a multiple of BLOCK_N."""
    keys = tile_start + tl.arange(0, BLOCK_N)
    held = (keys >= first_key) & (keys < end_key)
    if PAGE_SIZE >= BLOCK_N:  # the tile lies in one page
        page = tl.load(table_ptr + tile_start // PAGE_SIZE).to(tl.int64)
    else:
        page = tl.load(table_ptr + keys // PAGE_SIZE, mask=held, other=0).to(tl.int64)
    if DESCRIPTORS:
        row = ((page * tl.num_programs(1) + kv_head) * PAGE_SIZE + tile_start % PAGE_SIZE).to(tl.int32)
        k = k_pages.load([row, 0])
        v = v_pages.load([row, 0])
        if MASKED:
            v = tl.where(held[:, None], v, 0.0)  # a probability of 0 times a NaN of an unused slot would be NaN
    else:
        k = _load_rows(k_pages, page, kv_head, keys, held, page_strides[0], PAGE_SIZE, MASKED, HEAD_DIM, BLOCK_D)
        v = _load_rows(v_pages, page, kv_head, keys, held, page_strides[1], PAGE_SIZE, MASKED, HEAD_DIM, BLOCK_D)
    if HAS_SCALES:
        scales_at = page * page_strides[2][0] + kv_head * page_strides[2][1] + keys % PAGE_SIZE * page_strides[2][2]
        k_scales = tl.load(scales[0] + scales_at, mask=held, other=0.0)
        v_scales = tl.load(scales[1] + scales_at, mask=held, other=0.0)
        k = k.to(tl.float32).to(q.dtype)
        v = v.to(tl.float32).to(q.dtype)
    elif k.dtype.primitive_bitwidth == 8:
        k = k.to(q.dtype)
        v = v.to(q.dtype)

    visible = held[None, :]
    if MASKED:
        visible = visible & (keys[None, :] <= position[:, None])
        if WINDOW > 0:
            visible = visible & (keys[None, :] > position[:, None] - WINDOW)
    if TRANSPOSED:
        scores = tl.dot(k, tl.trans(q), input_precision="ieee")  # [N, M]
        visible = tl.trans(visible)
        if HAS_SCALES:
            scores = scores * k_scales[:, None]
    else:
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")  # [M, N]
        if HAS_SCALES:
            scores = scores * k_scales[None, :]
    if HAS_SOFTCAP:
        scores = softcap * 1.4426950408889634 * _tanh(scores * (scale / softcap))
    else:
        scores = scores * (scale * 1.4426950408889634)
    if MASKED:
        scores = tl.where(visible, scores, float("-inf"))

    if TRANSPOSED:
        new_m = tl.maximum(m, tl.max(scores, 0))
        safe_m = tl.where(new_m == float("-inf"), 0.0, new_m)
        p = tl.exp2(scores - safe_m[None, :])
        decay = tl.exp2(m - safe_m)
        l = l * decay + tl.sum(p, 0)  # noqa: E741
        if HAS_SCALES:
            p = p * v_scales[:, None]
        acc = tl.dot(tl.trans(v), p.to(v.dtype), acc * decay[None, :], input_precision="ieee")
    else:
        new_m = tl.maximum(m, tl.max(scores, 1))
        safe_m = new_m
        if MASKED:
            safe_m = tl.where(new_m == float("-inf"), 0.0, new_m)
        p = tl.exp2(scores - safe_m[:, None])
        decay = tl.exp2(m - safe_m)
        l = l * decay + tl.sum(p, 1)  # noqa: E741
        if HAS_SCALES:
            p = p * v_scales[None, :]
        acc = tl.dot(p.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
    return new_m, l, acc


@inlined
def _load_rows(  # type: ignore[no-untyped-def]
    pages_ptr,
    page,  # of the tile, or of each key
    kv_head,
    keys,
    held,
    strides,
    PAGE_SIZE: tl.constexpr,
    MASKED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The rows of ``keys`` as [N, BLOCK_D], 0 where not ``held``, whose pages are not touched."""
    at = tl.arange(0, BLOCK_D)
    rows = page * strides[0] + kv_head * strides[1] + (keys % PAGE_SIZE).to(tl.int64) * strides[2]
    rows_at = pages_ptr + rows[:, None] + at[None, :]
    if MASKED:
        inside = held[:, None]
        if HEAD_DIM < BLOCK_D:
            inside = inside & (at < HEAD_DIM)[None, :]
        return tl.load(rows_at, mask=inside, other=0.0)
    if HEAD_DIM < BLOCK_D:
        return tl.load(rows_at, mask=(at < HEAD_DIM)[None, :], other=0.0)
    return tl.load(rows_at)


@inlined
def _tanh(x):  # type: ignore[no-untyped-def]
    """tanh from exp2, and by its series near 0 where 1 - exp2 would cancel."""
    e = tl.exp2(tl.abs(x) * -2.8853900817779268)
    far = (1.0 - e) / (1.0 + e)
    square = x * x
    near = x * (1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 - square * (17.0 / 315.0))))
    return tl.where(tl.abs(x) < 0.2, near, tl.where(x < 0.0, -far, far))
