"""From seconds to rows."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hopformer.bench.ceilings import Ceilings
from hopformer.bench.contender import Absent
from hopformer.bench.machine import Machine
from hopformer.bench.rows import Conditions, Round, Row, Sample, Software, make_rows
from hopformer.bench.work import ModelWork
from hopformer.llama.config import load_config

CONDITIONS = Conditions(Machine.here(), "tiny", "3 layers", "bfloat16", 2, 10, 5, 3, "int8")
SOFTWARE = {"hopformer": Software("1", "int8"), "other": Software("2", "Q8_0")}


def round_of(ours: tuple[float, float], theirs: tuple[float, float], bytes_per_s: float, operations: float) -> Round:
    return Round(Ceilings(bytes_per_s, operations), {"hopformer": Sample(*ours), "other": Sample(*theirs)})


ROUNDS = [
    round_of((1.0, 0.010), (2.0, 0.030), 1e9, 1e12),
    round_of((2.0, 0.020), (3.0, 0.020), 5e8, 5e11),  # the machine was slow
    round_of((4.0, 0.040), (4.0, 0.100), 1e9, 1e12),
]


@pytest.fixture
def work(tmp_path: Path) -> ModelWork:
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return ModelWork(load_config(tmp_path), torch.bfloat16)


@pytest.fixture
def rows(work: ModelWork) -> dict[tuple[str, str], Row]:
    made = make_rows(CONDITIONS, work, ROUNDS, SOFTWARE, [Absent("third", "not installed")])
    return {(row.phase, row.runs): row for row in made}


def test_a_time_is_the_median_over_the_rounds(rows: dict[tuple[str, str], Row]) -> None:
    ours = rows["decode", "hopformer"]
    assert (ours.time_ms_min, ours.time_ms, ours.time_ms_max) == pytest.approx((10.0, 20.0, 40.0))
    assert ours.tokens_per_s == pytest.approx(50.0)
    assert rows["prefill", "other"].time_ms == pytest.approx(3000.0)
    assert rows["prefill", "other"].tokens_per_s == pytest.approx(10 / 3.0)


def test_a_ratio_is_the_median_of_the_rounds_own_ratios(rows: dict[tuple[str, str], Row]) -> None:
    assert rows["decode", "other"].ours_over_it == pytest.approx(2.5)  # of 3, 1 and 2.5; the medians' ratio is 1.5
    assert rows["prefill", "other"].ours_over_it == pytest.approx(1.5)
    assert rows["decode", "hopformer"].ours_over_it is None


def test_a_percentage_is_of_the_ceiling_of_the_same_round(rows: dict[tuple[str, str], Row], work: ModelWork) -> None:
    ours = rows["decode", "hopformer"]
    assert ours.context == 13.0  # of 11, 12, 13, 14 and 15 tokens
    num_bytes = replace(work, weights="int8").decode_bytes(13)
    assert ours.gb_per_s == pytest.approx(num_bytes / 0.020 / 1e9)
    # of 10 ms at 1 GB/s, 20 ms at half of that, 40 ms at 1 GB/s: the first two are the same share
    assert ours.percent_of_ceiling == pytest.approx(100 * num_bytes / 0.010 / 1e9)
    assert ours.ceiling == pytest.approx(1.0) and ours.tflop_per_s is None


def test_everybody_is_charged_with_the_bytes_of_his_own_format(
    rows: dict[tuple[str, str], Row], work: ModelWork
) -> None:
    for name, weights, time_s in (("hopformer", "int8", 0.020), ("other", "Q8_0", 0.030)):
        row = rows["decode", name]
        assert row.weights == weights and row.conditions.quantize == "int8"
        assert row.gb_per_s == pytest.approx(replace(work, weights=weights).decode_bytes(13) / time_s / 1e9)


def test_prefill_is_rated_in_operations(rows: dict[tuple[str, str], Row], work: ModelWork) -> None:
    theirs = rows["prefill", "other"]
    assert theirs.tflop_per_s == pytest.approx(work.prefill_operations(10) / 3.0 / 1e12)
    assert theirs.ceiling == pytest.approx(1.0) and theirs.gb_per_s is None and theirs.context == 10


def test_an_absent_baseline_has_a_row_that_says_why(rows: dict[tuple[str, str], Row]) -> None:
    for phase in ("prefill", "decode"):
        row = rows[phase, "third"]
        assert row.note == "not installed" and row.time_ms is None and row.version is None


def test_ours_comes_first_and_prefill_before_decode(rows: dict[tuple[str, str], Row]) -> None:
    contenders = ["hopformer", "other", "third"]
    assert list(rows) == [(phase, name) for phase in ("prefill", "decode") for name in contenders]


def test_a_row_in_json_is_flat_and_says_where_it_was_measured(rows: dict[tuple[str, str], Row]) -> None:
    content = json.loads(json.dumps(rows["decode", "other"].as_json()))
    assert not any(isinstance(value, dict | list) for value in content.values())
    assert content["device"] and content["torch"] == torch.__version__ and content["num_cores"] >= 1
    assert "commit" in content and len(content["date"]) == 10
    assert (content["bench"], content["runs"], content["dtype"], content["num_threads"]) == (
        "decode",
        "other",
        "bfloat16",
        2,
    )
