"""Tables in documents come from result files, and those in the repository are up to date."""

import json
import re
from pathlib import Path

import pytest

from hopformer.bench.table import RESULTS, as_markdown, fill_tables

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = [ROOT / "docs" / "benchmarks.md", ROOT / "README.md"]

COMMON = {
    "bench": "decode",
    "commit": "abc",
    "date": "2026-01-02",
    "device": "A CPU",
    "num_cores": 2,
    "memory_gib": 8,
    "system": "Linux x86_64",
    "python": "3.11",
    "torch": "2.13",
    "model": "tiny",
    "shape": "3 layers",
    "dtype": "bfloat16",
    "num_threads": 2,
    "prompt_tokens": 10,
    "decode_tokens": 5,
    "rounds": 3,
    "note": None,
    "time_ms": 40.0,
    "time_ms_min": 30.0,
    "time_ms_max": 50.0,
    "tokens_per_s": 25.0,
    "percent_of_ceiling": 80.0,
}
OURS = {**COMMON, "runs": "hopformer", "version": "0.1", "ours_over_it": None}
THEIRS = {**COMMON, "runs": "other", "version": "9", "ours_over_it": 2.345}
PREFILL = {"phase": "prefill", "tflop_per_s": 0.5, "gb_per_s": None, "ceiling": 0.75}
DECODE = {"phase": "decode", "tflop_per_s": None, "gb_per_s": 44.4, "ceiling": 50.0}
MISSING = {**COMMON, "runs": "third", "version": None, "note": "not installed", "tokens_per_s": None}
ROWS = [{**who, **phase} for phase in (PREFILL, DECODE) for who in (OURS, THEIRS, MISSING)]


def test_each_contender_is_a_line_with_both_phases() -> None:
    lines = as_markdown(ROWS).splitlines()
    assert "`tiny` in bfloat16" in lines[0] and "A CPU" in lines[0] and "commit abc" in lines[0]
    ours, theirs, third = lines[4:]
    assert ours.startswith("| **hopformer (0.1)** | 25 | 80% of 0.75 TFLOP/s |  | 25.0 | 40.0 (30.0 to 50.0) | 44.4 |")
    assert theirs.count("2.35x") == 2 or theirs.count("2.34x") == 2
    assert "not installed" in third
    assert {line.count("|") for line in lines[2:]} == {10}


def test_only_the_places_for_rows_are_rewritten(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(ROWS))
    before = "# A\n<!-- rows: one.json -->\nold\n<!-- end of rows -->\ntext\n"
    after = fill_tables(before, tmp_path)
    assert after.startswith("# A\n<!-- rows: one.json -->\n`tiny`") and after.endswith("<!-- end of rows -->\ntext\n")
    assert "old" not in after and fill_tables(after, tmp_path) == after


def test_quantised_rows_name_everybodys_format_and_what_is_lost() -> None:
    rows = [{**row, "quantize": "int8", "weights": "int8" if row["runs"] == "hopformer" else "Q8_0"} for row in ROWS]
    error = {
        **COMMON,
        "bench": "quant_error",
        "quantize": "int8",
        "text": "random ids",
        "num_positions": 508,
        "logit_error": 0.0123,
        "kl_nats": 0.00056,
        "same_top_percent": 99.5,
        "perplexity": None,
        "perplexity_unquantized": None,
    }
    text = as_markdown([*rows, error])
    assert "in bfloat16, weights quantised to int8 (3 layers)" in text
    assert "**hopformer int8 (0.1)**" in text and "| other Q8_0 (9) |" in text
    last = text.splitlines()[-1]
    assert "logits off by 1.23%, KL divergence 0.00056 nats, the same token first in 99.5%." in last
    answers = {**error, "perplexity": 1.25, "perplexity_unquantized": 1.2}
    assert as_markdown([*rows, answers]).endswith("perplexity 1.2500 for 1.2000.\n")
    alone = as_markdown([answers, error]).splitlines()
    assert len(alone) == 2 and all(line.startswith(f"- `{error['model']}` on {error['device']}") for line in alone)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_documents_show_what_the_result_files_say(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert fill_tables(text, RESULTS) == text, f"run python -m hopformer.bench.table {path.name}"


def test_every_result_file_is_shown_and_names_its_hardware() -> None:
    shown = set(re.findall(r"<!-- rows: (\S+) -->", DOCUMENTS[0].read_text(encoding="utf-8")))
    files = {path.name for path in RESULTS.glob("*.json")}
    assert shown == files and files
    for name in files:
        for row in json.loads((RESULTS / name).read_text(encoding="utf-8")):
            assert row["device"] and row["torch"] and row["date"]
