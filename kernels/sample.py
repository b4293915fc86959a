"""Drawing the next token of every row of a batch.

    x = logits / temperature;  then, each on what the one before left:
    top-k   keeps x >= the k-th largest (ties with it included)
    top-p   keeps a token while all larger ones hold less than p of the probability, and the largest in any case
    min-p   keeps p(token) >= min_p * the largest p
    the token drawn is the first, by id, whose cumulative probability among the kept exceeds the row's uniform number

    logits                                     [B, V] f32; NaN counts as -inf, and -inf is never drawn
    temperature, top_k, top_p, min_p, uniform  [B]

So the kept tokens are those above a threshold, equals are treated alike, and nothing need be sorted. The order of the
filters is that of transformers' logits warpers. A row's token depends on its own values only, never on the rest of the
batch; weights are F32, every sum of them is F64. Holtzman et al., arXiv 1904.09751 (top-p); Nguyen et al., arXiv
2407.01082 (min-p).

In Triton one program draws one row without the host waiting. Thresholds are bisected over the integers that F32 numbers
are in their order, on the few largest logits where those suffice and on the whole row, from L2, where not.
"""

import math

import torch

from ..errors import KernelError
from .backend import inlined, jit, runs_triton, tl
from .launch_configs import find_config

# Among how many of the largest logits the PyTorch twin looks for p of the probability, before it sorts them all.
_CANDIDATES = (256, 4096)
_MIN_TEMPERATURE = 1e-30  # its inverse times any difference of logits stays a number or an infinity
_LARGEST = torch.finfo(torch.float32).max
_LOG2_E = 1.4426950408889634


