"""What a compiled kernel asks of a GPU: registers, spills, shared memory and the opcodes that tell how it works.

Read from the files in Triton's cache: a cubin with the disassembler of Triton's wheel, AMD's assembly as the text it
is. That and PTX remember the line of Python that each instruction comes from, so a load can be told by what it loads:
the name of the pointer in that line.
"""

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import triton
from triton.backends import nvidia

from .. import kernels
from ..errors import KernelError
from .offline_driver import Compiled

Line = tuple[str, int]  # a file's name and a line in it

_TOOLS = Path(nvidia.__file__).parent / "bin"
_KERNELS = Path(kernels.__file__).parent
_TOOL_S = 60  # a disassembly takes a fifth of a second

# Every opcode that moves data has a width: of LDG.E.U8.CONSTANT 8 bits, of LDG.E.128 128, and of a plain LDG.E 32
_MOVES = ("LDG", "LDGSTS", "STG")
_WIDTHS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}
_SYNONYMS = {"ATOMG": "ATOM", "ATOMS": "ATOM", "REDG": "RED", "REDS": "RED"}
_TELLING = re.compile(r"[A-Z]*MMA|UTMALDG|UTMASTG|LDL|STL|LDSM|ATOM|RED|BAR|MUFU\.EX2")
_AMD_MOVE = re.compile(r"(buffer|global|flat|scratch)_(load|store)_(?:lds_)?(\w+)")
_AMD_WIDTHS = {"ubyte": 8, "sbyte": 8, "byte": 8, "ushort": 16, "sshort": 16, "short": 16, "dword": 32}
_AMD_TELLING = re.compile(r"v_s?mfma|v_exp_f32|s_barrier|(?:buffer|global|flat)_atomic")
# Lines of assembly: `.file 1 "folder" "name"`, `.loc 1 142 9`, and an instruction behind its predicate
_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"(?:[^"]*/)?([^"/]+)"(?:\s+"([^"]+)")?', re.MULTILINE)
_PLACE = re.compile(r"\s*\.loc\s+(\d+)\s+(\d+)\s")
_INSTRUCTION = re.compile(r"\s+(?:@!?%p\d+ )?([a-z]\w+\b.*)")


@dataclass(frozen=True, slots=True)
class Report:
    """One kernel's demands.

    Attributes:
        registers: of a thread.
        spill_bytes: of a thread's stack, which our kernels have no other use for.
        shared_bytes: of a program.
        opcodes: a telling opcode, with its width in bits where it moves data -> how many instructions.
        loads: the pointer that a line of a kernel loads from -> the opcodes of its loads.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    opcodes: Mapping[str, int]
    loads: Mapping[str, Mapping[str, int]]


def read_report(compiled: Compiled) -> Report:
    """The report on one kernel, whenever it was compiled.

    Raises:
        KernelError: the wheel's tools cannot read it.
    """
    shared_bytes = int(compiled.metadata["shared"])
    if "amdgcn" in compiled.files:
        text = compiled.files["amdgcn"].read_text(encoding="utf-8")
        loads = [(name_amd_opcode(one), line) for one, line in assembly_instructions(text) if "_load" in one]
        opcodes = Counter(name_amd_opcode(one) for one, _ in assembly_instructions(text))
        return Report(*amd_resources(text), shared_bytes, _named(opcodes), _by_pointer(loads))
    cubin = str(compiled.files["cubin"])
    registers, spill_bytes = cuda_resources(_run("cuobjdump", "-res-usage", cubin))
    opcodes = Counter(map(name_cuda_opcode, cuda_opcodes(_run("nvdisasm", "--print-code", "--no-dataflow", cubin))))
    ptx = compiled.files["ptx"].read_text(encoding="utf-8")
    loads = [(name_ptx_load(one), line) for one, line in assembly_instructions(ptx)]
    return Report(registers, spill_bytes, shared_bytes, _named(opcodes), _by_pointer(loads))


def _named(opcodes: Counter[str | None]) -> dict[str, int]:
    """The telling ones, most frequent first."""
    return {name: count for name, count in opcodes.most_common() if name is not None}


def _by_pointer(loads: Iterable[tuple[str | None, Line]]) -> dict[str, dict[str, int]]:
    """The telling loads by the pointer in the line that each comes from."""
    found: dict[str, Counter[str | None]] = {}
    for name, (file, line) in loads:
        for pointer in loaded_pointers(file).get(line, ()) if name else ():
            found.setdefault(pointer, Counter())[name] += 1
    return {pointer: _named(counts) for pointer, counts in found.items()}


def cuda_resources(usage: str) -> tuple[int, int]:
    """Registers and stack bytes of a thread, from what cuobjdump prints."""
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise KernelError(f"cuobjdump of triton {triton.__version__} printed no registers: {usage[:200]!r}")
    return int(found[1]), int(found[2])


def amd_resources(text: str) -> tuple[int, int]:
    """The same from AMD's assembly. A spilled scalar register goes to a vector register, and so costs no bytes here."""
    registers, scratch = (
        re.search(rf"\.{name}:\s+(\d+)", text) for name in ("vgpr_count", "private_segment_fixed_size")
    )
    if registers is None or scratch is None:
        raise KernelError(f"the assembly of triton {triton.__version__} names no registers")
    return int(registers[1]), int(scratch[1])


def cuda_opcodes(sass: str) -> Iterator[str]:
    """The opcodes that nvdisasm prints: LDG.E of `/*0080*/  @!P0 LDG.E R2, desc[UR14][R2.64] ;`."""
    row = r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][\w.]*)"
    return (found[1] for found in re.finditer(row, sass, re.MULTILINE))


