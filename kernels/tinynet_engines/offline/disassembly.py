"""Disassembles many NVIDIA binaries at once.

`nvdisasm` takes a third of a second to start and a hundredth per kernel. So the code of all binaries is extracted
from their ELF files, concatenated and disassembled as one, and the listing is split again.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import tempfile
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import triton

from tinynet_engines.offline.targets import Target


@dataclass(frozen=True)
class Instruction:
    """One line of a disassembly: an instruction, or (with an empty `opcode`) a label named by `operands`."""

    opcode: str
    operands: str


def disassemble(cubins: Sequence[bytes], target: Target) -> list[list[Instruction]]:
    """The instructions of each binary, in order; the target of a branch is a label named by its address."""
    if not cubins:
        return []
    codes = [code_of(cubin) for cubin in cubins]
    ends = list(accumulate(len(code) for code in codes))
    lines: list[list[tuple[str, str, str]]] = [[] for _ in codes]
    for address, opcode, operands in _parse(
        run_tool("nvdisasm", "-b", f"SM{target.architecture}", data=b"".join(codes))
    ):
        lines[bisect_right(ends, int(address, 16))].append((address, opcode, operands))
    return [_labelled(each) for each in lines]


def code_of(cubin: bytes) -> bytes:
    """The machine code in an ELF file: its `.text` sections, concatenated."""
    return b"".join(sections_of(cubin, b".text"))


def sections_of(cubin: bytes, prefix: bytes) -> list[bytes]:
    """The sections of an ELF file whose names begin with `prefix`."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + size * index) for index in range(count)]
    name_start = sections[names][4]
    return [
        cubin[start : start + length]
        for name, _, _, _, start, length in sections
        if cubin.startswith(prefix, name_start + name)
    ]


def _parse(text: str) -> list[tuple[str, str, str]]:
    """(address, opcode, operands) of each instruction in nvdisasm's output."""
    pattern = r"^\s*/\*([0-9a-f]{4,})\*/\s+\{?\s*(?:@!?\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;"
    return re.findall(pattern, text, re.MULTILINE)


def _labelled(lines: Sequence[tuple[str, str, str]]) -> list[Instruction]:
    targets = {match for _, opcode, operands in lines if opcode.startswith("BRA") for match in _addresses(operands)}
    listing = []
    for address, opcode, operands in lines:
        label = f"0x{int(address, 16):x}"
        if label in targets:
            listing.append(Instruction("", label))
        listing.append(Instruction(opcode, operands))
    return listing


def _addresses(operands: str) -> list[str]:
    return re.findall(r"0x[0-9a-f]+", operands)


@cache
def _tool_path(name: str) -> str:
    path = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", name)
    if not os.path.exists(path):
        raise RuntimeError(f"this Triton installation has no {name} (expected {path})")
    return path


def run_tool(name: str, *options: str, data: bytes) -> str:
    """The output of one of Triton's NVIDIA tools for `data`, passed to it as a file."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(data)
        file.flush()
        command = [_tool_path(name), *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
