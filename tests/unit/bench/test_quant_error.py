"""What quantising loses, on models small enough to be looked at."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from hopformer.bench import quant_error
from hopformer.bench.machine import Machine
from hopformer.bench.quant_error import QuantErrorRow, Text, bench_quant_error
from hopformer.bench.rows import Conditions
from hopformer.errors import UsageError
from hopformer.llama.assemble import Placement

MakeFolder = Callable[..., Path]
DEMO = Path(__file__).resolve().parents[3] / "llama" / "demo"


def measure(folder: Path, quantize: str, dtype: torch.dtype = torch.float32) -> QuantErrorRow:
    conditions = Conditions(Machine.here(), "tiny", "3 layers", "float32", 2, 10, 5, 3, quantize)
    return bench_quant_error(folder, dtype, conditions)


def test_without_quantisation_nothing_is_lost(tiny_folder: MakeFolder) -> None:
    row = measure(tiny_folder(), "none")
    assert (row.logit_error, row.kl_nats, row.same_top_percent) == (0.0, 0.0, 100.0)
    assert row.num_positions == 4 * 127 and row.text == "random ids" and row.perplexity is None


def test_fewer_bits_lose_more(tiny_folder: MakeFolder) -> None:
    folder = tiny_folder()
    eight, four = measure(folder, "int8"), measure(folder, "int4")
    assert 0 < eight.logit_error < four.logit_error < 1
    assert 0 < eight.kl_nats < four.kl_nats
    assert 100 > eight.same_top_percent > four.same_top_percent > 0


def test_a_model_with_a_tokenizer_answers_the_held_out_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quant_error, "NUM_QUESTIONS", 12)
    row = measure(DEMO, "int4", torch.bfloat16)
    assert row.text == "right answers to 12 held-out questions" and row.num_positions > 40
    assert row.perplexity is not None and row.perplexity_unquantized is not None
    assert 1 < row.perplexity_unquantized < 2 and row.perplexity < 1.2 * row.perplexity_unquantized
    assert 0 < row.logit_error < 0.3 and row.same_top_percent > 90


def test_logits_are_those_before_the_tokens_that_are_looked_at(tiny_folder: MakeFolder) -> None:
    folder = tiny_folder("qwen3")
    oracle = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    texts = [Text([5, 7, 11, 13, 17], 3), Text(list(range(70)), 69)]
    found = quant_error._logits_of(folder, Placement(torch.device("cpu"), torch.float32, 70), texts)
    with torch.inference_mode():
        expected = [oracle(torch.tensor([text.token_ids])).logits[0, text.first - 1 : -1] for text in texts]
    assert torch.allclose(found, torch.cat(expected), atol=1e-3)


def test_measures_are_what_their_names_say() -> None:
    before = torch.tensor([[2.0, 0.0, -2.0], [0.0, 3.0, 0.0]])
    logit_error, kl_nats, same = quant_error._compare(before, before + 7)  # a constant changes no distribution
    assert logit_error == pytest.approx(0, abs=1e-6) and kl_nats == pytest.approx(0, abs=1e-6) and same == 100
    after = torch.tensor([[0.0, 2.0, -2.0], [0.0, 3.0, 0.0]])
    p, q = before.double().softmax(1), after.double().softmax(1)
    logit_error, kl_nats, same = quant_error._compare(before, after)
    assert logit_error == pytest.approx(math.sqrt(8 / (8 + 6)))
    assert kl_nats == pytest.approx(float((p * (p / q).log()).sum(1).mean())) and same == 50
    assert quant_error._perplexity(torch.zeros(3, 8), torch.tensor([1, 2, 3])) == pytest.approx(8)


def test_a_row_in_json_is_flat_and_says_where_it_was_measured(tiny_folder: MakeFolder) -> None:
    content = json.loads(json.dumps(measure(tiny_folder(), "int8").as_json()))
    assert not any(isinstance(value, dict | list) for value in content.values())
    assert (content["bench"], content["quantize"], content["model"]) == ("quant_error", "int8", "tiny")
    assert content["device"] and content["torch"] == torch.__version__ and "prompt_tokens" not in content


def test_a_quantisation_that_means_nothing_is_refused(tiny_folder: MakeFolder) -> None:
    with pytest.raises(UsageError, match="--quantize int3 is unknown"):
        measure(tiny_folder(), "int3")
