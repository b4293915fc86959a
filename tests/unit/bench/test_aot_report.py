"""What is read from a compiler's files: opcodes, widths, resources, and the pointer behind each load."""

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

from hopformer.bench.aot_report import (
    amd_resources,
    assembly_instructions,
    cuda_opcodes,
    cuda_resources,
    loaded_pointers,
    name_amd_opcode,
    name_cuda_opcode,
    name_ptx_load,
)
from hopformer.errors import KernelError

SASS = """
\t.section\t.text._decode_kernel,"ax",@progbits
.text._decode_kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*00c0*/              @!P0 EXIT ;
        /*0110*/              @P2 LDGSTS.E.BYPASS.LTC128B.128 [R105+0x800], desc[UR14][R4.64] ;
        /*0120*/             @!UP0 UTMALDG.2D [UR8], [UR4] ;
        /*1f110*/                  HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24 ;
.L_x_4:
"""

# The second load is one statement, whose mov is one line of inline assembly more
PTX = """
\t.loc\t1 146 12                        // attention_decode.py:146:12
\tld.global.b32 \t%r1, [%rd1];
\t.loc\t2 91 16, function_name $L__info_string0, inlined_at 1 190 21 // attention_tile.py:91:16
\t// begin inline asm
\tmov.u32 %r305, %r271;
\t.loc\t2 92 16, function_name $L__info_string0, inlined_at 1 190 21 // attention_tile.py:92:16
\t@%p1 ld.global.L1::evict_first.L2::cache_hint.v4.b32 { %r305, %r306, %r307, %r308 }, [ %rd5 + 0 ], %rd38;

\t// end inline asm
\t// begin inline asm
\t.loc\t2 142 9, function_name $L__info_string0 // attention_tile.py:142:9
\tcp.async.cg.shared.global [ %r202 + 0 ], [ %rd61 + 0 ], 0x10, %r203;
\t// end inline asm
\tcp.async.commit_group;
\t.file\t1 "/somewhere/kernels/attention_decode.py"
\t.file\t2 "/somewhere/kernels/attention_tile.py"
"""

AMDGCN = """
\t.file\t1 "/somewhere/kernels" "rms_norm.py"
\t.loc\t1 83 16 is_stmt 0               ; rms_norm.py:83:16
\tbuffer_load_dwordx4 v[2:5], v1, s[8:11], 0 offen
\t.loc\t1 90 4                          ; rms_norm.py:90:4
\ts_barrier
    .private_segment_fixed_size: 20
    .sgpr_count:     40
    .vgpr_count:     166
    .vgpr_spill_count: 5
"""


def test_sass_is_read_with_predicates_and_without_operands() -> None:
    opcodes = list(cuda_opcodes(SASS))
    assert opcodes == ["LDC", "EXIT", "LDGSTS.E.BYPASS.LTC128B.128", "UTMALDG.2D", "HGMMA.64x64x16.F32.BF16"]


@pytest.mark.parametrize(
    ("opcode", "name"),
    [
        ("LDGSTS.E.BYPASS.LTC128B.128", "LDGSTS.128"),
        ("LDGSTS.E.LTC128B", "LDGSTS.32"),
        ("LDG.E", "LDG.32"),
        ("LDG.E.U8.CONSTANT", "LDG.8"),
        ("LDG.E.S16", "LDG.16"),
        ("LDG.E.128.STRONG.GPU", "LDG.128"),
        ("LDG.E.ENL2.256", "LDG.256"),
        ("STG.E.64", "STG.64"),
        ("HGMMA.64x64x16.F32.BF16", "HGMMA"),
        ("HMMA.16816.F32.BF16", "HMMA"),
        ("UTCHMMA", "UTCHMMA"),
        ("QGMMA.64x64x32.F32.E4M3.E4M3", "QGMMA"),
        ("UTMALDG.2D", "UTMALDG"),
        ("LDL.LU", "LDL"),
        ("STL.64", "STL"),
        ("LDSM.16.MT88.4", "LDSM"),
        ("ATOMG.E.ADD.STRONG.GPU", "ATOM"),
        ("REDG.E.ADD.F32", "RED"),
        ("BAR.SYNC.DEFER_BLOCKING", "BAR"),
        ("MUFU.EX2", "MUFU.EX2"),
        ("MUFU.RCP", None),
        ("LDGDEPBAR", None),
        ("REDUX", None),
        ("FFMA", None),
    ],
)
def test_a_telling_opcode_has_a_short_name(opcode: str, name: str | None) -> None:
    assert name_cuda_opcode(opcode) == name


