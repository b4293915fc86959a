"""What is wrong with rows of --aot, and how they are shown: no compiler needed."""

import json
from collections.abc import Mapping
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from hopformer.bench import aot
from hopformer.bench.aot import AotPart, AotRow, find_faults, find_uncompiled
from hopformer.bench.aot_table import describe_opcodes, rich_tables
from hopformer.cli.app import run
from hopformer.errors import KernelError

PREFILL = AotRow(
    kernel="prefill",
    config="bfloat16 D128 G4 page64 BLOCK_M=128 BLOCK_N=64 w8 s3",
    target="sm_90",
    registers=184,
    spill_bytes=0,
    shared_bytes=98308,
    opcodes={"HGMMA": 24, "LDGSTS.128": 32, "LDGSTS.32": 6, "LDG.32": 5, "MUFU.EX2": 68},
    loads={"rows_at": {"LDGSTS.128": 32}, "table_ptr": {"LDGSTS.32": 6}, "cu_seqlens_ptr": {"LDG.32": 2}},
    table_row=3,
    code="a",
)
F32 = replace(PREFILL, config="float32 D128 G4 page64 BLOCK_M=64 w8 s3", opcodes={"LDGSTS.128": 32})
AMD = replace(PREFILL, target="gfx942", shared_bytes=32768, opcodes={"v_mfma": 96, "buffer_load.128": 8})


def changed(row: AotRow, **opcodes: int) -> AotRow:
    """``row`` with more opcodes; a double underscore is a dot."""
    return replace(row, opcodes={**row.opcodes, **{name.replace("__", "."): n for name, n in opcodes.items()}})


def streaming(row: AotRow, loads: Mapping[str, int]) -> AotRow:
    """``row`` with other loads of keys and values."""
    return replace(row, loads={**row.loads, "rows_at": loads})


@pytest.mark.parametrize(
    "row",
    [
        PREFILL,
        F32,  # multiplied without tensor cores
        streaming(AMD, {"buffer_load.128": 8}),
        replace(PREFILL, loads={"k_pages": {"UTMALDG": 4}, "v_pages": {"UTMALDG": 4}}),
        streaming(replace(PREFILL, config="bfloat16/int8 D128 w8"), {"LDGSTS.64": 16, "LDGSTS.128": 8}),
        replace(PREFILL, target="sm_100", opcodes={"UTCHMMA": 64}),
        replace(PREFILL, kernel="rms_norm", opcodes={"LDG.16": 3}, loads={"x_row": {"LDG.16": 3}}),
        replace(PREFILL, kernel="decode", opcodes={"HMMA": 3}),  # too few rows for a warp group
    ],
)
def test_a_good_row_has_no_fault(row: AotRow) -> None:
    assert find_faults([row]) == []


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (replace(PREFILL, spill_bytes=372), "spills: 372 bytes of stack and 0 loads and stores of it"),
        (changed(PREFILL, LDL=2, STL=1), "spills: 0 bytes of stack and 3 loads and stores of it"),
        (streaming(changed(AMD, scratch_load__128=2), {"buffer_load.128": 8}), "spills: 0 bytes of stack and 2 "),
        (replace(PREFILL, shared_bytes=232449), "needs 232449 bytes of shared memory of 232448"),
        (replace(F32, target="sm_86", shared_bytes=101377), "needs 101377 bytes of shared memory of 101376"),
        (streaming(AMD, {"buffer_load.64": 8}), "loads its stream by less than 128 bits: 8 buffer_load.64"),
        (streaming(PREFILL, {"LDGSTS.128": 8, "LDGSTS.64": 4}), "less than 128 bits: 4 LDGSTS.64"),
        (streaming(replace(PREFILL, config="bfloat16/int8 D128"), {"LDGSTS.32": 4}), "less than 128 bits: 4 LDGSTS.32"),
        (streaming(replace(PREFILL, config="bfloat16/int8 D128"), {"LDG.64": 4}), "less than 128 bits: 4 LDG.64"),
        (replace(PREFILL, loads={"table_ptr": {"LDG.32": 6}}), "shows no load from k_pages, rows_at, v_pages"),
        (replace(PREFILL, opcodes={"HMMA": 24}), "does not multiply with HGMMA"),
        (replace(PREFILL, target="sm_100", opcodes={"HMMA": 24}), "does not multiply with UTC"),
        (replace(PREFILL, target="sm_80", shared_bytes=1, opcodes={}), "does not multiply with tensor cores"),
    ],
)
def test_a_bad_row_is_named_with_its_fault(row: AotRow, fault: str) -> None:
    (found,) = find_faults([row])
    assert found.startswith(f"{row.kernel} {row.config} on {row.target} ") and fault in found


def test_a_row_of_a_table_that_no_case_used_is_named() -> None:
    tables = {"sm_90": {"prefill": [{}] * 5, "decode": [{}]}}
    rows = [replace(PREFILL, table_row=number) for number in (0, 1, 3, 4, None)]
    rows.append(replace(PREFILL, kernel="decode", target="sm_80", table_row=0))
    assert [fault.partition(" is used")[0] for fault in find_uncompiled(rows, tables)] == [
        "row 2 of prefill in launch_configs/sm_90.json",
        "row 0 of decode in launch_configs/sm_90.json",
    ]


def test_the_reason_of_a_failed_proof_is_one_line() -> None:
    AotPart([PREFILL], []).check()
    with pytest.raises(KernelError, match=r"^prefill spills$"):
        AotPart([], ["prefill spills"]).check()
    with pytest.raises(KernelError, match=r"^prefill spills, and 2 more$"):
        AotPart([], ["prefill spills", "b", "c"]).check()


def test_json_has_what_is_published_of_a_row() -> None:
    published = ["kernel", "config", "target", "registers", "spill_bytes", "shared_bytes", "opcodes"]
    assert list(PREFILL.as_json()) == published
    assert PREFILL.as_json()["opcodes"]["HGMMA"] == 24


def test_the_command_prints_one_object_and_fails_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(aot, "prove", lambda progress: AotPart([PREFILL], []))
    assert run(["bench", "kernels", "--aot", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": [PREFILL.as_json()]}
    monkeypatch.setattr(aot, "prove", lambda progress: AotPart([PREFILL], ["prefill spills"]))
    assert run(["bench", "kernels", "--aot"]) == 1
    assert capsys.readouterr().err == "hopformer: prefill spills\n"
    assert run(["bench", "kernels", "decode_attention", "--aot"]) == 2


def test_tables_fit_into_100_columns_and_show_every_row() -> None:
    long = replace(PREFILL, config="bfloat16/float8_e4m3fn D256 G4 page64 window softcap BLOCK_M=64 BLOCK_N=32 w8 s3")
    console = Console(width=100, file=StringIO())
    for table in rich_tables([PREFILL, long, streaming(AMD, {"buffer_load.128": 8})]):
        console.print(table)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= 100 for line in shown.splitlines())
    assert "sm_90, kernels: 2" in shown and "gfx942, kernels: 1" in shown and shown.count("98,308") == 2


def test_opcodes_are_shown_products_first_and_wide_loads_before_narrow_ones() -> None:
    opcodes = {"LDG.32": 5, "BAR": 9, "LDG.64": 6, "LDGSTS.128": 32, "HGMMA": 24, "LDL": 1}
    assert describe_opcodes(opcodes) == "24 HGMMA, 32 LDGSTS.128, 6 LDG.64, 1 LDL"
