"""Rows of `hopformer bench kernels --aot` for a reader: a table a device family, in 100 columns."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.table import Table

from .aot import SHARED_LIMITS, AotRow

# What a line shows of the opcodes: products, how data comes from memory, the widest first, and the stack; narrow loads,
# which are tables, lengths and scales, are left to the JSON
_SHOWN = (
    r"[A-Z]*MMA|v_s?mfma",
    r"UTMALDG|(LDGSTS|LDG|buffer_load|global_load)\.(64|128|256)",
    r"LDL|STL|scratch_\w+\.\d+",
)


def rich_tables(rows: Sequence[AotRow]) -> Iterator[Table]:
    """One for each family."""
    for family, group in groupby(rows, lambda row: row.target):
        own = list(group)
        table = Table(title=f"{family}, kernels: {len(own)}", box=SIMPLE_HEAD, pad_edge=False, width=100)
        table.caption = f"registers of a thread, bytes; shared memory of a program, of {SHARED_LIMITS[family]:,} bytes"
        table.add_column("kernel and configuration", ratio=5)
        for heading in ("registers", "spilled", "shared"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("opcodes", ratio=4)
        for kernel, lines in groupby(own, lambda row: row.kernel):
            table.add_row(f"[bold]{kernel}[/bold]")
            for row in lines:
                figures = (str(row.registers), str(row.spill_bytes), f"{row.shared_bytes:,}")
                table.add_row(f" {row.config}", *figures, describe_opcodes(row.opcodes))
        yield table


def describe_opcodes(opcodes: Mapping[str, int]) -> str:
    """Such as "16 HGMMA, 32 LDGSTS.128, 2 LDG.64"."""
    shown = []
    for pattern in _SHOWN:
        names = [name for name in opcodes if re.fullmatch(pattern, name)]
        shown += sorted(names, key=lambda name: (-_width(name), name))
    return ", ".join(f"{opcodes[name]} {name}" for name in shown)


def _width(opcode: str) -> int:
    """Bits that it moves; 0 where it does not say."""
    width = opcode.rpartition(".")[2]
    return int(width) if width.isdigit() else 0