@pytest.mark.parametrize(
    ("instruction", "name"),
    [
        ("buffer_load_dwordx4 v[2:5], v1", "buffer_load.128"),
        ("global_load_dwordx2 v[2:3]", "global_load.64"),
        ("buffer_load_dword v2, off", "buffer_load.32"),
        ("buffer_load_ushort v2", "buffer_load.16"),
        ("global_load_short_d16_hi v2", "global_load.16"),
        ("buffer_load_ubyte v2", "buffer_load.8"),
        ("buffer_store_short v2", "buffer_store.16"),
        ("scratch_store_dwordx3 off", "scratch_store.96"),
        ("global_load_lds_dwordx4 v2", "global_load.128"),
        ("v_mfma_f32_32x32x8_bf16_1k a[0:15]", "v_mfma"),
        ("v_smfmac_f32_16x16x32_bf16 a[0:3]", "v_smfma"),
        ("v_exp_f32_e32 v1", "v_exp_f32"),
        ("global_atomic_add v1", "global_atomic"),
        ("s_barrier", "s_barrier"),
        ("ds_read_b128 v[0:3]", None),
    ],
)
def test_a_telling_instruction_of_amd_has_a_short_name(instruction: str, name: str | None) -> None:
    assert name_amd_opcode(instruction) == name


@pytest.mark.parametrize(
    ("instruction", "name"),
    [
        ("ld.global.b32 \t%r1, [%rd1];", "LDG.32"),
        ("ld.global.cg.v4.b32 { %r1 }, [ %rd1 + 0 ];", "LDG.128"),
        ("ld.global.L1::evict_first.L2::cache_hint.v4.b32 { %r1 }, [ %rd1 ];", "LDG.128"),
        ("ld.global.v2.b64 { %rd1 }, [ %rd1 ];", "LDG.128"),
        ("ld.global.b16 { %rs1 }, [ %rd1 ];", "LDG.16"),
        ("cp.async.cg.shared.global [ %r2 + 0 ], [ %rd6 + 0 ], 0x10, %r3;", "LDGSTS.128"),
        ("cp.async.ca.shared.global [ %r2 + 0 ], [ %rd6 + 0 ], 0x4;", "LDGSTS.32"),
        ("cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r1], [%rd1];", "UTMALDG"),
        ("cp.async.commit_group;", None),
        ("ld.shared.v4.b32 {%r1}, [%r2];", None),
    ],
)
def test_a_load_in_ptx_has_the_name_that_it_will_have(instruction: str, name: str | None) -> None:
    assert name_ptx_load(instruction) == name


def test_an_instruction_of_ptx_belongs_to_the_line_of_its_statement() -> None:
    lines = [(name_ptx_load(one), line) for one, line in assembly_instructions(PTX) if name_ptx_load(one)]
    assert lines == [
        ("LDG.32", ("attention_decode.py", 146)),
        ("LDG.128", ("attention_tile.py", 91)),
        ("LDGSTS.128", ("attention_tile.py", 142)),
    ]


def test_an_instruction_of_amd_belongs_to_a_line_too() -> None:
    assert [(one.split()[0], line) for one, line in assembly_instructions(AMDGCN)] == [
        ("buffer_load_dwordx4", ("rms_norm.py", 83)),
        ("s_barrier", ("rms_norm.py", 90)),
    ]


def test_registers_and_stack_are_read_or_missed_by_name() -> None:
    usage = "Resource usage:\n Function _decode_kernel:\n  REG:164 STACK:24 SHARED:1024 LOCAL:0 CONSTANT[0]:704"
    assert cuda_resources(usage) == (164, 24)
    assert amd_resources(AMDGCN) == (166, 20)
    with pytest.raises(KernelError, match="printed no registers"):
        cuda_resources("nothing")
    with pytest.raises(KernelError, match="names no registers"):
        amd_resources("nothing")


def test_a_line_of_a_kernel_names_the_pointers_that_it_loads_from() -> None:
    pointers = {name for names in loaded_pointers("attention_tile.py").values() for name in names}
    assert {"rows_at", "k_pages", "v_pages", "table_ptr"} <= pointers
    assert loaded_pointers("standard.py") == {}  # Triton's own
