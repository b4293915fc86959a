"""Sampling: bounds of the settings, the distribution that is drawn from, and transformers' processors as the oracle."""

import math
from collections import Counter

import pytest
import torch
import transformers
from torch import Tensor

from hopformer.errors import RequestError
from hopformer.llama.sampling import MAX_LOGPROBS, SampledToken, SampleRow, SamplingParams, sample_rows, uniform

NUM_DRAWS = 6000
LOGITS = torch.tensor([2.0, 1.5, -0.5, 1.0, 0.0, 1.9, -3.0, 0.7, 1.2, -1.0, 0.3, -math.inf])


def draw(logits: Tensor, params: SamplingParams, count: int = NUM_DRAWS, seen: Tensor | None = None) -> list[int]:
    """Tokens drawn at ``count`` positions from the same logits [V]."""
    rows = [SampleRow(params, position, seen) for position in range(count)]
    return [token.token_id for token in sample_rows(logits.repeat(count, 1), rows)]


def assert_drawn_from(probabilities: Tensor, token_ids: list[int]) -> None:
    """Pearson's chi-square over the tokens that can occur; draws are a function of the seed, so this never flakes."""
    counts = Counter(token_ids)
    support = probabilities.nonzero().flatten().tolist()
    assert set(counts) == set(support)
    expected = [float(probabilities[token_id]) * len(token_ids) for token_id in support]
    assert min(expected) > 5, "too few draws for the approximation"
    statistic = sum((counts[token] - mean) ** 2 / mean for token, mean in zip(support, expected, strict=True))
    freedom = len(support) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom) + 1e-9  # five standard deviations


def warped(logits: Tensor, *warpers: transformers.LogitsProcessor, context: tuple[int, ...] = (0,)) -> Tensor:
    """transformers' probabilities [V] after ``warpers``."""
    scores = logits[None]
    for warper in warpers:
        scores = warper(torch.tensor([context]), scores)
    return scores[0].double().softmax(-1)


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("temperature", (0.0, 1e-6, 100.0), (-0.1, 100.1, math.inf, math.nan)),
        ("top_k", (0, 1, 2**31 - 1), (-1, 2**31)),
        ("top_p", (0.0, 0.5, 1.0), (-0.01, 1.01, math.nan)),
        ("min_p", (0.0, 0.5, 1.0), (-0.01, 1.01, math.nan)),
        ("repetition_penalty", (0.01, 1.0, 100.0), (0.0, -1.0, 100.1, math.inf, math.nan)),
        ("seed", (None, 0, 2**64 - 1), (-1, 2**64)),
        ("logprobs", (0, MAX_LOGPROBS), (-1, MAX_LOGPROBS + 1)),
    ],
)
def test_settings_out_of_range_are_refused(name: str, allowed: tuple[object, ...], refused: tuple[object, ...]) -> None:
    for value in allowed:
        SamplingParams(**{name: value})  # type: ignore[arg-type]
    for value in refused:
        with pytest.raises(RequestError, match=f"{name} is {value}; it must be "):
            SamplingParams(**{name: value})  # type: ignore[arg-type]


def test_the_random_number_depends_on_seed_and_position_and_on_nothing_else() -> None:
    numbers = {(seed, position): uniform(seed, position) for seed in range(40) for position in range(40)}
    assert len(set(numbers.values())) == 1600
    assert all(uniform(*key) == number for key, number in numbers.items())
    assert all(0.0 <= number < 1.0 for number in numbers.values())
    assert 0.0 <= uniform(2**64 - 1, 2**31) < 1.0


@pytest.mark.parametrize("by_seed", [True, False], ids=["over seeds", "over positions"])
def test_the_random_numbers_are_uniform(by_seed: bool) -> None:
    numbers = [uniform(index, 5) if by_seed else uniform(5, index) for index in range(8000)]
    assert_drawn_from(torch.full((40,), 1 / 40), [int(number * 40) for number in numbers])


def test_successive_positions_are_independent() -> None:
    pairs = [int(uniform(3, n) * 5) * 5 + int(uniform(3, n + 1) * 5) for n in range(8000)]
    assert_drawn_from(torch.full((25,), 1 / 25), pairs)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_tokens_are_drawn_with_the_probabilities_of_the_softmax(temperature: float) -> None:
    logits = LOGITS / 2  # so flat that each token is expected often enough
    drawn = draw(logits, SamplingParams(temperature=temperature, seed=11))
    assert_drawn_from((logits.double() / temperature).softmax(-1), drawn)


