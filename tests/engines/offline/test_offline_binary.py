"""Parsing of disassemblies, on listings with known facts."""

import pytest
import triton
from offline_kernels import copy_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tinynet_engines.offline.binary import AMDGCN, SASS, _amdgcn_instructions, _summary, read_cubins
from tinynet_engines.offline.disassembly import Instruction, _labelled, _parse
from tinynet_engines.offline.targets import find_target

LISTING = """
        /*0000*/                   LDG.E.U16 R1, desc[UR4][R2.64] ;
        /*0010*/                   LDGSTS.E.BYPASS.128 [R9], desc[UR14][R10.64], P5 ;
        /*0020*/                   DEPBAR.LE SB0, 0x1 ;
        /*0030*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0040*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, gsb0 ;
        /*0050*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0060*/              @!P1 LDG.E.64 R4, desc[UR4][R2.64] ;
        /*0070*/               @P5 BRA 0x30 ;
        /*0080*/                   LDG.E R1, desc[UR4][R2.64] ;
        /*0090*/                   ATOMG.E.CAS.STRONG.GPU PT, R1, [R2], R4, R5 ;
        /*00a0*/              @!P5 BRA 0x10 ;
        /*00b0*/                   EXIT ;
        /*00c0*/                   BRA 0xc0;
"""


def test_the_innermost_loop_with_matrix_instructions_is_the_main_loop():
    code = _summary(SASS, _labelled(_parse(LISTING)), 168, 0, 0)
    assert code.instructions == 13
    assert code.loop_instructions == 5
    assert code.loop_matrix_instructions == 2
    assert code.instructions_per_matrix_instruction == 2.5
    assert code.matrix_instruction == "HGMMA.64x128x16"
    assert code.global_load_bits == {16: 1, 32: 1, 64: 1, 128: 1}
    assert code.loop_load_bits == {64: 1}
    assert code.asynchronous_copies == 1
    assert code.compare_and_swap == 1
    assert code.full_waits == 1
    assert code.loop_spills == 0


def test_local_memory_counts_inside_of_loops_and_outside():
    text = LISTING.replace("/*0000*/                   LDG.E.U16 R1, desc[UR4][R2.64]", "/*0000*/   STL [R1], R0")
    assert _summary(SASS, _labelled(_parse(text)), 168, 8, 0).loop_spills == 0
    text = LISTING.replace("/*0020*/                   DEPBAR.LE SB0, 0x1", "/*0020*/   LDL.LU R28, [R1]")
    assert _summary(SASS, _labelled(_parse(text)), 168, 8, 0).loop_spills == 1


def test_the_trap_after_the_last_instruction_is_no_loop():
    text = "\n".join(line for line in LISTING.splitlines() if "@!P5" not in line and "@P5" not in line)
    code = _summary(SASS, _labelled(_parse(text)), 168, 0, 0)
    assert code.loop_instructions == 0
    assert code.instructions_per_matrix_instruction is None
    assert code.matrix_instruction == "HGMMA.64x128x16"


@pytest.mark.parametrize("dialect, opcode, bits", [
    (SASS, "LDG.E.U8", 8), (SASS, "LDG.E.S16.CONSTANT", 16), (SASS, "LDG.E", 32), (SASS, "LDG.E.64", 64),
    (SASS, "LDGSTS.E.BYPASS.LTC128B.128", 128), (SASS, "LDGSTS.E.LTC128B", 32), (SASS, "LDG.E.ENL2.256", 256),
    (AMDGCN, "buffer_load_ushort", 16), (AMDGCN, "buffer_load_ubyte", 8), (AMDGCN, "global_load_dword", 32),
    (AMDGCN, "buffer_load_dwordx4", 128), (AMDGCN, "global_load_short_d16_hi", 16), (AMDGCN, "global_load_b128", 128),
])  # fmt: skip
def test_width_of_a_load(dialect: object, opcode: str, bits: int):
    assert dialect.load_bits(opcode) == bits  # type: ignore[attr-defined]


def test_amd_assembly_ends_where_its_data_begin():
    text = "\tv_mov_b32_e32 v0, 0 ; a comment\n.LBB0_1:\n\ts_endpgm\n\t.section\t.rodata\n\tnot_an_instruction\n"
    assert list(_amdgcn_instructions(text)) == [
        Instruction("v_mov_b32_e32", "v0, 0"),
        Instruction("", ".LBB0_1"),
        Instruction("s_endpgm", ""),
    ]


def test_binaries_read_together_are_the_binaries_read_alone():
    cubins = [compiled_copy(block) for block in (256, 1024, 4096)]
    together = read_cubins(cubins, find_target("sm_90"))
    assert together == [read_cubins([cubin], find_target("sm_90"))[0] for cubin in cubins]
    assert len({code.instructions for code in together}) == 3
    assert read_cubins([], find_target("sm_90")) == []


def compiled_copy(block: int) -> bytes:
    source = ASTSource(copy_kernel, {"x_ptr": "*fp32", "y_ptr": "*fp32", "n": "i32"}, {"BLOCK": block})
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