def sample(
    logits: torch.Tensor,
    *,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """One token id for each row.

    Args:
        logits: [B, V] f32, last axis contiguous.
        temperature: [B] floating; 0 takes the largest logit, the lowest id among equals.
        top_k: [B] integer; 0 is off.
        top_p: [B] floating; 1 is off, and at least one token is always kept.
        min_p: [B] floating; 0 is off.
        uniform: [B] floating, each in [0, 1); not used by rows of temperature 0.

    Returns:
        ids: [B] int64; a row of nothing but -inf gives 0.

    Raises:
        KernelError: shapes, dtypes, devices or strides that do not belong together.
    """
    parameters = (temperature, top_k, top_p, min_p, uniform)
    _check(logits, *parameters)
    if not runs_triton(logits):
        return sample_torch(logits, *parameters)
    rows, size = logits.shape
    ids = torch.empty(rows, dtype=torch.int64, device=logits.device)
    config = find_config("sample")
    candidates = torch.empty(rows, config.block["CANDIDATES"], dtype=torch.float32, device=logits.device)
    if rows:
        _sample_kernel[(rows,)](
            logits,
            *(parameter.contiguous() for parameter in parameters),
            candidates,
            ids,
            size,
            logits.stride(0),
            MIN_TEMPERATURE=_MIN_TEMPERATURE,
            LARGEST=_LARGEST,
            LOG2_E=_LOG2_E,
            **config.keywords,
        )
    return ids


def sample_torch(logits: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
    """PyTorch twin: logits [B, V] and the five parameters [B] -> ids [B]; row by row, so that rows stay apart."""
    ids = logits.argmax(-1)
    if not bool(logits.gather(1, ids[:, None]).isfinite().all()):
        logits = logits.nan_to_num(nan=-math.inf, posinf=_LARGEST, neginf=-math.inf)
        ids = logits.argmax(-1)
    for index, (temperature, *others) in enumerate(zip(*(one.tolist() for one in parameters), strict=True)):
        row = logits[index]
        largest = float(row[ids[index]])
        if temperature > 0 and largest > -math.inf:
            ids[index] = _draw(row, largest, max(temperature, _MIN_TEMPERATURE), *others)
    return ids


def _draw(
    row: torch.Tensor, largest: float, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float
) -> int:
    """The id drawn from ``row: [V]``."""
    kept = None  # the ids of `row`, where that is no longer the whole
    if 0 < top_k < len(row):
        kept = (row >= row.topk(top_k).values[-1]).nonzero().squeeze(1)
        row = row[kept]
    weights = _weights(row, largest, temperature)  # the largest is 1
    if top_p < 1:
        above = row >= _top_p_threshold(row, weights, largest, temperature, top_p)
        above = above.nonzero().squeeze(1)
        kept = above if kept is None else kept[above]
        weights = weights[above]
    if min_p > 0:
        weights.masked_fill_(weights < min_p, 0)
    cumulative = weights.cumsum(0, dtype=torch.float64)
    drawn = torch.searchsorted(cumulative, uniform * cumulative[-1:], right=True)
    return int(drawn if kept is None else kept[drawn])


def _top_p_threshold(
    row: torch.Tensor, weights: torch.Tensor, largest: float, temperature: float, top_p: float
) -> torch.Tensor:
    """The smallest logit that top-p keeps of ``row: [n]``, a scalar tensor."""
    wanted = top_p * weights.sum(dtype=torch.float64)
    for count in (*_CANDIDATES, len(row)):
        values = row.topk(min(count, len(row))).values  # descending
        cumulative = _weights(values, largest, temperature).cumsum(0, dtype=torch.float64)
        last = int(torch.searchsorted(cumulative, wanted))  # the first token with which p is reached is the last kept
        if last < len(values):
            return values[last]
    return values[-1]


def _weights(row: torch.Tensor, largest: float, temperature: float) -> torch.Tensor:
    """exp((row - largest) / temperature) in F32."""
    return row.sub(largest).div_(temperature).exp_()


@jit
def _sample_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,  # [B, V]
    temperature_ptr,  # [B], as are the next four
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    uniform_ptr,
    candidates_ptr,  # [B, CANDIDATES], a workspace
    ids_ptr,  # [B]
    size,
    logits_stride,
    MIN_TEMPERATURE: tl.constexpr,
    LARGEST: tl.constexpr,
    LOG2_E: tl.constexpr,
    BLOCK: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """One program draws one row."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * logits_stride
    own_candidates_ptr = candidates_ptr + row * CANDIDATES
    at = tl.arange(0, BLOCK)

    # The largest logit of each lane and where it came from.
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    best_start = tl.zeros([BLOCK], tl.int32)
    for start in range(0, size, BLOCK):
        x = _load_logits(row_ptr, start + at, size, LARGEST)
        best_start = tl.where(x > best, start, best_start)
        best = tl.maximum(best, x)
    largest = tl.max(best, 0)
    temperature = tl.load(temperature_ptr + row).to(tl.float32)
    if (temperature <= 0.0) | (largest == float("-inf")):
        tl.store(ids_ptr + row, tl.min(tl.where(best == largest, best_start + at, size), 0).to(tl.int64))
        return
    scale = LOG2_E / tl.maximum(temperature, MIN_TEMPERATURE)

    top_k = tl.load(top_k_ptr + row)
    top_k = tl.where(top_k < size, top_k, 0)
    top_p = tl.load(top_p_ptr + row).to(tl.float64)
    lowest = largest - float("inf")
    threshold = lowest
    if (top_k > 0) | (top_p < 1.0):
        # The filters look at the few largest logits first: those that reach the CANDIDATES / 2 nd largest lane, or
        # nearly so; 2^16 steps are less than a hundredth of a number.
        low = _order_of(lowest) + 1
        high = _order_of(largest)
        while low + 65536 < high:
            middle = (low + high + 1) >> 1
            is_low = tl.sum((best >= _logit_at(middle)).to(tl.int32), 0) >= CANDIDATES // 2
            low = tl.where(is_low, middle, low)
            high = tl.where(is_low, high, middle - 1)
        floor = _logit_at(low)
        count = 0
        total = tl.full([], 0.0, tl.float64)
        for start in range(0, size, BLOCK):
            x = _load_logits(row_ptr, start + at, size, LARGEST)
            is_candidate = ((x >= floor) & (start + at < size)).to(tl.int32)
            place = count + tl.cumsum(is_candidate, 0) - 1
            tl.store(own_candidates_ptr + place, x, mask=(is_candidate > 0) & (place < CANDIDATES))
            count += tl.sum(is_candidate, 0)
            total += tl.sum(_weigh(x, largest, scale).to(tl.float64), 0)
        tl.debug_barrier()  # what every thread stored is read by every other
        inside = tl.minimum(count, CANDIDATES)
        held = _mass_from(own_candidates_ptr, inside, floor, largest, scale, LARGEST, CANDIDATES)
        if (count <= CANDIDATES) & tl.where(top_k > 0, count >= top_k, held >= top_p * total):
            threshold = _find_threshold(
                own_candidates_ptr, inside, floor, largest, scale, total, top_k, top_p, LARGEST, CANDIDATES
            )
        else:
            threshold = _find_threshold(row_ptr, size, lowest, largest, scale, total, top_k, top_p, LARGEST, BLOCK)

    min_p = tl.load(min_p_ptr + row).to(tl.float32)
    total = tl.full([], 0.0, tl.float64)
    for start in range(0, size, BLOCK):
        total += tl.sum(_keep(row_ptr, start + at, size, threshold, min_p, largest, scale, LARGEST), 0)
    target = tl.load(uniform_ptr + row).to(tl.float64) * total

    # The tile in which the sum passes the target, or else the last that anything is kept of; then the place in it.
    tile = 0
    chosen = 0
    before = tl.full([], 0.0, tl.float64)
    after = before
    while (after <= target) & (tile * BLOCK < size):
        mass = tl.sum(_keep(row_ptr, tile * BLOCK + at, size, threshold, min_p, largest, scale, LARGEST), 0)
        chosen = tl.where(mass > 0.0, tile, chosen)
        before = tl.where(mass > 0.0, after, before)
        after += mass
        tile += 1
    weights = _keep(row_ptr, chosen * BLOCK + at, size, threshold, min_p, largest, scale, LARGEST)
    cumulative = before + tl.cumsum(weights, 0)
    first = tl.min(tl.where((weights > 0.0) & (cumulative > target), at, BLOCK), 0)
    last = tl.max(tl.where(weights > 0.0, at, 0), 0)  # another order of adding may fall short by a rounding
    tl.store(ids_ptr + row, (chosen * BLOCK + tl.minimum(first, last)).to(tl.int64))


@inlined
def _find_threshold(  # type: ignore[no-untyped-def]
    values_ptr, size, floor, largest, scale, total, top_k, top_p, LARGEST: tl.constexpr, BLOCK: tl.constexpr
):
    """The smallest logit that top-k and top-p keep, of ``size`` values that include all they keep, none below floor.

    ``total``: the weight of the whole row.
    """
    at = tl.arange(0, BLOCK)
    low = _order_of(floor)
    if top_k > 0:  # the largest number that top_k values reach, or any that just these do
        high = _order_of(largest)
        while low < high:
            middle = (low + high + 1) >> 1
            count = 0
            for start in range(0, size, BLOCK):
                x = _load_logits(values_ptr, start + at, size, LARGEST)
                count += tl.sum((x >= _logit_at(middle)).to(tl.int32), 0)
            low = tl.where(count >= top_k, middle, low)
            high = tl.where(count > top_k, high, tl.where(count == top_k, middle, middle - 1))
        total = _mass_from(values_ptr, size, _logit_at(low), largest, scale, LARGEST, BLOCK)
    if top_p < 1.0:  # the smallest number above which less than p lies
        high = _order_of(largest)
        while low < high:
            middle = (low + high) >> 1
            above = _mass_from(values_ptr, size, _logit_at(middle + 1), largest, scale, LARGEST, BLOCK)
            low = tl.where(above < top_p * total, low, middle + 1)
            high = tl.where(above < top_p * total, middle, high)
    return _logit_at(low)


@inlined
def _mass_from(  # type: ignore[no-untyped-def]
    values_ptr, size, floor, largest, scale, LARGEST: tl.constexpr, BLOCK: tl.constexpr
):
    """The F64 sum of the weights of the values >= floor."""
    total = tl.full([], 0.0, tl.float64)
    for start in range(0, size, BLOCK):
        x = _load_logits(values_ptr, start + tl.arange(0, BLOCK), size, LARGEST)
        total += tl.sum(tl.where(x >= floor, _weigh(x, largest, scale), 0.0).to(tl.float64), 0)
    return total


@inlined
def _keep(  # type: ignore[no-untyped-def]
    row_ptr, at, size, threshold, min_p, largest, scale, LARGEST: tl.constexpr
):
    """The weights of the logits at ``at`` in F64, 0 for those that a filter drops."""
    x = _load_logits(row_ptr, at, size, LARGEST)
    weights = _weigh(x, largest, scale)
    return tl.where((x >= threshold) & (weights >= min_p), weights, 0.0).to(tl.float64)


@inlined
def _load_logits(values_ptr, at, size, LARGEST: tl.constexpr):  # type: ignore[no-untyped-def]
    """The logits at ``at``; NaN and what lies outside is -inf, and inf the largest number."""
    x = tl.load(values_ptr + at, mask=at < size, other=float("-inf"))
    return tl.where(x == x, tl.minimum(x, LARGEST), float("-inf"))


@inlined
def _weigh(x, largest, scale):  # type: ignore[no-untyped-def]
    """exp((x - largest) / temperature) in F32, where scale = log2(e) / temperature."""
    return tl.exp2((x - largest) * scale)


@inlined
def _order_of(logit):  # type: ignore[no-untyped-def]
    """An integer that is larger for a larger F32 number, and next to its for the next number."""
    bits = logit.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@inlined
def _logit_at(order):  # type: ignore[no-untyped-def]
    """The F32 number of which `_order_of` is ``order``."""
    bits = order.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


def _check(logits: torch.Tensor, *parameters: torch.Tensor) -> None:
    """Raise KernelError unless there is one of each parameter a row."""
    if logits.ndim != 2 or logits.shape[1] == 0 or any(p.shape != logits.shape[:1] for p in parameters):
        shapes = [list(p.shape) for p in parameters]
        raise KernelError(f"sample got logits {list(logits.shape)} and parameters {shapes}; pass [B, V] and [B] each")
    if logits.dtype != torch.float32 or (logits.stride(1) != 1 and logits.shape[1] > 1):
        raise KernelError(
            f"sample got logits {logits.dtype} with strides {logits.stride()}; pass f32 with a contiguous last axis"
        )
    if any(p.device != logits.device for p in parameters):
        devices = [str(p.device) for p in parameters]
        raise KernelError(f"sample got logits on {logits.device} and parameters on {devices}; pass one device")
