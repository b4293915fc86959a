"""One part of `--aot`: compiles some of the cases for one device family, in a process that may do nothing else.

Triton's interpreter and a GPU's driver are both out of the question there; bench/aot.py starts such processes.
"""

from collections.abc import Mapping
from typing import Any

from triton.backends.compiler import GPUTarget

from ..kernels.launch_configs import read_table
from .aot import AotPart, AotRow
from .aot_cases import Case, list_cases
from .aot_report import read_report
from .offline_driver import Compiled, compiling_for

# Kernels that the tables call otherwise
_NAMES = {"int8": "quant_matmul_int8", "int4": "quant_matmul_int4", "sum_splits": "quant_matmul_sum"}
_LABELLED = ("BLOCK", "BLOCK_M", "BLOCK_N", "BLOCK_K", "SPLIT_K", "CANDIDATES", "TRANSPOSED", "DESCRIPTORS")


def compile_part(family: str, part: int, num_parts: int) -> AotPart:
    """Compile every num_parts-th case from number ``part`` on for ``family`` and report on its kernels."""
    rows: dict[str, AotRow] = {}
    faults: list[str] = []
    for case in list_cases(family)[part::num_parts]:
        try:
            compile_case(case, family, rows)
        except Exception as error:  # whatever ends a compile is what the table must say
            faults.append(f"{case.label} does not compile for {family}: {_in_one_line(error)}")
    return AotPart(list(rows.values()), faults)


def _in_one_line(error: BaseException) -> str:
    """What happened at the root of an error, without the excerpt of source that Triton puts before it."""
    while error.__cause__ is not None:
        error = error.__cause__
    words = [line.strip() for line in str(error).splitlines() if any(map(str.isalpha, line))]
    return f"{type(error).__name__}: {words[-1]}" if words else type(error).__name__


def compile_case(case: Case, family: str, rows: dict[str, AotRow]) -> None:
    """Add the kernels that one call launches to ``rows``, by the hash of their code, but for those already there."""
    with compiling_for(target_of(family)) as compiled:
        case.run()
    for kernel in compiled:
        code = str(kernel.metadata["hash"])
        if code in rows:
            continue
        report = read_report(kernel)
        name = kernel.name.strip("_").removesuffix("_kernel")
        name = _NAMES.get(name, name)
        rows[code] = AotRow(
            kernel=name,
            config=f"{case.label} {describe_launch(kernel)}",
            target=family,
            registers=report.registers,
            spill_bytes=report.spill_bytes,
            shared_bytes=report.shared_bytes,
            opcodes=report.opcodes,
            loads=report.loads,
            table_row=find_table_row(read_table(family).get(name, []), case.dtypes, kernel),
            code=code,
        )


def target_of(family: str) -> GPUTarget:
    """What Triton calls a device family."""
    if family.startswith("gfx"):
        return GPUTarget("hip", family, 64)
    return GPUTarget("cuda", int(family.removeprefix("sm_")), 32)


def describe_launch(kernel: Compiled) -> str:
    """Such as "BLOCK_M=128 BLOCK_N=64 w8 s3", with a flag's name where it is true."""
    words = []
    for name in _LABELLED:
        value = kernel.constants.get(name, False)
        if value is not False:
            words.append(name if value is True else f"{name}={value}")
    return " ".join([*words, f"w{kernel.metadata['num_warps']}", f"s{kernel.metadata['num_stages']}"])


def find_table_row(table: list[dict[str, dict[str, Any]]], dtypes: Mapping[str, str], kernel: Compiled) -> int | None:
    """The number of the table's row with which ``kernel`` was launched.

    What a row asks for is a type, or else one of the kernel's own constants: "block_d" is BLOCK_D.
    """
    launched = {**kernel.constants, "num_warps": kernel.metadata["num_warps"]}
    launched["num_stages"] = kernel.metadata["num_stages"]
    asked = {**{name.lower(): value for name, value in kernel.constants.items()}, **dtypes}
    for number, row in enumerate(table):
        if all(asked[name] == value for name, value in row["for"].items()):
            is_used = all(launched.get(name, value) == value for name, value in row["use"].items())
            return number if is_used else None
    return None
