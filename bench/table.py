"""Tables from result files, so that no figure in a document is typed by hand.

    python -m hopformer.bench.table docs/benchmarks.md README.md

rewrites, in each document, what stands between a line `<!-- rows: FILE.json -->` and the next `<!-- end of rows -->`,
where FILE is one of bench/results/.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .kernel_table import kernels_as_markdown
from .net_table import net_as_markdown
from .placement_rows import placement_as_markdown
from .rows import OURS

RESULTS = Path(__file__).parent / "results"
_PLACE = re.compile(r"(<!-- rows: (?P<file>[\w.-]+\.json) -->\n).*?(<!-- end of rows -->)", re.DOTALL)
JsonRow = Mapping[str, Any]


def fill_tables(document: str, results: Path) -> str:
    """The document with every place for rows filled from ``results``, a folder."""

    def table(place: re.Match[str]) -> str:
        rows = json.loads((results / place["file"]).read_text(encoding="utf-8"))
        return f"{place[1]}{as_markdown(rows)}{place[3]}"

    return _PLACE.sub(table, document)


def as_markdown(rows: Sequence[JsonRow]) -> str:
    """One run's rows as a sentence about its conditions and a table: of `bench decode`, a line for each contender."""
    if rows[0]["bench"] == "kernels":
        return kernels_as_markdown(rows)
    if rows[0]["bench"] == "net":
        return net_as_markdown(rows)
    if rows[0]["bench"] == "placement":
        return placement_as_markdown(rows)
    if rows[0]["bench"] == "quant_error":
        return "".join(
            f"- `{row['model']}` on {row['device']}, torch {row['torch']}, commit {row['commit']}, {row['date']}: "
            f"{_describe_error(row)}\n"
            for row in rows
        )
    lines = [
        _describe_conditions(rows[0]),
        "",
        "| | prefill, tokens/s | of the matmul ceiling | hopformer's | decode, tokens/s | ms a token (range) | GB/s "
        "| of the memory ceiling | hopformer's |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    speeds = [row for row in rows if row["bench"] == "decode"]
    decodes = {row["runs"]: row for row in speeds if row["phase"] == "decode"}
    for prefill in (row for row in speeds if row["phase"] == "prefill"):
        lines.append(_line(prefill, decodes[prefill["runs"]]))
    for row in rows:
        if row["bench"] == "quant_error":
            lines += ["", _describe_error(row)]
    return "\n".join(lines) + "\n"


def _describe_conditions(row: JsonRow) -> str:
    commit = f"commit {row['commit']}" if row["commit"] else "no commit"
    threads = "on " if row.get("cuda") else f"{row['num_threads']} threads on "
    quantized = f", weights quantised to {row['quantize']}" if _is_quantized(row) else ""
    return (
        f"`{row['model']}` in {row['dtype']}{quantized} ({row['shape']}); {row['prompt_tokens']} tokens of prompt, "
        f"then {row['decode_tokens']} decoded one by one; {threads}{row['device']} "
        f"({row['num_cores']} cores, {row['memory_gib']} GiB, {row['system']}), torch {row['torch']}, Python "
        f"{row['python']}; medians of {row['rounds']} rounds in alternation; {commit}, {row['date']}."
    )


def _describe_error(row: JsonRow) -> str:
    perplexity = ""
    if row["perplexity"] is not None:
        perplexity = f", perplexity {row['perplexity']:.4f} for {row['perplexity_unquantized']:.4f}"
    return (
        f"hopformer's {row['quantize']} beside its {row['dtype']}, on {row['num_positions']} tokens of {row['text']}: "
        f"logits off by {100 * row['logit_error']:.2f}%, KL divergence {row['kl_nats']:.2g} nats, the same token first "
        f"in {row['same_top_percent']:.1f}%{perplexity}."
    )


def _line(prefill: JsonRow, decode: JsonRow) -> str:
    if prefill["note"]:
        return f"| {prefill['runs']} | {prefill['note']} | | | | | | | |"
    weights = f" {prefill['weights']}" if _is_quantized(prefill) else ""
    name = f"{prefill['runs']}{weights} ({prefill['version']})"
    cells = [
        f"**{name}**" if prefill["runs"] == OURS else name,
        f"{prefill['tokens_per_s']:.0f}",
        f"{prefill['percent_of_ceiling']:.0f}% of {prefill['ceiling']:.2f} TFLOP/s",
        _ratio(prefill),
        f"{decode['tokens_per_s']:.1f}",
        f"{decode['time_ms']:.1f} ({decode['time_ms_min']:.1f} to {decode['time_ms_max']:.1f})",
        f"{decode['gb_per_s']:.1f}",
        f"{decode['percent_of_ceiling']:.0f}% of {decode['ceiling']:.1f} GB/s",
        _ratio(decode),
    ]
    return f"| {' | '.join(cells)} |"


def _is_quantized(row: JsonRow) -> bool:
    """Whether the run was one with --quantize; rows from before there was one lack the word."""
    return row.get("quantize", "none") != "none"


def _ratio(row: JsonRow) -> str:
    """How many times as fast as this row hopformer was."""
    return "" if row["ours_over_it"] is None else f"{row['ours_over_it']:.2f}x"


def main() -> None:
    """Rewrite the documents named on the command line."""
    for path in map(Path, sys.argv[1:]):
        path.write_text(fill_tables(path.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")


if __name__ == "__main__":
    main()