def assembly_instructions(text: str) -> Iterator[tuple[str, Line]]:
    """The instructions of PTX or of AMD's assembly, each with the line of Python that it comes from.

    A statement that became several lines of inline assembly counts as its first: the debugger's lines run on there.
    """
    files = {number: name or path for number, path, name in _FILE.findall(text)}
    line: Line = ("", 0)
    is_inline, is_held = False, False
    for row in text.splitlines():
        place = _PLACE.match(row)
        if place:
            if not is_held:
                line = (files.get(place[1], ""), int(place[2]))
            is_held = is_inline
        elif "begin inline asm" in row or "end inline asm" in row:
            is_inline, is_held = "begin" in row, False
        elif found := _INSTRUCTION.match(row):
            is_held = is_inline
            yield found[1], line


def name_cuda_opcode(opcode: str) -> str | None:
    """A telling opcode's short name: LDGSTS.E.BYPASS.128 -> LDGSTS.128; None for the rest."""
    base, *modifiers = opcode.split(".")
    if base in _MOVES:
        return f"{base}.{next((_WIDTHS[one] for one in modifiers if one in _WIDTHS), 32)}"
    base = _SYNONYMS.get(base, base)
    if _TELLING.fullmatch(base):
        return base
    return "MUFU.EX2" if opcode.startswith("MUFU.EX2") else None


def name_ptx_load(instruction: str) -> str | None:
    """The SASS name of a load from global memory: LDG.128 of `ld.global.v4.b32 ...`; None for anything else."""
    if instruction.startswith("cp.async.bulk.tensor"):
        return "UTMALDG"
    copy = re.match(r"cp\.async\.c[ag]\.shared\.global.*?\], (0x[0-9a-f]+|\d+)", instruction)
    if copy:
        return f"LDGSTS.{8 * int(copy[1], 0)}"
    load = re.match(r"ld\.global\S*?(?:\.v(\d))?\.[bsuf](\d+)\b", instruction)
    return f"LDG.{int(load[1] or 1) * int(load[2])}" if load else None


def name_amd_opcode(instruction: str) -> str | None:
    """A telling opcode's short name: buffer_load_dwordx4 -> buffer_load.128; None for the rest."""
    found = _AMD_MOVE.match(instruction)
    if found:
        unit, _, count = found[3].partition("x")
        return f"{found[1]}_{found[2]}.{_AMD_WIDTHS.get(unit.split('_')[0], 32) * int(count or 1)}"
    telling = _AMD_TELLING.match(instruction)
    return telling[0] if telling else None


@cache
def loaded_pointers(file: str) -> Mapping[int, tuple[str, ...]]:
    """Of a file in kernels/: a line -> the pointers that it loads from; {} for any other file.

    The pointer of `tl.load(rows_at + at[None, :], mask=inside)` is rows_at, that of `k_pages.load([row, 0])` k_pages.
    """
    path = _KERNELS / file
    if not path.is_file():
        return {}
    found: dict[int, tuple[str, ...]] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
            source: ast.expr = node.func.value
            if isinstance(source, ast.Name) and source.id == "tl":
                source = node.args[0]
            while isinstance(source, ast.BinOp):  # the pointer is what stands leftmost
                source = source.left
            found[node.lineno] = (*found.get(node.lineno, ()), ast.unparse(source))
    return found


def _run(tool: str, *arguments: str) -> str:
    """What one of the wheel's tools prints.

    Raises:
        KernelError: it failed, or is not there.
    """
    command = [str(_TOOLS / tool), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_S, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        raise KernelError(f"{tool} of triton {triton.__version__} failed: {str(said).strip()}") from error
