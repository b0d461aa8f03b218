"""The main loop of a launch: its steps, counted by evaluating Triton's IR with the launch's own numbers.

The main loop is the loop around the matrix products or, in a kernel without any, around the loads. Its bounds may
depend on the program (a share of a reduction), so they are evaluated for the first, the middle and the last program of
the grid, and the most steps count. A loop within a loop counts once for each iteration of the outer one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tinynet_engines.offline.ir import UNKNOWN, Operation, Region, Value, arithmetic, dot_flops, loop_bounds, parse

_LOADS = ("tt.load", "tt.descriptor_load", "tt.descriptor_gather")
_COMPARISONS = {
    "eq": int.__eq__, "ne": int.__ne__, "slt": int.__lt__, "ult": int.__lt__, "sle": int.__le__, "ule": int.__le__,
    "sgt": int.__gt__, "ugt": int.__gt__, "sge": int.__ge__, "uge": int.__ge__,
}  # fmt: skip


def _quotient(a: int, b: int) -> int:
    """a / b rounded toward 0, as in C."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _remainder(a: int, b: int) -> int:
    """a - b (a / b), of a's sign, as in C."""
    return a - b * _quotient(a, b)


# What is exact for two numbers, and an interval in `ir`. Integers with a sign are those of indices, so "u" is the same.
_EXACT = {
    "arith.divsi": _quotient, "arith.divui": _quotient, "arith.remsi": _remainder, "arith.remui": _remainder,
    "arith.andi": int.__and__, "arith.ori": int.__or__, "arith.xori": int.__xor__,
}  # fmt: skip
_DIVISIONS = ("arith.divsi", "arith.divui", "arith.remsi", "arith.remui")


@dataclass(frozen=True)
class MainLoop:
    """The main loop of one program.

    Attributes:
        steps: iterations, one after the other; 0 without a loop, None if their number depends on data.
        flops: operations of the matrix products in one iteration; 0 without any.
        loaded_bytes: bytes that one iteration loads, masked elements included.
    """

    steps: int | None
    flops: int
    loaded_bytes: int


NO_LOOP = MainLoop(0, 0, 0)


@dataclass
class _Loop:
    """What is known of one loop: iterations of all enclosing loops together (None: unknown), and its own work."""

    trips: int | None
    flops: int = 0
    loaded_bytes: int = 0


