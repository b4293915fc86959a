"""Proof without a GPU: every launch configuration that we ship, compiled ahead of time for every device family.

The package's own wrappers run on tensors without memory, under a driver that only compiles (offline_driver.py), in
processes of their own (aot_compile.py). Here the rows come together and are judged: a kernel may not spill a register,
its shared memory fits, keys, values and weights come in whole 16-byte loads, and the tensor cores are the family's own.
"""

import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from ..errors import KernelError

# Bytes of shared memory that one program may have on a multiprocessor of each family (CUDA C++ Programming Guide, table
# of technical specifications: what is left of 100, 164 and 228 KiB without the 1 KiB that the system keeps; LDS on AMD)
SHARED_LIMITS = {
    "sm_80": 163 << 10,
    "sm_86": 99 << 10,
    "sm_89": 99 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "sm_120": 99 << 10,
    "gfx942": 64 << 10,
}
FAMILIES = tuple(SHARED_LIMITS)

# The pointers behind which the bytes lie that a kernel's time goes by; all other loads are few, and narrow by nature:
# block tables, lengths, scales
STREAMS = {
    "decode": {"rows_at"},
    "prefill": {"rows_at", "k_pages", "v_pages"},
    "gemv": {"weight_at"},
    "quant_matmul_int8": {"words_at"},
    "quant_matmul_int4": {"words_at"},
}
# Kernels that multiply on tensor cores, unless in F32, and the family's own instruction where prefill must show it
_MULTIPLY = ("decode", "prefill", "quant_matmul_int8", "quant_matmul_int4")
_PREFILL_MMA = {"sm_90": "HGMMA", "sm_100": "UTC[A-Z]*MMA"}
# A load of 16 bytes, 32, or a box. Copies of pages whose elements have one byte may take 8: eight elements is what the
# swizzle of a tensor core's 16-bit operand keeps together, and Triton copies no more at once
_WHOLE = (".128", ".256", "UTMALDG")
_STACK = ("LDL", "STL", "scratch_load", "scratch_store")
_PARTS = 4  # of the cases of a family: as many processes as cores are all busy to the end

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class AotRow:
    """One kernel, compiled.

    Attributes:
        kernel: its name, as the tables have it.
        config: the case and how it is launched, such as "bfloat16 D128 G4 page64 BLOCK_N=64 w4 s3".
        target: the device family.
        registers, spill_bytes: of a thread.
        shared_bytes: of a program.
        opcodes: the telling ones and how often they occur.
        loads: the pointer that is loaded from -> the opcodes of its loads.
        table_row: the number of the row of the family's table behind it; None where no table is asked.
        code: hash of what was compiled and how.
    """

    kernel: str
    config: str
    target: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    opcodes: Mapping[str, int]
    loads: Mapping[str, Mapping[str, int]]
    table_row: int | None
    code: str

    def as_json(self) -> dict[str, Any]:
        """What is published of it."""
        names = ("kernel", "config", "target", "registers", "spill_bytes", "shared_bytes", "opcodes")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class AotPart:
    """Rows, and a line for each case that gave none."""

    rows: list[AotRow]
    faults: list[str]

    def check(self) -> None:
        """Raise KernelError, in one line, unless everything compiled and every check holds."""
        if self.faults:
            more = f", and {len(self.faults) - 1} more" if len(self.faults) > 1 else ""
            raise KernelError(f"{self.faults[0]}{more}")


def prove(families: Sequence[str] = FAMILIES, progress: Progress | None = None) -> AotPart:
    """Compile every case for every family and judge the rows: the faults are all there are.

    ``progress`` is told how many parts of how many are done.

    Raises:
        KernelError: there is no Triton here.
    """
    from ..kernels.backend import HAS_TRITON
    from ..kernels.launch_configs import read_table

    if not HAS_TRITON:
        raise KernelError("--aot compiles with Triton, which is published for Linux only")
    found = _compile_all(families, progress)
    uncompiled = find_uncompiled(found.rows, {family: read_table(family) for family in families})
    return AotPart(found.rows, [*found.faults, *find_faults(found.rows), *uncompiled])


