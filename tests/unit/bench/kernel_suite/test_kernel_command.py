"""`hopformer bench kernels` as it is typed."""

import json
from pathlib import Path

import pytest
import torch

from hopformer.bench import kernel_plot, kernel_suite
from hopformer.bench.kernel_cases import KERNELS
from hopformer.bench.kernel_table import kernels_as_markdown, three_digits
from hopformer.bench.table import as_markdown
from hopformer.cli.app import run

COMMAND = ["bench", "kernels", "--seconds", "0.001", "--threads", "2", "--device", "cpu"]


def test_json_on_stdout_is_rows_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*COMMAND, "swiglu", "sample", "--model", "tinyllama", "--model", "other", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["bench"] for row in rows} == {"kernels"}
    assert {(row["model"], row["kernel"]) for row in rows} == {
        (model, kernel) for model in ("tinyllama", "other") for kernel in ("swiglu", "sample")
    }
    for row in rows:
        assert row["note"] or row["time_us_p10"] <= row["time_us"] <= row["time_us_p90"]


def test_the_whole_table_fits_into_100_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    output = tmp_path / "rows.json"
    assert run([*COMMAND, *KERNELS, "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= 100 for line in shown.splitlines()) and "…" not in shown
    assert all(kernel in shown for kernel in KERNELS)
    assert "no GPU" in shown and "x SDPA" in shown and "torch.compile: no compiler in these tests" in shown
    rows = json.loads(output.read_text())
    text = as_markdown(rows)
    assert text == kernels_as_markdown(rows) and "| decode_attention | B3x70 | 3 x 70 tokens each" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["flash"], "'flash' is no kernel"),
        (["--model", "gpt-5"], "no shape"),
        (["--dtype", "int3"], "--dtype int3 is unknown"),
        (["--seconds", "0"], "--seconds is 0"),
        (["--plot", "roofline.txt"], "must end in one of .png"),
        (["--plot", "nowhere/roofline.png"], "there is no folder nowhere"),
        (["--sweep"], "needs a GPU"),
    ],
)
def test_what_means_nothing_is_wrong_usage(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_suite, "open_stopwatch", None)  # nothing is measured
    pytest.importorskip("matplotlib")
    assert run([*COMMAND, *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == "" and captured.err.count("\n") == 1


def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_plot, "find_spec", lambda name: None)
    monkeypatch.setattr(kernel_suite, "open_stopwatch", None)
    assert run([*COMMAND, "swiglu", "--plot", str(tmp_path / "a.png")]) == 2
    assert "pip install 'hopformer[bench]'" in capsys.readouterr().err


def test_a_plot_adds_decode_by_context(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "kernels.png"
    assert run([*COMMAND, "rms_norm", "--plot", str(path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert sorted({row["context"] for row in rows if row["context"]}) == [16, 65]
    assert path.read_bytes().startswith(b"\x89PNG")
    kernel_plot.draw([row for row in rows if row["context"] is None], path)  # the roofline alone
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("value", "text"), [(1.2345, "1.23"), (99.94, "99.9"), (123.4, "123"), (1234.0, "1,230"), (45678.0, "45,700")]
)
def test_times_have_three_digits(value: float, text: str) -> None:
    assert three_digits(value) == text


def test_dtypes_are_those_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*COMMAND, "swiglu", "--dtype", "float32", "--json"]) == 0
    assert {row["dtype"] for row in json.loads(capsys.readouterr().out)} == {"float32"}
    assert torch.get_default_dtype() == torch.float32
