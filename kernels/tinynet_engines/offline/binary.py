"""Facts of a compiled kernel: registers, spills, the main loop, its matrix instructions and the width of its loads.

A cubin is read with two tools that every Triton wheel contains (`cuobjdump`, `nvdisasm`); for AMD, the assembly text
that Triton stores next to the code object is read. Both give one list of instructions with labels, in which the loops
are found as backward branches.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tinynet_engines.offline.disassembly import Instruction, disassemble, run_tool, sections_of
from tinynet_engines.offline.targets import Target


@dataclass(frozen=True)
class Code:
    """Facts of one compiled kernel.

    Attributes:
        registers: 32-bit registers per thread (on CDNA vector and accumulation registers together).
        spill_bytes: bytes of local memory per thread, which Triton's kernels need only for spilled registers; 0 if the
            binary reserves some and never accesses it.
        loop_spills: loads and stores of local memory inside loops; those outside run once per program.
        static_shared_bytes: shared memory that the binary itself declares, in addition to Triton's dynamic block.
        instructions: instructions of the whole kernel.
        loop_instructions: instructions of one iteration of the main loop; 0 if there is no loop.
        loop_matrix_instructions: matrix instructions among them.
        matrix_instruction: the most common matrix instruction, of the main loop if there is one; empty if none.
        global_load_bits: loads from global memory, by width in bits per thread.
        loop_load_bits: the same for the main loop alone.
        asynchronous_copies: global to shared copies that bypass registers (cp.async, TMA, LDS-direct loads).
        compare_and_swap: compare-and-swap atomics: a CAS loop replaces an atomic that the chip lacks.
        full_waits: instructions of the main loop that wait until no copy or matrix product is in flight.
    """

    registers: int
    spill_bytes: int
    loop_spills: int
    static_shared_bytes: int
    instructions: int
    loop_instructions: int
    loop_matrix_instructions: int
    matrix_instruction: str
    global_load_bits: dict[int, int]
    loop_load_bits: dict[int, int]
    asynchronous_copies: int
    compare_and_swap: int
    full_waits: int

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Code:
        """The inverse of `dataclasses.asdict` after JSON, which converts the widths to text."""
        widths = {
            name: {int(bits): count for bits, count in fields[name].items()}
            for name in ("global_load_bits", "loop_load_bits")
        }
        return cls(**{**fields, **widths})

    @property
    def instructions_per_matrix_instruction(self) -> float | None:
        """Main-loop instructions per matrix instruction; None if the loop has none."""
        if not self.loop_matrix_instructions:
            return None
        return self.loop_instructions / self.loop_matrix_instructions


@dataclass(frozen=True)
class Dialect:
    """How to read one instruction set: patterns that match an opcode from its start."""

    matrix: re.Pattern[str]
    global_load: re.Pattern[str]
    local_memory: re.Pattern[str]
    asynchronous_copy: re.Pattern[str]
    compare_and_swap: re.Pattern[str]
    branch: re.Pattern[str]
    full_wait: re.Pattern[str]

    def load_bits(self, opcode: str) -> int:
        """Bits per thread that a global load moves, from the suffix of its opcode."""
        if match := re.search(r"\.[US](8|16)\b", opcode):
            return int(match[1])
        if match := re.search(r"\.(64|128|256)\b", opcode):
            return int(match[1])
        if match := re.search(r"dwordx(\d)|_b(\d+)", opcode):
            return 32 * int(match[1]) if match[1] else int(match[2])
        if re.search(r"[us]byte", opcode):
            return 8
        return 16 if re.search(r"short", opcode) else 32


SASS = Dialect(
    matrix=re.compile(r"HGMMA|QGMMA|IGMMA|HMMA|QMMA|IMMA|OMMA|DMMA|BMMA|UTC[A-Z]*MMA"),
    global_load=re.compile(r"LDG\b|LDGSTS\b|LD\b"),
    local_memory=re.compile(r"LDL|STL"),
    asynchronous_copy=re.compile(r"LDGSTS|UTMALDG|UBLKCP"),
    compare_and_swap=re.compile(r"ATOMG?\.(\w+\.)*CAS"),
    branch=re.compile(r"BRA\b"),
    full_wait=re.compile(r"DEPBAR\.LE SB0, 0x0|WARPGROUP\.DEPBAR\.LE gsb0, 0x0"),
)
AMDGCN = Dialect(
    matrix=re.compile(r"v_mfma|v_smfmac|v_wmma"),
    global_load=re.compile(r"(buffer|global|flat)_load"),
    local_memory=re.compile(r"scratch_(load|store)|buffer_(load|store)_dword\w* \S+, off, s\[0:3\]"),
    asynchronous_copy=re.compile(r"(buffer|global)_load\w* .*\blds\b|global_load_lds"),
    compare_and_swap=re.compile(r"(buffer|global|flat)_atomic_cmpswap"),
    branch=re.compile(r"s_c?branch"),
    full_wait=re.compile(r"(?!)"),  # on CDNA, waits also order registers, so a full wait means nothing
)


# How an entry of a cubin's `.nv.info` begins that holds a function's symbol and its registers: EIATTR_REGCOUNT.
_REGISTER_COUNT = b"\x04\x2f\x08\x00"


def declared_registers(binary: bytes, target: Target) -> int:
    """Registers per thread, from the binary alone: kernels that choose their grid by occupancy ask for them early."""
    if target.backend == "cuda":
        facts = sections_of(binary, b".nv.info\0")
        counts = [
            int.from_bytes(facts[0][place + 8 : place + 12], "little")
            for place in range(0, len(facts[0]) - 11, 4)
            if facts[0].startswith(_REGISTER_COUNT, place)
        ]
        return max(counts, default=0)
    found = re.search(rb"\.vgpr_count(?:([\x00-\x7f])|\xcc(.)|\xcd(..))", binary, re.DOTALL)  # a number of MessagePack
    return int.from_bytes(next(filter(None, found.groups())), "big") if found else 0


def read_cubins(cubins: Sequence[bytes], target: Target) -> list[Code]:
    """The facts of NVIDIA binaries, disassembled together: starting the disassembler costs more than its work."""
    listings = disassemble(cubins, target)
    return [_read_cubin(cubin, listing, target) for cubin, listing in zip(cubins, listings, strict=True)]


def _read_cubin(cubin: bytes, listing: Sequence[Instruction], target: Target) -> Code:
    usage = run_tool("cuobjdump", "--dump-resource-usage", data=cubin)
    match = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    if match is None:
        raise RuntimeError(f"cuobjdump reported no resource usage; it said: {usage.strip()[:200]!r}")
    registers, stack, shared, local = map(int, match.groups())
    if int(target.architecture) >= 90:
        shared -= target.shared_reserved_per_block  # the driver's own block, included since Hopper
    touched = _select(SASS.local_memory, listing)
    return _summary(SASS, listing, registers, stack + local if touched else 0, max(0, shared))


def read_amdgcn(assembly: str) -> Code:
    """The facts of an AMD kernel, from its assembly text and the metadata at its end."""

    def metadata(key: str) -> int:
        match = re.search(rf"\.{key}:\s+(\d+)", assembly)
        if match is None:
            raise RuntimeError(f"the AMD assembly contains no .{key}")
        return int(match[1])

    # Registers spilled to accumulation registers take no scratch memory, so the larger of the two counts.
    spill_bytes = max(4 * metadata("vgpr_spill_count"), metadata("private_segment_fixed_size"))
    static_shared = metadata("group_segment_fixed_size")
    instructions = list(_amdgcn_instructions(assembly))
    return _summary(AMDGCN, instructions, metadata("vgpr_count"), spill_bytes, static_shared)


def _amdgcn_instructions(text: str) -> Iterable[Instruction]:
    for line in text.splitlines():
        line = line.split(";", 1)[0]
        if label := re.match(r"(\.LBB\w+):", line):
            yield Instruction("", label[1])
        elif match := re.match(r"\t([a-z]\w+)(?:\s+(.*?))?\s*$", line):
            yield Instruction(match[1], match[2] or "")
        elif line.startswith("\t.section"):
            return


def _summary(
    dialect: Dialect, listing: Sequence[Instruction], registers: int, spill_bytes: int, static_shared_bytes: int
) -> Code:
    whole = [instruction for instruction in listing if instruction.opcode]
    loops = _loops(dialect, listing)
    loop = _main_loop(dialect, listing, loops)
    in_loops = {index for start, stop in loops for index in range(start, stop)}
    in_loop = _select(dialect.matrix, loop)
    names = Counter(_matrix_name(instruction.opcode) for instruction in in_loop or _select(dialect.matrix, whole))
    return Code(
        registers=registers,
        spill_bytes=spill_bytes,
        loop_spills=len(_select(dialect.local_memory, [listing[index] for index in sorted(in_loops)])),
        static_shared_bytes=static_shared_bytes,
        instructions=len(whole),
        loop_instructions=len(loop),
        loop_matrix_instructions=len(in_loop),
        matrix_instruction=names.most_common(1)[0][0] if names else "",
        global_load_bits=_load_bits(dialect, whole),
        loop_load_bits=_load_bits(dialect, loop),
        asynchronous_copies=len(_select(dialect.asynchronous_copy, whole)),
        compare_and_swap=len(_select(dialect.compare_and_swap, whole)),
        full_waits=len(_select(dialect.full_wait, loop)),
    )


def _matrix_name(opcode: str) -> str:
    """`HGMMA.64x128x16` of `HGMMA.64x128x16.F32.BF16`: the instruction and its shape."""
    return ".".join(opcode.split(".")[:2])


def _select(pattern: re.Pattern[str], instructions: Iterable[Instruction]) -> list[Instruction]:
    return [each for each in instructions if pattern.match(f"{each.opcode} {each.operands}")]


def _load_bits(dialect: Dialect, instructions: Iterable[Instruction]) -> dict[int, int]:
    loads = _select(dialect.global_load, instructions)
    return dict(sorted(Counter(dialect.load_bits(load.opcode) for load in loads).items()))


def _loops(dialect: Dialect, listing: Sequence[Instruction]) -> list[tuple[int, int]]:
    """(first, one past the last) position of each loop: the instructions from a label to a branch back to it."""
    position = {each.operands: index for index, each in enumerate(listing) if not each.opcode}
    loops: list[tuple[int, int]] = []
    for index, instruction in enumerate(listing):
        if not dialect.branch.match(instruction.opcode):
            continue
        label = re.search(r"\.L\w+|0x[0-9a-f]+", instruction.operands)
        start = position.get(label[0], index) if label else index
        if start < index - 1:  # a branch to itself is the trap after the last instruction
            loops.append((start, index + 1))
    return loops


def _main_loop(dialect: Dialect, listing: Sequence[Instruction], loops: Sequence[tuple[int, int]]) -> list[Instruction]:
    """The innermost loop with the most matrix instructions, else the one with the most global loads."""

    def body(loop: tuple[int, int]) -> list[Instruction]:
        return [each for each in listing[loop[0] : loop[1]] if each.opcode]

    for pattern in (dialect.matrix, dialect.global_load):
        holding = [loop for loop in loops if _select(pattern, body(loop))]
        innermost = [
            loop
            for loop in holding
            if not any(other != loop and other[0] >= loop[0] and other[1] <= loop[1] for other in holding)
        ]
        if innermost:
            return body(max(innermost, key=lambda loop: (len(_select(pattern, body(loop))), loop[1] - loop[0])))
    return []
