"""Sampling against transformers' warpers, and the promises of single rows: ties, -inf, the edges of each filter."""

from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hopformer.errors import KernelError
from hopformer.kernels import sample

INF = float("inf")


def draw(logits: torch.Tensor, uniform: torch.Tensor | float, **settings: float) -> torch.Tensor:
    """`sample` with the same settings for every row; by default temperature 1 and no filter."""
    rows = logits.shape[0]
    chosen = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | settings
    tensors: dict[str, Any] = {name: torch.full((rows,), value) for name, value in chosen.items()}
    uniform = torch.as_tensor(uniform, dtype=torch.float64).expand(rows)
    return sample(logits, uniform=uniform, **tensors)


def grid(num_draws: int) -> torch.Tensor:
    """Uniform numbers that lie evenly: frequencies then follow the distribution to 1 / num_draws a token."""
    return (torch.arange(num_draws, dtype=torch.float64) + 0.5) / num_draws


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 0, 1.0, 0.0),
        (0.7, 0, 1.0, 0.0),
        (0.7, 50, 1.0, 0.0),
        (1.3, 0, 0.9, 0.0),
        (3.0, 0, 0.999, 0.0),
        (1.0, 0, 1.0, 0.1),
        (0.8, 20, 0.8, 0.05),
        (1.0, 1, 1.0, 0.0),
        (1.0, 1000, 0.5, 0.0),
    ],
)
@pytest.mark.parametrize("vocab_size", [97, 700])  # below and above the candidates that are tried first
def test_frequencies_are_those_of_transformers(
    temperature: float, top_k: int, top_p: float, min_p: float, vocab_size: int
) -> None:
    logits = torch.randn(1, vocab_size) * 3
    warpers: list[Any] = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    expected = LogitsProcessorList(warpers)(torch.zeros(1, 1, dtype=torch.long), logits).softmax(-1)[0]
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    ids = draw(logits.expand(4000, -1), grid(4000), **settings)
    found = torch.bincount(ids, minlength=vocab_size) / 4000
    assert float((found - expected).abs().max()) < 1e-3


def test_random_numbers_give_the_distribution() -> None:
    """Chi-square over 1e5 draws: 99 degrees of freedom, so 160 is exceeded once in 10,000 seeds; the seed is fixed."""
    logits = torch.randn(1, 100)
    uniform = torch.rand(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(draw(logits.expand(100_000, -1), uniform), minlength=100)
    expected = logits[0].double().softmax(-1) * 100_000
    assert float(((counts - expected) ** 2 / expected).sum()) < 160


def test_temperature_zero_takes_the_lowest_id_of_the_largest() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [5.0, 5.0, 5.0, 5.0]])
    assert draw(logits, 0.99, temperature=0.0).tolist() == [1, 0]


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.9}, {"temperature": 1e-6}, {"temperature": 1e6}])
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_an_excluded_token_is_never_drawn(settings: dict[str, float], uniform: float) -> None:
    logits = torch.tensor([[-INF, 1.0, -INF, 1.0, 0.5, -INF]])
    assert int(draw(logits, uniform, **settings)) in (1, 3, 4)


def test_ties_with_the_last_kept_logit_are_kept() -> None:
    logits = torch.tensor([[1.0, 2.0, 1.0, 1.0, 0.0]])
    drawn = set(draw(logits.expand(1000, -1), grid(1000), top_k=2).tolist())
    assert drawn == {0, 1, 2, 3}


def test_ties_beyond_the_first_candidates_are_kept() -> None:
    drawn = set(draw(torch.zeros(1, 400).expand(4000, -1), grid(4000), top_k=5).tolist())
    assert drawn == set(range(400))


def test_top_p_zero_keeps_one_token_and_top_p_one_keeps_all() -> None:
    logits = torch.tensor([[0.0, 0.1, 0.0]])
    assert set(draw(logits.expand(1000, -1), grid(1000), top_p=0.0).tolist()) == {1}
    assert set(draw(logits.expand(1000, -1), grid(1000), top_p=1.0).tolist()) == {0, 1, 2}


def test_min_p_one_keeps_only_the_largest() -> None:
    assert set(draw(torch.tensor([[0.0, 0.1, 0.1]]).expand(100, -1), grid(100), min_p=1.0).tolist()) == {1, 2}


def test_a_row_does_not_depend_on_the_rest_of_the_batch() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(40, 600, generator=generator)
    settings = {
        "temperature": torch.tensor([0.0, 0.5, 1.0, 2.0]).repeat(10),
        "top_k": torch.tensor([0, 5, 0, 300, 0]).repeat(8),
        "top_p": torch.tensor([1.0, 0.9, 1.0, 0.5, 1.0, 0.999, 1.0, 1.0]).repeat(5),
        "min_p": torch.tensor([0.0, 0.02]).repeat(20),
        "uniform": torch.rand(40, dtype=torch.float64, generator=generator),
    }
    together = sample(logits, **settings)
    alone = [int(sample(logits[i : i + 1], **{k: v[i : i + 1] for k, v in settings.items()})) for i in range(40)]
    assert together.tolist() == alone


def test_more_of_the_uniform_number_gives_a_later_token() -> None:
    ids = draw(torch.randn(1, 50).expand(200, -1), grid(200))
    assert (ids.diff() >= 0).all()


def test_no_rows_give_no_tokens() -> None:
    assert draw(torch.empty(0, 7), 0.5).tolist() == []


def test_parameters_of_another_batch_are_refused() -> None:
    with pytest.raises(KernelError, match=r"logits \[2, 5\] and parameters \[\[1\]"):
        one = torch.ones(1)
        sample(torch.zeros(2, 5), temperature=one, top_k=one.long(), top_p=one, min_p=one, uniform=one)
