"""Every launch configuration that is shipped, compiled for every device family: nothing spills, everything fits.

A run takes fifteen minutes of a core, in processes of its own, and needs no GPU: `pytest -m aot`.
"""

import pytest

from hopformer.bench.aot import FAMILIES, AotPart, AotRow, find_faults, prove
from hopformer.bench.aot_cases import BF16, I8, Attention, attention_case
from hopformer.bench.aot_compile import compile_case
from hopformer.kernels.launch_configs import LaunchConfig, override

pytestmark = [pytest.mark.aot, pytest.mark.timeout(3600)]

COMMON = Attention(BF16, 128, 4, 64)


@pytest.fixture(scope="module")
def proof() -> AotPart:
    return prove()


def test_every_row_of_every_table_compiles_and_passes_every_check(proof: AotPart) -> None:
    assert proof.faults == []


def test_every_kernel_is_compiled_for_every_family(proof: AotPart) -> None:
    kernels = {row.kernel for row in proof.rows}
    assert kernels >= {"decode", "prefill", "rope_kv_write", "rms_norm", "swiglu", "gemv", "sample"}
    assert {(row.kernel, row.target) for row in proof.rows} == {(kernel, one) for kernel in kernels for one in FAMILIES}


@pytest.mark.parametrize(("family", "instruction"), [("sm_80", "HMMA"), ("sm_90", "HGMMA"), ("gfx942", "v_mfma")])
def test_prefill_multiplies_with_the_family_s_own_instruction(proof: AotPart, family: str, instruction: str) -> None:
    rows = [row for row in proof.rows if (row.kernel, row.target) == ("prefill", family)]
    assert rows and all(instruction in row.opcodes for row in rows if not row.config.startswith("float32"))


def test_boxes_are_loaded_by_the_copy_engine(proof: AotPart) -> None:
    described = [row for row in proof.rows if row.target == "sm_90" and "DESCRIPTORS" in row.config]
    assert described and all("UTMALDG" in row.opcodes and "LDGSTS.128" not in row.opcodes for row in described)


def compile_with(kernel: str, config: LaunchConfig, kind: Attention, query_len: int, family: str) -> list[AotRow]:
    """The rows of one kernel when it is launched with ``config``."""
    rows: dict[str, AotRow] = {}
    with override(kernel, config):
        compile_case(attention_case(kind, query_len), family, rows)
    return [row for row in rows.values() if row.kernel == kernel]


def test_a_tile_that_spills_is_found() -> None:
    config = LaunchConfig({"BLOCK_M": 128, "BLOCK_N": 64, "DESCRIPTORS": False}, num_warps=4, num_stages=3)
    rows = compile_with("prefill", config, COMMON, 512, "sm_90")
    assert any("spills" in fault for fault in find_faults(rows))


def test_a_tile_that_does_not_fit_is_found() -> None:
    config = LaunchConfig({"BLOCK_N": 128, "TRANSPOSED": False}, num_warps=8, num_stages=5)
    faults = find_faults(compile_with("decode", config, COMMON, 1, "sm_86"))
    assert any("bytes of shared memory of 101376" in fault for fault in faults)


def test_keys_that_come_in_narrow_loads_are_found() -> None:
    config = LaunchConfig({"BLOCK_N": 16, "TRANSPOSED": False}, num_warps=8, num_stages=3)
    faults = find_faults(compile_with("decode", config, Attention(BF16, 64, 4, 64), 1, "sm_90"))
    assert any("loads its stream by less than 128 bits" in fault for fault in faults)


def test_prefill_without_the_warp_group_s_product_is_found() -> None:
    config = LaunchConfig({"BLOCK_M": 32, "BLOCK_N": 32, "DESCRIPTORS": False}, num_warps=4, num_stages=3)
    faults = find_faults(compile_with("prefill", config, Attention(BF16, 64, 4, 64, I8), 512, "sm_90"))
    assert any("does not multiply with HGMMA" in fault for fault in faults)