FILTERS = {
    "top-k": {"top_k": 4},
    "top-k of everything": {"top_k": 12},
    "top-k beyond everything": {"top_k": 1000},
    "top-p": {"top_p": 0.7},
    "top-p of nearly nothing": {"top_p": 0.01},
    "min-p": {"min_p": 0.3},
    "all at a low temperature": {"temperature": 0.8, "top_k": 7, "top_p": 0.9, "min_p": 0.15},
    "all at a high temperature": {"temperature": 1.6, "top_k": 9, "top_p": 0.8, "min_p": 0.2},
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters_keep_what_transformers_keeps(name: str) -> None:
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **FILTERS[name]}
    warpers: list[transformers.LogitsProcessor] = [transformers.TemperatureLogitsWarper(settings["temperature"])]
    if settings["top_k"]:
        warpers.append(transformers.TopKLogitsWarper(settings["top_k"]))
    if settings["top_p"] < 1:
        warpers.append(transformers.TopPLogitsWarper(settings["top_p"]))
    if settings["min_p"]:
        warpers.append(transformers.MinPLogitsWarper(settings["min_p"]))
    logits = LOGITS * 0.8
    expected = warped(logits, *warpers)
    assert_drawn_from(expected, draw(logits, SamplingParams(seed=5, **settings)))  # type: ignore[arg-type]


@pytest.mark.parametrize("penalty", [0.6, 1.3, 4.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    context = (0, 5, 5, 2, 9)
    seen = torch.zeros(12, dtype=torch.bool)
    seen[list(context)] = True
    expected = warped(LOGITS, transformers.RepetitionPenaltyLogitsProcessor(penalty), context=context)
    params = SamplingParams(temperature=1.0, repetition_penalty=penalty, seed=3)
    kept = expected.where(expected * NUM_DRAWS > 6, 0.0)
    drawn = [token_id for token_id in draw(LOGITS, params, seen=seen) if kept[token_id] > 0]
    assert_drawn_from(kept / kept.sum(), drawn)


def test_greedy_takes_the_penalty_into_account() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300, 12, generator=generator)
    contexts = torch.randint(12, (300, 5), generator=generator)
    processor = transformers.RepetitionPenaltyLogitsProcessor(1.8)
    rows = []
    for context in contexts:
        seen = torch.zeros(12, dtype=torch.bool)
        seen[context] = True
        rows.append(SampleRow(SamplingParams(repetition_penalty=1.8), 5, seen))
    drawn = [token.token_id for token in sample_rows(logits, rows)]
    assert drawn == processor(contexts, logits.clone()).argmax(-1).tolist()
    assert drawn != logits.argmax(-1).tolist()


def test_sampling_leaves_the_logits_as_they_were() -> None:
    logits = LOGITS.repeat(2, 1)
    params = SamplingParams(temperature=0.7, top_k=3, top_p=0.9, min_p=0.1, repetition_penalty=1.5, seed=1, logprobs=3)
    sample_rows(logits, [SampleRow(params, 0, torch.ones(12, dtype=torch.bool))] * 2)
    assert torch.equal(logits, LOGITS.repeat(2, 1))


def test_rows_with_different_settings_are_drawn_as_each_would_be_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(7, 500, generator=generator)
    seen = torch.rand(500, generator=generator) < 0.3
    settings = [
        SamplingParams(),
        SamplingParams(temperature=1.0, seed=1),
        SamplingParams(temperature=2.0, seed=2, top_k=400),
        SamplingParams(temperature=0.8, seed=3, top_p=0.9, logprobs=4),
        SamplingParams(temperature=1.5, seed=4, min_p=0.05),
        SamplingParams(temperature=1.5, seed=5, repetition_penalty=1.7, top_k=3),
        SamplingParams(repetition_penalty=1.7, logprobs=2),
    ]
    rows = [SampleRow(params, 40 + index, seen) for index, params in enumerate(settings)]
    together = sample_rows(logits, rows)
    alone = [sample_rows(logits[index : index + 1], [row])[0] for index, row in enumerate(rows)]
    assert [token.token_id for token in together] == [token.token_id for token in alone]
    assert [len(token.logprobs) for token in together] == [0, 0, 0, 4, 0, 0, 2]


def test_temperature_0_takes_the_most_likely_token_whatever_the_filters_say() -> None:
    params = SamplingParams(temperature=0.0, top_k=5, top_p=0.5, min_p=0.1)
    assert set(draw(LOGITS, params, count=20)) == {0}


def test_a_tiny_temperature_does_not_overflow() -> None:
    assert set(draw(LOGITS * 100, SamplingParams(temperature=1e-6, seed=1), count=50)) == {0}


def test_log_probabilities_are_those_of_the_model_before_sampling() -> None:
    params = SamplingParams(temperature=0.3, top_k=2, repetition_penalty=3.0, seed=1, logprobs=5)
    (token,) = sample_rows(LOGITS[None], [SampleRow(params, 0, torch.ones(12, dtype=torch.bool))])
    values, ids = LOGITS.log_softmax(-1).topk(5)
    assert [token_id for token_id, _ in token.logprobs] == ids.tolist()
    assert [value for _, value in token.logprobs] == pytest.approx(values.tolist())


def test_more_log_probabilities_than_tokens_are_all_of_them() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    (token,) = sample_rows(logits, [SampleRow(SamplingParams(logprobs=9), 0)])
    assert isinstance(token, SampledToken)
    assert [token_id for token_id, _ in token.logprobs] == [2, 1, 0]
    assert math.fsum(math.exp(value) for _, value in token.logprobs) == pytest.approx(1.0)