@lru_cache(maxsize=4096)
def main_loop(text: str, scalars: tuple[tuple[int, int], ...], grid: tuple[int, int, int]) -> MainLoop:
    """The main loop of the program that does the most steps.

    Args:
        text: Triton IR (`ttir`) of the kernel.
        scalars: (position among the compiled kernel's arguments, value) of each integer argument.
        grid: programs along x, y and z.
    """
    last = [max(0, size - 1) for size in grid]
    programs = dict.fromkeys([(0, 0, 0), tuple(index // 2 for index in last), tuple(last)])
    found = [_main_loop_of(text, dict(scalars), grid, program) for program in programs]
    return max(found, key=lambda loop: math.inf if loop.steps is None else loop.steps)


def _main_loop_of(text: str, scalars: Mapping[int, int], grid: Sequence[int], program: Sequence[int]) -> MainLoop:
    function = parse(text)
    scope = {
        name: UNKNOWN if pointer or position not in scalars else Value(scalars[position], scalars[position])
        for position, (name, pointer) in enumerate(zip(function.arguments, function.pointers, strict=True))
    }
    walk = _Walk(grid, program)
    walk.region(function.body, scope, _Loop(1))
    candidates = [loop for loop in walk.loops if loop.flops] or [loop for loop in walk.loops if loop.loaded_bytes]
    if not candidates:
        return NO_LOOP
    main = max(candidates, key=lambda loop: (math.inf if loop.trips is None else loop.trips, loop.flops))
    return MainLoop(main.trips, main.flops, main.loaded_bytes)


class _Walk:
    """One pass over the IR as one program runs it; follows scalar integers only."""

    def __init__(self, grid: Sequence[int], program: Sequence[int]) -> None:
        self.grid, self.program = grid, program
        self.loops: list[_Loop] = []

    def region(self, region: Region, outer: Mapping[str, Value], loop: _Loop) -> list[Value]:
        """Walks a region in its own scope; returns the values that its terminator yields."""
        scope = dict(outer)
        for operation in region.operations:
            operands = [scope.get(name, UNKNOWN) for name in operation.operands]
            if operation.name in ("scf.yield", "scf.condition"):
                return operands
            if operation.name == "scf.for":
                self._for(operation, scope, loop)
            elif operation.name == "scf.while":
                self.loops.append(inner := _Loop(None))
                for each in operation.regions:
                    self.region(each, scope, inner)
            elif operation.name == "scf.if":
                scope.update(zip(operation.results, self._if(operation, operands[0], scope, loop), strict=False))
            else:
                self._count(operation, loop)
                if operation.results:
                    scope[operation.results[0]] = self._value(operation, operands)
        return []

    def _for(self, operation: Operation, scope: dict[str, Value], outer: _Loop) -> None:
        induction, start, stop, step = loop_bounds(operation, scope)
        first, last, stride = map(_exact, (start, stop, step))
        trips: int | None = 0 if outer.trips == 0 else None
        if outer.trips and first is not None and last is not None and stride is not None:
            trips = outer.trips * max(0, -(-(last - first) // stride))
        self.loops.append(inner := _Loop(trips))
        self.region(operation.regions[0], {**scope, induction: UNKNOWN}, inner)

    def _if(self, operation: Operation, condition: Value, scope: Mapping[str, Value], loop: _Loop) -> list[Value]:
        """The results of the branch that runs; where the condition is unknown, those that both branches agree on."""
        taken = _exact(condition)
        if taken is not None:
            chosen = operation.regions[:1] if taken else operation.regions[1:]
            return self.region(chosen[0], scope, loop) if chosen else []
        branches = [self.region(each, scope, loop) for each in operation.regions]
        return [values[0].union(values[-1]) for values in zip(*branches, strict=False)]

    def _count(self, operation: Operation, loop: _Loop) -> None:
        if operation.name in ("tt.dot", "tt.dot_scaled"):
            loop.flops += dot_flops(operation.text) or 1  # of unknown shape: a product all the same
        elif operation.name == "tt.call":  # of a function that is not inlined, which may have any loop
            self.loops.append(_Loop(None, flops=1))
        elif operation.name in _LOADS:
            loop.loaded_bytes += _loaded_bytes(operation.text)

    def _value(self, operation: Operation, operands: list[Value]) -> Value:
        name, text = operation.name, operation.text
        if name in ("tt.get_program_id", "tt.get_num_programs"):
            axis = "xyz".index(text.split()[1])
            number = (self.program if name == "tt.get_program_id" else self.grid)[axis]
            return Value(number, number)
        if "tensor<" in text or name in _LOADS:
            return UNKNOWN
        exact = [_exact(each) for each in operands]
        if name == "arith.cmpi" and None not in exact:
            holds = int(_COMPARISONS[text.split()[1].rstrip(",")](*exact))
            return Value(holds, holds)
        if name == "arith.select" and exact[0] is not None:
            return operands[1 if exact[0] else 2]
        if name in _EXACT and None not in exact and (exact[1] or name not in _DIVISIONS):
            number = _EXACT[name](*exact)
            return Value(number, number)
        return UNKNOWN if name.startswith("arith.cmp") else arithmetic(operation, operands)


def _exact(value: Value) -> int | None:
    return value.low if value.low == value.high else None


def _loaded_bytes(text: str) -> int:
    """Bytes that a load returns, from the type of its pointer, of its block of pointers or of its descriptor."""
    loaded = re.search(r": (?:!tt\.tensordesc<)?(?:tensor<([\dx]+)x)?(?:!tt\.ptr<)?[a-z]+(\d+)", text)
    if loaded is None:
        return 0
    sizes = loaded[1].split("x") if loaded[1] else ()
    return math.prod(map(int, sizes)) * int(loaded[2]) // 8
