"""`hopformer bench decode` as it is typed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hopformer.bench import random_model
from hopformer.bench.random_model import SHAPES
from hopformer.cli.app import run

MakeFolder = Callable[..., Path]
SMALL = ["--prompt-tokens", "19", "--decode-tokens", "4", "--rounds", "2", "--threads", "2"]


def test_json_on_stdout_is_rows_alone(tiny_folder: MakeFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "decode", str(tiny_folder()), *SMALL, "--against", "transformers", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["phase"], row["runs"]) for row in rows] == [
        ("prefill", "hopformer"),
        ("prefill", "transformers"),
        ("decode", "hopformer"),
        ("decode", "transformers"),
    ]
    for row in rows:
        assert row["model"] == "model-llama" and row["dtype"] == "float32"
        assert row["tokens_per_s"] > 0 and row["percent_of_ceiling"] > 0
        assert row["time_ms_min"] <= row["time_ms"] <= row["time_ms_max"]
        assert (row["gb_per_s"] is None) == (row["phase"] == "prefill")
        assert (row["ours_over_it"] is None) == (row["runs"] == "hopformer")


def test_a_table_fits_into_80_columns_and_the_file_has_its_rows(
    tiny_folder: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    output = tmp_path / "rows.json"
    arguments = [*SMALL, "--dtype", "bfloat16", "--against", "none", "--output", str(output)]
    assert run(["bench", "decode", str(tiny_folder()), *arguments]) == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert "tokens/s" in shown and "hopformer" in shown and "…" not in shown
    rows = json.loads(output.read_text())
    assert [row["dtype"] for row in rows] == ["bfloat16", "bfloat16"]


def test_quantised_rows_come_with_what_is_lost(
    tiny_folder: MakeFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ["bench", "decode", str(tiny_folder()), *SMALL, "--against", "none", "--quantize"]
    assert run([*arguments, "int8", "--json"]) == 0
    *rows, error = json.loads(capsys.readouterr().out)
    assert [(row["phase"], row["weights"], row["quantize"]) for row in rows] == [
        ("prefill", "int8", "int8"),
        ("decode", "int8", "int8"),
    ]
    assert error["bench"] == "quant_error" and error["quantize"] == "int8" and 0 < error["logit_error"] < 0.2
    assert run([*arguments, "int4"]) == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert (
        "float32, quantised to int4" in shown
        and "int4 beside float32, 508 tokens of random ids" in shown
        and "KL" in shown
    )


def test_a_random_model_is_made_and_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    small = {**SHAPES["tinyllama"], **sizes, "head_dim": 16, "vocab_size": 131}
    monkeypatch.setattr(random_model, "SHAPES", {"small": small})
    assert run(["bench", "decode", "random:small", *SMALL, "--against", "none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["model"] == "random:small"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["random:gpt-5"], "no shape of a random model"),
        (["FOLDER", "--rounds", "0"], "--rounds is 0"),
        (["FOLDER", "--against", "vllm"], "'vllm' is unknown"),
        (["FOLDER", "--against", "transformers,transformers"], "names one twice"),
        (["FOLDER", "--dtype", "int3"], "--dtype int3 is unknown"),
        (["FOLDER", "--quantize", "int3"], "--quantize int3 is unknown; use none, int8 or int4"),
    ],
)
def test_what_means_nothing_is_wrong_usage(
    arguments: list[str], message: str, tiny_folder: MakeFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tiny_folder())
    assert run(["bench", "decode", *SMALL, *(folder if one == "FOLDER" else one for one in arguments)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""