def _compile_all(families: Sequence[str], progress: Progress | None) -> AotPart:
    """Compile in as many processes as there are cores for us."""
    parts = [(family, part, _PARTS) for family in families for part in range(_PARTS)]
    done: dict[tuple[str, int, int], AotPart] = {}
    context = get_context("spawn")  # a fork of a process that has run torch may hang
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), context, _prepare_process) as pool:
        futures = {pool.submit(_compile_part, *part): part for part in parts}
        for future in as_completed(futures):
            done[futures[future]] = future.result()
            if progress is not None:
                progress(len(done), len(parts))
    rows = {row.code: row for part in parts for row in reversed(done[part].rows)}  # equal code has one target
    ordered = sorted(rows.values(), key=lambda row: (families.index(row.target), row.kernel, row.config))
    return AotPart(ordered, [fault for part in parts for fault in done[part].faults])


def find_faults(rows: Iterable[AotRow]) -> list[str]:
    """What is wrong with the rows, a line each."""
    return [f"{row.kernel} {row.config} on {row.target} {fault}" for row in rows for fault in _faults_of(row)]


def find_uncompiled(rows: Iterable[AotRow], tables: Mapping[str, Mapping[str, Sequence[object]]]) -> list[str]:
    """The rows of the families' ``tables`` that no case was launched with, a line each."""
    compiled = {(row.target, row.kernel, row.table_row) for row in rows}
    return [
        f"row {number} of {kernel} in launch_configs/{family}.json is used by no case of bench/aot_cases.py"
        for family, table in tables.items()
        for kernel, entries in table.items()
        for number in range(len(entries))
        if (family, kernel, number) not in compiled
    ]


def _faults_of(row: AotRow) -> Iterator[str]:
    """What is wrong with one row."""
    on_stack = sum(count for name, count in row.opcodes.items() if name.split(".")[0] in _STACK)
    if row.spill_bytes or on_stack:
        yield f"spills: {row.spill_bytes} bytes of stack and {on_stack} loads and stores of it"
    if row.shared_bytes > SHARED_LIMITS[row.target]:
        yield f"needs {row.shared_bytes} bytes of shared memory of {SHARED_LIMITS[row.target]}"
    streams = STREAMS.get(row.kernel)
    if streams is not None:
        yield from _stream_faults(row, streams)
    if row.kernel in _MULTIPLY and not row.config.startswith("float32"):
        yield from _product_faults(row)


def _stream_faults(row: AotRow, streams: set[str]) -> Iterator[str]:
    """Whether all of a kernel's stream comes in loads of 16 bytes, or by the engine that copies boxes."""
    found: dict[str, int] = {}
    for pointer in sorted(streams & row.loads.keys()):
        for opcode, count in row.loads[pointer].items():
            found[opcode] = found.get(opcode, 0) + count
    enough = _WHOLE if "/" not in row.config.split()[0] else (*_WHOLE, "LDGSTS.64")
    narrow = {name: count for name, count in found.items() if not name.endswith(enough)}
    if not found:
        yield f"shows no load from {', '.join(sorted(streams))}"
    elif narrow:
        described = ", ".join(f"{count} {name}" for name, count in sorted(narrow.items()))
        yield f"loads its stream by less than 128 bits: {described}"


def _product_faults(row: AotRow) -> Iterator[str]:
    """Whether tensor cores multiply, and for prefill the family's own."""
    wanted = _PREFILL_MMA.get(row.target, "") if row.kernel == "prefill" else ""
    if not any(re.fullmatch(wanted or r"[A-Z]*MMA|v_s?mfma", name) for name in row.opcodes):
        yield f"does not multiply with {wanted or 'tensor cores'}"


def _prepare_process() -> None:
    """Before Triton is imported: no interpreter."""
    os.environ.pop("TRITON_INTERPRET", None)
    warnings.simplefilter("ignore")


def _compile_part(family: str, part: int, num_parts: int) -> AotPart:
    """In a process of the pool, which imports Triton now."""
    from .aot_compile import compile_part

    return compile_part(family, part, num_parts)
