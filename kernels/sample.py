"""Drawing the next token of every row of a batch.

    x = logits / temperature;  then, each on what the one before left:
    top-k   keeps x >= the k-th largest (ties with it included)
    top-p   keeps a token while the tokens before it, in descending order, hold less than p of the probability
    min-p   keeps p(token) >= min_p * the largest p
    the token drawn is the first whose cumulative probability exceeds the row's uniform number

    logits                                     [B, V] f32; -inf is never drawn
    temperature, top_k, top_p, min_p, uniform  [B]

The order is that of transformers' logits warpers. A row's token depends on its own values only, never on the rest of
the batch, and float64 sums make it the same on every device. Holtzman et al., arXiv 1904.09751 (top-p); Nguyen et al.,
arXiv 2407.01082 (min-p).
"""

import torch

from ..errors import KernelError

# What a filtered row is first cut down to; rows that keep more of the vocabulary are sorted whole.
_CANDIDATES = 256


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
        logits: [B, V] f32.
        temperature: [B] floating; 0 takes the largest logit, the lowest id among equals.
        top_k: [B] integer; 0 is off.
        top_p: [B] floating; 1 is off, and at least one token is always kept.
        min_p: [B] floating; 0 is off.
        uniform: [B] floating, each in [0, 1); not used by rows of temperature 0.

    Returns:
        ids: [B] int64.

    Raises:
        KernelError: shapes that do not belong together.
    """
    _check(logits, temperature, top_k, top_p, min_p, uniform)
    drawn = temperature > 0
    ids = logits.argmax(-1)
    if not bool(drawn.any()):
        return ids
    ordered = drawn & ((top_k > 0) | (top_p < 1))
    plain = drawn & ~ordered
    for rows, draw in ((plain, _draw_in_id_order), (ordered, _draw_in_descending_order)):
        chosen = rows.nonzero().squeeze(1)
        if chosen.numel():
            own = (temperature[chosen], top_k[chosen], top_p[chosen], min_p[chosen], uniform[chosen])
            ids[chosen] = draw(logits[chosen], *(value[:, None] for value in own))
    return ids


def _draw_in_id_order(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """Rows [b, V] without top-k and top-p, parameters [b, 1] -> ids [b]; nothing is sorted."""
    weights = _weights(logits, temperature)
    weights.masked_fill_(weights < min_p, 0)  # the largest weight is 1
    return _invert(weights, uniform).squeeze(1)


def _draw_in_descending_order(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """Rows [b, V] with top-k or top-p, parameters [b, 1] -> ids [b].

    A filter that drops a token drops all smaller ones, so when the last of the candidates is dropped they held every
    token that is kept.
    """
    weights = _weights(logits, temperature)
    total = weights.sum(-1, keepdim=True)
    for count in (min(_CANDIDATES, weights.shape[1]), weights.shape[1]):
        ids = weights.topk(count).indices.sort(-1).values if count < weights.shape[1] else None
        candidates = weights if ids is None else weights.gather(1, ids)
        ordered, order = candidates.sort(dim=-1, descending=True, stable=True)  # equals by their id
        kept, drops_the_last = _filter(ordered, total, top_k, top_p, min_p)
        if ids is None or bool(drops_the_last.all()):
            break
    drawn = order.gather(1, _invert(kept, uniform))
    return (drawn if ids is None else ids.gather(1, drawn)).squeeze(1)


def _filter(
    ordered: torch.Tensor, total: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Descending weights [b, n], out of ``total: [b, 1]``, with those that a filter drops set to 0.

    Also whether the first filter that is on drops the last column [b]: then whatever is smaller would not count either.
    """
    last = top_k.long().clamp(1, ordered.shape[1]) - 1
    kept = ordered.masked_fill((top_k > 0) & (ordered < ordered.gather(1, last)), 0)
    cumulative = kept.cumsum(-1)
    total = torch.where(top_k > 0, cumulative[:, -1:], total)
    before = cumulative - kept
    beyond = (top_p < 1) & (before >= top_p * total)
    beyond[:, 0] = False
    drops_the_last = torch.where(top_k > 0, kept[:, -1:] == 0, beyond[:, -1:])
    return kept.masked_fill_(beyond | (ordered < min_p), 0), drops_the_last


def _weights(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """exp((logits - largest) / temperature) in float64: [b, V], the largest is 1 at any temperature."""
    shifted = logits.double() - logits.amax(-1, keepdim=True)
    return shifted.div_(temperature).exp_()


def _invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The first column whose cumulative weight exceeds ``uniform`` of the whole: [b, n], [b, 1] -> [b, 1]."""
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:]
    # A product that rounds up to the total would be exceeded by nothing.
    target = torch.minimum(uniform.double() * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).clamp_(max=weights.shape[1] - 1)


def _check(logits: torch.Tensor, *parameters: torch.Tensor) -> None:
    """Raise KernelError unless there is one of each parameter a row."""
    if logits.ndim != 2 or logits.shape[1] == 0 or any(p.shape != logits.shape[:1] for p in parameters):
        shapes = [list(p.shape) for p in parameters]
        raise KernelError(f"sample got logits {list(logits.shape)} and parameters {shapes}; pass [B, V] and [B] each")
